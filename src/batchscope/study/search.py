"""A learning rate for one plan, found by training at the plan's whole budget.

The best rate depends on the length of training: with a linear decay, small batches want smaller rates in longer runs
(the short-horizon bias of Wu et al. 2018, arXiv 1803.02021). So short runs only say where to begin. The choice is made
among runs of the whole budget by :class:`batchscope.study.rate_search.RateSearch`: outwards by a factor 2 until the
best rate has two worse ones on either side, or one that diverges, then its neighbours at a factor √2, and the other
seeds for the best, its neighbours and whatever the first seed does not tell from it. A parabola in log ε through the
best rate and its neighbours says where between them the least loss lies; such a rate is marked as interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from batchscope.fit import valley_bottom
from batchscope.records import Plan, RateSearch, RateTrial, TrainResult
from batchscope.study.rate_search import RateSearch as Search
from batchscope.study.tasks import Standing, Trial

# Shorter runs than this many updates judge a rate by its first few steps.
LEAST_UPDATES = 128
# Screening runs are this share of the budget: all of them together cost less than one run of the whole budget.
SCREENING_SHARE = 1 / 8
# Screening with longer runs than this share of the budget costs more than it can save.
LONGEST_SCREENING = 1 / 4
# Loss against rate can dip twice: with Adam on a table of 40,000 rows, 80 updates of 1,024, the dip at 0.08 has 2.1
# times the loss of the valley at 0.025. Worse rates at a factor 2 and 4 on either side tell the two apart.
DEPTH = 2

Train = Callable[[Plan, int], TrainResult]


def screening_examples(examples: int, batch_size: int) -> int | None:
    """Examples in each screening run: an eighth of the budget, but at least 128 updates.

    Args:
        examples: The whole budget.
        batch_size: Examples per update.

    Returns:
        Whole updates; None where that is more than a quarter of the budget, so that screening does not pay.

    Examples:
        >>> screening_examples(32768, 8), screening_examples(32768, 64), screening_examples(32768, 512)
        (4096, 8192, None)
    """
    wanted = max(SCREENING_SHARE * examples, LEAST_UPDATES * batch_size)
    short = math.ceil(wanted / batch_size) * batch_size
    return short if short <= LONGEST_SCREENING * examples else None


@dataclass
class _Stage:
    """Trials at one length of training."""

    search: Search
    examples: int
    runs: list[tuple[Trial, TrainResult]]
    stopped: bool = False

    @property
    def standings(self) -> list[Standing]:
        return [standing_by_loss(trial, run) for trial, run in self.runs if run.outcome != "interrupted"]

    def run(self, train: Train, plan: Plan) -> None:
        """Train whatever the search asks for, until it is content or a run is interrupted or out of memory."""
        while wave := self.search.next_wave(self.standings):
            for trial in wave:
                wanted = replace(plan, learning_rate=trial.learning_rate, iterations=None, examples=self.examples)
                run = train(wanted, trial.seed)
                self.runs.append((trial, run))
                if run.outcome in ("interrupted", "out of memory"):  # which no other rate would change
                    self.stopped = True
                    return


def search_learning_rate(
    train: Train, plan: Plan, start: float, seeds: tuple[int, ...], *, screen: bool = True
) -> tuple[RateSearch, tuple[TrainResult, ...]]:
    """Find the learning rate with the least final validation loss at the end of a plan's budget.

    Args:
        train: Trains a plan with a seed.
        plan: The plan with its whole budget; its rate is not looked at.
        start: The rate to begin with, such as the reference rescaled to this batch size.
        seeds: Seeds of the search. They must not be those of the runs that the rate is chosen for: the least of several
            noisy losses is too low, and only new seeds are free of that.
        screen: Whether to find out by short runs where to begin, where that pays; False: ``start`` is trusted.

    Returns:
        The search, and its runs in the order made. A search that is interrupted or runs out of memory ends with that
        run and the best rate so far.

    Examples:
        >>> import torch
        >>> from batchscope.training import Prepared, Run
        >>> from batchscope.workload.digits import digits
        >>> prepared = Prepared(digits(), torch.device("cpu"))
        >>> plan = Plan(batch_size=64, learning_rate=1.0, iterations=64, shape="linear")
        >>> found, runs = search_learning_rate(lambda plan, seed: Run(prepared, plan, seed=seed)(), plan, 0.1, (7, 8))
        >>> found.horizon_examples, found.examples == sum(run.examples for run in runs), found.at_edge
        (4096, True, False)
    """
    budget = plan.budget_examples or 0
    stages: list[_Stage] = []
    short = screening_examples(budget, plan.batch_size) if screen else None
    if short is not None:
        coarse = Search(start, seeds[:1], plan.batch_size, None, short, at_once=1, refine=False)
        stages.append(_Stage(coarse, short, []))
        stages[0].run(train, plan)
        choice = coarse.choice(stages[0].standings)
        # Where every rate diverged, the whole budget is tried from the smallest one on.
        start = choice.learning_rate or min(choice.rates, default=start)
    if not any(stage.stopped for stage in stages):
        stages.append(_Stage(Search(start, seeds, plan.batch_size, None, budget, at_once=1, depth=DEPTH), budget, []))
        stages[-1].run(train, plan)
    last = stages[-1]
    choice = last.search.choice(last.standings)
    valley = last.search.valley(last.standings)
    rate, at_edge = choice.learning_rate or min(choice.rates, default=start), choice.edge is not None
    if choice.learning_rate is None:
        at_edge = True
    elif not at_edge:
        rate, at_edge = valley_bottom(valley.rates, valley.costs)
    runs = [run for stage in stages for _, run in stage.runs]
    record = RateSearch(
        batch_size=plan.batch_size,
        horizon_examples=last.examples,
        trials=tuple(
            _trial(trial, run, stage.examples)
            for stage in stages
            for trial, run in sorted(stage.runs, key=lambda one: one[0])
            if run.outcome != "interrupted"
        ),
        learning_rate=rate,
        at_edge=at_edge,
        examples=sum(run.examples for run in runs),
        seconds=sum(run.total_seconds for run in runs),
        seeds=seeds,
        interpolated=rate not in choice.rates,
        curve=tuple(
            RateTrial(tried, loss, None, "finished" if math.isfinite(loss) else "diverged")
            for tried, loss in zip(valley.rates, valley.costs, strict=True)
        ),
    )
    return record, tuple(runs)


def standing_by_loss(trial: Trial, run: TrainResult) -> Standing:
    """How a run stands that is judged by its final validation loss.

    Args:
        trial: Its batch size, rate and seed.
        run: A run that was not interrupted.

    Returns:
        The standing; its score is minus the final loss, None where the run did not end in order.
    """
    loss = run.final_loss if run.final_loss is not None and math.isfinite(run.final_loss) else None
    if run.outcome == "out of memory":
        return Standing(trial, "failed", run.examples, None, None)
    if loss is None:
        return Standing(trial, "diverged", run.examples, None, None)
    return Standing(trial, "missed", run.examples, -loss, loss)


def _trial(trial: Trial, run: TrainResult, examples: int) -> RateTrial:
    loss = run.final_loss if run.final_loss is not None and math.isfinite(run.final_loss) else math.inf
    return RateTrial(trial.learning_rate, loss, run.final_score, run.outcome, trial.seed, examples)

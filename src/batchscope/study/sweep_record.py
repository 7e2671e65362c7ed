"""From finished trials to the record of a sweep: the best of each batch size, the laws, and the answer in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from scipy.special import stdtrit

from batchscope.fit import fit_tradeoff
from batchscope.fit.intervals import mean_interval, ratio_interval
from batchscope.fit.rate_law import fit_rate_law, rate_point
from batchscope.fit.time_to_target import time_to_target
from batchscope.records import Interval, RateLaw, StepTimes, SweepBest, SweepTrial, TimeToTarget, TradeoffLaw
from batchscope.study.rate_search import RateSearch
from batchscope.study.tasks import Standing

# A law of the rate needs this many batch sizes.
LEAST_RATES = 3


def with_step_seconds(trials: Sequence[SweepTrial], step_times: StepTimes | None) -> tuple[SweepTrial, ...]:
    """Trials with the time that their updates take alone, by batch size, rate and seed."""
    known = _update_seconds(step_times)
    filled = (
        replace(trial, step_seconds=trial.iterations * known[trial.batch_size] if trial.batch_size in known else None)
        for trial in trials
    )
    return tuple(sorted(filled, key=lambda trial: (trial.batch_size, trial.learning_rate, trial.seed)))


def best_of(
    batch_size: int,
    trials: Sequence[SweepTrial],
    standings: Sequence[Standing],
    search: RateSearch,
    *,
    target: float | None,
    evaluate_every: int,
    step_times: StepTimes | None,
    trained_as: str,
) -> SweepBest:
    """The best rate of one batch size and what it needs.

    Args:
        batch_size: Which.
        trials: Its trials.
        standings: How they stand, as the search sees them.
        search: Which knows what "best" means.
        target: The score to reach; None where there is none.
        evaluate_every: Examples between two evaluations.
        step_times: Time of an update; None where not measured.
        trained_as: How they were trained, in words.

    Returns:
        The line of the sweep's table.
    """
    choice = search.choice(standings)
    runs = [trial for trial in trials if trial.learning_rate == choice.learning_rate and _counts(trial)]
    examples = Interval.unresolved() if target is None else _examples_to_target(runs, evaluate_every)
    updates = _scaled(examples, 1 / batch_size)
    update_seconds = _update_seconds(step_times).get(batch_size)
    scores = [run.best_score for run in runs if run.best_score is not None and run.outcome != "diverged"]
    return SweepBest(
        batch_size=batch_size,
        learning_rate=choice.learning_rate,
        edge=choice.edge,
        rates=tuple(sorted({trial.learning_rate for trial in trials})),
        runs=len(runs),
        reached=sum(run.outcome == "reached" for run in runs),
        examples_to_target=examples,
        updates_to_target=updates,
        score=mean_interval(scores),
        update_seconds=update_seconds,
        seconds_to_target=Interval.unresolved() if update_seconds is None else _scaled(updates, update_seconds),
        examples_spent=sum(trial.examples for trial in trials),
        trials=len(trials),
        pruned=sum(trial.outcome == "pruned" for trial in trials),
        trained_as=trained_as,
    )


def law_of(best: Sequence[SweepBest], trials: Sequence[SweepTrial], evaluate_every: int) -> TradeoffLaw | None:
    """Examples to the target against batch size, at the best rates; None where nothing reached it.

    A target was reached somewhere since the evaluation before the one that saw it: the law is told how far they are
    apart, and counts runs half-way.
    """
    sizes: list[int] = []
    examples: list[list[float]] = []
    spent: list[list[float]] = []
    for line in best:
        runs = _runs_of(line, trials)
        if runs:
            sizes.append(line.batch_size)
            examples.append([float(run.examples_to_target or math.inf) for run in runs])
            spent.append([float(max(1, run.examples)) for run in runs])
    if not any(math.isfinite(value) for values in examples for value in values):
        return None
    apart = [min(max(evaluate_every, size), *values) for size, values in zip(sizes, examples, strict=True)]
    return fit_tradeoff(sizes, examples, spent=spent, evaluated_every=apart)


def rate_law_of(
    best: Sequence[SweepBest], standings: Mapping[int, Sequence[Standing]], searches: Mapping[int, RateSearch]
) -> RateLaw | None:
    """The best rate against batch size; None below three batch sizes that have one."""
    points = [
        rate_point(line.batch_size, searches[line.batch_size].valley(standings[line.batch_size]), edge=line.edge)
        for line in best
        if line.learning_rate is not None
    ]
    return fit_rate_law(points) if len(points) >= LEAST_RATES else None


def time_of(law: TradeoffLaw | None, step_times: StepTimes | None) -> TimeToTarget | None:
    """Seconds to the target; None without a law or without the time of an update."""
    return None if law is None or step_times is None else time_to_target(law, step_times)


def _counts(trial: SweepTrial) -> bool:
    return trial.outcome in ("reached", "finished", "pruned", "diverged")


def _runs_of(line: SweepBest, trials: Sequence[SweepTrial]) -> list[SweepTrial]:
    return [
        trial
        for trial in trials
        if trial.batch_size == line.batch_size and trial.learning_rate == line.learning_rate and _counts(trial)
    ]


def _examples_to_target(runs: Sequence[SweepTrial], evaluate_every: int) -> Interval:
    """The geometric mean with Student's interval, to whose spread evaluating now and then adds its own.

    A target seen at E was reached anywhere in the distance d before: a variance of d²/12 in E. Without it, runs that
    were seen to reach it at the same evaluation would have an interval of no width.
    """
    spent = [max(1, run.examples_to_target or run.examples) for run in runs]
    logs = [math.log(examples) for examples in spent]
    missed = sum(run.examples_to_target is None for run in runs)
    found = ratio_interval(logs)
    if found.value is None or missed == len(runs):
        return Interval.unresolved(low=found.value)
    if len(runs) > 1:
        mean = math.fsum(logs) / len(logs)
        apart = max(evaluate_every, runs[0].batch_size)
        squares = math.fsum((one - mean) ** 2 for one in logs) / (len(logs) - 1)
        squares += math.fsum((apart / examples) ** 2 for examples in spent) / len(spent) / 12
        half = float(stdtrit(len(logs) - 1, (1 + found.level) / 2)) * math.sqrt(squares / len(logs))
        found = replace(found, low=math.exp(mean - half), high=math.exp(mean + half))
    return replace(found, high=math.inf) if missed else found


def _scaled(found: Interval, factor: float) -> Interval:
    value, low, high = (None if end is None else end * factor for end in (found.value, found.low, found.high))
    return replace(found, value=value, low=low, high=high)


def _update_seconds(step_times: StepTimes | None) -> dict[int, float]:
    points = step_times.points if step_times is not None else ()
    return {point.batch_size: point.step_seconds.value for point in points if point.step_seconds.value is not None}

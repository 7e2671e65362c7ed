"""The search for a learning rate at one batch size.

A rate is judged by the validation loss at the end of a short run whose rate has the shape of the real one. With the
linear shape that is the loss *after a cooldown*: judged by raw early loss instead, large rates look better than they
end (Wu et al. 2018, arXiv 1803.02021). Rates a factor 2 apart are tried from the reference outwards until the best
one has a worse neighbour on either side; a parabola in log ε through the three says where between them the bottom is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from batchscope.fit import valley_bottom
from batchscope.records import Plan, RateSearch, RateTrial, TrainResult

# Shorter runs than this many updates judge a rate by its first few steps.
LEAST_UPDATES = 128
FRACTION = 8
FACTOR = 2.0
MOST_TRIALS = 14


def horizon(examples: int, batch_size: int) -> int:
    """Examples in each trial: an eighth of the budget, but at least 128 updates, and never more than the budget.

    Examples:
        >>> horizon(32768, 8), horizon(32768, 128), horizon(32768, 512)
        (4096, 16384, 32768)
    """
    wanted = max(examples // FRACTION, LEAST_UPDATES * batch_size)
    return min(examples, -(-wanted // batch_size) * batch_size)


def search_learning_rate(
    train: Callable[[Plan], TrainResult], plan: Plan, start: float
) -> tuple[RateSearch, tuple[TrainResult, ...]]:
    """Find a learning rate for a plan.

    Args:
        train: Trains a plan, with a seed of the search's own.
        plan: The plan with its whole budget; its rate is not looked at.
        start: The rate to begin with: the reference, rescaled to this batch size.

    Returns:
        The search, and its runs in the order made. A search that is interrupted or runs out of memory ends with that
        run and the best rate so far.
    """
    budget = plan.budget_examples or 0
    examples = horizon(budget, plan.batch_size)
    runs: dict[int, TrainResult] = {}
    exponent: int | None = 0
    while exponent is not None and len(runs) < MOST_TRIALS:
        rate = start * FACTOR**exponent
        runs[exponent] = train(replace(plan, learning_rate=rate, iterations=None, examples=examples))
        if runs[exponent].outcome in ("interrupted", "out of memory"):  # which no other rate would mend
            break
        exponent = next_exponent({e: loss_of(run) for e, run in runs.items()})

    tried = sorted(e for e, run in runs.items() if run.outcome != "interrupted")
    losses = [loss_of(runs[e]) for e in tried]
    rates = [start * FACTOR**e for e in tried]
    finite = any(map(math.isfinite, losses))
    rate, at_edge = valley_bottom(rates, losses) if finite else (min(rates, default=start), True)
    search = RateSearch(
        batch_size=plan.batch_size,
        horizon_examples=examples,
        trials=tuple(RateTrial(rates[i], losses[i], runs[e].final_score, runs[e].outcome) for i, e in enumerate(tried)),
        learning_rate=rate,
        at_edge=at_edge,
        examples=sum(run.examples for run in runs.values()),
        seconds=sum(run.total_seconds for run in runs.values()),
    )
    return search, tuple(runs.values())


def loss_of(run: TrainResult) -> float:
    """What a trial is judged by: its final validation loss; infinite where it did not end in order."""
    return run.final_loss if run.final_loss is not None and math.isfinite(run.final_loss) else math.inf


def next_exponent(losses: dict[int, float]) -> int | None:
    """Which power of the factor to try next: outwards from the best so far until it has a neighbour on either side.

    Args:
        losses: Loss by exponent, for a run of neighbouring exponents.

    Returns:
        The exponent to try; None when the best is bracketed.

    Examples:
        >>> next_exponent({0: 1.0}), next_exponent({0: 1.0, 1: 0.5}), next_exponent({0: 1.0, 1: 0.5, 2: 0.7})
        (1, 2, None)
    """
    lowest, highest = min(losses), max(losses)
    if not any(map(math.isfinite, losses.values())):
        return lowest - 1
    # Among equals the larger rate: a tie on the upper side means that the valley may still go on.
    best = max(losses, key=lambda e: (-losses[e], e))
    if best == highest:
        return highest + 1
    return lowest - 1 if best == lowest else None

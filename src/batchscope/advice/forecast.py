"""What the race's draws say of one training run: its time, its score, its course, with intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from batchscope.advice.outlook import LIKELY, Outlook, quantiles
from batchscope.advice.update_times import UpdateTimes
from batchscope.records import ForecastPoint, Interval

Floats = NDArray[np.float64]

LEVEL = 0.9
# Examples to a target differ by this much from seed to seed, at least: a standard deviation in e-folds.
SEED_SPREAD = 0.15
# The forecast of each batch size reaches from this share of the examples to the goal to this many times as many.
FORECAST_FROM, FORECAST_TO, FORECAST_POINTS = 1 / 16, 4.0, 13


def predicted(outlook: Outlook, size: int, examples: float) -> tuple[Interval, Interval]:
    """Seconds to the goal and the score there of one more training run, at 90%.

    Args:
        outlook: The race's laws.
        size: The batch size.
        examples: What the plan trains on, where a time is given.
    """
    i = outlook.sizes.index(size)
    seconds, scores = outlook.seconds[i], outlook.scores[i]
    generator = np.random.default_rng(0)
    law = outlook.score
    # A run of its own scatters about the law as those of the race did.
    scatter = law.relative_error
    if outlook.goal.kind == "target":
        spread = np.sqrt(SEED_SPREAD**2 + (scatter / np.median(law.exponent)) ** 2 / 4)
        seconds = seconds * np.exp(spread * generator.standard_normal(len(seconds)))
        return interval(seconds), Interval(outlook.goal.value, None, None, LEVEL)
    if outlook.goal.kind == "seconds":
        scores = outlook.scores_after(size, examples)
    left = law.gap * scatter
    scores = scores + left * generator.standard_normal(len(scores))
    return interval(seconds), interval(scores)


def scaled(known: Interval, factor: float) -> Interval:
    """All of it so many times as large."""
    ends = [None if end is None else factor * end for end in (known.value, known.low, known.high)]
    return replace(known, value=ends[0], low=ends[1], high=ends[2])


def interval(draws: Floats, level: float = LEVEL) -> Interval:
    """Median and quantiles; unresolved where most draws are infinite."""
    tail = (1 - level) / 2
    if np.isfinite(draws).mean() < LIKELY:
        finite = draws[np.isfinite(draws)]
        return Interval.unresolved(level, low=float(np.quantile(finite, tail)) if len(finite) else None)
    low, middle, high = quantiles(draws, tail, 0.5, 1 - tail)
    return Interval(middle, low, high, level)


def forecast_points(outlook: Outlook, size: int, goal_examples: float, times: UpdateTimes) -> tuple[ForecastPoint, ...]:
    """What a batch size will have reached on its way to the goal and beyond."""
    per_example = times.seconds(size) / size
    places = np.geomspace(FORECAST_FROM * goal_examples, FORECAST_TO * goal_examples, FORECAST_POINTS)
    return tuple(
        ForecastPoint(
            examples=max(1, round(place)),
            seconds=place * per_example,
            score=interval(outlook.scores_after(size, place)),
        )
        for place in places
    )


def critical_size(outlook: Outlook) -> Interval:
    """Near the goal: after the examples that the best size needs, or as many as were seen where it is out of reach."""
    i = outlook.sizes.index(outlook.best())
    ahead = outlook.examples[i]
    ahead = np.where(np.isfinite(ahead), ahead, outlook.loss.reference_examples)
    found = interval(outlook.loss.critical_batch_size(ahead))
    # With one batch size raced, or all of them far on one side, the draws are little but the prior.
    wide = found.low is not None and found.high is not None and found.high > 100 * max(found.low, 1e-9)
    return Interval.unresolved(LEVEL, low=found.low, high=found.high) if wide else found

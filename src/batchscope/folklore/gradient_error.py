"""The error of the gradient falls as 1/√B, while the cost of computing it grows as B."""

from __future__ import annotations

import math

import numpy as np

from batchscope.fit import mean_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.rows import gradient_rows
from batchscope.folklore.runner import ExperimentRunner
from batchscope.folklore.verdicts import FAILS, HOLDS, all_of, of_equality
from batchscope.records import Interval
from batchscope.records.claims import Finding, Picture, Series
from batchscope.seeding import derive

EXAMPLES, REPEATS, BATCHES, PARTS = 512, 8, 200, 4
SIZES = (1, 4, 16, 64)
# Largest negligible difference from a claimed log-log slope.
SLOPE = 0.1


def test(runner: ExperimentRunner) -> Outcome:
    """Measure the distance of batch means from the mean of all per-example gradients."""
    rows = gradient_rows(runner, runner.states_along(runner.plan(runner.small), PARTS)[0], EXAMPLES, "gradient error")
    mean = rows.mean(axis=0)
    generator = np.random.default_rng(derive(runner.seed, "claims", "batches"))
    errors = np.empty((REPEATS, len(SIZES)))
    for repeat in range(REPEATS):
        for i, size in enumerate(SIZES):
            drawn = generator.integers(len(rows), size=(BATCHES, size))
            far = [float(np.linalg.norm(rows[batch].mean(axis=0) - mean)) for batch in drawn]
            errors[repeat, i] = math.sqrt(float(np.mean(np.square(far))))
    slopes = [float(np.polyfit(np.log(SIZES), np.log(own), 1)[0]) for own in errors]
    slope = mean_interval(slopes)
    points = [point for point in runner.step_times.points if point.step_seconds.value]
    low, high = points[-2], points[-1]
    growth = _slope(low.step_seconds, high.step_seconds, high.batch_size / low.batch_size)
    falls, grows = of_equality(_moved(slope, 0.5), SLOPE), of_equality(_moved(growth, -1.0), 2 * SLOPE)
    verdict = all_of([falls, grows])
    explanation = {
        HOLDS: "Four times the batch size halves the error and, at the largest sizes, takes four times as long.",
        FAILS: f"The error falls as B^{slope.value:.2f}."
        if falls == FAILS
        else f"The time of an update grows as B^{growth.value:.2f} at the largest sizes.",
    }.get(verdict, "The slopes are not resolved.")
    scale = float(np.linalg.norm(mean))
    series = (
        Series(
            "measured",
            tuple(map(float, SIZES)),
            tuple(mean_interval((errors[:, i] / scale).tolist()) for i in range(len(SIZES))),
            line=False,
        ),
        Series(
            "∝ 1/√B",
            tuple(map(float, SIZES)),
            tuple(Interval(float(errors[:, 0].mean()) / scale / math.sqrt(size), None, None) for size in SIZES),
        ),
    )
    return Outcome(
        f"After a quarter of a run with batch size {runner.small}: {REPEATS} times {BATCHES} batches of each size "
        f"{', '.join(map(str, SIZES))}, drawn with replacement from {len(rows):,} per-example gradients, and the "
        f"distance of their means from the mean of all. Also the time of an update at batch sizes {low.batch_size:,} "
        f"and {high.batch_size:,}.",
        verdict,
        explanation,
        (
            Finding("log-log slope of the error over B (claimed: −½)", slope),
            Finding("log-log slope of the time over B (claimed: 1)", growth),
        ),
        Picture("batch size", "relative error of the gradient", series, log_upward=True),
    )


def _moved(interval: Interval, by: float) -> Interval:
    value, low, high = (None if end is None else end + by for end in (interval.value, interval.low, interval.high))
    return Interval(value, low, high, interval.level, interval.resolved)


def _slope(before: Interval, after: Interval, ratio: float) -> Interval:
    """Slope of log time over log B between two sizes, with the extremes of both intervals."""

    def of(first: float | None, last: float | None) -> float | None:
        return math.log(last / first) / math.log(ratio) if first and last else None

    return Interval(of(before.value, after.value), of(before.high, after.low), of(before.low, after.high))


CLAIM = Claim(
    "error-falls-as-the-root",
    "The error of a batch's gradient falls only as 1/√B, while its cost grows as B.",
    "Goodfellow, Bengio and Courville, Deep Learning, chapter 8",
    test,
)

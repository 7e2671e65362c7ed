"""A smaller batch reaches a given score in less time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchscope.fit import ratio_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import ExperimentRunner, Trained
from batchscope.folklore.verdicts import FAILS, HOLDS, log_of, of_effect, paired_ratio
from batchscope.records import Interval
from batchscope.records.claims import Finding, Picture, Series

# Share of the improvement that defines the score to reach; the last few per cent are noise.
SHARE = 0.97


def test(runner: ExperimentRunner) -> Outcome:
    """Compare the time of each batch size to a score that all of them reach."""
    sizes = sorted({runner.smallest, runner.small, 128, runner.large})
    runs = {size: runner.train(runner.plan(size)) for size in sizes}
    target = common_score(list(runs.values()))
    taken = {size: [seconds_to(runner, run, target) for run in own] for size, own in runs.items()}
    ratio = paired_ratio(taken[runner.large], taken[runner.small])
    verdict = of_effect(log_of(ratio))
    explanation = {
        HOLDS: f"Batch size {runner.small} is faster than {runner.large:,} on this machine.",
        FAILS: f"Batch size {runner.large:,} is at least as fast as {runner.small}, with fewer updates.",
    }.get(verdict, "The difference is smaller than the differences between seeds.")
    heights = tuple(mean_seconds(taken[size]) for size in sizes)
    series = Series(f"to {target:.4g}", tuple(map(float, sizes)), heights)
    return Outcome(
        f"Batch sizes {', '.join(f'{size:,}' for size in sizes)}, each at its best learning rate, to a score of "
        f"{target:.4g} that all of them reach. Time is the number of updates times the measured time of one.",
        verdict,
        explanation,
        (Finding(f"time of {runner.large:,} over {runner.small}", ratio),),
        Picture("batch size", "seconds to the score", (series,), log_upward=True),
    )


def common_score(runs: Sequence[Sequence[Trained]]) -> float:
    """A score that every run reaches."""
    results = [run.result for own in runs for run in own]
    begin = min(result.curve[0].score for result in results)
    reached = min(max(point.score for point in result.curve) for result in results)
    return begin + SHARE * (reached - begin)


def seconds_to(runner: ExperimentRunner, run: Trained, target: float) -> float | None:
    """Seconds of updates before the first evaluation at the target."""
    there = next((point for point in run.result.curve if point.score >= target), None)
    if there is None:
        return None
    return max(1, there.iterations) * runner.seconds_per_update(run.result.plan.batch_size)


def mean_seconds(values: Sequence[float | None]) -> Interval:
    """Geometric mean over seeds, without runs that do not reach the score."""
    return ratio_interval([math.log(value) for value in values if value])


CLAIM = Claim(
    "smaller-batches-are-there-sooner",
    "A smaller batch reaches a given score in less time.",
    "the third answer to the question",
    test,
)

"""A smaller batch reaches a given score in less time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchscope.fit import ratio_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab, Trained
from batchscope.folklore.verdicts import FAILS, HOLDS, log_of, of_effect, paired_ratio
from batchscope.records import Interval
from batchscope.records.claims import Finding, Picture, Series

# The score that all reach, this far of the way from where training begins: the last bit is reached by chance.
SHARE = 0.97


def test(lab: Lab) -> Outcome:
    """Compare the time that each batch size takes to a score that all of them reach."""
    sizes = sorted({lab.smallest, lab.small, 128, lab.large})
    runs = {size: lab.train(lab.plan(size)) for size in sizes}
    target = common_score(list(runs.values()))
    taken = {size: [seconds_to(lab, run, target) for run in own] for size, own in runs.items()}
    ratio = paired_ratio(taken[lab.large], taken[lab.small])
    verdict = of_effect(log_of(ratio))
    explanation = {
        HOLDS: f"Batch {lab.small} is there sooner than {lab.large:,} on this machine.",
        FAILS: f"Batch {lab.large:,} is there no later than {lab.small}: its updates are fewer, and cost little more.",
    }.get(verdict, "Seeds differ by more than the two do.")
    heights = tuple(mean_seconds(taken[size]) for size in sizes)
    series = Series(f"to {target:.4g}", tuple(map(float, sizes)), heights)
    return Outcome(
        f"Batch {', '.join(f'{size:,}' for size in sizes)}, each at its best rate, to a score of {target:.4g}, which "
        f"all of them reach; updates times the time measured for one, evaluations apart.",
        verdict,
        explanation,
        (Finding(f"time of {lab.large:,} over {lab.small}", ratio),),
        Picture("batch size", "seconds to the score", (series,), log_upward=True),
    )


def common_score(runs: Sequence[Sequence[Trained]]) -> float:
    """A score that every run reaches, short of the last bit."""
    results = [run.result for own in runs for run in own]
    begin = min(result.curve[0].score for result in results)
    reached = min(max(point.score for point in result.curve) for result in results)
    return begin + SHARE * (reached - begin)


def seconds_to(lab: Lab, run: Trained, target: float) -> float | None:
    """Seconds of updates until the first evaluation at the target."""
    there = next((point for point in run.result.curve if point.score >= target), None)
    if there is None:
        return None
    return max(1, there.iterations) * lab.seconds_per_update(run.result.plan.batch_size)


def mean_seconds(values: Sequence[float | None]) -> Interval:
    """The geometric mean over seeds; runs that do not get there are left out."""
    return ratio_interval([math.log(value) for value in values if value])


CLAIM = Claim(
    "smaller-batches-are-there-sooner",
    "A smaller batch reaches a given score in less time.",
    "the third answer to the question",
    test,
)

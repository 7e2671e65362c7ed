"""Examples per second rise with the batch size, and then saturate."""

from __future__ import annotations

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import ExperimentRunner
from batchscope.folklore.verdicts import FAILS, HOLDS, INCONCLUSIVE, all_of
from batchscope.records import Interval
from batchscope.records.claims import Finding, Picture, Series, Verdict

# Least factor by doubling the batch size if throughput rises, and largest if it has saturated.
RISES, SATURATED = 1.25, 1.1


def test(runner: ExperimentRunner) -> Outcome:
    """Time updates at all batch sizes."""
    points = [point for point in runner.step_times.points if point.examples_per_second.value]
    first = _ratio(points[0].examples_per_second, points[1].examples_per_second)
    top = _ratio(points[-2].examples_per_second, points[-1].examples_per_second)
    rises = _verdict(above=first.low, below=first.high, bound=RISES)
    flat = _verdict(
        above=None if top.high is None else -top.high, below=None if top.low is None else -top.low, bound=-SATURATED
    )
    verdict = all_of([rises, flat])
    explanation = {
        HOLDS: f"Throughput rises; beyond {points[-2].batch_size:,}, doubling gains less than {SATURATED - 1:.0%}.",
        FAILS: "Doubling gains little even at the smallest batch sizes."
        if rises == FAILS
        else f"At {points[-1].batch_size:,}, the largest batch size, throughput still rises.",
    }.get(verdict, "The intervals of the measured times are too wide.")
    series = Series(
        "measured", tuple(float(p.batch_size) for p in points), tuple(p.examples_per_second for p in points)
    )
    knee = runner.step_times.law.knee
    return Outcome(
        f"Updates at {len(points)} batch sizes from {points[0].batch_size} to {points[-1].batch_size:,}, timed in "
        f"rounds.",
        verdict,
        explanation,
        (
            Finding(f"examples per second at {points[1].batch_size} over {points[0].batch_size}", first),
            Finding(f"examples per second at {points[-1].batch_size:,} over {points[-2].batch_size:,}", top),
            Finding("batch size at half the maximum throughput", knee),
        ),
        Picture("batch size", "examples per second", (series,), log_upward=True),
    )


def _ratio(before: Interval, after: Interval) -> Interval:
    def over(a: float | None, b: float | None) -> float | None:
        return a / b if a and b else None

    return Interval(over(after.value, before.value), over(after.low, before.high), over(after.high, before.low))


def _verdict(*, above: float | None, below: float | None, bound: float) -> Verdict:
    if above is not None and above >= bound:
        return HOLDS
    return FAILS if below is not None and below < bound else INCONCLUSIVE


CLAIM = Claim(
    "throughput-saturates",
    "Examples per second rise with the batch size, and then saturate.",
    "Ng, Machine Learning (vectorisation)",
    test,
)

"""Time to the target against the closed form B* = √(c₀/c₁·B_crit), and what is said where there is no law."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.errors import ArgumentError
from batchscope.fit import fit_tradeoff
from batchscope.fit.time_to_target import time_to_target
from batchscope.records import Interval, Provenance, StepTimes
from batchscope.records.step_time import StepTimeLaw, StepTimePoint

SIZES = [8 * 2**i for i in range(9)]
NOTHING = Interval(0.0, 0.0, 0.0)
PROVENANCE = Provenance(
    created="2026-01-01T00:00:00+00:00",
    batchscope="0",
    python="3",
    torch="2",
    numpy="2",
    platform="p",
    processor="p",
    cores=2,
    threads=2,
    memory_bytes=1,
    device="cpu",
    dtype="float32",
    seed=0,
    workload_fingerprint="0",
)


def timed(sizes: list[int], fixed: float, each: float, *, error: float = 0.0, seed: int | None = None) -> StepTimes:
    """τ = c₀ + c₁·B, with a 95% interval of relative half-width ``error``; with a seed, off by as much."""
    generator = np.random.default_rng(seed)
    points = []
    for size in sizes:
        seconds = fixed + each * size
        if seed is not None:
            seconds *= math.exp(generator.normal(0, error / 1.96))
        around = Interval(seconds, seconds * math.exp(-error), seconds * math.exp(error))
        points.append(StepTimePoint(size, around, NOTHING, around, Interval(1.0, 1.0, 1.0), seconds, 6, 60))
    law = StepTimeLaw(NOTHING, NOTHING, None, None, NOTHING, 0.0)
    return StepTimes("w", tuple(points), law, "between updates", 0, None, 1.0, 1, 1.0, PROVENANCE)


def exactly(critical: float, sizes: list[int] = SIZES) -> Any:
    return fit_tradeoff(sizes, [1e4 * (1 + b / critical) for b in sizes])


@settings(max_examples=15)
@given(critical=st.floats(30.0, 600.0), knee=st.floats(30.0, 600.0))
def test_the_optimum_is_the_geometric_mean_of_knee_and_critical_batch_size(critical: float, knee: float) -> None:
    fixed, each = 1e-3, 1e-3 / knee
    found = time_to_target(exactly(critical), timed(SIZES, fixed, each))
    best = math.sqrt(knee * critical)
    least = 1e4 * (1 + best / critical) / best * (fixed + each * best)
    # Exact but for the curve through the step times, a factor 2 apart.
    assert found.best_batch_size.value == pytest.approx(best, rel=0.1)
    assert found.best_seconds.value == pytest.approx(least, rel=2e-3)
    for point in found.points:
        seconds = 1e4 * (1 + point.batch_size / critical) / point.batch_size * (fixed + each * point.batch_size)
        assert point.seconds.value == pytest.approx(seconds, rel=1e-3)
    low, high = found.within_ten_per_cent or (0, 0)
    for end in (low, high):
        seconds = 1e4 * (1 + end / critical) / end * (fixed + each * end)
        assert seconds == pytest.approx(1.1 * least, rel=0.02) or end in (SIZES[0], SIZES[-1])
    assert low <= best <= high


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    critical, fixed, each = 200.0, 1e-3, 1e-5
    best = math.sqrt(fixed / each * critical)
    least = 1e4 * (1 + best / critical) / best * (fixed + each * best)
    held = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        table = [
            (1e4 * (1 + b / critical) * np.exp(generator.normal(0, 0.05) + generator.normal(0, 0.08, 3))).tolist()
            for b in SIZES
        ]
        found = time_to_target(fit_tradeoff(SIZES, table), timed(SIZES, fixed, each, error=0.03, seed=seed))
        first = found.points[0]
        truth = 1e4 * (1 + 8 / critical) / 8 * (fixed + each * 8)
        held.append(
            [
                i.low <= t <= i.high  # type: ignore[operator]
                for i, t in ((found.best_batch_size, best), (found.best_seconds, least), (first.seconds, truth))
            ]
        )
    # 30 draws of 0.95: below 0.85 about once in a hundred.
    assert (np.mean(held, axis=0) >= 0.85).all()


def test_uncertainty_of_either_part_widens_the_interval() -> None:
    generator = np.random.default_rng(0)
    noisy = fit_tradeoff(SIZES, [1e4 * (1 + b / 200) * math.exp(generator.normal(0, 0.1)) for b in SIZES])

    def width(law: Any, error: float) -> float:
        interval = time_to_target(law, timed(SIZES, 1e-3, 1e-5, error=error)).best_seconds
        assert interval.low is not None
        return math.log((interval.high or 0.0) / interval.low)

    assert width(exactly(200), 0.0) < 0.01
    assert width(exactly(200), 0.2) > 0.05
    assert width(noisy, 0.0) > 0.05
    assert width(noisy, 0.2) > width(noisy, 0.0)


def test_the_same_seed_gives_the_same_numbers() -> None:
    steps = timed(SIZES, 1e-3, 1e-5, error=0.1)
    assert time_to_target(exactly(200), steps) == time_to_target(exactly(200), steps)
    assert time_to_target(exactly(200), steps, seed=1) != time_to_target(exactly(200), steps)


@pytest.mark.parametrize(("critical", "knee", "end"), [(1e7, 1e7, "largest"), (10.0, 0.1, "least")])
def test_an_optimum_at_an_end_may_lie_beyond(critical: float, knee: float, end: str) -> None:
    found = time_to_target(exactly(critical), timed(SIZES, 1e-3, 1e-3 / knee))
    assert found.best_batch_size.value == pytest.approx(SIZES[-1] if end == "largest" else SIZES[0])
    assert found.best_batch_size.high == math.inf if end == "largest" else found.best_batch_size.low == 0
    assert f"Of the batch sizes tried the {end}" in found.verdict
    assert "may be faster still" in found.verdict


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    found = time_to_target(exactly(100), timed(SIZES, 1e-3, 1e-5))
    # Examples only grow with the batch size, so the front ends where the time is least: √(100·100).
    assert [p.on_front for p in found.points] == [p.batch_size <= 128 for p in found.points]
    assert [p.batch_size for p in found.points] == SIZES
    assert found.points[0].update_seconds.value == pytest.approx(1e-3 + 8e-5)
    assert "A batch size of about" in found.verdict


def test_sizes_without_a_step_time_are_left_out_and_others_are_read_off_the_law() -> None:
    found = time_to_target(exactly(100), timed([4, 16, 48, 256, 1 << 20], 1e-3, 1e-5))
    assert [p.batch_size for p in found.points] == [16, 48, 256]
    assert found.points[1].examples.value == pytest.approx(1e4 * 1.48, rel=1e-3)
    one = time_to_target(exactly(100), timed([64], 1e-3, 1e-5))
    assert one.best_batch_size.value == pytest.approx(64)
    with pytest.raises(ArgumentError, match="batch sizes of the law"):
        time_to_target(exactly(100), timed([1 << 20], 1e-3, 1e-5))


def test_where_there_is_no_law_the_measured_examples_count() -> None:
    astray = fit_tradeoff(SIZES, [1e4 if i % 2 else 9e4 for i in range(9)])
    assert not astray.follows
    found = time_to_target(astray, timed(SIZES, 1e-3, 1e-7, error=0.1))
    assert not found.best_batch_size.resolved
    assert found.within_ten_per_cent is None
    assert found.points[1].seconds.value == pytest.approx(1e4 / 16 * (1e-3 + 16e-7))
    assert found.points[1].seconds.low is None
    assert found.best_seconds.value == pytest.approx(1e4 / 1024 * (1e-3 + 1024e-7))
    assert "do not follow the trade-off law" in found.verdict
    assert "1,024" in found.verdict
    few = time_to_target(fit_tradeoff([8, 64, 512], [1e4, 2e4, math.inf], spent=5e4), timed(SIZES, 1e-3, 1e-7))
    assert [p.batch_size for p in few.points] == [8, 64]
    assert not few.best_seconds.resolved
    assert "Too few" in few.verdict


def test_a_size_that_missed_the_target_is_a_bound() -> None:
    sizes = SIZES[:7]
    table: list[Any] = [1e4 * (1 + b / 100) for b in sizes]
    table[-1] = [math.inf, math.inf]
    found = time_to_target(fit_tradeoff(sizes, table, spent=3e4), timed(sizes, 1e-3, 1e-5))
    assert found.best_batch_size.value == pytest.approx(100, rel=0.1)
    assert found.points[-1].examples.value == pytest.approx(1e4 * 6.12, rel=0.01)

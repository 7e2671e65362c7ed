"""The three limits put together, against the closed form √(knee·B_crit) and brute force."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batchscope.errors import ArgumentError
from batchscope.fit.limits import find_limits, replan, time_to_loss
from batchscope.records import (
    BranchedRuns,
    Interval,
    MemoryLaw,
    MemoryUse,
    NoiseMeasurement,
    NoisePoint,
    Probe,
    Provenance,
    StepTimeLaw,
    StepTimePoint,
    StepTimes,
    WorkloadSummary,
)

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
WORKLOAD = WorkloadSummary("w", 100, 50_000, 1000, "SGD", "loss", "accuracy", 64, 0.1)


def around(value: float, factor: float = 1.2) -> Interval:
    return Interval(value, value / factor, value * factor)


def exactly(value: float) -> Interval:
    return Interval(value, value, value)


def timed(fixed: float, each: float, data: float = 0.0, beside: bool = False) -> StepTimes:
    law = StepTimeLaw(exactly(fixed), exactly(each), None, None, around(fixed / each), 0.01)
    points = []
    for size in (2**i for i in range(12)):
        compute, waits = fixed + each * size, data * size
        step = max(compute, waits) if beside else compute + waits
        speed = exactly(size / step)
        points.append(StepTimePoint(size, exactly(compute), exactly(waits), exactly(step), speed, compute, 6, 60))
    bound = [p.batch_size for p in points if p.data_seconds.value > p.compute_seconds.value]  # type: ignore[operator]
    fastest = max(points, key=lambda p: p.examples_per_second.value or 0)
    return StepTimes(
        workload="w",
        points=tuple(points),
        law=law,
        reading="beside them" if beside else "between updates",
        workers=int(beside),
        loader_bound_from=min(bound, default=None),
        most_examples_per_second=fastest.examples_per_second.value or 0.0,
        fastest_batch_size=fastest.batch_size,
        seconds=1.0,
        provenance=PROVENANCE,
    )


def noisy(scale: Interval, preconditioned: Interval | None = None, needed: int | None = None) -> NoisePoint:
    one = exactly(1.0)
    return NoisePoint(1000, 10, 0.5, 0.9, 1024, one, one, scale, preconditioned, needed)


def measured_memory(limit: int | None = 2**30, state: float = 2.0**20, each: float = 2.0**14) -> MemoryUse:
    largest = None if limit is None else min(50_000, int((0.9 * limit - state) / each))
    return MemoryUse(
        workload="w",
        meter="resident memory of a child process",
        points=(),
        law=MemoryLaw(exactly(state), exactly(each), 0.01),
        parameter_bytes=400,
        optimizer_bytes=400,
        limit_bytes=limit,
        limit_source="unknown" if limit is None else "free memory",
        margin=0.1,
        largest_executed=64,
        largest_predicted=largest,
        holds_all=largest == 50_000,
        seconds=1.0,
        provenance=PROVENANCE,
    )


def branches(critical: Interval) -> BranchedRuns:
    return BranchedRuns("w", 64, 0.1, 1000, 0.5, 0.01, 3, (), critical, "said", 1.0, PROVENANCE)


def probed(**changes: Any) -> Probe:
    noise = (noisy(around(400.0)),)
    one = exactly(1.0)
    gradient = NoiseMeasurement(
        "w", 1024, 1, "per-example gradients", None, 100, one, one, around(400.0), None, None, (), 1.0, PROVENANCE
    )
    step_time, memory = timed(1e-3, 1e-5), measured_memory()
    found = Probe(
        workload=WORKLOAD,
        limits=find_limits(WORKLOAD, step_time, memory, noise, None),
        step_time=step_time,
        memory=memory,
        noise=noise,
        gradient_noise=gradient,
        branched=None,
        learning_rate=None,
        warnings=(),
        replanned=None,
        seconds=10.0,
        provenance=PROVENANCE,
    )
    return dataclasses.replace(found, **changes)


@given(knee=st.floats(1.0, 1000.0), critical=st.floats(4.0, 10_000.0))
def test_the_best_size_is_the_geometric_mean_of_knee_and_critical_batch_size(knee: float, critical: float) -> None:
    assume(2 < math.sqrt(knee * critical) < 20_000)
    limits = find_limits(WORKLOAD, timed(1e-5 * knee, 1e-5), None, [noisy(around(critical))], None)
    assert limits.worth_having.value == pytest.approx(math.sqrt(knee * critical), rel=0.02)
    assert limits.worth_having.low < limits.worth_having.value < limits.worth_having.high  # type: ignore[operator]
    # √ of two independent factors of 1.2: the logarithms add in square, and halve.
    spread = math.exp(math.hypot(math.log(1.2), math.log(1.2)) / 2)
    assert limits.worth_having.high == pytest.approx(limits.worth_having.value * spread, rel=1e-6)  # type: ignore[operator]


@given(knee=st.floats(3.0, 300.0), critical=st.floats(30.0, 3000.0))
def test_the_range_worth_having_ends_where_a_tenth_more_time_is_spent(knee: float, critical: float) -> None:
    limits = find_limits(WORKLOAD, timed(1e-5 * knee, 1e-5), None, [noisy(around(critical))], None)
    least = (math.sqrt(knee) + math.sqrt(critical)) ** 2
    # (k + B)(B + B_crit)/B = 1.1·least, a quadratic in B.
    b = knee + critical - 1.1 * least
    root = math.sqrt(b * b - 4 * knee * critical)
    assert limits.worth_from is not None
    assert limits.worth_to is not None
    assert limits.worth_from == pytest.approx(max(1.0, (-b - root) / 2), rel=0.02, abs=1.1)
    assert limits.worth_to == pytest.approx(min(50_000.0, (-b + root) / 2), rel=0.02, abs=1.1)
    excess = (knee + 64) * (64 + critical) / 64 / least - 1
    assert limits.today_excess == pytest.approx(excess, abs=0.002)


def test_time_to_a_loss_counts_what_an_update_waits_for() -> None:
    sizes = np.array([8.0, 64.0, 4096.0])
    serial = time_to_loss(timed(1e-3, 1e-5, data=5e-5), 400, sizes)
    assert serial == pytest.approx((1e-3 + 6e-5 * sizes) * (1 + 400 / sizes))
    beside = time_to_loss(timed(1e-3, 1e-5, data=5e-5, beside=True), 400, sizes)
    assert beside == pytest.approx(np.maximum(1e-3 + 1e-5 * sizes, 5e-5 * sizes) * (1 + 400 / sizes))


def test_where_the_loader_is_the_bound_it_is_said() -> None:
    limits = find_limits(WORKLOAD, timed(1e-3, 1e-5, data=5e-5), None, [noisy(around(400))], None)
    assert "From batch size 32 on it is reading the data" in limits.knee_sentence


def test_branched_runs_with_both_ends_come_before_the_noise_scale() -> None:
    found = Interval(128.0, 128.0, 256.0)
    limits = find_limits(WORKLOAD, timed(1e-3, 1e-5), None, [noisy(around(4000))], branches(found))
    assert limits.critical_source == "branched runs"
    assert (limits.critical.low, limits.critical.high) == (128.0, 256.0)
    assert limits.critical.value == pytest.approx(math.sqrt(128 * 256))
    assert "4,000 (3,300 to 4,800)" in limits.critical_sentence
    open_ended = Interval(512.0, 512.0, math.inf)
    limits = find_limits(WORKLOAD, timed(1e-3, 1e-5), None, [noisy(around(4000))], branches(open_ended))
    assert (limits.critical.value, limits.critical_source) == (4000, "noise scale")
    assert "nothing up to 510, the largest tried or told" in limits.critical_sentence
    lost_at_once = Interval.unresolved(high=16.0)
    limits = find_limits(WORKLOAD, timed(1e-3, 1e-5), None, [noisy(around(4000))], branches(lost_at_once))
    assert (limits.critical.value, limits.critical_source) == (4000, "noise scale")
    assert "lost by it at 16 already" in limits.critical_sentence


def test_the_latest_resolved_noise_scale_counts_and_the_optimisers_own_scaling_first() -> None:
    unknown = Interval.unresolved(low=100.0, high=math.inf)
    points = [noisy(around(10)), noisy(around(20)), noisy(unknown, needed=9000)]
    assert find_limits(WORKLOAD, timed(1e-3, 1e-5), None, points, None).critical.value == 20
    points = [noisy(around(10), around(70)), noisy(unknown, unknown, needed=9000)]
    limits = find_limits(WORKLOAD, timed(1e-3, 1e-5), None, points, None)
    assert (limits.critical.value, limits.critical_source) == (70, "preconditioned noise scale")


def test_what_is_not_resolved_is_said_and_not_guessed() -> None:
    unknown = noisy(Interval.unresolved(low=100.0, high=math.inf), needed=9000)
    limits = find_limits(WORKLOAD, timed(1e-3, 1e-5), None, [unknown], None)
    assert limits.worth_having.value is None
    assert limits.worth_having.low == pytest.approx(math.sqrt(100 * 100 / 1.2))
    assert (limits.worth_from, limits.worth_to, limits.today_excess) == (None, None, None)
    assert "About 9,000 examples would tell" in limits.critical_sentence
    assert "the critical batch size is not resolved" in limits.conclusion
    assert limits.memory_sentence == "Memory was not measured here."


def test_memory_is_said_in_words() -> None:
    limits = find_limits(WORKLOAD, timed(1e-3, 1e-5), measured_memory(), [noisy(around(400))], None)
    assert limits.memory == 50_000
    assert "16 KiB, beside 1 MiB" in limits.memory_sentence
    assert "the whole training set of 50,000 would fit" in limits.memory_sentence
    small = measured_memory(limit=2**22)
    limits = find_limits(WORKLOAD, timed(1e-3, 1e-5), small, [noisy(around(400))], None)
    assert limits.memory == small.largest_predicted
    assert "hold a micro-batch of about 170" in limits.memory_sentence
    unknown = find_limits(WORKLOAD, timed(1e-3, 1e-5), measured_memory(None), [noisy(around(400))], None)
    assert "could not be told" in unknown.memory_sentence


def test_another_machine_changes_what_belongs_to_the_machine_and_nothing_else() -> None:
    before = probed()
    after = replan(before, memory_bytes=2**22, speed=8.0, fixed_speed=2.0)
    assert after.noise == before.noise
    assert after.gradient_noise == before.gradient_noise
    assert after.limits.knee.value == pytest.approx(4 * before.limits.knee.value)  # type: ignore[operator]
    assert after.step_time.law.seconds(100) == pytest.approx(1e-3 / 2 + 100 * 1e-5 / 8)
    for point, old in zip(after.step_time.points, before.step_time.points, strict=True):
        law = after.step_time.law.seconds(point.batch_size)
        assert point.compute_seconds.value == pytest.approx(law)
        assert point.examples_per_second.value == pytest.approx(point.batch_size / point.step_seconds.value)  # type: ignore[operator]
        assert point.data_seconds == old.data_seconds
    assert after.memory is not None
    assert after.memory.limit_source == "given"
    assert after.limits.memory == pytest.approx((0.9 * 2**22 - 2**20) / 2**14, abs=1)
    assert after.replanned is not None
    assert (after.replanned.memory_bytes, after.replanned.speed, after.replanned.fixed_speed) == (2**22, 8.0, 2.0)


def test_planning_twice_is_planning_once_with_both_factors() -> None:
    twice = replan(replan(probed(), speed=2.0), speed=3.0, fixed_speed=1.0)
    once = replan(probed(), speed=6.0, fixed_speed=2.0)
    assert twice.replanned == once.replanned
    assert twice.limits.worth_having.value == pytest.approx(once.limits.worth_having.value)
    assert replan(probed()).limits == probed().limits


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan, True, "2"])
def test_factors_that_make_no_sense(factor: Any) -> None:
    with pytest.raises(ArgumentError, match="must be a positive factor"):
        replan(probed(), speed=factor)
    with pytest.raises(ArgumentError, match="must be a positive factor"):
        replan(probed(), fixed_speed=factor)


def test_memory_that_makes_no_sense_or_was_never_measured() -> None:
    with pytest.raises(ArgumentError, match="whole number of bytes"):
        replan(probed(), memory_bytes=0)
    with pytest.raises(ArgumentError, match="must have measured memory"):
        replan(probed(memory=None), memory_bytes=2**30)

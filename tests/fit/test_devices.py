"""Plans for several devices: the model by hand, limits that are known, intervals, and words that make no sense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.report.sample_probes import around, bare, cnn, mlp

from batchscope.errors import ArgumentError
from batchscope.fit import fit_tradeoff, plan_devices
from batchscope.fit.communication import all_reduce_seconds
from batchscope.fit.memory import predicted_bytes
from batchscope.records import AllReduceLaw, AllReducePoint, DevicePlan, DeviceRow, Interval, Probe, decode, encode

NETWORK = (12e9, 20e-6)
FIXED, EACH, CRITICAL = 2e-3, 1e-5, 1000.0


def exact(probe: Probe | None = None, *, critical: float = CRITICAL, examples: int = 1 << 22) -> Probe:
    """A probe without uncertainty and without reading: τ = 2 ms + 10 µs·B, B_crit = 1,000, no limit of memory."""
    probe = mlp() if probe is None else probe

    def known(value: float) -> Interval:
        return Interval(value, None, None)

    step = probe.step_time
    law = replace(step.law, fixed_seconds=known(FIXED), seconds_per_example=known(EACH), bend=None)
    points = tuple(replace(point, data_seconds=known(0.0)) for point in step.points)
    return replace(
        probe,
        workload=replace(probe.workload, training_examples=examples),
        step_time=replace(step, law=replace(law, seconds_per_example_below=None), points=points),
        limits=replace(probe.limits, critical=known(critical), critical_source="noise scale"),
        memory=None,
    )


def row(plan: DevicePlan, devices: int) -> DeviceRow:
    return next(each for each in plan.rows if each.devices == devices)


def by_hand(devices: int, batch: float, *, parameters: int, target: float, today: int) -> float:
    """Seconds to the target: updates × (an update's share and a ring)."""
    least = target / (1 + today / CRITICAL)
    updates = least * (1 + batch / CRITICAL) / batch
    ring = 2 * (devices - 1) * (NETWORK[1] + 4 * parameters / (devices * NETWORK[0]))
    return updates * (FIXED + EACH * batch / devices + ring)


@pytest.mark.parametrize("devices", [1, 2, 64, 1024])
def test_times_are_those_of_the_formula_and_the_batch_is_the_best_of_the_grid(devices: int) -> None:
    probe = exact()
    plan = plan_devices(probe, (1, devices), network=NETWORK, target_examples=1e6)
    found, work = row(plan, devices), probe.workload

    def seconds(batch: float) -> float:
        return by_hand(devices, batch, parameters=work.parameters, target=1e6, today=work.batch_size)

    assert found.batch_size is not None
    assert found.seconds.value == pytest.approx(seconds(found.batch_size), rel=1e-9)
    grid = [devices * share for k in range(12) for share in (2**k, 3 * 2**k) if devices * share <= 1 << 22]
    assert found.seconds.value == pytest.approx(min(map(seconds, grid)), rel=1e-9)
    assert found.updates.value == pytest.approx((found.examples.value or 0) / found.batch_size)
    assert found.device_hours.value == pytest.approx(devices * (found.seconds.value or 0) / 3600)
    assert found.efficiency.value == pytest.approx((found.speed_up.value or 0) / devices)
    assert found.examples_ratio.value == pytest.approx(1 + found.batch_size / CRITICAL)


def test_examples_to_the_target_are_those_of_todays_batch_size() -> None:
    probe = exact()
    plan = plan_devices(probe, (1,), network=NETWORK, target_examples=1e6)
    today, own = probe.workload.batch_size, plan.rows[0]
    least = (own.examples.value or 0) / (own.examples_ratio.value or 1)
    assert least * (1 + today / CRITICAL) == pytest.approx(1e6)


def test_without_examples_only_ratios_are_known_and_they_are_the_same() -> None:
    probe = exact()
    relative = plan_devices(probe, (1, 16), network=NETWORK, price_per_hour=2.0)
    absolute = plan_devices(probe, (1, 16), network=NETWORK, target_examples=1e6, price_per_hour=2.0)
    assert relative.relative
    assert not absolute.relative
    for one, other in zip(relative.rows, absolute.rows, strict=True):
        assert one.batch_size == other.batch_size
        assert one.speed_up.value == pytest.approx(other.speed_up.value)
        assert not one.seconds.resolved
        assert one.cost is not None
        assert not one.cost.resolved
        assert other.seconds.resolved


def test_a_network_without_cost_and_a_vast_critical_batch_scale_perfectly() -> None:
    plan = plan_devices(exact(critical=1e12), (1, 8, 64), network=(1e18, 0.0))
    assert [row(plan, n).efficiency.value for n in (1, 8, 64)] == pytest.approx([1.0, 1.0, 1.0], rel=5e-3)
    assert plan.worth_devices == Interval(64.0, 64.0, math.inf)
    assert "the most that were looked at" in plan.conclusion


@pytest.mark.parametrize("devices", [1, 16, 4096])
def test_a_free_network_leaves_the_closed_form(devices: int) -> None:
    """The least of S_min·(1 + B_crit/B)·(c₀ + c₁·B/N) over B is S_min·c₀·(1 + √(c₁·B_crit/(c₀·N)))²."""
    plan = plan_devices(exact(), (devices,), network=(1e18, 0.0), target_examples=1e6)
    least = 1e6 / (1 + 64 / CRITICAL) / CRITICAL
    closed = least * FIXED * (1 + math.sqrt(EACH * CRITICAL / (FIXED * devices))) ** 2
    assert plan.rows[0].seconds.value == pytest.approx(closed, rel=0.02)  # batch sizes lie a third or a half apart
    batch = math.sqrt(FIXED / EACH * devices * CRITICAL)
    assert 1 / 1.5 <= (plan.rows[0].batch_size or 0) / batch <= 1.5


def test_where_more_devices_stop_paying() -> None:
    plan = plan_devices(exact(), (1, 256), network=NETWORK)
    worth = plan.worth_devices.value
    assert worth is not None
    times = {each.devices: each.relative_time.value or 0 for each in plan.rows}
    uses = {each.devices: each.efficiency.value or 0 for each in plan.rows}
    assert [each.devices for each in plan.rows] == [2**k for k in range(9)]
    assert [each.devices for each in plan.rows if each.asked] == [1, 256]
    for fewer, more in zip(list(times), list(times)[1:], strict=False):
        pays = times[fewer] / times[more] >= 1.1 and uses[more] >= 0.5
        if more <= worth:
            assert pays, more
    after = 2 * int(worth)
    assert times[int(worth)] / times[after] < 1.1 or uses[after] < 0.5
    lenient = plan_devices(exact(), (1, 256), network=NETWORK, least_gain=0.0, least_efficiency=0.0)
    assert (lenient.worth_devices.value or 0) > worth
    assert times[int(lenient.worth_devices.value or 0)] == min(times.values())


def test_overlap_hides_what_the_backward_pass_covers() -> None:
    slow = (1e8, 1e-4)
    after, half, whole = (plan_devices(exact(), (8,), network=slow, overlap=share).rows[0] for share in (0.0, 0.5, 1.0))
    for found, share in ((after, 0.0), (half, 0.5), (whole, 1.0)):
        computing = FIXED + EACH * (found.micro_batch_size or 0)
        ring = 14 * (1e-4 + 4 * mlp().workload.parameters / (8 * 1e8))
        hidden = max(0.0, ring - share * 2 / 3 * computing)
        assert found.communication_seconds.value == pytest.approx(hidden)
    assert (after.step_seconds.value or 0) > (half.step_seconds.value or 0)


@pytest.mark.parametrize("ranks", [1, 2, 7, 1024])
def test_rings_and_trees(ranks: int) -> None:
    alpha, beta, size = 2e-5, 1e10, 4e5
    ring, tree, fastest = (
        float(all_reduce_seconds(alpha, beta, message_bytes=size, ranks=ranks, algorithm=by))
        for by in ("ring", "tree", "fastest")
    )
    given = AllReduceLaw.given(gigabytes_per_second=10, microseconds=20)
    assert ring == pytest.approx(given.seconds(size, ranks=ranks))
    assert tree == pytest.approx(2 * math.ceil(math.log2(ranks)) * (alpha + size / beta))
    assert fastest == min(ring, tree)


def test_memory_is_divided_by_stages_and_bounds_the_micro_batch() -> None:
    probe = cnn()
    memory = probe.memory
    assert memory is not None
    assert memory.law is not None
    plan = plan_devices(probe, (1, 64), network=NETWORK)
    one, many = row(plan, 1), row(plan, 64)
    assert one.memory is not None
    assert len({one.memory.at(stage) for stage in range(4)}) == 1
    whole = predicted_bytes(memory.law, many.micro_batch_size or 0)
    parts = (0, memory.optimizer_bytes, plan.gradient_bytes, memory.parameter_bytes)
    assert many.memory is not None
    for stage in range(4):
        assert many.memory.at(stage) == pytest.approx(whole - (1 - 1 / 64) * sum(parts[: stage + 1]), abs=1)

    # So little room that only with all of the state divided a single example fits.
    state = memory.law.state_bytes.value or 0.0
    room = (state - (parts[1] + parts[2])) / (1 - memory.margin)
    tight = replace(probe, memory=replace(memory, limit_bytes=round(room)))
    none = plan_devices(tight, (1, 64), network=NETWORK, zero_stage=3)
    assert row(none, 1).batch_size is None
    assert "not even one example fits" in none.conclusion
    assert row(none, 64).batch_size is not None
    with pytest.raises(ArgumentError, match="zero_stage=3"):
        plan_devices(tight, (1, 64), network=NETWORK)


def test_dividing_the_weights_sends_half_as_much_again() -> None:
    whole, divided = (plan_devices(exact(), (8,), network=NETWORK, zero_stage=stage).rows[0] for stage in (2, 3))
    assert divided.communication_seconds.value == pytest.approx(1.5 * (whole.communication_seconds.value or 0))


def test_a_batch_beyond_memory_goes_through_in_micro_batches() -> None:
    probe = cnn()
    memory = probe.memory
    assert memory is not None
    assert memory.law is not None
    room = predicted_bytes(memory.law, 20) / (1 - memory.margin)
    small = replace(probe, memory=replace(memory, limit_bytes=round(room)))
    alone = plan_devices(small, (1,), network=NETWORK).rows[0]
    assert (alone.micro_batch_size, alone.accumulation_steps) == (16, 1)  # alone, more of them gain nothing
    slow = plan_devices(small, (8,), network=(1e8, 1e-3)).rows[0]
    assert slow.micro_batch_size == 16
    assert (slow.accumulation_steps or 0) > 1
    assert slow.batch_size == 8 * 16 * (slow.accumulation_steps or 0)


def test_more_devices_than_examples_have_no_setting() -> None:
    plan = plan_devices(exact(examples=100), (1, 128), network=NETWORK)
    assert row(plan, 128).reason == "there are 100 training examples for 128 devices"


def test_a_law_gives_times_and_its_own_critical_batch_size() -> None:
    sizes = [16, 64, 256, 1024, 4096]
    law = fit_tradeoff(sizes, [1e5 * (1 + b / CRITICAL) for b in sizes])
    probe = replace(exact(), limits=bare().limits)
    plan = plan_devices(probe, (1, 8), network=NETWORK, law=law)
    same = plan_devices(exact(), (1, 8), network=NETWORK, target_examples=1e5 * (1 + 64 / CRITICAL))
    assert plan.updates_from == "trade-off law"
    for one, other in zip(plan.rows, same.rows, strict=True):
        assert one.seconds.value == pytest.approx(other.seconds.value, rel=1e-4)
        assert one.examples_ratio.value == pytest.approx(other.examples_ratio.value, rel=1e-4)


def test_intervals_carry_what_the_laws_do_not_know() -> None:
    """Where one quantity alone is uncertain, the interval of what follows is known in closed form."""
    certain = exact(critical=1e12)
    known = certain.step_time.law
    unsure = replace(
        certain,
        step_time=replace(
            certain.step_time,
            law=replace(known, fixed_seconds=Interval(0.0, None, None), seconds_per_example=around(EACH, 0.1)),
        ),
    )
    found = plan_devices(unsure, (1,), network=NETWORK, target_examples=1e6).rows[0].seconds
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert math.log(found.high / found.value) == pytest.approx(0.1, rel=0.15)
    assert math.log(found.value / found.low) == pytest.approx(0.1, rel=0.15)
    still = plan_devices(exact(), (1, 8), network=NETWORK, target_examples=1e6).rows
    assert all((each.seconds.low, each.seconds.high) == (each.seconds.value,) * 2 for each in still)


def fitted_line(sizes: Sequence[int], fixed: float, each: float) -> tuple[Any, Interval, Interval]:
    """Coefficients of fixed + each·n from relative residuals of 1%, by weighted least squares in closed form."""
    x = np.array([[1.0, n] for n in sizes]) / np.array([fixed + each * n for n in sizes])[:, None]
    covariance = 0.01**2 * np.linalg.inv(x.T @ x)
    half = 1.96 * np.sqrt(np.diag(covariance))
    intervals = [Interval(v, v - h, v + h) for v, h in zip((fixed, each), half, strict=True)]
    return covariance, intervals[0], intervals[1]


def half_width(interval: Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return (interval.high - interval.low) / 2


def test_the_coefficients_of_a_line_are_drawn_with_their_covariance() -> None:
    sizes = [2**k for k in range(11)]
    covariance, fixed, each = fitted_line(sizes, FIXED, EACH)
    probe = exact(critical=100.0)
    points = tuple(
        replace(point, predicted_seconds=FIXED + EACH * point.batch_size) for point in probe.step_time.points
    )
    assert [point.batch_size for point in points] == sizes
    law = replace(probe.step_time.law, fixed_seconds=fixed, seconds_per_example=each)
    unsure = replace(probe, step_time=replace(probe.step_time, law=law, points=points))
    found = plan_devices(unsure, (1,), network=NETWORK).rows[0]
    row_of = np.array([1.0, found.batch_size or 0])
    expected = 1.96 * math.sqrt(row_of @ covariance @ row_of)
    assert half_width(found.step_seconds) == pytest.approx(expected, rel=0.12)
    # Drawn independently, they would leave the time a fifth less certain.
    assert 1.96 * math.sqrt(row_of**2 @ np.diag(covariance)) > 1.2 * expected


def test_latency_and_bandwidth_are_drawn_with_their_covariance() -> None:
    ranks, message = 4, 4 * exact().workload.parameters
    sizes = [message // 16, message // 4, message, 4 * message]
    covariance, fixed, slope = fitted_line(sizes, 6 * 20e-6, 2e-9)
    steps = 2 * (ranks - 1)
    latency = Interval(*(end / steps for end in (fixed.value, fixed.low, fixed.high)))  # type: ignore[arg-type, operator]
    bandwidth = Interval(*(steps / (ranks * end) for end in (slope.value, slope.high, slope.low)))  # type: ignore[arg-type, operator]
    points = tuple(AllReducePoint(size, Interval(1.0, None, None)) for size in sizes)
    network = AllReduceLaw(latency, bandwidth, ranks=ranks, points=points)
    found = plan_devices(exact(), (ranks,), network=network).rows[0]
    row_of = np.array([1.0, message])
    expected = 1.96 * math.sqrt(row_of @ covariance @ row_of)
    assert half_width(found.communication_seconds) == pytest.approx(expected, rel=0.12)
    assert 1.96 * math.sqrt(row_of**2 @ np.diag(covariance)) > 1.2 * expected


def test_the_seed_decides_the_draws() -> None:
    first, again, other = (plan_devices(mlp(), (1, 4), network=NETWORK, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert decode(DevicePlan, encode(first), "here") == first


def test_cost_and_energy_follow_the_device_hours() -> None:
    plan = plan_devices(exact(), (1, 8), network=NETWORK, target_examples=1e6, price_per_hour=2.5, power_watts=300)
    for found in plan.rows:
        hours = found.device_hours.value or 0
        assert found.cost is not None
        assert found.joules is not None
        assert found.cost.value == pytest.approx(2.5 * hours)
        assert found.joules.value == pytest.approx(300 * 3600 * hours)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"devices": ()}, "whole numbers"),
        ({"devices": (0, 1)}, "whole numbers"),
        ({"devices": (1, 2**21)}, "1,048,576"),
        ({"network": (0.0, 1e-5)}, "bandwidth"),
        ({"network": 12e9}, "law of an all-reduce"),
        ({"network": (1e9, -1e-6)}, "latency"),
        ({"overlap": 1.5}, "overlap"),
        ({"zero_stage": 4}, "zero_stage"),
        ({"algorithm": "star"}, "ring, tree or fastest"),
        ({"price_per_hour": 0.0}, "price_per_hour"),
        ({"power_watts": math.nan}, "power_watts"),
        ({"target_examples": -1.0}, "target_examples"),
        ({"least_gain": -0.1}, "least_gain"),
        ({"least_efficiency": 2.0}, "least_efficiency"),
        ({"law": fit_tradeoff([8, 16], [100.0, 120.0])}, "resolved"),
        (
            {"law": fit_tradeoff([8, 32, 128], [100.0, 130.0, 240.0]), "target_examples": 1e6},
            "how many examples the target takes",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"devices": (1, 8), "network": NETWORK} | changes
    with pytest.raises(ArgumentError, match=said):
        plan_devices(exact(), given.pop("devices"), **given)


def test_what_is_not_known_is_refused_with_its_mend() -> None:
    with pytest.raises(ArgumentError, match="law of step times"):
        plan_devices(bare(), (1, 2), network=NETWORK)
    unknown = replace(exact(), limits=bare().limits)
    with pytest.raises(ArgumentError, match="Probe for longer"):
        plan_devices(unknown, (1, 2), network=NETWORK)
    lost = AllReduceLaw(Interval(1e-5, None, None), Interval.unresolved())
    with pytest.raises(ArgumentError, match="latency and a bandwidth"):
        plan_devices(exact(), (1, 2), network=lost)


def test_published_scaling_lies_between_no_overlap_and_full_overlap() -> None:
    """Goyal et al. 2017: ResNet-50, 32 images on each of 256 GPUs, about 90% of the speed of 8 GPUs, 50 Gbit/s.

    Known of it are 25 million parameters and 120 ms for the backward pass, so that 180 ms are taken for an update.
    """
    computing, gradients, latency, links = 0.18, 1e8, 2e-5, 50e9 / 8
    summing = float(all_reduce_seconds(latency, links, message_bytes=gradients, ranks=256))
    after = computing / (computing + summing)
    beside = computing / (computing + max(0.0, summing - 2 / 3 * computing))
    assert np.round(after, 2) == 0.81
    assert after < 0.9 < beside


def test_where_only_the_least_critical_batch_size_is_known_it_is_taken_and_said() -> None:
    unresolved = replace(exact().limits, critical=Interval.unresolved(low=CRITICAL), critical_source=None)
    found = plan_devices(replace(exact(), limits=unresolved), (1, 8), network=NETWORK)
    same = plan_devices(exact(), (1, 8), network=NETWORK)
    assert [each.speed_up for each in found.rows] == [each.speed_up for each in same.rows]
    assert "1,000 or more" in found.warnings[0]
    assert not found.critical_batch_size.resolved

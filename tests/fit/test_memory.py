"""The law of memory: recovered from exact and from noisy peaks, flat floors told apart, limits met exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscope.fit.memory import fit_memory, largest_that_fits, predicted_bytes
from batchscope.records import Interval
from batchscope.records.memory import MemoryLaw

GRID = [2**i for i in range(11)]
states = st.floats(0, 1e10)
slopes = st.floats(1e3, 1e9)


def value(interval: Interval) -> float:
    assert interval.value is not None
    return interval.value


@given(state=states, slope=slopes, count=st.integers(2, 11), order=st.randoms())
def test_an_exact_line_is_found(state: float, slope: float, count: int, order: object) -> None:
    sizes = GRID[:count]
    order.shuffle(sizes)  # type: ignore[attr-defined]
    law = fit_memory(sizes, [state + slope * m for m in sizes])
    # A part far smaller than the rest is known to the rounding of the whole.
    whole = state + slope * max(sizes)
    assert value(law.state_bytes) == pytest.approx(state, rel=1e-6, abs=1e-9 * whole)
    assert predicted_bytes(law, 3 * max(sizes)) == pytest.approx(state + slope * 3 * max(sizes), rel=1e-6)
    assert law.relative_error < 1e-8
    assert law.floor_bytes == 0


@given(state=states, slope=slopes, unit=st.sampled_from([1.0, 1024.0, 2.0**20]))
def test_the_law_follows_the_unit(state: float, slope: float, unit: float) -> None:
    noise = np.exp(0.05 * np.random.default_rng(3).standard_normal(len(GRID)))
    peaks = [(state + slope * m) * e for m, e in zip(GRID, noise, strict=True)]
    law, other = fit_memory(GRID, peaks), fit_memory(GRID, [unit * p for p in peaks])
    assert value(other.state_bytes) == pytest.approx(unit * value(law.state_bytes), rel=1e-9)
    assert predicted_bytes(other, 777) == pytest.approx(unit * predicted_bytes(law, 777), rel=1e-9)


@given(st.lists(st.tuples(st.sampled_from(GRID), st.floats(1, 1e12)), min_size=2, max_size=12))
def test_neither_part_is_ever_negative(points: list[tuple[int, float]]) -> None:
    sizes, peaks = [m for m, _ in points], [p for _, p in points]
    if len(set(sizes)) < 2:
        with pytest.raises(ValueError, match="two different sizes"):
            fit_memory(sizes, peaks)
        return
    law = fit_memory(sizes, peaks)
    assert value(law.state_bytes) >= 0
    assert (law.bytes_per_example.value or 0) >= 0
    for part in (law.state_bytes, law.bytes_per_example):
        if part.resolved and part.high is not None:
            assert (part.low or 0) <= value(part) <= part.high
    predicted = [predicted_bytes(law, m) for m in GRID]
    assert predicted == sorted(predicted)


@given(
    state=states,
    slope=slopes,
    floor=st.sampled_from([0.0, 1e6, 1e9]),
    room=st.floats(1e-3, 1e4),
    margin=st.floats(0, 0.5),
)
def test_the_largest_that_fits_fits_and_the_next_does_not(
    state: float, slope: float, floor: float, room: float, margin: float
) -> None:
    law = MemoryLaw(Interval(state, None, None), Interval(slope, None, None), 0.0, floor)
    limit = room * (state + slope)
    size = largest_that_fits(law, limit, margin=margin)
    assert size is not None
    allowed = (1 - margin) * limit
    if size:
        assert predicted_bytes(law, size) <= allowed * (1 + 1e-9)
    assert predicted_bytes(law, size + 1) >= allowed * (1 - 1e-9)


def test_memory_that_does_not_rise_has_no_largest_size() -> None:
    law = fit_memory([1, 2, 4, 8], [100.0, 100.0, 100.0, 100.0])
    assert not law.bytes_per_example.resolved
    assert value(law.state_bytes) == pytest.approx(100)
    assert largest_that_fits(law, 101.0) is None
    assert largest_that_fits(law, 99.0) == 0


def test_falling_peaks_are_all_state() -> None:
    law = fit_memory([1, 2, 4], [120.0, 110.0, 100.0])
    assert not law.bytes_per_example.resolved
    assert 100 <= value(law.state_bytes) <= 120


def test_two_sizes_give_a_line_without_ends() -> None:
    law = fit_memory([8, 16], [180.0, 260.0])
    assert (value(law.state_bytes), value(law.bytes_per_example)) == pytest.approx((100, 10))
    assert law.state_bytes.low is None
    assert law.bytes_per_example.high is None


@pytest.mark.parametrize("floor", [1e7, 3e7, 4e8])
def test_a_floor_does_not_bend_the_line_above_it(floor: float) -> None:
    state, slope = 1e6, 1e6
    peaks = [max(floor, state + slope * m) for m in GRID]
    law = fit_memory(GRID, peaks)
    assert law.floor_bytes == pytest.approx(floor, rel=0.05)
    assert predicted_bytes(law, 8192) == pytest.approx(state + slope * 8192, rel=0.02)
    assert predicted_bytes(law, 1) == pytest.approx(peaks[0], rel=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_scatter_alone_makes_no_floor_and_predicts_upwards(seed: int) -> None:
    # 5% of scatter, as on a heap; eight times beyond the grid the law stays within 15%.
    rng = np.random.default_rng(seed)
    peaks = [(5e6 + 2e5 * m) * np.exp(0.05 * rng.standard_normal()) for m in GRID]
    law = fit_memory(GRID, peaks)
    assert predicted_bytes(law, 8192) == pytest.approx(5e6 + 2e5 * 8192, rel=0.15)
    assert law.relative_error < 0.12


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(500):
        peaks = [(5e7 + 2e5 * m) * (1 + 0.01 * rng.standard_normal()) for m in GRID]
        law = fit_memory(GRID, peaks)
        for i, (part, truth) in enumerate(((law.state_bytes, 5e7), (law.bytes_per_example, 2e5))):
            held[i] += part.low is not None and part.high is not None and part.low <= truth <= part.high
    assert np.all((held / 500 > 0.92) & (held / 500 < 0.98))


@pytest.mark.parametrize(
    ("sizes", "peaks"), [([1], [5.0]), ([2, 2], [5.0, 6.0]), ([1, 2], [5.0]), ([1, 2], [0.0, 5.0])]
)
def test_too_little_is_refused(sizes: list[int], peaks: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two different sizes"):
        fit_memory(sizes, peaks)

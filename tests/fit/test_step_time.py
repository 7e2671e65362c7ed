"""The law of step times against laws that are known, with the noise of a busy machine on top."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from batchscope.fit.step_time import fit_step_time

SIZES = np.array([2**i for i in range(12)])
Floats = NDArray[np.float64]


def busy(true: Floats, seed: int, rounds: int = 15) -> Floats:
    """Each time off by 5%, whole rounds slower by some exponential share, and one block in twenty twice as slow."""
    generator = np.random.default_rng(seed)
    noise = np.exp(generator.normal(0, 0.05, (rounds, len(true))))
    slow = 1 + generator.exponential(0.1, (rounds, 1))
    hiccup = 1 + (generator.random((rounds, len(true))) < 0.05)
    return true * noise * slow / 1.07 * hiccup  # 1.07: the median of the slowness


def kinked(fixed: float, below: float, above: float, bend: int) -> Floats:
    return np.asarray(fixed + below * np.minimum(SIZES, bend) + above * np.maximum(0, SIZES - bend))


@given(
    fixed=st.floats(1e-6, 1e-1),
    knee=st.floats(2.0, 1000.0),
)
def test_exact_times_give_the_law_back(fixed: float, knee: float) -> None:
    law = fit_step_time(SIZES.tolist(), np.tile(fixed * (1 + SIZES / knee), (6, 1)))
    assert law.bend is None
    assert law.fixed_seconds.value == pytest.approx(fixed, rel=1e-6)
    assert law.knee.value == pytest.approx(knee, rel=1e-6)
    assert law.seconds(100) == pytest.approx(fixed * (1 + 100 / knee), rel=1e-6)
    assert law.relative_error < 1e-9


def test_the_unit_of_time_does_not_matter() -> None:
    seconds = busy(1e-4 + 2e-6 * SIZES, seed=0)
    one, other = fit_step_time(SIZES.tolist(), seconds), fit_step_time(SIZES.tolist(), 1000 * seconds)
    assert other.knee.value == pytest.approx(one.knee.value, rel=1e-6)
    assert other.knee.high == pytest.approx(one.knee.high, rel=1e-6)
    assert other.relative_error == pytest.approx(one.relative_error, rel=1e-6)


def test_on_a_busy_machine_the_knee_comes_back_within_a_tenth_and_its_interval_holds_it() -> None:
    laws = [fit_step_time(SIZES.tolist(), busy(1e-4 + 2e-6 * SIZES, seed), seed=seed) for seed in range(60)]
    knees = np.array([law.knee.value for law in laws])
    assert np.mean(np.abs(knees / 50 - 1) < 0.1) >= 0.95
    held = [law.knee.low <= 50 <= law.knee.high for law in laws]  # type: ignore[operator]
    assert np.mean(held) >= 0.93
    assert all(law.bend is None for law in laws)  # noise alone is no second regime


@pytest.mark.parametrize(
    ("below", "above", "kind"), [(2e-6, 6e-6, "dearer"), (8e-6, 2e-6, "cheaper")], ids=["dearer", "cheaper"]
)
def test_a_second_regime_is_found_where_there_is_one(below: float, above: float, kind: str) -> None:
    true = kinked(1e-4, below, above, 256)
    laws = [fit_step_time(SIZES.tolist(), busy(true, seed), seed=seed) for seed in range(20)]
    assert all(law.bend is not None and 128 <= law.bend <= 512 for law in laws)
    assert {law.bends_at for law in laws} == {kind}
    slopes = np.array([law.seconds_per_example.value for law in laws])
    assert np.median(slopes) == pytest.approx(above, rel=0.1)
    belows = np.array([law.seconds_per_example_below for law in laws])
    assert np.median(belows) == pytest.approx(below, rel=0.1)
    # The knee, found by brute force on the true law.
    dense = np.linspace(1, 1e6, 2_000_001)
    rate = dense / (1e-4 + below * np.minimum(dense, 256) + above * np.maximum(0, dense - 256))
    knee = dense[np.argmax(rate >= max(rate.max(), 1 / above) / 2)]
    assert np.median([law.knee.value for law in laws]) == pytest.approx(knee, rel=0.1)
    assert all(law.seconds(1000) == pytest.approx(true_at(1000, below, above), rel=0.25) for law in laws)


def true_at(size: float, below: float, above: float) -> float:
    return 1e-4 + below * min(size, 256) + above * max(0.0, size - 256)


def test_a_machine_that_slows_down_halfway_makes_no_trend() -> None:
    true = 1e-4 + 2e-6 * SIZES
    rounds = np.linspace(1, 2, 21)[:, None] * true
    law = fit_step_time(SIZES.tolist(), rounds)
    assert law.knee.value == pytest.approx(50, rel=1e-6)


@pytest.mark.parametrize(
    "true", [np.full(12, 1e-3), 1e-3 * SIZES.astype(float)], ids=["no cost per example", "no fixed cost"]
)
def test_a_knee_that_lies_outside_what_was_measured_is_not_resolved(true: Floats) -> None:
    law = fit_step_time(SIZES.tolist(), busy(true, 3))
    assert not law.knee.resolved
    assert law.knee.value is None


def test_intervals_widen_where_the_law_does_not_fit() -> None:
    wavy = (1e-4 + 2e-6 * SIZES) * (1 + 0.2 * np.cos(3.0 * np.arange(12)))
    rough = fit_step_time(SIZES.tolist(), np.tile(wavy, (10, 1)))
    smooth = fit_step_time(SIZES.tolist(), np.tile(1e-4 + 2e-6 * SIZES, (10, 1)))
    assert rough.relative_error > 0.1
    assert rough.knee.high / rough.knee.low > 1.2 > smooth.knee.high / smooth.knee.low  # type: ignore[operator]


@pytest.mark.parametrize("seconds", [np.ones((6, 1)), np.zeros((6, 2)), np.ones(6)])
def test_times_that_no_law_can_be_fitted_to(seconds: Floats) -> None:
    with pytest.raises(ValueError, match="at least two sizes"):
        fit_step_time([1, 2][: seconds.shape[-1]], seconds)

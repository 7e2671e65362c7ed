"""The range test's estimates find a known curve's steepest fall and turn under heavy noise, and refuse a flat one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.fit.range_test import LOST_SHARE, Array, RangeEstimate, estimate_range

REPEATS, UPDATES = 5, 128
RATES = np.geomspace(1e-6, 1e2, UPDATES)
FALL = 1.5


def curve(rates: Array) -> Array:
    """Falls by 1.5 around 0.01, and turns up as the square of the rate."""
    return np.asarray(2 - FALL / (1 + (0.01 / rates) ** 1.5) + rates**2, dtype=np.float64)


def truth() -> tuple[float, float]:
    """Where it falls fastest, and where it has lost a tenth of its fall again, on a fine grid."""
    rates = np.geomspace(RATES[0], RATES[-1], 100_001)
    losses = curve(rates)
    bottom = int(losses.argmin())
    steepest = rates[np.gradient(losses, np.log(rates))[:bottom].argmin()]
    low = losses <= losses.min() + LOST_SHARE * (losses[0] - losses.min())
    return float(steepest), float(rates[np.nonzero(low)[0][-1]])


def noisy(seed: int, noise: float) -> Array:
    """The curve with noise, from which on 30 every repeat has diverged."""
    losses = curve(RATES) + np.random.default_rng(seed).normal(0, noise, (REPEATS, UPDATES))
    return np.where(RATES > 30, np.inf, losses)


@pytest.fixture(scope="module")
def heavy() -> list[RangeEstimate]:
    """A hundred curves whose noise at each update is two fifths of the whole fall."""
    return [estimate_range(RATES, noisy(seed, 0.4 * FALL)) for seed in range(100)]


def test_the_steepest_rate_is_within_a_factor_three_of_the_truth_under_heavy_noise(heavy: list[RangeEstimate]) -> None:
    steepest, _ = truth()
    assert steepest == pytest.approx(0.01, rel=0.01)
    near = [e.steepest.value is not None and 1 / 3 < e.steepest.value / steepest < 3 for e in heavy]
    assert sum(near) >= 95


def test_the_turn_is_within_a_factor_three_of_the_truth_under_heavy_noise(heavy: list[RangeEstimate]) -> None:
    _, turn = truth()
    near = [e.largest_stable.value is not None and 1 / 3 < e.largest_stable.value / turn < 3 for e in heavy]
    assert sum(near) >= 90
    assert sum(e.largest_stable.value > 3 * turn for e in heavy if e.largest_stable.value) == 0  # never too bold


def test_the_suggestion_is_within_a_factor_three_of_the_noiseless_one(heavy: list[RangeEstimate]) -> None:
    right = 0.5 * math.sqrt(math.prod(truth()))
    near = [e.suggested is not None and 1 / 3 < e.suggested / right < 3 for e in heavy]
    assert sum(near) >= 95


def test_the_interval_of_the_steepest_rate_holds_the_truth(heavy: list[RangeEstimate]) -> None:
    steepest, _ = truth()
    held = [e.steepest.low is not None and e.steepest.low <= steepest <= (e.steepest.high or 0) for e in heavy]
    assert sum(held) >= 88
    widths = [math.log10((e.steepest.high or 0) / (e.steepest.low or 1)) for e in heavy]
    assert float(np.median(widths)) < 1  # a decade, of eight


def test_a_little_noise_changes_little() -> None:
    steepest, turn = truth()
    found = estimate_range(RATES, noisy(0, 0.01))
    assert found.steepest.value == pytest.approx(steepest, rel=0.2)
    assert found.largest_stable.value == pytest.approx(turn, rel=0.2)
    assert found.fall == pytest.approx(FALL, rel=0.05)
    assert "is a rate to start from" in found.verdict


def test_flat_curves_are_refused() -> None:
    refused = 0
    for seed in range(100):
        found = estimate_range(RATES, 2 + np.random.default_rng(seed).normal(0, 0.6, (REPEATS, UPDATES)))
        refused += found.suggested is None and not found.steepest.resolved and "noise" in found.verdict
    assert refused >= 95


def test_curves_that_only_rise_are_refused() -> None:
    rising = 2 + RATES / (1 + RATES) + np.random.default_rng(0).normal(0, 0.1, (REPEATS, UPDATES))
    assert estimate_range(RATES, rising).suggested is None


def test_where_the_loss_never_turns_up_the_largest_stable_rate_is_at_least_the_last() -> None:
    losses = 2 - FALL / (1 + (0.01 / RATES) ** 1.5) + np.random.default_rng(0).normal(0, 0.2, (REPEATS, UPDATES))
    found = estimate_range(RATES, losses)
    assert not found.largest_stable.resolved
    assert found.largest_stable.low is not None
    assert found.largest_stable.low > 1
    assert found.largest_stable.high == math.inf
    assert found.suggested == found.steepest.value
    assert "does not turn up" in found.verdict


def test_an_explosion_in_one_repeat_is_no_more_than_a_turn_for_the_worse() -> None:
    losses = noisy(1, 0.05)
    calm = estimate_range(RATES, losses)
    for value in (1e30, math.nan, math.inf):
        wild = losses.copy()
        wild[0, RATES > 0.5] = value
        found = estimate_range(RATES, wild)
        assert found.steepest.value == pytest.approx(calm.steepest.value, rel=0.3)
        assert found.largest_stable.value == pytest.approx(calm.largest_stable.value, rel=0.5)
        assert np.isfinite(found.curves).all()


def test_the_same_losses_give_the_same_intervals() -> None:
    losses = noisy(2, 0.5)
    once, again = (estimate_range(RATES, losses, seed=3) for _ in range(2))
    assert (once.steepest, once.largest_stable) == (again.steepest, again.largest_stable)


@settings(max_examples=15)
@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-100, 100), shift=st.floats(1e-4, 1e4))
def test_units_of_loss_and_rate_do_not_matter(scale: float, offset: float, shift: float) -> None:
    rates, losses = RATES[::2], noisy(4, 0.2)[:, ::2]
    plain, other = estimate_range(rates, losses), estimate_range(shift * rates, offset * scale + scale * losses)
    assert plain.suggested is not None
    assert other.suggested == pytest.approx(shift * plain.suggested, rel=1e-6)
    assert other.fall == pytest.approx(scale * plain.fall, rel=1e-6)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), noise=st.floats(0, 3))
def test_ends_enclose_values_and_lie_on_the_range(seed: int, noise: float) -> None:
    found = estimate_range(RATES, noisy(seed, noise))
    half_step = (RATES[1] / RATES[0]) ** 0.51
    for interval in (found.steepest, found.largest_stable):
        if interval.value is not None:
            assert interval.low is not None
            assert interval.high is not None
            assert RATES[0] / half_step <= interval.low <= interval.value <= interval.high <= RATES[-1] * half_step

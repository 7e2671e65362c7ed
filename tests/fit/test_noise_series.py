"""A series of steps gives unbiased estimates, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from batchscope.fit.noise_series import estimate_series, from_two_sizes

P, B, SINGLE = 64, 64, 16
SPECTRA = {"flat": np.ones(P), "falling": 1 / np.arange(1.0, P + 1)}

Series = tuple[NDArray[np.float64], NDArray[np.float64]]


def steps(rng: np.random.Generator, kind: str, count: int, scale: float) -> Series:
    """tr Σ = 1, ‖G‖² = 1/scale: batch gradients drawn as vectors, 16 single norms a step with a heavy tail."""
    eigenvalues = SPECTRA[kind] / SPECTRA[kind].sum()
    batch = math.sqrt(1 / scale / P) + rng.standard_normal((count, P)) * np.sqrt(eigenvalues / B)
    large = np.square(batch).sum(axis=1)
    small = 1 / scale + rng.gamma(SINGLE / 4, 4 / SINGLE, count)  # coefficient of variation 2 among examples
    pairs = [from_two_sizes(s, q, group_size=1, batch_size=B) for s, q in zip(small, large, strict=True)]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 64).map(float), st.integers(2, 64).map(float))
def test_two_sizes_give_back_what_made_them(trace: float, norm: float, b: float, times: float) -> None:
    got = from_two_sizes(norm + trace / b, norm + trace / (b * times), group_size=b, batch_size=b * times)
    assert got == pytest.approx((trace, norm), rel=1e-6, abs=1e-7 * max(trace, norm))


def test_groups_as_large_as_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="larger"):
        from_two_sizes(1.0, 1.0, group_size=8, batch_size=8)


# Noise scales from far below what the steps resolve to far above it.
@pytest.mark.parametrize("relative", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("count", [10, 40, 200])
@pytest.mark.parametrize("kind", SPECTRA)
def test_interval_holds_the_truth(kind: str, count: int, relative: float) -> None:
    # 600 repetitions: a standard error of 0.9%, so that a true 95% lies within 92% and 98%.
    rng = np.random.default_rng(1)
    scale, held, repetitions = relative * B * math.sqrt(count), 0, 600
    for _ in range(repetitions):
        interval = estimate_series(*steps(rng, kind, count, scale), weights=np.ones(count), examples=B).noise_scale
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= scale <= interval.high
    assert 0.92 <= held / repetitions <= 0.98


def test_intervals_of_both_parts_hold_the_truth() -> None:
    rng, held, repetitions = np.random.default_rng(2), np.zeros(2), 600
    for _ in range(repetitions):
        estimate = estimate_series(*steps(rng, "falling", 50, 60.0), weights=np.ones(50), examples=B)
        for i, (interval, truth) in enumerate(
            ((estimate.trace_covariance, 1.0), (estimate.gradient_norm_squared, 1 / 60))
        ):
            held[i] += (interval.low or 0.0) <= truth <= (interval.high or math.inf)
    assert (abs(held / repetitions - 0.95) < 0.03).all()


def test_weighted_steps_hold_the_truth_of_a_drifting_path() -> None:
    """‖G‖² falls by a factor of four along the window: the target is the ratio of the weighted means."""
    rng, held, repetitions, count = np.random.default_rng(3), 0, 600, 300
    weights = 0.5 ** (np.arange(count)[::-1] / 100)
    norms = 0.1 * 0.25 ** (np.arange(count) / count)
    target = 1 / float(weights @ norms / weights.sum())
    for _ in range(repetitions):
        trace = 1 + 0.5 * rng.standard_normal(count)
        norm = norms + 0.05 * rng.standard_normal(count)
        interval = estimate_series(trace, norm, weights=weights, examples=B).noise_scale
        held += (interval.low or 0.0) <= target <= (interval.high or math.inf)
    assert 0.92 <= held / repetitions <= 0.98


def test_drift_does_not_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    count = 400
    noise = rng.standard_normal((2, count))
    still = estimate_series(100 + noise[0], 5 + noise[1], weights=np.ones(count), examples=B).noise_scale
    moving = np.linspace(-4.0, 4.0, count)
    drifting = estimate_series(100 + noise[0], 5 + moving + noise[1], weights=np.ones(count), examples=B).noise_scale
    assert still.high is not None
    assert still.low is not None
    assert drifting.high is not None
    assert drifting.low is not None
    assert drifting.high - drifting.low == pytest.approx(still.high - still.low, rel=0.05)


def test_ratio_of_means_and_not_mean_of_ratios() -> None:
    rng = np.random.default_rng(5)
    trace, norm = steps(rng, "flat", 4000, 640.0)
    assert (norm < 0).mean() > 0.2
    estimate = estimate_series(trace, norm, weights=np.ones(4000), examples=B)
    assert estimate.noise_scale.value == pytest.approx(trace.mean() / norm.mean())
    assert estimate.noise_scale.value == pytest.approx(640.0, rel=0.25)  # three standard errors
    assert abs((trace / norm).mean() / 640 - 1) > 0.4


def test_not_resolved_says_how_many_examples_would_do() -> None:
    rng = np.random.default_rng(6)
    few = estimate_series(*steps(rng, "flat", 20, 1000.0), weights=np.ones(20), examples=B)
    assert not few.noise_scale.resolved
    assert few.noise_scale.value is None
    assert few.noise_scale.high == math.inf
    assert few.trace_covariance.resolved
    assert few.examples_needed is not None
    assert few.examples_needed > 20 * B
    count = 4 * few.examples_needed // B
    enough = estimate_series(*steps(rng, "flat", count, 1000.0), weights=np.ones(count), examples=B)
    assert enough.noise_scale.resolved
    assert enough.examples_needed is None


def test_fewer_than_five_steps_tell_nothing() -> None:
    estimate = estimate_series(np.ones(4), np.ones(4), weights=np.ones(4), examples=8)
    assert not estimate.noise_scale.resolved
    assert estimate.noise_scale.low is None
    assert estimate.examples_needed == 40


def test_scale_of_the_gradient_cancels() -> None:
    rng = np.random.default_rng(7)
    trace, norm = steps(rng, "falling", 100, 20.0)
    one = estimate_series(trace, norm, weights=np.ones(100), examples=B).noise_scale
    other = estimate_series(9 * trace, 9 * norm, weights=np.full(100, 0.3), examples=B).noise_scale
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))

"""The gradient noise scale from a series of training steps, each of which tells a little about it.

At a step with a batch of B examples in groups of b (b = 1: single examples), let s be the mean of the groups' ‖g‖² and
q the batch gradient's ‖ḡ‖². Since E s = ‖G‖² + tr Σ/b and E q = ‖G‖² + tr Σ/B,

    tr Σ ≈ (s − q)/(1/b − 1/B),        ‖G‖² ≈ (q/b − s/B)/(1/b − 1/B)

without bias (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1). Both are averaged over the steps, each by itself,
before they are divided: at a single step ‖G‖² comes out negative as often as not, and a mean of ratios is biased.

The interval is Fieller's (1954, J. R. Stat. Soc. B 16), taken for ‖G‖²/tr Σ, whose denominator stands far from zero,
and turned over: where it reaches down to zero the noise scale has no upper end, and is not resolved. Given the path
that the weights take, the errors of the steps are independent, or at least martingale differences: each step draws its
own batch; so they add up without correlations. What drifts from step to step is the truth itself. The variance is
therefore taken from successive differences (von Neumann 1941), which a slow drift hardly enters, and the interval is
one for the mean of tr Σ over the mean of ‖G‖² along the path, weighted as the steps are.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from batchscope.fit.noise import NoiseEstimate
from batchscope.records import Interval

LEAST_STEPS = 5


def from_two_sizes(small: float, large: float, *, group_size: float, batch_size: float) -> tuple[float, float]:
    """Unbiased estimates of tr Σ and ‖G‖² from squared norms of gradients over two numbers of examples.

    Args:
        small: Mean of ‖g‖² over groups of ``group_size`` examples.
        large: ‖ḡ‖² of ``batch_size`` examples.
        group_size: b; for groups of different sizes the harmonic mean.
        batch_size: B, larger than b.

    Returns:
        tr Σ, for single examples, and ‖G‖². Either can come out negative.

    Raises:
        ValueError: The batch is not larger than the groups.

    Examples:
        >>> from_two_sizes(5.0, 1.5, group_size=1, batch_size=8)  # ‖G‖² = 1, tr Σ = 4
        (4.0, 1.0)
    """
    if batch_size <= group_size:
        raise ValueError("the batch must be larger than the groups")
    between = 1 / group_size - 1 / batch_size
    return (small - large) / between, (large / group_size - small / batch_size) / between


def estimate_series(
    trace: NDArray[np.float64],
    norm_squared: NDArray[np.float64],
    *,
    weights: NDArray[np.float64],
    examples: float,
    level: float = 0.95,
) -> NoiseEstimate:
    """Estimate tr Σ, ‖G‖² and the noise scale from what single steps say about the first two.

    Args:
        trace: Each step's estimate of tr Σ, in the order of the steps.
        norm_squared: Each step's estimate of ‖G‖².
        weights: What each step counts for.
        examples: Examples that a step has, on average.
        level: How often the intervals should hold the truth.

    Returns:
        The estimates. With fewer than five steps nothing is resolved.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> trace, norm = 100 + rng.standard_normal(200), 1 + rng.standard_normal(200)
        >>> estimate = estimate_series(trace, norm, weights=np.ones(200), examples=64)
        >>> estimate.noise_scale.low < 100 < estimate.noise_scale.high
        True
    """
    if len(trace) < LEAST_STEPS:
        needed = math.ceil(LEAST_STEPS * examples)
        unknown = Interval.unresolved(level)
        return NoiseEstimate(unknown, unknown, unknown, needed)
    shares = weights / weights.sum()
    effective = 1 / float(np.square(shares).sum())
    means = float(shares @ trace), float(shares @ norm_squared)
    trace_variance, norm_variance, covariance = _variances_of_means(trace, norm_squared, shares)
    # The square of one difference in three repeats what its neighbours say (von Neumann's efficiency of 2/3).
    quantile = float(stdtrit(max(1.0, 2 * (effective - 1) / 3), (1 + level) / 2))
    trace_interval = _interval(means[0], quantile * math.sqrt(trace_variance), level)
    norm_interval = _interval(means[1], quantile * math.sqrt(norm_variance), level)
    low, high = _inverse_fieller(means, (trace_variance, norm_variance, covariance), quantile)
    if math.isinf(high) or not trace_interval.resolved:
        needed = _examples_needed(means[1], norm_variance, effective * examples)
        return NoiseEstimate(trace_interval, norm_interval, Interval.unresolved(level, low=low, high=math.inf), needed)
    scale = Interval(means[0] / means[1], low, high, level)
    return NoiseEstimate(trace_interval, norm_interval, scale, None)


def _variances_of_means(
    first: NDArray[np.float64], second: NDArray[np.float64], shares: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Variances of two weighted means and their covariance, from successive differences."""
    differences = np.diff(np.stack([first, second]), axis=1)
    between = shares[1:] * shares[:-1]
    # E(eᵢ − eᵢ₋₁)² = 2σ²; weights change slowly, so wᵢwᵢ₋₁ stands for wᵢ², and Σw² makes up for the missing end.
    scale = float(np.square(shares).sum()) / (2 * float(between.sum()))
    matrix = (differences * between) @ differences.T * scale
    return float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 1])


def _interval(mean: float, half: float, level: float) -> Interval:
    """An interval of a quantity that cannot be negative: not resolved where it is not told from zero."""
    if mean - half <= 0:
        return Interval.unresolved(level, low=0.0, high=max(0.0, mean + half))
    return Interval(mean, mean - half, mean + half, level)


def _inverse_fieller(
    means: tuple[float, float], variances: tuple[float, float, float], quantile: float
) -> tuple[float, float]:
    """Ends of tr Σ/‖G‖²: the φ = ‖G‖²/tr Σ with (s̄ − φ·t̄)² ≤ z²·Var(s̄ − φ·t̄), turned over."""
    (t, s), (tt, ss, ts), z2 = means, variances, quantile**2
    a, b, c = t**2 - z2 * tt, s * t - z2 * ts, s**2 - z2 * ss
    if a <= 0 or t <= 0:  # not even tr Σ is told from zero
        return 0.0, math.inf
    root = math.sqrt(max(0.0, b * b - a * c))
    least, most = (b - root) / a, (b + root) / a
    # Where even the largest φ is negative, the mean gradient came out shorter than noise alone makes likely.
    if most <= 0:
        return 0.0, math.inf
    return 1 / most, (1 / least if least > 0 else math.inf)


def _examples_needed(norm_squared: float, variance: float, examples: float) -> int:
    """Examples in all from which on ‖G‖² stands three standard deviations above zero."""
    if norm_squared <= 0:
        return math.ceil(16 * examples)  # a lower bound is all that can be said
    return math.ceil(examples * max(1.0, 9 * variance / norm_squared**2))

"""The gradient noise scale from moments of gradients, with an interval that knows when it knows nothing.

Let g₁ … gₙ be gradients of n groups of b examples each (b = 1: single examples) at one point, with mean G and
covariance Σ/b. Their mean ḡ has E‖ḡ‖² = ‖G‖² + tr Σ/(bn), and the unbiased estimates are

    tr Σ ≈ b·Σᵢ‖gᵢ − ḡ‖²/(n − 1),        ‖G‖² ≈ ‖ḡ‖² − tr Σ/(bn),

each taken by itself before they are divided (McCandlish et al. 2018, arXiv 1812.06162, appendix A). The interval of
the noise scale B = tr Σ/‖G‖² is the set of values that a test does not reject: under B, T = ‖ḡ‖² − t(1/B' + 1/n), with
t the trace among groups and B' = B/b, has mean zero, and the variance and third cumulant of a quadratic form in about
normal variables plus those of t. A gamma law of these three cumulants (Hall, Buckley and Eagleson) gives its
quantiles. Near the noise floor ‖ḡ‖² is far from normal when few directions carry the noise, and an interval whose
variance is itself taken from ‖ḡ‖² can hold the truth no more than half of the time there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtri

from batchscope.records import Interval

# Noise scales, in groups, among which the ends of an interval are looked for.
_GRID = np.concatenate([np.logspace(-4, 10, 1401), [np.inf]])


@dataclass(frozen=True)
class GradientMoments:
    """What the noise scale is estimated from.

    Attributes:
        groups: n, the number of gradients.
        group_size: b, the examples in each of them.
        mean_norm_squared: ‖ḡ‖².
        trace: t = Σ‖gᵢ − ḡ‖²/(n − 1), the trace of the covariance among groups, Σ/b.
        trace_of_square: Estimate of tr (Σ/b)².
        trace_of_cube: Estimate of tr (Σ/b)³.
        along_mean: ūᵀ(Σ/b)ū along the direction ū = ḡ/‖ḡ‖.
        norm_variance: Variance of rᵢ = ‖gᵢ − ḡ‖² over i.
        norm_third_moment: Its third central moment.
        norm_covariance: Covariance of rᵢ and ū·(gᵢ − ḡ).
    """

    groups: int
    group_size: int
    mean_norm_squared: float
    trace: float
    trace_of_square: float
    trace_of_cube: float
    along_mean: float
    norm_variance: float
    norm_third_moment: float
    norm_covariance: float


def moments_of(gradients: NDArray[np.float64], group_size: int = 1) -> GradientMoments:
    """The moments of a matrix of gradients, all of them in memory.

    Args:
        gradients: n×P, one gradient a row.
        group_size: Examples whose mean each row is.

    Returns:
        The moments.

    Raises:
        ValueError: Fewer than four rows.

    Examples:
        >>> m = moments_of(np.array([[1.0, 1.0], [1.0, -1.0], [3.0, 1.0], [3.0, -1.0]]))
        >>> m.mean_norm_squared, round(m.trace, 6)
        (4.0, 2.666667)
    """
    mean = gradients.mean(axis=0)
    centred = gradients - mean
    return moments_from_parts(
        groups=len(gradients),
        group_size=group_size,
        mean_norm_squared=float(mean @ mean),
        deviations=np.einsum("ij,ij->i", centred, centred),
        gram=centred @ centred.T,
        along_mean=centred @ mean / max(float(np.linalg.norm(mean)), 1e-300),
    )


def moments_from_parts(
    *,
    groups: int,
    group_size: int,
    mean_norm_squared: float,
    deviations: NDArray[np.float64],
    gram: NDArray[np.float64],
    along_mean: NDArray[np.float64],
) -> GradientMoments:
    """The moments from what can be had without holding every gradient in memory at once.

    Args:
        groups: n.
        group_size: b.
        mean_norm_squared: ‖ḡ‖².
        deviations: ‖gᵢ − ḡ‖² of all n.
        gram: (gᵢ − ḡ)·(gⱼ − ḡ) of some of them, m×m.
        along_mean: ū·(gᵢ − ḡ) of all n.

    Returns:
        The moments.

    Raises:
        ValueError: Fewer than four gradients.
    """
    m = len(gram)
    if groups < 4 or m < 4:
        raise ValueError("at least four gradients are needed")
    trace = float(deviations.sum()) / (groups - 1)
    off_diagonal = gram - np.diag(np.diag(gram))
    pairs = float(np.square(off_diagonal).sum()) / (m * (m - 1))
    # Centring makes two gradients' deviations correlate by −t/n.
    square = max(pairs - (trace / groups) ** 2, trace**2 * 1e-9)
    triples = float(np.sum((off_diagonal @ off_diagonal) * off_diagonal)) / (m * (m - 1) * (m - 2))
    # For every covariance, (tr Σ²)²/tr Σ ≤ tr Σ³ ≤ (tr Σ²)^(3/2); a noisy estimate may lie outside.
    cube = min(max(triples, square**2 / max(trace, 1e-300)), square**1.5)
    spread = deviations - trace
    return GradientMoments(
        groups=groups,
        group_size=group_size,
        mean_norm_squared=mean_norm_squared,
        trace=trace,
        trace_of_square=square,
        trace_of_cube=cube,
        along_mean=float(np.square(along_mean).sum()) / max(1, len(along_mean) - 1),
        norm_variance=float(np.square(spread).mean()),
        norm_third_moment=float((spread**3).mean()),
        norm_covariance=float((along_mean * spread).mean()),
    )


@dataclass(frozen=True)
class NoiseEstimate:
    """tr Σ, ‖G‖² and the noise scale, each with its interval.

    Attributes:
        trace_covariance: tr Σ, for single examples.
        gradient_norm_squared: ‖G‖².
        noise_scale: tr Σ/‖G‖²; not resolved where the upper end is infinite.
        examples_needed: Examples in all from which on the noise scale would be resolved; None where it is.
    """

    trace_covariance: Interval
    gradient_norm_squared: Interval
    noise_scale: Interval
    examples_needed: int | None


def estimate_noise(moments: GradientMoments, level: float = 0.95) -> NoiseEstimate:
    """Estimate the noise scale and its interval.

    Args:
        moments: Of gradients at one point.
        level: How often the interval should hold the truth.

    Returns:
        The estimates. A noise scale whose upper end is infinite is not resolved: it has a lower end and no value.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> gradients = 0.1 + rng.standard_normal((1024, 100))  # tr Σ = 100, ‖G‖² = 1
        >>> estimate = estimate_noise(moments_of(gradients))
        >>> estimate.noise_scale.low < 100 < estimate.noise_scale.high
        True
    """
    n, b, t = moments.groups, moments.group_size, moments.trace
    if t <= 1e-12 * moments.mean_norm_squared:  # gradients that are all alike
        q = moments.mean_norm_squared
        trace, norm, scale = (Interval(value, value, value, level) for value in (b * t, q, b * t / q))
        return NoiseEstimate(trace, norm, scale, None)
    accepted = _accepted(moments, level)
    half = float(ndtri((1 + level) / 2)) * math.sqrt(moments.norm_variance / n)
    trace = Interval(b * t, b * max(0.0, t - half), b * (t + half), level)
    signal = moments.mean_norm_squared - t / n
    # The mean gradient can come out shorter than noise alone makes it likely to be; then nothing is told.
    low, high = (float(accepted[0]) * b, float(accepted[-1]) * b) if len(accepted) else (0.0, math.inf)
    norm_low, norm_high = (0.0 if math.isinf(high) else b * t / high), (b * t / low if low else math.inf)
    if math.isinf(high) or signal <= 0:
        return NoiseEstimate(
            trace,
            Interval.unresolved(level, low=norm_low, high=norm_high),
            Interval.unresolved(level, low=low, high=math.inf),
            b * _groups_needed(moments, signal),
        )
    return NoiseEstimate(
        trace, Interval(signal, norm_low, norm_high, level), Interval(b * t / signal, low, high, level), None
    )


def _accepted(moments: GradientMoments, level: float) -> NDArray[np.float64]:
    """The noise scales, in groups, that a two-sided test at this level does not reject."""
    n, t = moments.groups, moments.trace
    inverse = 1.0 / _GRID
    k = inverse + 1.0 / n
    signal = inverse * t
    form = 4 * signal * moments.along_mean / n + 2 * moments.trace_of_square / n**2
    cross = -4 * k * np.sqrt(signal) * moments.norm_covariance / n
    variance = form + np.maximum(k**2 * moments.norm_variance / n + cross, -0.5 * form)
    third = (
        8 * moments.trace_of_cube / n**3
        + 24 * signal * moments.along_mean**2 / n**2
        - k**3 * moments.norm_third_moment / n**2
    )
    deviation = (moments.mean_norm_squared - t * k) / np.sqrt(variance)
    skewness = third / variance**1.5
    low = _gamma_quantile((1 - level) / 2, skewness)
    high = _gamma_quantile((1 + level) / 2, skewness)
    accepted: NDArray[np.float64] = _GRID[(low <= deviation) & (deviation <= high)]
    return accepted


def _gamma_quantile(probability: float, skewness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of a shifted gamma law of mean 0, variance 1 and the given skewness (Pearson's type III)."""
    size = np.maximum(np.abs(skewness), 1e-3)
    shape = 4 / size**2
    upper = (gammaincinv(shape, probability) - shape) / np.sqrt(shape)
    lower = -(gammaincinv(shape, 1 - probability) - shape) / np.sqrt(shape)
    quantile: NDArray[np.float64] = np.where(skewness >= 0, upper, lower)
    return quantile


def _groups_needed(moments: GradientMoments, signal: float) -> int:
    """Groups from which on ‖G‖² stands about three standard deviations above zero."""
    if signal <= 0:
        return 16 * moments.groups  # a lower bound is all that can be said
    # 9·(2·tr Σ²/n² + 4·‖G‖²·λ/n) = ‖G‖⁴, solved for n.
    linear, constant = 36 * moments.along_mean / signal, 18 * moments.trace_of_square / signal**2
    return math.ceil((linear + math.sqrt(linear**2 + 4 * constant)) / 2)

"""The gradient noise scale from moments of gradients, with an interval that knows when it knows nothing.

Let g₁ … gₙ be gradients of n groups of b examples each (b = 1: single examples) at one point, with mean G and
covariance Σ/b. Their mean ḡ has E‖ḡ‖² = ‖G‖² + tr Σ/(bn), and the unbiased estimates are

    tr Σ ≈ b·Σᵢ‖gᵢ − ḡ‖²/(n − 1),        ‖G‖² ≈ U = ‖ḡ‖² − tr Σ/(bn),

each taken by itself before they are divided (McCandlish et al. 2018, arXiv 1812.06162, appendix A). G and Σ are those
of the distribution that the examples come from, not those of the examples alone.

An interval of ‖G‖², or of the noise scale B = tr Σ/‖G‖², holds the values that a test does not reject. Write t for the
trace among groups, and let s be a value of ‖G‖². The test of s asks whether U − s is nearer to zero than chance makes
it; the test of B takes s = t/B', B' = B/b, and allows for the error of t as well. To leading order

    U − s = L + W,    L = mean of yᵢ,  yᵢ = 2√s·uᵀ(gᵢ − G) − (s/t)·(‖gᵢ − G‖² − t)    (the last term for B alone),

where u = G/‖G‖, and W is the U-statistic of pairs (gᵢ − G)·(gⱼ − G), of variance 2 tr Σ²/n² and third cumulant
8 tr Σ³/n³ (in units of groups) whatever the law of the gradients. Near the noise floor W is all there is, and far from
normal when few directions carry the noise, as χ² with one degree of freedom is at worst; a gamma law of three
cumulants follows it (Buckley and Eagleson 1988). Well above the floor L is all: the mean of skew variables over its
estimated error, straightened by Hall's cubic transformation (1992, "On the removal of skewness by transformation"),
as is tr Σ for its own interval. Quantiles are widened as Student's are over the normal law's.

‖G‖² cannot be negative. How the 5% are split between the tails follows Feldman and Cousins (1998, physics/9711021):
evenly far above the floor, all on one side at it, so that an interval is never empty, and holds the truth no more
often than it says where ‖G‖² is nearly 0. The noise scale is *resolved* where ‖G‖² = 0 is rejected.

What is left (benchmarks/noise.py): where one direction carries nearly all the noise and G lies in none of it, the
intervals of ‖G‖² and B hold the truth up to 99% of the time, since what that direction has of G cannot be told from
noise; where a few gradients carry most of the second moment (a log-normal factor of σ = 1 on each, say), no sample of
some hundreds shows how heavy the tails are, and those of tr Σ and B hold it 87% to 92% and 74% to 98% of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr, ndtri, stdtrit

from batchscope.records import Interval

# The most that is asked for, over what was there. From gradients without a trace of G nothing more can be told.
MOST_TIMES_MORE = 16
# More standard deviations than any test counts.
_ANY = 1e6


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
        along_mean: Variance of pᵢ = ū·(gᵢ − ḡ) over i, ūᵀ(Σ/b)ū, along the direction ū = ḡ/‖ḡ‖.
        along_mean_twice: Estimate of ūᵀ(Σ/b)²ū.
        norm_variance: Variance of rᵢ = ‖gᵢ − ḡ‖².
        norm_covariance: Covariance of pᵢ and rᵢ.
        third_moments: Means of p³, p²ρ, pρ² and ρ³, with ρᵢ = rᵢ − r̄.
    """

    groups: int
    group_size: int
    mean_norm_squared: float
    trace: float
    trace_of_square: float
    trace_of_cube: float
    along_mean: float
    along_mean_twice: float
    norm_variance: float
    norm_covariance: float
    third_moments: tuple[float, float, float, float]


def paired_rows(groups: int) -> int:
    """How many of the gradients to take pairs among: pairs grow as the square, what they add does not."""
    return min(groups, max(128, min(groups // 8, 256)))


def moments_of(gradients: NDArray[np.float64], group_size: int = 1) -> GradientMoments:
    """The moments of a matrix of gradients, all of them in memory.

    Args:
        gradients: n×P, one gradient a row, in random order.
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
    paired = centred[: paired_rows(len(gradients))]
    return moments_from_parts(
        groups=len(gradients),
        group_size=group_size,
        mean_norm_squared=float(mean @ mean),
        deviations=np.einsum("ij,ij->i", centred, centred),
        gram=paired @ paired.T,
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
        gram: (gᵢ − ḡ)·(gⱼ − ḡ) of the first m of them, m×m.
        along_mean: ū·(gᵢ − ḡ) of all n, in the same order.

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
    # Centring leaves deviations the covariance (δᵢⱼ − 1/n)·Σ, so a pair's squared product has the mean
    # tr Σ²·((1 − 1/n)² + 1/n²) + (tr Σ)²/n² if they are normal.
    centred = (1 - 1 / groups) ** 2 + 1 / groups**2
    square = max((pairs - (trace / groups) ** 2) / centred, trace**2 * 1e-9)
    triples = float(np.sum((off_diagonal @ off_diagonal) * off_diagonal)) / (m * (m - 1) * (m - 2))
    # For every covariance, (tr Σ²)²/tr Σ ≤ tr Σ³ ≤ (tr Σ²)^(3/2); a noisy estimate may lie outside.
    cube = min(max(triples, square**2 / max(trace, 1e-300)), square**1.5)
    along, spread = along_mean - along_mean.mean(), deviations - deviations.mean()
    along_squared, spread_squared = np.square(along), np.square(spread)
    return GradientMoments(
        groups=groups,
        group_size=group_size,
        mean_norm_squared=mean_norm_squared,
        trace=trace,
        trace_of_square=square,
        trace_of_cube=cube,
        along_mean=float(along_squared.sum()) / (groups - 1),
        along_mean_twice=float(along[:m] @ off_diagonal @ along[:m]) / (m * (m - 1)),
        norm_variance=float(spread_squared.sum()) / (groups - 1),
        norm_covariance=float(along @ spread) / (groups - 1),
        third_moments=(
            float(along_squared @ along) / groups,
            float(along_squared @ spread) / groups,
            float(along @ spread_squared) / groups,
            float(spread_squared @ spread) / groups,
        ),
    )


@dataclass(frozen=True)
class NoiseEstimate:
    """tr Σ, ‖G‖² and the noise scale, each with its interval.

    Attributes:
        trace_covariance: tr Σ, for single examples.
        gradient_norm_squared: ‖G‖².
        noise_scale: tr Σ/‖G‖²; not resolved where the upper end is infinite.
        examples_needed: Examples in all of which about half of such measurements, or more, would resolve the noise
            scale, as far as this one can tell: at most 16 times as many as it had. None where it is resolved.
    """

    trace_covariance: Interval
    gradient_norm_squared: Interval
    noise_scale: Interval
    examples_needed: int | None


def estimate_noise(moments: GradientMoments, level: float = 0.95) -> NoiseEstimate:
    """Estimate tr Σ, ‖G‖² and the noise scale, each with its interval.

    Args:
        moments: Of gradients at one point.
        level: How often an interval should hold the truth.

    Returns:
        The estimates. A noise scale whose upper end is infinite is not resolved: it has a lower end and no value, and
        ‖G‖² has an upper end.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> gradients = 0.1 + rng.standard_normal((1024, 100))  # tr Σ = 100, ‖G‖² = 1
        >>> estimate = estimate_noise(moments_of(gradients))
        >>> estimate.noise_scale.low < 100 < estimate.noise_scale.high
        True
    """
    b, t = moments.group_size, moments.trace
    if t <= 1e-12 * moments.mean_norm_squared:  # gradients that are all alike
        q = moments.mean_norm_squared
        trace, norm = (Interval(value, value, value, level) for value in (b * t, q))
        if q == 0:  # nothing moves at all
            scale = Interval.unresolved(level, low=0.0, high=math.inf)
            return NoiseEstimate(trace, norm, scale, MOST_TIMES_MORE * moments.groups * b)
        return NoiseEstimate(trace, norm, Interval(b * t / q, b * t / q, b * t / q, level), None)
    signal = moments.mean_norm_squared - t / moments.groups
    norm_low, norm_high = _not_rejected(moments, level, trace_is_known=True)
    least, most = _not_rejected(moments, level, trace_is_known=False)
    low, high = b * t / most, (b * t / least if least > 0 else math.inf)
    if math.isinf(high) or signal <= 0:
        norm = Interval.unresolved(level, low=0.0, high=norm_high)
        scale = Interval.unresolved(level, low=low, high=math.inf)
        return NoiseEstimate(_trace_interval(moments, level), norm, scale, _examples_needed(moments, signal, level))
    return NoiseEstimate(
        _trace_interval(moments, level),
        Interval(signal, norm_low, norm_high, level),
        Interval(b * t / signal, low, high, level),
        None,
    )


def _trace_interval(moments: GradientMoments, level: float) -> Interval:
    """The interval of tr Σ, a mean of skew variables."""
    n, b, t = moments.groups, moments.group_size, moments.trace
    error = math.sqrt(moments.norm_variance / n)
    student = float(stdtrit(n - 1, (1 + level) / 2))
    # That of one of them, Fisher's G₁, over √n.
    third = moments.third_moments[3] * n**2 / ((n - 1) * (n - 2))
    # Where all gradients are equally far from their mean, what is left of the variance is rounding.
    spreads = moments.norm_variance > 1e-20 * t**2
    skewness: float = third / moments.norm_variance**1.5 / math.sqrt(n) if spreads else 0.0
    low, high = t - error * _bent(student, skewness), t - error * _bent(-student, skewness)
    return Interval(b * t, b * max(0.0, low), b * high, level)


def _not_rejected(moments: GradientMoments, level: float, *, trace_is_known: bool) -> tuple[float, float]:
    """The least and the greatest ‖G‖² that the test does not reject: 0 and infinity where there is no such end."""
    signal = moments.mean_norm_squared - moments.trace / moments.groups

    def too_high(s: float) -> float:
        return _distances(moments, s, level, trace_is_known=trace_is_known)[0]

    def too_low(s: float) -> float:
        return _distances(moments, s, level, trace_is_known=trace_is_known)[1]

    middle = max(signal, 0.0)
    low = _crossing(too_high, 0.0, middle) if too_high(0.0) > 0 else 0.0
    far = middle + moments.trace / moments.groups
    for _ in range(40):
        if too_low(far) > 0:
            return low, _crossing(too_low, middle, far)
        far *= 2
    return low, math.inf


def _crossing(function: Callable[[float], float], start: float, end: float) -> float:
    """Where the function changes its sign, to 1e-6 of ``end``; ``start`` or ``end`` where it does not."""
    from scipy.optimize import brentq

    at_start, at_end = function(start), function(end)
    if at_start * at_end > 0:
        return end if abs(at_end) < abs(at_start) else start
    return float(brentq(function, start, end, xtol=1e-9 * end, rtol=1e-6))


def _distances(moments: GradientMoments, s: float, level: float, *, trace_is_known: bool) -> tuple[float, float]:
    """How far, in standard deviations, U − s lies above and below what is accepted if ‖G‖² = s: negative within."""
    n = moments.groups
    # yᵢ = a·pᵢ − w·ρᵢ
    a = 2 * math.sqrt(_mean_variance(moments, s) / max(moments.along_mean, 1e-300))
    w = 0.0 if trace_is_known else s / moments.trace
    ppp, ppr, prr, rrr = moments.third_moments
    linear = (a**2 * moments.along_mean - 2 * a * w * moments.norm_covariance + w**2 * moments.norm_variance) / n
    linear_third = (a**3 * ppp - 3 * a**2 * w * ppr + 3 * a * w**2 * prr - w**3 * rrr) / n**2
    pairs, pairs_third = 2 * moments.trace_of_square / n**2, 8 * moments.trace_of_cube / n**3
    both_third = 6 * ((a * moments.along_mean - w * moments.norm_covariance) / n) ** 2
    deviation = math.sqrt(max(linear, 0.0) + pairs)
    skewness = (pairs_third + both_third) / deviation**3
    ratio = _straightened((moments.mean_norm_squared - moments.trace / n - s) / deviation, linear_third / deviation**3)
    below, above = _tails(s / deviation, level)
    wider = float(stdtrit(n - 1, (1 + level) / 2) / ndtri((1 + level) / 2))
    return (
        ratio - wider * _gamma_quantile(1 - above, skewness),
        # At the floor no deviation downwards speaks against it.
        wider * _gamma_quantile(below, skewness) - ratio if below > 1e-9 else -_ANY,
    )


def _mean_variance(moments: GradientMoments, s: float) -> float:
    """Gᵀ(Σ/b)G where ‖G‖² = s.

    ḡᵀΣḡ less its expectation without G, tr Σ²/n, is an unbiased estimate, at ‖G‖² = U. As s departs from U, so does it,
    by their covariance over the variance of U.
    """
    n, q, along = moments.groups, moments.mean_norm_squared, moments.along_mean
    square, cube = moments.trace_of_square, moments.trace_of_cube
    here = q * along - square / n
    slope = 2 * max(q * moments.along_mean_twice - cube / n, 0.0) + cube / n
    slope /= 2 * max(here, 0.0) + square / n
    # GᵀΣG/‖G‖² is no more than Σ's largest eigenvalue, which tr Σ³/tr Σ² is near when it counts.
    return min(max(here + (s - q + moments.trace / n) * slope, 0.0), s * max(along, cube / square))


def _straightened(ratio: float, skewness: float) -> float:
    """Student's ratio of a mean of the given skewness, made about normal: x + γx²/3 + γ²x³/27 + γ/6 (Hall 1992)."""
    return ratio + skewness * ratio**2 / 3 + skewness**2 * ratio**3 / 27 + skewness / 6


def _bent(x: float, skewness: float) -> float:
    """The inverse of :func:`_straightened`."""
    if abs(skewness) < 1e-6:
        return x
    return 3 / skewness * (float(np.cbrt(1 + skewness * (x - skewness / 6))) - 1)


def _tails(mean: float, level: float) -> tuple[float, float]:
    """Probabilities left out below and above: Feldman and Cousins' order for a normal mean that is not negative.

    Values x are accepted in order of their likelihood over that of the best mean, max(x, 0). Those from below zero,
    down to x₁, and from above up to mean + a have equal ratios where x₁ = (mean² − a²)/(2·mean).
    """
    a = float(ndtri((1 + level) / 2))
    if mean >= a:
        return (1 - level) / 2, (1 - level) / 2
    if mean <= 0:
        return 0.0, 1 - level
    for _ in range(16):  # by itself a iterates about its answer, halfway it comes to it
        below = float(ndtr(-(mean**2 + a**2) / (2 * mean)))
        a = (a + float(ndtri(level + below))) / 2
    return below, 1 - level - below


def _gamma_quantile(probability: float, skewness: float) -> float:
    """Quantile of a shifted gamma law of mean 0, variance 1 and a skewness of at least 0 (Pearson's type III)."""
    if skewness < 1e-3:
        return float(ndtri(probability))
    shape = 4 / skewness**2
    return float(gammaincinv(shape, probability) - shape) / math.sqrt(shape)


def _examples_needed(moments: GradientMoments, signal: float, level: float) -> int:
    """Examples of which U would reject ‖G‖² = 0, were it to come out as it did here, which half of the time it does.

    Without G the quantile of U falls as 1/n.
    """
    n, square = moments.groups, moments.trace_of_square
    bound = math.sqrt(2 * square) * _gamma_quantile(level, 8 * moments.trace_of_cube / (2 * square) ** 1.5)
    most = MOST_TIMES_MORE * n
    groups = max(n + 1, math.ceil(bound / signal)) if signal * most > bound else most
    return moments.group_size * groups

"""Intervals over seeds: means, paired differences and ratios, and tests adjusted for their number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

from batchscope.records import Interval


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of independent values with Student's interval: x̄ ± t·s/√n with n − 1 degrees of freedom.

    Args:
        values: One number for each seed.
        level: How often intervals made this way hold the true mean, for values that are about normal.

    Returns:
        The interval. With one value, the value without ends; with none, unresolved.

    Examples:
        >>> print(mean_interval([1.0, 2.0, 3.0]))
        2 (-0.4841 to 4.484)
        >>> mean_interval([1.0]).low is None
        True
    """
    if not values:
        return Interval.unresolved(level)
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, None, None, level)
    half = float(stdtrit(len(sample) - 1, (1 + level) / 2)) * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return Interval(mean, mean - half, mean + half, level)


def ratio_interval(logarithms: Sequence[float], level: float = 0.95) -> Interval:
    """The geometric mean of ratios, from their natural logarithms, with the interval of the mean logarithm.

    Examples:
        >>> print(ratio_interval([math.log(2.0), math.log(2.0)]))
        2 (2 to 2)
    """
    mean = mean_interval(logarithms, level)
    ends = [None if end is None else math.exp(end) for end in (mean.value, mean.low, mean.high)]
    return Interval(ends[0], ends[1], ends[2], level, mean.resolved)


def paired_p_value(differences: Sequence[float]) -> float | None:
    """The two-sided p value of Student's paired t test against a mean difference of zero.

    Args:
        differences: One difference for each pair.

    Returns:
        The p value; None for fewer than two pairs. Differences that are all the same number: 1 where it is zero;
        otherwise 2**(1 − n), the sign test's value, since a spread of zero among few discrete values is luck.

    Examples:
        >>> round(paired_p_value([1.0, 2.0, 3.0]), 4)
        0.0742
        >>> paired_p_value([0.0, 0.0])
        1.0
    """
    count = len(differences)
    if count < 2:
        return None
    sample = np.asarray(differences, dtype=np.float64)
    spread = float(sample.std(ddof=1))
    mean = float(sample.mean())
    if spread <= 1e-12 * abs(mean) or spread == 0:
        return 1.0 if mean == 0 else 2.0 ** (1 - count)
    return float(2 * stdtr(count - 1, -abs(mean) / (spread / math.sqrt(count))))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for their number (Holm 1979), so that one false alarm among them all is a 5% matter at 0.05.

    Args:
        p_values: One for each test; None where there was none.

    Returns:
        The adjusted values in the same order, at most 1.

    Examples:
        >>> holm([0.01, 0.04, None])
        [0.02, 0.04, None]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The median with the interval between two order statistics, whatever the distribution.

    x₍k₎ and x₍n+1−k₎ hold the median with probability 1 − 2·P(Binomial(n, ½) < k) (Conover 1999, section 3.2); k is the
    largest that keeps this at the level. Below six values no k does: least and largest are given with the level that
    they have.

    Args:
        values: Independent measurements.
        level: How often intervals made this way should hold the median, at least.

    Returns:
        The interval. With one value, the value without ends; with none, unresolved.

    Examples:
        >>> print(median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 60.0]))
        3.5 (1 to 60)
        >>> median_interval([1.0, 2.0]).level
        0.5
    """
    if not len(values):
        return Interval.unresolved(level)
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count, middle = len(ordered), float(np.median(ordered))
    if count == 1:
        return Interval(middle, None, None, level)
    k = 1
    while 2 * (k + 1) <= count and 2 * float(bdtr(k, count, 0.5)) <= 1 - level:
        k += 1
    reached = level if count >= 6 else 1 - 2.0 ** (1 - count)
    return Interval(middle, float(ordered[k - 1]), float(ordered[count - k]), reached)

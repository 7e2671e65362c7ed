"""The fitted trade-off law at any batch size, with its band."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri

from batchscope.fit.tradeoff import EXPONENTS, FINE_STEPS, PARAMETERS, REACH
from batchscope.records import Interval
from batchscope.records.tradeoff import TradeoffLaw

Floats = NDArray[np.float64]


def tradeoff_band(law: TradeoffLaw, batch_sizes: Sequence[float]) -> tuple[Interval, ...]:
    """Examples to the target by the law at any batch sizes, each with its profile interval.

    All pairs of E_min and B_crit that the law's own intervals are made of, those that leave a sum of squares within
    F(1, K − p)·RSS/(K − p) of the least, are followed to the batch size: the least and the largest E(B) among them
    are the ends. Towards small batches these are the ends of E_min, towards large ones those of S_min·B. Where the data
    lie on one branch and B_crit is open, the band is narrow along them nevertheless, and opens beyond. The general
    exponent is a third number that is followed.

    Args:
        law: A fitted law; its points are what is followed.
        batch_sizes: Where; any positive numbers.

    Returns:
        An interval each: without ends where there are no more sizes than numbers fitted, unresolved where fewer than
        two reached the target.

    Examples:
        >>> from batchscope.fit import fit_tradeoff
        >>> law = fit_tradeoff([8, 32, 128, 512], [1100, 1300, 2300, 6100])
        >>> [f"{found.value:.0f}" for found in tradeoff_band(law, [1, 100, 10_000])]
        ['1017', '2003', '100585']
    """
    level = law.critical_batch_size.level
    x, y, bounds = log_table(law)
    known = int((~bounds).sum())
    if known < 2:
        return tuple(Interval.unresolved(level) for _ in batch_sizes)
    reach = math.log(REACH)
    grid = np.linspace(x.min() - reach, x.max() + reach, round((x.max() - x.min() + 2 * reach) * FINE_STEPS))
    if law.critical_batch_size.value is not None:
        grid = np.union1d(grid, math.log(law.critical_batch_size.value))
    exponents = [1.0] if law.form == "hyperbola" else [law.exponent.value or 1.0, *map(float, EXPONENTS)]
    profiles = [(exponent, *profile(x, y, bounds, grid, exponent)) for exponent in exponents]
    exponent, least, squares = min(profiles, key=lambda found: found[2].min())
    best, freedom = int(np.argmin(squares)), known - PARAMETERS[law.form]
    if freedom < 1:
        where = [least[best] + np.logaddexp(0.0, exponent * (math.log(b) - grid[best])) for b in batch_sizes]
        return tuple(Interval(math.exp(value), None, None, level) for value in where)
    # Rounding must not empty the set where the law fits exactly.
    allowed = squares[best] + fdtri(1, freedom, level) * max(squares[best] / freedom, 1e-16)
    found = []
    for size in batch_sizes:
        value = least[best] + np.logaddexp(0.0, exponent * (math.log(size) - grid[best]))
        low = high = value
        for power, middle, sums in profiles:
            inside = sums <= allowed
            if inside.any():
                curve = middle[inside] + np.logaddexp(0.0, power * (math.log(size) - grid[inside]))
                aside = np.sqrt((allowed - sums[inside]) / known)
                low, high = min(low, (curve - aside).min()), max(high, (curve + aside).max())
        found.append(Interval(math.exp(value), math.exp(low), math.exp(high), level))
    return tuple(found)


def log_table(law: TradeoffLaw) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Log batch sizes and log examples of the sizes that a law was fitted to, and which of these are only bounds."""
    points = [(p.batch_size, p.examples or p.at_least or 0.0, p.examples is None) for p in law.points]
    used = [point for point in points if point[1] > 0]
    sizes, examples, bounds = zip(*used, strict=True) if used else ((), (), ())
    return np.log(np.array(sizes, dtype=float)), np.log(np.array(examples, dtype=float)), np.array(bounds, dtype=bool)


def profile(
    x: Floats, y: Floats, bounds: NDArray[np.bool_], critical: Floats, exponent: float
) -> tuple[Floats, Floats]:
    """The best log E_min for each log B_crit, and the sum of squares that it leaves.

    Args:
        x: Log batch sizes.
        y: Log examples.
        bounds: Which of these are lower bounds: such a size counts where the law lies below it.
        critical: Log B_crit.
        exponent: Of the law.

    Returns:
        Two numbers for each B_crit.
    """
    gaps = y - np.logaddexp(0.0, exponent * (x - critical[:, None]))
    counts = np.broadcast_to(~bounds, gaps.shape)
    for _ in range(len(x) + 1):
        least = (gaps * counts).sum(1) / counts.sum(1)
        counts = ~bounds | (gaps > least[:, None])
    least = (gaps * counts).sum(1) / counts.sum(1)
    return least, (((gaps - least[:, None]) * counts) ** 2).sum(1)

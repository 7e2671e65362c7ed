"""The learning-rate range test's arithmetic: where a noisy loss curve falls fastest, and where it turns up for good.

The loss at each update of a range test is that of one batch, and its differences from update to update are almost all
noise: a rule that takes the steepest of them answers anything (one such answers 6.9e-7 where 1e-2 is right). Here the
curve is first smoothed as a function of u = ln ε: a quadratic is fitted around each u with Gaussian weights (Fan and
Gijbels 1996, "Local Polynomial Modelling", section 3.1), and its linear coefficient is the slope dL/du. How wide the
weights are is decided by how well the other repeats' curve predicts the repeat that is left out. Intervals come from
resampling whole repeats, so they hold whatever a repeat's losses have to do with each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from batchscope.records import Interval

Array = NDArray[np.float64]

# Widths of the weights to choose from, standard deviations in decades of rate.
WIDTHS = (0.1, 0.15, 0.22, 0.33, 0.5, 0.75)
FIRST_WIDTH = 0.33
# The start's loss is the mean over this share of the curve, at rates too small to change it.
STARTING_SHARE = 0.1
# A fall that chance alone brings about more often than this is none.
FLAT_P_VALUE = 0.01
# The loss has turned up when it has lost this share of its fall again.
LOST_SHARE = 0.1
DRAWS = 1000
UNDERSMOOTHING = 0.7


@dataclass(frozen=True)
class RangeEstimate:
    """What the losses of a range test say.

    Attributes:
        curves: Each repeat's losses, capped and smoothed, R×U.
        steepest: Rate of the steepest fall; unresolved where the loss does not fall for sure.
        largest_stable: Largest rate before the loss turns up for good; unresolved, with its lower end, where it never
            does.
        suggested: Half the geometric mean of the two, or the first alone where there is no second; None where the loss
            does not fall for sure.
        fall: From the start to the lowest point, in units of the loss.
        verdict: All this in a sentence.
    """

    curves: Array
    steepest: Interval
    largest_stable: Interval
    suggested: float | None
    fall: float
    verdict: str


def estimate_range(rates: Array, losses: Array, *, level: float = 0.95, seed: int = 0) -> RangeEstimate:
    """Find the steepest fall of a noisy loss curve and where it turns up for good.

    With L(u) the smoothed mean over the repeats, u = ln ε: the steepest rate has the least dL/du among those up to
    the lowest point. The loss falls at all where the repeats' own falls, each read at the lowest point of the *other*
    repeats' curve, are above zero by Student's t test; read at its own lowest point, noise alone would fall. The
    largest stable rate is the last at which L is within a tenth of its fall above its lowest value, if it leaves that
    for good before the end, by the same test.

    Where the steepest fall lies depends on how long the test is, as it takes about as much ε·updates to get there;
    where the loss turns up is the model's own, but too close to the edge for a long run. Half their geometric mean is
    suggested. The half is not derived: so it came within a factor 1.7 of the built-in workloads' own rates on all five
    that were tried (256 updates over 8 decades; digits 0.64, quadratic 1.3, fashion-mlp 1.4, fashion 1.2, text 0.60).

    Losses above the start by more than the whole fall, and those after a divergence, count as that much above it, so
    that an explosion in one repeat is a turn for the worse and not the whole of the mean.

    Args:
        rates: Learning rates, ascending, U.
        losses: The loss at each by repeat, R×U; infinite or nan from a divergence on.
        level: Of the intervals, which are expanded percentile intervals of the bootstrap over repeats (Hesterberg
            2015, section 5.3): wider than plain percentiles, as few repeats demand.
        seed: Of the bootstrap.

    Returns:
        The estimate.

    Examples:
        >>> rates = np.geomspace(1e-5, 10, 200)
        >>> curve = 2 - 1.5 / (1 + (0.01 / rates) ** 2) + (rates / 1.0) ** 2
        >>> noise = np.random.default_rng(0).normal(0, 0.3, (5, 200))
        >>> found = estimate_range(rates, curve + noise)
        >>> bool(0.005 < found.steepest.value < 0.02), bool(0.2 < found.largest_stable.value < 0.7)
        (True, True)
    """
    u = np.log(rates)
    repeats = len(losses)
    first = max(1, round(STARTING_SHARE * len(u)))
    capped = _capped(losses, first)
    places = np.arange(len(u))
    rough = max(first, int((_smoother(u, FIRST_WIDTH, 2) @ capped.mean(0)).argmin()))
    # The fall is gentle and the rise often a cliff, so each has a width of its own.
    falling = _best_width(u, capped, 0, rough + 1)
    curves = capped @ _smoother(u, falling, 2).T
    slopes = capped @ _smoother(u, falling, 1).T
    turning = _best_width(u, capped, rough, len(u))
    rising = capped @ _smoother(u, turning, 2).T

    mean = curves.mean(0)
    starts = capped[:, :first].mean(1)
    fall = float(starts.mean() - mean.min())
    bottoms = ((curves.sum(0) - curves) / (repeats - 1)).argmin(1)
    lowest = curves[np.arange(repeats), bottoms]
    if not _above_zero(starts - lowest):
        verdict = (
            f"Between {rates[0]:.3g} and {rates[-1]:.3g} the loss does not fall by more than its noise: "
            "no rate can be suggested."
        )
        return RangeEstimate(
            curves, Interval.unresolved(level), Interval.unresolved(level), suggested=None, fall=fall, verdict=verdict
        )

    def steepest(curve: Array, slope: Array) -> int:
        return int(np.where((places >= first) & (places <= max(first, int(curve.argmin()))), slope, np.inf).argmin())

    def turn(rise: Array, start: float, lowest: float) -> int:
        return int(np.nonzero(rise <= max(rise.min(), lowest + LOST_SHARE * (start - lowest)))[0][-1])

    # Intervals are of a curve smoothed less than predicts best, since a smooth curve's bias is nothing that they see.
    weights = _resampled(repeats, seed)
    again = weights @ capped
    drawn = zip(
        again @ _smoother(u, UNDERSMOOTHING * falling, 2).T,
        again @ _smoother(u, UNDERSMOOTHING * falling, 1).T,
        again @ _smoother(u, UNDERSMOOTHING * turning, 2).T,
        weights @ starts,
        strict=True,
    )
    found = np.array([(steepest(curve, slope), turn(rise, start, curve.min())) for curve, slope, rise, start in drawn])
    place, last = steepest(mean, slopes.mean(0)), turn(rising.mean(0), float(starts.mean()), float(mean.min()))
    rises = last < len(u) - 1 and _above_zero(capped[:, -first:].mean(1) - lowest - LOST_SHARE * fall)
    steepest_rate = _interval(rates, place, found[:, 0], repeats, level)
    largest = (
        _interval(rates, last, found[:, 1], repeats, level)
        if rises
        else Interval.unresolved(level, low=float(rates[last]), high=math.inf)
    )
    suggested = float(0.5 * math.sqrt(rates[place] * rates[last]) if rises else rates[place])
    return RangeEstimate(
        curves, steepest_rate, largest, suggested, fall, _verdict(rates, place, last, rises, suggested)
    )


def _verdict(rates: Array, place: int, last: int, rises: bool, suggested: float) -> str:
    falls = f"The loss falls fastest at {rates[place]:.3g}"
    if not rises:
        return (
            f"{falls} and does not turn up for good up to {rates[-1]:.3g}: "
            f"{suggested:.3g} is a cautious rate to start from."
        )
    return f"{falls} and turns up for good at {rates[last]:.3g}: {suggested:.3g} is a rate to start from."


def _capped(losses: Array, first: int) -> Array:
    """Losses as far above the start as the least lies below it, at most; also all that follow a divergence."""
    alive = np.logical_and.accumulate(np.isfinite(losses), axis=1)
    start = float(np.mean(losses[:, :first], where=alive[:, :first]))
    ceiling = 2 * start - float(np.min(losses, where=alive, initial=start))
    return np.asarray(np.where(alive, np.minimum(losses, ceiling), ceiling), dtype=np.float64)


def _smoother(u: Array, width: float, degree: int) -> Array:
    """The matrix that takes a curve to its smoothed values (degree 2), or to its slopes (degree 1).

    Inside the curve both degrees give the same slope; towards its ends a straight line's has far less noise.
    """
    h = width * math.log(10)
    d = (u[None, :] - u[:, None]) / h
    basis = np.stack([d**k for k in range(degree + 1)], axis=1)  # U×(degree + 1)×U
    weighted = basis * np.exp(-0.5 * d * d)[:, None, :]
    coefficients = np.linalg.solve(weighted @ basis.transpose(0, 2, 1), weighted)
    return np.asarray(coefficients[:, 0] if degree == 2 else coefficients[:, 1] / h, dtype=np.float64)


def _best_width(u: Array, losses: Array, start: int, stop: int) -> float:
    """The width with which the other repeats' curve predicts each repeat best, from one place to another."""
    others = (losses.sum(0) - losses) / (len(losses) - 1)
    spacing = (u[-1] - u[0]) / (len(u) - 1) / math.log(10)
    widths = [width for width in WIDTHS if width >= spacing] or [spacing]
    errors = [np.square(losses - others @ _smoother(u, width, 2).T)[:, start:stop].sum() for width in widths]
    return widths[int(np.argmin(errors))]


def _above_zero(falls: Array) -> bool:
    """Whether the mean of these is above zero by a one-sided t test."""
    spread, mean, count = float(falls.std(ddof=1)), float(falls.mean()), len(falls)
    if spread == 0 or mean <= 0:
        return mean > 0
    return float(stdtr(count - 1, -mean / spread * math.sqrt(count))) < FLAT_P_VALUE


def _resampled(repeats: int, seed: int) -> Array:
    """Rows of weights, each what drawing as many repeats with replacement gives every one of them."""
    return np.random.default_rng(seed).multinomial(repeats, [1 / repeats] * repeats, size=DRAWS) / repeats


def _interval(rates: Array, place: int, draws: NDArray[np.int64], repeats: int, level: float) -> Interval:
    """The expanded percentile interval, and half a step of the grid on either side."""
    quantile = float(stdtrit(repeats - 1, (1 + level) / 2)) * math.sqrt(repeats / (repeats - 1))
    half_step = (rates[-1] / rates[0]) ** (0.5 / (len(rates) - 1))
    low, high = np.quantile(draws, [ndtr(-quantile), ndtr(quantile)], method="inverted_cdf")
    ends = rates[min(low, place)] / half_step, rates[max(high, place)] * half_step
    return Interval(float(rates[place]), float(ends[0]), float(ends[1]), level)

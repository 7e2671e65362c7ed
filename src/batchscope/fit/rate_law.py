"""The best learning rate against batch size: a power of it, or a rise that levels off.

At each batch size the trials leave a valley, cost against log rate, whose bottom is known to within the rates that are
clearly worse: about two standard errors to either side. Both laws have a factor and one number that bends the curve,
log ε = a + f(log B; θ): f = α·log B for the power ε = c·B^α, and f = −log(1 + B_half/B) for the rise to ε_max
(McCandlish et al. 2018, arXiv 1812.06162, equation 2.7). They are fitted by weighted least squares. A best rate at the
end of what was tried is a bound, which pulls the law where it lies on the wrong side of it, and not at all elsewhere.

Intervals are those of the profile: all θ whose sum of squares is within t²·s² of the least. The scatter of few sizes
about the law says little, so the standard errors count as if they had been found from the scatter of four more:
s² = (4 + RSS)/(4 + K − 2), and t has as many degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from batchscope.errors import ArgumentError
from batchscope.fit.valley import valley_bottom
from batchscope.records import Interval
from batchscope.records.sweep import Edge, RateForm, RateLaw, RatePoint

Floats = NDArray[np.float64]

# A best rate is known no better than this, in log ε: rates a factor √2 apart, anywhere between two of them.
LEAST_ERROR = math.log(2) / 2 / math.sqrt(12)
# The standard errors of the best rates are worth this many sizes more.
PRIOR = 4
# Exponents looked at; how far beyond the sizes measured the half-way batch size is looked for; steps of either.
EXPONENTS = (-3.0, 4.0)
REACH = math.log(1000.0)
STEPS = 2001
# The rise has to predict left-out sizes this much better than the power to be believed.
RIVAL_GAIN = 0.85
LINEAR, ROOT = 1.0, 0.5


@dataclass(frozen=True)
class Valley:
    """What each learning rate costs at one batch size.

    Attributes:
        rates: Rates, ascending.
        costs: Mean log examples to the target, or minus the mean score; infinite where training diverged.
        bounds: Whether the cost is at least that, where training was stopped before it was known.
        margin: Differences that are told apart: twice their standard error, and above 0.
    """

    rates: tuple[float, ...]
    costs: tuple[float, ...]
    bounds: tuple[bool, ...]
    margin: float


def rate_point(batch_size: int, valley: Valley, *, edge: Edge | None = None) -> RatePoint:
    """The bottom of a valley, and how well it is known.

    The rate of the least cost, moved to the vertex of the parabola in log ε through it and its two neighbours where
    those have a cost; kept between the midpoints to either neighbour.

    Args:
        batch_size: Examples per update.
        valley: What each rate costs.
        edge: Where the best rate lies at an end of what was tried, as the search says; None: as the valley says.

    Returns:
        The point, without what the law predicts.

    Raises:
        ArgumentError: No rate has a cost.

    Examples:
        >>> costs = [(math.log(rate / 0.11)) ** 2 for rate in (0.05, 0.1, 0.2, 0.4)]
        >>> valley = Valley((0.05, 0.1, 0.2, 0.4), tuple(costs), (False,) * 4, 0.1)
        >>> point = rate_point(32, valley)
        >>> round(point.learning_rate, 6), point.low, point.high, point.edge
        (0.11, 0.05, 0.2, None)
    """
    known = [
        cost if math.isfinite(cost) and not bound else math.inf
        for cost, bound in zip(valley.costs, valley.bounds, strict=True)
    ]
    if not any(map(math.isfinite, known)):
        raise ArgumentError("at least one learning rate must have a cost", got=list(valley.costs))
    least = min(known)
    tied = [i for i, cost in enumerate(known) if cost <= least + 1e-9]
    best = tied[(len(tied) - 1) // 2]
    clearly = least + valley.margin
    worse = [i for i, cost in enumerate(valley.costs) if cost > clearly]
    low = max((i for i in worse if i < best), default=0)
    high = min((i for i in worse if i > best), default=len(known) - 1)
    if edge is None and best in (0, len(known) - 1):
        edge = "highest" if best else "lowest"
    rate = valley.rates[best]
    if edge is None and len(tied) == 1:
        around = slice(best - 1, best + 2)
        rate, _ = valley_bottom(valley.rates[around], known[around])
    return RatePoint(batch_size, rate, valley.rates[low], valley.rates[high], edge, math.nan)


@dataclass(frozen=True)
class _Points:
    """Log batch sizes and log rates with their standard errors; −1 and 1 where a rate is a lower or an upper bound."""

    x: Floats
    y: Floats
    error: Floats
    bound: NDArray[np.int_]

    def without(self, i: int) -> _Points:
        kept = np.arange(len(self.x)) != i
        return _Points(self.x[kept], self.y[kept], self.error[kept], self.bound[kept])

    @property
    def known(self) -> int:
        return int((self.bound == 0).sum())


@dataclass(frozen=True)
class _Form:
    """One of the two laws: f of log batch sizes for each θ, and the θ to look at."""

    shape: Callable[[Floats, Floats], Floats]
    grid: Callable[[Floats], Floats]


_FORMS: dict[RateForm, _Form] = {
    "power": _Form(lambda x, theta: theta[:, None] * x, lambda x: np.linspace(*EXPONENTS, STEPS)),
    "saturating": _Form(
        lambda x, theta: -np.logaddexp(0.0, theta[:, None] - x),
        lambda x: np.linspace(x.min() - REACH, x.max() + REACH, STEPS),
    ),
}


@dataclass(frozen=True)
class _Fit:
    """The best θ and its a, with the profile over all θ."""

    theta: float
    level: float
    grid: Floats
    levels: Floats
    squares: Floats

    def predict(self, form: RateForm, x: Floats) -> Floats:
        return np.asarray(self.level + _FORMS[form].shape(x, np.array([self.theta]))[0])


def fit_rate_law(points: Sequence[RatePoint], *, level: float = 0.95) -> RateLaw:
    """Fit the best learning rate's law to the best rates of several batch sizes.

    Args:
        points: One for each batch size; what they predict is not looked at.
        level: Level of the intervals.

    Returns:
        The law. With fewer than two sizes whose best rate is bracketed, or where the exponent's interval is open, the
        exponent is unresolved and the verdict says so.

    Raises:
        ArgumentError: No points, or batch sizes or rates that make no sense.

    Examples:
        >>> sizes = (8, 32, 128, 512)
        >>> law = fit_rate_law([RatePoint(b, 0.01 * b**0.5, 0.008 * b**0.5, 0.012 * b**0.5, None, 0.0) for b in sizes])
        >>> round(law.exponent.value, 3), round(law.coefficient, 4)
        (0.5, 0.01)
        >>> law.verdict
        'The best rate grows as B^0.50 (0.44 to 0.56): the square-root rule.'
    """
    ordered = sorted(points, key=lambda point: point.batch_size)
    sizes = [point.batch_size for point in ordered]
    if not ordered or len(set(sizes)) < len(sizes) or sizes[0] < 1:
        raise ArgumentError("there must be one best rate for each batch size of at least 1", got=sizes)
    if not all(0 < p.low <= p.learning_rate <= p.high < math.inf for p in ordered):
        raise ArgumentError("learning rates must be above 0 and lie between their bounds", got=ordered)
    table = _Points(
        x=np.log(sizes),
        y=np.log([point.learning_rate for point in ordered]),
        # The bracket is two standard errors to either side.
        error=np.array([max(LEAST_ERROR, math.log(point.high / point.low) / 4) for point in ordered]),
        bound=np.array([{"highest": -1, "lowest": 1, None: 0}[point.edge] for point in ordered]),
    )
    fits = {form: _fit(table, form) for form in _FORMS}
    errors = {form: _left_out(table, form) for form in _FORMS}
    exponent = _theta_interval(table, fits["power"], level)
    half = _theta_interval(table, fits["saturating"], level)
    power_error, rise_error = errors["power"], errors["saturating"]
    bends = half.resolved and power_error is not None and rise_error is not None
    form: RateForm = "power"
    if bends and power_error is not None and rise_error is not None and rise_error < RIVAL_GAIN * power_error:
        form = "saturating"
    fit, unresolved = fits[form], Interval.unresolved(level)
    return RateLaw(
        form=form,
        exponent=exponent,
        largest_rate=_level_interval(table, fit, level) if form == "saturating" else unresolved,
        half_batch_size=_exponential(half) if form == "saturating" else unresolved,
        coefficient=math.exp(fits["power"].level),
        leave_one_out_error=errors[form],
        points=tuple(
            replace(point, predicted=float(predicted))
            for point, predicted in zip(ordered, np.exp(fit.predict(form, table.x)), strict=True)
        ),
        verdict=_verdict(table, exponent, _exponential(half) if form == "saturating" else None),
    )


def _profile(points: _Points, shape: Floats) -> tuple[Floats, Floats]:
    """The best a and the sum of squares for each row of ``shape``; which bounds count is found by turns."""
    gaps, weights = points.y - shape, 1 / points.error**2
    counts = np.broadcast_to(points.bound == 0, gaps.shape)
    if not points.known:
        counts = np.ones_like(counts)
    for _ in range(len(points.x) + 1):
        level = (gaps * weights * counts).sum(1) / (weights * counts).sum(1)
        # Of a lower bound the law is on the wrong side where the gap is above, of an upper one where it is below.
        wrong = np.sign(gaps - level[:, None]) == -points.bound
        new = (points.bound == 0) | wrong
        if not points.known:
            new = counts
        if (new == counts).all():
            break
        counts = new
    level = (gaps * weights * counts).sum(1) / (weights * counts).sum(1)
    return level, (weights * counts * (gaps - level[:, None]) ** 2).sum(1)


def _fit(points: _Points, form: RateForm) -> _Fit:
    grid = _FORMS[form].grid(points.x)
    levels, squares = _profile(points, _FORMS[form].shape(points.x, grid))
    best = int(np.argmin(squares))
    fine = grid[best] + (grid[1] - grid[0]) * np.linspace(-1, 1, 201)
    fine_levels, fine_squares = _profile(points, _FORMS[form].shape(points.x, fine))
    i = int(np.argmin(fine_squares))
    return _Fit(float(fine[i]), float(fine_levels[i]), grid, levels, squares)


def _left_out(points: _Points, form: RateForm) -> float | None:
    """Root mean square error of log ε at known sizes, each predicted from the others."""
    if points.known < 4:
        return None
    errors = [
        float(_fit(points.without(i), form).predict(form, points.x[i : i + 1])[0] - points.y[i])
        for i in range(len(points.x))
        if points.bound[i] == 0
    ]
    return math.sqrt(math.fsum(error**2 for error in errors) / len(errors))


def _inside(points: _Points, fit: _Fit, level: float) -> tuple[NDArray[np.bool_], float]:
    """Which θ of the grid the data allow, and the sum of squares up to which they do."""
    least, freedom = float(fit.squares.min()), max(0, points.known - 2) + PRIOR
    allowed = least + float(stdtrit(freedom, (1 + level) / 2)) ** 2 * (least + PRIOR) / freedom
    inside = fit.squares <= allowed
    return inside, allowed


def _theta_interval(points: _Points, fit: _Fit, level: float) -> Interval:
    """The interval of θ; unresolved, with the end that there is, where the data leave it open."""
    inside, _ = _inside(points, fit, level)
    low, high = float(fit.grid[inside][0]), float(fit.grid[inside][-1])
    open_low, open_high = bool(inside[0]), bool(inside[-1])
    if open_low or open_high or points.known < 2:
        low, high = -math.inf if open_low else low, math.inf if open_high else high
        return Interval.unresolved(level, low=low, high=high)
    return Interval(fit.theta, min(low, fit.theta), max(high, fit.theta), level)


def _level_interval(points: _Points, fit: _Fit, level: float) -> Interval:
    """The interval of e^a, over all θ that the data allow."""
    inside, allowed = _inside(points, fit, level)
    free = np.sqrt(np.maximum(0.0, allowed - fit.squares[inside]) / (1 / points.error[points.bound == 0] ** 2).sum())
    low, high = (fit.levels[inside] - free).min(), (fit.levels[inside] + free).max()
    return Interval(math.exp(fit.level), math.exp(min(low, fit.level)), math.exp(max(high, fit.level)), level)


def _exponential(interval: Interval) -> Interval:
    value, low, high = (None if end is None else math.exp(end) for end in (interval.value, interval.low, interval.high))
    return replace(interval, value=value, low=low, high=high)


def _verdict(points: _Points, exponent: Interval, half: Interval | None) -> str:
    edges = len(points.x) - points.known
    off = ""
    if edges:
        off = f" At {edges} of {len(points.x)} batch sizes the best rate is only known to lie at an end of those tried."
    if points.known < 2 or exponent.value is None or exponent.low is None or exponent.high is None:
        return f"The best rates of {points.known} batch sizes do not determine how the rate grows.{off}"
    text = f"B^{exponent.value:.2f} ({exponent.low:.2f} to {exponent.high:.2f})"
    if half is not None and half.value is not None:
        return (
            f"The best rate grows in proportion to small batch sizes and levels off, half-way at {half.value:,.0f} "
            f"({half.low:,.0f} to {half.high:,.0f}); overall as {text}.{off}"
        )
    holds = {rule: exponent.low <= rule <= exponent.high for rule in (0.0, ROOT, LINEAR)}
    if holds[ROOT] and holds[LINEAR]:
        rule = "the sizes and rates tried do not tell the square-root rule from the linear one"
    elif holds[LINEAR]:
        rule = "the linear rule"
    elif holds[ROOT]:
        rule = "the square-root rule" if not holds[0.0] else "the square-root rule, or none at all"
    elif holds[0.0]:
        rule = "it hardly depends on the batch size"
    elif exponent.low > LINEAR:
        rule = "faster than the linear rule"
    elif exponent.low > ROOT:
        rule = "between the square-root rule and the linear one"
    elif exponent.low > 0:
        rule = "slower than the square-root rule"
    else:
        rule = "it falls"
    return f"The best rate grows as {text}: {rule}.{off}"

"""The trade-off law: examples to a target against batch size, fitted in the logarithm with honest intervals.

E(B) = E_min·(1 + B/B_crit), S(B) = E(B)/B = S_min·(1 + B_crit/B), B_crit = E_min/S_min (McCandlish et al. 2018, arXiv
1812.06162, equation 2.11). Errors of E are relative, so log E is fitted. The unit is a batch size, not a run: what runs
of one size have in common, a learning rate that suits it better or worse, is no smaller with more seeds. A size counts
with the mean of its runs' log E, and the scatter of sizes about the law says how far any of them can be trusted.

A run that missed the target is *censored*: it needs at least what it spent. Within a size its log E is the mean that a
normal law has beyond that point (Tobin 1958), with the runs' own spread; a size whose runs all missed pulls the law up
where it lies below that bound, and not at all where it lies above.

Intervals are those of the profile: all values of B_crit for which the best E_min leaves a sum of squares within
F(1, K − 2)·RSS/(K − 2) of the least, K sizes. They are open where the sizes lie on one branch of the law, which no
bootstrap over seeds would show. Simulated cover: tests/fit/test_tradeoff.py and benchmarks/tradeoff.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri, log_ndtr

from batchscope.errors import ArgumentError
from batchscope.records import Interval
from batchscope.records.tradeoff import Form, Regime, TradeoffLaw, TradeoffPoint

Floats = NDArray[np.float64]

# B_crit is looked for as far as this factor beyond the sizes measured; past it one branch is all there is.
REACH = 1000.0
# Steps of the search in each e-fold of B_crit, and of an interval's ends.
STEPS, FINE_STEPS = 12, 60
EXPONENTS = np.geomspace(0.4, 2.5, 24)
# The general exponent has to predict left-out sizes this much better to be believed.
RIVAL_GAIN = 0.7
LEAST_SIZES = 3
DETERMINED = 10.0
# Left-out sizes predicted worse than this, on average, do not follow the law.
ASTRAY = 0.25
# Perfect scaling and flat: this factor below and above B_crit.
REGIME = 3.0


@dataclass(frozen=True)
class _Sizes:
    """Log batch sizes and log examples; where ``open`` the latter is only a lower bound."""

    x: Floats
    y: Floats
    open: NDArray[np.bool_]

    def without(self, i: int) -> _Sizes:
        kept = np.arange(len(self.x)) != i
        return _Sizes(self.x[kept], self.y[kept], self.open[kept])

    @property
    def known(self) -> int:
        return int((~self.open).sum())


@dataclass(frozen=True)
class _Fit:
    log_examples: float
    log_critical: float
    exponent: float
    squares: float

    def predict(self, x: Floats | float) -> Floats:
        return np.asarray(self.log_examples + np.logaddexp(0.0, self.exponent * (x - self.log_critical)))


def fit_tradeoff(
    batch_sizes: Sequence[int],
    examples_to_target: Sequence[float | Sequence[float]],
    *,
    spent: Sequence[float | Sequence[float]] | float | None = None,
    evaluated_every: float | Sequence[float] = 0.0,
    level: float = 0.95,
) -> TradeoffLaw:
    """Fit the trade-off law to a table of batch sizes and examples to a target.

    Args:
        batch_sizes: K different sizes.
        examples_to_target: For each, one number or one per run; infinity for a run that missed the target.
        spent: Examples that the runs were given: one number for all, or in the shape of ``examples_to_target``. It is
            what a missed run needs at least; None: at least the largest number at its own size, and a size whose runs
            all missed says nothing.
        evaluated_every: Examples between two evaluations, where runs were seen to have reached the target at one of
            them: one number, or one for each size. They did so somewhere since the one before, and are counted
            half-way. 0: the examples are exact.
        level: Level of the intervals.

    Returns:
        The law. With fewer than three sizes that reached the target, or all of them on one branch, B_crit is
        unresolved and the verdict says so.

    Raises:
        ArgumentError: Sizes and examples that do not belong together or make no sense.

    Examples:
        >>> sizes = [8, 32, 128, 512]
        >>> law = fit_tradeoff(sizes, [1000 * (1 + b / 100) for b in sizes])
        >>> round(law.critical_batch_size.value), round(law.minimum_examples.value)
        (100, 1000)
    """
    runs, bounds = _checked(batch_sizes, examples_to_target, spent)
    apart = np.broadcast_to(np.asarray(evaluated_every, dtype=np.float64), len(runs))
    if not all(0 <= every <= run.min() for every, run in zip(apart, runs, strict=True)):
        raise ArgumentError(
            "evaluated_every must be at least 0 and no more than the least examples to target", got=evaluated_every
        )
    runs = [run - every / 2 for every, run in zip(apart, runs, strict=True)]
    order = np.argsort(batch_sizes)
    ascending = [int(batch_sizes[i]) for i in order]
    located = _located([runs[i] for i in order], [bounds[i] for i in order])
    used = [i for i, (value, _) in enumerate(located) if value is not None]
    sizes = _Sizes(
        np.log([ascending[i] for i in used]),
        np.array([located[i][0] for i in used], dtype=np.float64),
        np.array([located[i][1] for i in used], dtype=bool),
    )
    points = [_point(ascending[k], runs[i], located[k]) for k, i in enumerate(order)]
    if sizes.known < 2:
        return _nothing(points, level)
    hyperbola, general = _fit(sizes, np.ones(1)), _fit(sizes, EXPONENTS)
    errors = {form: _left_out(sizes, form) for form in _FORMS}
    form: Form = "hyperbola"
    own, rival = errors["hyperbola"], errors["general exponent"]
    if own is not None and rival is not None and rival < RIVAL_GAIN * own:
        form, own, rival = "general exponent", rival, own
    fit = hyperbola if form == "hyperbola" else general
    critical, least, updates = _intervals(sizes, fit, form, level)
    exponent = _exponent(sizes, general, level)
    relative_error = math.sqrt(fit.squares / sizes.known)
    determined = (
        critical.resolved
        and critical.low is not None
        and critical.high is not None
        and critical.high <= DETERMINED * critical.low
    )
    follows = own is None or own <= ASTRAY
    return TradeoffLaw(
        form=form,
        critical_batch_size=critical,
        minimum_examples=least,
        minimum_updates=updates,
        exponent=exponent,
        relative_error=relative_error,
        leave_one_out_error=own,
        rival_leave_one_out_error=rival,
        points=tuple(_predicted(point, sizes, fit, form, critical) for point in points),
        verdict=_verdict(sizes, critical, own, determined=determined, follows=follows),
        determined=determined,
        follows=follows,
    )


_FORMS: dict[Form, Floats] = {"hyperbola": np.ones(1), "general exponent": EXPONENTS}
PARAMETERS: dict[Form, int] = {"hyperbola": 2, "general exponent": 3}


def _checked(
    batch_sizes: Sequence[int],
    examples: Sequence[float | Sequence[float]],
    spent: Sequence[float | Sequence[float]] | float | None,
) -> tuple[list[Floats], list[Floats]]:
    """Examples of every run by size, and what each was given."""
    if len(batch_sizes) != len(examples) or not len(batch_sizes):
        raise ArgumentError(
            "there must be examples to target for every batch size",
            got=f"{len(batch_sizes)} sizes, {len(examples)} entries",
        )
    if len(set(batch_sizes)) < len(batch_sizes):
        raise ArgumentError(
            "batch sizes must differ", got=list(batch_sizes), mend="give the runs of one size as a list"
        )
    if not all(isinstance(b, (int, np.integer)) and not isinstance(b, bool) and b >= 1 for b in batch_sizes):
        raise ArgumentError("batch sizes must be whole numbers of at least 1", got=list(batch_sizes))
    runs = [np.atleast_1d(np.asarray(e, dtype=np.float64)) for e in examples]
    if not all(r.ndim == 1 and len(r) and (r > 0).all() for r in runs):  # nan is not above 0
        raise ArgumentError(
            "examples to target must be above 0, or infinite for a run that missed it", got=[list(r) for r in runs][:4]
        )
    if spent is None:
        return runs, [np.full(len(r), np.nan) for r in runs]
    given = [spent] * len(runs) if isinstance(spent, (int, float)) else list(spent)
    bounds = [np.broadcast_to(np.asarray(g, dtype=np.float64), r.shape) for g, r in zip(given, runs, strict=True)]
    if not all((b > 0).all() and np.isfinite(b).all() for b in bounds):
        raise ArgumentError("spent must be finite numbers above 0", got=spent)
    return runs, bounds


def _located(runs: list[Floats], bounds: list[Floats]) -> list[tuple[float | None, bool]]:
    """The mean log E of each size, and whether it is only a lower bound."""
    deviations = [np.log(r[np.isfinite(r)]) for r in runs]
    freedom = sum(max(0, len(d) - 1) for d in deviations)
    spread = math.sqrt(sum(float(((d - d.mean()) ** 2).sum()) for d in deviations if len(d) > 1) / max(1, freedom))
    found: list[tuple[float | None, bool]] = []
    for run, bound, logs in zip(runs, bounds, deviations, strict=True):
        missed = ~np.isfinite(run)
        if not missed.any():
            found.append((float(logs.mean()), False))
            continue
        least = np.where(np.isnan(bound[missed]), np.log(run[~missed].max()) if len(logs) else np.nan, 0.0)
        least = np.where(np.isnan(bound[missed]), least, np.log(np.nan_to_num(bound[missed], nan=1.0)))
        if not len(logs):
            found.append((None if np.isnan(least).any() else float(least.mean()), True))
            continue
        found.append((_tobit_mean(logs, least, max(spread, 0.02)), False))
    return found


def _tobit_mean(logs: Floats, least: Floats, spread: float) -> float:
    """The mean of a normal law of known spread, of which some draws are known to lie above a bound."""
    low = float(min(logs.min(), least.min()))
    candidates = np.linspace(low, float(max(logs.max(), least.max())) + 4 * spread, 2001)
    likelihood = -0.5 * (((logs - candidates[:, None]) / spread) ** 2).sum(1)
    likelihood += log_ndtr((candidates[:, None] - least) / spread).sum(1)
    return float(candidates[int(np.argmax(likelihood))])


def _grid(sizes: _Sizes, steps: int) -> Floats:
    low, high = sizes.x.min() - math.log(REACH), sizes.x.max() + math.log(REACH)
    return np.linspace(low, high, round((high - low) * steps))


def _profile(sizes: _Sizes, shape: Floats) -> tuple[Floats, Floats]:
    """The best log E_min and the sum of squares for each row of ``shape``, log E/E_min at the sizes.

    A size that is only a bound counts where the law lies below it: the set of those is found by turns.
    """
    gaps = sizes.y - shape
    counts = np.broadcast_to(~sizes.open, gaps.shape)
    for _ in range(len(sizes.x) + 1):
        level = (gaps * counts).sum(1) / counts.sum(1)
        below = ~sizes.open | (gaps > level[:, None])
        if (below == counts).all():
            break
        counts = below
    level = (gaps * counts).sum(1) / counts.sum(1)
    squares = (((gaps - level[:, None]) * counts) ** 2).sum(1)
    return level, squares


def _shape(sizes: _Sizes, log_critical: Floats, exponent: float) -> Floats:
    return np.asarray(np.logaddexp(0.0, exponent * (sizes.x - log_critical[:, None])))


def _fit(sizes: _Sizes, exponents: Floats) -> _Fit:
    grid = _grid(sizes, STEPS)
    best: _Fit | None = None
    for exponent in exponents:
        _, squares = _profile(sizes, _shape(sizes, grid, float(exponent)))
        i = int(np.argmin(squares))
        # Between its neighbours, ever finer: the sum of squares is smooth there.
        where, step = grid[i], grid[1] - grid[0]
        for _ in range(4):
            near = where + step * np.linspace(-1, 1, 11)
            fine_level, fine = _profile(sizes, _shape(sizes, near, float(exponent)))
            i = int(np.argmin(fine))
            where, step = near[i], step / 5
        if best is None or fine[i] < best.squares:
            best = _Fit(float(fine_level[i]), float(where), float(exponent), float(fine[i]))
    if best is None:
        raise ValueError("no exponents")
    return best


def _left_out(sizes: _Sizes, form: Form) -> float | None:
    """Root mean square error of log E at known sizes, each predicted from the others."""
    if sizes.known - 1 <= PARAMETERS[form]:
        return None
    errors = [
        float(_fit(sizes.without(i), _FORMS[form]).predict(sizes.x[i]) - sizes.y[i])
        for i in range(len(sizes.x))
        if not sizes.open[i]
    ]
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _intervals(sizes: _Sizes, fit: _Fit, form: Form, level: float) -> tuple[Interval, Interval, Interval]:
    """Of B_crit, E_min and S_min."""
    freedom = sizes.known - PARAMETERS[form]
    unresolved = Interval.unresolved(level)
    if freedom < 1:
        return unresolved, unresolved, unresolved
    grid = _grid(sizes, FINE_STEPS)
    levels, squares = _profile(sizes, _shape(sizes, grid, fit.exponent))
    # Rounding must not empty the set where the law fits exactly.
    variance = max(fit.squares / freedom, 1e-16)
    allowed = fit.squares + float(fdtri(1, freedom, level)) * variance
    inside = squares <= allowed
    inside[int(np.argmin(squares))] = True
    critical = _ends(grid[inside], grid, fit.log_critical, level)
    # The same region seen along E_min and S_min: at each B_crit, E_min may move by what is left of the allowance.
    free = np.sqrt(np.maximum(0.0, allowed - squares[inside]) / sizes.known)
    low, high = levels[inside] - free, levels[inside] + free
    open_low, open_high = bool(inside[0]), bool(inside[-1])
    examples = _bounded(fit.log_examples, low.min(), high.max(), level, open_low=open_low, open_high=False)
    per_update = (low - grid[inside]).min(), (high - grid[inside]).max()
    updates = _bounded(fit.log_examples - fit.log_critical, *per_update, level, open_low=open_high, open_high=False)
    if form != "hyperbola":
        updates = unresolved
    return critical, examples, updates


def _ends(inside: Floats, grid: Floats, value: float, level: float) -> Interval:
    open_low, open_high = inside[0] == grid[0], inside[-1] == grid[-1]
    return _bounded(value, float(inside[0]), float(inside[-1]), level, open_low=open_low, open_high=open_high)


def _bounded(value: float, low: float, high: float, level: float, *, open_low: bool, open_high: bool) -> Interval:
    """An interval of e^value; unresolved, with the end that there is, where one of them is open."""
    if open_low or open_high:
        return Interval.unresolved(
            level, low=0.0 if open_low else math.exp(low), high=math.inf if open_high else math.exp(high)
        )
    return Interval(math.exp(value), math.exp(min(low, value)), math.exp(max(high, value)), level)


def _exponent(sizes: _Sizes, general: _Fit, level: float) -> Interval:
    freedom = sizes.known - 3
    if freedom < 1:
        return Interval.unresolved(level)
    squares = np.array([_fit(sizes, np.array([p])).squares for p in EXPONENTS])
    variance = max(general.squares / freedom, 1e-16)
    inside = EXPONENTS[squares <= general.squares + float(fdtri(1, freedom, level)) * variance]
    if inside[0] == EXPONENTS[0] or inside[-1] == EXPONENTS[-1]:
        return Interval.unresolved(level, low=float(inside[0]), high=float(inside[-1]))
    return Interval(general.exponent, float(inside[0]), float(inside[-1]), level)


def _regime(batch_size: int, critical: Interval) -> Regime | None:
    if critical.value is None:
        return None
    if batch_size < critical.value / REGIME:
        return "perfect scaling"
    return "flat" if batch_size > critical.value * REGIME else "diminishing returns"


def _point(size: int, run: Floats, located: tuple[float | None, bool]) -> TradeoffPoint:
    """What was measured at a size, without what the law says of it."""
    value, bound = located
    return TradeoffPoint(
        batch_size=size,
        runs=len(run),
        missed=int((~np.isfinite(run)).sum()),
        examples=None if value is None or bound else math.exp(value),
        at_least=math.exp(value) if value is not None and bound else None,
        predicted=math.nan,
        left_out=None,
        regime=None,
    )


def _predicted(point: TradeoffPoint, sizes: _Sizes, fit: _Fit, form: Form, critical: Interval) -> TradeoffPoint:
    """The same with what the law says, fitted with this size and without it."""
    x, left_out = math.log(point.batch_size), None
    place = np.flatnonzero(np.isclose(sizes.x, x) & ~sizes.open)
    if len(place) and sizes.known - 1 > PARAMETERS[form]:
        left_out = math.exp(float(_fit(sizes.without(int(place[0])), _FORMS[form]).predict(x)))
    regime = _regime(point.batch_size, critical)
    return replace(point, predicted=math.exp(float(fit.predict(x))), left_out=left_out, regime=regime)


def _nothing(points: list[TradeoffPoint], level: float) -> TradeoffLaw:
    unknown = Interval.unresolved(level)
    reached = sum(point.examples is not None for point in points)
    return TradeoffLaw(
        form="hyperbola",
        critical_batch_size=unknown,
        minimum_examples=unknown,
        minimum_updates=unknown,
        exponent=unknown,
        relative_error=math.nan,
        leave_one_out_error=None,
        rival_leave_one_out_error=None,
        points=tuple(points),
        verdict=f"{reached} of {len(points)} batch sizes reached the target: too few for a law.",
        determined=False,
        follows=False,
    )


def _verdict(sizes: _Sizes, critical: Interval, left_out: float | None, *, determined: bool, follows: bool) -> str:
    first, last = round(math.exp(sizes.x.min())), round(math.exp(sizes.x.max()))
    off = "" if left_out is None else f" Sizes left out of the fit are predicted to within {left_out:.0%}."
    if sizes.known < LEAST_SIZES:
        return f"Only {sizes.known} batch sizes reached the target: two numbers cannot be checked by as few."
    if not follows:
        return (
            f"The data do not follow the law: sizes left out of the fit are missed by {left_out or 0:.0%} on average. "
            f"A learning rate that was not found anew at every size, or a target near the noise floor, does that."
        )
    if not critical.resolved:
        if critical.low and critical.low > first:
            return (
                f"All sizes lie on the branch of perfect scaling: B_crit is above {critical.low:,.0f}, "
                f"and the largest size is {last:,}.{off}"
            )
        if not critical.low and critical.high is not None and critical.high < last:
            return (
                f"All sizes lie beyond the critical one: B_crit is below {critical.high:,.0f}, "
                f"and the least size is {first:,}.{off}"
            )
        return f"The sizes measured, {first:,} to {last:,}, do not determine B_crit.{off}"
    text = f"B_crit is {critical.value:,.0f} ({critical.low:,.0f} to {critical.high:,.0f})."
    if not determined:
        text += f" That is to within more than a factor of {DETERMINED:.0f}: more sizes around it would tell."
    return text + off

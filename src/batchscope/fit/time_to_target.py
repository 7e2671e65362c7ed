"""Seconds to a target against batch size: examples by the trade-off law, times what an example takes.

T(B) = S(B)·τ(B) = E(B)/B·τ(B). With τ = c₀ + c₁·B it is least at B* = √(c₀/c₁·B_crit), between the throughput knee and
the critical batch size, and flat there. But real step times bend, so that τ is taken as measured, a smooth monotone
curve in log τ against log B between the sizes (Fritsch and Butland 1984), and nothing is said beyond them.

Uncertainty is drawn: pairs of B_crit and E_min from what the table leaves possible (with flat priors on their logs and
on that of the unknown scatter, the density of log B_crit is RSS^(−(K−1)/2), and log E_min at a B_crit is Student's t
with K − 1 degrees of freedom), and step times from their intervals.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from batchscope.errors import ArgumentError
from batchscope.fit.tradeoff import LEAST_SIZES, REACH
from batchscope.fit.tradeoff_band import log_table, profile, tradeoff_band
from batchscope.records import Interval
from batchscope.records.step_time import StepTimePoint, StepTimes
from batchscope.records.sweep import TimePoint, TimeToTarget
from batchscope.records.tradeoff import TradeoffLaw

Floats = NDArray[np.float64]

DRAWS = 4000
# Steps in each e-fold of B_crit, about the interval that it has, and in each e-fold of batch sizes.
CRITICAL_STEPS, FINE_STEPS, SIZE_STEPS = 20, 300, 60
TOLERANCE = 1.1


def time_to_target(law: TradeoffLaw, step_times: StepTimes, *, seed: int = 0) -> TimeToTarget:
    """Seconds to the target at the batch sizes measured, and the batch size where they are least.

    Args:
        law: Examples to the target against batch size. Where the data do not follow it, the measured examples are
            taken, without intervals.
        step_times: Time of an update against batch size.
        seed: Of the draws.

    Returns:
        The times. The optimum lies between the least and the largest size that both were measured at; where it may lie
        beyond, its interval is open at that end. It is unresolved where fewer than three sizes reached the target.

    Raises:
        ArgumentError: The step times and the law have no batch sizes in common.
    """
    sizes = [point.batch_size for point in law.points]
    timed = [point for point in step_times.points if min(sizes) <= point.batch_size <= max(sizes)]
    known = sum(point.examples is not None for point in law.points)
    trusted = known >= LEAST_SIZES and law.follows
    if not trusted:
        timed = [point for point in timed if point.batch_size in sizes]
    if not timed:
        raise ArgumentError(
            "step times must be measured at batch sizes of the law",
            got=f"{[point.batch_size for point in step_times.points]} against {sizes}",
        )
    level, generator = law.critical_batch_size.level, np.random.default_rng(seed)
    if not trusted:
        return _as_measured(law, timed, level, enough=known >= LEAST_SIZES)
    x = np.log([point.batch_size for point in timed])
    grid = np.union1d(np.linspace(x[0], x[-1], max(2, round((x[-1] - x[0]) * SIZE_STEPS))), x)
    seconds = np.log([point.step_seconds.value or math.nan for point in timed])
    drawn_seconds = seconds + _relative_errors(timed) * generator.standard_normal((DRAWS, len(timed)))
    drawn = drawn_examples(law, grid, generator) - grid + _interpolated(grid, x, drawn_seconds)
    curve = np.array([math.log(i.value or math.nan) for i in tradeoff_band(law, np.exp(grid).tolist())]) - grid
    curve += _interpolated(grid, x, seconds[None])[0]

    tail = (1 - level) / 2
    at_sizes = np.searchsorted(grid, x)
    ends = np.exp(np.quantile(drawn[:, at_sizes], [tail, 1 - tail], axis=0))
    bands = tradeoff_band(law, [point.batch_size for point in timed])
    points = _points(timed, bands, np.exp(curve[at_sizes]), ends, level)
    best, where = int(np.argmin(curve)), grid[np.argmin(drawn, axis=1)]
    low, high = np.quantile(where, [tail, 1 - tail])
    # At an end of the sizes measured, the optimum may as well lie beyond.
    best_batch_size = Interval(
        math.exp(grid[best]),
        0.0 if low <= grid[0] else math.exp(min(low, grid[best])),
        math.inf if high >= grid[-1] else math.exp(max(high, grid[best])),
        level,
    )
    least = np.quantile(drawn.min(axis=1), [tail, 1 - tail])
    best_seconds = _around(math.exp(curve[best]), math.exp(least[0]), math.exp(least[1]), level)
    near = np.exp(grid[curve <= curve[best] + math.log(TOLERANCE)])
    within = (math.ceil(near[0] - 1e-9), max(math.ceil(near[0] - 1e-9), math.floor(near[-1] + 1e-9)))
    verdict = _verdict(best_batch_size, best_seconds, within, at_end=_end(best, len(grid)))
    return TimeToTarget(points, best_batch_size, best_seconds, within, verdict)


def _as_measured(law: TradeoffLaw, timed: list[StepTimePoint], level: float, *, enough: bool) -> TimeToTarget:
    """Times from the measured examples alone, where there is no law to trust."""
    examples = {point.batch_size: point.examples for point in law.points}
    reached = [point for point in timed if examples[point.batch_size] is not None]
    needed = [Interval(examples[point.batch_size], None, None, level) for point in reached]
    seconds = np.array(
        [(e.value or 0.0) / p.batch_size * (p.step_seconds.value or 0.0) for e, p in zip(needed, reached, strict=True)]
    )
    points = _points(reached, tuple(needed), seconds, None, level)
    unresolved = Interval.unresolved(level)
    if not enough or not len(points):
        verdict = "Too few batch sizes reached the target to say which is the fastest."
        return TimeToTarget(points, unresolved, unresolved, None, verdict)
    best = int(np.argmin(seconds))
    return TimeToTarget(
        points,
        unresolved,
        Interval(float(seconds[best]), None, None, level),
        None,
        f"The examples do not follow the trade-off law. As measured, batch size {points[best].batch_size:,} is the "
        f"fastest of those tried: {time_in_words(float(seconds[best]))} to the target.",
    )


def _points(
    timed: list[StepTimePoint], examples: tuple[Interval, ...], seconds: Floats, ends: Floats | None, level: float
) -> tuple[TimePoint, ...]:
    spent = [interval.value or 0.0 for interval in examples]
    return tuple(
        TimePoint(
            batch_size=point.batch_size,
            update_seconds=point.step_seconds,
            examples=examples[i],
            seconds=Interval(float(seconds[i]), None, None, level)
            if ends is None
            else _around(float(seconds[i]), float(ends[0, i]), float(ends[1, i]), level),
            on_front=not any(
                spent[j] <= spent[i] and seconds[j] <= seconds[i] and (spent[j], seconds[j]) != (spent[i], seconds[i])
                for j in range(len(timed))
            ),
        )
        for i, point in enumerate(timed)
    )


def _relative_errors(timed: list[StepTimePoint]) -> Floats:
    """Standard errors of log τ, from the intervals of the medians."""
    errors = []
    for point in timed:
        interval = point.step_seconds
        known = interval.low is not None and interval.high is not None and interval.low > 0
        width = math.log(interval.high / interval.low) if known and interval.high and interval.low else 0.0
        errors.append(width / (2 * float(ndtri((1 + min(interval.level, 0.999)) / 2))))
    return np.array(errors)


def _interpolated(grid: Floats, x: Floats, rows: Floats) -> Floats:
    """Smooth curves through each row's values at the places ``x``, at those of the grid."""
    from scipy.interpolate import PchipInterpolator

    if len(x) == 1:
        return np.repeat(rows, len(grid), axis=1)
    return np.asarray(PchipInterpolator(x, rows, axis=1)(grid))


def drawn_examples(law: TradeoffLaw, grid: Floats, generator: np.random.Generator, *, draws: int = DRAWS) -> Floats:
    """Curves of log E along a grid that a law's table leaves possible.

    Args:
        law: A fitted law.
        grid: Log batch sizes.
        generator: Draws them.
        draws: How many.

    Returns:
        A row for each draw, a column for each batch size.
    """
    x, y, bounds = log_table(law)
    count = int((~bounds).sum())
    power = law.exponent.value if law.form == "general exponent" and law.exponent.value else 1.0
    low, high = x.min() - math.log(REACH), x.max() + math.log(REACH)
    critical = np.linspace(low, high, round((high - low) * CRITICAL_STEPS))
    found = law.critical_batch_size
    if found.resolved and found.low and found.high:  # where nearly all of the density is, however narrow
        ends = math.log(found.low), math.log(found.high)
        width = max(ends[1] - ends[0], 1e-6)
        critical = np.union1d(critical, np.linspace(ends[0] - width, ends[1] + width, FINE_STEPS))
    least, squares = profile(x, y, bounds, critical, power)
    squares = squares + 1e-14  # rounding must not empty the density where the law fits exactly
    cells = np.gradient(critical)
    weights = cells * np.exp(-(count - 1) / 2 * (np.log(squares) - np.log(squares.min())))
    chosen = generator.choice(len(critical), size=draws, p=weights / weights.sum())
    step = cells[chosen] * (generator.random(draws) - 0.5)
    aside = np.sqrt(squares[chosen] / (count - 1) / count) * generator.standard_t(count - 1, size=draws)
    curves = np.logaddexp(0.0, power * (grid - (critical[chosen] + step)[:, None]))
    return np.asarray((least[chosen] + aside)[:, None] + curves)


def _around(value: float, low: float, high: float, level: float) -> Interval:
    return Interval(value, min(value, low), max(value, high), level)


def _end(best: int, count: int) -> str:
    return "largest" if best == count - 1 else "least" if best == 0 else ""


def _verdict(best: Interval, seconds: Interval, within: tuple[int, int], *, at_end: str) -> str:
    value, low, high = best.value or 0.0, best.low or 0.0, best.high or math.inf
    least, usual, most = (time_in_words(end or 0.0) for end in (seconds.low, seconds.value, seconds.high))
    took = f"{usual} ({least} to {most})"
    near = f" From {within[0]:,} to {within[1]:,} it takes at most a tenth more."
    if at_end:
        beyond = "larger" if at_end == "largest" else "smaller"
        return (
            f"Of the batch sizes tried the {at_end}, {value:,.0f}, is the fastest to the target: {took}. "
            f"A {beyond} one may be faster still.{near}"
        )
    between = f"{low:,.0f} to {high:,.0f}"
    if math.isinf(high) or low == 0:
        between = f"{low:,.0f} or more" if low > 0 else f"{high:,.0f} or less" if math.isfinite(high) else "not sure"
    return f"A batch size of about {value:,.0f} ({between}) is the fastest to the target: {took}.{near}"


def time_in_words(seconds: float) -> str:
    """Seconds in words.

    Examples:
        >>> time_in_words(0.0123), time_in_words(4.5678), time_in_words(150.0), time_in_words(7500.0)
        ('12.3 ms', '4.57 s', '2.5 min', '2.1 h')
    """
    for factor, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"

"""What the trade-off law says in words, rows and columns."""

from __future__ import annotations

import math

from batchscope.fit.tradeoff import REGIME
from batchscope.records import Interval, TradeoffLaw, TradeoffPoint
from batchscope.report import formatting as f
from batchscope.report.sheets import Column, Line, Sheet

Facts = tuple[tuple[str, str], ...]


def points(law: TradeoffLaw) -> Sheet:
    """Examples and updates to the target at each batch size, beside the law."""
    missed = any(point.missed for point in law.points)
    predicted = any(f.known(point.predicted) for point in law.points)
    columns = [
        Column("batch", "size", align="left"),
        Column("examples", "to the target"),
        Column("updates", "to the target"),
        *((Column("law", "examples", minor=True), Column("residual", "relative")) if predicted else ()),
        *((Column("left out", "residual", minor=True),) if any(point.left_out for point in law.points) else ()),
        *((Column("regime", align="left"),) if any(point.regime for point in law.points) else ()),
        Column("runs", "" if not missed else "missed", minor=not missed),
    ]
    lines = tuple(Line(_cells(point, columns)) for point in law.points)
    form = "E(B) = E_min·(1 + B/B_crit)" if law.form == "hyperbola" else "E(B) = E_min·(1 + (B/B_crit)^p)"
    note = "Geometric means over runs."
    if missed:
        note += " A run that missed the target counts as one that needs more than it was given."
    if predicted:
        note += f" The law is {form}; a size left out is predicted from the others."
    return Sheet("Examples and updates to the target", tuple(columns), lines, note)


def _cells(point: TradeoffPoint, columns: list[Column]) -> tuple[str, ...]:
    if point.examples is not None:
        examples, updates = (f.number(value, 3) for value in (point.examples, point.examples / point.batch_size))
    elif point.at_least is not None:
        examples, updates = (f"> {f.number(value, 3)}" for value in (point.at_least, point.at_least / point.batch_size))
    else:
        examples = updates = "not reached"
    cells = {
        "batch": f.count(point.batch_size),
        "examples": examples,
        "updates": updates,
        "law": f.number(point.predicted, 3),
        "residual": f.off(point.examples, point.predicted),
        "left out": f.off(point.examples, point.left_out),
        "regime": point.regime or f.UNKNOWN,
        "runs": f"{point.missed} of {point.runs}" if point.missed else f.count(point.runs),
    }
    return tuple(cells[column.heading] for column in columns)


def facts(law: TradeoffLaw) -> Facts:
    """The law's numbers, and where its regimes end."""
    critical = law.critical_batch_size
    found = [
        ("critical, B_crit", f.sized(critical)),
        ("least examples, E_min", needs(law.minimum_examples)),
        ("least updates, S_min", needs(law.minimum_updates)),
        ("exponent p, beside it" if law.form == "hyperbola" else "exponent p", f.sized(law.exponent)),
        ("form", law.form),
        ("residuals, r.m.s.", _percent(law.relative_error)),
        ("error at sizes left out", _percent(law.leave_one_out_error)),
        ("of the other form", _percent(law.rival_leave_one_out_error)),
    ]
    if critical.value is not None:
        found[1:1] = [
            ("perfect scaling", f"below {f.size(critical.value / REGIME)}"),
            ("flat", f"above {f.size(critical.value * REGIME)}"),
        ]
    return tuple(found)


def regimes(law: TradeoffLaw) -> str:
    """Where more examples an update save updates, and where they do not; the verdict where that is not known."""
    critical = law.critical_batch_size.value
    if critical is None:
        return law.verdict
    return (
        f"There, a run needs twice the least examples and twice the least updates. Below {f.size(critical / REGIME)} "
        f"twice the batch size saves nearly half of the updates, above {f.size(critical * REGIME)} next to none."
    )


def needs(interval: Interval) -> str:
    """Examples or updates with their interval, three digits each.

    Examples:
        >>> needs(Interval(31234.0, 29876.0, 33456.0)), needs(Interval.unresolved(low=50000.0))
        ('31,200 (29,900 to 33,500)', 'more than 50,000')
        >>> needs(Interval(5.0, 4.0, float("inf"))), needs(Interval(5.0, None, None)), needs(Interval.unresolved())
        ('5 (4 or more)', '5', 'not resolved')
    """
    low, high = (end if f.known(end) and end > 0 else None for end in (interval.low, interval.high))
    if interval.value is None:
        if high is not None:
            return f"less than {f.number(high, 3)}" if low is None else f"{f.number(low, 3)} to {f.number(high, 3)}"
        return f.UNRESOLVED if low is None else f"more than {f.number(low, 3)}"
    value = f.number(interval.value, 3)
    if high is None:
        return value if low is None else f"{value} ({f.number(low, 3)} or more)"
    return f"{value} ({f.number(low or 0.0, 3)} to {f.number(high, 3)})"


def _percent(value: float | None) -> str:
    return f.UNKNOWN if value is None or math.isnan(value) else f"{f.number(100 * value, 2)}%"

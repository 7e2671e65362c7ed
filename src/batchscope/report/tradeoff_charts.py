"""What a target takes against batch size, in updates and in examples: measured, by the law, and its three regimes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from batchscope.fit.tradeoff import REGIME
from batchscope.fit.tradeoff_band import tradeoff_band
from batchscope.records import Interval, Sweep, TradeoffLaw
from batchscope.report import formatting as f
from batchscope.report.marks import (
    AMBER,
    BLUE,
    HEIGHT,
    LABEL_HEIGHT,
    RED,
    TEAL,
    Point,
    Spec,
    Upright,
    altair,
    colours,
    cut,
    domain_around,
    done,
    geometric,
    size_axis,
    uprights,
    value_axis,
    with_headroom,
)

MEASURED = "measured"
REGIMES = {TEAL: "perfect scaling", AMBER: "diminishing returns", RED: "flat"}

_NARROWEST = 0.13  # of the axis: where a regime's name still has room
_FAR = 3.0  # an end of an interval so many times away from every value is beyond the axis


@dataclass(frozen=True)
class Needed:
    """What a batch size takes to reach the target.

    Attributes:
        batch_size: Examples per update.
        examples: Unresolved, with a lower end, where no run reached it.
        runs: Runs that count.
        missed: Those that missed it.
    """

    batch_size: int
    examples: Interval
    runs: int
    missed: int


def needed(record: Sweep | TradeoffLaw) -> list[Needed]:
    """What was measured, by batch size: with the runs' interval from a sweep, without from a table."""
    if isinstance(record, Sweep):
        return [
            Needed(line.batch_size, line.examples_to_target, line.runs, line.runs - line.reached)
            for line in record.best
            if line.runs
        ]
    return [
        Needed(
            point.batch_size,
            Interval.unresolved(low=point.at_least)
            if point.examples is None
            else Interval(point.examples, point.examples, point.examples),
            point.runs,
            point.missed,
        )
        for point in record.points
    ]


def law_of(record: Sweep | TradeoffLaw) -> TradeoffLaw | None:
    """The law, where there is one: a sweep has none without a target, or where nothing reached it."""
    return record.law if isinstance(record, Sweep) else record


def examples(record: Sweep | TradeoffLaw) -> Spec | None:
    """Examples to the target against batch size."""
    return _chart(record, per_update=False)


def updates(record: Sweep | TradeoffLaw) -> Spec | None:
    """Updates to the target against batch size."""
    return _chart(record, per_update=True)


def _chart(record: Sweep | TradeoffLaw, *, per_update: bool) -> Spec | None:
    law, found = law_of(record), needed(record)
    centres = [end for n in found if (end := n.examples.value or n.examples.low)]
    if law is None or not any(n.examples.value for n in found):
        return None
    alt = altair()
    unit = "updates" if per_update else "examples"

    def seen(examples: float, size: float) -> float:
        return examples / size if per_update else examples

    sizes = [n.batch_size for n in found]
    across = domain_around(sizes, room=1.5)
    places = geometric(across)
    curve = [
        {"batch": size, **{key: seen(end, size) for key, end in _ends(interval).items()}}
        for size, interval in zip(places, tradeoff_band(law, places), strict=True)
        if interval.value is not None
    ]
    centres = [seen(n.examples.value or n.examples.low or 0.0, n.batch_size) for n in found]
    known = domain_around([*centres, *(point["value"] for point in curve)], room=1.0)
    ends = [
        seen(end, n.batch_size)
        for n in found
        for end in (n.examples.low, n.examples.high)
        if n.examples.value is not None and f.known(end)
    ]
    near = [end for end in ends if known[0] / _FAR <= end <= known[1] * _FAR]
    upward = with_headroom(
        domain_around([*known, *near], room=1.25), 4 if law.critical_batch_size.value else 1, log=True
    )
    data = [point for n in found if (point := _measured(n, upward, per_update=per_update))]
    names = {BLUE: MEASURED, **REGIMES}
    colour = colours(alt, names)
    along = size_axis(alt, across, "batch size", sizes)
    up = value_axis(alt, upward, f"{unit} to the target", log=True)
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("batch:Q", **along), color=colour)
    line = alt.Chart(alt.Data(values=curve)).encode(x=alt.X("batch:Q", **along))
    critical = law.critical_batch_size
    marks = [Upright(critical.value, f"B_crit {f.sized(critical)}", dashed=True)]
    if critical.value is None:
        bound = critical.low or (critical.high if f.known(critical.high) else None)
        marks = [Upright(bound, f"B_crit {f.between(critical)}", dashed=True)]
    resolved = base.transform_filter("isValid(datum.value)")
    tips = [
        alt.Tooltip("batch:Q", title="batch size", format=","),
        alt.Tooltip("text:N", title=unit),
        alt.Tooltip("runs:N"),
    ]
    regimes, names_of_regimes = _regimes(alt, law, along, colour)
    chart = alt.layer(
        *regimes,
        *_critical(alt, critical, along),
        line.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.3, clip=True)
        .encode(y=alt.Y("low:Q", **up), y2="high:Q"),
        line.mark_line(strokeWidth=1.75, clip=True).encode(y=alt.Y("value:Q", **up)),
        resolved.mark_rule(strokeWidth=2.5, strokeCap="round", opacity=0.8).encode(y=alt.Y("low:Q", **up), y2="high:Q"),
        *(
            base.transform_filter(f"datum.{flag}")
            .mark_point(shape=f"triangle-{side}", size=70, filled=True, opacity=1)
            .encode(y=alt.Y(f"{end}:Q", **up), tooltip=tips)
            for flag, side, end in (("below", "down", "low"), ("above", "up", "high"))
        ),
        *(
            resolved.transform_filter(f"datum.missed {sign} 0")
            .mark_point(size=80, opacity=1, **look)
            .encode(y=alt.Y("value:Q", **up), tooltip=tips)
            for sign, look in (("==", {"filled": True, "style": "halo"}), (">", {"filled": False, "strokeWidth": 2.5}))
        ),
        base.transform_filter("!isValid(datum.value)")
        .mark_point(shape="triangle-up", size=120, filled=False, strokeWidth=2, opacity=1)
        .encode(y=alt.Y("low:Q", **up), tooltip=tips),
        *uprights(alt, marks, along),
        *names_of_regimes,
    )
    return done(chart, HEIGHT + 20)


def _ends(interval: Interval) -> dict[str, float]:
    return {key: end for key, end in (("value", interval.value), ("low", interval.low), ("high", interval.high)) if end}


def _measured(n: Needed, body: list[float], *, per_update: bool) -> Point | None:
    """A batch size as it is drawn, its interval cut to the body of the plot; None where nothing is known of it."""
    by = n.batch_size if per_update else 1
    value, low, high = (
        None if end is None else end / by for end in (n.examples.value, n.examples.low, n.examples.high)
    )
    point = {
        "batch": n.batch_size,
        "kind": MEASURED,
        "missed": n.missed,
        "runs": f"{n.runs}, {n.missed} missed the target" if n.missed else f"{n.runs}",
    }
    if value is None:
        if not f.known(low) or low < body[0]:  # a bound that lies far below everything else says nothing
            return None
        return {**point, "low": low, "text": f"{f.count(low)} or more"}
    drawn = cut(Interval(value, value if low is None else low, value if high is None else high), body)
    spread = high is not None and low is not None and low < value < high
    ends = f" ({f.number(low, 3)} to {f.number(high, 3)})" if spread else ""
    return {**point, **(drawn or {}), "text": f"{f.number(value, 3)}{ends}"}


def _critical(alt: Any, critical: Interval, along: dict[str, Any]) -> list[Any]:
    """The interval of B_crit as a bar along the axis, with arrows where it goes on."""
    drawn = cut(critical, along["scale"].domain)
    if drawn is None or not drawn["low"] < drawn["high"]:
        return []
    data = alt.Chart(alt.Data(values=[drawn]))
    level = alt.value(HEIGHT + 20 - 1)
    return [
        data.mark_rule(strokeWidth=5, opacity=0.9, strokeCap="butt").encode(
            x=alt.X("low:Q", **along), x2="high:Q", y=level
        ),
        *(
            data.transform_filter(f"datum.{flag}")
            .mark_point(shape=f"triangle-{side}", size=80, filled=True, opacity=1)
            .encode(x=alt.X(f"{end}:Q", **along), y=level)
            for flag, side, end in (("below", "left", "low"), ("above", "right", "high"))
        ),
    ]


def _regimes(alt: Any, law: TradeoffLaw, along: dict[str, Any], colour: Any) -> tuple[list[Any], list[Any]]:
    """Layers that shade the three regimes and that name them, where B_crit is known."""
    critical = law.critical_batch_size.value
    if critical is None:
        return [], []
    first, last = along["scale"].domain
    borders = [first, *(min(max(at, first), last) for at in (critical / REGIME, critical * REGIME)), last]
    data: list[Point] = []
    for (place, name), low, high in zip(REGIMES.items(), borders, borders[1:], strict=False):
        if low < high:
            wide = math.log(high / low) / math.log(last / first)
            named = "\n".join(name.split()) if wide >= _NARROWEST else ""
            data.append({"low": low, "high": high, "kind": REGIMES[place], "at": math.sqrt(low * high), "name": named})
    shade = alt.Chart(alt.Data(values=data)).encode(color=colour)
    lettering = {"baseline": "top", "lineBreak": "\n", "fontSize": 11.5, "align": "center"}
    bands = [shade.mark_rect(opacity=0.09).encode(x=alt.X("low:Q", **along), x2="high:Q")]
    lettered = alt.Chart(alt.Data(values=data)).encode(
        x=alt.X("at:Q", **along), y=alt.value(6 + LABEL_HEIGHT), text="name:N"
    )
    return bands, [lettered.mark_text(**lettering, **look) for look in ({"style": "under"}, {})]

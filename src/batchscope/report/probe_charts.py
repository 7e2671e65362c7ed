"""The charts of a probe: the three limits on one axis, and what an update costs in time and memory."""

from __future__ import annotations

import math
from typing import Any

from batchscope.records import Interval, MemoryUse, Probe, StepTimes
from batchscope.report import formatting as f
from batchscope.report.marks import (
    AMBER,
    BLUE,
    HEIGHT,
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
    memory_axis,
    size_axis,
    uprights,
    value_axis,
    with_headroom,
)

LIMITS = {BLUE: "throughput knee", TEAL: "critical batch", AMBER: "memory", RED: "worth having"}
"""What the colours stand for, here and on the cards."""

COMPUTING, READING = "computing", "getting the batch"
WAITING = "waits for data"

_ROW = 62  # pixels
_FAR = 1000.0  # an end of an interval so many times away from every value is beyond the axis


def limits(record: Probe) -> Spec | None:
    """The three limits, what is used today and what is worth having, on one axis of batch sizes."""
    alt = altair()
    found = record.limits
    rows: list[tuple[int, Interval]] = [(BLUE, found.knee), (RED, found.worth_having), (TEAL, found.critical)]
    today = record.workload.batch_size
    centres = [today, found.memory, *(interval.value for _, interval in rows)]
    bounds = [interval.low or interval.high for _, interval in rows if interval.value is None]
    centred = domain_around([*centres, *bounds], room=1.0)
    ends = [end for _, interval in rows for end in (interval.low, interval.high)]
    near = [end for end in ends if f.known(end) and centred[0] / _FAR <= end <= centred[1] * _FAR]
    domain = domain_around([*centred, *near], room=1.9 if max([*centred, *near]) > 8 * min([*centred, *near]) else 8.0)
    along = size_axis(alt, domain, "batch size, log scale")
    colour = colours(alt, LIMITS)
    places = [BLUE, RED, TEAL, AMBER]
    titles = [[*LIMITS[place].split(" ", 1)] for place in places]
    up: dict[str, Any] = {
        "title": None,
        "scale": alt.Scale(domain=[len(places) - 0.4, -0.9], nice=False),
        "axis": alt.Axis(
            values=list(range(len(places))), labelExpr=f"{titles}[datum.value]", grid=False, labelFontSize=13
        ),
    }
    x, y = alt.X("value:Q", **along), alt.Y("place:Q", **up)
    data = [_limit(place, interval, i, domain) for i, (place, interval) in enumerate(rows)]
    data.append(_memory_row(found.memory, len(rows), domain))
    base = alt.Chart(alt.Data(values=data)).encode(y=y, color=colour)
    drawn = base.transform_filter("isValid(datum.low)")
    valued = base.transform_filter("isValid(datum.value)")
    worth = cut(found.worth_having, domain)
    # The label of today's size keeps off the band where there is room on the other side.
    left = bool(worth and domain[0] * (domain[1] / domain[0]) ** 0.22 < today < worth["high"]) or None
    layers = [
        *uprights(alt, [Upright(today, f"today {f.count(today)}", dashed=True, left=left)], along),
        drawn.transform_filter(f"datum.kind != '{LIMITS[AMBER]}'")
        .mark_rule(strokeWidth=5, strokeCap="round", opacity=0.55)
        .encode(x=alt.X("low:Q", **along), x2="high:Q"),
        drawn.transform_filter(f"datum.kind == '{LIMITS[AMBER]}'")
        .mark_rule(strokeWidth=12, opacity=0.22)
        .encode(x=alt.X("low:Q", **along), x2="high:Q"),
        *(
            drawn.transform_filter(f"datum.{end}")
            .mark_point(shape=f"triangle-{side}", size=90, filled=True, opacity=1)
            .encode(x=alt.X(f"{where}:Q", **along))
            for end, side, where in (("below", "left", "low"), ("above", "right", "high"))
        ),
        valued.mark_point(size=150, filled=True, opacity=1, style="halo").encode(x=x, tooltip=["kind:N", "text:N"]),
    ]
    if found.worth_having.resolved and worth and not (worth["below"] or worth["above"]):
        band = {**worth, "kind": LIMITS[RED]}
        shade = alt.Chart(alt.Data(values=[band])).mark_rect(opacity=0.1)
        layers.insert(0, shade.encode(x=alt.X("low:Q", **along), x2="high:Q", color=colour))
    lettering = {align: {"align": align, "dy": -17, "fontWeight": 600} for align in ("left", "center", "right")}
    for align, look in (lettering | {"none": {"align": "left", "dx": 8, "fontStyle": "italic"}}).items():
        named = alt.Chart(alt.Data(values=[row for row in data if row["align"] == align]))
        for style in ({"style": "under"}, {}):
            text = named.mark_text(fontSize=13, **look, **style)
            layers.append(text.encode(x=alt.X("at:Q", **along), y=y, text="text:N"))
    return done(alt.layer(*layers), height=_ROW * len(places) + 30)


def step_time(steps: StepTimes) -> Spec | None:
    """Time per update against batch size: computing with its law, getting the batch, and the knee."""
    alt = altair()
    unit = f.time_unit(point.compute_seconds.value for point in steps.points)
    names = {BLUE: COMPUTING, AMBER: READING}
    data = [
        _measured(point.batch_size, interval, unit.size, names[kind]) | {"text": unit.text(interval.value)}
        for point in steps.points
        for kind, interval in ((BLUE, point.compute_seconds), (AMBER, point.data_seconds))
        if f.known(interval.value) and interval.value > 0
    ]
    if not data:
        return None
    sizes = [point.batch_size for point in steps.points]
    across = domain_around(sizes, room=1.35)
    law = _law(steps, across, lambda size, seconds: seconds / unit.size)
    values = [point.get(key) for point in [*data, *law] for key in ("value", "low", "high")]
    upward = with_headroom(domain_around(values), 2, log=True)
    for point in data:
        point["low"] = point["low"] and max(point["low"], upward[0])  # an end at zero is off the axis
    along = size_axis(alt, across, "batch size", sizes)
    up = value_axis(alt, upward, f"time of an update, {unit.name}", log=True)
    colour = colours(alt, names, (BLUE, AMBER))
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("batch:Q", **along), color=colour)
    tips = _tips(alt, "time")
    chart = alt.layer(
        *_loader_bound(alt, steps, along, colour, names),
        *_line(alt, law, along, up),
        base.transform_filter(f"datum.kind == '{READING}'")
        .mark_line(strokeWidth=1.5, strokeDash=[4, 3], opacity=0.8)
        .encode(y=alt.Y("value:Q", **up)),
        *_bars(base, alt, up),
        base.mark_point(size=80, filled=True, opacity=1, style="halo").encode(y=alt.Y("value:Q", **up), tooltip=tips),
        *uprights(alt, _knee(steps), along, colour, names),
    )
    return done(chart)


def throughput(steps: StepTimes) -> Spec | None:
    """Examples per second against batch size: measured, what computing alone would give, the knee and the fastest."""
    alt = altair()
    names = {BLUE: "measured", AMBER: WAITING}
    data = [
        _measured(p.batch_size, p.examples_per_second, 1.0, names[BLUE])
        | {"text": f"{f.number(p.examples_per_second.value, 3)} examples/s"}
        for p in steps.points
        if f.known(p.examples_per_second.value)
    ]
    if not data:
        return None
    sizes = [point.batch_size for point in steps.points]
    across = domain_around(sizes, room=1.35)
    law = _law(steps, across, lambda size, seconds: size / seconds)
    highest = max(point[key] for point in [*data, *law] for key in ("value", "high") if f.known(point.get(key)))
    upward = with_headroom([0.0, highest * 1.02], 3, log=False)
    along = size_axis(alt, across, "batch size", sizes)
    up = value_axis(alt, upward, "examples/s", log=False)
    colour = colours(alt, names, (BLUE,))
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("batch:Q", **along), color=colour)
    fastest = base.transform_filter(f"datum.batch == {steps.fastest_batch_size}")
    marks = _knee(steps)
    if len(sizes) > 1:
        shown = f.number(steps.most_examples_per_second, 3)
        marks.append(Upright(steps.fastest_batch_size, f"fastest {f.count(steps.fastest_batch_size)}: {shown}/s", None))
    chart = alt.layer(
        *_loader_bound(alt, steps, along, colour, names),
        *_line(alt, law, along, up),
        *_bars(base, alt, up),
        base.mark_point(size=80, filled=True, opacity=1, style="halo").encode(
            y=alt.Y("value:Q", **up), tooltip=_tips(alt, "examples/s")
        ),
        fastest.mark_point(size=230, filled=False, strokeWidth=2, opacity=1).encode(y=alt.Y("value:Q", **up)),
        *uprights(alt, marks, along, colour, names),
    )
    return done(chart)


def memory(use: MemoryUse) -> Spec | None:
    """Peak memory against micro-batch size: measured, the law, the limit, and the largest that ran and should fit."""
    alt = altair()
    names = {AMBER: "measured"}
    data: list[Point] = [
        {"batch": p.micro_batch_size, "value": p.peak_bytes, "kind": names[AMBER], "text": f.memory(p.peak_bytes)}
        for p in use.points
    ]
    if not data:
        return None
    sizes = [point.micro_batch_size for point in use.points]
    across = domain_around([*sizes, use.largest_predicted, use.largest_executed], room=1.6)
    law: list[Point] = []
    if use.law is not None and use.law.state_bytes.value is not None and use.law.bytes_per_example.value is not None:
        state, each = use.law.state_bytes.value, use.law.bytes_per_example.value
        law = [{"batch": size, "value": state + each * size} for size in geometric(across)]
        law = [point for point in law if point["value"] > 0]
    walls = _walls(use)
    values = [point["value"] for point in [*data, *law, *walls]]
    upward = with_headroom(domain_around(values, room=1.5), 2, log=True)
    along = size_axis(alt, across, "micro-batch size", sizes if use.largest_predicted in (None, *sizes) else ())
    up = memory_axis(alt, upward, "peak memory")
    colour = colours(alt, names)
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("batch:Q", **along), y=alt.Y("value:Q", **up), color=colour)
    wall = alt.Chart(alt.Data(values=walls)).encode(y=alt.Y("value:Q", **up))
    marks = []
    if use.largest_executed is not None:
        marks.append(Upright(use.largest_executed, f"ran {f.count(use.largest_executed)}", AMBER))
    if use.largest_predicted is not None and use.largest_predicted != use.largest_executed:
        text = f"{'training set' if use.holds_all else 'predicted'} {f.count(use.largest_predicted)}"
        marks.append(Upright(use.largest_predicted, text, AMBER, dashed=True))
    lettering = {"align": "left", "baseline": "middle"}
    chart = alt.layer(
        wall.transform_filter("!datum.margin").mark_rule(strokeWidth=2),
        wall.transform_filter("datum.margin").mark_rule(strokeWidth=1.5, strokeDash=[5, 4]),
        *_line(alt, law, along, up),
        base.mark_point(size=80, filled=True, opacity=1, style="halo").encode(tooltip=_tips(alt, "memory")),
        *uprights(alt, marks, along, colour, names),
        *(
            wall.transform_filter(f"{sign}datum.margin")
            .mark_text(**lettering, dy=dy, **look)
            .encode(x=alt.value(6), text="text:N")
            for look in ({"style": "under"}, {})
            for sign, dy in (("!", -9), ("", 10))
        ),
    )
    return done(chart)


def _limit(place: int, interval: Interval, row: int, domain: list[float]) -> Point:
    """A row of the first chart: what is known of one limit, and its label."""
    drawn = cut(interval, domain)
    named = {"place": row, "kind": LIMITS[place], "text": f.sized(interval)}
    if drawn is None:
        return {**named, "at": domain[0], "align": "none"}
    at = drawn["value"] or math.sqrt(drawn["low"] * drawn["high"])
    return {**named, **drawn, **_anchor(at, domain)}


def _memory_row(micro: int | None, row: int, domain: list[float]) -> Point:
    named = {"place": row, "kind": LIMITS[AMBER]}
    if micro is None:
        return {**named, "text": "not known", "at": domain[0], "align": "none"}
    bar = {"value": micro, "low": domain[0], "high": micro, "below": False, "above": False}
    return {**named, **bar, "text": f"micro-batches up to {f.count(micro)}", **_anchor(micro, domain)}


def _anchor(at: float, domain: list[float]) -> Point:
    """Where a label is put so that it stays inside the plot."""
    share = math.log(at / domain[0]) / math.log(domain[1] / domain[0])
    return {"at": at, "align": "left" if share < 0.34 else "right" if share > 0.66 else "center"}


def _measured(batch: int, interval: Interval, size: float, kind: str) -> Point:
    value, low, high = (end / size if f.known(end) else None for end in (interval.value, interval.low, interval.high))
    return {"batch": batch, "value": value, "low": low, "high": high, "kind": kind}


def _law(steps: StepTimes, across: list[float], pick: Any) -> list[Point]:
    """The law of computing along the axis; nothing where it is not resolved."""
    if len(steps.points) < 2 or steps.law.seconds(1.0) is None:
        return []
    bend = [] if steps.law.bend is None else [float(steps.law.bend)]
    places = sorted([*geometric(across), *(size for size in bend if across[0] < size < across[1])])
    return [
        {"batch": size, "value": pick(size, seconds)}
        for size in places
        if (seconds := steps.law.seconds(size) or 0.0) > 0
    ]


def _line(alt: Any, law: list[Point], along: dict[str, Any], up: dict[str, Any]) -> list[Any]:
    if not law:
        return []
    line = alt.Chart(alt.Data(values=law)).mark_line(strokeWidth=1.75, clip=True)
    return [line.encode(x=alt.X("batch:Q", **along), y=alt.Y("value:Q", **up))]


def _bars(base: Any, alt: Any, up: dict[str, Any]) -> list[Any]:
    known = base.transform_filter("isValid(datum.low) && isValid(datum.high)")
    return [known.mark_rule(strokeWidth=2, opacity=0.8).encode(y=alt.Y("low:Q", **up), y2="high:Q")]


def _knee(steps: StepTimes) -> list[Upright]:
    knee = steps.law.knee
    return [Upright(knee.value, f"knee {f.number(knee.value, 3)}", BLUE, knee)]


def _loader_bound(alt: Any, steps: StepTimes, along: dict[str, Any], colour: Any, names: dict[int, str]) -> list[Any]:
    """The region in which an update waits for its data, shaded and named."""
    if steps.loader_bound_from is None:
        return []
    first, last = along["scale"].domain
    smaller = [point.batch_size for point in steps.points if point.batch_size < steps.loader_bound_from]
    start = math.sqrt(smaller[-1] * steps.loader_bound_from) if smaller else first
    data = alt.Chart(alt.Data(values=[{"low": start, "high": last, "text": WAITING, "kind": names[AMBER]}]))
    lettering = {"align": "right", "baseline": "bottom", "dx": -6, "dy": -7}
    return [
        data.mark_rect(opacity=0.12).encode(x=alt.X("low:Q", **along), x2="high:Q", color=colour),
        *(
            data.mark_text(**lettering, **look).encode(x=alt.X("high:Q", **along), y=alt.value(HEIGHT), text="text:N")
            for look in ({"style": "under"}, {})
        ),
    ]


def _walls(use: MemoryUse) -> list[Point]:
    """The limit, and what the margin leaves of it."""
    if use.limit_bytes is None:
        return []
    source = "" if use.limit_source == "unknown" else f", {use.limit_source}"
    walls = [{"value": use.limit_bytes, "margin": False, "text": f"limit {f.memory(use.limit_bytes)}{source}"}]
    if use.margin > 0:
        left = use.limit_bytes * (1 - use.margin)
        text = f"less {use.margin:.0%}: {f.memory(left)}"
        walls.append({"value": left, "margin": True, "text": text})
    return walls


def _tips(alt: Any, title: str) -> list[Any]:
    return [
        alt.Tooltip("batch:Q", title="batch size", format=","),
        alt.Tooltip("text:N", title=title),
    ]

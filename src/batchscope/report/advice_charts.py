"""The charts of an advice against batch size: the frontier at every stop of the slider."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from batchscope.records import Advice, Interval
from batchscope.report import advice_sheets as words
from batchscope.report import curves
from batchscope.report import formatting as f
from batchscope.report.advice_stops import Standing, Stop, asked, stops
from batchscope.report.marks import (
    AMBER,
    BLUE,
    RED,
    TEAL,
    Point,
    Spec,
    altair,
    colours,
    cut,
    domain_around,
    done,
    size_axis,
    value_axis,
)

Quantity = Literal["seconds", "examples", "score"]

NAMES = {BLUE: "trained", TEAL: "worked out", AMBER: "today’s setting", RED: "advised"}
STOP = "stop"
"""The parameter of a chart that the slider sets: the number of the stop."""

FRONTIER = "frontier"
"""The data set of such a chart."""

_FAR = 3.0  # an end of an interval so many times away from every value is beyond the axis


def seconds(record: Advice) -> Spec | None:
    """Seconds to the goal against batch size."""
    return None if record.goal.kind == "seconds" else _against_size(record, "seconds")


def examples(record: Advice) -> Spec | None:
    """Examples to the goal against batch size."""
    return None if record.goal.kind == "examples" else _against_size(record, "examples")


def score(record: Advice) -> Spec | None:
    """Score at the budget against batch size."""
    return None if record.goal.kind == "target" else _against_size(record, "score")


def _against_size(record: Advice, quantity: Quantity) -> Spec | None:
    """One quantity of the frontier at every stop; what belongs to another stop than the one set is filtered out."""
    found = stops(record)
    own = found[asked(record, found)]
    log = quantity != "score"
    size, title = _unit_and_title(record, own, quantity)
    domains = [_domain(_intervals(record, stop, quantity), size, log) for stop in found]
    data: list[Point] = []
    for i, (stop, domain) in enumerate(zip(found, domains, strict=True)):
        data += [{**point, STOP: i} for point in _points(record, stop, quantity, size, domain)]
    if not data:
        return None
    alt = altair()
    sizes = sorted({point["batch"] for point in data})
    along = size_axis(alt, domain_around(sizes, room=1.5), "batch size", sizes)
    up = value_axis(alt, domains[found.index(own)], title, log=log)
    up["scale"] = alt.Scale(
        type="log" if log else "linear",
        nice=False,
        domain=[alt.ExprRef(f"ends[{STOP}][0]"), alt.ExprRef(f"ends[{STOP}][1]")],
    )
    up["axis"].values = alt.ExprRef(f"places[{STOP}]")
    up["axis"].tickCount = alt.Undefined
    shown = [i for i, name in NAMES.items() if any(point["kind"] == name for point in data)]
    colour = colours(alt, NAMES, shown if len(shown) > 1 else ())
    here = alt.Chart(alt.NamedData(FRONTIER)).transform_filter(f"datum.{STOP} == {STOP}")
    base = here.encode(x=alt.X("batch:Q", **along), color=colour)
    y = alt.Y("value:Q", **up)
    tips = [
        alt.Tooltip("batch:Q", title="batch size", format=","),
        alt.Tooltip("kind:N", title=" "),
        alt.Tooltip("rate:Q", title="learning rate", format=".3~g"),
        alt.Tooltip("text:N", title=title.split(",")[0]),
    ]
    today, line = (base.transform_filter(f"datum.kind {sign} '{NAMES[AMBER]}'") for sign in ("==", "!="))
    chart = alt.layer(
        here.transform_filter(f"datum.kind != '{NAMES[AMBER]}' && isValid(datum.value)")
        .mark_line(strokeWidth=1.5, opacity=0.45, clip=True)
        .encode(x=alt.X("batch:Q", **along), y=y),
        base.transform_filter("datum.low < datum.high")
        .mark_rule(strokeWidth=2.5, opacity=0.75, strokeCap="round", clip=True)
        .encode(y=alt.Y("low:Q", **up), y2="high:Q", tooltip=tips),
        *(
            base.transform_filter(f"datum.{flag}")
            .mark_point(shape=f"triangle-{side}", size=70, filled=True, opacity=1, clip=True)
            .encode(y=alt.Y(f"{end}:Q", **up), tooltip=tips)
            for flag, side, end in (("below", "down", "low"), ("above", "up", "high"))
        ),
        *(
            line.transform_filter(f"datum.kind {sign} '{NAMES[TEAL]}' && isValid(datum.value)")
            .mark_point(size=90, opacity=1, clip=True, **look)
            .encode(y=y, tooltip=tips)
            for sign, look in (("!=", {"filled": True, "style": "halo"}), ("==", {"filled": False, "strokeWidth": 2}))
        ),
        today.transform_filter("isValid(datum.value)")
        .mark_point(shape="diamond", size=130, filled=False, strokeWidth=2.2, opacity=1, clip=True)
        .encode(y=y, tooltip=tips),
    )
    places = [curves.ticks(domain, log).get("values") or _even_ticks(domain) for domain in domains]
    params = [
        {"name": STOP, "value": found.index(own)},
        {"name": "ends", "value": domains},
        {"name": "places", "value": places},
    ]
    return done(chart) | {"params": params, "datasets": {FRONTIER: data}}


def _unit_and_title(record: Advice, own: Stop, quantity: Quantity) -> tuple[float, str]:
    if quantity == "seconds":
        unit = f.time_unit(words.known_of(standing.seconds) for standing in own.standings)
        return unit.size, f"time{' to the target' if record.goal.kind == 'target' else ''}, {unit.name}"
    if quantity == "examples":
        return 1.0, "examples to the target" if record.goal.kind == "target" else "examples until then"
    return 1.0, f"{record.workload.score[:40]} on validation data"


def _intervals(record: Advice, stop: Stop, quantity: Quantity) -> list[Interval]:
    found: list[Interval] = [_of(standing, quantity) for standing in stop.standings]
    present = record.present
    if present is not None and stop.goal == record.goal and quantity != "examples":
        found.append(present.seconds if quantity == "seconds" else present.score)
    return found


def _of(standing: Standing, quantity: Quantity) -> Interval:
    found: Interval = getattr(standing, quantity)
    return found


def _points(record: Advice, stop: Stop, quantity: Quantity, size: float, domain: list[float]) -> list[Point]:
    data = []
    for row, standing in zip(record.frontier, stop.standings, strict=True):
        kind = NAMES[RED if row.batch_size == stop.best else BLUE if row.raced else TEAL]
        point = _point(_of(standing, quantity), size, domain, quantity)
        if point is not None:
            data.append({**point, "batch": row.batch_size, "kind": kind, "rate": row.learning_rate.value})
    present = record.present
    if present is not None and stop.goal == record.goal and quantity != "examples":
        interval = present.seconds if quantity == "seconds" else present.score
        point = _point(interval, size, domain, quantity)
        if point is not None:
            place = {"batch": present.batch_size, "kind": NAMES[AMBER], "rate": present.learning_rate}
            data.append({**point, **place})
    return data


def _point(interval: Interval, size: float, domain: list[float], quantity: Quantity) -> Point | None:
    value, low, high = (None if end is None else end / size for end in (interval.value, interval.low, interval.high))
    found = cut(Interval(value, low, high), domain)
    if found is None:
        return None
    texts = {"seconds": words.spoken_seconds, "examples": words.spoken_count, "score": words.spoken_score}
    rounded = {key: float(f"{end:.6g}") for key in ("value", "low", "high") if (end := found[key]) is not None}
    flags = {key: True for key in ("below", "above") if found[key]}
    return {**rounded, **flags, "text": texts[quantity](interval)}


def _domain(intervals: list[Interval], size: float, log: bool) -> list[float]:
    """Around the values and those ends that aren't far away, rounded so that it stays between neighbouring stops."""
    # Of what isn't resolved, the bound is all there is to see.
    seen = [(i.value,) if i.value is not None else (i.low, i.high) for i in intervals]
    values = [value / size for both in seen for value in both if f.known(value)]
    ends = [end / size for i in intervals for end in (i.low, i.high) if f.known(end)]
    if log:
        middle = domain_around(values, room=1.0)
        near = [end for end in ends if middle[0] / _FAR <= end <= middle[1] * _FAR]
        low, high = domain_around([*middle, *near], room=1.12)
        return [_round(low, math.floor), _round(high, math.ceil)]
    if not values:
        return [0.0, 1.0]
    spread = max(max(values) - min(values), 0.02 * max(map(abs, values)), 1e-6)
    low = max(min([*values, *ends]), min(values) - 2 * spread)
    high = min(max([*values, *ends]), max(values) + 2 * spread)
    step = 10.0 ** math.floor(math.log10(max(high - low, spread)))
    step /= 2 if (high - low) / step > 4 else 5
    return [step * (math.floor(low / step - 0.1)), step * math.ceil(high / step + 0.1)]


def _round(value: float, to: Callable[[float], int]) -> float:
    """To the next of 1, 1.5, 2, 3, 5 and 7 times a power of ten, down or up."""
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
    if to is math.floor:
        return power * max(step for step in steps if step <= value / power * (1 + 1e-9))
    return power * min(step for step in steps if step >= value / power * (1 - 1e-9))


def _even_ticks(domain: list[float]) -> list[float]:
    low, high = domain
    step = 10.0 ** math.floor(math.log10(high - low))
    step *= next(part for part in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 2.5) if (high - low) / (step * part) <= 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{step * k:.10g}") for k in range(first, last + 1)]

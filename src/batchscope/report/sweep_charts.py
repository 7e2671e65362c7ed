"""The charts of a sweep against batch size: seconds to the target, time against examples, scores, learning curves."""

from __future__ import annotations

import math
from typing import Any

from batchscope.records import Interval, Sweep, SweepTrial
from batchscope.report import formatting as f
from batchscope.report.marks import (
    AMBER,
    BLUE,
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
    size_axis,
    uprights,
    value_axis,
    with_headroom,
)

MEASURED, BY_LAW, FRONT, OFF_FRONT, FASTEST, HIGHEST = (
    "measured",
    "by the law",
    "on the front",
    "beaten in both",
    "fastest",
    "highest",
)
MOST_POINTS = 60
"""Evaluations drawn of one run."""
MOST_LABELS = 14

_FAR = 3.0  # an end of an interval so many times away from every value is beyond the axis


def seconds_to_target(record: Sweep) -> Spec | None:
    """Seconds to the target against batch size: measured, by the law, and where they are least."""
    timed = record.time
    measured = [(line.batch_size, line.seconds_to_target) for line in record.best if line.seconds_to_target.value]
    if timed is None or not timed.points:
        return None
    alt = altair()
    law = [(point.batch_size, point.seconds) for point in timed.points if point.seconds.value]
    if not law and not measured:
        return None
    unit = f.time_unit(interval.value for _, interval in [*law, *measured])
    body = _domain([i for _, i in [*law, *measured]], unit.size)
    upward = with_headroom(body, 2, log=True)
    names = {BLUE: MEASURED, TEAL: BY_LAW, RED: FASTEST}
    data = [
        {**_cut(interval, unit.size, body), "batch": size, "kind": kind, "text": f.within(interval, unit)}
        for kind, points in ((MEASURED, measured), (BY_LAW, law))
        for size, interval in points
    ]
    sizes = sorted({size for size, _ in [*law, *measured]})
    best, reach = timed.best_batch_size, timed.within_ten_per_cent
    across = domain_around([*sizes, best.value], room=1.5)
    along = size_axis(alt, across, "batch size", sizes)
    up = value_axis(alt, upward, f"time to the target, {unit.name}", log=True)
    colour = colours(alt, names, [i for i, name in ((BLUE, MEASURED), (TEAL, BY_LAW)) if _any(data, name)])
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("batch:Q", **along), color=colour)
    line, points = (base.transform_filter(f"datum.kind == '{name}'") for name in (BY_LAW, MEASURED))
    within = Interval(best.value, *(reach or (None, None)))
    marks = [Upright(best.value, f"fastest {f.sized(best)}", RED, within if reach else None)]
    y = alt.Y("value:Q", **up)
    chart = alt.layer(
        line.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.16, clip=True)
        .encode(y=alt.Y("low:Q", **up), y2="high:Q"),
        line.mark_line(strokeWidth=2, clip=True, strokeJoin="round").encode(y=y),
        line.mark_point(size=26, filled=True, opacity=1).encode(y=y, tooltip=_tips(alt, "time")),
        points.mark_rule(strokeWidth=2.5, opacity=0.8, strokeCap="round").encode(y=alt.Y("low:Q", **up), y2="high:Q"),
        *(
            points.transform_filter(f"datum.{flag}")
            .mark_point(shape=f"triangle-{side}", size=70, filled=True, opacity=1)
            .encode(y=alt.Y(f"{end}:Q", **up))
            for flag, side, end in (("below", "down", "low"), ("above", "up", "high"))
        ),
        points.mark_point(size=80, filled=True, opacity=1, style="halo").encode(y=y, tooltip=_tips(alt, "time")),
        *uprights(alt, marks, along, colour, names),
    )
    return done(chart)


def front(record: Sweep) -> Spec | None:
    """Seconds against examples to the target: a batch size on the front is beaten by no other in both."""
    found = [p for p in (record.time.points if record.time else ()) if p.examples.value and p.seconds.value]
    if not found:
        return None
    alt = altair()
    unit = f.time_unit(point.seconds.value for point in found)
    across = domain_around([point.examples.value for point in found], room=1.3)
    upward = with_headroom(domain_around([(p.seconds.value or 0) / unit.size for p in found], room=1.3), 1, log=True)
    names = {BLUE: FRONT, AMBER: OFF_FRONT}
    data = [
        {
            "examples": p.examples.value,
            "value": (p.seconds.value or 0) / unit.size,
            "batch": p.batch_size,
            "name": f.count(p.batch_size),
            "kind": FRONT if p.on_front else OFF_FRONT,
            "text": f"{unit.text(p.seconds.value)}, {f.count(p.examples.value)} examples",
        }
        for p in found
    ]
    up = value_axis(alt, upward, f"time to the target, {unit.name}", log=True)
    side = value_axis(alt, across, "examples to the target", log=True)
    side["axis"].grid = False
    colour = colours(alt, names, [i for i, name in names.items() if _any(data, name)])
    base = alt.Chart(alt.Data(values=data)).encode(
        x=alt.X("examples:Q", **side), y=alt.Y("value:Q", **up), color=colour
    )
    ahead = base.transform_filter(f"datum.kind == '{FRONT}'")
    named = alt.Chart(alt.Data(values=data[:: math.ceil(len(data) / MOST_LABELS)]))
    tips = _tips(alt, "needs")
    chart = alt.layer(
        ahead.mark_line(strokeWidth=2, opacity=0.5).encode(order="examples:Q"),
        *(
            base.transform_filter(f"datum.kind {sign} '{FRONT}'")
            .mark_point(size=90, opacity=1, **look)
            .encode(tooltip=tips)
            for sign, look in (("==", {"filled": True, "style": "halo"}), ("!=", {"filled": False, "strokeWidth": 2}))
        ),
        *(
            named.mark_text(align="left", dx=9, dy=-9, **look).encode(
                x=alt.X("examples:Q", **side), y=alt.Y("value:Q", **up), text="name:N"
            )
            for look in ({"style": "under"}, {})
        ),
    )
    return done(chart)


def score_by_size(record: Sweep) -> Spec | None:
    """Best validation score against batch size, each at its best rate."""
    found = [(line.batch_size, line.score, line.runs) for line in record.best if f.known(line.score.value)]
    if not found or (record.target is not None and record.law is not None):
        return None
    alt = altair()
    values = [end for _, i, _ in found for end in (i.value, i.low, i.high) if f.known(end)]
    middle = [i.value for _, i, _ in found if f.known(i.value)]
    spread = max(max(middle) - min(middle), 0.02 * max(map(abs, middle)), 1e-6)
    low, high = max(min(values), min(middle) - 2 * spread), min(max(values), max(middle) + 2 * spread)
    if record.target is not None:
        high = max(high, record.target)
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    upward = with_headroom([low - pad, high + pad], 1, log=False)
    best = max(found, key=lambda line: line[1].value or -math.inf)[0]
    names = {BLUE: MEASURED, RED: HIGHEST}
    data = [
        {
            **(cut(i, upward) or {}),
            "value": i.value,
            "batch": size,
            "kind": HIGHEST if size == best and len(found) > 1 else MEASURED,
            "text": f.estimate(i, 4),
            "runs": runs,
        }
        for size, i, runs in found
    ]
    sizes = [size for size, *_ in found]
    along = size_axis(alt, domain_around(sizes, room=1.5), "batch size", sizes)
    up = value_axis(alt, upward, f"best {record.workload.score[:40]} on validation data", log=False)
    colour = colours(alt, names, [i for i, name in names.items() if len(found) > 1 and _any(data, name)])
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("batch:Q", **along), color=colour)
    goal = alt.Chart(alt.Data(values=[] if record.target is None else [{"at": record.target}]))
    target = {"y": alt.Y("at:Q", **up)}
    chart = alt.layer(
        goal.mark_rule(strokeDash=[5, 4], strokeWidth=1.5).encode(**target),
        *(
            goal.mark_text(align="left", baseline="bottom", dy=-4, **look).encode(
                **target, x=alt.value(6), text=alt.value(f"target {f.number(record.target)}")
            )
            for look in ({"style": "under"}, {})
        ),
        base.transform_filter("datum.low < datum.high")
        .mark_rule(strokeWidth=2.5, opacity=0.8, strokeCap="round")
        .encode(y=alt.Y("low:Q", **up), y2="high:Q"),
        base.mark_point(size=85, filled=True, opacity=1, style="halo").encode(
            y=alt.Y("value:Q", **up), tooltip=[*_tips(alt, "score"), alt.Tooltip("runs:Q")]
        ),
    )
    return done(chart)


def best_curves(record: Sweep) -> Spec | None:
    """Score against examples at each batch size's best rate, a line per run."""
    data: list[Point] = []
    for line in record.best:
        own = [t for t in record.trials if (t.batch_size, t.learning_rate) == (line.batch_size, line.learning_rate)]
        for trial in own:
            data += _curve(trial)
    if len({point["examples"] for point in data}) < 2:
        return None
    alt = altair()
    sizes = sorted({point["batch"] for point in data})
    across = domain_around([point["examples"] for point in data], room=1.05)
    ends = sorted(point["score"] for point in data)
    # The first evaluations of large batches lie far below all that is compared.
    low, high = ends[len(ends) // 10], ends[-1]
    pad = 0.06 * (high - low) or 0.05
    upward = [max(ends[0], low - 2 * pad) - pad, high + pad]
    colour = alt.Color(
        "batch:Q",
        scale=alt.Scale(type="log", range="ramp", domain=[sizes[0], max(sizes[-1], 2 * sizes[0])]),
        legend=alt.Legend(
            title="batch size",
            orient="top",
            gradientLength=160,
            gradientThickness=9,
            values=sizes[:: -(-len(sizes) // 5)],
        ),
    )
    y = alt.Y("score:Q", **value_axis(alt, upward, f"{record.workload.score[:40]} on validation data", log=False))
    chart = (
        alt.Chart(alt.Data(values=data))
        .mark_line(strokeWidth=1.6, opacity=0.85, clip=True, strokeJoin="round")
        .encode(
            x=alt.X("examples:Q", **value_axis(alt, across, "examples seen", log=True)),
            y=y,
            color=colour,
            detail="run:N",
            tooltip=[
                alt.Tooltip("batch:Q", title="batch size", format=","),
                alt.Tooltip("rate:Q", title="learning rate", format=".3~g"),
                alt.Tooltip("run:N"),
            ],
        )
    )
    goal = alt.Chart(alt.Data(values=[] if record.target is None else [{"score": record.target}]))
    target = goal.mark_rule(strokeDash=[5, 4], strokeWidth=1.5, clip=True).encode(y=y)
    return done(alt.layer(target, chart))


def _curve(trial: SweepTrial) -> list[Point]:
    sound = [point for point in trial.curve if f.known(point.score) and point.examples > 0]
    stride = max(1, math.ceil(len(sound) / MOST_POINTS))
    return [
        {
            "examples": point.examples,
            "score": float(f"{point.score:.5g}"),
            "batch": trial.batch_size,
            "rate": trial.learning_rate,
            "run": f"batch {trial.batch_size}, seed {trial.seed}",
        }
        for i, point in enumerate(sound)
        if i % stride == 0 or i == len(sound) - 1
    ]


def _domain(intervals: list[Interval], size: float) -> list[float]:
    """Around all values, and those ends of intervals that are not far away from them."""
    middle = domain_around([(i.value or 0.0) / size for i in intervals], room=1.0)
    ends = [end / size for i in intervals for end in (i.low, i.high) if f.known(end)]
    near = [end for end in ends if middle[0] / _FAR <= end <= middle[1] * _FAR]
    return domain_around([*middle, *near], room=1.25)


def _cut(interval: Interval, size: float, domain: list[float]) -> Point:
    value, low, high = (None if end is None else end / size for end in (interval.value, interval.low, interval.high))
    return cut(Interval(value, low, high), domain) or {"value": value}


def _any(data: list[Point], kind: str) -> bool:
    return any(point["kind"] == kind for point in data)


def _tips(alt: Any, title: str) -> list[Any]:
    return [
        alt.Tooltip("batch:Q", title="batch size", format=","),
        alt.Tooltip("kind:N", title=" "),
        alt.Tooltip("text:N", title=title),
    ]

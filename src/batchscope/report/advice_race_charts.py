"""The charts of an advice over time: the race of all candidates, and the advised one's curve on to the goal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from batchscope.records import Advice, FrontierRow, Interval, RaceCandidate
from batchscope.report import advice_sheets as words
from batchscope.report import formatting as f
from batchscope.report.marks import (
    BLUE,
    RED,
    TEAL,
    Point,
    Spec,
    Upright,
    altair,
    colours,
    domain_around,
    done,
    uprights,
    value_axis,
    with_headroom,
)

MOST_POINTS = 60
"""Points drawn of one candidate."""

_ENDED = {"advised": "circle", "kept": "diamond", "beaten": "square", "diverged": "cross"}


def race(record: Advice) -> Spec | None:
    """Every candidate's curve against its training time: how it stood, where it ended, and the advised one in front."""
    by_score = _follows_score(record.race)
    own = [_candidate(i, each, by_score) for i, each in enumerate(record.race)]
    data = [point for points in own for point in points]
    if len({point["seconds"] for point in data}) < 2:
        return None
    alt = altair()
    sizes = sorted({point["batch"] for point in data})
    unit = f.time_unit(point["seconds"] for point in data)
    for point in data:
        point["seconds"] = float(f"{point['seconds'] / unit.size:.6g}")
    across = domain_around([point["seconds"] for point in data], room=1.1)
    along = value_axis(alt, across, f"time of training alone, {unit.name}", log=True)
    along["axis"].grid = False
    up = _upward(alt, record, data, by_score)
    x, y = alt.X("seconds:Q", **along), alt.Y("value:Q", **up)
    colour = alt.Color(
        "batch:Q",
        scale=alt.Scale(type="log", range="ramp", domain=[sizes[0], max(sizes[-1], 2 * sizes[0])]),
        legend=alt.Legend(
            title="batch size",
            orient="top",
            gradientLength=160,
            gradientThickness=9,
            values=sizes[:: -(-len(sizes) // 9)],
        ),
    )
    kinds = [kind for kind in _ENDED if any(point["ended"] == kind for point in data)]
    shape = alt.Shape(
        "ended:N",
        scale=alt.Scale(domain=list(_ENDED), range=list(_ENDED.values())),
        legend=alt.Legend(title=None, orient="bottom", values=kinds, symbolSize=70, symbolStrokeWidth=2),
    )
    tips = [
        alt.Tooltip("batch:Q", title="batch size", format=","),
        alt.Tooltip("rate:Q", title="learning rate", format=".3~g"),
        alt.Tooltip("seed:Q"),
        alt.Tooltip("ended:N"),
        alt.Tooltip("reason:N", title="why"),
    ]
    base = alt.Chart(alt.NamedData("race")).encode(x=x, y=y, color=colour, detail="run:N")
    won, others = (base.transform_filter(f"datum.ended {sign} 'advised'") for sign in ("==", "!="))
    low, high = up["scale"].domain
    # What diverged ends far outside, where its sign could not be seen.
    ends = [{**points[-1], "value": min(max(points[-1]["value"], low), high)} for points in own if points]
    last = alt.Chart(alt.Data(values=ends)).encode(x=x, y=y, color=colour, shape=shape, tooltip=tips)
    first = next((points[-1] for points in own if points and points[-1]["ended"] == "advised"), None)
    label = alt.Chart(alt.Data(values=[] if first is None else [first])).encode(x=x, y=y, text="label:N")
    chart = alt.layer(
        others.mark_line(strokeWidth=1.3, opacity=0.6, clip=True, strokeJoin="round").encode(tooltip=tips),
        won.mark_line(strokeWidth=4, clip=True, strokeJoin="round").encode(tooltip=tips),
        last.transform_filter("datum.ended != 'advised'").mark_point(size=45, filled=False, strokeWidth=2, opacity=1),
        last.transform_filter("datum.ended == 'advised'").mark_point(size=130, filled=True, opacity=1, style="halo"),
        *(label.mark_text(align="right", dx=-8, dy=-14, **look) for look in ({"style": "under"}, {})),
    )
    return done(chart, 340) | {"datasets": {"race": data}}


def _follows_score(candidates: Iterable[RaceCandidate]) -> bool:
    """Whether most candidates were evaluated often enough for a curve, and not with one score everywhere."""
    own = [[point.score for point in each.points if f.known(point.score)] for each in candidates]
    curves = sum(len(scores) >= 2 for scores in own)
    return 2 * curves > len(own) and len({score for scores in own for score in scores}) > 1


def _candidate(run: int, each: RaceCandidate, by_score: bool) -> list[Point]:
    points = [(point, point.score if by_score else point.loss) for point in each.points if point.seconds > 0]
    sound = [(point, value) for point, value in points if f.known(value)]
    stride = max(1, math.ceil(len(sound) / MOST_POINTS))
    kept = [both for i, both in enumerate(sound) if i % stride == 0 or i == len(sound) - 1]
    name = {
        "batch": each.batch_size,
        "rate": each.learning_rate,
        "seed": each.seed,
        "ended": each.ended,
        "reason": words.shortened(each.reason),
        "label": f"{words.ADVISED}: {f.count(each.batch_size)} at {f.number(each.learning_rate, 3)}",
        "run": run,
    }
    return [{**name, "seconds": point.seconds, "value": float(f"{value:.6g}")} for point, value in kept]


def _upward(alt: Any, record: Advice, data: list[Point], by_score: bool) -> dict[str, Any]:
    ends = sorted(point["value"] for point in data)
    if by_score:
        # Where large batches begin lies far below all that is compared.
        low, high = ends[len(ends) // 10], ends[-1]
        pad = 0.06 * (high - low) or 0.05
        domain = with_headroom([max(ends[0], low - 2 * pad) - pad, high + pad], 1, 340, log=False)
        return value_axis(alt, domain, f"{record.workload.score[:40]} on validation data", log=False)
    low, high = ends[0], ends[-len(ends) // 10] if len(ends) >= 10 else ends[-1]
    evaluated = all(f.known(point.score) for each in record.race for point in each.points)
    title = "validation loss" if evaluated else "loss of each batch before its update"
    if low > 0 and high / low >= 4:
        return value_axis(alt, domain_around([low, high], room=1.1), title, log=True)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return value_axis(alt, [low - pad, high + pad], title, log=False)


def forecast(record: Advice) -> Spec | None:
    """The advised batch size: what was measured of it, and the curve with its band on to the goal."""
    row = next((row for row in record.frontier if row.batch_size == record.batch_size), None)
    if row is None:
        return None
    ahead = [point for point in row.forecast if f.known(point.score.value) and point.seconds > 0 and point.examples > 0]
    if len(ahead) < 2:
        return None
    alt = altair()
    by_examples = record.goal.kind == "examples"
    seen = _measured(record, row, by_examples)
    unit = f.Unit("", 1.0) if by_examples else f.time_unit(point.seconds for point in ahead)
    line = [
        {
            "at": (point.examples if by_examples else point.seconds) / unit.size,
            "value": point.score.value,
            "text": words.spoken_score(point.score),
            **_band(point.score),
        }
        for point in ahead
    ]
    for point in seen:
        point["at"] /= unit.size
    goal = _goal(record, unit.size, by_examples)
    across = domain_around([*(p["at"] for p in line), *(p["at"] for p in seen), goal.where], room=1.1)
    title = "examples" if by_examples else f"time of training, {unit.name}"
    along = value_axis(alt, across, title, log=True)
    along["axis"].grid = False
    up = value_axis(alt, _scores(record, seen, line), f"{record.workload.score[:40]} on validation data", log=False)
    names = {BLUE: "measured", TEAL: "forecast", RED: "goal"}
    colour = colours(alt, names, (BLUE, TEAL) if seen else (TEAL,))
    x, y = alt.X("at:Q", **along), alt.Y("value:Q", **up)

    def of(points: list[Point], place: int) -> Any:
        values = [{**point, "kind": names[place]} for point in points]
        return alt.Chart(alt.Data(values=values)).encode(x=x, color=colour)

    tips = [alt.Tooltip("at:Q", title=title, format=",.3~g"), alt.Tooltip("text:N", title="score")]
    target = alt.Chart(
        alt.Data(values=[{"value": record.goal.value, "text": f"target {f.number(record.goal.value)}"}])
        if record.goal.kind == "target"
        else alt.Data(values=[])
    )
    chart = alt.layer(
        of(line, TEAL)
        .transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.16, clip=True)
        .encode(y=alt.Y("low:Q", **up), y2="high:Q"),
        target.mark_rule(strokeDash=[5, 4], strokeWidth=1.5).encode(y=y),
        *(
            target.mark_text(align="left", baseline="bottom", dy=-4, **look).encode(y=y, x=alt.value(6), text="text:N")
            for look in ({"style": "under"}, {})
        ),
        of(line, TEAL).mark_line(strokeWidth=2.2, clip=True, strokeJoin="round").encode(y=y, tooltip=tips),
        of(seen, BLUE).mark_point(size=50, filled=True, opacity=1, style="halo", clip=True).encode(y=y, tooltip=tips),
        *uprights(alt, [goal], along, colour, names),
    )
    return done(chart)


def _measured(record: Advice, row: FrontierRow, by_examples: bool) -> list[Point]:
    own = [each for each in record.race if each.ended == "advised" and each.batch_size == row.batch_size]
    return [
        {
            "at": point.examples if by_examples else point.seconds,
            "value": point.score,
            "text": f"{f.number(point.score)}, seed {each.seed}",
        }
        for each in own
        for point in each.points
        if f.known(point.score) and point.seconds > 0 and point.examples > 0
    ]


def _band(interval: Interval) -> Point:
    if not (f.known(interval.low) and f.known(interval.high)):
        return {}
    return {"low": interval.low, "high": interval.high}


def _goal(record: Advice, size: float, by_examples: bool) -> Upright:
    """Where the goal lies: the predicted time with its interval, or the end of the budget."""
    if record.goal.kind == "target":
        predicted = record.predicted_seconds
        value, low, high = (
            None if end is None else end / size for end in (predicted.value, predicted.low, predicted.high)
        )
        return Upright(value, words.spoken_seconds(predicted), RED, Interval(value, low, high))
    where = record.goal.value if by_examples else record.goal.value / size
    return Upright(where, f"{words.goal_text(record.goal)}: {words.spoken_score(record.predicted_score)}", RED)


def _scores(record: Advice, seen: list[Point], line: list[Point]) -> list[float]:
    values = sorted(point["value"] for point in (*seen, *line))
    ends = [point[end] for point in line for end in ("low", "high") if end in point]
    low, high = values[len(values) // 10], values[-1]
    if record.goal.kind == "target":
        high = max(high, record.goal.value)
    spread = high - low or 0.05 * abs(high) or 0.05
    ends = [end for end in ends if low - 0.3 * spread <= end <= high + 0.3 * spread]
    return with_headroom([min([low, *ends]) - 0.05 * spread, max([high, *ends]) + 0.05 * spread], 2, log=False)

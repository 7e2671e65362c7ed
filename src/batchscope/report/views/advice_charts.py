"""The charts of an advice: the frontier at every stop of the slider, the race, and the way to the goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

from batchscope.records import Advice, FrontierRow, Interval, RaceCandidate
from batchscope.report import formatting as f
from batchscope.report.charts.axes import (
    Point,
    Spec,
    axis,
    cut,
    domain_around,
    domain_near,
    rounded,
    size_axis,
    thinned,
    ticks,
    with_headroom,
)
from batchscope.report.charts.curves import curves, score_domain
from batchscope.report.charts.intervals import intervals
from batchscope.report.charts.plot import AMBER, BLUE, FULL, HOLLOW, RATE, RED, SIZE, TEAL, Mark, Plot, kinds, ramp, tip
from batchscope.report.views import goals
from batchscope.report.views.goals import Standing, Stop, asked, stops

Quantity = Literal["seconds", "examples", "score"]

NAMES = {BLUE: "trained", TEAL: "derived", AMBER: "today’s setting", RED: "advised"}
STOP = "stop"
"""The parameter of a chart that the slider sets: the number of the stop."""
MOST_POINTS = 60
"""Points drawn of one candidate."""
_ENDED = {"advised": "circle", "kept": "diamond", "beaten": "square", "diverged": "cross"}
_SPOKEN: dict[Quantity, Callable[[Interval], str]] = {
    "seconds": goals.spoken_seconds,
    "examples": goals.spoken_count,
    "score": goals.spoken_score,
}


def frontier(record: Advice, quantity: Quantity) -> Spec | None:
    """One quantity against batch size at every stop; what belongs to another stop than the one set is filtered out."""
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
    sizes = sorted({point["batch"] for point in data})
    along = size_axis("batch", domain_around(sizes, room=1.5), "batch size", sizes)
    value = axis("value", title, domains[found.index(own)], log=log)
    value["scale"]["domain"] = [{"expr": f"ends[{STOP}][0]"}, {"expr": f"ends[{STOP}][1]"}]
    value["axis"].pop("tickCount", None)
    value["axis"]["values"] = {"expr": f"places[{STOP}]"}
    shown = [i for i, name in NAMES.items() if any(point["kind"] == name for point in data)]
    plot = Plot(along, value, kinds(NAMES, shown if len(shown) > 1 else ()))
    today, worked_out = (f"datum.kind == '{NAMES[place]}'" for place in (AMBER, TEAL))
    known = "isValid(datum.value)"
    tips = [SIZE, tip("kind", " "), RATE, tip("text", title.split(",")[0])]
    plot.line(data, where=f"!({today}) && {known}", colour=False, strokeWidth=1.5, opacity=0.45)
    plot.spans(data, opacity=0.75, tips=tips).arrows(data, clip=True, tips=tips)
    look: Spec = {"clip": True, "tips": tips}
    plot.dots(data, where=f"{known} && !({today}) && !({worked_out})", size=90, **FULL, **look)
    plot.add("point", data, where=f"{known} && {worked_out}", size=90, opacity=1, **HOLLOW, **look)
    plot.add("point", data, where=f"{known} && {today}", shape="diamond", size=130, opacity=1, **HOLLOW, **look)
    for layer in plot.layers:
        layer["transform"] = [{"filter": f"datum.{STOP} == {STOP}"}, *layer.get("transform", [])]
    places = [ticks(domain, log).get("values") or _even_ticks(domain) for domain in domains]
    values = {STOP: found.index(own), "ends": domains, "places": places}
    return plot.done(params=[{"name": name, "value": value} for name, value in values.items()])


def _unit_and_title(record: Advice, own: Stop, quantity: Quantity) -> tuple[float, str]:
    if quantity == "seconds":
        unit = f.time_unit(goals.known_of(standing.seconds) for standing in own.standings)
        return unit.size, f"time{' to the target' if record.goal.kind == 'target' else ''}, {unit.name}"
    if quantity == "examples":
        return 1.0, "examples to the target" if record.goal.kind == "target" else "examples until then"
    return 1.0, _score_of(record)


def _score_of(record: Advice) -> str:
    return f"{record.workload.score[:40]} on validation data"


def _present(record: Advice, stop: Stop, quantity: Quantity) -> Interval | None:
    """Today's setting, which is known at the goal asked for alone."""
    present = record.present
    if present is None or stop.goal != record.goal or quantity == "examples":
        return None
    return present.seconds if quantity == "seconds" else present.score


def _intervals(record: Advice, stop: Stop, quantity: Quantity) -> list[Interval]:
    present = _present(record, stop, quantity)
    return [*(_of(standing, quantity) for standing in stop.standings), *([] if present is None else [present])]


def _of(standing: Standing, quantity: Quantity) -> Interval:
    found: Interval = getattr(standing, quantity)
    return found


def _points(record: Advice, stop: Stop, quantity: Quantity, size: float, domain: list[float]) -> list[Point]:
    found: list[tuple[Interval, Point]] = []
    for row, standing in zip(record.frontier, stop.standings, strict=True):
        kind = NAMES[RED if row.batch_size == stop.best else BLUE if row.raced else TEAL]
        place = {"batch": row.batch_size, "kind": kind, "rate": row.learning_rate.value}
        found.append((_of(standing, quantity), place))
    present = _present(record, stop, quantity)
    if present is not None and record.present is not None:
        now = record.present
        found.append((present, {"batch": now.batch_size, "kind": NAMES[AMBER], "rate": now.learning_rate}))
    data = []
    for interval, place in found:
        if (drawn := cut(interval, domain, size)) is not None:
            ends = {key: rounded(drawn[key]) for key in ("value", "low", "high") if drawn[key] is not None}
            flags = {key: True for key in ("below", "above") if drawn[key]}
            data.append({**ends, **flags, "text": _SPOKEN[quantity](interval), **place})
    return data


def _domain(found: list[Interval], size: float, log: bool) -> list[float]:
    """Around the values and those ends that aren't far away, rounded so that it stays between neighbouring stops."""
    # Of what isn't resolved, the bound is all there is to see.
    seen = [(i.value,) if i.value is not None else (i.low, i.high) for i in found]
    values = [value / size for both in seen for value in both if f.known(value)]
    ends = [end / size for i in found for end in (i.low, i.high) if f.known(end)]
    if log:
        low, high = domain_near(values, ends, room=1.12)
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


# Over time


def race(record: Advice) -> Spec | None:
    """Every candidate's curve against its training time: how it stood, where it ended, and the advised one in front."""
    by_score = _follows_score(record.race)
    own = [_candidate(i, each, by_score) for i, each in enumerate(record.race)]
    data = [point for points in own for point in points]
    if len({point["seconds"] for point in data}) < 2:
        return None
    unit = f.time_unit(point["seconds"] for point in data)
    for point in data:
        point["seconds"] = rounded(point["seconds"] / unit.size)
    across = domain_around([point["seconds"] for point in data], room=1.1)
    along = axis("seconds", f"time of training alone, {unit.name}", across, log=True)
    along["axis"]["grid"] = False
    value = _upward(record, data, by_score)
    tips = [SIZE, RATE, tip("seed"), tip("ended"), tip("reason", "why")]
    won, others = "datum.ended == 'advised'", "datum.ended != 'advised'"
    colour = ramp(sorted({point["batch"] for point in data}), 9)
    styles: Spec = {others: {"strokeWidth": 1.3, "opacity": 0.6}, won: {"strokeWidth": 4}}
    plot = curves(along, value, data, colour, styles=styles, tips=tips, height=340)
    low, high = value["scale"]["domain"]
    # What diverged ends far outside, where its sign could not be seen.
    last = [{**points[-1], "value": min(max(points[-1]["value"], low), high)} for points in own if points]
    here = [kind for kind in _ENDED if any(point["ended"] == kind for point in data)]
    shape = {
        "field": "ended",
        "type": "nominal",
        "scale": {"domain": list(_ENDED), "range": list(_ENDED.values())},
        "legend": {"title": None, "orient": "bottom", "values": here, "symbolSize": 70, "symbolStrokeWidth": 2},
    }
    look: Spec = {"opacity": 1, "tips": tips, "channels": {"shape": shape}}
    plot.add("point", last, where=others, size=45, **HOLLOW, **look)
    plot.add("point", last, where=won, size=130, **FULL, **look)
    first = [points[-1] for points in own if points and points[-1]["ended"] == "advised"][:1]
    return plot.text(first, "label", align="right", dx=-8, dy=-14).done()


def _follows_score(candidates: Iterable[RaceCandidate]) -> bool:
    """Whether most candidates were evaluated often enough for a curve, and not with one score everywhere."""
    own = [[point.score for point in each.points if f.known(point.score)] for each in candidates]
    enough = sum(len(scores) >= 2 for scores in own)
    return 2 * enough > len(own) and len({score for scores in own for score in scores}) > 1


def _candidate(run: int, each: RaceCandidate, by_score: bool) -> list[Point]:
    points = [(point.seconds, point.score if by_score else point.loss) for point in each.points if point.seconds > 0]
    name = {
        "batch": each.batch_size,
        "rate": each.learning_rate,
        "seed": each.seed,
        "ended": each.ended,
        "reason": f.shortened(each.reason),
        "label": f"{goals.ADVISED}: {f.count(each.batch_size)} at {f.number(each.learning_rate, 3)}",
        "run": run,
    }
    kept = thinned([(seconds, value) for seconds, value in points if f.known(value)], MOST_POINTS)
    return [{**name, "seconds": seconds, "value": rounded(value)} for seconds, value in kept]


def _upward(record: Advice, data: list[Point], by_score: bool) -> Spec:
    ends = sorted(point["value"] for point in data)
    if by_score:
        domain = with_headroom(score_domain(ends), 1, 340, log=False)
        return axis("value", _score_of(record), domain, log=False)
    low, high = ends[0], ends[-len(ends) // 10] if len(ends) >= 10 else ends[-1]
    evaluated = all(f.known(point.score) for each in record.race for point in each.points)
    title = "validation loss" if evaluated else "loss of each batch before its update"
    if low > 0 and high / low >= 4:
        return axis("value", title, domain_around([low, high], room=1.1), log=True)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return axis("value", title, [low - pad, high + pad], log=False)


def forecast(record: Advice) -> Spec | None:
    """The advised batch size: what was measured of it, and the curve with its band on to the goal."""
    row = next((row for row in record.frontier if row.batch_size == record.batch_size), None)
    if row is None:
        return None
    ahead = [point for point in row.forecast if f.known(point.score.value) and point.seconds > 0 and point.examples > 0]
    if len(ahead) < 2:
        return None
    by_examples = record.goal.kind == "examples"
    unit = f.Unit("", 1.0) if by_examples else f.time_unit(point.seconds for point in ahead)

    def at(point: Any) -> float:
        place: float = (point.examples if by_examples else point.seconds) / unit.size
        return place

    names = {BLUE: "measured", TEAL: "forecast", RED: "goal"}
    line: list[Point] = []
    for point in ahead:
        line.append({"at": at(point), "value": point.score.value, "text": goals.spoken_score(point.score)})
        if f.known(point.score.low) and f.known(point.score.high):
            line[-1] |= {"low": point.score.low, "high": point.score.high}
        line[-1]["kind"] = names[TEAL]
    seen: list[Point] = [
        {
            "at": at(point),
            "value": point.score,
            "text": f"{f.number(point.score)}, seed {each.seed}",
            "kind": names[BLUE],
        }
        for each in _advised(record, row)
        for point in each.points
        if f.known(point.score) and point.seconds > 0 and point.examples > 0
    ]
    goal = _goal(record, unit.size, by_examples)
    title = "examples" if by_examples else f"time of training, {unit.name}"
    along = axis("at", title, domain_around([*(p["at"] for p in (*line, *seen)), goal.where], room=1.1), log=True)
    along["axis"]["grid"] = False
    target = record.goal.value if record.goal.kind == "target" else None
    value = axis("value", _score_of(record), _scores(target, seen, line), log=False)
    tips = [tip("at", title, ",.3~g"), tip("text", "score")]
    plot = Plot(along, value, kinds(names, (BLUE, TEAL) if seen else (TEAL,)))
    plot.band(line)
    level = (target, f"target {f.number(target)}")
    bare = [{key: point[key] for key in point if key not in ("low", "high")} for point in line]
    look = {"strokeWidth": 2.2, "tips": tips}
    return intervals(
        along, value, seen, tips, names, law=bare, law_look=look, marks=[goal], level=level, size=50, under=plot
    ).done()


def _advised(record: Advice, row: FrontierRow) -> list[RaceCandidate]:
    return [each for each in record.race if each.ended == "advised" and each.batch_size == row.batch_size]


def _goal(record: Advice, size: float, by_examples: bool) -> Mark:
    """Where the goal lies: the predicted time with its interval, or the end of the budget."""
    if record.goal.kind == "target":
        found = record.predicted_seconds
        value, low, high = (None if end is None else end / size for end in (found.value, found.low, found.high))
        return Mark(value, goals.spoken_seconds(found), RED, Interval(value, low, high))
    where = record.goal.value if by_examples else record.goal.value / size
    return Mark(where, f"{goals.goal_text(record.goal)}: {goals.spoken_score(record.predicted_score)}", RED)


def _scores(target: float | None, seen: list[Point], line: list[Point]) -> list[float]:
    values = sorted(point["value"] for point in (*seen, *line))
    low, high = values[len(values) // 10], max(values[-1], values[-1] if target is None else target)
    spread = high - low or 0.05 * abs(high) or 0.05
    ends = [point[end] for point in line for end in ("low", "high") if end in point]
    ends = [end for end in ends if low - 0.3 * spread <= end <= high + 0.3 * spread]
    return with_headroom([min([low, *ends]) - 0.05 * spread, max([high, *ends]) + 0.05 * spread], 2, log=False)

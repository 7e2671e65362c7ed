"""The charts of a sweep: what the target takes by measurement and by law, scores, curves, and all rates tried."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

from batchscope.fit.tradeoff import REGIME
from batchscope.fit.tradeoff_band import tradeoff_band
from batchscope.records import Edge, Interval, RateLaw, Sweep, SweepTrial, TradeoffLaw
from batchscope.report import formatting as f
from batchscope.report.charts.axes import (
    HEIGHT,
    LABEL_HEIGHT,
    Point,
    Spec,
    axis,
    cut,
    domain_around,
    domain_near,
    geometric,
    rounded,
    size_axis,
    thinned,
    with_headroom,
)
from batchscope.report.charts.curves import curves, score_domain
from batchscope.report.charts.heat_map import heat_map
from batchscope.report.charts.intervals import intervals
from batchscope.report.charts.plot import AMBER, BLUE, HOLLOW, RATE, RED, SIZE, TEAL, Mark, Plot, kinds, ramp, tip

MEASURED, BY_LAW, FRONT, OFF_FRONT, HIGHEST = "measured", "by the law", "on the front", "beaten in both", "highest"
REGIMES = {TEAL: "perfect scaling", AMBER: "diminishing returns", RED: "flat"}
BEST, LINEAR, ROOT, LAW = "best rate", "linear rule", "square-root rule", "fitted law"
DIVERGED, PRUNED, MISSED, FAILED = "diverged", "pruned", "missed the target", "no result"
SHAPES = {DIVERGED: "M-1,-1L1,1M-1,1L1,-1", PRUNED: "triangle-down", MISSED: "stroke", FAILED: "square"}
"""What stands in a cell without a number; each is told by its shape alone."""
MOST_POINTS = 60
"""Evaluations drawn of one run."""

_NARROWEST = 0.13  # of the axis: where a regime's name still has room
_CELL, _LEAST, _MOST = 21, 220, 460  # pixels of height: of a factor √2 of the rate where there is room, of the chart
_TIPS = (SIZE, tip("kind", " "))


# What the target takes


def updates_to_target(record: Sweep | TradeoffLaw) -> Spec | None:
    """Updates to the target against batch size: measured, by the law, and its three regimes."""
    return _to_the_target(record, per_update=True)


def examples_to_target(record: Sweep | TradeoffLaw) -> Spec | None:
    """Examples to the target, likewise."""
    return _to_the_target(record, per_update=False)


def needed(record: Sweep | TradeoffLaw) -> list[tuple[int, Interval, int, int]]:
    """Batch size, examples to the target, runs that count, and those that missed it.

    From a sweep the examples have the runs' interval. Where no run reached the target they are unresolved, with a lower
    end.
    """
    if isinstance(record, Sweep):
        lines = [line for line in record.best if line.runs]
        return [(line.batch_size, line.examples_to_target, line.runs, line.runs - line.reached) for line in lines]
    return [
        (p.batch_size, _exactly(p.examples) if p.examples else Interval.unresolved(low=p.at_least), p.runs, p.missed)
        for p in record.points
    ]


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)


def _to_the_target(record: Sweep | TradeoffLaw, *, per_update: bool) -> Spec | None:
    law = record.law if isinstance(record, Sweep) else record
    found = needed(record)
    if law is None or not any(examples.value for _, examples, _, _ in found):
        return None
    unit, height = "updates" if per_update else "examples", HEIGHT + 20
    scaled = [(size, examples, size if per_update else 1.0, runs, missed) for size, examples, runs, missed in found]
    across = domain_around([size for size, *_ in found], room=1.5)
    places = geometric(across)
    curve: list[Point] = [
        {"batch": size, **{key: end / (size if per_update else 1) for key, end in _ends(interval).items()}}
        for size, interval in zip(places, tradeoff_band(law, places), strict=True)
        if interval.value is not None
    ]
    centres = [(examples.value or examples.low or 0.0) / by for _, examples, by, _, _ in scaled]
    ends = [end / by for _, i, by, _, _ in scaled for end in (i.low, i.high) if i.value is not None and end is not None]
    domain = domain_near([*centres, *(point["value"] for point in curve)], ends)
    domain = with_headroom(domain, 4 if law.critical_batch_size.value else 1, log=True)
    data: list[Point] = []
    for size, examples, by, runs, missed in scaled:
        text = {"batch": size, "kind": MEASURED, "missed": missed}
        text["runs"] = f"{runs}, {missed} missed the target" if missed else f"{runs}"
        value, low, high = (None if end is None else end / by for end in (examples.value, examples.low, examples.high))
        if value is not None:
            spread = high is not None and low is not None and low < value < high
            ends_said = f" ({f.number(low, 3)} to {f.number(high, 3)})" if spread else ""
            drawn = cut(Interval(value, value if low is None else low, value if high is None else high), domain) or {}
            data.append({**text, **drawn, "text": f"{f.number(value, 3)}{ends_said}"})
        elif f.known(low) and low >= domain[0]:  # a bound that lies far below everything else says nothing
            data.append({**text, "low": low, "text": f"{f.count(low)} or more"})
    critical = law.critical_batch_size
    where = critical.value or critical.low or (critical.high if f.known(critical.high) else None)
    said = f.between(critical) if critical.value is None else f.sized(critical)
    names = {BLUE: MEASURED, **REGIMES}
    along = size_axis("batch", across, "batch size", [size for size, *_ in found])
    plot = Plot(along, axis("value", f"{unit} to the target", domain, log=True), kinds(names), height=height)
    regimes = _regimes(law, across)
    plot.add("rect", regimes, along="low", along_to="high", value=False, opacity=0.09)
    _critical(plot, critical)
    tips = [SIZE, tip("text", unit), tip("runs")]
    marks = [Mark(where, f"B_crit {said}", dashed=True)]
    intervals(along, plot.value, data, tips, names, law=curve, marks=marks, hollow="datum.missed > 0", under=plot)
    wedge: Spec = {"shape": "triangle-up", "size": 120, "opacity": 1, **HOLLOW}
    plot.add("point", data, value="low", where="!isValid(datum.value)", tips=tips, **wedge)
    lettering: Spec = {"baseline": "top", "lineBreak": "\n", "fontSize": 11.5, "align": "center"}
    return plot.text(regimes, "name", along="at", value=6 + LABEL_HEIGHT, **lettering).done()


def _ends(interval: Interval) -> dict[str, float]:
    return {key: end for key, end in (("value", interval.value), ("low", interval.low), ("high", interval.high)) if end}


def _critical(plot: Plot, critical: Interval) -> None:
    """The interval of B_crit as a bar along the axis, with arrows where it goes on."""
    drawn = cut(critical, plot.along["scale"]["domain"])
    if drawn is None or not drawn["low"] < drawn["high"]:
        return
    bar, level = [drawn], plot.height - 1
    plot.add("rule", bar, along="low", along_to="high", value=level, colour=False, strokeWidth=5, opacity=0.9)
    for flag, side, end in (("below", "left", "low"), ("above", "right", "high")):
        if drawn[flag]:
            wedge: Spec = {"shape": f"triangle-{side}", "size": 80, "filled": True, "opacity": 1}
            plot.add("point", bar, along=end, value=level, colour=False, **wedge)


def _regimes(law: TradeoffLaw, across: list[float]) -> list[Point]:
    """The three regimes between the ends of the axis, with a name where it has room; none where B_crit is not known."""
    critical = law.critical_batch_size.value
    if critical is None:
        return []
    first, last = across
    borders = [first, *(min(max(at, first), last) for at in (critical / REGIME, critical * REGIME)), last]
    data: list[Point] = []
    for name, low, high in zip(REGIMES.values(), borders, borders[1:], strict=False):
        if low < high:
            wide = math.log(high / low) / math.log(last / first)
            named = "\n".join(name.split()) if wide >= _NARROWEST else ""
            data.append({"low": low, "high": high, "kind": name, "at": math.sqrt(low * high), "name": named})
    return data


# Time


def seconds_to_target(record: Sweep) -> Spec | None:
    """Seconds to the target against batch size: measured, by the law, and where they are least."""
    timed = record.time
    if timed is None or not timed.points:
        return None
    measured = [(line.batch_size, line.seconds_to_target) for line in record.best if line.seconds_to_target.value]
    law = [(point.batch_size, point.seconds) for point in timed.points if point.seconds.value]
    both = [interval for _, interval in [*law, *measured]]
    if not both:
        return None
    unit = f.time_unit(interval.value for interval in both)
    ends = [end / unit.size for interval in both for end in (interval.low, interval.high) if end is not None]
    body = domain_near([(interval.value or 0.0) / unit.size for interval in both], ends)
    names = {BLUE: MEASURED, TEAL: BY_LAW, RED: "fastest"}
    data, line = (
        [
            {"batch": size, "kind": kind, "text": f.within(interval, unit), **(cut(interval, body, unit.size) or {})}
            for size, interval in found
        ]
        for kind, found in ((MEASURED, measured), (BY_LAW, law))
    )
    sizes = [size for size, _ in [*law, *measured]]
    best, reach = timed.best_batch_size, timed.within_ten_per_cent
    within = Interval(best.value, *reach) if reach else None
    tips = [*_TIPS, tip("text", "time")]
    plot = intervals(
        size_axis("batch", domain_around([*sizes, best.value], room=1.5), "batch size", sizes),
        axis("value", f"time to the target, {unit.name}", with_headroom(body, 2, log=True), log=True),
        data,
        tips,
        names,
        legend=[place for place, points in ((BLUE, data), (TEAL, line)) if points],
        law=line,
        law_look={"strokeWidth": 2},
        marks=[Mark(best.value, f"fastest {f.sized(best)}", RED, within)],
    )
    return plot.dots(line, size=26, style="", tips=tips).done()


def front(record: Sweep) -> Spec | None:
    """Seconds against examples to the target: a batch size on the front is beaten by no other in both."""
    found = [p for p in (record.time.points if record.time else ()) if p.examples.value and p.seconds.value]
    if not found:
        return None
    unit = f.time_unit(point.seconds.value for point in found)
    names = {BLUE: FRONT, AMBER: OFF_FRONT}
    data: list[Point] = [
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
    domain = with_headroom(domain_around([point["value"] for point in data], room=1.3), 1, log=True)
    along = axis("examples", "examples to the target", domain_around([p["examples"] for p in data], 1.3), log=True)
    along["axis"]["grid"] = False
    value = axis("value", f"time to the target, {unit.name}", domain, log=True)
    legend = [place for place, name in names.items() if any(point["kind"] == name for point in data)]
    plot = Plot(along, value, kinds(names, legend))
    order = {"order": {"field": "examples", "type": "quantitative"}}
    plot.line(data, where=f"datum.kind == '{FRONT}'", strokeWidth=2, opacity=0.5, channels=order)
    tips = [*_TIPS, tip("text", "needs")]
    intervals(along, value, data, tips, names, hollow=f"datum.kind != '{FRONT}'", size=90, under=plot)
    return plot.text(data[:: math.ceil(len(data) / 14)], "name", align="left", dx=9, dy=-9).done()


# Scores


def score_by_size(record: Sweep) -> Spec | None:
    """Best validation score against batch size, each at its best rate."""
    found = [line for line in record.best if f.known(line.score.value)]
    if not found or (record.target is not None and record.law is not None):
        return None
    values = [end for line in found for end in (line.score.value, line.score.low, line.score.high) if f.known(end)]
    middle = {line.batch_size: line.score.value for line in found if f.known(line.score.value)}
    least, most = min(middle.values()), max(middle.values())
    spread = max(most - least, 0.02 * max(map(abs, middle.values())), 1e-6)
    low, high = max(min(values), least - 2 * spread), min(max(values), most + 2 * spread)
    if record.target is not None:
        high = max(high, record.target)
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    domain = with_headroom([low - pad, high + pad], 1, log=False)
    best = max(middle, key=lambda size: middle[size])
    names = {BLUE: MEASURED, RED: HIGHEST}
    data: list[Point] = [
        {
            **(cut(line.score, domain) or {}),
            "value": line.score.value,
            "batch": line.batch_size,
            "kind": HIGHEST if line.batch_size == best and len(found) > 1 else MEASURED,
            "text": f.estimate(line.score, 4),
            "runs": line.runs,
        }
        for line in found
    ]
    return intervals(
        size_axis("batch", domain_around(middle, room=1.5), "batch size", list(middle)),
        axis("value", f"best {record.workload.score[:40]} on validation data", domain, log=False),
        data,
        [*_TIPS, tip("text", "score"), tip("runs", format="d")],
        names,
        legend=tuple(names) if len(found) > 1 else (),
        level=(record.target, f"target {f.number(record.target)}"),
        size=85,
    ).done()


def best_curves(record: Sweep) -> Spec | None:
    """Score against examples at each batch size's best rate, a line per run."""
    best = {(line.batch_size, line.learning_rate) for line in record.best}
    data: list[Point] = [
        {
            "examples": point.examples,
            "score": rounded(point.score, 5),
            "batch": trial.batch_size,
            "rate": trial.learning_rate,
            "run": f"batch {trial.batch_size}, seed {trial.seed}",
        }
        for trial in sorted(record.trials, key=lambda trial: trial.batch_size)
        if (trial.batch_size, trial.learning_rate) in best
        for point in thinned([p for p in trial.curve if f.known(p.score) and p.examples > 0], MOST_POINTS)
    ]
    if len({point["examples"] for point in data}) < 2:
        return None
    return curves(
        axis("examples", "examples seen", domain_around([point["examples"] for point in data], room=1.05), log=True),
        axis(
            "score",
            f"{record.workload.score[:40]} on validation data",
            score_domain([point["score"] for point in data]),
            log=False,
        ),
        data,
        ramp(sorted({point["batch"] for point in data}), 5),
        styles={"": {"strokeWidth": 1.6, "opacity": 0.85}},
        tips=[SIZE, RATE, tip("run")],
        level=(record.target, ""),
    ).done()


# Learning rates


def best_rate(record: Sweep) -> Spec | None:
    """The best rate of each batch size with its bracket, both scaling rules through today's setting, and the law."""
    points = _best_rates(record)
    if not points:
        return None
    today = record.workload
    sizes = sorted({point["batch"] for point in points})
    across = domain_around([*sizes, today.batch_size], room=1.5)
    law = _rate_law(record.rate_law, across)
    rates = [end for point in points for end in (point["low"], point["high"], point["value"])]
    domain = domain_around([*rates, *(point["value"] for point in law), today.learning_rate], room=1.5)
    names = {BLUE: BEST, TEAL: LAW, AMBER: LINEAR, RED: ROOT}
    along, value = size_axis("batch", across, "batch size", sizes), axis("value", "learning rate", domain, log=True)
    plot = Plot(along, value, kinds(names, [BLUE, *([TEAL] if law else []), AMBER, RED]))
    for name, power, dash in ((LINEAR, 1.0, [6, 4]), (ROOT, 0.5, [2, 3])):
        rule = [
            {"batch": size, "value": today.learning_rate * (size / today.batch_size) ** power, "kind": name}
            for size in across
        ]
        plot.line(rule, strokeWidth=1.5, strokeDash=dash)
    plot.line(law, strokeWidth=2).spans(points, strokeWidth=3, opacity=0.45)
    tips = [SIZE, tip("value", "best rate", ".3~g"), tip("text", "worse below and above")]
    plot.dots(points, where="!isValid(datum.edge)", size=85, tips=tips)
    for edge, shape in (("highest", "triangle-up"), ("lowest", "triangle-down")):
        plot.add(
            "point", points, where=f"datum.edge == '{edge}'", shape=shape, size=120, opacity=1, tips=tips, **HOLLOW
        )
    here: list[Point] = [{"batch": today.batch_size, "value": today.learning_rate, "text": "today"}]
    plot.add("point", here, colour=False, shape="diamond", size=120, opacity=1, **HOLLOW)
    return plot.text(here, align="left", baseline="top", dx=8, dy=4).done()


def _best_rates(record: Sweep) -> list[Point]:
    """As the law was fitted to them, or, without one, as the sweep found them between their neighbours."""

    def point(batch: int, rate: float, low: float, high: float, edge: Edge | None) -> Point:
        beyond = {"lowest": "the lowest tried", "highest": "the highest tried"}
        text = beyond[edge] if edge else f"{f.number(low, 3)} and {f.number(high, 3)}"
        return {"batch": batch, "value": rate, "low": low, "high": high, "edge": edge, "kind": BEST, "text": text}

    if record.rate_law is not None:
        return [point(p.batch_size, p.learning_rate, p.low, p.high, p.edge) for p in record.rate_law.points]
    found = []
    for line in record.best:
        if (rate := line.learning_rate) is not None:
            low = max((other for other in line.rates if other < rate), default=rate)
            high = min((other for other in line.rates if other > rate), default=rate)
            found.append(point(line.batch_size, rate, low, high, line.edge))
    return found


def _rate_law(law: RateLaw | None, across: list[float]) -> list[Point]:
    if law is None:
        return []
    if law.form == "power" and law.exponent.value is not None:
        power = law.exponent.value
        drawn = [(size, law.coefficient * size**power) for size in across]
    elif law.form == "saturating" and law.largest_rate.value is not None and law.half_batch_size.value is not None:
        most, half = law.largest_rate.value, law.half_batch_size.value
        drawn = [(size, most / (1 + half / size)) for size in geometric(across)]
    else:
        drawn = [(point.batch_size, point.predicted) for point in law.points]
    return [{"batch": size, "value": rate, "kind": LAW} for size, rate in drawn if f.known(rate) and rate > 0]


def rate_map(record: Sweep) -> Spec | None:
    """Every batch size and rate as a cell: examples to the target, or the score, and what became of those without."""
    to_target = record.target is not None and any(trial.outcome == "reached" for trial in record.trials)
    cells = _cells(record, to_target)
    if not cells:
        return None
    known = [cell["value"] for cell in cells if cell["value"] is not None]
    domain = [min(cell["low"] for cell in cells), max(cell["high"] for cell in cells)]
    step = min(math.log(cell["high"] / cell["low"]) for cell in cells)
    height = round(min(max(math.log(domain[1] / domain[0]) / step * _CELL, _LEAST), _MOST))
    sizes = sorted({cell["batch"] for cell in cells})
    along = {
        "field": "batch",
        "type": "ordinal",
        "title": "batch size",
        "sort": sizes,
        "axis": {"grid": False, "labelAngle": 0, "labelExpr": "format(datum.value, ',d')", "labelOverlap": "greedy"},
        "scale": {"paddingInner": 0.06, "paddingOuter": 0.03},
    }
    value = axis("rate", "learning rate", domain, log=True)
    value["axis"]["grid"] = False
    title = "examples to the target" if to_target else f"best {record.workload.score[:40]}"
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    low, high = (low / 1.01, high * 1.01) if to_target else (low, high if high > low else low + 1e-6)
    label = "datum.value < 10000 ? format(datum.value, ',.4~g') : format(datum.value, '.2~s')"
    legend = {"title": title, "orient": "top", "gradientLength": 150, "gradientThickness": 9, "tickCount": 3}
    scale = {"type": "log" if to_target else "linear", "scheme": "viridis", "domain": [low, high], "reverse": to_target}
    colour = {
        "field": "value",
        "type": "quantitative",
        "scale": scale,
        "legend": legend | {"labelExpr": label} if known else None,
    }
    tips = [SIZE, RATE, tip("text", title), tip("runs")]
    plot = heat_map(along, value, cells, colour, tips=tips, height=height)
    ends: Spec = {"value": "low", "to": "high", "colour": False}
    plot.add("rect", cells, where="datum.best", fillOpacity=0, strokeWidth=3, style="chosen", **ends)
    here = [name for name in SHAPES if any(cell["state"] == name for cell in cells)]
    legend = {"title": None, "orient": "bottom", "values": here, "columns": 2, "symbolSize": 70, "symbolStrokeWidth": 2}
    shape = {
        "field": "state",
        "type": "nominal",
        "scale": {"domain": list(SHAPES), "range": list(SHAPES.values())},
        "legend": legend if here else None,
    }
    sign: Spec = {"size": 45, "filled": False, "strokeWidth": 1.8, "opacity": 1}
    empty = "!isValid(datum.value)"
    plot.add("point", cells, where=empty, colour=False, channels={"shape": shape}, tips=tips, **sign)
    if height * step / math.log(domain[1] / domain[0]) >= 13:
        # On a dark cell light letters, on a light one dark: by where its value lies on the scale.
        place = (
            f"log(datum.value / {low}) / log({high} / {low})"
            if to_target
            else f"(datum.value - {low}) / ({high - low})"
        )
        dark = f"({place}) > 0.55" if to_target else f"({place}) < 0.55"
        lettering: Spec = {"fontSize": 10.5, "opacity": {"expr": f"width / {len(sizes)} < 40 ? 0 : 1"}}
        text = {"text": {"field": "short", "type": "nominal"}}
        for sign_of, letters in (("", "#ffffff"), ("!", "#1c1e21")):
            where = f"isValid(datum.value) && {sign_of}({dark})"
            plot.add("text", cells, where=where, colour=False, channels=text, **lettering, color=letters)
    return plot.done(resolve={"scale": {"color": "independent"}})


def _cells(record: Sweep, to_target: bool) -> list[Point]:
    found: dict[int, dict[float, list[SweepTrial]]] = {}
    for trial in record.trials:
        found.setdefault(trial.batch_size, {}).setdefault(trial.learning_rate, []).append(trial)
    best = {line.batch_size: line.learning_rate for line in record.best}
    data: list[Point] = []
    for size, by_rate in sorted(found.items()):
        rates = sorted(by_rate)
        for rate, (low, high) in zip(rates, extents(rates), strict=True):
            outcomes = Counter[str](trial.outcome for trial in by_rate[rate])
            value = _cell_value(by_rate[rate], to_target)
            cell: Point = {"batch": size, "rate": rate, "low": low, "high": high, "value": value}
            cell["state"] = "" if value is not None else _cell_state(outcomes, to_target)
            cell["short"] = "" if value is None else _thousands(value) if to_target else f.number(value, 3)
            cell["text"] = f.UNKNOWN if value is None else f.count(value) if to_target else f.number(value, 4)
            cell["runs"] = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
            data.append(cell | {"best": best.get(size) == rate})
    return data


def _cell_value(trials: Sequence[SweepTrial], to_target: bool) -> float | None:
    """Geometric mean of examples to the target, missed ones at what they spent; or the mean best score."""
    ended = [trial for trial in trials if trial.outcome in ("reached", "finished")]
    if not to_target:
        scores = [trial.best_score for trial in ended if trial.best_score is not None]
        return sum(scores) / len(scores) if scores else None
    if not any(trial.outcome == "reached" for trial in ended):
        return None
    logs = [math.log(max(1, trial.examples_to_target or trial.examples)) for trial in ended]
    return math.exp(sum(logs) / len(logs))


def _cell_state(outcomes: Counter[str], to_target: bool) -> str:
    """What a cell without a number shows: what befell most of its trials."""
    numbers = {
        MISSED: outcomes["finished"] + outcomes["reached"] if to_target else 0,
        PRUNED: outcomes["pruned"],
        DIVERGED: outcomes["diverged"],
        FAILED: outcomes["out of memory"] + outcomes["crashed"] + outcomes["timed out"],
    }
    return max(numbers, key=lambda kind: numbers[kind])


def extents(rates: Sequence[float]) -> list[tuple[float, float]]:
    """From the middle towards the rate below to the middle towards the one above, on a logarithmic axis.

    An end that has no neighbour is as far away as the other one; a rate on its own reaches a factor √2 both ways.
    """
    steps = [math.sqrt(b / a) for a, b in itertools.pairwise(rates)]
    nearest = min(steps, default=math.sqrt(2))
    below, above = [nearest, *steps], [*steps, nearest]
    return [(rate / b, rate * a) for rate, b, a in zip(rates, below, above, strict=True)]


def _thousands(examples: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if examples >= 0.9995 * size:
            return f"{f.number(examples / size, 2 if examples < 9.95 * size else 3)}{letter}"
    return f.count(examples)

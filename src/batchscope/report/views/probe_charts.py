"""The charts of a probe: the three limits on one axis, what an update costs, gradients, branched runs, range test."""

from __future__ import annotations

import math
from typing import Any

from batchscope.records import BranchedRuns, Interval, MemoryUse, NoiseMeasurement, Probe, RangeTest, StepTimes
from batchscope.report import formatting as f
from batchscope.report.charts.axes import (
    COUNT,
    HEIGHT,
    LABEL_HEIGHT,
    LOGARITHMIC,
    Point,
    Spec,
    axis,
    cut,
    domain_around,
    domain_near,
    geometric,
    memory_axis,
    rate_axis,
    size_axis,
    with_headroom,
)
from batchscope.report.charts.curves import curves
from batchscope.report.charts.intervals import intervals
from batchscope.report.charts.plot import AMBER, BLUE, DASHED, RATE, RED, SIZE, TEAL, Mark, Plot, kinds, tip

LIMITS = {BLUE: "throughput knee", RED: "worth having", TEAL: "critical batch", AMBER: "memory"}
"""What the colours stand for, here and on the cards."""
WAITING = "waits for data"
SCALE, SCALED, BRANCHED = "noise scale", "preconditioned", "branched runs"
RECOVERED, FAILED, OPEN = "came back", "did not", "inconclusive"


def limits(record: Probe) -> Spec:
    """The three limits, what is used today and what is worth having, on one axis of batch sizes."""
    found, today = record.limits, record.workload.batch_size
    rows = {BLUE: found.knee, RED: found.worth_having, TEAL: found.critical}
    centres = [today, found.memory, *(i.value if i.value is not None else i.low or i.high for i in rows.values())]
    ends = [end for interval in rows.values() for end in (interval.low, interval.high)]
    domain = domain_near(centres, ends, far=1000.0, room=1.0)
    domain = domain_around(domain, room=1.9 if domain[1] > 8 * domain[0] else 8.0)

    def row(number: int, place: int) -> Point:
        named: Point = {"place": number, "kind": LIMITS[place]}
        if place == AMBER:
            if (most := found.memory) is None:
                return {**named, "text": "not known", "at": domain[0], "align": "none"}
            bar = {"value": most, "low": domain[0], "high": most, "below": False, "above": False}
            return {**named, **bar, "text": f"micro-batches up to {f.count(most)}", **_anchor(most, domain)}
        named["text"] = f.sized(rows[place])
        if (drawn := cut(rows[place], domain)) is None:
            return {**named, "at": domain[0], "align": "none"}
        return {**named, **drawn, **_anchor(drawn["value"] or math.sqrt(drawn["low"] * drawn["high"]), domain)}

    data = [row(number, place) for number, place in enumerate(LIMITS)]
    titles = [name.split(" ", 1) for name in LIMITS.values()]
    look = {"values": list(range(len(LIMITS))), "labelExpr": f"{titles}[datum.value]", "labelFontSize": 13}
    along = axis("place", None, [len(LIMITS) - 0.4, -0.9], log=False, grid=False, **look)
    value = size_axis("value", domain, "batch size, log scale")
    plot = Plot(along, value, kinds(LIMITS), height=62 * len(LIMITS) + 30, flip=True)
    worth = cut(found.worth_having, domain)
    if found.worth_having.resolved and worth and not (worth["below"] or worth["above"]):
        band = [{**worth, "kind": LIMITS[RED]}]
        plot.add("rect", band, along=False, value="low", to="high", opacity=0.1)
    # The label of today's size keeps off the band where there is room on the other side.
    left = bool(worth and domain[0] * (domain[1] / domain[0]) ** 0.22 < today < worth["high"]) or None
    upright = Plot(value, along).marks([Mark(today, f"today {f.count(today)}", dashed=True, left=left)])
    for layer in upright.layers:  # drawn on the other pair of axes
        layer["data"] = {"values": upright.done()["datasets"][layer["data"]["name"]]}
    plot.layers += upright.layers
    is_memory = f"datum.kind == '{LIMITS[AMBER]}'"
    plot.spans(data, where=f"isValid(datum.low) && !({is_memory})", strokeWidth=5, opacity=0.55)
    plot.spans(data, where=f"isValid(datum.low) && {is_memory}", strokeWidth=12, opacity=0.22, strokeCap="butt")
    plot.arrows(data, size=90).dots(data, size=150, tips=[tip("kind", " "), tip("text", "batch size")])
    lettering: Spec = {align: {"align": align, "dy": -17, "fontWeight": 600} for align in ("left", "center", "right")}
    for align, styles in (lettering | {"none": {"align": "left", "dx": 8, "fontStyle": "italic"}}).items():
        plot.text([each for each in data if each["align"] == align], value="at", fontSize=13, **styles)
    return plot.done()


def _anchor(at: float, domain: list[float]) -> Point:
    """Where a label is put so that it stays inside the plot."""
    share = math.log(at / domain[0]) / math.log(domain[1] / domain[0])
    return {"at": at, "align": "left" if share < 0.34 else "right" if share > 0.66 else "center"}


def step_time(steps: StepTimes) -> Spec | None:
    """Time per update against batch size: computing with its law, getting the batch, and the knee."""
    unit = f.time_unit(point.compute_seconds.value for point in steps.points)
    names = {BLUE: "computing", AMBER: "getting the batch"}
    data = [
        _measured(point.batch_size, interval, unit.size, kind) | {"text": unit.text(interval.value)}
        for point in steps.points
        for kind, interval in zip(names.values(), (point.compute_seconds, point.data_seconds), strict=True)
        if f.known(interval.value) and interval.value > 0
    ]
    if not data:
        return None
    along = _sizes_of(steps)
    law = _law(steps, along, lambda size, seconds: seconds / unit.size)
    values = [point.get(key) for point in [*data, *law] for key in ("value", "low", "high")]
    domain = with_headroom(domain_around(values), 2, log=True)
    for point in data:
        point["low"] = point["low"] and max(point["low"], domain[0])  # an end at zero is off the axis
    value = axis("value", f"time of an update, {unit.name}", domain, log=True)
    plot = _waits(Plot(along, value, kinds(names, (BLUE, AMBER))), steps, names[AMBER])
    reading = f"datum.kind == '{names[AMBER]}'"
    plot.line(data, where=reading, strokeWidth=1.5, strokeDash=[4, 3], opacity=0.8)
    tips = [SIZE, tip("text", "time")]
    return intervals(along, value, data, tips, names, law=law, marks=_knee(steps), under=plot).done()


def throughput(steps: StepTimes) -> Spec | None:
    """Examples per second against batch size: measured, what computing alone would give, the knee and the fastest."""
    names = {BLUE: "measured", AMBER: WAITING}
    data = [
        _measured(p.batch_size, p.examples_per_second, 1.0, names[BLUE])
        | {"text": f"{f.number(p.examples_per_second.value, 3)} examples/s"}
        for p in steps.points
        if f.known(p.examples_per_second.value)
    ]
    if not data:
        return None
    along = _sizes_of(steps)
    law = _law(steps, along, lambda size, seconds: size / seconds)
    highest = max(point[key] for point in [*data, *law] for key in ("value", "high") if f.known(point.get(key)))
    value = axis("value", "examples/s", with_headroom([0.0, highest * 1.02], 3, log=False), log=False)
    marks = _knee(steps)
    if len(steps.points) > 1:
        shown = f.number(steps.most_examples_per_second, 3)
        marks.append(Mark(steps.fastest_batch_size, f"fastest {f.count(steps.fastest_batch_size)}: {shown}/s"))
    plot = _waits(Plot(along, value, kinds(names, (BLUE,))), steps, WAITING)
    intervals(along, value, data, [SIZE, tip("text", "examples/s")], names, law=law, marks=marks, under=plot)
    fastest = f"datum.batch == {steps.fastest_batch_size}"
    return plot.add("point", data, where=fastest, size=230, filled=False, strokeWidth=2, opacity=1).done()


def memory(use: MemoryUse) -> Spec | None:
    """Peak memory against micro-batch size: measured, the law, the limit, and the largest that ran and should fit."""
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
        law = [{"batch": size, "value": state + each * size} for size in geometric(across) if state + each * size > 0]
    walls: list[tuple[float, str, dict[str, Any]]] = []
    if use.limit_bytes is not None:
        source = "" if use.limit_source == "unknown" else f", {use.limit_source}"
        solid = {"strokeDash": [], "strokeWidth": 2}
        walls.append((use.limit_bytes, f"limit {f.memory(use.limit_bytes)}{source}", solid))
        if use.margin > 0:
            left = use.limit_bytes * (1 - use.margin)
            walls.append((left, f"less {use.margin:.0%}: {f.memory(left)}", {}))
    values = [*(point["value"] for point in [*data, *law]), *(wall[0] for wall in walls)]
    value = memory_axis("value", with_headroom(domain_around(values, room=1.5), 2, log=True), "peak memory")
    marks = []
    if use.largest_executed is not None:
        marks.append(Mark(use.largest_executed, f"ran {f.count(use.largest_executed)}", AMBER))
    if use.largest_predicted is not None and use.largest_predicted != use.largest_executed:
        text = f"{'training set' if use.holds_all else 'predicted'} {f.count(use.largest_predicted)}"
        marks.append(Mark(use.largest_predicted, text, AMBER, dashed=True))
    along = size_axis("batch", across, "micro-batch size", sizes if use.largest_predicted in (None, *sizes) else ())
    plot = Plot(along, value, kinds(names))
    for i, (wall, text, look) in enumerate(walls):
        line: list[Point] = [{"value": wall, "text": text, "margin": i > 0}]
        plot.add("rule", line, along=False, colour=False, **DASHED | look)
        plot.text(line, along=6, align="left", baseline="middle", dy=10 if i else -9)
    return intervals(along, value, data, [SIZE, tip("text", "memory")], names, law=law, marks=marks, under=plot).done()


def _sizes_of(steps: StepTimes) -> Spec:
    sizes = [point.batch_size for point in steps.points]
    return size_axis("batch", domain_around(sizes, room=1.35), "batch size", sizes)


def _measured(batch: int, interval: Interval, size: float, kind: str) -> Point:
    value, low, high = (end / size if f.known(end) else None for end in (interval.value, interval.low, interval.high))
    return {"batch": batch, "value": value, "low": low, "high": high, "kind": kind}


def _law(steps: StepTimes, along: Spec, pick: Any) -> list[Point]:
    """The law of computing along the axis; nothing where it is not resolved."""
    if len(steps.points) < 2 or steps.law.seconds(1.0) is None:
        return []
    first, last = along["scale"]["domain"]
    bend = [] if steps.law.bend is None or not first < steps.law.bend < last else [float(steps.law.bend)]
    return [
        {"batch": size, "value": pick(size, seconds)}
        for size in sorted([*geometric([first, last]), *bend])
        if (seconds := steps.law.seconds(size) or 0.0) > 0
    ]


def _knee(steps: StepTimes) -> list[Mark]:
    knee = steps.law.knee
    return [Mark(knee.value, f"knee {f.number(knee.value, 3)}", BLUE, knee)]


def _waits(plot: Plot, steps: StepTimes, kind: str) -> Plot:
    """The region in which an update waits for its data, shaded and named."""
    if steps.loader_bound_from is None:
        return plot
    first, last = plot.along["scale"]["domain"]
    smaller = [point.batch_size for point in steps.points if point.batch_size < steps.loader_bound_from]
    start = math.sqrt(smaller[-1] * steps.loader_bound_from) if smaller else first
    region: list[Point] = [{"low": start, "high": last, "text": WAITING, "kind": kind}]
    plot.add("rect", region, along="low", along_to="high", value=False, opacity=0.12)
    return plot.text(region, along="high", value=HEIGHT, align="right", baseline="bottom", dx=-6, dy=-7)


# Gradients


def noise_scale(record: Probe) -> Spec | None:
    """The noise scale along training, unresolved ones as arrows from their bound, beside branched runs."""
    series: list[tuple[str, float, Interval]] = [(SCALE, p.examples, p.noise_scale) for p in record.noise]
    series += [(SCALED, p.examples, p.preconditioned_noise_scale) for p in record.noise if p.preconditioned_noise_scale]
    if record.branched is not None:
        series.append((BRANCHED, record.branched.examples_before, record.branched.critical_batch_size))
    centres = [end for _, _, i in series for end in ([i.value] if i.value is not None else [i.low, i.high])]
    if not any(f.known(centre) and centre > 0 for centre in centres):
        return None
    ends = [end for _, _, interval in series for end in (interval.low, interval.high)]
    domain = domain_near(centres, ends, far=300.0, room=1.6)
    data: list[Point] = []
    for kind, examples, interval in series:
        if drawn := cut(interval, domain):
            text = f.number(interval.value, 3) if interval.resolved else "not resolved"
            data.append({"examples": examples, "kind": kind, "text": text, "resolved": interval.resolved, **drawn})
    here = {kind for kind, _, _ in series}
    names = {i: kind for i, kind in ((TEAL, SCALE), (BLUE, SCALED), (RED, BRANCHED)) if kind in here}
    along = _along_training([examples for _, examples, _ in series])
    plot = Plot(along, axis("value", "noise scale, examples", domain, log=True), kinds(names, tuple(names)))
    tips = [tip("kind", " "), tip("examples", "examples seen", ","), tip("text", "scale")]
    tips += [tip("low", "from", ",.3~r"), tip("high", "to", ",.3~r")]
    stretches = _stretches(data)
    apart = {"detail": {"field": "stretch", "type": "nominal"}}
    for i, kind in enumerate(names.values()):
        # Beside the noise scale of the same moment, not on it.
        of, look = f'datum.kind == "{kind}"', {"xOffset": 8 * i}
        plot.band(stretches, where=of, opacity=0.14, channels=apart, **look)
        plot.line(stretches, where=of, strokeWidth=2, channels=apart, **look)
        plot.spans(data, where=f"datum.resolved && {of}", strokeWidth=2, opacity=1, **look)
        plot.spans(data, where=f"!datum.resolved && {of}", strokeWidth=2, opacity=1, strokeDash=[3, 3], **look)
        plot.arrows(data, where=of, size=95, tips=tips, **look)
        shape = {"shape": "diamond", "size": 170} if kind == BRANCHED else {}
        plot.dots(data, where=f"isValid(datum.value) && {of}", tips=tips, **shape, **look)
    return plot.done()


def gradient_error(noise: NoiseMeasurement) -> Spec | None:
    """A batch's error against its size beside √(tr Σ/B)."""
    positive = [
        e for e in noise.gradient_error if f.known(e.error) and e.error > 0 and f.known(e.predicted) and e.predicted > 0
    ]
    if not positive:
        return None
    names = {TEAL: "measured"}
    data: list[Point] = [
        {
            "batch": e.batch_size,
            "value": e.error,
            "kind": names[TEAL],
            "text": f"{f.number(e.error, 3)}, by the law {f.number(e.predicted, 3)}",
        }
        for e in positive
    ]
    law = [{"batch": e.batch_size, "value": e.predicted} for e in positive]
    sizes = [e.batch_size for e in positive]
    along = size_axis("batch", domain_around(sizes, room=1.35), "batch size", sizes)
    domain = domain_around([value for e in positive for value in (e.error, e.predicted)], room=1.35)
    value = axis("value", "error ‖g − G‖", domain, log=True)
    plot = intervals(along, value, data, [SIZE, tip("text", "error")], names, legend=(TEAL,), law=law)
    middle = [law[len(law) // 2] | {"text": "√(tr Σ / B)"}]
    return plot.text(middle, align="left", dx=10, dy=-12).done()


def branches(runs: BranchedRuns) -> Spec | None:
    """The loss above the best branch against batch size, and the tolerance below which it counts as come back."""
    if not runs.branches:
        return None
    names = {TEAL: RECOVERED, BLUE: OPEN, RED: FAILED}
    verdict = {True: RECOVERED, False: FAILED, None: OPEN}
    # What lies far above the tolerance would flatten all that is near it: it is an arrow at the top.
    ceiling = 8.0 * runs.tolerance if runs.tolerance > 0 else math.inf
    known = [b for b in runs.branches if f.known(b.excess.value) and b.excess.value <= ceiling]
    values = [v for b in known for v in (b.excess.value, b.excess.low, b.excess.high) if f.known(v)]
    largest = max([runs.tolerance, *(b.excess.value for b in known if f.known(b.excess.value))])
    high = min(max([*values, runs.tolerance * 1.5]), 3 * largest)
    low = max(min([*values, 0.0]), -high)
    data: list[Point] = [
        {
            "batch": b.batch_size,
            "value": b.excess.value if b in known else None,
            "far": f.known(b.excess.value) and b not in known,
            "low": max(b.excess.low, low) if b in known and f.known(b.excess.low) else None,
            "high": min(b.excess.high, high) if b in known and f.known(b.excess.high) else None,
            "kind": verdict[b.recovered],
            "text": f.number(b.excess.value, 3),
            "rate": b.learning_rate,
        }
        for b in runs.branches
    ]
    sizes = [branch.batch_size for branch in runs.branches]
    pad = 0.06 * (high - low) or 0.01
    domain = with_headroom([low - pad, high + pad], 2 + (len(known) < len(runs.branches)), log=False)
    critical = runs.critical_batch_size.value
    tips = [SIZE, RATE, tip("text", "loss above the best"), tip("kind", "verdict")]
    plot = intervals(
        size_axis("batch", domain_around(sizes, room=1.35), "batch size of the branch", sizes),
        axis("value", "loss above the best branch", domain, log=False),
        data,
        tips,
        names,
        legend=[i for i, name in names.items() if any(point["kind"] == name for point in data)],
        level=(runs.tolerance, f"tolerance {f.number(runs.tolerance, 2)}"),
        marks=[Mark(critical, f"critical {f.size(critical)}", dashed=True)],
        size=95,
    )
    for flag, look in (("", {"shape": "triangle-up"}), ("!", {"shape": "cross", "angle": 45})):
        where = f"!isValid(datum.value) && {flag}datum.far"
        plot.dots(data, value=8 + LABEL_HEIGHT * 2, where=where, size=90, style="", tips=tips, **look)
    return plot.done()


def rate_range(test: RangeTest) -> Spec | None:
    """The training loss against the growing rate, with what the test reads off it."""
    finite = [p for p in test.points if f.known(p.loss) and p.learning_rate > 0]
    if not finite:
        return None
    first, least = finite[0].loss, min(p.loss for p in finite)
    # What has diverged leaves the plot: it would flatten the part that is read.
    top = min(max(p.loss for p in finite), first + 0.6 * max(first - least, 0.1 * abs(first)))
    top = max([top, *(p.high for p in finite if f.known(p.high) and p.high < top + 0.3 * (top - least))])
    bottom = min([least, *(p.low for p in finite if f.known(p.low) and p.low > least - (top - least))])
    pad = 0.05 * (top - bottom) or 0.1 * abs(top) or 0.1
    domain = with_headroom([bottom - pad, top + pad], 4, log=False)
    data = [
        {
            "rate": p.learning_rate,
            "loss": p.loss,
            "low": p.low if f.known(p.low) else p.loss,
            "high": p.high if f.known(p.high) else domain[1],
            "kind": "loss",
        }
        for p in finite
    ]
    rates = [p.learning_rate for p in finite]
    bound = test.curvature_bound
    near = [bound] if bound is not None and rates[0] / 10 <= bound <= rates[-1] * 10 else []
    names = {BLUE: "loss", TEAL: "read off", RED: "suggested"}
    steepest, stable = test.steepest, test.largest_stable
    plot = curves(
        rate_axis("rate", [min([rates[0], *near]), max([rates[-1] * 1.1, *(1.3 * b for b in near)])]),
        axis("loss", "training loss, smoothed", domain, log=False),
        data,
        kinds(names),
        styles={"": {"strokeWidth": 2.5}},
        detail="kind",
        targets=[RATE, tip("loss", format=".4~g")],
        height=HEIGHT + 20,
    )
    marks = [
        Mark(steepest.value, f"steepest {f.number(steepest.value, 2)}", TEAL, steepest),
        Mark(test.suggested, f"start from {f.number(test.suggested, 2)}", RED),
        Mark(stable.value, f"largest stable {f.number(stable.value, 2)}", TEAL, stable),
        Mark(bound, f"curvature bound {f.number(bound, 2)}", dashed=True),
    ]
    return plot.band(data).marks(marks, names).done()


def _along_training(examples: list[float]) -> Spec:
    """The axis of examples seen: linear, or, where they double and double, logarithmic with a place for zero."""
    places = sorted(set(examples))
    positive = [place for place in places if place > 0]
    last = places[-1] or 1.0
    wide = len(positive) > 2 and positive[-1] / positive[0] >= 6
    label = f"datum.value === 0 ? '0' : {COUNT}"
    look = {"values": places, "labelExpr": label, "labelOverlap": "greedy", "labelSeparation": 4}
    found = axis("examples", "examples seen", [min(0.0, places[0]), last * 1.05], log=False, grid=False, **look)
    found["scale"]["padding"] = 10
    if wide:
        start = 0.0 if places[0] == 0 else positive[0] / 1.3
        found["title"] += LOGARITHMIC
        found["scale"] |= {"type": "symlog", "constant": positive[0], "domain": [start, last * 1.1]}
    return found


def _stretches(data: list[Point]) -> list[Point]:
    """The resolved points, each with the number of its stretch: the band is drawn through neighbours alone."""
    found: list[Point] = []
    for kind in (SCALE, SCALED):
        number = 0
        for point in (point for point in data if point["kind"] == kind):
            if not point["resolved"] or point["value"] is None:
                number += 1
            else:
                found.append({**point, "stretch": f"{kind} {number}"})
    return found

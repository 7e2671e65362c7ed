"""The charts of a probe's gradients: noise along training and against batch size, branched runs, the range test."""

from __future__ import annotations

import math
from typing import Any

from batchscope.records import BranchedRuns, Interval, NoiseMeasurement, Probe, RangeTest
from batchscope.report import formatting as f
from batchscope.report.marks import (
    BLUE,
    COUNT,
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
    size_axis,
    uprights,
    value_axis,
    with_headroom,
)

SCALE, SCALED, BRANCHED = "noise scale", "preconditioned", "branched runs"
RECOVERED, FAILED, OPEN = "came back", "did not", "cannot be told"

_ASIDE = 8  # pixels
_CEILING = 8.0  # tolerances
_LOOK = ({"size": 80}, {"shape": "diamond", "size": 170})
_FAR = 300.0  # an end of an interval so many times away from every value is beyond the axis


def noise_scale(record: Probe) -> Spec | None:
    """The noise scale along training, unresolved ones as arrows from their bound, beside branched runs."""
    alt = altair()
    series: list[tuple[str, float, Interval]] = [(SCALE, p.examples, p.noise_scale) for p in record.noise]
    series += [(SCALED, p.examples, p.preconditioned_noise_scale) for p in record.noise if p.preconditioned_noise_scale]
    if record.branched is not None:
        series.append((BRANCHED, record.branched.examples_before, record.branched.critical_batch_size))
    centres = [end for _, _, i in series for end in ([i.value] if i.value is not None else [i.low, i.high])]
    if not any(f.known(centre) and centre > 0 for centre in centres):
        return None
    middle = domain_around(centres, room=1.0)
    ends = [end for _, _, i in series for end in (i.low, i.high)]
    near = [end for end in ends if f.known(end) and middle[0] / _FAR <= end <= middle[1] * _FAR]
    upward = domain_around([*middle, *near], room=1.6)
    data: list[Point] = []
    for kind, examples, interval in series:
        if drawn := cut(interval, upward):
            text = f.number(interval.value, 3) if interval.resolved else "not resolved"
            data.append({"examples": examples, "kind": kind, "text": text, "resolved": interval.resolved, **drawn})
    along = _along_training(alt, [examples for _, examples, _ in series])
    up = value_axis(alt, upward, "noise scale, examples", log=True)
    here = {kind for kind, _, _ in series}
    names = {i: kind for i, kind in ((TEAL, SCALE), (BLUE, SCALED), (RED, BRANCHED)) if kind in here}
    colour = colours(alt, names, tuple(names))
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("examples:Q", **along), color=colour)
    points = base.transform_filter("isValid(datum.value)")
    tips = [
        alt.Tooltip("kind:N", title=" "),
        alt.Tooltip("examples:Q", title="examples seen", format=","),
        alt.Tooltip("text:N", title="scale"),
        alt.Tooltip("low:Q", title="from", format=",.3~r"),
        alt.Tooltip("high:Q", title="to", format=",.3~r"),
    ]
    bands = alt.Chart(alt.Data(values=_stretches(data))).encode(x=alt.X("examples:Q", **along), color=colour)
    # Beside the noise scale of the same moment, not on it.
    kinds = [(f'datum.kind == "{kind}"', _ASIDE * i) for i, kind in enumerate(names.values())]
    ends_at = {"y": alt.Y("low:Q", **up), "y2": "high:Q"}
    chart = alt.layer(
        *(
            layer
            for of, aside in kinds
            for band in (bands.transform_filter(of),)
            for layer in (
                band.mark_area(opacity=0.14, xOffset=aside).encode(**ends_at, detail="stretch:N"),
                band.mark_line(strokeWidth=2, xOffset=aside).encode(y=alt.Y("value:Q", **up), detail="stretch:N"),
            )
        ),
        *(
            base.transform_filter(f"{resolved}datum.resolved && {of}")
            .mark_rule(**look, xOffset=aside)
            .encode(**ends_at)
            for resolved, look in (("", {"strokeWidth": 2}), ("!", {"strokeWidth": 2, "strokeDash": [3, 3]}))
            for of, aside in kinds
        ),
        *(
            base.transform_filter(f"datum.{flag} && {of}")
            .mark_point(shape=f"triangle-{side}", size=95, filled=True, opacity=1, xOffset=aside)
            .encode(y=alt.Y(f"{end}:Q", **up), tooltip=tips)
            for flag, side, end in (("below", "down", "low"), ("above", "up", "high"))
            for of, aside in kinds
        ),
        *(
            points.transform_filter(of)
            .mark_point(**_LOOK[BRANCHED in of], filled=True, opacity=1, style="halo", xOffset=aside)
            .encode(y=alt.Y("value:Q", **up), tooltip=tips)
            for of, aside in kinds
        ),
    )
    return done(chart)


def gradient_error(noise: NoiseMeasurement) -> Spec | None:
    """A batch's error against its size beside √(tr Σ/B)."""
    alt = altair()
    found = [
        e for e in noise.gradient_error if f.known(e.error) and e.error > 0 and f.known(e.predicted) and e.predicted > 0
    ]
    if not found:
        return None
    names = {TEAL: "measured"}
    data = [
        {
            "batch": e.batch_size,
            "value": e.error,
            "law": e.predicted,
            "kind": names[TEAL],
            "text": f"{f.number(e.error, 3)}, by the law {f.number(e.predicted, 3)}",
        }
        for e in found
    ]
    sizes = [e.batch_size for e in found]
    across = domain_around(sizes, room=1.35)
    upward = domain_around([value for e in found for value in (e.error, e.predicted)], room=1.35)
    along = size_axis(alt, across, "batch size", sizes)
    up = value_axis(alt, upward, "error ‖g − G‖", log=True)
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("batch:Q", **along))
    tips = [alt.Tooltip("batch:Q", title="batch size", format=","), alt.Tooltip("text:N", title="error")]
    last = base.transform_filter(f"datum.batch == {sizes[len(sizes) // 2]}").mark_text(align="left", dx=10, dy=-12)
    chart = alt.layer(
        base.mark_line(strokeWidth=1.75).encode(y=alt.Y("law:Q", **up)),
        base.mark_point(size=80, filled=True, opacity=1, style="halo").encode(
            y=alt.Y("value:Q", **up), color=colours(alt, names, (TEAL,)), tooltip=tips
        ),
        last.encode(y=alt.Y("law:Q", **up), text=alt.value("√(tr Σ / B)")),
    )
    return done(chart)


def branches(runs: BranchedRuns) -> Spec | None:
    """The loss above the best branch against batch size, and the tolerance below which it counts as come back."""
    alt = altair()
    names = {TEAL: RECOVERED, BLUE: OPEN, RED: FAILED}
    verdict = {True: RECOVERED, False: FAILED, None: OPEN}
    if not runs.branches:
        return None
    # What lies far above the tolerance would flatten all that is near it: it is an arrow at the top.
    ceiling = _CEILING * runs.tolerance if runs.tolerance > 0 else math.inf
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
            "low": None if not f.known(b.excess.low) else max(b.excess.low, low),
            "high": None if not f.known(b.excess.high) else min(b.excess.high, high),
            "kind": verdict[b.recovered],
            "text": f.number(b.excess.value, 3),
            "rate": f.number(b.learning_rate, 3),
        }
        for b in runs.branches
    ]
    sizes = [branch.batch_size for branch in runs.branches]
    across = domain_around(sizes, room=1.35)
    pad = 0.06 * (high - low) or 0.01
    upward = with_headroom([low - pad, high + pad], 2 + (len(known) < len(runs.branches)), log=False)
    along = size_axis(alt, across, "batch size of the branch", sizes)
    up = value_axis(alt, upward, "loss above the best branch", log=False)
    here = {point["kind"] for point in data}
    colour = colours(alt, names, [i for i, name in names.items() if name in here])
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("batch:Q", **along), color=colour)
    inside = base.transform_filter("isValid(datum.value)")
    tolerance = alt.Chart(alt.Data(values=[{"at": runs.tolerance, "text": f"tolerance {f.number(runs.tolerance, 2)}"}]))
    tips = [
        alt.Tooltip("batch:Q", title="batch size", format=","),
        alt.Tooltip("rate:N", title="learning rate"),
        alt.Tooltip("text:N", title="loss above the best"),
        alt.Tooltip("kind:N", title="verdict"),
    ]
    level = alt.Y("at:Q", **up)
    critical = runs.critical_batch_size.value
    marks = [Upright(critical, f"critical {f.size(critical)}", dashed=True)]
    chart = alt.layer(
        tolerance.mark_rule(strokeDash=[5, 4], strokeWidth=1.5).encode(y=level),
        inside.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(strokeWidth=3, strokeCap="round", opacity=0.7)
        .encode(y=alt.Y("low:Q", **up), y2="high:Q"),
        inside.mark_point(size=95, filled=True, opacity=1, style="halo").encode(y=alt.Y("value:Q", **up), tooltip=tips),
        *uprights(alt, marks, along),
        *(
            base.transform_filter(f"!isValid(datum.value) && {which}datum.far")
            .mark_point(**look, size=90, filled=True, opacity=1)
            .encode(y=alt.value(8 + LABEL_HEIGHT * 2), tooltip=tips)
            for which, look in (("", {"shape": "triangle-up"}), ("!", {"shape": "cross", "angle": 45}))
        ),
        *(
            tolerance.mark_text(align="left", baseline="bottom", dy=-5, **look).encode(
                x=alt.value(6), y=level, text="text:N"
            )
            for look in ({"style": "under"}, {})
        ),
    )
    return done(chart)


def rate_range(test: RangeTest) -> Spec | None:
    """The training loss against the growing rate, with what the test reads off it."""
    alt = altair()
    finite = [p for p in test.points if f.known(p.loss) and p.learning_rate > 0]
    if not finite:
        return None
    first = finite[0].loss
    least = min(p.loss for p in finite)
    # What has diverged leaves the plot: it would flatten the part that is read.
    top = min(max(p.loss for p in finite), first + 0.6 * max(first - least, 0.1 * abs(first)))
    top = max([top, *(p.high for p in finite if f.known(p.high) and p.high < top + 0.3 * (top - least))])
    bottom = min([least, *(p.low for p in finite if f.known(p.low) and p.low > least - (top - least))])
    pad = 0.05 * (top - bottom) or 0.1 * abs(top) or 0.1
    upward = with_headroom([bottom - pad, top + pad], 4, log=False)
    data = [
        {
            "rate": p.learning_rate,
            "loss": p.loss,
            "low": p.low if f.known(p.low) else p.loss,
            "high": p.high if f.known(p.high) else upward[1],
            "kind": "loss",
        }
        for p in finite
    ]
    rates = [p.learning_rate for p in finite]
    bound = test.curvature_bound
    near = [bound] if bound is not None and rates[0] / 10 <= bound <= rates[-1] * 10 else []
    across = [min([rates[0], *near]), max([rates[-1] * 1.1, *(1.3 * b for b in near)])]
    along: dict[str, Any] = _rate_axis(alt, across)
    up = value_axis(alt, upward, "training loss, smoothed", log=False)
    names = {BLUE: "loss", TEAL: "read off", RED: "suggested"}
    colour = colours(alt, names)
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("rate:Q", **along), color=colour)
    tips = [alt.Tooltip("rate:Q", title="learning rate", format=".3~g"), alt.Tooltip("loss:Q", format=".4~g")]
    marks = [
        Upright(test.steepest.value, f"steepest {f.number(test.steepest.value, 2)}", TEAL, test.steepest),
        Upright(test.suggested, f"start from {f.number(test.suggested, 2)}", RED),
        Upright(
            test.largest_stable.value,
            f"largest stable {f.number(test.largest_stable.value, 2)}",
            TEAL,
            test.largest_stable,
        ),
        Upright(bound, f"curvature bound {f.number(bound, 2)}", dashed=True),
    ]
    chart = alt.layer(
        base.mark_area(opacity=0.16, clip=True).encode(y=alt.Y("low:Q", **up), y2="high:Q"),
        base.mark_line(strokeWidth=2.5, clip=True, strokeJoin="round").encode(y=alt.Y("loss:Q", **up)),
        base.mark_point(size=90, opacity=0, filled=True, clip=True).encode(y=alt.Y("loss:Q", **up), tooltip=tips),
        *uprights(alt, marks, along, colour, names),
    )
    return done(chart, height=HEIGHT + 20)


def _rate_axis(alt: Any, across: list[float]) -> dict[str, Any]:
    """The axis of learning rates, marked at powers of ten; a range within one of them as Vega sees fit."""
    decades = range(math.ceil(math.log10(across[0]) - 1e-9), math.floor(math.log10(across[1]) + 1e-9) + 1)
    every = max(1, math.ceil(len(decades) / 8))
    values = [float(f"1e{decade}") for decade in decades if decade % every == 0]
    small = "replace(format(datum.value, '.0e'), '-', '−')"
    label = f"datum.value >= 0.001 && datum.value < 10000 ? format(datum.value, ',.3~r') : {small}"
    ticks: dict[str, Any] = {"tickCount": 4, "format": ".2~g"}
    if len(values) > 1:
        ticks = {"values": values, "labelExpr": label}
    axis = alt.Axis(grid=False, labelOverlap="greedy", **ticks)
    return {
        "title": "learning rate, log scale",
        "scale": alt.Scale(type="log", domain=across, nice=False),
        "axis": axis,
    }


def _along_training(alt: Any, examples: list[float]) -> dict[str, Any]:
    """The axis of examples seen: linear, or, where they double and double, logarithmic with a place for zero."""
    places = sorted(set(examples))
    positive = [place for place in places if place > 0]
    last = places[-1] or 1.0
    wide = len(positive) > 2 and positive[-1] / positive[0] >= 6
    if wide:
        start = 0.0 if places[0] == 0 else positive[0] / 1.3
        scale = alt.Scale(type="symlog", constant=positive[0], domain=[start, last * 1.1], nice=False, padding=10)
    else:
        scale = alt.Scale(domain=[min(0.0, places[0]), last * 1.05], nice=False, padding=10)
    axis = alt.Axis(
        grid=False,
        values=places,
        labelExpr=f"datum.value === 0 ? '0' : {COUNT}",
        labelOverlap="greedy",
        labelSeparation=4,
    )
    return {"title": "examples seen" + (", log scale" if wide else ""), "scale": scale, "axis": axis}


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

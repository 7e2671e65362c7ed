"""The charts of a sweep that have learning rates on an axis: the best of each batch size, and all that were tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batchscope.records import Edge, RateLaw, Sweep, SweepTrial
from batchscope.report import formatting as f
from batchscope.report.marks import (
    AMBER,
    BLUE,
    RED,
    TEAL,
    Point,
    Spec,
    altair,
    colours,
    domain_around,
    done,
    geometric,
    size_axis,
    value_axis,
)

BEST, LINEAR, ROOT, LAW = "best rate", "linear rule", "square-root rule", "fitted law"
TODAY = "today"

DIVERGED, PRUNED, MISSED, FAILED = "diverged", "pruned", "missed the target", "no result"
SHAPES = {DIVERGED: "M-1,-1L1,1M-1,1L1,-1", PRUNED: "triangle-down", MISSED: "stroke", FAILED: "square"}
"""What stands in a cell without a number; each is told by its shape alone."""

_CELL = 21  # pixels of height that a factor √2 of the rate takes, where there is room
_LEAST, _MOST = 220, 460
_ROOM_FOR_TEXT = 40  # pixels of a cell's width


def best_rate(record: Sweep) -> Spec | None:
    """The best rate of each batch size with its bracket, both scaling rules through today's setting, and the law."""
    points = _best_rates(record)
    if not points:
        return None
    alt = altair()
    today = record.workload
    sizes = sorted({point["batch"] for point in points})
    across = domain_around([*sizes, today.batch_size], room=1.5)
    law = _law(record.rate_law, across)
    rates = [end for point in points for end in (point["low"], point["high"], point["value"])]
    upward = domain_around([*rates, *(point["value"] for point in law), today.learning_rate], room=1.5)
    rules: list[Point] = [
        {"batch": size, "value": today.learning_rate * (size / today.batch_size) ** power, "kind": name}
        for name, power in ((LINEAR, 1.0), (ROOT, 0.5))
        for size in across
    ]
    names = {BLUE: BEST, TEAL: LAW, AMBER: LINEAR, RED: ROOT}
    shown = [BLUE, *([TEAL] if law else []), AMBER, RED]
    along = size_axis(alt, across, "batch size", sizes)
    up = value_axis(alt, upward, "learning rate", log=True)
    colour = colours(alt, names, shown)
    x, y = alt.X("batch:Q", **along), alt.Y("value:Q", **up)
    base = alt.Chart(alt.Data(values=points)).encode(x=x, color=colour)
    lines = alt.Chart(alt.Data(values=rules)).encode(x=x, y=y, color=colour)
    here = alt.Chart(
        alt.Data(values=[{"batch": today.batch_size, "value": today.learning_rate, "text": TODAY}])
    ).encode(x=x, y=y)
    tips = [
        alt.Tooltip("batch:Q", title="batch size", format=","),
        alt.Tooltip("value:Q", title="best rate", format=".3~g"),
        alt.Tooltip("text:N", title="worse below and above"),
    ]
    chart = alt.layer(
        lines.transform_filter(f"datum.kind == '{LINEAR}'").mark_line(strokeWidth=1.5, strokeDash=[6, 4], clip=True),
        lines.transform_filter(f"datum.kind == '{ROOT}'").mark_line(strokeWidth=1.5, strokeDash=[2, 3], clip=True),
        alt.Chart(alt.Data(values=law)).mark_line(strokeWidth=2, clip=True).encode(x=x, y=y, color=colour),
        base.mark_rule(strokeWidth=3, opacity=0.45, strokeCap="round").encode(y=alt.Y("low:Q", **up), y2="high:Q"),
        base.transform_filter("!isValid(datum.edge)")
        .mark_point(size=85, filled=True, opacity=1, style="halo")
        .encode(y=y, tooltip=tips),
        *(
            base.transform_filter(f"datum.edge == '{edge}'")
            .mark_point(shape=shape, size=120, filled=False, strokeWidth=2, opacity=1)
            .encode(y=y, tooltip=tips)
            for edge, shape in (("highest", "triangle-up"), ("lowest", "triangle-down"))
        ),
        here.mark_point(shape="diamond", size=120, filled=False, strokeWidth=2, opacity=1),
        *(
            here.mark_text(align="left", baseline="top", dx=8, dy=4, **look).encode(text="text:N")
            for look in ({"style": "under"}, {})
        ),
    )
    return done(chart)


def rate_map(record: Sweep) -> Spec | None:
    """Every batch size and rate as a cell: examples to the target, or the score, and what became of those without."""
    cells = _cells(record)
    if not cells:
        return None
    alt = altair()
    to_target = _to_target(record)
    known = [cell["value"] for cell in cells if cell["value"] is not None]
    upward = [min(cell["low"] for cell in cells), max(cell["high"] for cell in cells)]
    step = min(math.log(cell["high"] / cell["low"]) for cell in cells)
    height = round(min(max(math.log(upward[1] / upward[0]) / step * _CELL, _LEAST), _MOST))
    tall = height * step / math.log(upward[1] / upward[0]) >= 13
    sizes = sorted({cell["batch"] for cell in cells})
    x = alt.X(
        "batch:O",
        title="batch size",
        sort=sizes,
        axis=alt.Axis(grid=False, labelAngle=0, labelExpr="format(datum.value, ',d')", labelOverlap="greedy"),
        scale=alt.Scale(paddingInner=0.06, paddingOuter=0.03),
    )
    up = value_axis(alt, upward, "learning rate", log=True)
    up["axis"].grid = False
    title = "examples to the target" if to_target else f"best {record.workload.score[:40]}"
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    low, high = (low / 1.01, high * 1.01) if to_target else (low, high if high > low else low + 1e-6)
    colour = alt.Color(
        "value:Q",
        scale=alt.Scale(type="log" if to_target else "linear", scheme="viridis", domain=[low, high], reverse=to_target),
        legend=alt.Legend(
            title=title,
            orient="top",
            gradientLength=150,
            gradientThickness=9,
            tickCount=3,
            labelExpr="datum.value < 10000 ? format(datum.value, ',.4~g') : format(datum.value, '.2~s')",
        )
        if known
        else None,
    )
    base = alt.Chart(alt.Data(values=cells)).encode(x=x)
    valued = base.transform_filter("isValid(datum.value)")
    empty = base.transform_filter("!isValid(datum.value)")
    ends = {"y": alt.Y("low:Q", **up), "y2": "high:Q"}
    middle = alt.Y("rate:Q", **up)
    here = [name for name in SHAPES if any(cell["state"] == name for cell in cells)]
    shape = alt.Shape(
        "state:N",
        scale=alt.Scale(domain=list(SHAPES), range=list(SHAPES.values())),
        legend=alt.Legend(title=None, orient="bottom", values=here, columns=2, symbolSize=70, symbolStrokeWidth=2)
        if here
        else None,
    )
    tips = [
        alt.Tooltip("batch:Q", title="batch size", format=","),
        alt.Tooltip("rate:Q", title="learning rate", format=".3~g"),
        alt.Tooltip("text:N", title=title),
        alt.Tooltip("runs:N"),
    ]
    # On a dark cell light letters, on a light one dark: by where its value lies on the scale.
    place = (
        f"log(datum.value / {low}) / log({high} / {low})" if to_target else f"(datum.value - {low}) / ({high} - {low})"
    )
    dark = f"({place}) > 0.55" if to_target else f"({place}) < 0.55"
    lettering = {"fontSize": 10.5, "opacity": {"expr": f"width / {len(sizes)} < {_ROOM_FOR_TEXT} ? 0 : 1"}}
    chart = alt.layer(
        empty.mark_rect(opacity=0.13).encode(**ends, tooltip=tips),
        valued.mark_rect(opacity=1).encode(**ends, color=colour, tooltip=tips),
        base.transform_filter("datum.best").mark_rect(fillOpacity=0, strokeWidth=3, style="chosen").encode(**ends),
        empty.mark_point(size=45, filled=False, strokeWidth=1.8, opacity=1).encode(y=middle, shape=shape, tooltip=tips),
        *(
            valued.transform_filter(f"{sign}({dark})")
            .mark_text(**lettering, color=letters)
            .encode(y=middle, text="short:N")
            for sign, letters in (("", "#ffffff"), ("!", "#1c1e21"))
            if tall
        ),
    )
    return done(chart.resolve_scale(color="independent"), height)


@dataclass(frozen=True)
class _Cell:
    """The trials of one batch size and rate."""

    trials: tuple[SweepTrial, ...]

    def of(self, *outcomes: str) -> int:
        return sum(trial.outcome in outcomes for trial in self.trials)

    def value(self, *, to_target: bool) -> float | None:
        """Geometric mean of examples to the target, missed ones at what they spent; or the mean best score."""
        if to_target:
            if not self.of("reached"):
                return None
            taken = [t.examples_to_target or t.examples for t in self.trials if t.outcome in ("reached", "finished")]
            return math.exp(sum(math.log(max(1, examples)) for examples in taken) / len(taken))
        scores = [
            t.best_score for t in self.trials if t.outcome in ("reached", "finished") and t.best_score is not None
        ]
        return sum(scores) / len(scores) if scores else None

    def state(self, *, to_target: bool) -> str:
        """What a cell without a number shows: what befell most of its trials."""
        kinds = {
            MISSED: self.of("finished", "reached") if to_target else 0,
            PRUNED: self.of("pruned"),
            DIVERGED: self.of("diverged"),
            FAILED: self.of("out of memory", "crashed", "timed out"),
        }
        return max(kinds, key=lambda kind: kinds[kind])


def _to_target(record: Sweep) -> bool:
    return record.target is not None and any(trial.outcome == "reached" for trial in record.trials)


def _cells(record: Sweep) -> list[Point]:
    found: dict[int, dict[float, list[SweepTrial]]] = {}
    for trial in record.trials:
        found.setdefault(trial.batch_size, {}).setdefault(trial.learning_rate, []).append(trial)
    best = {line.batch_size: line.learning_rate for line in record.best}
    to_target = _to_target(record)
    short: Callable[[float], str] = _thousands if to_target else lambda score: f.number(score, 3)
    data: list[Point] = []
    for size, by_rate in sorted(found.items()):
        rates = sorted(by_rate)
        for rate, (low, high) in zip(rates, _extents(rates), strict=True):
            cell = _Cell(tuple(by_rate[rate]))
            value = cell.value(to_target=to_target)
            kinds: dict[str, int] = {}
            for trial in cell.trials:
                kinds[trial.outcome] = kinds.get(trial.outcome, 0) + 1
            data.append(
                {
                    "batch": size,
                    "rate": rate,
                    "low": low,
                    "high": high,
                    "value": value,
                    "state": "" if value is not None else cell.state(to_target=to_target),
                    "short": "" if value is None else short(value),
                    "text": f.UNKNOWN if value is None else f.count(value) if to_target else f.number(value, 4),
                    "runs": ", ".join(f"{number} {kind}" for kind, number in kinds.items()),
                    "best": best.get(size) == rate,
                }
            )
    return data


def _extents(rates: Sequence[float]) -> list[tuple[float, float]]:
    """From the middle towards the rate below to the middle towards the one above, on a logarithmic axis.

    An end that has no neighbour is as far away as the other one; a rate on its own reaches a factor √2 both ways.
    """
    steps = [math.sqrt(b / a) for a, b in itertools.pairwise(rates)]
    nearest = min(steps, default=math.sqrt(2))
    below, above = [nearest, *steps], [*steps, nearest]
    return [(rate / b, rate * a) for rate, b, a in zip(rates, below, above, strict=True)]


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
        rate = line.learning_rate
        if rate is not None:
            low = max((other for other in line.rates if other < rate), default=rate)
            high = min((other for other in line.rates if other > rate), default=rate)
            found.append(point(line.batch_size, rate, low, high, line.edge))
    return found


def _law(law: RateLaw | None, across: list[float]) -> list[Point]:
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


def _thousands(examples: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if examples >= 0.9995 * size:
            return f"{f.number(examples / size, 2 if examples < 9.95 * size else 3)}{letter}"
    return f.count(examples)

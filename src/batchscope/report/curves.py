"""Learning curves: the points of every run, their mean per row, and the chart that shows both."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

from batchscope.errors import require
from batchscope.records import Comparison, CurvePoint, TrainResult
from batchscope.report.sheets import row_labels

Across = Literal["examples", "updates", "seconds"]
Upward = Literal["score", "validation_loss", "training_loss"]
Span = Literal["whole", "late"]

ACROSS: dict[Across, str] = {"examples": "examples", "updates": "updates", "seconds": "seconds"}
UPWARD: dict[Upward, str] = {"score": "score", "validation_loss": "validation loss", "training_loss": "training loss"}
SPANS: dict[Span, str] = {"whole": "whole run", "late": "second half"}

MOST_POINTS = 160
"""Evaluations drawn of one run; longer curves are thinned evenly, since no screen shows more."""

LOGARITHMIC = ", log scale"

WIDE = 4.0
"""Ratio between the rows' lengths from which a logarithmic axis serves better."""


@dataclass(frozen=True)
class Series:
    """The runs that share a line.

    Attributes:
        label: Its name in the legend.
        runs: One per seed.
    """

    label: str
    runs: tuple[TrainResult, ...]


def series(record: Comparison | TrainResult) -> tuple[Series, ...]:
    """What is drawn as one line each: the rows of a comparison, or the one run."""
    if isinstance(record, TrainResult):
        return (Series(f"seed {record.seed}", (record,)),)
    return tuple(Series(label, record.runs_of(row)) for label, row in zip(row_labels(record), record.rows, strict=True))


def points(record: Comparison | TrainResult) -> list[dict[str, Any]]:
    """The data of the chart: every run's curve, and per row the mean of the runs that ended in order.

    Args:
        record: A comparison or a run.

    Returns:
        One object per point: ``row``, ``run``, ``kind`` ("mean", "run", "broken" for a run that did not end in order,
        "stop" for where it broke off), the three quantities across and the three upward, None where not finite.
    """
    found: list[dict[str, Any]] = []
    for line in series(record):
        whole = [run for run in line.runs if run.ended_in_order]
        if mean := _mean(whole):
            found += _drawn(mean, row=line.label, run=f"{line.label}/mean", kind="mean", seeds=len(whole))
        for run in line.runs:
            if run in whole and len(whole) == 1:
                continue  # its own mean
            name = {"row": line.label, "run": f"{line.label}/{run.seed}", "seeds": 1}
            kind = "run" if run in whole else "broken"
            drawn = _drawn(list(run.curve), kind=kind, **name)
            found += drawn
            if kind == "broken":
                sound = [point for point in drawn if point["validation_loss"] is not None]
                found += [{**sound[-1], "kind": "stop", "outcome": run.outcome}] if sound else []
    return found


def specification(record: Comparison | TrainResult, *, legend: bool = True) -> dict[str, Any]:
    """The chart as it first appears, its data left to be given under the name "curves".

    Args:
        record: A comparison or a run.
        legend: Whether the chart names its lines itself.

    Returns:
        A Vega-Lite specification with a parameter ``hidden``: labels of the rows not to draw.
    """
    return variants(record, legend=legend)["examples", "score", "whole"]


def variants(
    record: Comparison | TrainResult, *, legend: bool = True
) -> dict[tuple[Across, Upward, Span], dict[str, Any]]:
    """The chart with every choice of axes, as :func:`specification` gives the first.

    Args:
        record: A comparison or a run.
        legend: Whether the chart names its lines itself.

    Returns:
        Specifications by what runs across, what is followed, and how much of the run is shown.
    """
    data = points(record)
    layers = _layers(record, legend)
    found: dict[tuple[Across, Upward, Span], dict[str, Any]] = {}
    for x in ACROSS:
        log_x = _wide(data, x)
        for y in UPWARD:
            for span in SPANS:
                across, upward = _domain_across(data, x, log_x, span), _domain_upward(data, y, span)
                log_y = y != "score" and upward[0] > 0 and upward[1] / upward[0] >= 8
                axes = {
                    "x": _axis(x, _ACROSS_TITLES[x], across, log_x, grid=False),
                    "y": _axis(y, _upward_title(record, y), upward, log_y, grid=True),
                }
                # What cannot stand on a logarithmic axis must not reach it.
                above = [{"filter": f"datum.{x} > 0"}] if log_x else []
                spec = copy.deepcopy(layers)
                for layer in spec["layer"]:
                    layer["encoding"] |= axes
                    layer["transform"] += above
                found[x, y, span] = spec
    return found


def _layers(record: Comparison | TrainResult, legend: bool) -> dict[str, Any]:
    """All of the chart but its two axes."""
    alt: Any = require("altair", "draw charts", "altair")
    labels = [line.label for line in series(record)]
    named = alt.Legend(**_LEGEND) if legend and len(labels) > 1 else None
    base = alt.Chart(alt.NamedData("curves")).encode(
        color=alt.Color("row:N", scale=alt.Scale(domain=labels), legend=named)
    )

    def of(*kinds: str) -> Any:
        return base.transform_filter(f"indexof(hidden, datum.row) < 0 && indexof({list(kinds)}, datum.kind) >= 0")

    tips = [
        alt.Tooltip("row:N", title="row"),
        alt.Tooltip("seeds:Q", title="seeds"),
        alt.Tooltip("examples:Q", format=","),
        alt.Tooltip("updates:Q", format=","),
        alt.Tooltip("seconds:Q", format=".3~g"),
        *(alt.Tooltip(f"{name}:Q", title=title, format=".4~g") for name, title in UPWARD.items()),
    ]
    chart = alt.layer(
        of("run").mark_line(strokeWidth=1, opacity=0.32, clip=True).encode(detail="run:N"),
        of("broken").mark_line(strokeWidth=1, opacity=0.7, strokeDash=[3, 3], clip=True).encode(detail="run:N"),
        of("mean").mark_line(strokeWidth=2.75, strokeCap="round", strokeJoin="round", clip=True),
        of("stop").mark_point(shape="cross", angle=45, size=90, filled=True, clip=True, opacity=1),
        of("mean").mark_point(size=140, opacity=0, filled=True, clip=True).encode(tooltip=tips),
    )
    spec: dict[str, Any] = chart.properties(height=340).to_dict()
    spec["params"] = [*spec.get("params", []), {"name": "hidden", "value": []}]
    return spec


def _axis(field: str, title: str, domain: list[float], log: bool, *, grid: bool) -> dict[str, Any]:
    return {
        "field": field,
        "type": "quantitative",
        "title": title + (LOGARITHMIC if log else ""),
        "scale": {"type": "log" if log else "linear", "domain": domain, "nice": False},
        "axis": {"grid": grid, **ticks(domain, log)},
    }


_ACROSS_TITLES = {"examples": "examples seen", "updates": "updates made", "seconds": "seconds of training"}
_LEGEND = {
    "title": "batch × updates",
    "orient": "top",
    "columns": 4,
    "symbolOpacity": 1,
    "symbolType": "stroke",
    "symbolStrokeWidth": 3,
}


def ticks(domain: list[float], log: bool) -> dict[str, Any]:
    """Properties of an axis: round places, at most about six, and short labels.

    Args:
        domain: Both ends of the scale.
        log: Whether it is logarithmic; the places are then 1, 2 and 5 times powers of ten, more
            where they are few, or the powers alone.

    Returns:
        Arguments for ``altair.Axis``.

    Examples:
        >>> ticks([0.15, 24], True)["values"]
        [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    # Vega would give every label the prefix of the largest one, zero included ("0k").
    large = "datum.value === 0 ? '0' : format(datum.value, '~s')"
    text = large if max(map(abs, domain)) >= 10_000 else "format(datum.value, ',.6~g')"
    common: dict[str, Any] = {"labelExpr": text, "labelOverlap": True}
    if not log:
        return common | {"tickCount": 5}
    low, high = domain
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        places = [float(f"{step}e{decade}") for decade in decades for step in steps]
        places = [place for place in places if low <= place <= high]
        if len(places) <= 7:
            break
    return common | {"values": places} if len(places) >= 2 else common | {"tickCount": 4}


def _mean(runs: list[TrainResult]) -> list[CurvePoint]:
    """The mean curve over the evaluations that every run made."""
    if not runs:
        return []
    by_updates = [{point.iterations: point for point in run.curve} for run in runs]
    shared = [k for k in by_updates[0] if all(k in others for others in by_updates[1:])]
    means = []
    for k in shared:
        here = [curve[k] for curve in by_updates]
        losses = [point.training_loss for point in here if point.training_loss is not None]
        means.append(
            CurvePoint(
                examples=here[0].examples,
                iterations=k,
                seconds=sum(point.seconds for point in here) / len(here),
                learning_rate=here[0].learning_rate,
                training_loss=sum(losses) / len(here) if len(losses) == len(here) else None,
                validation_loss=sum(point.validation_loss for point in here) / len(here),
                score=sum(point.score for point in here) / len(here),
            )
        )
    return means


def _drawn(curve: list[CurvePoint], **name: Any) -> list[dict[str, Any]]:
    stride = max(1, math.ceil(len(curve) / MOST_POINTS))
    kept = [point for i, point in enumerate(curve) if i % stride == 0 or i == len(curve) - 1]
    return [
        {
            **name,
            "examples": point.examples,
            "updates": point.iterations,
            "seconds": _plain(point.seconds),
            "score": _plain(point.score),
            "validation_loss": _plain(point.validation_loss),
            "training_loss": _plain(point.training_loss),
        }
        for point in kept
    ]


def _plain(value: float | None) -> float | None:
    """Six digits are more than a screen shows; JSON has no infinities."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _wide(data: list[dict[str, Any]], x: Across) -> bool:
    """Whether some rows end so early on this axis that a linear one would crush them."""
    ends: dict[str, float] = {}
    for point in data:
        if point["kind"] in ("mean", "run"):
            ends[point["run"]] = max(ends.get(point["run"], 0.0), point[x] or 0.0)
    positive = [end for end in ends.values() if end > 0]
    return len(positive) > 1 and max(positive) / min(positive) >= WIDE


def _domain_across(data: list[dict[str, Any]], x: Across, log: bool, span: Span) -> list[float]:
    values = [point[x] for point in data if point[x] is not None and (point[x] > 0 or not log)]
    if not values:
        return [1.0, 10.0] if log else [0.0, 1.0]
    low, high = (min(values), max(values)) if log else (0.0, max(values))
    if span == "late" and x == "examples":  # the budget that the rows share: its half is the same place for all
        low = high / 2
    if any(point["kind"] == "stop" and point[x] == high for point in data):
        high *= 1.02  # room for the cross
    return [low, high] if high > low else [low, low + 1.0]


def _domain_upward(data: list[dict[str, Any]], y: Upward, span: Span) -> list[float]:
    """Room for the sound runs; what broke may leave it, since an exploding loss would flatten the rest."""
    sound = [point for point in data if point["kind"] in ("mean", "run")] or data
    if span == "late":
        half = max((point["examples"] for point in sound), default=0) / 2
        sound = [point for point in sound if point["examples"] >= half] or sound
    values = [point[y] for point in sound if point[y] is not None]
    if not values:
        return [0.0, 1.0]
    low, high = min(values), max(values)
    if high <= low:
        pad = abs(low) * 0.05 or 0.5
        return [low - pad, high + pad]
    if y != "score" and low > 0 and high / low >= 8:
        return [float(f"{low * 0.9:.3g}"), float(f"{high * 1.1:.3g}")]
    pad = 0.04 * (high - low)
    return [float(f"{low - pad:.5g}"), float(f"{high + pad:.5g}")]


def _upward_title(record: Comparison | TrainResult, y: Upward) -> str:
    if y != "score" or isinstance(record, TrainResult):
        return UPWARD[y]
    return f"{record.workload.score[:40]} on validation data"

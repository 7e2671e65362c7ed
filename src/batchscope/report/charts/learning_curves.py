"""Learning curves of runs: every run, the mean of those that ended in order, and axes that can be switched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from batchscope.records import CurvePoint, TrainResult
from batchscope.report.charts.axes import Point, Spec, axis, rounded, thinned
from batchscope.report.charts.curves import curves
from batchscope.report.charts.plot import tip

Across = Literal["examples", "updates", "seconds"]
Upward = Literal["score", "validation_loss", "training_loss"]
Span = Literal["whole", "late"]

ACROSS: dict[Across, str] = {"examples": "examples", "updates": "updates", "seconds": "seconds"}
UPWARD: dict[Upward, str] = {"score": "score", "validation_loss": "validation loss", "training_loss": "training loss"}
SPANS: dict[Span, str] = {"whole": "whole run", "late": "second half"}
MOST_POINTS = 160
"""Evaluations drawn of one run."""
WIDE = 4.0
"""Ratio between the rows' lengths from which a logarithmic axis serves better."""

_TITLES = {"examples": "examples seen", "updates": "updates made", "seconds": "seconds of training"}
_LEGEND = {
    "title": "batch × updates",
    "orient": "top",
    "columns": 4,
    "symbolOpacity": 1,
    "symbolType": "stroke",
    "symbolStrokeWidth": 3,
}


@dataclass(frozen=True)
class LearningCurves:
    """Runs by the row that they belong to.

    Attributes:
        rows: Label and runs of each line of the legend.
        score: What the score is called.
    """

    rows: Sequence[tuple[str, Sequence[TrainResult]]]
    score: str = "score"

    def points(self) -> list[Point]:
        """The data of the chart: every run's curve, and per row the mean of the runs that ended in order.

        Returns:
            One object per point: ``row``, ``run``, ``kind`` ("mean", "run", "broken" for a run that did not end in
            order, "stop" for where it broke off), the quantities across and upward, None where not finite.
        """
        found: list[Point] = []
        for label, runs in self.rows:
            whole = [run for run in runs if run.ended_in_order]
            found += _drawn(_mean(whole), row=label, run=f"{label}/mean", kind="mean", seeds=len(whole))
            for run in runs:
                if run in whole and len(whole) == 1:
                    continue  # its own mean
                kind = "run" if run in whole else "broken"
                drawn = _drawn(run.curve, row=label, run=f"{label}/{run.seed}", kind=kind, seeds=1)
                found += drawn
                if kind == "broken":
                    sound = [point for point in drawn if point["validation_loss"] is not None]
                    found += [{**sound[-1], "kind": "stop", "outcome": run.outcome}] if sound else []
        return found

    def followed(self) -> dict[Upward, str]:
        """Every quantity that at least one run knows."""
        points = self.points()
        return {y: title for y, title in UPWARD.items() if any(point[y] is not None for point in points)}

    def chart(self) -> Spec | None:
        """The chart as it first appears, with its data; None where there are none."""
        if not (data := self.points()):
            return None
        return {**self._chart(data, "examples", "score", "whole"), "datasets": {"curves": data}}

    def variants(self) -> dict[tuple[Across, Upward, Span], Spec]:
        """The chart with every choice of axes, its data left to be given under the name "curves"."""
        data = self.points()
        return {(x, y, span): self._chart(data, x, y, span) for x in ACROSS for y in UPWARD for span in SPANS}

    def _chart(self, data: list[Point], x: Across, y: Upward, span: Span) -> Spec:
        log_x = _wide(data, x)
        domain = _domain_upward(data, y, span)
        log_y = y != "score" and domain[0] > 0 and domain[1] / domain[0] >= 8
        along = axis(x, _TITLES[x], _domain_across(data, x, log_x, span), log=log_x)
        along["axis"]["grid"] = False
        value = axis(y, self.score if y == "score" else UPWARD[y], domain, log=log_y)
        labels = [label for label, _ in self.rows]
        legend = _LEGEND if len(labels) > 1 else None
        colour = {"field": "row", "type": "nominal", "scale": {"domain": labels}, "legend": legend}
        plot = curves(
            along,
            value,
            data,
            colour,
            styles={
                "datum.kind == 'run'": {"strokeWidth": 1, "opacity": 0.32},
                "datum.kind == 'broken'": {"strokeWidth": 1, "opacity": 0.7, "strokeDash": [3, 3]},
                "datum.kind == 'mean'": {"strokeWidth": 2.75, "strokeCap": "round"},
            },
            height=340,
        )
        mark: Spec = {"filled": True, "clip": True}
        stop: Spec = {"shape": "cross", "angle": 45, "size": 90, "opacity": 1}
        plot.add("point", data, where="datum.kind == 'stop'", **mark, **stop)
        tips = [tip("row"), tip("seeds", format="d"), tip("examples", format=","), tip("updates", format=",")]
        tips += [tip("seconds", format=".3~g"), *(tip(name, title, ".4~g") for name, title in UPWARD.items())]
        plot.add("point", data, where="datum.kind == 'mean'", tips=tips, **mark, size=140, opacity=0)
        for layer in plot.layers:
            layer["data"] = {"name": "curves"}
            # What cannot stand on a logarithmic axis must not reach it.
            shown = f"indexof(hidden, datum.row) < 0{f' && datum.{x} > 0' if log_x else ''}"
            layer["transform"].append({"filter": shown})
        spec = plot.done(params=[{"name": "hidden", "value": []}])
        del spec["datasets"]
        return spec


def _mean(runs: Sequence[TrainResult]) -> list[CurvePoint]:
    """The mean curve over the evaluations that every run made."""
    by_updates = [{point.iterations: point for point in run.curve} for run in runs]
    means = []
    for k in by_updates[0] if by_updates else ():
        here = [curve[k] for curve in by_updates if k in curve]
        if len(here) < len(runs):
            continue
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


def _drawn(curve: Sequence[CurvePoint], **name: object) -> list[Point]:
    return [
        {
            **name,
            "examples": point.examples,
            "updates": point.iterations,
            **{field: rounded(getattr(point, field)) for field in ("seconds", *UPWARD)},
        }
        for point in thinned(curve, MOST_POINTS)
    ]


def _wide(data: list[Point], x: Across) -> bool:
    """Whether some rows end so early on this axis that a linear one would crush them."""
    ends: dict[str, float] = {}
    for point in data:
        if point["kind"] in ("mean", "run"):
            ends[point["run"]] = max(ends.get(point["run"], 0.0), point[x] or 0.0)
    positive = [end for end in ends.values() if end > 0]
    return len(positive) > 1 and max(positive) / min(positive) >= WIDE


def _domain_across(data: list[Point], x: Across, log: bool, span: Span) -> list[float]:
    values = [point[x] for point in data if point[x] is not None and (point[x] > 0 or not log)]
    if not values:
        return [1.0, 10.0] if log else [0.0, 1.0]
    low, high = (min(values), max(values)) if log else (0.0, max(values))
    if span == "late" and x == "examples":  # the budget that the rows share: its half is the same place for all
        low = high / 2
    if any(point["kind"] == "stop" and point[x] == high for point in data):
        high *= 1.02  # room for the cross
    return [low, high] if high > low else [low, low + 1.0]


def _domain_upward(data: list[Point], y: Upward, span: Span) -> list[float]:
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

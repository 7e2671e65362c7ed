"""Charts of a record, each defined once in Vega-Lite: the page, PNG and SVG draw the same definition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from batchscope.errors import ArgumentError, require
from batchscope.records import (
    Advice,
    BranchedRuns,
    Claims,
    Comparison,
    DevicePlan,
    Landscape,
    MemoryUse,
    NoiseMeasurement,
    PaperStudy,
    Probe,
    RangeTest,
    Record,
    SpectralDensity,
    StepTimes,
    Sweep,
    TradeoffLaw,
    TrainResult,
)
from batchscope.report import (
    advice_charts,
    advice_race_charts,
    claims_charts,
    claims_content,
    comparison_charts,
    curvature_charts,
    curvature_content,
    curves,
    devices_charts,
    landscape_charts,
    marks,
    palette,
    paper_content,
    probe_charts,
    probe_content,
    probe_gradient_charts,
    sweep_charts,
    sweep_rate_charts,
    tradeoff_charts,
    training_charts,
)

Spec = dict[str, Any]

TITLES = {
    "final_scores": "Final score",
    "learning_curves": "Learning curves",
    "trade_off": "Score against time",
    "limits": "How large a batch is worth having",
    "time": "Time of a run",
    "step_time": "Time of an update",
    "throughput": "Examples per second",
    "memory": "Peak memory",
    "rate_search": "Learning-rate search",
    "cost_split": "Where the time went",
    "noise_scale": "Noise scale along training",
    "gradient_error": "Error of a batch's gradient",
    "branches": "Branched runs",
    "rate_range": "Learning-rate range test",
    "score_by_size": "Best score at the best rate",
    "updates_to_target": "Updates to the target",
    "examples_to_target": "Examples to the target",
    "seconds_to_target": "Time to the target",
    "front": "Time against examples",
    "best_rate": "Best learning rate",
    "best_curves": "Learning curves at the best rates",
    "rate_map": "Batch size and learning rate",
    "frontier_seconds": "Time against batch size",
    "frontier_examples": "Examples against batch size",
    "frontier_score": "Score against batch size",
    "spectral_density": "Density of the eigenvalues",
    "loss_along_line": "Loss and score along the line",
    "loss_map": "Training loss about the weights",
    "loss_surface": "Training loss as a surface",
    "device_times": "Time against devices",
    "device_cost": "Cost against devices",
    "forecast": "The advised setting on its way to the goal",
    "race": "The race",
}
"""Every chart by name, in the order of the page."""

OVERVIEW = "overview"
"""An image of the first two that a comparison has side by side: final score, score against time."""

_OF_COMPARISON: dict[str, Callable[[Comparison], Spec | None]] = {
    "final_scores": comparison_charts.final_scores,
    "trade_off": comparison_charts.trade_off,
    "time": comparison_charts.time,
    "throughput": comparison_charts.throughput,
    "memory": comparison_charts.memory,
}
_OF_PROBE: dict[str, tuple[type[Record], Callable[[Any], Spec | None]]] = {
    "limits": (Probe, probe_charts.limits),
    "step_time": (StepTimes, probe_charts.step_time),
    "throughput": (StepTimes, probe_charts.throughput),
    "memory": (MemoryUse, probe_charts.memory),
    "noise_scale": (Probe, probe_gradient_charts.noise_scale),
    "gradient_error": (NoiseMeasurement, probe_gradient_charts.gradient_error),
    "branches": (BranchedRuns, probe_gradient_charts.branches),
    "rate_range": (RangeTest, probe_gradient_charts.rate_range),
}
"""Charts of a probe, each with the part of it that it shows."""
_OF_LAW: dict[str, Callable[[Sweep | TradeoffLaw], Spec | None]] = {
    "updates_to_target": tradeoff_charts.updates,
    "examples_to_target": tradeoff_charts.examples,
}
_OF_SWEEP: dict[str, Callable[[Sweep], Spec | None]] = {
    "score_by_size": sweep_charts.score_by_size,
    "seconds_to_target": sweep_charts.seconds_to_target,
    "front": sweep_charts.front,
    "best_rate": sweep_rate_charts.best_rate,
    "best_curves": sweep_charts.best_curves,
    "rate_map": sweep_rate_charts.rate_map,
}
_OF_ADVICE: dict[str, Callable[[Advice], Spec | None]] = {
    "frontier_seconds": advice_charts.seconds,
    "frontier_examples": advice_charts.examples,
    "frontier_score": advice_charts.score,
    "forecast": advice_race_charts.forecast,
    "race": advice_race_charts.race,
}
_OF_DEVICES: dict[str, Callable[[DevicePlan], Spec | None]] = {
    "device_times": devices_charts.times,
    "device_cost": devices_charts.cost,
}
_OF_LANDSCAPE: dict[str, Callable[[Landscape], Spec | None]] = {
    "loss_along_line": landscape_charts.loss_along_line,
    "loss_map": landscape_charts.loss_map,
    "loss_surface": landscape_charts.loss_surface,
}
_WIDTH = 640  # of an image; on a page a chart is as wide as its card


def specification(record: Record, name: str, *, legend: bool = True) -> Spec | None:
    """One chart of a record, without the width and the colours that depend on where it is shown.

    Args:
        record: A comparison, a training run, a probe or a part of one, a sweep or its trade-off law, an advice.
        name: One of :data:`TITLES`.
        legend: Whether the chart names the rows itself, where it does not name them along an axis.

    Returns:
        A Vega-Lite specification as wide as its container; None where the record has nothing to show in it.

    Raises:
        ArgumentError: There is no such chart.
    """
    if isinstance(record, Claims):
        return _of_claim(record, name)
    if isinstance(record, PaperStudy):
        return _of_paper(record, name)
    if name not in TITLES:
        raise ArgumentError(f"a chart is one of {', '.join(TITLES)}", got=name)
    spec: Spec | None = None
    if name == "learning_curves" and isinstance(record, Comparison | TrainResult):
        if data := curves.points(record):
            spec = {**curves.specification(record, legend=legend), "datasets": {"curves": data}}
    elif isinstance(record, Comparison) and name == "rate_search":
        spec = comparison_charts.rate_search(record, legend)
    elif isinstance(record, Comparison) and name in _OF_COMPARISON:
        spec = _OF_COMPARISON[name](record)
    elif isinstance(record, TrainResult) and name == "cost_split":
        spec = training_charts.cost_split(record)
    elif isinstance(record, Sweep | TradeoffLaw) and name in _OF_LAW:
        spec = _OF_LAW[name](record)
    elif isinstance(record, Sweep) and name in _OF_SWEEP:
        spec = _OF_SWEEP[name](record)
    elif isinstance(record, Advice) and name in _OF_ADVICE:
        spec = _OF_ADVICE[name](record)
    elif isinstance(record, DevicePlan) and name in _OF_DEVICES:
        spec = _OF_DEVICES[name](record)
    elif isinstance(record, Landscape) and name in _OF_LANDSCAPE:
        spec = _OF_LANDSCAPE[name](record)
    elif isinstance(record, SpectralDensity) and name == "spectral_density":
        spec = curvature_charts.spectral_density(record)
    elif name in _OF_PROBE:
        kind, draw = _OF_PROBE[name]
        parts = (record, *probe_content.parts_of(record)) if isinstance(record, Probe) else (record,)
        spec = next((draw(part) for part in parts if isinstance(part, kind)), None)
    return None if spec is None else {**spec, "width": "container", "description": TITLES[name]}


def _of_claim(record: Claims, name: str) -> Spec | None:
    """The chart of one claim, which is called by the claim's name."""
    claim = next((own for own in record.claims if f"{claims_content.PREFIX}{own.name}" == name), None)
    if claim is None:
        every = ", ".join(f"{claims_content.PREFIX}{own.name}" for own in record.claims)
        raise ArgumentError(f"a chart of these claims is one of {every or 'none'}", got=name)
    spec = None if claim.picture is None else claims_charts.picture(claim.picture)
    return None if spec is None else {**spec, "width": "container", "description": claim.said}


def _of_paper(record: PaperStudy, name: str) -> Spec | None:
    """A picture of a paper's study, or the line between two solutions."""
    if name not in paper_content.names(record):
        raise ArgumentError(f"a chart of this paper is one of {', '.join(paper_content.names(record))}", got=name)
    if name == paper_content.LINE:
        spec = None if record.line is None else landscape_charts.loss_along_line(record.line)
    else:
        spec = claims_charts.picture(record.pictures[paper_content.names(record).index(name)])
    return None if spec is None else {**spec, "width": "container", "description": paper_content.title_of(record, name)}


def names(record: Record) -> tuple[str, ...]:
    """The charts that have something to show for a record."""
    return tuple(every(record))


def every(record: Record, *, legend: bool = True) -> dict[str, Spec]:
    """All charts that have something to show for a record, by name, as :func:`specification` gives each."""
    own: Iterable[str] = TITLES
    if isinstance(record, Claims):
        own = [f"{claims_content.PREFIX}{claim.name}" for claim in record.claims]
    elif isinstance(record, PaperStudy):
        own = paper_content.names(record)
    specs = {name: specification(record, name, legend=legend) for name in own}
    return {name: spec for name, spec in specs.items() if spec is not None}


def rows_to_colour(record: Record) -> int:
    """How many colours the record's charts need."""
    if isinstance(record, Comparison):
        return len(record.rows)
    coloured = (
        Probe
        | probe_content.Part
        | Sweep
        | TradeoffLaw
        | Advice
        | curvature_content.Curvature
        | Landscape
        | Claims
        | PaperStudy
        | DevicePlan
    )
    return marks.COLOURS if isinstance(record, coloured) else 1


def svg(record: Record, name: str, *, theme: palette.Theme = "light", width: int = _WIDTH) -> str:
    """A chart as SVG.

    Args:
        record: A comparison, a training run, a probe or a part of one.
        name: One of :data:`TITLES`, or :data:`OVERVIEW`.
        theme: Light or dark.
        width: Width of the plotting area in pixels.

    Returns:
        The text of an SVG file.

    Raises:
        ArgumentError: There is no such chart, or the record has nothing to show in it.
    """
    converter: Any = require("vl_convert", "draw charts as images", "vl-convert-python")
    spec, config = _image(record, name, theme, width)
    text: str = converter.vegalite_to_svg(spec, config=config, vl_version=vega_lite_version())
    return text


def png(record: Record, name: str, *, theme: palette.Theme = "light", width: int = _WIDTH, scale: float = 2.0) -> bytes:
    """A chart as PNG.

    Args:
        record: A comparison, a training run, a probe or a part of one.
        name: One of :data:`TITLES`, or :data:`OVERVIEW`.
        theme: Light or dark.
        width: Width of the plotting area in pixels.
        scale: Device pixels per pixel.

    Returns:
        The bytes of a PNG file.

    Raises:
        ArgumentError: There is no such chart, or the record has nothing to show in it.
    """
    converter: Any = require("vl_convert", "draw charts as images", "vl-convert-python")
    spec, config = _image(record, name, theme, width)
    image: bytes = converter.vegalite_to_png(spec, config=config, scale=scale, vl_version=vega_lite_version())
    return image


def vega_lite_version() -> str | None:
    """The version of Vega-Lite that altair writes, where the converter has it; None for the converter's own."""
    alt: Any = require("altair", "draw charts", "altair")
    converter: Any = require("vl_convert", "draw charts", "vl-convert-python")
    written = ".".join(str(alt.SCHEMA_VERSION).lstrip("v").split(".")[:2])
    return written if written in converter.get_vegalite_versions() else None


def _image(record: Record, name: str, theme: palette.Theme, width: int) -> tuple[Spec, Spec]:
    wanted = ("final_scores", "trade_off") if name == OVERVIEW else (name,)
    each = (width - 60) // 2 if name == OVERVIEW else width
    parts = [
        {**spec, "width": each, "title": TITLES.get(part, spec["description"])}
        for part in wanted
        if (spec := specification(record, part)) is not None
    ]
    if not parts:
        raise ArgumentError(
            f"this {record.kind} record must have something to show as {name}",
            got="nothing",
            mend=f"it has {', '.join(names(record)) or 'no charts'}",
        )
    padding = {"left": 16, "right": 16, "top": 14, "bottom": 12}
    whole = {"hconcat": parts, "spacing": 40, "$schema": parts[0].pop("$schema")} if len(parts) > 1 else parts[0]
    config = palette.vega_config(rows_to_colour(record), theme, palette.IMAGE_FONT)
    return {**whole, "padding": padding}, config

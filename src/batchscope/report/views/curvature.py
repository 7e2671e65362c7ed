"""What is shown of curvature and sharpness, and of the loss over lines and planes of weights."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscope.fit.contours import contour
from batchscope.records import (
    HessianEigenvalues,
    HessianTrace,
    Landscape,
    LandscapePoint,
    PathPoint,
    Sharpness,
    SharpnessRun,
    SpectralDensity,
)
from batchscope.report import formatting as f
from batchscope.report.charts.axes import LOGARITHMIC, Point, Spec
from batchscope.report.charts.curves import curves
from batchscope.report.charts.heat_map import heat_map
from batchscope.report.charts.plot import AMBER, BLUE, RED, TEAL, kinds, tip
from batchscope.report.charts.surface import surface
from batchscope.report.view import Column, Facts, Figure, Section, Table, View, facts, measured, table

LEVELS = 12
MOST_TIMES = 8.0
"""Losses above the least by more than this many times the spread of the lower half are drawn at that height."""
LEAST = 1e-7
"""Below this share of the highest, a density is drawn as if it were that."""

_MATRIX = {"hessian": "Hessian", "gauss-newton": "Gauss–Newton matrix"}
_POLICY = "In evaluation mode: dropout is off, and batch norm uses its running statistics."
_SHAPES = {
    "line": "What lies between the two solutions?",
    "direction": "How does the loss rise along a random direction?",
    "plane": "What does the loss look like about these weights?",
    "path": "Which way did training go?",
}

Curvature = HessianEigenvalues | HessianTrace | SpectralDensity | Sharpness
"""The records of curvature and sharpness."""


def _view(
    record: Curvature | Landscape,
    title: str,
    answer: str,
    rests_on: Facts,
    *,
    found: Table | None = None,
    figures: tuple[Figure, ...] = (),
    lead: str = _POLICY,
) -> View:
    tables = () if found is None else (found,)
    section = Section(
        "What was measured", lead, tables=tables, figures=figures, facts=(("It rests on", rests_on),), on="both"
    )
    return View(
        name=record.workload,
        title=title,
        answer=answer,
        summary=(("took", f.seconds(record.seconds)), ("on", record.provenance.device)),
        sections=(section, measured(record.provenance)),
        origin=record.provenance,
    )


def _over(record: Curvature) -> str:
    return f"over {f.count(record.examples)} training examples"


def _sizes(record: Curvature) -> Facts:
    return (("parameters", f.count(record.parameters)), ("examples", f.count(record.examples)))


def eigenvalues_view(record: HessianEigenvalues) -> View:
    """The largest eigenvalues."""
    name, stable = _MATRIX[record.matrix], record.stable_learning_rate
    answer = f"The largest eigenvalue of the {name} {_over(record)} is {f.number(record.values[0])}."
    if stable is None:
        answer += " The optimiser scales its own steps, so the eigenvalue bounds no learning rate."
    else:
        side = "below" if record.learning_rate < stable else "above"
        answer += (
            f" On a quadratic of that curvature learning rates up to {f.number(stable, 3)} are stable; the one in use, "
            f"{f.number(record.learning_rate)}, lies {side}."
        )
    items = list(zip(record.values, record.residuals, record.told_apart, record.converged, strict=True))
    columns: tuple[Column[int], ...] = (
        Column("", lambda i: str(i + 1), align="left"),
        Column("eigenvalue", lambda i: f.number(items[i][0])),
        Column("residual", lambda i: f.number(items[i][1], 2), "‖Hv − λv‖"),
        Column("distinct", lambda i: "yes" if items[i][2] else "no", "from the next"),
        Column("converged", lambda i: "" if items[i][3] else "no", minor=True),
    )
    found = table(f"Eigenvalues of the {name}", range(len(items)), columns, _POLICY)
    rests_on = (*_sizes(record), ("products", f.count(record.products)), ("took", f.seconds(record.seconds)))
    return _view(record, "How sharply does the loss bend?", answer, rests_on, found=found)


def trace_view(record: HessianTrace) -> View:
    """The trace."""
    answer = (
        f"The trace of the {_MATRIX[record.matrix]} {_over(record)} is {f.sized(record.trace)}, a mean eigenvalue of "
        f"{f.sized(record.mean_eigenvalue)}."
    )
    rests_on = (
        *_sizes(record),
        ("products", f.count(record.products)),
        ("trace", f.sized(record.trace)),
        ("random vectors", f.count(record.samples)),
        ("eigenvectors projected out first", f.count(record.projected_out)),
        ("took", f.seconds(record.seconds)),
    )
    return _view(record, "How much does the loss bend in all?", answer, rests_on)


def density_view(record: SpectralDensity) -> View:
    """The density of all eigenvalues."""
    answer = (
        f"The {f.count(record.parameters)} eigenvalues of the {_MATRIX[record.matrix]} {_over(record)} reach from "
        f"{f.number(record.nodes[0], 3)} to {f.number(record.nodes[-1], 3)}; {f.sized(record.share_negative)} of them "
        "lie below zero."
    )
    rests_on = (
        *_sizes(record),
        ("products", f.count(record.products)),
        ("Lanczos steps", f"{record.steps} from each of {record.runs} vectors"),
        ("below zero", f.sized(record.share_negative)),
        ("smoothed by", f.number(record.width, 3)),
        ("took", f.seconds(record.seconds)),
    )
    note = "A share of a hundred-thousandth is about where the quadrature's own errors lie."
    draw = functools.partial(spectral_density, record)
    figure = Figure("spectral_density", "Density of the eigenvalues, log scale", draw, alone=True, note=note)
    return _view(record, "How are the curvatures spread?", answer, rests_on, figures=(figure,))


def sharpness_view(record: Sharpness) -> View:
    """Keskar's sharpness."""
    where = "of all weights" if record.subspace is None else f"in {len(record.runs)} random subspaces"
    answer = (
        f"Within the box of ε = {f.number(record.epsilon)} {where}, the training loss {f.number(record.loss)} rises by "
        f"up to φ = {f.number(record.value)}% of 1 + loss."
    )
    columns: tuple[Column[tuple[int, SharpnessRun]], ...] = (
        Column("search", lambda item: str(item[0]), align="left"),
        Column("φ", lambda item: f"{f.number(item[1].value)}%"),
        Column("largest loss", lambda item: f.number(item[1].loss)),
        Column("evaluations", lambda item: f.count(item[1].evaluations), minor=True),
        Column("at the sides", lambda item: f.share(item[1].at_bounds, 1), "of the box"),
    )
    box = "|z| ≤ ε(|A⁺x| + 1)" if record.box == "keskar" else "each weight by ε times the size of its filter"
    subspace = record.subspace
    rests_on = _sizes(record) + facts(
        ("box", box),
        ("ε", f.number(record.epsilon)),
        ("iterations of L-BFGS-B", f.count(record.iterations)),
        None if subspace is None else ("dimensions of a subspace", f.count(subspace)),
        None if subspace is None else ("φ, mean", f.sized(record.over_runs)),
        ("loss at the centre", f.number(record.loss)),
        ("took", f.seconds(record.seconds)),
    )
    found = table("Searches for the largest loss", list(enumerate(record.runs, 1)), columns, _POLICY)
    return _view(record, "How far can the loss rise close by?", answer, rests_on, found=found)


def spectral_density(record: SpectralDensity) -> Spec | None:
    """The density of the eigenvalues on a logarithmic axis, since all but a few lie near zero."""
    top = max(record.density, default=0.0)
    if top <= 0:
        return None
    data = [
        {"eigenvalue": place, "density": max(density, LEAST * top), "low": LEAST * top, "kind": "density"}
        for place, density in zip(record.eigenvalues, record.density, strict=True)
    ]
    for point in data:
        point["high"] = point["density"]
    scale = {"type": "log", "domain": [LEAST * top, 2 * top], "nice": False}
    value = {**_free("density", "share of the eigenvalues per unit"), "scale": scale}
    value["axis"] = {"format": ".0e", "tickCount": 6}
    tips = [tip("eigenvalue", format=".4~g"), tip("density", format=".3~g")]
    styles = {"": {"strokeWidth": 2}}
    along = {**_free("eigenvalue", "eigenvalue"), "axis": {"grid": False}}
    return (
        curves(along, value, data, kinds({BLUE: "density"}), styles=styles, detail="kind", targets=tips)
        .band(data)
        .done()
    )


def _free(field: str, title: str) -> Spec:
    """A channel whose domain Vega chooses."""
    return {"field": field, "type": "quantitative", "title": title}


# Landscapes


def landscape_view(record: Landscape) -> View:
    """The loss along a line or over a plane of weights."""
    lowered = "Losses far above the rest are drawn at the height of the edge."
    white = f"White: lines of equal loss, and the path of training. {lowered}"
    turn = f"Turn and tilt it below. {lowered}"
    line, plane, solid = (functools.partial(draw, record) for draw in (loss_along_line, loss_map, loss_surface))
    figures = (
        Figure("loss_along_line", "Loss and score along the line", line, note="Dashed: scores, on the right axis."),
        Figure("loss_map", "Training loss", plane, note=white),
        Figure("loss_surface", "The same as a surface", solid, note=turn),
    )
    lead = "In evaluation mode, at weights that nobody trained: pictures, and not evidence of how one generalises."
    return _view(
        record,
        _SHAPES[record.shape],
        landscape_answer(record),
        _rests_on(record),
        found=_places(record),
        figures=figures,
        lead=lead,
    )


def landscape_answer(record: Landscape) -> str:
    """What a landscape says, in a sentence or two."""

    def at(along: float) -> LandscapePoint:
        return min(record.points, key=lambda point: abs(point.along - along))

    if record.shape == "line":
        first, second = record.labels
        ends = [at(along).training_loss for along in (0.0, 1.0)]
        between = [p.training_loss for p in record.points if 0 <= p.along <= 1 and f.known(p.training_loss)]
        height = max(between, default=float("nan")) - max(ends)
        rises = height > 0.01 * max(abs(ends[0]), 1e-12)
        wall = f"rises by {f.number(height, 3)} above" if rises else "does not rise above"
        return (
            f"The training loss is {f.number(ends[0])} at {first} and {f.number(ends[1])} at {second}, "
            f"{f.number(record.length[0], 3)} away. Between them it {wall} the higher one."
        )
    if record.shape == "path":
        held = sum(record.explained)
        return (
            f"These two directions hold {f.share(held, 1)} of the squared distances of {len(record.path) - 1} states "
            f"from the last one; {f.share(max(0.0, 1 - held), 1)} lies outside the picture."
        )
    here = min(record.points, key=lambda point: point.along**2 + point.across**2)
    lowest = min((p.training_loss for p in record.points if f.known(p.training_loss)), default=float("inf"))
    return (
        f"The training loss is {f.number(here.training_loss)} at the weights, and {f.number(lowest)} at the lowest "
        "point evaluated. Random directions show what most directions are like, and not the sharpest."
    )


def _places(record: Landscape) -> Table:
    """Every place of a line; of a plane, the states."""
    if record.shape in ("line", "direction"):
        columns: tuple[Column[LandscapePoint], ...] = (
            Column("α" if record.shape == "line" else "steps", lambda p: f.number(p.along, 3), align="left"),
            Column("training", lambda p: f.number(p.training_loss), "loss"),
            Column("training", lambda p: f.number(p.training_score), "score", minor=True),
            Column("validation", lambda p: f.number(p.validation_loss), "loss"),
            Column("validation", lambda p: f.number(p.validation_score), "score"),
        )
        return table("Along the line", record.points, columns)
    states: tuple[Column[tuple[str, PathPoint]], ...] = (
        Column("state", lambda item: item[0], align="left"),
        Column("first", lambda item: f.number(item[1].along, 3)),
        Column("second", lambda item: f.number(item[1].across, 3)),
        Column("distance", lambda item: f.number(item[1].distance, 3), "from the plane"),
    )
    return table("The states", zip(record.labels, record.path, strict=True), states)


def _rests_on(record: Landscape) -> Facts:
    again = f"computed again from {f.count(record.statistics_from)} training examples at every place"
    scaled = "every filter as long as the weights' own; biases and norms held fixed"
    return facts(
        ("parameters", f.count(record.parameters)),
        ("places", f.count(len(record.points))),
        ("examples", f"{f.count(record.training_examples)} training, {f.count(record.validation_examples)} validation"),
        ("batch norm's statistics", again if record.statistics_from else "none in the model"),
        ("directions", scaled) if record.shape in ("direction", "plane") else None,
        ("took", f.seconds(record.seconds)),
    )


def loss_along_line(record: Landscape) -> Spec | None:
    """Loss on the left axis and score on the right one, along a line, as in figure 3 of Keskar et al. (2016)."""
    if record.shape not in ("line", "direction"):
        return None
    names = {BLUE: "training loss", TEAL: "validation loss", AMBER: "training score", RED: "validation score"}
    losses, scores = (
        [
            {"along": point.along, "kind": name, "value": getattr(point, name.replace(" ", "_"))}
            for point in record.points
            for name in (names[first], names[second])
            if f.known(getattr(point, name.replace(" ", "_")))
        ]
        for first, second in ((BLUE, TEAL), (AMBER, RED))
    )
    if not losses:
        return None
    log = min(point["value"] for point in losses) > 0
    colour = kinds(names, tuple(names), above=24)
    title = "α from the first state to the second" if record.shape == "line" else "steps along the direction"
    along = {**_free("along", title), "axis": {"grid": False}, "scale": {"nice": False}}
    left = {
        **_free("value", "loss" + (LOGARITHMIC if log else "")),
        "scale": {"type": "log"} if log else {"zero": False},
    }
    right = {**_free("value", "score"), "scale": {"zero": False}, "axis": {"orient": "right", "grid": False}}
    tips = [tip("along", format=".3~g"), tip("value", format=".4~g"), tip("kind")]
    layers: list[Any] = []
    sets: dict[str, list[Point]] = {}
    for name, data, value, dash in (("losses", losses, left, []), ("scores", scores, right, [5, 3])):
        styles = {"": {"strokeWidth": 2, "strokeDash": dash, "clip": False}}
        plot = curves(along, value, data, colour, styles=styles, detail="kind")
        plot.dots(data, where="", size=28, style="", tips=tips)
        for layer in plot.layers:
            layer["data"] = {"name": name}
        layers.append({"layer": plot.layers})
        sets[name] = data
    ends: list[Point] = [{"along": float(k), "text": label} for k, label in enumerate(record.labels)]
    ends = ends if record.shape == "line" else ends[:1]
    # Named above the frame, where no curve runs, and away from each other, where the chart is narrow.
    named = curves(along, left, [], None, styles={}, height=340)
    named.add("rule", ends, value=False, strokeDash=[2, 3])
    for k, end in enumerate(ends):
        side = "right" if k == 0 and len(ends) > 1 else "left"
        named.text([end], value=0, baseline="bottom", dy=-4, align=side)
    named.layers = [*layers, *named.layers]
    return named.done(resolve={"scale": {"y": "independent"}}, datasets=sets)


def loss_map(record: Landscape) -> Spec | None:
    """The training loss over a plane, with lines of equal loss and the states on it."""
    if (grid := _grid(record)) is None:
        return None
    along, across, heights = grid
    columns, rows = _cells(along), _cells(across)
    cells: list[Point] = [
        {"left": x0, "right": x1, "low": y0, "high": y1, "loss": float(heights[j, i])}
        for j, (y0, y1) in enumerate(rows)
        for i, (x0, x1) in enumerate(columns)
    ]
    low, high = float(heights.min()), float(heights.max())
    # Closer together where the surface is low.
    levels = [low + (high - low) * (k / (LEVELS + 1)) ** 2 for k in range(1, LEVELS + 1)] if high > low else []
    pieces: list[Point] = [
        {"x": x, "y": y, "piece": f"{k}.{n}", "level": level}
        for k, level in enumerate(levels)
        for n, ends in enumerate(contour(along, across, heights, level))
        for x, y in ends
    ]
    states: list[Point] = [
        {"x": p.along, "y": p.across, "order": k, "text": label}
        for k, (p, label) in enumerate(zip(record.path, record.labels, strict=True))
    ]
    titles = ["first random direction", "second random direction"]
    if record.shape == "path":
        titles = [
            f"{place} principal direction ({share:.0%})"
            for place, share in zip(("first", "second"), record.explained, strict=True)
        ]
    legend = {"title": "training loss", "orient": "right", "gradientLength": 200, "format": ".3~g"}
    shade = {"field": "loss", "type": "quantitative", "scale": {"scheme": "viridis"}, "legend": legend}
    x, y = (
        {
            **_free(field, title),
            "scale": {"domain": [ends[0][0], ends[-1][1]], "nice": False},
            "axis": {"grid": False},
        }
        for field, title, ends in zip(("x", "y"), titles, (columns, rows), strict=True)
    )
    tips = [tip("loss", "training loss", ".4~g")]
    plot = heat_map(x, y, cells, shade, tips=tips, height=420, across={"along": "left", "along_to": "right"})
    apart = {"detail": {"field": "piece", "type": "nominal"}}
    plot.add("line", pieces, colour=False, channels=apart, strokeWidth=1, opacity=0.75, color="white")
    order = {"order": {"field": "order", "type": "quantitative"}}
    if len(states) > 1:
        plot.add("line", states, colour=False, channels=order, strokeWidth=2, color="white")
    dot: Spec = {"size": 55, "filled": True, "opacity": 1, "color": "#ff7396", "stroke": "white"}
    return plot.add("point", states, colour=False, tips=[tip("text")], **dot).done()


def loss_surface(record: Landscape) -> Spec | None:
    """The training loss as a surface over a plane."""
    grid = _grid(record)
    return None if grid is None else surface(grid[2])


def _grid(record: Landscape) -> tuple[list[float], list[float], NDArray[np.float64]] | None:
    """Both coordinates and the training losses, those that are far above the rest lowered to what can be drawn."""
    if record.shape not in ("plane", "path"):
        return None
    along = sorted({point.along for point in record.points})
    across = sorted({point.across for point in record.points})
    if len(along) * len(across) != len(record.points) or len(across) < 2:
        return None
    heights = np.array([point.training_loss for point in record.points]).reshape(len(across), len(along))
    finite = heights[np.isfinite(heights)]
    if not len(finite):
        return None
    least, middle = float(finite.min()), float(np.median(finite))
    most = least + MOST_TIMES * ((middle - least) or 1.0)
    return along, across, np.minimum(np.where(np.isfinite(heights), heights, most), most)


def _cells(places: list[float]) -> list[tuple[float, float]]:
    """The stretch around each place."""
    middles = [(a + b) / 2 for a, b in itertools.pairwise(places)]
    first, last = places[0] - (middles[0] - places[0]), places[-1] + (places[-1] - middles[-1])
    return list(zip([first, *middles], [*middles, last], strict=True))

"""The charts of a landscape: the two-axis line, the map with its contours, the surface that can be turned."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscope.fit.contours import contour
from batchscope.records import Landscape
from batchscope.report import formatting as f
from batchscope.report.curves import LOGARITHMIC
from batchscope.report.marks import AMBER, BLUE, RED, TEAL, Point, Spec, altair, colours, done

LEVELS = 12
# Losses above the least by more than this many times the spread of the lower half are drawn at that height.
MOST_TIMES = 8.0
# Of a surface: how it is first turned, in degrees, and how much of the chart it fills.
TURNED, TILTED, FILLS = 30, 35, 1.25


def loss_along_line(record: Landscape) -> Spec | None:
    """Loss on the left axis and score on the right one, along a line, as in figure 3 of Keskar et al. (2016)."""
    if record.shape not in ("line", "direction"):
        return None
    alt = altair()
    names = {BLUE: "training loss", TEAL: "validation loss", AMBER: "training score", RED: "validation score"}
    losses: list[Point] = []
    scores: list[Point] = []
    for point in record.points:
        place = {"along": point.along}
        losses += [
            place | {"kind": names[BLUE], "value": point.training_loss},
            place | {"kind": names[TEAL], "value": point.validation_loss},
        ]
        scores += [
            place | {"kind": names[AMBER], "value": point.training_score},
            place | {"kind": names[RED], "value": point.validation_score},
        ]
    losses, scores = ([p for p in part if f.known(p["value"])] for part in (losses, scores))
    if not losses:
        return None
    log = min(p["value"] for p in losses) > 0
    colour = colours(alt, names, (BLUE, TEAL, AMBER, RED), above=24)
    title = "α from the first state to the second" if record.shape == "line" else "steps along the direction"
    across = alt.X("along:Q", title=title, axis=alt.Axis(grid=False), scale=alt.Scale(nice=False))
    layers = []
    left = alt.Scale(type="log") if log else alt.Scale(zero=False)
    right = {"scale": alt.Scale(zero=False), "axis": alt.Axis(orient="right", grid=False)}
    for data, axis in (
        (losses, alt.Y("value:Q", title="loss" + (LOGARITHMIC if log else ""), scale=left)),
        (scores, alt.Y("value:Q", title="score", **right)),
    ):
        base = alt.Chart(alt.Data(values=data)).encode(x=across, color=colour)
        tips = [alt.Tooltip("along:Q", format=".3~g"), alt.Tooltip("value:Q", format=".4~g"), "kind:N"]
        dash = [] if data is losses else [5, 3]
        layers.append(
            alt.layer(
                base.mark_line(strokeWidth=2, strokeDash=dash).encode(y=axis),
                base.mark_point(size=28, filled=True, opacity=1).encode(y=axis, tooltip=tips),
            )
        )
    ends = [{"along": float(k), "text": label} for k, label in enumerate(record.labels)]
    ends = ends if record.shape == "line" else ends[:1]
    rules = alt.Chart(alt.Data(values=ends)).encode(x=across).mark_rule(strokeDash=[2, 3])
    # Above the frame, where no curve runs, and away from each other, where the chart is narrow.
    lettering = [
        alt.Chart(alt.Data(values=[end]))
        .mark_text(baseline="bottom", dy=-4, align="right" if k == 0 and len(ends) > 1 else "left")
        .encode(x=across, y=alt.value(0), text="text:N")
        for k, end in enumerate(ends)
    ]
    return done(alt.layer(*layers, rules, *lettering).resolve_scale(y="independent"), height=340)


def loss_map(record: Landscape) -> Spec | None:
    """The training loss over a plane, with lines of equal loss and the states on it."""
    if (grid := _grid(record)) is None:
        return None
    alt = altair()
    along, across, heights = grid
    data = [
        {"left": x0, "right": x1, "low": y0, "high": y1, "loss": float(heights[j, i])}
        for j, (y0, y1) in enumerate(_cells(across))
        for i, (x0, x1) in enumerate(_cells(along))
    ]
    levels = _levels(heights)
    pieces = [
        {"x": x, "y": y, "piece": f"{k}.{n}", "level": level}
        for k, level in enumerate(levels)
        for n, ends in enumerate(contour(along, across, heights, level))
        for x, y in ends
    ]
    domain_x, domain_y = ([cells[0][0], cells[-1][1]] for cells in (_cells(along), _cells(across)))
    axes: dict[str, Any] = {"axis": alt.Axis(grid=False)}
    x_title, y_title = _titles(record)
    x = {"title": x_title, "scale": alt.Scale(domain=domain_x, nice=False), **axes}
    y = {"title": y_title, "scale": alt.Scale(domain=domain_y, nice=False), **axes}
    shade = alt.Color(
        "loss:Q",
        scale=alt.Scale(scheme="viridis"),
        legend=alt.Legend(title="training loss", orient="right", gradientLength=200, format=".3~g"),
    )
    tips = [alt.Tooltip("loss:Q", title="training loss", format=".4~g")]
    places = alt.Chart(alt.Data(values=data)).mark_rect(strokeWidth=0)
    lines = alt.Chart(alt.Data(values=pieces)).mark_line(strokeWidth=1, opacity=0.75, color="white")
    states = [
        {"x": p.along, "y": p.across, "order": k, "text": label}
        for k, (p, label) in enumerate(zip(record.path, record.labels, strict=True))
    ]
    path = alt.Chart(alt.Data(values=states))
    layers = [
        places.encode(
            x=alt.X("left:Q", **x), x2="right:Q", y=alt.Y("low:Q", **y), y2="high:Q", color=shade, tooltip=tips
        ),
        lines.encode(x=alt.X("x:Q", **x), y=alt.Y("y:Q", **y), detail="piece:N"),
    ]
    if len(states) > 1:
        layers.append(
            path.mark_line(strokeWidth=2, color="white").encode(
                x=alt.X("x:Q", **x), y=alt.Y("y:Q", **y), order="order:Q"
            )
        )
    layers.append(
        path.mark_point(size=55, filled=True, opacity=1, color="#ff7396", stroke="white").encode(
            x=alt.X("x:Q", **x), y=alt.Y("y:Q", **y), tooltip=["text:N"]
        )
    )
    return done(alt.layer(*layers), height=420)


def loss_surface(record: Landscape) -> Spec | None:
    """The training loss as a surface over a plane, turned and tilted by two sliders."""
    if (grid := _grid(record)) is None:
        return None
    alt = altair()
    along, across, heights = grid
    top, bottom = float(heights.max()), float(heights.min())
    unit = (heights - bottom) / ((top - bottom) or 1.0)

    def point(i: int, j: int, line: str, order: int) -> Point:
        return {
            "x": 2 * i / (len(along) - 1) - 1,
            "y": 2 * j / (len(across) - 1) - 1,
            "z": float(unit[j, i]),
            "loss": float(heights[j, i]),
            "line": line,
            "order": order,
        }

    data = [point(i, j, f"row {j}", i) for j in range(len(across)) for i in range(len(along))]
    data += [point(i, j, f"column {i}", j) for i in range(len(along)) for j in range(len(across))]
    turn = alt.param(name="turn", value=TURNED, bind=alt.binding_range(min=0, max=360, step=1, name="turn "))
    tilt = alt.param(name="tilt", value=TILTED, bind=alt.binding_range(min=5, max=90, step=1, name="tilt "))
    radians = math.pi / 180
    chart = (
        alt.Chart(alt.Data(values=data))
        .transform_calculate(
            right=f"datum.x * cos(turn * {radians}) - datum.y * sin(turn * {radians})",
            away=f"datum.x * sin(turn * {radians}) + datum.y * cos(turn * {radians})",
        )
        .transform_calculate(up=f"datum.away * sin(tilt * {radians}) + 1.2 * datum.z * cos(tilt * {radians})")
        .mark_line(strokeWidth=1.2, opacity=0.8)
        .encode(
            x=alt.X("right:Q", axis=None, scale=alt.Scale(domain=[-FILLS, FILLS])),
            y=alt.Y("up:Q", axis=None, scale=alt.Scale(domain=[-FILLS, 1.6 * FILLS])),
            detail="line:N",
            order="order:Q",
        )
        .add_params(turn, tilt)
    )
    return done(chart, height=420)


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


def _levels(heights: NDArray[np.float64]) -> list[float]:
    """Heights of the contours: closer together where the surface is low."""
    low, high = float(heights.min()), float(heights.max())
    if high <= low:
        return []
    return [low + (high - low) * (k / (LEVELS + 1)) ** 2 for k in range(1, LEVELS + 1)]


def _cells(places: list[float]) -> list[tuple[float, float]]:
    """The stretch around each place."""
    middles = [(a + b) / 2 for a, b in itertools.pairwise(places)]
    first, last = places[0] - (middles[0] - places[0]), places[-1] + (places[-1] - middles[-1])
    return list(zip([first, *middles], [*middles, last], strict=True))


def _titles(record: Landscape) -> tuple[str, str]:
    if record.shape == "plane":
        return "first random direction", "second random direction"
    first, second = (f"{share:.0%}" for share in record.explained)
    return f"first principal direction ({first})", f"second principal direction ({second})"

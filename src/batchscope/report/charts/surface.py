"""A surface over a plane, turned and tilted by two sliders."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from batchscope.report.charts.axes import Point, Spec
from batchscope.report.charts.plot import Plot

TURNED, TILTED, FILLS = 30, 35, 1.25
"""How it is first turned, in degrees, and how much of the chart it fills."""


def surface(heights: NDArray[np.float64], *, height: int = 420) -> Spec:
    """Lines along both directions of a grid, seen from a side.

    Args:
        heights: Finite numbers, of shape (across, along).
        height: Of the chart, in pixels.

    Returns:
        A specification with the parameters ``turn`` and ``tilt``.
    """
    rows, columns = heights.shape
    bottom, top = float(heights.min()), float(heights.max())
    unit = (heights - bottom) / ((top - bottom) or 1.0)

    def point(i: int, j: int, line: str, order: int) -> Point:
        place = {"x": 2 * i / (columns - 1) - 1, "y": 2 * j / (rows - 1) - 1, "z": float(unit[j, i])}
        return place | {"loss": float(heights[j, i]), "line": line, "order": order}

    data = [point(i, j, f"row {j}", i) for j in range(rows) for i in range(columns)]
    data += [point(i, j, f"column {i}", j) for i in range(columns) for j in range(rows)]
    sides = [{"field": name, "type": "quantitative", "axis": None} for name in ("right", "up")]
    scales = [{"domain": [-FILLS, FILLS]}, {"domain": [-FILLS, 1.6 * FILLS]}]
    plot = Plot(*({**side, "scale": scale} for side, scale in zip(sides, scales, strict=True)), height=height)
    order: Spec = {
        "detail": {"field": "line", "type": "nominal"},
        "order": {"field": "order", "type": "quantitative"},
    }
    plot.add("line", data, channels=order, strokeWidth=1.2, opacity=0.8)
    turn, tilt = (f"{name} * {math.pi / 180}" for name in ("turn", "tilt"))
    plot.layers[0]["transform"] = [
        {"calculate": f"datum.x * cos({turn}) - datum.y * sin({turn})", "as": "right"},
        {"calculate": f"datum.x * sin({turn}) + datum.y * cos({turn})", "as": "away"},
        {"calculate": f"datum.away * sin({tilt}) + 1.2 * datum.z * cos({tilt})", "as": "up"},
    ]
    params = [
        {
            "name": name,
            "value": value,
            "bind": {"input": "range", "min": least, "max": most, "step": 1, "name": f"{name} "},
        }
        for name, value, least, most in (("turn", TURNED, 0, 360), ("tilt", TILTED, 5, 90))
    ]
    return plot.done(params=params)

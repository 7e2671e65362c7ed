"""Many lines over one axis: runs in the colours of their batch sizes, or a quantity with its range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchscope.report.charts.axes import HEIGHT, Point, Spec
from batchscope.report.charts.plot import Plot


def score_domain(values: Sequence[float], *, least: float = 0.05) -> list[float]:
    """A linear domain for scores along training: the first ones of large batches lie far below all that is compared.

    Examples:
        >>> score_domain([0.1, *[0.8] * 20, 0.9])
        [0.782, 0.906]
    """
    ends = sorted(values)
    low, high = ends[len(ends) // 10], ends[-1]
    pad = 0.06 * (high - low) or least
    return [float(f"{max(ends[0], low - 2 * pad) - pad:.10g}"), float(f"{high + pad:.10g}")]


def curves(
    along: Spec,
    value: Spec,
    data: list[Point],
    colour: Spec | None,
    *,
    styles: Mapping[str, Mapping[str, Any]],
    detail: str = "run",
    tips: Sequence[Spec] = (),
    level: tuple[float | None, str] = (None, ""),
    targets: Sequence[Spec] = (),
    height: int = HEIGHT,
) -> Plot:
    """Lines through points in their order, one for each value of ``detail``.

    Args:
        along: Channel of what runs across.
        value: Channel of what is followed.
        data: The points of all lines.
        colour: Channel of the lines' colours.
        styles: Properties of lines by an expression that says which; the empty one says all.
        detail: Field that tells the lines apart.
        tips: What a line says when it is pointed at.
        level: A value with its label, as a labelled line across the vertical axis.
        targets: What a point says when it is pointed at; points are then there, and not seen.
        height: Of the chart, in pixels.

    Returns:
        The chart, to which more can be added.
    """
    plot = Plot(along, value, colour, height=height)
    plot.level(*level)
    apart = {"detail": {"field": detail, "type": "nominal"}}
    for where, look in styles.items():
        plot.line(data, where=where, tips=tips, channels=apart, **look)
    if targets:
        plot.add("point", data, tips=targets, size=90, opacity=0, filled=True, clip=True)
    return plot

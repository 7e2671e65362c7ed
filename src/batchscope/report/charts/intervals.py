"""Points with their intervals, beside the law that was fitted to them and the lines that they are read against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchscope.report.charts.axes import HEIGHT, Point, Spec
from batchscope.report.charts.plot import FULL, HOLLOW, Mark, Plot, kinds


def intervals(
    along: Spec,
    value: Spec,
    points: list[Point],
    tips: Sequence[Spec],
    names: Mapping[int, str],
    *,
    legend: Sequence[int] = (),
    law: list[Point] | None = None,
    law_look: Mapping[str, Any] | None = None,
    marks: Sequence[Mark] = (),
    level: tuple[float | None, str] = (None, ""),
    hollow: str = "",
    size: int = 80,
    height: int = HEIGHT,
    under: Plot | None = None,
) -> Plot:
    """What was measured against what was varied.

    Args:
        along: Channel of what was varied.
        value: Channel of what was measured.
        points: Each with the field of ``along``; ``kind``, which gives it its colour; ``value``, ``low`` and ``high``
            where they are known; ``below`` and ``above`` where its interval goes on beyond the plot.
        tips: What a point says when it is pointed at.
        names: What the colours stand for, as in :func:`batchscope.report.charts.plot.kinds`.
        legend: Colours that the chart names itself.
        law: Points of a line, each with ``value``; with ``low`` and ``high`` it has a band. A ``kind`` colours it.
        law_look: Properties of that line.
        marks: Labelled lines across the horizontal axis.
        level: A value with its label, as a labelled line across the vertical axis.
        hollow: An expression for points that are drawn hollow.
        size: Of a point, in square pixels.
        height: Of the chart, in pixels.
        under: A chart of the same axes to draw on; None for a new one.

    Returns:
        The chart, to which more can be added.
    """
    plot = under or Plot(along, value, kinds(names, legend), height=height)
    law = law or []
    coloured = bool(law) and "kind" in law[0]
    if law and "low" in law[0]:
        plot.band(law, colour=coloured, opacity=0.16 if coloured else 0.3)
    plot.line(law, colour=coloured, **law_look or {})
    plot.level(*level)
    plot.spans(points, tips=tips).arrows(points, tips=tips)
    known = "isValid(datum.value)"
    if hollow:
        plot.dots(points, where=f"{known} && {hollow}", tips=tips, size=size, **HOLLOW)
    plot.dots(points, where=f"{known} && !({hollow})" if hollow else known, tips=tips, size=size, **FULL)
    return plot.marks(marks, names)

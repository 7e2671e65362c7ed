"""Cells in the colours of their values."""

from __future__ import annotations

from collections.abc import Sequence

from batchscope.report.charts.axes import Point, Spec
from batchscope.report.charts.plot import Plot


def heat_map(
    along: Spec,
    value: Spec,
    cells: list[Point],
    colour: Spec,
    *,
    tips: Sequence[Spec],
    height: int,
    across: Spec | None = None,
) -> Plot:
    """Cells over two axes; those without a value are pale.

    Args:
        along: Horizontal channel.
        value: Vertical channel.
        cells: Each with ``low`` and ``high`` on the vertical axis, and the field of ``colour`` or None in it.
        colour: Channel of the cells' colours.
        tips: What a cell says when it is pointed at.
        height: Of the chart, in pixels.
        across: ``along`` and ``along_to``, the fields of a cell's horizontal ends, where the axis is not of bands.

    Returns:
        The chart, to which more can be added.
    """
    plot = Plot(along, value, colour, height=height)
    known = f"isValid(datum.{colour['field']})"
    ends: Spec = {"value": "low", "to": "high", "tips": tips, **(across or {})}
    plot.add("rect", cells, where=f"!{known}", colour=False, opacity=0.13, **ends)
    return plot.add("rect", cells, where=known, opacity=1, strokeWidth=0, **ends)

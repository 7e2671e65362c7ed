"""Bars with their names above them."""

from __future__ import annotations

from collections.abc import Sequence

from batchscope.report.charts.axes import Spec, ticks
from batchscope.report.charts.plot import Plot


def bars(parts: Sequence[tuple[str, float, str]], title: str) -> Spec | None:
    """Parts of a whole, one below the other.

    Args:
        parts: Name, length and what is written beside the name.
        title: Of the axis of lengths.

    Returns:
        A specification; None where no part has a length.
    """
    longest = max((length for _, length, _ in parts), default=0.0)
    if not longest > 0:
        return None
    data = [{"part": name, "length": length, "label": f"{name}:  {text}"} for name, length, text in parts]
    up = {"field": "part", "type": "nominal", "sort": None, "title": None, "axis": {"labels": False}}
    across = {
        "field": "length",
        "type": "quantitative",
        "title": title,
        "scale": {"domain": [0, longest * 1.05], "nice": False},
        "axis": ticks([0, longest], False),
    }
    plot = Plot(up, across, height=46 * len(data), flip=True)
    plot.add("bar", data, height=12, cornerRadiusEnd=3, yOffset=9)
    label = {"text": {"field": "label", "type": "nominal"}}
    return plot.add("text", data, value=0, channels=label, align="left", baseline="bottom", dy=0, dx=0).done()

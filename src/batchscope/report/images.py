"""The charts of a record as Vega-Lite, SVG and PNG: the page draws the same definitions."""

from __future__ import annotations

from typing import Any

from batchscope.errors import ArgumentError, require
from batchscope.records import Record
from batchscope.report import formatting as f
from batchscope.report.charts import palette
from batchscope.report.charts.axes import Spec
from batchscope.report.view import View
from batchscope.report.views import view

OVERVIEW = "overview"
"""An image of the first two that a comparison has side by side: final score, score against time."""

_WIDTH = 640  # of an image; on a page a chart is as wide as its card


def every(record: Record) -> dict[str, Spec]:
    """All charts that have something to show for a record, by name, in the order of its page.

    Args:
        record: Any record.

    Returns:
        Vega-Lite specifications as wide as their container, without the colours that depend on where they are shown.
    """
    return {figure.name: figure.spec for figure in view(record).figures if figure.spec is not None}


def names(record: Record) -> tuple[str, ...]:
    """The charts that have something to show for a record."""
    return tuple(every(record))


def svg(record: Record, name: str, *, theme: palette.Theme = "light", width: int = _WIDTH) -> str:
    """A chart as SVG.

    Args:
        record: Any record.
        name: One of :func:`names`, or :data:`OVERVIEW`.
        theme: Light or dark.
        width: Width of the plotting area in pixels.

    Returns:
        The text of an SVG file.

    Raises:
        ArgumentError: The record has no such chart.
    """
    return svg_of(view(record), name, theme=theme, width=width)


def svg_of(shown: View, name: str, *, theme: palette.Theme = "light", width: int = _WIDTH) -> str:
    """A chart of a view as SVG, as :func:`svg` makes it."""
    converter: Any = require("vl_convert", "draw charts as images", "vl-convert-python")
    spec, config = _image(shown, name, theme, width)
    text: str = converter.vegalite_to_svg(spec, config=config, vl_version=vega_lite_version())
    return text


def png(record: Record, name: str, *, theme: palette.Theme = "light", width: int = _WIDTH, scale: float = 2.0) -> bytes:
    """A chart as PNG.

    Args:
        record: Any record.
        name: One of :func:`names`, or :data:`OVERVIEW`.
        theme: Light or dark.
        width: Width of the plotting area in pixels.
        scale: Device pixels per pixel.

    Returns:
        The bytes of a PNG file.

    Raises:
        ArgumentError: The record has no such chart.
    """
    converter: Any = require("vl_convert", "draw charts as images", "vl-convert-python")
    spec, config = _image(view(record), name, theme, width)
    image: bytes = converter.vegalite_to_png(spec, config=config, scale=scale, vl_version=vega_lite_version())
    return image


def vega_lite_version() -> str | None:
    """The version of Vega-Lite that altair writes, where the converter has it; None for the converter's own."""
    alt: Any = require("altair", "draw charts", "altair")
    converter: Any = require("vl_convert", "draw charts", "vl-convert-python")
    written = ".".join(str(alt.SCHEMA_VERSION).lstrip("v").split(".")[:2])
    return written if written in converter.get_vegalite_versions() else None


def _image(shown: View, name: str, theme: palette.Theme, width: int) -> tuple[Spec, Spec]:
    found = {figure.name: figure for figure in shown.figures}
    wanted = ("final_scores", "trade_off") if name == OVERVIEW else (name,)
    each = (width - 60) // 2 if name == OVERVIEW else width
    parts = [
        {**_plain(figure.spec), "width": each, "title": f.plain(figure.title)}
        for part in wanted
        if (figure := found.get(part)) is not None and figure.spec is not None
    ]
    if not parts:
        raise ArgumentError(
            "a chart must be one that this record has something to show in",
            got=name,
            mend=f"it has {', '.join(found) or 'no charts'}",
        )
    padding = {"left": 16, "right": 16, "top": 14, "bottom": 12}
    whole = {"hconcat": parts, "spacing": 40} if len(parts) > 1 else parts[0]
    return {**whole, "padding": padding}, palette.vega_config(shown.colours, theme, palette.IMAGE_FONT)


def _plain(value: Any) -> Any:
    """The same with text that an image can hold: the converter ends the process at a control character."""
    if isinstance(value, str):
        return f.plain(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

"""A record inside a notebook: what its page says, without scripts, in a box that leaves the notebook's look alone."""

from __future__ import annotations

import base64
import io

from batchscope.records import Record
from batchscope.report import images, page, terminal
from batchscope.report.charts import palette
from batchscope.report.view import View
from batchscope.report.views import view

OPEN_SECTIONS = 2
"""Sections that are open at first; the others unfold."""
MOST_FIGURES = 6
"""Charts drawn, in the order of the page: each is an image inside the notebook's file."""
MOST_LINES = 40
"""Lines of a table."""
WIDTH = 400
"""Of a chart's plotting area, in pixels."""
COLUMNS = 120


def render(record: Record) -> str:
    """The record as HTML for the output of a notebook's cell.

    Tables are those of the page, charts are images inside the text. There is no script, all text from the record is
    escaped, and every rule of style holds within its box alone.

    Args:
        record: Any record.

    Returns:
        HTML, without a head or a body.
    """
    shown = view(record)
    return page.fill(
        "notebook.html",
        view=shown,
        answer=[part for part in shown.headline if part],
        images={figure.name: _image(shown, figure.name) for figure in shown.figures[:MOST_FIGURES]},
        row_colours=palette.row_colours(shown.colours, "light"),
        most_lines=MOST_LINES,
        open=OPEN_SECTIONS,
        style=_style(),
    )


def plain(record: Record) -> str:
    """The record as a terminal shows it, in plain text.

    Args:
        record: Any record.

    Returns:
        Lines of at most 120 characters.
    """
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=COLUMNS, color_system=None, force_jupyter=False).print(terminal.render(record))
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())


def _image(shown: View, name: str) -> str:
    """An SVG as an address, so that nothing in it can reach the notebook."""
    drawn = images.svg_of(shown, name, width=WIDTH)
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"


def _style() -> str:
    text = page.file_text("notebook.css")
    # The longest names first: WARN begins WARN_LINE.
    for name, value in sorted(palette.COLOURS["light"].items(), key=lambda item: -len(item[0])):
        text = text.replace(f"#{name.upper()}", value)
    return text

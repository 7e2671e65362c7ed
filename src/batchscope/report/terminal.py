"""Records in a terminal: text and rich tables that fit the width at hand, with nothing cropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from batchscope.records import Provenance, Record
from batchscope.report import formatting as f
from batchscope.report.view import Facts, Section, Table, View
from batchscope.report.views import view

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

ROOM_FOR_ONE = 145
"""Columns of a terminal from which two tables about the same rows stand in one."""


def render(record: Record) -> RenderableType:
    """The record as rich tables and text, laid out when the width is known."""
    return _Drawn(view(record))


class _Drawn:
    def __init__(self, shown: View) -> None:
        self.view = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        shown = self.view
        if shown.notice:
            yield _text(shown.notice, "bold yellow")
        first, rest = shown.headline
        if first:
            yield _text(first, "bold yellow" if shown.failed else "bold")
        if rest:
            yield _text(rest)
        if shown.summary:
            said = " · ".join(f"{name}: {value}" for name, value in shown.summary)
            yield _text(f"{shown.name} · {said}", "dim")
        for warning in shown.warnings:
            yield _text(f"! {warning}", "yellow")
        for section in shown.sections:
            if section.on != "page":
                yield from _section(section, options.max_width)
        if shown.origin is not None:
            yield Text()
            yield _text(_made_on(shown.origin), "dim")


def _section(section: Section, width: int) -> Iterator[RenderableType]:
    """What a terminal shows of a section, with an empty line before each part."""
    if section.sentences and section.title:
        yield Text()
        yield _text(section.title, "bold")
    if section.on == "terminal" and section.lead:
        yield Text()
        yield _text(section.lead, "dim")
    for sentence in section.sentences:
        yield Padding(_text(sentence), (0, 0, 0, 2))
    tables = section.tables
    if len(tables) == 2 and width >= ROOM_FOR_ONE and tables[0].rows and tables[0].rows == tables[1].rows:
        tables = (_beside(*tables),)
    for each in tables:
        yield Text()
        yield _fitted(each, width)
        if each.note:
            yield _text(each.note, "dim")
    for title, pairs in section.facts:
        yield Text()
        yield _pairs(title, pairs)


def _fitted(table: Table, width: int) -> Grid:
    """The table without its minor columns, the last first, where they do not fit; then with cells of several lines.

    Rich would crop cells, or break them anywhere: here a word is broken only where no spaces are left to break at.
    """
    texts = [
        [column.heading, column.detail, *(f.plain(line[i]) for line in table.lines)]
        for i, column in enumerate(table.columns)
    ]
    widths = {i: max(map(cell_len, each)) for i, each in enumerate(texts)}
    longest = [max((cell_len(word) for text in each for word in text.split()), default=1) for each in texts]
    minor = [i for i in reversed(widths) if table.columns[i].minor]
    while sum(widths.values()) + 2 * len(widths) > width and minor:
        del widths[minor.pop(0)]
    while sum(widths.values()) + 2 * len(widths) > max(width, 3 * len(widths)):
        breakable = [i for i in widths if widths[i] > longest[i]] or list(widths)
        widths[max(breakable, key=lambda i: widths[i])] -= 1
    title = _text(table.title, "bold")
    grid = Grid(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    detailed = any(table.columns[i].detail for i in widths)
    for i, own in widths.items():
        column = table.columns[i]
        heading = _text(column.heading)
        if detailed:
            heading.append(f"\n{f.plain(column.detail)}", style="dim")
        grid.add_column(heading, justify=column.align, width=own, overflow="fold")
    for line in table.lines:
        grid.add_row(*(_text(line[i]) for i in widths))
    return grid


def _pairs(title: str, pairs: Facts) -> Grid:
    grid = Grid(title=_text(title, "bold"), title_justify="left", show_header=False, box=None, pad_edge=False)
    grid.add_column(style="dim", overflow="fold")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(_text(name), _text(value))
    return grid


def _beside(left: Table, right: Table) -> Table:
    """Two tables about the same rows as one; the second's first column names the row again and goes."""
    lines = tuple(a + b[1:] for a, b in zip(left.lines, right.lines, strict=True))
    title = f"{left.title}, and {right.title[0].lower()}{right.title[1:]}"
    return Table(title, left.columns + right.columns[1:], lines, f"{left.note} {right.note}", left.rows)


def _made_on(origin: Provenance) -> str:
    return (
        f"batchscope {origin.batchscope}, torch {origin.torch}, Python {origin.python}, {origin.device}, "
        f"{origin.dtype}, {origin.processor}, {f.plural(origin.threads, 'thread')}, seed {origin.seed}, "
        f"{origin.created}"
    )


def _text(text: str, style: str = "") -> Text:
    return Text(f.plain(text), style=style)

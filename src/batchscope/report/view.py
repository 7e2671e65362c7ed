"""What is shown of a record, by whatever draws it: a title, an answer, and sections of cards, tables and charts.

A terminal, a page, a notebook and an image read the same :class:`View`, which the function :func:`view` of
:mod:`batchscope.report.views` makes of a record.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from batchscope.records import Interval, Provenance, WorkloadSummary
from batchscope.report import formatting as f
from batchscope.report.charts.axes import Spec
from batchscope.report.charts.learning_curves import LearningCurves
from batchscope.report.charts.plot import COLOURS

T = TypeVar("T")
Facts = tuple[tuple[str, str], ...]
Place = Literal["page", "both", "terminal"]


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column of a table.

    Attributes:
        heading: Its name.
        cell: What it says of a row.
        detail: Unit or qualification, in smaller print.
        align: Side that its cells keep to.
        minor: Whether a narrow terminal may leave it out.
    """

    heading: str
    cell: Callable[[T], str]
    detail: str = ""
    align: Literal["left", "right"] = "right"
    minor: bool = False


@dataclass(frozen=True)
class Table:
    """A table, not yet drawn.

    Attributes:
        title: What it shows.
        columns: Its columns.
        lines: A text per column in each row.
        note: How to read it; may be empty.
        rows: Index of the colour that each line has in the charts, None for none; may be empty.
    """

    title: str
    columns: tuple[Column[Any], ...]
    lines: tuple[tuple[str, ...], ...]
    note: str = ""
    rows: tuple[int | None, ...] = ()

    def column(self, heading: str) -> tuple[str, ...]:
        """The cells below a heading."""
        place = next(i for i, column in enumerate(self.columns) if column.heading == heading)
        return tuple(line[place] for line in self.lines)


def table(
    title: str,
    items: Iterable[T],
    columns: Iterable[Column[T] | Literal[False] | None],
    note: str = "",
    rows: Sequence[int | None] = (),
) -> Table:
    """A table with a line for each item.

    Args:
        title: What it shows.
        items: What the columns' cells are read from.
        columns: Those that are None or False are left out.
        note: How to read it.
        rows: Index of each line's colour.

    Returns:
        The table.
    """
    kept = tuple(column for column in columns if column)
    lines = tuple(tuple(column.cell(item) for column in kept) for item in items)
    return Table(title, kept, lines, note, tuple(rows))


def facts(*pairs: tuple[str, str | None] | None) -> Facts:
    """Names and values; those that are None are left out."""
    return tuple((pair[0], pair[1]) for pair in pairs if pair is not None and pair[1] is not None)


@dataclass(frozen=True)
class Figure:
    """A chart.

    Attributes:
        name: What it is called when it is exported.
        title: What stands above it.
        draw: Makes its specification; None where there is nothing to show.
        legend: Whether a page names its rows' colours itself.
        curves: Learning curves whose axes a page lets its reader switch; None for another chart.
        alone: Whether the section's heading is title enough.
        note: How to read it, in small print below; may be empty.
    """

    name: str
    title: str
    draw: Callable[[], Spec | None]
    legend: bool = False
    curves: LearningCurves | None = None
    alone: bool = False
    note: str = ""

    @functools.cached_property
    def spec(self) -> Spec | None:
        """The chart as wide as its container, without the colours that depend on where it is shown."""
        found = self.draw()
        return None if found is None else {**found, "width": "container", "description": self.title}


@dataclass(frozen=True)
class Card:
    """One number that matters, and what follows from it.

    Attributes:
        title: What it is.
        value: The number.
        detail: Its interval or unit; may be empty.
        text: What follows from it.
        colour: Index of the colour that stands for it in the charts; None for none.
    """

    title: str
    value: str
    detail: str
    text: str
    colour: int | None = None


@dataclass(frozen=True)
class Listing:
    """A text to be copied as it stands.

    Attributes:
        title: What it is.
        text: Its lines.
        note: What it needs; may be empty.
    """

    title: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Slider:
    """A choice among stops worked out beforehand; the charts with a parameter ``stop`` follow it.

    Attributes:
        title: What is chosen.
        stops: What each is called, and what follows there.
        asked: The one that is shown first, and without a script.
    """

    title: str
    stops: tuple[tuple[str, str], ...]
    asked: int


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        title: The heading.
        lead: A sentence on how to read it.
        tables: Tables.
        figures: Charts, side by side where there is room; those with nothing to show are left out.
        folded: A table to be opened by those who want it.
        facts: Lists of names and values, each with its title.
        always: Whether the lead says enough to stand alone.
        cards: Numbers side by side, after the charts.
        slider: A choice that its charts follow, before them; None for none.
        sentences: Findings, one by one.
        listings: Texts to be copied.
        on: Where it is shown. A terminal shows tables, facts and sentences, of a section of its own the lead as well.
    """

    title: str
    lead: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    folded: Table | None = None
    facts: tuple[tuple[str, Facts], ...] = ()
    always: bool = False
    cards: tuple[Card, ...] = ()
    slider: Slider | None = None
    sentences: tuple[str, ...] = ()
    listings: tuple[Listing, ...] = ()
    on: Place = "page"

    @functools.cached_property
    def shown(self) -> tuple[Figure, ...]:
        """The charts that have something to show."""
        return tuple(figure for figure in self.figures if figure.spec is not None)

    def holds_something(self) -> bool:
        """Whether anything stands under the heading."""
        parts = (self.tables, self.shown, self.facts, self.cards, self.folded, self.sentences, self.listings)
        return any(map(bool, parts)) or self.always


@dataclass(frozen=True)
class View:
    """Everything that differs between records.

    Attributes:
        name: What was trained: above the title.
        title: The question.
        answer: The answer.
        summary: The few facts that a reader wants beside the answer.
        warnings: What to know before trusting the numbers.
        sections: The rest.
        rows: Labels of the lines that have a colour of their own; empty where colours stand for kinds of quantities.
        notice: What must be known before even the answer is read; may be empty.
        origin: Software, machine and seed; None where the record has none.
        failed: Whether the answer is that there is none.
    """

    name: str
    title: str
    answer: str
    summary: Facts = ()
    warnings: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    rows: tuple[str, ...] = ()
    notice: str = ""
    origin: Provenance | None = None
    failed: bool = False

    @property
    def headline(self) -> tuple[str, str]:
        """The answer's first sentence, and the rest of it."""
        first, *rest = re.split(r"(?<=[.!?])\s+(?=[A-Z])", self.answer.strip(), maxsplit=1)
        return first, "".join(rest)

    @property
    def colours(self) -> int:
        """How many colours its charts need."""
        return len(self.rows) or COLOURS

    @functools.cached_property
    def on_page(self) -> tuple[Section, ...]:
        """The sections of a page that hold something."""
        return tuple(section for section in self.sections if section.on != "terminal" and section.holds_something())

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The charts that have something to show, in the order of the page."""
        return tuple(figure for section in self.on_page for figure in section.shown)


def measured(origin: Provenance, *lists: tuple[str, Facts], title: str = "How this was measured") -> Section:
    """The last section of a page: settings, software and machine."""
    return Section(title, facts=(*lists, ("Provenance", provenance(origin))))


def provenance(origin: Provenance) -> Facts:
    """Software, machine and seed as names and values."""
    return (
        ("batchscope", origin.batchscope),
        ("torch", origin.torch),
        ("Python", origin.python),
        ("numpy", origin.numpy),
        ("device", origin.device),
        ("processor", origin.processor),
        ("cores and threads", f"{origin.cores} and {origin.threads}"),
        ("memory", f.memory(origin.memory_bytes)),
        ("platform", origin.platform),
        ("number format", origin.dtype),
        ("seed", str(origin.seed)),
        ("workload fingerprint", origin.workload_fingerprint),
        ("created (UTC)", origin.created),
    )


def workload_facts(work: WorkloadSummary) -> Facts:
    """What is trained, and what the person uses today."""
    return facts(
        ("workload", work.name),
        ("parameters", f.count(work.parameters)),
        ("training examples", f.count(work.training_examples)),
        ("validation examples", f.count(work.validation_examples)),
        ("optimizer", work.optimizer),
        ("training options", work.options or None),
        ("loss", work.loss),
        ("score", work.score),
        ("today's setting", f"batch size {f.count(work.batch_size)}, rate {f.number(work.learning_rate, 3)}"),
    )


def number_card(title: str, interval: Interval, text: str, colour: int | None = None) -> Card:
    """A batch size or the like with its interval."""
    ends = f.between(interval)
    detail = "" if ends == f.UNKNOWN else ends if interval.value is None else f"{ends}, {interval.level:.0%} interval"
    return Card(title, f.UNRESOLVED if interval.value is None else f.size(interval.value), detail, text, colour)

"""What stands on a page, whatever the record: a title, an answer, and sections of cards, charts and tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from batchscope.records import Provenance
from batchscope.report import formatting as f
from batchscope.report.sheets import Sheet, provenance

Facts = tuple[tuple[str, str], ...]


class MeasuredRecord(Protocol):
    """What every record of one measurement says."""

    @property
    def workload(self) -> str:
        """The workload's name."""

    @property
    def seconds(self) -> float:
        """What the measurement took."""

    @property
    def provenance(self) -> Provenance:
        """Software, machine and seed."""


@dataclass(frozen=True)
class Figure:
    """A chart on the page.

    Attributes:
        name: Its name in :data:`batchscope.report.charts.TITLES`.
        title: What stands above it.
        legend: Whether the rows' colours are to be named above it.
        switches: Whether its axes can be switched, as those of the learning curves.
        alone: Whether the section's heading is title enough.
        note: How to read it, in small print below; may be empty.
    """

    name: str
    title: str
    legend: bool = False
    switches: bool = False
    alone: bool = False
    note: str = ""


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
    """A heading and what stands under it, each part drawn where it is not empty.

    Attributes:
        title: The heading.
        lead: A sentence on how to read it.
        sheets: Tables.
        figures: Charts, side by side where there is room.
        folded: A table to be opened by those who want it.
        facts: Lists of names and values, each with its title.
        always: Whether the lead says enough to stand alone.
        cards: Numbers side by side, after the charts.
        slider: A choice that its charts follow, before them; None for none.
        sentences: Findings, one by one.
        listings: Texts to be copied.
    """

    title: str
    lead: str = ""
    sheets: tuple[Sheet, ...] = ()
    figures: tuple[Figure, ...] = ()
    folded: Sheet | None = None
    facts: tuple[tuple[str, Facts], ...] = ()
    always: bool = False
    cards: tuple[Card, ...] = ()
    slider: Slider | None = None
    sentences: tuple[str, ...] = ()
    listings: tuple[Listing, ...] = ()

    def holds_something(self) -> bool:
        """Whether anything stands under the heading."""
        shown = (self.sheets, self.figures, self.facts, self.cards, self.folded, self.sentences, self.listings)
        return any(map(bool, shown)) or self.always


@dataclass(frozen=True)
class Content:
    """Everything on the page that differs between records.

    Attributes:
        name: What was trained: above the title.
        title: The question.
        answer: The answer.
        summary: The few facts that a reader wants beside the answer.
        warnings: What to know before trusting the numbers.
        sections: The rest.
        rows: Labels of the lines that have a colour.
        notice: What must be known before even the answer is read; may be empty.
    """

    name: str
    title: str
    answer: str
    summary: Facts = ()
    warnings: tuple[str, ...] = ()
    sections: tuple[Section, ...] = field(default=())
    rows: tuple[str, ...] = ()
    notice: str = ""


def drawn(available: Iterable[str], *wanted: Figure) -> tuple[Figure, ...]:
    """Of the figures that a page wants, those that have something to show.

    Args:
        available: Names of the charts that do.
        wanted: The figures, in their order.
    """
    return tuple(figure for figure in wanted if figure.name in available)


def of_one_measurement(record: MeasuredRecord, *, title: str, answer: str, measured: Section) -> Content:
    """The page of one measurement: its answer, what was measured, and how.

    Args:
        record: Says what was measured where, and how long it took.
        title: The question.
        answer: The answer.
        measured: What was measured.
    """
    origin = Section("How this was measured", facts=(("Provenance", provenance(record.provenance)),))
    return Content(
        name=record.workload,
        title=title,
        answer=answer,
        summary=(("took", f.seconds(record.seconds)), ("on", record.provenance.device)),
        sections=(measured, origin),
    )

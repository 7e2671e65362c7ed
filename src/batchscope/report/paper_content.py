"""What a paper's study says, and its page."""

from __future__ import annotations

from collections.abc import Iterable

from batchscope.records import PaperStudy
from batchscope.report import formatting as f
from batchscope.report.claims_content import in_words
from batchscope.report.content import Content, Figure, Section
from batchscope.report.sheets import Column, Line, Sheet, provenance

LINE = "line-between-solutions"
"""The chart of the line; the others are called picture-1 and so on."""


def names(record: PaperStudy) -> list[str]:
    """Of its charts, in the order of the page."""
    return [*(f"picture-{k + 1}" for k in range(len(record.pictures))), *([LINE] if record.line else [])]


def title_of(record: PaperStudy, name: str) -> str:
    """What stands above a chart."""
    return "Loss and score along the line" if name == LINE else record.pictures[names(record).index(name)].upward


def sheet(record: PaperStudy) -> Sheet:
    """A line for every number of the paper, ours beside it."""
    columns = (
        Column("setting", align="left", wraps=True),
        Column("quantity", align="left", wraps=True),
        Column("paper"),
        Column("here"),
    )
    lines = tuple(
        Line(
            (
                row.setting,
                row.quantity,
                "" if row.published is None else f.number(row.published),
                in_words(row.measured),
            )
        )
        for row in record.rows
    )
    return Sheet("The paper's numbers, and ours", columns, lines)


def of_paper(record: PaperStudy, available: Iterable[str]) -> Content:
    """The page of a paper's study.

    Args:
        record: The record.
        available: Names of the charts that have something to show.
    """
    shown = set(available)
    figures = tuple(Figure(name, title_of(record, name)) for name in names(record) if name in shown - {LINE})
    line = Figure(LINE, title_of(record, LINE), alone=True, note="Dashed: scores, on the right axis.")
    effects = tuple((effect.what, in_words(effect.value)) for effect in record.effects)
    sections = (
        Section(
            "The paper beside this machine",
            record.reference,
            sheets=(sheet(record),),
            figures=figures,
            facts=(("Its effects here", effects),) if effects else (),
        ),
        *([Section("Loss and score along the line between two solutions", figures=(line,))] if LINE in shown else []),
        Section("In what this differs from the paper", sentences=record.deviations),
        *([Section("Evidence against it", sentences=record.against)] if record.against else []),
        Section("How this was measured", facts=(("Provenance", provenance(record.provenance)),)),
    )
    return Content(
        name=record.paper,
        title="Does it come out alike here?",
        answer=record.conclusion,
        summary=(
            ("seeds", f"{len(record.seeds)}"),
            ("took", f.seconds(record.seconds)),
            ("on", record.provenance.device),
        ),
        sections=sections,
    )

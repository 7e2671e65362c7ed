"""A paper's table beside one measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchscope.records.base import Record
from batchscope.records.claims import Finding, Picture
from batchscope.records.interval import Interval
from batchscope.records.landscape import Landscape
from batchscope.records.provenance import Provenance


@dataclass(frozen=True)
class PaperRow:
    """One number of the paper, and the same quantity here.

    Attributes:
        setting: Network and batch size, or whatever tells the rows apart.
        quantity: What was measured.
        published: The paper's number; None where it has none.
        measured: Ours, with its interval over seeds where there is one.
    """

    setting: str
    quantity: str
    published: float | None
    measured: Interval


@dataclass(frozen=True)
class PaperStudy(Record):
    """What a paper reports, measured again at a size that this machine can run.

    Attributes:
        paper: Its short name, as in ``--paper``.
        reference: Its authors, title and place.
        conclusion: Which of its effects have the same sign here.
        rows: Its table beside ours.
        effects: The paper's effects here, with intervals over paired seeds.
        deviations: In what our set-up differs from the paper's.
        pictures: Charts, ours and the paper's on the same axes.
        line: Loss and score between two solutions; None where the paper has no such figure.
        seeds: Of our runs.
        seconds: What it took.
        interrupted: Whether it was stopped before its end.
        provenance: Software, machine and seed.
        against: Published evidence against what the paper concludes.
    """

    kind: ClassVar[str] = "paper"

    paper: str
    reference: str
    conclusion: str
    rows: tuple[PaperRow, ...]
    effects: tuple[Finding, ...]
    deviations: tuple[str, ...]
    pictures: tuple[Picture, ...]
    line: Landscape | None
    seeds: tuple[int, ...]
    seconds: float
    interrupted: bool
    provenance: Provenance
    against: tuple[str, ...] = ()

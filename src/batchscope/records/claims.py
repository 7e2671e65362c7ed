"""What people say about batch size, tested on one workload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.comparison import WorkloadSummary
from batchscope.records.interval import Interval
from batchscope.records.provenance import Provenance

Verdict = Literal["holds here", "does not hold here", "can't be told"]


@dataclass(frozen=True)
class Finding:
    """A number that a verdict rests on.

    Attributes:
        what: What it is, in words.
        value: The number with its interval.
    """

    what: str
    value: Interval


@dataclass(frozen=True)
class Series:
    """Points of one colour in a claim's chart.

    Attributes:
        name: What they are.
        across: Where they lie.
        values: Their heights, with intervals where they have any.
        line: Whether they are joined.
    """

    name: str
    across: tuple[float, ...]
    values: tuple[Interval, ...]
    line: bool = True


@dataclass(frozen=True)
class Picture:
    """A claim's chart.

    Attributes:
        across: Title of the horizontal axis.
        upward: Title of the vertical one.
        series: What is drawn, four at most.
        log_across: Whether the horizontal axis is logarithmic.
        log_upward: Whether the vertical one is.
    """

    across: str
    upward: str
    series: tuple[Series, ...]
    log_across: bool = True
    log_upward: bool = False


@dataclass(frozen=True)
class TestedClaim:
    """One claim, its experiment on this workload, and what came out.

    Attributes:
        name: What it is called, as in ``--only``.
        said: What people say.
        source: Who says so.
        experiment: What was done here.
        verdict: Whether it holds here, by the findings' intervals.
        explanation: Why that follows.
        findings: The numbers; the first is the one that decides, where one does.
        picture: The chart; None where there is nothing to draw.
        seconds: What the experiment took beyond what earlier ones had done already.
    """

    __test__: ClassVar[bool] = False  # no test of ours, for all that its name says

    name: str
    said: str
    source: str
    experiment: str
    verdict: Verdict
    explanation: str
    findings: tuple[Finding, ...]
    picture: Picture | None
    seconds: float


@dataclass(frozen=True)
class Claims(Record):
    """The folklore about batch size, tested on one workload.

    Attributes:
        workload: What was trained.
        conclusion: The answer in one or two sentences.
        claims: What was tested, in order.
        seeds: Seeds that training was repeated with, in pairs.
        examples: Training examples of every run.
        batch_sizes: The small, the middle and the large one.
        runs: Training runs made, searches for learning rates included.
        budget_seconds: What the experiments were planned to take at most.
        seconds: What they took.
        interrupted: Whether it was stopped before all of them.
        provenance: Software, machine and seed.
    """

    kind: ClassVar[str] = "claims"

    workload: WorkloadSummary
    conclusion: str
    claims: tuple[TestedClaim, ...]
    seeds: tuple[int, ...]
    examples: int
    batch_sizes: tuple[int, ...]
    runs: int
    budget_seconds: float
    seconds: float
    interrupted: bool
    provenance: Provenance

"""What the tested claims say, and their page."""

from __future__ import annotations

from collections.abc import Iterable

from batchscope.records import Claims, Interval, TestedClaim
from batchscope.report import formatting as f
from batchscope.report.content import Card, Content, Facts, Figure, Section
from batchscope.report.marks import AMBER, RED, TEAL
from batchscope.report.sheets import Column, Line, Sheet, provenance

PREFIX = "claim-"
"""Charts of claims are called by this and the claim's name."""
COLOURS = {"holds here": TEAL, "does not hold here": RED, "can't be told": AMBER}


def sheet(record: Claims) -> Sheet:
    """A line for every claim."""
    columns = (
        Column("claim", align="left"),
        Column("verdict", align="left"),
        Column("deciding number"),
        Column("took", minor=True),
    )
    lines = tuple(
        Line(
            (
                claim.name,
                claim.verdict,
                in_words(claim.findings[0].value) if claim.findings else "",
                f.seconds(claim.seconds),
            )
        )
        for claim in record.claims
    )
    return Sheet("What people say, and what holds here", columns, lines)


def in_words(value: Interval) -> str:
    """A number and its interval.

    Examples:
        >>> in_words(Interval(0.01234, -0.001, 0.025)), in_words(Interval.unresolved(0.95))
        ('0.0123 (−0.001 to 0.025)', 'not resolved')
        >>> in_words(Interval.unresolved(0.95, low=5.3))
        'at least 5.3'
    """
    if value.value is None or not f.known(value.value):
        return "not resolved" if value.low is None else f"at least {f.number(value.low, 3)}"
    if value.low is None or value.high is None:
        return f.number(value.value, 3)
    return f"{f.number(value.value, 3)} ({f.number(value.low, 3)} to {f.number(value.high, 3)})"


def facts(record: Claims) -> Facts:
    """What all of it rests on."""
    small = ", ".join(f"{size:,}" for size in record.batch_sizes)
    return (
        ("runs", f"{record.runs:,}, of {record.examples:,} examples each"),
        ("seeds", f"{len(record.seeds)}, the same for both sides of a comparison"),
        ("smallest, small and large batch", small),
        ("intervals", "at 95% each; of twenty claims one may be decided by chance"),
    )


def of_claims(record: Claims, available: Iterable[str]) -> Content:
    """The page of the tested claims.

    Args:
        record: The record.
        available: Names of the charts that have something to show.
    """
    shown = set(available)
    sections = [Section("At a glance", sheets=(sheet(record),), facts=(("It rests on", facts(record)),))]
    sections += [_section(claim, shown) for claim in record.claims]
    sections.append(Section("How this was measured", facts=(("Provenance", provenance(record.provenance)),)))
    notice = "This was stopped before all claims were tested." if record.interrupted else ""
    return Content(
        name=record.workload.name,
        title="What holds of what people say about batch size?",
        answer=record.conclusion,
        summary=(("took", f.seconds(record.seconds)), ("on", record.provenance.device)),
        sections=tuple(sections),
        notice=notice,
    )


def _section(claim: TestedClaim, shown: set[str]) -> Section:
    name = f"{PREFIX}{claim.name}"
    verdict = claim.verdict[0].upper() + claim.verdict[1:]
    return Section(
        claim.said,
        f"{claim.source}. {claim.experiment}",
        figures=(Figure(name, claim.picture.upward, alone=True),) if claim.picture and name in shown else (),
        cards=(Card("Verdict", verdict, "", claim.explanation, COLOURS[claim.verdict]),),
        facts=(("Numbers", tuple((finding.what, in_words(finding.value)) for finding in claim.findings)),)
        if claim.findings
        else (),
        always=True,
    )

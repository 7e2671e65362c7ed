"""What is shown of tested claims, and of a paper's study."""

from __future__ import annotations

import functools

from batchscope.records import Claims, Interval, PaperRow, PaperStudy, Picture, TestedClaim
from batchscope.report import formatting as f
from batchscope.report.charts.axes import Point, Spec, axis, domain_around, size_axis
from batchscope.report.charts.plot import AMBER, BLUE, RED, TEAL, Plot, kinds, tip
from batchscope.report.view import Card, Column, Figure, Section, Table, View, measured, table
from batchscope.report.views.curvature import loss_along_line

PREFIX = "claim-"
"""Charts of claims are called by this and the claim's name."""
LINE = "line-between-solutions"
"""A paper's chart of the line; its others are called picture-1 and so on."""
COLOURS = {"holds here": TEAL, "does not hold here": RED, "can't be told": AMBER}

_ORDER = (BLUE, AMBER, TEAL, RED)


def view(record: Claims) -> View:
    """The tested claims."""
    rests_on = (
        ("runs", f"{record.runs:,}, of {record.examples:,} examples each"),
        ("seeds", f"{len(record.seeds)}, the same for both sides of a comparison"),
        ("smallest, small and large batch", ", ".join(f"{size:,}" for size in record.batch_sizes)),
        ("intervals", "at 95% each; of twenty claims one may be decided by chance"),
    )
    terminal = tuple(
        Section(f"{claim.said} {_capital(claim.verdict)}.", sentences=(claim.explanation,), on="terminal")
        for claim in record.claims
    )
    return View(
        name=record.workload.name,
        title="What holds of what people say about batch size?",
        answer=record.conclusion,
        summary=(("took", f.seconds(record.seconds)), ("on", record.provenance.device)),
        sections=(
            Section("At a glance", tables=(glance(record),), facts=(("It rests on", rests_on),), on="both"),
            *terminal,
            *map(_claim, record.claims),
            measured(record.provenance),
        ),
        notice="This was stopped before all claims were tested." if record.interrupted else "",
        origin=record.provenance,
    )


def paper_view(record: PaperStudy) -> View:
    """A paper's numbers beside this machine's."""
    figures = tuple(
        Figure(f"picture-{k}", drawn.upward, functools.partial(picture, drawn))
        for k, drawn in enumerate(record.pictures, 1)
    )
    line = record.line
    dashed = "Dashed: scores, on the right axis."
    along = (
        ()
        if line is None
        else (
            Figure(
                LINE, "Loss and score along the line", functools.partial(loss_along_line, line), alone=True, note=dashed
            ),
        )
    )
    effects = tuple((effect.what, in_words(effect.value)) for effect in record.effects)
    return View(
        name=record.paper,
        title="Does it come out alike here?",
        answer=record.conclusion,
        summary=(
            ("seeds", f"{len(record.seeds)}"),
            ("took", f.seconds(record.seconds)),
            ("on", record.provenance.device),
        ),
        sections=(
            Section("", record.reference, on="terminal"),
            Section(
                "The paper beside this machine",
                record.reference,
                tables=(paper_table(record),),
                figures=figures,
                facts=(("Its effects here", effects),) if effects else (),
                on="both",
            ),
            Section("Loss and score along the line between two solutions", figures=along),
            Section("Differences from the paper", sentences=record.deviations, on="both"),
            Section("Evidence against it", sentences=record.against, on="both"),
            measured(record.provenance),
        ),
        origin=record.provenance,
    )


def glance(record: Claims) -> Table:
    """A line for every claim."""
    columns: tuple[Column[TestedClaim], ...] = (
        Column("claim", lambda claim: claim.name, align="left"),
        Column("verdict", lambda claim: claim.verdict, align="left"),
        Column("deciding number", lambda claim: in_words(claim.findings[0].value) if claim.findings else ""),
        Column("took", lambda claim: f.seconds(claim.seconds), minor=True),
    )
    return table("What people say, and what holds here", record.claims, columns)


def paper_table(record: PaperStudy) -> Table:
    """A line for every number of the paper, ours beside it."""
    columns: tuple[Column[PaperRow], ...] = (
        Column("setting", lambda row: row.setting, align="left"),
        Column("quantity", lambda row: row.quantity, align="left"),
        Column("paper", lambda row: "" if row.published is None else f.number(row.published)),
        Column("here", lambda row: in_words(row.measured)),
    )
    return table("The paper's numbers, and ours", record.rows, columns)


def _claim(claim: TestedClaim) -> Section:
    figures: tuple[Figure, ...] = ()
    if claim.picture is not None:
        draw = functools.partial(picture, claim.picture)
        figures = (Figure(f"{PREFIX}{claim.name}", claim.picture.upward, draw, alone=True),)
    numbers = tuple((finding.what, in_words(finding.value)) for finding in claim.findings)
    return Section(
        claim.said,
        f"{claim.source}. {claim.experiment}",
        figures=figures,
        cards=(Card("Verdict", _capital(claim.verdict), "", claim.explanation, COLOURS[claim.verdict]),),
        facts=(("Numbers", numbers),) if numbers else (),
        always=True,
    )


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


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


def picture(drawn: Picture) -> Spec | None:
    """Points with their intervals, joined where they belong together."""
    data: list[Point] = []
    for series in drawn.series[: len(_ORDER)]:
        for where, interval in zip(series.across, series.values, strict=True):
            middle = interval.value
            if middle is None or not f.known(middle) or (drawn.log_upward and middle <= 0):
                continue
            low, high = (end if f.known(end) else middle for end in (interval.low, interval.high))
            low = max(low, 1e-3 * middle) if drawn.log_upward else low
            ends = {"across": where, "value": middle, "low": low, "high": high}
            data.append(ends | {"kind": series.name, "joined": series.line})
    if not data:
        return None
    names = {place: series.name for place, series in zip(_ORDER, drawn.series, strict=False)}
    places = sorted({point["across"] for point in data})
    free = {"type": "quantitative", "axis": {"grid": False}, "scale": {"nice": False, "zero": False}}
    along = {"field": "across", "title": drawn.across, **free}
    if drawn.log_across:
        along = size_axis("across", domain_around(places, 1.2), drawn.across, places if len(places) < 9 else ())
    value = axis("value", drawn.upward, [0.0, 1.0], log=False)
    value["scale"], value["axis"] = {"type": "log"} if drawn.log_upward else {"zero": False}, {}
    tips = [tip("kind", "what")]
    tips += [tip(field, title, ",.4~g") for field, title in (("across", drawn.across), ("value", drawn.upward))]
    tips += [tip("low", "from", ".4~g"), tip("high", "to", ".4~g")]
    plot = Plot(along, value, kinds(names, tuple(names) if len(names) > 1 else ()))
    plot.line(data, where="datum.joined", strokeWidth=2, clip=False)
    plot.spans(data, where="", strokeWidth=1.5, opacity=0.6, clip=False)
    return plot.dots(data, size=45, style="", tips=tips).done()

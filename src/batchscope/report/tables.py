"""Records in a terminal: rich tables that fit the width at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from batchscope.fit.contention import busy_warning
from batchscope.records import (
    Advice,
    BranchedRuns,
    Claims,
    Comparison,
    DevicePlan,
    Diagnosis,
    Landscape,
    MemoryUse,
    MonitoredNoise,
    NoiseMeasurement,
    PaperStudy,
    Plan,
    Probe,
    Record,
    StepTimes,
    Sweep,
    TradeoffLaw,
    TrainResult,
    encode,
)
from batchscope.report import (
    advice_sheets,
    claims_content,
    curvature_content,
    devices_content,
    diagnosis_content,
    landscape_content,
    paper_content,
    probe_content,
    probe_sheets,
    sheets,
    sweep_sheets,
    tradeoff_sheets,
    training_sheets,
)
from batchscope.report import formatting as f
from batchscope.report.sheets import Sheet

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

ROOM_FOR_ONE = 145
"""Columns of a terminal from which what a row reaches and what it costs stand in one table."""

LAST_POINTS = 5


def render(record: Record) -> RenderableType:
    """The record as rich tables and text.

    Args:
        record: Any record; kinds without a table of their own are listed field by field.

    Returns:
        Something to print on a rich console.
    """
    if isinstance(record, Comparison):
        return _ComparisonTable(record)
    if isinstance(record, TrainResult):
        return _TrainingTable(record)
    if isinstance(record, Probe):
        return _ProbeTable(record)
    if isinstance(record, probe_content.Part):
        return _PartTable(record)
    if isinstance(record, curvature_content.Curvature | Landscape):
        return _CurvatureTable(record)
    if isinstance(record, DevicePlan):
        return _DevicesTable(record)
    if isinstance(record, Claims):
        return _ClaimsTable(record)
    if isinstance(record, PaperStudy):
        return _PaperTable(record)
    if isinstance(record, MonitoredNoise):
        return _pairs("Gradient noise of your own loop", probe_sheets.monitored_facts(record))
    if isinstance(record, Sweep):
        return _SweepTable(record)
    if isinstance(record, TradeoffLaw):
        return _LawTable(record)
    if isinstance(record, Advice):
        return _AdviceTable(record)
    if isinstance(record, Diagnosis):
        return _DiagnosisTable(record)
    title = "Plan" if isinstance(record, Plan) else record.kind
    return _pairs(title, tuple((str(name), str(value)) for name, value in encode(record).items() if value is not None))


class _ComparisonTable:
    """A comparison; what stands side by side is decided when the width is known."""

    def __init__(self, record: Comparison) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        record = self.record
        yield from _said(record.conclusion)
        yield _aside(
            f"{record.workload.name}: {_plural(len(record.rows), 'row')}, {_plural(len(record.seeds), 'seed')} each, "
            f"{record.rows[0].examples:,} examples a run"
            if record.rows
            else record.workload.name
        )
        for warning in sheets.warnings(record):
            yield Text(f"! {warning}", style="yellow")
        yield Text()
        reached, costs = sheets.reached(record), sheets.costs(record)
        if options.max_width >= ROOM_FOR_ONE:
            yield from _sheet(_beside(reached, costs), console, options)
        else:
            yield from _sheet(reached, console, options)
            yield from _sheet(costs, console, options)
        if record.differences:
            yield from _sheet(sheets.differences(record, most=sheets.MOST_PAIRS), console, options)
        yield _aside(sheets.search_cost(record))
        yield _aside(_origin(record))


class _TrainingTable:
    """A training run."""

    def __init__(self, record: TrainResult) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        run = self.record
        yield Text(training_sheets.answer(run), style="bold" if run.ended_in_order else "bold yellow")
        if (busy := busy_warning(run.contention, "training")) is not None:
            yield Text(f"! {busy}", style="yellow")
        yield Text()
        yield _pairs(run.workload, training_sheets.results(run))
        yield Text()
        yield from _sheet(training_sheets.costs(run), console, options)
        if run.curve:
            yield from _sheet(training_sheets.curve(run, LAST_POINTS), console, options)
        yield _aside(_origin(run))


class _ProbeTable:
    """A probe: the answer, the three limits with what follows from them, and a table for each part."""

    def __init__(self, record: Probe) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        record, found = self.record, self.record.limits
        if record.replanned is not None:
            yield Text(probe_sheets.replanned(record.replanned), style="bold yellow")
        yield from _said(found.conclusion)
        yield _aside(f"{record.workload.name}: {record.workload.optimizer}, probed in {f.seconds(record.seconds)}")
        for warning in record.warnings:
            yield Text(f"! {warning}", style="yellow")
        yield Text()
        yield from _sheet(probe_sheets.limits(record), console, options)
        for sentence in (found.memory_sentence, found.knee_sentence, found.critical_sentence):
            yield _item(sentence)
        for part in probe_content.parts_of(record):
            yield Text()
            if isinstance(part, NoiseMeasurement):
                yield from _sheet(probe_sheets.noise_points(record.noise), console, options)
                if part.gradient_error:
                    yield from _sheet(probe_sheets.gradient_errors(part), console, options)
            else:
                yield from _measured(part, console, options)
        yield _aside(_origin(record))


class _PartTable:
    """A part of a probe on its own."""

    def __init__(self, record: probe_content.Part) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        record = self.record
        yield from _said(probe_content.answer(record))
        for warning in record.warnings if isinstance(record, StepTimes) else ():
            yield Text(f"! {warning}", style="yellow")
        yield Text()
        yield from _measured(record, console, options)
        if isinstance(record, NoiseMeasurement) and record.note:
            yield _aside(record.note)
        yield _aside(_origin(record))


class _CurvatureTable:
    """Eigenvalues, a trace, a density, a sharpness or a landscape."""

    def __init__(self, record: curvature_content.Curvature | Landscape) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        record = self.record
        if isinstance(record, Landscape):
            said, facts = landscape_content.answer(record), landscape_content.facts(record)
            table: Sheet | None = landscape_content.sheet(record)
        else:
            said, facts = curvature_content.answer(record), curvature_content.facts(record)
            table = curvature_content.sheet(record)
        yield from _said(said)
        yield Text()
        if table is not None:
            yield from _sheet(table, console, options)
        yield _pairs(record.workload, facts)
        yield _aside(_origin(record))


class _DevicesTable:
    """A plan for several devices: the answer, a row for each number, and what it rests on."""

    def __init__(self, record: DevicePlan) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        record = self.record
        yield from _said(record.conclusion)
        for warning in record.warnings:
            yield Text(f"! {warning}", style="yellow")
        yield Text()
        yield from _sheet(devices_content.rows(record), console, options)
        held = devices_content.memory(record)
        if held is not None:
            yield from _sheet(held, console, options)
        yield _pairs(record.workload.name, devices_content.facts(record))
        yield _aside(_origin(record))


class _ClaimsTable:
    """The claims: how many hold, and what decides each."""

    def __init__(self, record: Claims) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        record = self.record
        yield from _said(record.conclusion)
        yield Text()
        yield from _sheet(claims_content.sheet(record), console, options)
        for claim in record.claims:
            yield Text(f"{claim.said} {claim.verdict[0].upper()}{claim.verdict[1:]}.", style="bold")
            yield Text(claim.explanation)
        yield Text()
        yield _pairs(record.workload.name, claims_content.facts(record))
        yield _aside(_origin(record))


class _PaperTable:
    """A paper's table beside ours, and in what the set-ups differ."""

    def __init__(self, record: PaperStudy) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        record = self.record
        yield from _said(record.conclusion)
        yield _aside(record.reference)
        yield Text()
        yield from _sheet(paper_content.sheet(record), console, options)
        for deviation in record.deviations:
            yield _aside(f"Other than in the paper: {deviation}")
        for finding in record.against:
            yield _aside(f"Against it: {finding}")
        yield _aside(_origin(record))


class _SweepTable:
    """A sweep: the answer, the best of each batch size, the laws, and how many trials ended how."""

    def __init__(self, record: Sweep) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        record = self.record
        yield from _said(record.conclusion)
        tried = f"{_plural(len(record.best), 'batch size')}, {_plural(len(record.seeds), 'seed')}"
        ended = f"{_plural(len(record.trials), 'trial')} in {f.seconds(record.total_seconds)}"
        yield _aside(f"{record.workload.name}: {tried}, {ended}: {sweep_sheets.outcomes(record)}")
        for warning in sweep_sheets.warnings(record):
            yield Text(f"! {warning}", style="yellow")
        yield Text()
        if record.best:
            yield from _sheet(sweep_sheets.best(record), console, options)
        if record.law is not None:
            yield from _sheet(tradeoff_sheets.points(record.law), console, options)
            yield _pairs("The trade-off law", tradeoff_sheets.facts(record.law))
            yield Text()
        if record.rate_law is not None:
            yield _pairs("The law of the best learning rate", sweep_sheets.rate_facts(record.rate_law))
            yield Text()
        if record.time is not None:
            yield _pairs("Time to the target", sweep_sheets.time_facts(record.time))
            yield Text()
        yield _aside(_origin(record))


class _LawTable:
    """A trade-off law on its own."""

    def __init__(self, law: TradeoffLaw) -> None:
        self.law = law

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from _said(self.law.verdict)
        yield Text()
        yield from _sheet(tradeoff_sheets.points(self.law), console, options)
        yield _pairs("The trade-off law", tradeoff_sheets.facts(self.law))


class _AdviceTable:
    """An advice: the answer, the frontier, and why."""

    def __init__(self, record: Advice) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        record = self.record
        yield from _said(record.conclusion, style="bold" if record.batch_size is not None else "bold yellow")
        yield _aside(f"{record.workload.name}: {advice_sheets.goal_text(record.goal)}. {advice_sheets.cost(record)}")
        for warning in advice_sheets.warnings(record):
            yield Text(f"! {warning}", style="yellow")
        yield Text()
        if record.frontier:
            yield from _sheet(advice_sheets.frontier(record), console, options)
        for reason in record.reasons:
            yield _item(reason)
        if record.reasons:
            yield Text()
        yield _aside(_origin(record))


class _DiagnosisTable:
    """What there is on this machine."""

    def __init__(self, record: Diagnosis) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from _said(diagnosis_content.answer(self.record))
        yield Text()
        for title, facts in diagnosis_content.lists(self.record):
            yield _pairs(title, facts)
            yield Text()
        yield from _sheet(diagnosis_content.packages(self.record), console, options)


def _measured(part: probe_content.Part, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    """What was measured as a table, and what was made of it as names and values."""
    if isinstance(part, StepTimes):
        yield from _sheet(probe_sheets.step_times(part), console, options)
        yield _pairs("The law of computing, and reading", probe_sheets.step_time_facts(part))
    elif isinstance(part, MemoryUse):
        yield from _sheet(probe_sheets.memory(part), console, options)
        yield _pairs("The law, and the limit", probe_sheets.memory_facts(part))
    elif isinstance(part, NoiseMeasurement):
        yield _pairs("Gradient noise", probe_sheets.noise_facts(part))
        if part.gradient_error:
            yield Text()
            yield from _sheet(probe_sheets.gradient_errors(part), console, options)
    elif isinstance(part, BranchedRuns):
        yield from _sheet(probe_sheets.branches(part), console, options)
        yield _pairs("Where they branch", probe_sheets.branch_facts(part))
    else:
        yield _pairs("Learning-rate range test", probe_sheets.range_facts(part))


def _said(text: str, style: str = "bold") -> Iterator[Text]:
    """A text with its first sentence in bold."""
    first, rest = sheets.headline(text)
    yield Text(first, style=style)
    if rest:
        yield Text(rest)


def _sheet(sheet: Sheet, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    """The sheet as a table, without its minor columns, the last first, where they do not fit."""
    kept = list(range(len(sheet.columns)))
    table = _grid(sheet, kept)
    for i in reversed(range(len(sheet.columns))):
        if Measurement.get(console, options.update(max_width=10_000), table).maximum <= options.max_width:
            break
        if sheet.columns[i].minor:
            kept.remove(i)
            table = _grid(sheet, kept)
    yield table
    if sheet.note:
        yield Padding(_aside(sheet.note), (0, 0, 1, 0))


def _grid(sheet: Sheet, kept: list[int]) -> Table:
    title = Text(sheet.title, style="bold")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    detailed = any(sheet.columns[i].detail for i in kept)
    for column in (sheet.columns[i] for i in kept):
        heading = Text(column.heading)
        if detailed:
            heading.append(f"\n{column.detail}", style="dim")
        table.add_column(heading, justify=column.align, no_wrap=not column.wraps, overflow="fold")
    for line in sheet.lines:
        table.add_row(*(Text(line.cells[i]) for i in kept))
    return table


def _pairs(title: str, pairs: tuple[tuple[str, str], ...]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    return table


def _beside(left: Sheet, right: Sheet) -> Sheet:
    """Two sheets about the same rows as one; the second's first column names the row again and goes."""
    lines = tuple(sheets.Line(a.cells + b.cells[1:], a.row) for a, b in zip(left.lines, right.lines, strict=True))
    title = f"{left.title}, and {right.title[0].lower()}{right.title[1:]}"
    return Sheet(title, left.columns + right.columns[1:], lines, f"{left.note} {right.note}")


def _origin(
    record: Comparison
    | TrainResult
    | Probe
    | probe_content.Part
    | Sweep
    | Advice
    | curvature_content.Curvature
    | Landscape
    | Claims
    | PaperStudy
    | DevicePlan,
) -> str:
    origin = record.provenance
    return (
        f"batchscope {origin.batchscope}, torch {origin.torch}, Python {origin.python}, {origin.device}, "
        f"{origin.dtype}, {origin.processor}, {_plural(origin.threads, 'thread')}, seed {origin.seed}, {origin.created}"
    )


def _item(text: str) -> RenderableType:
    return Padding(Text(text), (0, 0, 0, 2))


def _aside(text: str) -> Text:
    return Text(text, style="dim")


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

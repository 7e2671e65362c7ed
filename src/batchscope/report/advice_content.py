"""What the page of an advice holds, section by section."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable

from batchscope.records import Advice, Interval, Plan, encode
from batchscope.report import advice_sheets as words
from batchscope.report import formatting as f
from batchscope.report import sheets
from batchscope.report.advice_stops import asked, stops
from batchscope.report.content import Card, Content, Figure, Listing, Section, Slider, drawn
from batchscope.report.marks import BLUE, RED, TEAL

FILE = "advice.json"
"""What the commands to copy call the record."""

_TURNED = {
    "target": ("Target", "Time against batch size", "Examples against batch size"),
    "examples": ("Budget of examples", "Score against batch size", "Time against batch size"),
    "seconds": ("Time of training", "Score against batch size", "Examples against batch size"),
}
_CHARTS = {
    "target": ("frontier_seconds", "frontier_examples"),
    "examples": ("frontier_score", "frontier_seconds"),
    "seconds": ("frontier_score", "frontier_examples"),
}


def of_advice(record: Advice, available: Iterable[str]) -> Content:
    """The page of an advice.

    Args:
        record: The advice.
        available: Names of the charts that have something to show.

    Returns:
        The answer, the setting, the frontier with its slider, the reasons, the way to the goal, the race, the plan, and
        what it cost.
    """
    shown = frozenset(available)
    sections = [
        Section("The setting", cards=_setting(record)),
        _frontier(record, shown),
        Section(
            "Why",
            cards=_evidence(record),
            sentences=record.reasons,
        ),
        Section(
            "On the way to the goal",
            _forecast_lead(record),
            figures=drawn(shown, Figure("forecast", "The advised setting on its way to the goal", alone=True)),
        ),
        Section(
            "The race",
            _race_lead(record),
            figures=drawn(shown, Figure("race", "The race", alone=True)),
            folded=words.race(record) if record.race else None,
        ),
        *((_plan(record, record.plan),) if record.plan is not None else ()),
        Section(
            "What it cost, and how it was found",
            words.cost(record),
            facts=(
                ("Spent on", words.spending(record)),
                ("Settings", words.settings(record)),
                ("Provenance", sheets.provenance(record.provenance)),
            ),
        ),
    ]
    present = record.workload
    return Content(
        name=present.name,
        title=words.question(record.goal),
        answer=record.conclusion,
        summary=(
            ("goal", words.goal_text(record.goal)),
            ("today’s setting", f"batch {f.count(present.batch_size)}, rate {f.number(present.learning_rate, 3)}"),
            ("candidates", f.count(len(record.race))),
            ("the advice took", f.seconds(record.cost_seconds)),
            ("on", record.provenance.device),
        ),
        warnings=words.warnings(record),
        sections=tuple(section for section in sections if section.holds_something()),
    )


def _setting(record: Advice) -> tuple[Card, ...]:
    """The four numbers to use; none where there is no answer."""
    if record.batch_size is None:
        return ()
    split = ""
    if record.micro_batch_size is not None and (record.accumulation_steps or 1) > 1:
        split = f"{f.count(record.accumulation_steps)} micro-batches of {f.count(record.micro_batch_size)}"
    on = f"on {f.count(record.devices)} devices" if record.devices > 1 else ""
    other = [f.count(size) for size in record.alternatives]
    near = f"The evidence can’t tell it from {words.listed(other, 'or')}." if other else ""
    grows = "" if record.schedule is None else f"It grows: {record.schedule}."
    memory = "" if record.peak_memory_bytes is None else f"Memory at its peak: {f.memory(record.peak_memory_bytes)}."
    return (
        Card(*_promise(record), "" if record.present is None else record.present.sentence, RED),
        Card(
            "Batch size",
            f.count(record.batch_size),
            ", ".join(filter(None, (words.in_tokens(record, record.batch_size), split, on))),
            f"{grows} {near}".strip(),
        ),
        Card("Learning rate", f.number(record.learning_rate, 3), "", _rate_text(record)),
        Card(
            "Updates",
            f.UNRESOLVED if record.iterations is None else f.count(record.iterations),
            _trained_on(record),
            memory,
        ),
    )


def _trained_on(record: Advice) -> str:
    if record.examples is None:
        return ""
    return ", ".join(filter(None, (f"{f.count(record.examples)} examples", words.in_tokens(record, record.examples))))


def _promise(record: Advice) -> tuple[str, str, str]:
    """What is predicted: its name, the number, and the interval."""
    if record.goal.kind == "target":
        name, found = "Time to the target", record.predicted_seconds
        if found.value is None:
            return name, f.UNRESOLVED, words.spoken_seconds(found)
        unit = f.time_unit([found.value])
        return name, unit.text(found.value), _ends(found, unit.size)
    found = record.predicted_score
    places = f.places_for([found])
    return (
        "Score then",
        f.UNRESOLVED if found.value is None else f.fixed(found.value, places),
        _ends(found, 1.0, places),
    )


def _rate_text(record: Advice) -> str:
    plan = record.plan
    if plan is None or plan.shape in (None, "constant"):
        return ""
    words = f.shape(plan.shape)
    return f"{words[0].upper()}{words[1:]}."


def _ends(interval: Interval, size: float, places: int | None = None) -> str:
    """The ends of an interval that are known, in the unit of the number above."""

    def text(value: float) -> str:
        return f.number(value / size, 3) if places is None else f.fixed(value, places)

    low, high = ((text(end) if f.known(end) else None) for end in (interval.low, interval.high))
    if low is None and high is None:
        return ""
    ends = f"{low} to {high}" if low and high else f"{low} or more" if low else f"{high} or less"
    return f"{ends}, {interval.level:.0%} interval"


def _frontier(record: Advice, shown: frozenset[str]) -> Section:
    chosen, *titles = _TURNED[record.goal.kind]
    names = _CHARTS[record.goal.kind]
    figures = drawn(shown, *map(Figure, names, titles))
    found = stops(record)
    slider = None
    if figures and len(found) > 1:
        texts = tuple((words.value_text(stop.goal), words.at_stop(stop)) for stop in found)
        slider = Slider(chosen, texts, asked(record, found))
    return Section(
        "The trade-off",
        _frontier_lead(record),
        slider=slider,
        figures=figures,
        sheets=(words.frontier(record),) if record.frontier else (),
    )


def _frontier_lead(record: Advice) -> str:
    if not record.frontier:
        return ""
    lead = "Each batch size at its best learning rate, with intervals; a wedge: it goes on, or may be out of reach."
    if any(not row.raced for row in record.frontier):
        lead += " Hollow: not trained, worked out from those that were."
    return lead + (" Diamond: today’s setting, at the goal asked for." if record.present is not None else "")


def _evidence(record: Advice) -> tuple[Card, ...]:
    """What bounds a batch size, where anything is known of it."""
    wanted = (
        (
            "Critical batch size",
            record.critical_batch_size,
            "Beyond it, more examples an update save few updates.",
            TEAL,
        ),
        ("Noise scale", record.noise_scale, "How noisy gradients are on the way: tr Σ/‖G‖².", TEAL),
        ("Throughput knee", record.throughput_knee, "From there on, larger batches gain little speed.", BLUE),
    )
    return tuple(
        Card(title, f.UNRESOLVED if value.value is None else f.size(value.value), _between(value), text, colour)
        for title, value, text, colour in wanted
        if value.value is not None or f.between(value) != f.UNKNOWN
    )


def _between(interval: Interval) -> str:
    ends = f.between(interval)
    return "" if ends == f.UNKNOWN else ends if interval.value is None else f"{ends}, {interval.level:.0%} interval"


def _forecast_lead(record: Advice) -> str:
    lead = "Dots: measured. Line: the forecast; band: its interval."
    ends = "Shaded: the interval of the predicted time." if record.goal.kind == "target" else ""
    return f"{lead} {ends}".strip()


def _race_lead(record: Advice) -> str:
    if not record.race:
        return ""
    return f"Every candidate by its time alone, judged {record.judged_by}. Point at a sign for why it ended there."


def _plan(record: Advice, plan: Plan) -> Section:
    name = shlex.quote(record.workload.name)
    commands = f"batchscope train {name} --plan {FILE}"
    script = f'import batchscope as bs\n\nadvice = bs.load("{FILE}")\nresult = bs.train(workload, advice.plan)'
    header = {"record": plan.kind, "schema": plan.schema_version}
    text = json.dumps(header | encode(plan), indent=2, allow_nan=False)
    return Section(
        "Train with it",
        f"{FILE} is the record, which --json writes and the button below downloads.",
        listings=(
            Listing(
                "In a terminal", commands, "The workload as it was given to advise: a name, or path/to/file.py:name."
            ),
            Listing("In Python", script, "workload: the one that was given to advise."),
            Listing("The plan alone, as JSON", text),
        ),
    )

"""What is shown of an advice: the setting, the trade-off, the reasons, the forecast, the race, the plan."""

from __future__ import annotations

import functools
import json
import shlex
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from batchscope.records import Advice, FrontierRow, Goal, Interval, Plan, RaceCandidate, TrainResult, encode
from batchscope.report import formatting as f
from batchscope.report.charts.plot import BLUE, RED, TEAL
from batchscope.report.view import (
    Card,
    Column,
    Facts,
    Figure,
    Listing,
    Section,
    Slider,
    Table,
    View,
    facts,
    measured,
    number_card,
    table,
    workload_facts,
)
from batchscope.report.views import advice_charts as charts
from batchscope.report.views.goals import (
    ADVISED,
    TODAY,
    asked,
    at_stop,
    goal_text,
    known_of,
    question,
    reaching,
    spoken_score,
    spoken_seconds,
    stops,
    value_text,
)

FILE = "advice.json"
"""What the commands to copy call the record."""

_CHOSEN = {"target": "Target", "examples": "Budget of examples", "seconds": "Time of training"}
_QUANTITIES: dict[str, tuple[charts.Quantity, charts.Quantity]] = {
    "target": ("seconds", "examples"),
    "examples": ("score", "seconds"),
    "seconds": ("score", "examples"),
}
_TITLES = {
    "seconds": "Time against batch size",
    "examples": "Examples against batch size",
    "score": "Score against batch size",
}


def view(record: Advice) -> View:
    """An advice, from its answer to what it cost."""
    present = record.workload
    interrupted = "Interrupted before its budget was spent: what follows is what was found until then."
    spent = ", ".join(f"{part.name} {f.seconds(part.seconds)}" for part in record.spending)
    cost = f"The advice took {f.seconds(record.cost_seconds)}{': ' + spent if spent else ''}."
    return View(
        name=present.name,
        title=question(record.goal),
        answer=record.conclusion,
        failed=record.batch_size is None,
        summary=(
            ("goal", goal_text(record.goal)),
            ("today’s setting", f"batch {f.count(present.batch_size)}, rate {f.number(present.learning_rate, 3)}"),
            ("candidates", f.count(len(record.race))),
            ("the advice took", f.seconds(record.cost_seconds)),
            ("on", record.provenance.device),
        ),
        warnings=((interrupted,) if record.interrupted else ()) + record.warnings,
        sections=(
            Section("The setting", cards=_setting(record)),
            _frontier(record),
            Section("Why", cards=_evidence(record), sentences=record.reasons, on="both"),
            _forecast(record),
            _race(record),
            *((_plan(record, record.plan),) if record.plan is not None else ()),
            Section("", cost, on="terminal"),
            Section(
                "What it cost, and how it was found",
                cost,
                facts=(
                    ("Spent on", spending(record)),
                    *measured(record.provenance, ("Settings", settings(record))).facts,
                ),
            ),
        ),
        origin=record.provenance,
    )


def _setting(record: Advice) -> tuple[Card, ...]:
    """The four numbers to use; none where there is no answer."""
    if record.batch_size is None:
        return ()
    split = ""
    if record.micro_batch_size is not None and (record.accumulation_steps or 1) > 1:
        split = f"{f.count(record.accumulation_steps)} micro-batches of {f.count(record.micro_batch_size)}"
    on = f"on {f.count(record.devices)} devices" if record.devices > 1 else ""
    other = f.listed([f.count(size) for size in record.alternatives], "or")
    near = f"The evidence does not distinguish it from {other}." if other else ""
    grows = "" if record.schedule is None else f"It grows: {record.schedule}."
    memory = "" if record.peak_memory_bytes is None else f"Peak memory: {f.memory(record.peak_memory_bytes)}."
    seen = "" if record.examples is None else f"{f.count(record.examples)} examples"
    plan = record.plan
    shape = "" if plan is None or plan.shape in (None, "constant") else f"{f.shape(plan.shape).capitalize()}."
    return (
        Card(*_promise(record), "" if record.present is None else record.present.sentence, RED),
        Card(
            "Batch size",
            f.count(record.batch_size),
            ", ".join(filter(None, (_tokens(record, record.batch_size), split, on))),
            f"{grows} {near}".strip(),
        ),
        Card("Learning rate", f.number(record.learning_rate, 3), "", shape),
        Card(
            "Updates",
            f.UNRESOLVED if record.iterations is None else f.count(record.iterations),
            ", ".join(filter(None, (seen, _tokens(record, record.examples)))),
            memory,
        ),
    )


def _tokens(record: Advice, examples: int | None) -> str:
    """So many examples in tokens; nothing where the workload does not say what an example has of them."""
    tokens = record.workload.tokens_per_example
    return "" if tokens is None or examples is None else f"{f.count(round(examples * tokens))} tokens"


def _promise(record: Advice) -> tuple[str, str, str]:
    """What is predicted: its name, the number, and the interval."""
    if record.goal.kind == "target":
        name, found = "Time to the target", record.predicted_seconds
        if found.value is None:
            return name, f.UNRESOLVED, spoken_seconds(found)
        unit = f.time_unit([found.value])
        return name, unit.text(found.value), _ends(found, lambda value: f.number(value / unit.size, 3))
    found = record.predicted_score
    text = functools.partial(f.fixed, places=f.places_for([found]))
    return "Score then", f.UNRESOLVED if found.value is None else text(found.value), _ends(found, text)


def _ends(interval: Interval, text: Callable[[float], str]) -> str:
    """The ends of an interval that are known, in the unit of the number above."""
    low, high = ((text(end) if f.known(end) else None) for end in (interval.low, interval.high))
    if low is None and high is None:
        return ""
    ends = f"{low} to {high}" if low and high else f"{low} or more" if low else f"{high} or less"
    return f"{ends}, {interval.level:.0%} interval"


def _evidence(record: Advice) -> tuple[Card, ...]:
    """What bounds a batch size, where anything is known of it."""
    critical = "Beyond it, more examples an update save few updates."
    noise = "How noisy gradients are during training: tr Σ/‖G‖²."
    knee = "From there on, larger batches gain little speed."
    cards = (
        number_card("Critical batch size", record.critical_batch_size, critical, TEAL),
        number_card("Noise scale", record.noise_scale, noise, TEAL),
        number_card("Throughput knee", record.throughput_knee, knee, BLUE),
    )
    return tuple(card for card in cards if card.value != f.UNRESOLVED or card.detail)


# The trade-off


def _frontier(record: Advice) -> Section:
    kind = record.goal.kind
    note = (
        "Each batch size at its best learning rate, with intervals. A wedge: the interval goes on, or the goal may be "
    )
    note += "out of reach."
    if any(not row.raced for row in record.frontier):
        note += " Hollow: not trained, derived from those that were."
    if record.present is not None:
        note += " Diamond: today’s setting, at the goal asked for."
    figures = tuple(
        Figure(f"frontier_{quantity}", _TITLES[quantity], functools.partial(charts.frontier, record, quantity))
        for quantity in _QUANTITIES[kind]
    )
    found = stops(record)
    section = Section("The trade-off", note if record.frontier else "", figures=figures, on="both")
    slider = None
    if len(found) > 1 and section.figures:
        texts = tuple((value_text(stop.goal), at_stop(stop)) for stop in found)
        slider = Slider(_CHOSEN[kind], texts, asked(record, found))
    tables = (frontier(record),) if record.frontier else ()
    return Section(section.title, section.lead, tables, figures, slider=slider, on="both")


class _Line(NamedTuple):
    """A line of the frontier's table: a batch size at its best rate, or today's setting."""

    batch_size: int
    name: str
    rate: float | None
    updates: int | None
    examples: Interval | None
    seconds: Interval
    score: Interval
    row: FrontierRow | None
    own: bool


def _lines(record: Advice) -> list[_Line]:
    present, lines = record.present, []
    here = False
    for row in record.frontier:
        rate = row.learning_rate.value
        same = present is not None and row.batch_size == present.batch_size
        same = same and f.number(rate, 3) == f.number(None if present is None else present.learning_rate, 3)
        here = here or same
        marks = [ADVISED] * (row.batch_size == record.batch_size) + [TODAY] * same
        name = f.count(row.batch_size) + ("" if row.raced else "*") + (f" {', '.join(marks)}" if marks else "")
        lines.append(
            _Line(row.batch_size, name, rate, row.iterations, row.examples, row.seconds, row.score, row, own=True)
        )
    if present is not None and not here:
        size, rate = present.batch_size, present.learning_rate
        own = next((row for row in record.frontier if row.batch_size == size), None)
        name = f"{f.count(size)} {TODAY}"
        lines.append(_Line(size, name, rate, None, None, present.seconds, present.score, own, own=False))
    return sorted(lines, key=lambda line: (line.batch_size, not line.own))


def frontier(record: Advice) -> Table:
    """A row per batch size, and one for today's setting: what it takes or reaches, and what it costs."""
    lines, kind, tokens = _lines(record), record.goal.kind, record.workload.tokens_per_example
    rows = record.frontier
    time = f.time_unit(known_of(line.seconds) for line in lines)
    update = f.time_unit(row.step_seconds.value for row in rows)
    space = f.memory_unit(row.peak_memory_bytes for row in rows)
    energy = f.energy_unit(None if row.joules is None else row.joules.value for row in rows)
    most = max((known for row in rows if (known := known_of(row.examples)) is not None), default=0.0)
    size, name = next((unit for unit in ((1e6, "millions"), (1e3, "thousands")) if most >= 10 * unit[0]), (1.0, ""))
    count, places = f.Unit(name, size), f.places_for(line.score for line in lines)
    levels = {row.seconds.level if kind == "target" else row.score.level for row in rows}
    level = f", {levels.pop():.0%}" if len(levels) == 1 else ""
    within = f"{count.name or ('to the target' if kind == 'target' else 'until then')}{level}"

    def of(cell: Callable[[FrontierRow], str], *, alike: bool = True) -> Callable[[_Line], str]:
        """A cell that is known of batch sizes, and, unless ``alike``, not of another learning rate."""
        return lambda line: f.UNKNOWN if line.row is None or not (alike or line.own) else cell(line.row)

    def taken(line: _Line) -> str:
        return f.UNKNOWN if line.examples is None else reaching(line.examples, count)

    def speed(row: FrontierRow) -> str:
        each = row.examples_per_second.value
        return f.number(each * tokens if each is not None and tokens else each, 3)

    examples = Column("examples", taken, within, minor=True)
    columns: tuple[Column[_Line] | bool, ...] = (
        Column("batch", lambda line: line.name, "size", "left"),
        Column("rate", lambda line: f.number(line.rate, 3)),
        Column("updates", lambda line: f.count(line.updates)),
        kind == "target" and examples,
        kind != "target" and Column("score", lambda line: f.estimate(line.score, places), f"then{level}"),
        kind != "seconds" and Column("time", lambda line: reaching(line.seconds, time), f"{time.name}{level}"),
        kind == "seconds" and examples,
        any(row.cost for row in rows)
        and Column("cost", of(lambda row: f.number(row.cost.value if row.cost else None, 3), alike=False), "money"),
        any(row.joules for row in rows)
        and Column(
            "energy", of(lambda row: energy.of(row.joules.value if row.joules else None), alike=False), energy.name
        ),
        Column("update", of(lambda row: update.of(row.step_seconds.value)), update.name, minor=True),
        bool(tokens)
        and Column("tokens", of(lambda row: f.count(round(row.batch_size * (tokens or 0)))), "an update", minor=True),
        Column("tokens" if tokens else "examples", of(speed), "per s", minor=True),
        Column("memory", of(lambda row: space.of(row.peak_memory_bytes)), space.name, minor=True),
    )
    note = {
        "target": "Time: updates to the target times the measured time of one, without evaluation.",
        "examples": "Time: updates times the measured time of one, without evaluation.",
        "seconds": "As many updates as the time allows, without evaluation.",
    }[kind]
    if record.power is not None and any(row.joules for row in rows):
        source = record.power.source
        note += f" Energy: power is {source}." if source in ("given", "assumed") else f" Energy: by {source}."
    if any(not row.raced for row in rows):
        note += " * Not trained: derived from those that were."
    takes = {"target": "takes to a", "examples": "reaches with", "seconds": "reaches in"}[kind]
    return table(f"What each batch size {takes} {goal_text(record.goal)}", lines, filter(None, columns), note)  # type: ignore[arg-type]


# The rest


def _forecast(record: Advice) -> Section:
    ends = " Shaded: the interval of the predicted time." if record.goal.kind == "target" else ""
    title = "The advised setting on its way to the goal"
    figure = Figure("forecast", title, functools.partial(charts.forecast, record), alone=True)
    lead = f"Dots: measured. Line: the forecast; band: its interval.{ends}"
    return Section("On the way to the goal", lead, figures=(figure,))


def _race(record: Advice) -> Section:
    lead = (
        f"Every candidate by its own training time, judged {record.judged_by}. Point at a mark for why it ended there."
    )
    return Section(
        "The race",
        lead if record.race else "",
        figures=(Figure("race", "The race", functools.partial(charts.race, record), alone=True),),
        folded=race(record) if record.race else None,
    )


def race(record: Advice) -> Table:
    """Every candidate of the race, and what became of it."""
    alone = f.time_unit(each.points[-1].seconds for each in record.race if each.points)
    spent = f.time_unit(each.seconds_spent for each in record.race)

    def score(each: RaceCandidate) -> str:
        return f.number(next((point.score for point in reversed(each.points) if f.known(point.score)), None))

    columns: tuple[Column[RaceCandidate], ...] = (
        Column("batch", lambda each: f.count(each.batch_size), "size", "left"),
        Column("rate", lambda each: f.number(each.learning_rate, 3)),
        Column("seed", lambda each: str(each.seed)),
        Column("ended", lambda each: each.ended, align="left"),
        Column("score", score, "reached"),
        Column("examples", lambda each: f.count(each.points[-1].examples if each.points else None), "trained on"),
        Column("time alone", lambda each: alone.of(each.points[-1].seconds if each.points else None), alone.name),
        Column("in all", lambda each: spent.of(each.seconds_spent), spent.name),
        Column("why", lambda each: f.shortened(each.reason), align="left"),
    )
    note = "Time alone: updates times the measured time of one. In all: with reading and evaluating."
    return table("Candidates", record.race, columns, note)


def _plan(record: Advice, plan: Plan) -> Section:
    command = f"batchscope train {shlex.quote(record.workload.name)} --plan {FILE}"
    script = f'import batchscope as bs\n\nadvice = bs.load("{FILE}")\nresult = bs.train(workload, advice.plan)'
    text = json.dumps({"record": plan.kind, "schema": plan.schema_version} | encode(plan), indent=2, allow_nan=False)
    given = "The workload as it was given to advise: a name, or path/to/file.py:name."
    return Section(
        "Train with it",
        f"{FILE} is the record, which --json writes and the button below downloads.",
        listings=(
            Listing("In a terminal", command, given),
            Listing("In Python", script, "workload: the one that was given to advise."),
            Listing("The plan alone, as JSON", text),
        ),
    )


def spending(record: Advice) -> Facts:
    """What the advice cost, part by part."""
    parts = tuple(
        (part.name, f.seconds(part.seconds) + (f", {f.count(part.examples)} examples" if part.examples else ""))
        for part in record.spending
    )
    return (*parts, ("altogether", f.seconds(record.cost_seconds)))


def settings(record: Advice) -> Facts:
    """What was asked and how it was found."""
    ended = Counter[str](each.ended for each in record.race)
    order = ("advised", "kept", "beaten", "diverged")
    price = record.price_per_hour
    return (
        *workload_facts(record.workload),
        ("goal", goal_text(record.goal)),
        ("candidates", ", ".join(f"{ended[how]} {how}" for how in order if ended[how]) or "none"),
        ("judged", record.judged_by),
        ("devices", f.count(record.devices)),
        *facts(("price", f"{f.number(price)} for a device and hour") if price else None),
        *_power(record),
    )


def _power(record: Advice) -> Facts:
    """The power, where it is known, and what was minimised with it."""
    power, share = record.power, record.time_share
    if power is None:
        return ()
    watts = ", ".join(
        f"{f.number(point.watts.value, 3)} W" + (f" at {f.count(point.batch_size)}" if power.varies else "")
        for point in power.points
    )
    return facts(
        ("power of a device", f"{watts} ({power.source})"),
        ("of that power", power.note),
        None if share is None else ("minimised", f"{1 - share:.0%} energy, {share:.0%} time at the most power"),
    )


def held(record: Advice, result: TrainResult) -> str:
    """What the advice had predicted of a training run, and what came of it.

    Args:
        record: The advice.
        result: A run of its plan.

    Returns:
        A sentence.
    """
    goal: Goal = record.goal
    if goal.kind == "target":
        predicted = f"The advice predicted {spoken_seconds(record.predicted_seconds)} to reach {goal.value:g}"
        if not result.reached:
            return f"{predicted}; this run did not reach it."
        took, interval = result.step_seconds, record.predicted_seconds
        said = f"this run took {f.seconds(took)}"
    else:
        predicted = f"The advice predicted a score of {spoken_score(record.predicted_score)}"
        if result.final_score is None:
            return f"{predicted}; this run did not get there."
        took, interval = result.final_score, record.predicted_score
        said = f"this run reached {took:.4g}"
    if interval.low is None or interval.high is None:
        return f"{predicted}; {said}."
    where = "below" if took < interval.low else "above" if took > interval.high else "within"
    return f"{predicted}; {said}, {where} that."

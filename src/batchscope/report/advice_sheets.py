"""What an advice says in words, rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from batchscope.records import Advice, FrontierRow, Goal, Interval, PresentSetting, RaceCandidate, TrainResult
from batchscope.report import formatting as f
from batchscope.report.advice_stops import Stop
from batchscope.report.sheets import Column, Line, Sheet, workload_facts

Facts = tuple[tuple[str, str], ...]

ADVISED, TODAY = "advised", "today"
_LONGEST_REASON = 160


def question(goal: Goal) -> str:
    """What was asked, as a question."""
    if goal.kind == "target":
        return f"Which setting reaches a score of {f.number(goal.value)} soonest?"
    if goal.kind == "examples":
        return f"Which setting reaches the best score with {f.count(goal.value)} examples?"
    return f"Which setting reaches the best score in {f.seconds(goal.value)}?"


def goal_text(goal: Goal) -> str:
    """The goal by itself, as in "score of 0.89"."""
    return f"score of {value_text(goal)}" if goal.kind == "target" else value_text(goal)


def value_text(goal: Goal) -> str:
    """The target or budget in its unit."""
    if goal.kind == "target":
        return f.number(goal.value)
    return f"{f.count(goal.value)} examples" if goal.kind == "examples" else f.seconds(goal.value)


def at_stop(stop: Stop) -> str:
    """What to take for one target or budget, and what it takes, in a sentence or two.

    Args:
        stop: The target or budget, and how every batch size stands there.

    Returns:
        The best batch size with its prediction, and those that can't be told from it.
    """
    best, goal = stop.of(stop.best), stop.goal
    if best is None:
        return "No batch size is forecast to get there." if goal.kind == "target" else "The forecasts end before that."
    if goal.kind == "target":
        said = f"Batch size {f.count(best.batch_size)}: {spoken_seconds(best.seconds)}, {spoken_count(best.examples)}."
    elif goal.kind == "examples":
        said = f"Batch size {f.count(best.batch_size)}: {_scored(best.score)}, {spoken_seconds(best.seconds)}."
    else:
        said = f"Batch size {f.count(best.batch_size)}: {_scored(best.score)}, {spoken_count(best.examples)}."
    if stop.close:
        said += f" The forecasts can’t tell it from {listed([f.count(size) for size in stop.close], 'or')}."
    return said


def frontier(record: Advice) -> Sheet:
    """A row per batch size, and one for today's setting: what it takes or reaches, and what it costs.

    Args:
        record: The advice.

    Returns:
        Columns that matter less stand to the right, so that a narrow terminal can leave them out.
    """
    rows, present, kind = record.frontier, record.present, record.goal.kind
    now = () if present is None else (present,)
    time = f.time_unit(map(known_of, (*(row.seconds for row in rows), *(setting.seconds for setting in now))))
    update = f.time_unit(row.step_seconds.value for row in rows)
    space = f.memory_unit(row.peak_memory_bytes for row in rows)
    count = _count_unit(known_of(row.examples) for row in rows)
    places = f.places_for([*(row.score for row in rows), *(setting.score for setting in now)])
    level = _levels(record)
    priced, powered = any(row.cost for row in rows), any(row.joules for row in rows)
    energy = f.energy_unit(None if row.joules is None else row.joules.value for row in rows)
    tokens = record.workload.tokens_per_example
    columns = (
        Column("batch", "size", align="left"),
        Column("rate"),
        Column("updates"),
        *((Column("examples", f"{count.name or 'to the target'}{level}", minor=True),) if kind == "target" else ()),
        *((Column("score", f"then{level}"),) if kind != "target" else ()),
        *((Column("time", f"{time.name}{level}"),) if kind != "seconds" else ()),
        *((Column("examples", f"{count.name or 'until then'}{level}", minor=True),) if kind == "seconds" else ()),
        *((Column("cost", "money"),) if priced else ()),
        *((Column("energy", energy.name),) if powered else ()),
        Column("update", update.name, minor=True),
        *((Column("tokens", "an update", minor=True),) if tokens else ()),
        Column("tokens" if tokens else "examples", "per s", minor=True),
        Column("memory", space.name, minor=True),
    )

    def goal_cells(examples: Interval | None, seconds: Interval, score: Interval) -> tuple[str, ...]:
        if kind == "target":
            return (f.UNKNOWN if examples is None else reaching(examples, count), reaching(seconds, time))
        if kind == "examples":
            return (f.estimate(score, places), reaching(seconds, time))
        return (f.estimate(score, places), f.UNKNOWN if examples is None else reaching(examples, count))

    def cost_cells(row: FrontierRow | None, *, own: bool = True) -> tuple[str, ...]:
        if row is None:
            return (f.UNKNOWN,) * (3 + priced + powered + bool(tokens))
        # Of another learning rate the money and the energy are not known.
        spent = (
            *((f.number(row.cost.value if own and row.cost else None, 3),) if priced else ()),
            *((energy.of(row.joules.value if own and row.joules else None),) if powered else ()),
        )
        each = row.examples_per_second.value
        made = (f.count(round(row.batch_size * tokens)),) if tokens else ()
        speed = f.number(each * tokens if each is not None and tokens else each, 3)
        return (*spent, update.of(row.step_seconds.value), *made, speed, space.of(row.peak_memory_bytes))

    def line(row: FrontierRow) -> Line:
        marks = [ADVISED] * (row.batch_size == record.batch_size) + [TODAY] * (
            present is not None and is_(row, present)
        )
        name = f.count(row.batch_size) + ("" if row.raced else "*") + (f" {', '.join(marks)}" if marks else "")
        goal = goal_cells(row.examples, row.seconds, row.score)
        return Line((name, f.number(row.learning_rate.value, 3), f.count(row.iterations), *goal, *cost_cells(row)))

    lines = [(row.batch_size, 0, line(row)) for row in rows]
    if present is not None and not any(is_(row, present) for row in rows):
        name = f"{f.count(present.batch_size)} {TODAY}"
        own = next((row for row in rows if row.batch_size == present.batch_size), None)
        goal = goal_cells(None, present.seconds, present.score)
        cells = (name, f.number(present.learning_rate, 3), f.UNKNOWN, *goal, *cost_cells(own, own=False))
        lines.append((present.batch_size, 1, Line(cells)))
    note = {
        "target": "Time: updates to the target times the measured time of one; evaluation is off this clock.",
        "examples": "Time: updates times the measured time of one; evaluation is off this clock.",
        "seconds": "As many updates as the time allows; evaluation is off this clock.",
    }[kind]
    if powered and record.power is not None:
        note += (
            f" Energy: power is {record.power.source}."
            if record.power.source in ("given", "assumed")
            else (f" Energy: by {record.power.source}.")
        )
    if any(not row.raced for row in rows):
        note += " * Not trained: worked out from those that were."
    ordered = sorted(lines, key=lambda found: found[:2])
    asked = {"target": "takes to a", "examples": "reaches with", "seconds": "reaches in"}[kind]
    title = f"What each batch size {asked} {goal_text(record.goal)}"
    return Sheet(title, columns, tuple(found for *_, found in ordered), note)


def race(record: Advice) -> Sheet:
    """Every candidate of the race, and what became of it."""
    virtual = f.time_unit(points[-1].seconds for each in record.race if (points := each.points))
    spent = f.time_unit(each.seconds_spent for each in record.race)
    columns = (
        Column("batch", "size", align="left"),
        Column("rate"),
        Column("seed"),
        Column("ended", align="left"),
        Column("score", "reached"),
        Column("examples", "trained on"),
        Column("time alone", virtual.name),
        Column("in all", spent.name),
        Column("why", align="left"),
    )

    def cells(each: RaceCandidate) -> tuple[str, ...]:
        last = each.points[-1] if each.points else None
        return (
            f.count(each.batch_size),
            f.number(each.learning_rate, 3),
            str(each.seed),
            each.ended,
            f.number(next((p.score for p in reversed(each.points) if f.known(p.score)), None)),
            f.count(None if last is None else last.examples),
            virtual.of(None if last is None else last.seconds),
            spent.of(each.seconds_spent),
            shortened(each.reason),
        )

    note = "Time alone: updates times the measured time of one. In all: with reading and evaluating."
    return Sheet("Candidates", columns, tuple(Line(cells(each)) for each in record.race), note)


def spending(record: Advice) -> Facts:
    """What the advice cost, part by part."""
    parts = tuple(
        (part.name, f.seconds(part.seconds) + (f", {f.count(part.examples)} examples" if part.examples else ""))
        for part in record.spending
    )
    return (*parts, ("altogether", f.seconds(record.cost_seconds)))


def cost(record: Advice) -> str:
    """What the advice cost, in a sentence."""
    parts = ", ".join(f"{part.name} {f.seconds(part.seconds)}" for part in record.spending)
    return f"The advice took {f.seconds(record.cost_seconds)}{': ' + parts if parts else ''}."


def settings(record: Advice) -> Facts:
    """What was asked and how it was found, as names and values."""
    ended = {"advised": 0, "kept": 0, "beaten": 0, "diverged": 0}
    for each in record.race:
        ended[each.ended] += 1
    candidates = ", ".join(f"{number} {how}" for how, number in ended.items() if number)
    return (
        *workload_facts(record.workload),
        ("goal", goal_text(record.goal)),
        ("candidates", candidates or "none"),
        ("judged", record.judged_by),
        ("devices", f.count(record.devices)),
        *((("price", f"{f.number(record.price_per_hour)} for a device and hour"),) if record.price_per_hour else ()),
        *power_facts(record),
    )


def power_facts(record: Advice) -> Facts:
    """The power, where it is known, and what was minimised with it."""
    power = record.power
    if power is None:
        return ()
    watts = ", ".join(
        f"{f.number(point.watts.value, 3)} W" + (f" at {f.count(point.batch_size)}" if power.varies else "")
        for point in power.points
    )
    found = [("power of a device", f"{watts} ({power.source})"), ("of that power", power.note)]
    if record.time_share is not None:
        found.append(
            ("least is", f"{1 - record.time_share:.0%} energy, {record.time_share:.0%} time at the most power")
        )
    return tuple(found)


def warnings(record: Advice) -> tuple[str, ...]:
    """What a reader must know before trusting the numbers, most serious first."""
    if not record.interrupted:
        return record.warnings
    return ("Interrupted before its budget was spent: what follows is what was found until then.", *record.warnings)


def is_(row: FrontierRow, present: PresentSetting) -> bool:
    """Whether a row of the frontier reads as what the person uses today."""
    same = f.number(row.learning_rate.value, 3) == f.number(present.learning_rate, 3)
    return row.batch_size == present.batch_size and same


def reaching(interval: Interval, unit: f.Unit) -> str:
    """A quantity that a goal takes, in a column: with both ends, or a bound where the goal may be out of reach.

    Args:
        interval: Seconds or a count; an end at infinity is one that isn't known.
        unit: The column's unit.

    Returns:
        The text.

    Examples:
        >>> seconds, unknown = f.Unit("s", 1.0), float("inf")
        >>> reaching(Interval(41.2, 35.0, 49.1), seconds), reaching(Interval(41.2, 35.0, unknown), seconds)
        ('41.2 (35.0–49.1)', '41.2 (35.0 or more)')
        >>> reaching(Interval.unresolved(low=120.0), seconds), reaching(Interval.unresolved(), seconds)
        ('> 120', 'out of reach')
    """
    text = unit.of
    value, low, high = interval.value, interval.low, interval.high
    low = low if f.known(low) and low > 0 else None
    high = high if f.known(high) else None
    if value is None:
        return f"> {text(low)}" if low is not None else f"< {text(high)}" if high is not None else "out of reach"
    if low is None and high is None:
        return text(value)
    if low is None or high is None:
        return f"{text(value)} ({f'{text(high)} or less' if low is None else f'{text(low)} or more'})"
    return f"{text(value)} ({text(low)}–{text(high)})"


def spoken_seconds(interval: Interval) -> str:
    """A time with its interval in a sentence.

    Examples:
        >>> spoken_seconds(Interval(41.2, 35.0, 49.1)), spoken_seconds(Interval.unresolved(low=600.0))
        ('41.2 s (35–49.1)', 'more than 10 min')
    """
    unit = f.time_unit([known_of(interval)])
    return _spoken(interval, lambda value: f.number(value / unit.size, 3), f" {unit.name}")


def spoken_count(interval: Interval) -> str:
    """Examples with their interval in a sentence."""
    return _spoken(interval, lambda value: f.number(value, 3), " examples")


def spoken_score(interval: Interval) -> str:
    """A score with its interval."""
    return f.estimate(interval, f.places_for([interval]))


def held(record: Advice, result: TrainResult) -> str:
    """What the advice had predicted of a training run, and what came of it.

    Args:
        record: The advice.
        result: A run of its plan.

    Returns:
        A sentence.
    """
    goal = record.goal
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


def in_tokens(record: Advice, examples: int | None) -> str:
    """So many examples in tokens; nothing where the workload does not say what an example has of them."""
    tokens = record.workload.tokens_per_example
    return "" if tokens is None or examples is None else f"{f.count(round(examples * tokens))} tokens"


def known_of(interval: Interval) -> float | None:
    """What there is to choose a unit by: the value, or the bound that stands in its place."""
    ends = (interval.value, interval.low, interval.high)
    return next((end for end in ends if f.known(end) and end > 0), None)


def listed(words: Sequence[str], last: str = "and") -> str:
    """Words in a row, the last one after a word of its own.

    Examples:
        >>> listed(["8", "16", "64"], "or")
        '8, 16 or 64'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def shortened(text: str) -> str:
    """A text of strangers, on one line and not longer than a table bears."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON - 1]}…"


def _count_unit(values: Iterable[float | None]) -> f.Unit:
    """Ones, thousands or millions: so that an interval of counts fits a column."""
    most = max((value for value in values if f.known(value)), default=0.0)
    size, name = next((both for both in ((1e6, "millions"), (1e3, "thousands")) if most >= 10 * both[0]), (1.0, ""))
    return f.Unit(name, size)


def _scored(score: Interval) -> str:
    return f"a score of {spoken_score(score)}"


def _spoken(interval: Interval, text: Callable[[float], str], unit: str) -> str:
    value, low, high = interval.value, interval.low, interval.high
    low = low if f.known(low) and low > 0 else None
    high = high if f.known(high) else None
    if value is None:
        if low is None and high is None:
            return "out of reach"
        return f"more than {text(low)}{unit}" if low is not None else f"less than {text(high or 0.0)}{unit}"
    ends = ""
    if low is not None and high is not None:
        ends = f" ({text(low)}–{text(high)})"
    elif low is not None or high is not None:
        ends = f" ({f'{text(high or 0.0)} or less' if low is None else f'{text(low)} or more'})"
    return f"{text(value)}{unit}{ends}"


def _levels(record: Advice) -> str:
    """The level of the frontier's intervals, where all have the same one."""
    found = {row.seconds.level if record.goal.kind == "target" else row.score.level for row in record.frontier}
    return f", {found.pop():.0%}" if len(found) == 1 else ""

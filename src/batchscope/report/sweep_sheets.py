"""What a sweep says in words, rows and columns."""

from __future__ import annotations

from collections import Counter

from batchscope.records import RateLaw, Sweep, SweepTrial, TimeToTarget
from batchscope.report import formatting as f
from batchscope.report.sheets import Column, Line, Sheet, workload_facts
from batchscope.report.tradeoff_sheets import needs

Facts = tuple[tuple[str, str], ...]

EDGES = {"lowest": "lowest tried", "highest": "highest tried"}
MOST_REASONS = 3
_LONGEST_REASON = 160


def best(record: Sweep) -> Sheet:
    """The best learning rate of each batch size, and what it needs."""
    target = record.target is not None
    timed = target and any(line.update_seconds is not None for line in record.best)
    unit = f.time_unit(line.seconds_to_target.value for line in record.best)
    update = f.time_unit(line.update_seconds for line in record.best)
    places = f.places_for([line.score for line in record.best])
    edged = any(line.edge for line in record.best)
    columns = [
        Column("batch", "size", align="left"),
        Column("best rate"),
        *((Column("which is", "the", align="left"),) if edged else ()),
        *((Column("examples", "to the target, 95%"), Column("updates")) if target else ()),
        *((Column("update", update.name, minor=True), Column("time", unit.name)) if timed else ()),
        Column("best score", "95%", minor=target),
        Column("runs", "reached" if target else ""),
        Column("trials", "pruned", minor=True),
        Column("spent", "examples", minor=True),
    ]
    lines = []
    for line in record.best:
        reached = f"{line.reached} of {line.runs}" if target else f.count(line.runs)
        cells = [
            f.count(line.batch_size),
            "none" if line.learning_rate is None else f.number(line.learning_rate, 3),
            *((EDGES[line.edge] if line.edge else "",) if edged else ()),
            *((needs(line.examples_to_target), f.number(line.updates_to_target.value, 3)) if target else ()),
            *((update.of(line.update_seconds), unit.of(line.seconds_to_target.value)) if timed else ()),
            f.estimate(line.score, places),
            reached,
            f"{line.trials} ({line.pruned})" if line.pruned else f.count(line.trials),
            f.number(line.examples_spent, 3),
        ]
        lines.append(Line(tuple(cells)))
    note = "Geometric means over the runs at the best rate." if target else "Means over the runs at the best rate."
    if timed:
        note += " Time: updates to the target times that of an update alone."
    return Sheet("The best of each batch size", tuple(columns), tuple(lines), note)


def rates(law: RateLaw) -> Sheet:
    """The best rate of each batch size, beside the rate's law."""
    columns = (
        Column("batch", "size", align="left"),
        Column("best rate"),
        Column("bracket", "worse beyond"),
        Column("law"),
        Column("residual", "relative", minor=True),
    )
    lines = tuple(
        Line(
            (
                f.count(p.batch_size),
                f.number(p.learning_rate, 3) + (f", {EDGES[p.edge]}" if p.edge else ""),
                f"{f.number(p.low, 3)} to {f.number(p.high, 3)}",
                f.number(p.predicted, 3),
                f.off(p.learning_rate, p.predicted),
            )
        )
        for p in law.points
    )
    return Sheet(
        "The best learning rate", columns, lines, "Between the rates tried where the valley around it says so."
    )


def rate_facts(law: RateLaw) -> Facts:
    """The rate's law in numbers."""
    forms = {"power": "ε = c·B^α", "saturating": "ε = ε_max/(1 + B_half/B)"}
    error = law.leave_one_out_error
    return (
        ("form", forms[law.form]),
        ("exponent α", f.sized(law.exponent)),
        ("largest rate, ε_max", f.sized(law.largest_rate)),
        ("half of it at", f.sized(law.half_batch_size)),
        ("error at sizes left out", f.UNKNOWN if error is None else f"{f.number(100 * error, 2)}%"),
    )


def times(time: TimeToTarget) -> Sheet:
    """Seconds and examples to the target by the law and the time of an update."""
    unit = f.time_unit(point.seconds.value for point in time.points)
    update = f.time_unit(point.update_seconds.value for point in time.points)
    columns = (
        Column("batch", "size", align="left"),
        Column("update", update.name),
        Column("examples", "by the law"),
        Column("time", f"{unit.name}, 95%"),
        Column("beaten", "in both"),
    )
    lines = tuple(
        Line(
            (
                f.count(point.batch_size),
                update.of(point.update_seconds.value),
                needs(point.examples),
                f.within(point.seconds, unit),
                "no" if point.on_front else "yes",
            )
        )
        for point in time.points
    )
    note = "Beaten in both: another batch size needs fewer examples and less time."
    return Sheet("Time to the target", columns, lines, note)


def time_facts(time: TimeToTarget) -> Facts:
    """Where the time is least."""
    reach = time.within_ten_per_cent
    least = time.best_seconds
    return (
        ("fastest batch size", f.sized(time.best_batch_size)),
        ("its time", f.UNKNOWN if least.value is None else _spoken(least.value, least.low, least.high)),
        ("within a tenth of it", f.UNKNOWN if reach is None else f"{f.count(reach[0])} to {f.count(reach[1])}"),
    )


def trials(record: Sweep) -> Sheet:
    """Every trial in a line."""
    target = record.target is not None
    alone = f.time_unit(trial.step_seconds for trial in record.trials)
    shared = f.time_unit(trial.sweep_seconds for trial in record.trials)
    columns = (
        Column("batch", "size", align="left"),
        Column("rate"),
        Column("seed"),
        Column("outcome", align="left"),
        Column("examples", "to the target" if target else ""),
        Column("best score"),
        Column("time alone", alone.name),
        Column("in the sweep", shared.name),
        Column("together", "with"),
    )

    def examples(trial: SweepTrial) -> str:
        if not target or trial.examples_to_target is not None:
            return f.count(trial.examples_to_target if target else trial.examples)
        return f"> {f.count(trial.examples)}"

    lines = tuple(
        Line(
            (
                f.count(trial.batch_size),
                f.number(trial.learning_rate, 3),
                str(trial.seed),
                trial.outcome,
                examples(trial),
                f.fixed(trial.best_score, 4) if trial.best_score is not None else f.UNKNOWN,
                alone.of(trial.step_seconds),
                shared.of(trial.sweep_seconds),
                f.count(trial.stack_size - 1) if trial.stack_size else f.UNKNOWN,
            )
        )
        for trial in record.trials
    )
    return Sheet("Trials", columns, lines, "Time alone: its updates times the time of one, measured by itself.")


def settings(record: Sweep) -> Facts:
    """What was trained and how, as names and values."""
    searched = "searched" if record.searched else "given"
    engine = f"{record.engine}, {record.processes} process{'' if record.processes == 1 else 'es'}"
    trained = Counter(line.trained_as.partition(":")[0] for line in record.best if line.trained_as)
    return (
        *workload_facts(record.workload),
        ("target", "none: scores at the budget" if record.target is None else f.number(record.target)),
        ("budget of a trial", f"{f.count(record.budget_examples)} examples"),
        ("learning rates", searched + (", hopeless trials stopped" if record.pruning else ", every trial to its end")),
        ("rate over the run", f.shape(record.shape)),
        ("order of the data", record.order),
        ("seeds", ", ".join(map(str, record.seeds))),
        ("evaluated every", f"{f.count(record.evaluate_every_examples)} examples"),
        ("engine", engine),
        ("trained as", ", ".join(f"{way} at {number} sizes" for way, number in trained.items()) or f.UNKNOWN),
        ("trials", outcomes(record)),
        ("examples, all trials", f.count(record.examples_spent)),
        ("whole sweep", f.seconds(record.total_seconds)),
    )


def outcomes(record: Sweep) -> str:
    """How many trials ended how, the most frequent first."""
    counted = Counter(trial.outcome for trial in record.trials)
    return ", ".join(f"{f.count(number)} {outcome}" for outcome, number in counted.most_common()) or "none"


def warnings(record: Sweep) -> tuple[str, ...]:
    """What a reader must know before trusting the numbers, most serious first.

    Rates at an end of what was tried are not among it: the conclusion says so, and the table marks them.
    """
    found = []
    if record.error is not None:
        found.append(f"Stopped by an error; what follows is what was finished until then. {record.error}")
    elif record.interrupted:
        found.append("Interrupted before the sweep was done: what follows is what was finished until then.")
    if sizes := [f.count(line.batch_size) for line in record.best if line.learning_rate is None]:
        found.append(f"Batch size {', '.join(sizes)}: no trial ended with a result.")
    reasons = Counter(
        f"{trial.outcome}{': ' + trial.message[:_LONGEST_REASON] if trial.message else ''}"
        for trial in record.trials
        if trial.outcome in ("out of memory", "crashed", "timed out")
    )
    for reason, number in reasons.most_common(MOST_REASONS):
        found.append(f"{f.count(number)} trial{'' if number == 1 else 's'} without a result, {reason}")
    if len(record.seeds) == 1:
        found.append("One seed: the spread between runs is not known, and no interval over seeds can be given.")
    return (*found, *record.warnings)


def _spoken(value: float, low: float | None, high: float | None) -> str:
    if not (f.known(low) and f.known(high)):
        return f.seconds(value)
    unit = f.time_unit([value])
    return f"{unit.text(value)} ({unit.of(low)} to {unit.of(high)})"

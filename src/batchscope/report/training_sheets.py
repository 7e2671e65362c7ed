"""What a training run says in words, rows and columns."""

from __future__ import annotations

import math

from batchscope.fit.contention import busy_warning
from batchscope.records import CurvePoint, TrainResult
from batchscope.report import formatting as f
from batchscope.report.sheets import Column, Line, Sheet


def answer(run: TrainResult) -> str:
    """How the run ended and what it reached, in a sentence."""
    spent = f"{f.count(run.examples)} examples, {f.count(run.iterations)} updates and {f.seconds(run.step_seconds)}"
    score = run.best_score if run.final_score is None else run.final_score
    reached = "" if score is None else f", at a score of {f.number(score)}"
    if run.outcome == "reached":
        goal = "" if run.plan.target is None else f" {f.number(run.plan.target)}"
        return f"Reached the target{goal} after {spent}{reached}."
    if run.outcome == "finished":
        missed = run.plan.target is not None and not run.reached
        return f"Finished its budget{', short of the target,' if missed else ''} after {spent}{reached}."
    if run.outcome == "stopped early":
        return f"Stopped early, since the score no longer rose, after {spent}{reached}."
    best = "" if run.best_score is None else f" Its best score until then was {f.number(run.best_score)}."
    if run.outcome == "diverged":
        where = run.iterations if run.diverged_at_iteration is None else run.diverged_at_iteration
        return f"Diverged at update {f.count(where)}, after {spent}.{best} A lower learning rate may hold."
    if run.outcome == "out of memory":
        return f"Ran out of memory after {spent}.{best} A smaller micro-batch may fit."
    return f"Interrupted after {spent}.{best}"


def warnings(run: TrainResult) -> tuple[str, ...]:
    """What a reader must know before trusting the numbers."""
    broke = f"{run.outcome.capitalize()}: {run.message or 'the run did not end in order'}."
    busy = busy_warning(run.contention, "training")
    return (() if run.ended_in_order else (broke,)) + (() if busy is None else (busy,))


def results(run: TrainResult) -> tuple[tuple[str, str], ...]:
    """What the run reached, as names and values."""
    facts = [
        ("final score", f.number(run.final_score)),
        ("best score", _at(f.number(run.best_score), run.best_examples)),
        ("final loss", f.number(run.final_loss)),
        ("best loss", f.number(run.best_loss)),
        ("training score", f.number(run.training_score)),
        ("training loss", f.number(run.training_loss)),
        ("generalisation gap", f.number(run.generalisation_gap, 3)),
        ("examples", f.count(run.examples)),
        ("updates", f.count(run.iterations)),
        ("examples per second", f.number(run.examples / run.step_seconds, 3) if run.step_seconds > 0 else f.UNKNOWN),
        ("peak memory", f.memory(run.peak_memory_bytes)),
    ]
    planned = run.plan.micro_batch_size or run.plan.batch_size
    if run.micro_batch_size is not None and run.micro_batch_size < planned:
        cut = f"{f.count(run.micro_batch_size)} (of {f.count(planned)}, since memory ran out)"
        facts.append(("examples at once", cut))
    if run.skipped_updates:
        facts.append(("skipped updates", f"{f.count(run.skipped_updates)}, since scaled gradients overflowed"))
    facts += [("note", note) for note in run.notes]
    return (("outcome", run.outcome + (f" ({run.message})" if run.message else "")), *facts)


def plan(run: TrainResult) -> tuple[tuple[str, str], ...]:
    """What was asked for, as names and values; what was left out is left out."""
    asked = run.plan
    facts: list[tuple[str, str | None]] = [
        ("workload", run.workload),
        ("batch size", f.count(asked.batch_size)),
        ("learning rate", f.number(asked.learning_rate, 3)),
        ("updates", None if asked.iterations is None else f.count(asked.iterations)),
        ("examples", None if asked.examples is None else f.count(asked.examples)),
        ("target score", None if asked.target is None else f.number(asked.target)),
        ("rate over the run", f.shape(asked.shape)),
        ("warm-up", f"{f.count(asked.warmup_examples)} examples" if asked.warmup_examples else None),
        ("order of the data", asked.order),
        ("micro-batch size", None if asked.micro_batch_size is None else f.count(asked.micro_batch_size)),
        ("patience", None if asked.patience is None else f"{asked.patience} evaluations"),
        ("tolerance", f.number(asked.tolerance) if asked.tolerance else None),
        ("rescaled from", None if asked.rescaled_from is None else f"batch size {f.count(asked.rescaled_from)}"),
        ("seed", str(run.seed)),
    ]
    return tuple((name, value) for name, value in facts if value is not None)


def cost_parts(run: TrainResult) -> tuple[tuple[str, float], ...]:
    """Where the time went: names and seconds that add up to the whole."""
    known = run.data_seconds + run.compute_seconds + run.evaluation_seconds + (run.compile_seconds or 0.0)
    return (
        ("forward, backward, update", run.compute_seconds),
        ("gathering batches", run.data_seconds),
        ("evaluation", run.evaluation_seconds),
        *((("compiling", run.compile_seconds),) if run.compile_seconds else ()),
        ("set-up and the rest", max(run.total_seconds - known, 0.0)),
    )


def costs(run: TrainResult) -> Sheet:
    """Where the time went, with shares."""
    unit = f.time_unit([run.total_seconds])
    parts = (*cost_parts(run), ("altogether", run.total_seconds))
    lines = tuple(Line((name, unit.of(spent), f.share(spent, run.total_seconds))) for name, spent in parts)
    return Sheet(
        "Where the time went", (Column("part", align="left"), Column("time", unit.name), Column("share")), lines
    )


def curve(run: TrainResult, last: int | None = None) -> Sheet:
    """The evaluations.

    Args:
        run: The training run.
        last: How many of the last ones to give; None: all.

    Returns:
        A line per evaluation.
    """
    points = run.curve if last is None else run.curve[-last:]
    unit = f.time_unit([point.seconds for point in points])
    columns = (
        Column("examples"),
        Column("updates"),
        Column("time", unit.name),
        Column("score"),
        Column("loss", "validation"),
        Column("loss", "training"),
        Column("learning", "rate"),
    )
    title = (
        "Evaluations" if len(points) == len(run.curve) else f"The last {len(points)} of {len(run.curve)} evaluations"
    )
    return Sheet(title, columns, tuple(Line(_point(point, unit)) for point in points))


def _point(point: CurvePoint, unit: f.Unit) -> tuple[str, ...]:
    return (
        f.count(point.examples),
        f.count(point.iterations),
        unit.of(point.seconds),
        f.fixed(point.score, 4),
        _loss(point.validation_loss),
        _loss(point.training_loss),
        f.number(point.learning_rate, 3),
    )


def _loss(value: float | None) -> str:
    if value is None or not math.isfinite(value) or not 1e-3 <= abs(value) < 1e4:
        return f.number(value)
    return f.fixed(value, 4)


def _at(text: str, examples: int | None) -> str:
    return text if examples is None else f"{text}, first after {f.count(examples)} examples"

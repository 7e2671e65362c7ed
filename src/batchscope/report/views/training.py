"""What is shown of a training run."""

from __future__ import annotations

import functools
import math

from batchscope.fit.contention import busy_warning
from batchscope.records import CurvePoint, TrainResult
from batchscope.report import formatting as f
from batchscope.report.charts.axes import Spec
from batchscope.report.charts.bars import bars
from batchscope.report.charts.learning_curves import LearningCurves
from batchscope.report.view import Column, Facts, Figure, Section, Table, View, facts, measured, table

LAST_POINTS = 5
"""Evaluations that a terminal shows."""


def view(run: TrainResult) -> View:
    """A training run, from how it ended to what it cost."""
    size, rate = f.count(run.plan.batch_size), f.number(run.plan.learning_rate, 3)
    broke = f"{run.outcome.capitalize()}: {run.message or 'the run did not end in order'}."
    busy = busy_warning(run.contention, "training")
    found = LearningCurves([(f"seed {run.seed}", (run,))])
    every = curve(run)
    last = curve(run, LAST_POINTS)
    return View(
        name=run.workload,
        title=f"Training with batch size {size} at a learning rate of {rate}",
        answer=answer(run),
        failed=not run.ended_in_order,
        summary=(
            ("best score", f.number(run.best_score)),
            ("examples", f.count(run.examples)),
            ("updates", f.count(run.iterations)),
            ("training time", f.seconds(run.step_seconds)),
            ("on", run.provenance.device),
        ),
        warnings=(() if run.ended_in_order else (broke,)) + (() if busy is None else (busy,)),
        sections=(
            Section(
                "Learning curve",
                figures=(Figure("learning_curves", "Learning curve", found.chart, curves=found, alone=True),),
            ),
            Section("What it reached", facts=(("Result", results(run)), ("Plan", plan(run))), on="both"),
            Section(
                "What it cost",
                "Training time is gathering batches plus forward, backward and update, without evaluation.",
                figures=(Figure("cost_split", "Where the time went", functools.partial(cost_split, run)),),
                tables=(costs(run),),
                folded=every if run.curve else None,
                on="both",
            ),
            Section("", tables=(last,) if run.curve else (), on="terminal"),
            measured(run.provenance, title="Where it was measured"),
        ),
        rows=(f"seed {run.seed}",),
        origin=run.provenance,
    )


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


def results(run: TrainResult) -> Facts:
    """What the run reached."""
    best = f.number(run.best_score)
    planned = run.plan.micro_batch_size or run.plan.batch_size
    speed = f.number(run.examples / run.step_seconds, 3) if run.step_seconds > 0 else f.UNKNOWN
    cut = run.micro_batch_size is not None and run.micro_batch_size < planned
    at_once = f"{f.count(run.micro_batch_size)} (of {f.count(planned)}, since memory ran out)"
    skipped = f"{f.count(run.skipped_updates)}, since scaled gradients overflowed"
    return facts(
        ("outcome", run.outcome + (f" ({run.message})" if run.message else "")),
        ("final score", f.number(run.final_score)),
        (
            "best score",
            best + ("" if run.best_examples is None else f", first after {f.count(run.best_examples)} examples"),
        ),
        ("final loss", f.number(run.final_loss)),
        ("best loss", f.number(run.best_loss)),
        ("training score", f.number(run.training_score)),
        ("training loss", f.number(run.training_loss)),
        ("generalisation gap", f.number(run.generalisation_gap, 3)),
        ("examples", f.count(run.examples)),
        ("updates", f.count(run.iterations)),
        ("examples per second", speed),
        ("peak memory", f.memory(run.peak_memory_bytes)),
        ("examples at once", at_once) if cut else None,
        ("skipped updates", skipped) if run.skipped_updates else None,
        *(("note", note) for note in run.notes),
    )


def plan(run: TrainResult) -> Facts:
    """What was asked for; what was left out is left out."""
    asked = run.plan
    return facts(
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
    )


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


def cost_split(run: TrainResult) -> Spec | None:
    """A bar per part of the time that a run took."""
    unit = f.time_unit([run.total_seconds])
    parts = [
        (name, spent / unit.size, f"{unit.of(spent)} {unit.name}, {f.share(spent, run.total_seconds)}")
        for name, spent in cost_parts(run)
        if f.known(spent)
    ]
    return bars(parts, f"time, {unit.name}")


def costs(run: TrainResult) -> Table:
    """Where the time went, with shares."""
    unit = f.time_unit([run.total_seconds])
    columns: tuple[Column[tuple[str, float]], ...] = (
        Column("part", lambda part: part[0], align="left"),
        Column("time", lambda part: unit.of(part[1]), unit.name),
        Column("share", lambda part: f.share(part[1], run.total_seconds)),
    )
    return table("Where the time went", (*cost_parts(run), ("altogether", run.total_seconds)), columns)


def curve(run: TrainResult, last: int | None = None) -> Table:
    """The evaluations: all of them, or so many of the last ones."""
    points = run.curve if last is None else run.curve[-last:]
    unit = f.time_unit([point.seconds for point in points])
    columns: tuple[Column[CurvePoint], ...] = (
        Column("examples", lambda point: f.count(point.examples)),
        Column("updates", lambda point: f.count(point.iterations)),
        Column("time", lambda point: unit.of(point.seconds), unit.name),
        Column("score", lambda point: f.fixed(point.score, 4)),
        Column("loss", lambda point: _loss(point.validation_loss), "validation"),
        Column("loss", lambda point: _loss(point.training_loss), "training"),
        Column("learning", lambda point: f.number(point.learning_rate, 3), "rate"),
    )
    whole = len(points) == len(run.curve)
    title = "Evaluations" if whole else f"The last {len(points)} of {len(run.curve)} evaluations"
    return table(title, points, columns)


def _loss(value: float | None) -> str:
    if value is None or not math.isfinite(value) or not 1e-3 <= abs(value) < 1e4:
        return f.number(value)
    return f.fixed(value, 4)

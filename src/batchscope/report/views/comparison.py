"""What is shown of a comparison: what each row reaches and costs, charts, pairs of rows, the learning-rate search."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from batchscope.fit.contention import busy_warning
from batchscope.records import Comparison, ComparisonRow, Difference, Interval, RateSearch
from batchscope.report import formatting as f
from batchscope.report.charts.axes import Spec
from batchscope.report.charts.learning_curves import LearningCurves
from batchscope.report.view import Column, Facts, Figure, Section, Table, View, measured, table, workload_facts
from batchscope.report.views import comparison_charts as charts
from batchscope.report.views.comparison_charts import row_label, row_labels

MOST_PAIRS = 12
"""Pairs that a reader takes in at once; with more, those of the best row come first."""


def view(record: Comparison) -> View:
    """A comparison, from its answer to its settings."""

    def figure(name: str, title: str, draw: Callable[[Comparison], Spec | None], **more: Any) -> Figure:
        return Figure(name, title, functools.partial(draw, record), **more)

    every, some = differences(record), differences(record, most=MOST_PAIRS)
    labels = row_labels(record)
    found = LearningCurves(
        [(label, record.runs_of(row)) for label, row in zip(labels, record.rows, strict=True)],
        f"{record.workload.score[:40]} on validation data",
    )
    cost = search_cost(record)
    wedge = " A wedge on the axis marks the chosen rate, a cross a trial that diverged or lies far above the rest."
    handling = {"search": "searched per batch size", "rescaled": "rescaled", "fixed": "the same for all"}
    return View(
        name=record.workload.name,
        title=_question(record),
        answer=record.conclusion,
        summary=(
            ("rows", f.count(len(record.rows))),
            ("examples a run", f.count(record.rows[0].examples) if record.rows else f.UNKNOWN),
            ("seeds", f.count(len(record.seeds))),
            ("learning rates", handling[record.learning_rate]),
            ("took altogether", f.seconds(record.total_seconds)),
            ("on", record.provenance.device),
        ),
        warnings=warnings(record),
        sections=(
            Section("What each row reaches and costs", tables=(reached(record), costs(record)), on="both"),
            Section(
                "Final scores",
                "Faint dots are single seeds; a bar is the 95% interval of their mean. In the chart of score against "
                "time, further up and to the left is more in less time.",
                figures=(
                    figure("final_scores", "Final score", charts.final_scores),
                    figure("trade_off", "Score against time", charts.trade_off),
                ),
            ),
            Section(
                "Learning curves",
                "Bold: the mean of the runs that ended in order. Thin: every seed. Dashed: a run that broke off, with "
                "a cross where it did.",
                figures=(
                    Figure("learning_curves", "Learning curves", found.chart, legend=True, curves=found, alone=True),
                ),
            ),
            Section(
                "Time and memory",
                "Medians over the seeds with the fastest and the slowest run; memory at its peak.",
                figures=(
                    figure("time", "Time of a run", charts.time),
                    figure("throughput", "Examples per second", charts.throughput),
                    figure("memory", "Peak memory", charts.memory),
                ),
            ),
            Section(
                "Which rows differ",
                tables=(some,) if record.differences else (),
                folded=every if len(some.lines) < len(every.lines) else None,
                on="both",
            ),
            Section("", cost, on="terminal"),
            Section(
                "Learning rates",
                cost + (wedge if record.searches else ""),
                figures=(
                    figure("rate_search", "Loss against learning rate", charts.rate_search, legend=True, alone=True),
                ),
                tables=(searches(record),) if record.searches else (),
                always=True,
            ),
            measured(record.provenance, ("Settings", settings(record))),
        ),
        rows=labels,
        origin=record.provenance,
    )


_Row = tuple[str, ComparisonRow]


def _rows(record: Comparison) -> list[_Row]:
    return list(zip(row_labels(record), record.rows, strict=True))


def reached(record: Comparison) -> Table:
    """What each row reaches: scores, losses, and how many of its runs count."""
    rows, many = record.rows, len(record.seeds)
    scores, losses = f.places_for([r.score for r in rows]), f.places_for([r.loss for r in rows])
    training, gaps = f.places_for([r.training_loss for r in rows]), f.places_for([r.generalisation_gap for r in rows])
    every_run = all(row.finished == many for row in rows)
    columns: tuple[Column[_Row] | None, ...] = (
        Column("batch ×", lambda row: row[0], "updates", "left"),
        Column(_score_name(record), lambda row: f.estimate(row[1].score, scores), "at the end, 95%"),
        Column("best", lambda row: f.fixed(row[1].best_score.value, scores), "score"),
        Column("final", lambda row: f.fixed(row[1].loss.value, losses), "loss"),
        Column("best", lambda row: f.fixed(row[1].best_loss.value, losses), "loss", minor=True),
        Column("training", lambda row: f.fixed(row[1].training_loss.value, training), "loss", minor=True),
        Column("gap", lambda row: f.fixed(row[1].generalisation_gap.value, min(gaps, 4), sign=True), "train−val."),
        None if every_run else Column("runs", lambda row: f"{row[1].finished} of {many}"),
    )
    note = f"Means over {many} seeds." if every_run else "Means over the seeds whose run finished."
    if many == 1:
        note = "One seed: the spread between runs is not known."
    return table("What it reaches", _rows(record), columns, note, range(len(rows)))


def costs(record: Comparison) -> Table:
    """What each row costs: time, memory, and what it takes to the score that all reach."""
    rows, common = record.rows, record.common_score
    time = f.time_unit(row.step_seconds for row in rows)
    space = f.memory_unit(row.peak_memory_bytes for row in rows)
    towards = f.time_unit(row.seconds_to_common_score for row in rows)

    def rate(row: _Row) -> str:
        search = record.search_of(row[1])
        mark = "" if search is None else "*" if search.at_edge else "°" if search.interpolated else ""
        return f.number(row[1].learning_rate, 3) + mark

    def spread(row: _Row) -> str:
        middle, low, high = row[1].step_seconds, row[1].step_seconds_low, row[1].step_seconds_high
        if low is None or high is None or row[1].finished < 2:
            return time.of(middle)
        return f"{time.of(middle)} ({time.of(low)}–{time.of(high)})"

    columns: tuple[Column[_Row] | None, ...] = (
        Column("batch ×", lambda row: row[0], "updates", "left"),
        Column("rate", rate),
        Column("time", spread, f"{time.name}, low–high"),
        Column("examples", lambda row: f.number(row[1].examples_per_second, 3), "per s"),
        Column("memory", lambda row: space.of(row[1].peak_memory_bytes), space.name),
        None
        if common is None
        else Column(f"to {f.number(common)}", lambda row: towards.of(row[1].seconds_to_common_score), towards.name),
        None
        if common is None
        else Column("examples", lambda row: f.count(row[1].examples_to_common_score), "to it", minor=True),
    )
    found = [search for row in rows if (search := record.search_of(row)) is not None]
    note = "Time: updates and data, median of the runs, without evaluation. Memory: at its peak."
    if common is not None:
        note += f" {f.number(common)} is the highest score that every finished run reached."
    if any(search.at_edge for search in found):
        note += " * The best rate lies at an end of those tried: a better one may lie beyond."
    if any(search.interpolated for search in found):
        note += " ° Interpolated between the rates that the search trained."
    return table("What it costs", _rows(record), columns, note, range(len(rows)))


def differences(record: Comparison, *, most: int | None = None) -> Table:
    """Pairs of rows, compared seed by seed.

    Args:
        record: The comparison.
        most: Where there are more pairs than this, only those with the best row are given; None: all.
    """
    pairs: tuple[Difference, ...] = record.differences
    note = (
        "Mean over the seeds that both finished; p by paired t test, adjusted for the number of pairs (Holm). "
        "“no”: these seeds do not distinguish the two."
    )
    if most is not None and len(pairs) > most:
        best = _best_row(record)
        pairs = tuple(pair for pair in pairs if best in (pair.first, pair.second))
        note += f" The {len(pairs)} pairs with {row_labels(record)[best]}, out of {len(record.differences)}."
    scores = f.places_for([pair.score for pair in pairs])
    sizes = tuple(f.count(row.batch_size) for row in record.rows)
    labels = sizes if len(set(sizes)) == len(sizes) else row_labels(record)
    columns: tuple[Column[Difference], ...] = (
        Column("pair", lambda pair: f"{labels[pair.first]} − {labels[pair.second]}", "first − second", "left"),
        Column(_score_name(record), lambda pair: f.estimate(pair.score, scores, sign=True), "difference, 95%"),
        Column("p", lambda pair: f.probability(pair.score_p_value), minor=True),
        Column(
            "score",
            lambda pair: _verdict(pair.score, 0.0, pair.score_told_apart, "higher", "lower"),
            "differs?",
            "left",
        ),
        Column("time", lambda pair: _ratio(pair.seconds_ratio), "ratio, 95%"),
        Column(
            "time",
            lambda pair: _verdict(pair.seconds_ratio, 1.0, pair.seconds_told_apart, "slower", "faster"),
            "differs?",
            "left",
        ),
    )
    return table("Pairs, seed by seed", pairs, columns, note)


def searches(record: Comparison) -> Table:
    """The learning-rate search of each row."""

    def row_of(search: RateSearch) -> int | None:
        return next((i for i, row in enumerate(record.rows) if record.search_of(row) is search), None)

    def name(search: RateSearch) -> str:
        row = row_of(search)
        return f.count(search.batch_size) if row is None else row_label(record.rows[row])

    def tried(search: RateSearch) -> list[float]:
        return sorted({trial.learning_rate for trial in search.trials}) or [float("nan")]

    def remarks(search: RateSearch) -> str:
        lost = sum(trial.outcome == "diverged" for trial in search.trials)
        short = sum(trial.examples is not None and trial.examples < search.horizon_examples for trial in search.trials)
        found = [
            "best at the edge" if search.at_edge else "",
            "interpolated" if search.interpolated else "",
            f"{short} short runs first" if short else "",
            f"{lost} diverged" if lost else "",
        ]
        return ", ".join(filter(None, found))

    columns: tuple[Column[RateSearch], ...] = (
        Column("batch ×", name, "updates", "left"),
        Column("chosen", lambda search: f.number(search.learning_rate, 3), "rate"),
        Column("rates", lambda search: f.count(len({trial.learning_rate for trial in search.trials})), "tried"),
        Column(
            "range",
            lambda search: (
                f"{f.number(tried(search)[0], 3)}–{f.number(tried(search)[-1], 3)}" if search.trials else f.UNKNOWN
            ),
            "lowest–highest",
            minor=True,
        ),
        Column("runs", lambda search: f.count(len(search.trials))),
        Column("judged after", lambda search: f.count(search.horizon_examples), "examples"),
        Column("examples", lambda search: f.count(search.examples), "in all"),
        Column("time", lambda search: f.seconds(search.seconds)),
        Column("remark", remarks, align="left"),
    )
    return table("Learning-rate search", record.searches, columns, rows=[row_of(search) for search in record.searches])


def search_cost(record: Comparison) -> str:
    """How the learning rates came about, and what finding them cost, in a sentence or two."""
    reference = record.workload
    if not record.searches and record.learning_rate == "rescaled":
        return (
            f"Learning rates rescaled by {reference.optimizer}'s rule from {f.number(reference.learning_rate, 3)} "
            f"at batch size {f.count(reference.batch_size)}; none was searched for."
        )
    if not record.searches:
        return "Every row uses the same learning rate; none was searched for."
    tried = sum(len(search.trials) for search in record.searches)
    spent, seen = sum(s.seconds for s in record.searches), sum(s.examples for s in record.searches)
    text = (
        f"Learning rates searched for each row: {f.count(tried)} runs, {f.seconds(spent)} "
        f"({f.share(spent, record.total_seconds)} of the whole comparison), {f.count(seen)} examples."
    )
    edges = f.listed([f.count(search.batch_size) for search in record.searches if search.at_edge])
    return text + (f" The best rate lies at an end of those tried for batch size {edges}." if edges else "")


def settings(record: Comparison) -> Facts:
    """What was trained and how."""
    return (
        *workload_facts(record.workload),
        ("learning rates", {"search": "searched", "rescaled": "rescaled", "fixed": "fixed"}[record.learning_rate]),
        ("rate over the run", f.shape(record.shape)),
        ("order of the data", record.order),
        ("seeds", ", ".join(map(str, record.seeds))),
        ("evaluated every", f"{f.count(record.evaluate_every_examples)} examples"),
        ("whole comparison", f.seconds(record.total_seconds)),
    )


def warnings(record: Comparison) -> tuple[str, ...]:
    """What a reader must know before trusting the numbers, most serious first."""
    found = []
    many = len(record.seeds)
    if record.error is not None:
        found.append(f"Stopped by an error; what follows is what was finished until then. {record.error}")
    elif record.interrupted:
        found.append("Interrupted before every run was done: what follows is what was finished until then.")
    for label, row in _rows(record):
        if row.finished < many:
            over = " Its numbers are over those that did." if row.finished else ""
            found.append(f"{label}: {_runs_text(row, many)}.{over}")
    if sizes := f.listed([f.count(search.batch_size) for search in record.searches if search.at_edge]):
        found.append(f"Batch size {sizes}: the best learning rate lies at an end of those tried.")
    if many == 1:
        found.append("One seed: the spread between runs is not known, so no two rows can be distinguished.")
    if (busy := busy_warning(record.contention, "training")) is not None:
        found.append(busy)
    return tuple(found)


def _runs_text(row: ComparisonRow, seeds: int) -> str:
    """How many runs of a row finished, and what became of the others."""
    missing = seeds - row.finished - row.diverged - row.failed
    others = [(row.diverged, "diverged"), (row.failed, "ran out of memory"), (missing, "not run")]
    fate = ", ".join(f"{n} {word}" for n, word in others if n > 0)
    finished = f"{row.finished} of {seeds} runs finished" if row.finished else "no run finished"
    return finished + (f" ({fate})" if fate else "")


def _best_row(record: Comparison) -> int:
    """Index of the row with the highest mean score; the first where none is known."""
    known = [(row.score.value, -i) for i, row in enumerate(record.rows) if row.score.value is not None]
    return -max(known)[1] if known else 0


def _verdict(interval: Interval, point: float, differs: bool, above: str, below: str) -> str:
    if interval.value is None:
        return f.UNKNOWN
    return "no" if not differs else above if interval.value > point else below


def _ratio(interval: Interval) -> str:
    """A ratio with its interval, three digits each."""
    if interval.value is None:
        return f.UNKNOWN
    text = f"{f.number(interval.value, 3, strip=False)}×"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} ({f.number(interval.low, 3, strip=False)}–{f.number(interval.high, 3, strip=False)})"


def _score_name(record: Comparison) -> str:
    name = record.workload.score
    return name if len(name) <= 18 and name.isprintable() else "score"


def _question(record: Comparison) -> str:
    rows = record.rows
    if not 2 <= len(rows) <= 4:
        budget = f" for {f.count(rows[0].examples)} examples" if rows else ""
        return f"Which of {len(rows)} batch sizes{budget}?" if len(rows) > 1 else f"One batch size{budget}"
    first, *others = rows
    # No-break spaces: a batch size and its updates stay on one line.
    parts = [f"{f.count(row.batch_size)}\u00a0for\u00a0{f.count(row.iterations)}" for row in others]
    opening = f"Batch size {f.count(first.batch_size)} for {f.count(first.iterations)} updates"
    return ", ".join([opening, *parts[:-1]]) + f"{',' if len(parts) > 1 else ''} or {parts[-1]}?"

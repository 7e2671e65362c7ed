"""What a record says in rows and columns, as plain text: the terminal and the page both draw these."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from batchscope.fit.contention import busy_warning
from batchscope.records import Comparison, ComparisonRow, Difference, Interval, Provenance, RateSearch, WorkloadSummary
from batchscope.report import formatting as f

MOST_PAIRS = 12
"""Pairs that a reader takes in at once; with more, those of the best row come first."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        heading: Its name.
        detail: Unit or qualification, in smaller print.
        align: Side that its cells keep to.
        minor: Whether it may go where there is no room.
        wraps: Whether its cells may take several lines, so that others keep theirs whole.
    """

    heading: str
    detail: str = ""
    align: Literal["left", "right"] = "right"
    minor: bool = False
    wraps: bool = False


@dataclass(frozen=True)
class Line:
    """One row of cells.

    Attributes:
        cells: One text per column.
        row: Index of the comparison row it stands for, which gives it a colour; None for none.
    """

    cells: tuple[str, ...]
    row: int | None = None


@dataclass(frozen=True)
class Sheet:
    """A table, not yet drawn.

    Attributes:
        title: What it shows.
        columns: Its columns.
        lines: Its rows.
        note: How to read it; may be empty.
    """

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    note: str = ""


def headline(text: str) -> tuple[str, str]:
    """The first sentence of a text, and the rest.

    Examples:
        >>> headline("Take 32, at 0.5 s. It is faster.")
        ('Take 32, at 0.5 s.', 'It is faster.')
    """
    first, *rest = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text.strip(), maxsplit=1)
    return first, "".join(rest)


def row_label(row: ComparisonRow) -> str:
    """A row by what defines it: batch size × iterations."""
    return f"{row.batch_size:,} × {row.iterations:,}"


def row_labels(record: Comparison) -> tuple[str, ...]:
    """A different label for every row, in their order."""
    labels = [row_label(row) for row in record.rows]
    return tuple(
        label if labels.count(label) == 1 else f"{label} ({labels[: i + 1].count(label)})"
        for i, label in enumerate(labels)
    )


def reached(record: Comparison) -> Sheet:
    """What each row reaches: scores, losses, and how many of its runs count."""
    rows = record.rows
    scores, losses = f.places_for([r.score for r in rows]), f.places_for([r.loss for r in rows])
    training, gaps = f.places_for([r.training_loss for r in rows]), f.places_for([r.generalisation_gap for r in rows])
    every_run = all(row.finished == len(record.seeds) for row in rows)
    columns = (
        Column("batch ×", "updates", align="left"),
        Column(_score_name(record), "at the end, 95%"),
        Column("best", "score"),
        Column("final", "loss"),
        Column("best", "loss", minor=True),
        Column("training", "loss", minor=True),
        Column("gap", "train−val."),
    ) + (() if every_run else (Column("runs"),))
    lines = []
    for i, (row, label) in enumerate(zip(rows, row_labels(record), strict=True)):
        cells = (
            label,
            f.estimate(row.score, scores),
            f.fixed(row.best_score.value, scores),
            f.fixed(row.loss.value, losses),
            f.fixed(row.best_loss.value, losses),
            f.fixed(row.training_loss.value, training),
            f.fixed(row.generalisation_gap.value, min(gaps, 4), sign=True),
        )
        lines.append(Line(cells if every_run else (*cells, f"{row.finished} of {len(record.seeds)}"), i))
    many = len(record.seeds)
    note = f"Means over {many} seeds." if every_run else "Means over the seeds whose run finished."
    if many == 1:
        note = "One seed: the spread between runs is not known."
    return Sheet("What it reaches", columns, tuple(lines), note)


def costs(record: Comparison) -> Sheet:
    """What each row costs: time, memory, and the way to the score that all reach."""
    rows = record.rows
    time = f.time_unit(row.step_seconds for row in rows)
    space = f.memory_unit(row.peak_memory_bytes for row in rows)
    found = [record.search_of(row) for row in rows]
    common = record.common_score
    columns: tuple[Column, ...] = (
        Column("batch ×", "updates", align="left"),
        Column("rate"),
        Column("time", f"{time.name}, low–high"),
        Column("examples", "per s"),
        Column("memory", space.name),
    )
    if common is not None:
        towards = f.time_unit(row.seconds_to_common_score for row in rows)
        columns += (Column(f"to {f.number(common)}", towards.name), Column("examples", "to it", minor=True))
    lines = []
    for i, (row, label) in enumerate(zip(rows, row_labels(record), strict=True)):
        cells: tuple[str, ...] = (
            label,
            f.number(row.learning_rate, 3) + _rate_mark(found[i]),
            _spread(row, time),
            f.number(row.examples_per_second, 3),
            space.of(row.peak_memory_bytes),
        )
        if common is not None:
            cells += (towards.of(row.seconds_to_common_score), f.count(row.examples_to_common_score))
        lines.append(Line(cells, i))
    note = "Time in steps and data, median of the runs; evaluation is off this clock. Memory at its peak."
    if common is not None:
        note += f" {f.number(common)} is the highest score that every finished run reached."
    if any(search is not None and search.at_edge for search in found):
        note += " * The best rate lies at an end of those tried: a better one may lie beyond."
    if any(search is not None and search.interpolated for search in found):
        note += " ° Interpolated between the rates that the search trained."
    return Sheet("What it costs", columns, tuple(lines), note)


def differences(record: Comparison, *, most: int | None = None) -> Sheet:
    """Pairs of rows, compared seed by seed.

    Args:
        record: The comparison.
        most: Where there are more pairs than this, only those with the best row are given; None: all.

    Returns:
        The sheet; without lines where no two rows were run.
    """
    pairs: tuple[Difference, ...] = record.differences
    note = (
        "Mean over the seeds that both finished; p by paired t test, adjusted for the number of pairs (Holm). "
        "“no”: these seeds do not tell the two apart."
    )
    if most is not None and len(pairs) > most:
        best = best_row(record)
        pairs = tuple(pair for pair in pairs if best in (pair.first, pair.second))
        note += f" The {len(pairs)} pairs with {row_labels(record)[best]}, out of {len(record.differences)}."
    scores = f.places_for([pair.score for pair in pairs])
    labels = _pair_labels(record)
    columns = (
        Column("pair", "first − second", align="left"),
        Column(_score_name(record), "difference, 95%"),
        Column("p", minor=True),
        Column("told", "apart?", align="left"),
        Column("time", "ratio, 95%"),
        Column("told", "apart?", align="left"),
    )
    lines = [
        Line(
            (
                f"{labels[pair.first]} − {labels[pair.second]}",
                f.estimate(pair.score, scores, sign=True),
                f.probability(pair.score_p_value),
                verdict(pair.score, 0.0, pair.score_told_apart, "higher", "lower"),
                ratio(pair.seconds_ratio),
                verdict(pair.seconds_ratio, 1.0, pair.seconds_told_apart, "slower", "faster"),
            )
        )
        for pair in pairs
    ]
    return Sheet("Pairs, seed by seed", columns, tuple(lines), note)


def searches(record: Comparison) -> Sheet:
    """The learning-rate search of each row."""
    columns = (
        Column("batch ×", "updates", align="left"),
        Column("chosen", "rate"),
        Column("rates", "tried"),
        Column("range", "lowest–highest", minor=True),
        Column("runs"),
        Column("judged after", "examples"),
        Column("examples", "in all"),
        Column("time"),
        Column("remark", align="left", wraps=True),
    )
    lines = []
    for search in record.searches:
        rates = sorted({trial.learning_rate for trial in search.trials})
        lost = sum(trial.outcome == "diverged" for trial in search.trials)
        short = sum(trial.examples is not None and trial.examples < search.horizon_examples for trial in search.trials)
        remarks = [
            *(["best at the edge"] if search.at_edge else []),
            *(["interpolated"] if search.interpolated else []),
            *([f"{short} short runs first"] if short else []),
            *([f"{lost} diverged"] if lost else []),
        ]
        row = next((i for i, row in enumerate(record.rows) if record.search_of(row) is search), None)
        cells = (
            f.count(search.batch_size) if row is None else row_label(record.rows[row]),
            f.number(search.learning_rate, 3),
            f.count(len(rates)),
            f"{f.number(rates[0], 3)}–{f.number(rates[-1], 3)}" if rates else f.UNKNOWN,
            f.count(len(search.trials)),
            f.count(search.horizon_examples),
            f.count(search.examples),
            f.seconds(search.seconds),
            ", ".join(remarks),
        )
        lines.append(Line(cells, row))
    return Sheet("Learning-rate search", columns, tuple(lines))


def provenance(origin: Provenance) -> tuple[tuple[str, str], ...]:
    """Software, machine and seed as names and values."""
    return (
        ("batchscope", origin.batchscope),
        ("torch", origin.torch),
        ("Python", origin.python),
        ("numpy", origin.numpy),
        ("device", origin.device),
        ("processor", origin.processor),
        ("cores and threads", f"{origin.cores} and {origin.threads}"),
        ("memory", f.memory(origin.memory_bytes)),
        ("platform", origin.platform),
        ("number format", origin.dtype),
        ("seed", str(origin.seed)),
        ("workload fingerprint", origin.workload_fingerprint),
        ("created (UTC)", origin.created),
    )


def best_row(record: Comparison) -> int:
    """Index of the row with the highest mean score; the first where none is known."""
    known = [(row.score.value, -i) for i, row in enumerate(record.rows) if row.score.value is not None]
    return -max(known)[1] if known else 0


def verdict(interval: Interval, point: float, told_apart: bool, above: str, below: str) -> str:
    """Whether a difference is one, in a word or two."""
    if interval.value is None:
        return f.UNKNOWN
    if not told_apart:
        return "no"
    return above if interval.value > point else below


def ratio(interval: Interval) -> str:
    """A ratio with its interval, three digits each."""
    if interval.value is None:
        return f.UNKNOWN
    text = f"{f.number(interval.value, 3, strip=False)}×"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} ({f.number(interval.low, 3, strip=False)}–{f.number(interval.high, 3, strip=False)})"


def runs_text(row: ComparisonRow, seeds: int) -> str:
    """How many runs of a row finished, and what became of the others."""
    missing = seeds - row.finished - row.diverged - row.failed
    others = [(row.diverged, "diverged"), (row.failed, "ran out of memory"), (missing, "not run")]
    fate = ", ".join(f"{n} {word}" for n, word in others if n > 0)
    finished = f"{row.finished} of {seeds} runs finished" if row.finished else "no run finished"
    return finished + (f" ({fate})" if fate else "")


def search_cost(record: Comparison) -> str:
    """How the learning rates came about, and what finding them cost, in a sentence or two."""
    if not record.searches:
        if record.learning_rate == "rescaled":
            reference = record.workload
            return (
                f"Learning rates rescaled by {reference.optimizer}'s rule from {f.number(reference.learning_rate, 3)} "
                f"at batch size {f.count(reference.batch_size)}; none was searched for."
            )
        return "Every row uses the same learning rate; none was searched for."
    tried = sum(len(search.trials) for search in record.searches)
    spent, seen = sum(s.seconds for s in record.searches), sum(s.examples for s in record.searches)
    text = (
        f"Learning rates searched for each row: {f.count(tried)} runs, {f.seconds(spent)} "
        f"({f.share(spent, record.total_seconds)} of the whole comparison), {f.count(seen)} examples."
    )
    edges = [f.count(search.batch_size) for search in record.searches if search.at_edge]
    if edges:
        text += f" The best rate lies at an end of those tried for batch size {_listed(edges)}."
    return text


def workload_facts(work: WorkloadSummary) -> tuple[tuple[str, str], ...]:
    """What is trained, and what the person uses today."""
    return (
        ("workload", work.name),
        ("parameters", f.count(work.parameters)),
        ("training examples", f.count(work.training_examples)),
        ("validation examples", f.count(work.validation_examples)),
        ("optimizer", work.optimizer),
        *((("training options", work.options),) if work.options else ()),
        ("loss", work.loss),
        ("score", work.score),
        ("today's setting", f"batch size {f.count(work.batch_size)}, rate {f.number(work.learning_rate, 3)}"),
    )


def settings(record: Comparison) -> tuple[tuple[str, str], ...]:
    """What was trained and how, as names and values."""
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
    labels = row_labels(record)
    if record.error is not None:
        found.append(f"Stopped by an error; what follows is what was finished until then. {record.error}")
    elif record.interrupted:
        found.append("Interrupted before every run was done: what follows is what was finished until then.")
    for row, label in zip(record.rows, labels, strict=True):
        if row.finished < len(record.seeds):
            over = " Its numbers are over those that did." if row.finished else ""
            found.append(f"{label}: {runs_text(row, len(record.seeds))}.{over}")
    edges: list[RateSearch] = [search for search in record.searches if search.at_edge]
    if edges:
        sizes = _listed([f.count(search.batch_size) for search in edges])
        found.append(f"Batch size {sizes}: the best learning rate lies at an end of those tried.")
    if len(record.seeds) == 1:
        found.append("One seed: the spread between runs is not known, so no two rows can be told apart.")
    if (busy := busy_warning(record.contention, "training")) is not None:
        found.append(busy)
    return tuple(found)


def _rate_mark(search: RateSearch | None) -> str:
    """What a rate's cell says of how it was found."""
    if search is None:
        return ""
    return "*" if search.at_edge else "°" if search.interpolated else ""


def _score_name(record: Comparison) -> str:
    name = record.workload.score
    return name if len(name) <= 18 and name.isprintable() else "score"


def _pair_labels(record: Comparison) -> tuple[str, ...]:
    sizes = [f.count(row.batch_size) for row in record.rows]
    return tuple(sizes) if len(set(sizes)) == len(sizes) else row_labels(record)


def _spread(row: ComparisonRow, unit: f.Unit) -> str:
    middle = unit.of(row.step_seconds)
    if row.step_seconds_low is None or row.step_seconds_high is None or row.finished < 2:
        return middle
    return f"{middle} ({unit.of(row.step_seconds_low)}–{unit.of(row.step_seconds_high)})"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

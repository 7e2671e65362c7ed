"""A sweep's store as tables for other programs: CSV and Parquet."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from batchscope.errors import ArgumentError, require
from batchscope.records import CurvePoint, SweepTrial, write_atomically
from batchscope.study.store import Store

Row = Sequence[int | float | str | None]
# What a spreadsheet would take for a formula. Numbers are not concerned: they are written as numbers.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def export(
    store: str | os.PathLike[str],
    *,
    csv: str | os.PathLike[str] | None = None,
    parquet: str | os.PathLike[str] | None = None,
    curves: str | os.PathLike[str] | None = None,
) -> tuple[Path, ...]:
    """Write the trials of a sweep's store as tables, a row for each trial.

    The columns are the fields of :class:`~batchscope.records.SweepTrial`. In CSV what there is not is an empty cell,
    numbers come back as they were, and a text that a spreadsheet would run as a formula has an apostrophe before it.

    Args:
        store: The SQLite file; a sweep may be writing to it.
        csv: Where to write the trials as CSV; None: not.
        parquet: Where to write them as Parquet; None: not.
        curves: Where to write a row for each evaluation, with the trial that it is of: Parquet where the name ends in
            ``.parquet``, otherwise CSV; None: not.

    Returns:
        What was written; each file whole, or not at all.

    Raises:
        ArgumentError: Nothing to write was asked for.
        StorageError: The store cannot be read, or a file not written.
        MissingPackageError: pyarrow is needed for Parquet.

    Examples:
        >>> import tempfile
        >>> from batchscope.study.tasks import Trial, failed
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Store.open(folder / "sweep.db", {}) as trials:
        ...     trials.put(failed(Trial(8, 0.1, 0), "crashed", "killed by SIGSEGV"))
        >>> [written] = export(folder / "sweep.db", csv=folder / "trials.csv")
        >>> written.read_text().splitlines()[1]
        '8,0.1,0,crashed,,0,0,,,,0.0,,killed by SIGSEGV'
    """
    if csv is None and parquet is None and curves is None:
        raise ArgumentError("an export needs a file to write", got="none", mend="give csv, parquet or curves")
    with Store.read(store) as opened:
        trials = opened.trials()
    wanted: list[tuple[str | os.PathLike[str], Callable[[_Table], bytes], _Table]] = []
    if csv is not None:
        wanted.append((csv, _csv, _trials_table(trials)))
    if parquet is not None:
        wanted.append((parquet, _parquet, _trials_table(trials)))
    if curves is not None:
        form = _parquet if Path(curves).suffix.lower() == ".parquet" else _csv
        wanted.append((curves, form, _curves_table(trials)))
    # All are made before the first is written, so that a package that is missing leaves no half of it.
    made = [(path, form(table)) for path, form, table in wanted]
    return tuple(write_atomically(path, content) for path, content in made)


class _Table:
    """Named columns of one type each, and rows."""

    def __init__(self, columns: dict[str, type], rows: Iterable[Row]) -> None:
        self.columns, self.rows = columns, list(rows)


def _trials_table(trials: Sequence[SweepTrial]) -> _Table:
    # The time of an update alone is measured for a sweep's record, and not by its trials.
    columns = _columns(SweepTrial, without=("curve", "step_seconds"))
    return _Table(columns, ([getattr(trial, name) for name in columns] for trial in trials))


def _curves_table(trials: Sequence[SweepTrial]) -> _Table:
    which = _columns(SweepTrial, only=("batch_size", "learning_rate", "seed"))
    # A trial's batch size stays, and its noise is not measured. Its rate is that of its first update, a point's that of
    # the last one before it.
    of_point = _columns(CurvePoint, without=("batch_size", "noise_scale"))
    names = list(of_point)
    of_point = {"current_learning_rate" if name in which else name: kind for name, kind in of_point.items()}
    return _Table(
        which | of_point,
        (
            [getattr(trial, name) for name in which] + [getattr(point, name) for name in names]
            for trial in trials
            for point in trial.curve
        ),
    )


def _columns(record: type, *, without: Sequence[str] = (), only: Sequence[str] = ()) -> dict[str, type]:
    """The fields of a record, each with its type: whole number, number or text."""
    hints = get_type_hints(record)
    names = [field.name for field in fields(record) if field.name not in without and (not only or field.name in only)]
    return {name: next((kind for kind in (int, float) if _holds(hints[name], kind)), str) for name in names}


def _holds(hint: Any, kind: type) -> bool:
    return hint is kind or kind in getattr(hint, "__args__", ())


def _csv(table: _Table) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_harmless(cell) for cell in row] for row in table.rows)
    return stream.getvalue().encode()


def _harmless(cell: int | float | str | None) -> int | float | str | None:
    """A cell that no spreadsheet runs.

    Examples:
        >>> _harmless("=1+1"), _harmless("crashed"), _harmless(-0.5)
        ("'=1+1", 'crashed', -0.5)
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _parquet(table: _Table) -> bytes:
    purpose, install = "write Parquet", "batchscope[parquet]"
    arrow, writer = require("pyarrow", purpose, install), require("pyarrow.parquet", purpose, install)
    kinds = {int: arrow.int64(), float: arrow.float64(), str: arrow.string()}
    schema = arrow.schema([(name, kinds[kind]) for name, kind in table.columns.items()])
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    arrays = [arrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    stream = io.BytesIO()
    writer.write_table(arrow.Table.from_arrays(arrays, schema=schema), stream)
    return stream.getvalue()

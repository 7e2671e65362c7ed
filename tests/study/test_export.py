"""A store as tables: what other programs read back is what was measured."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscope.errors import ArgumentError, MissingPackageError, StorageError
from batchscope.records import SweepTrial, TrainResult
from batchscope.study.export import _harmless, export
from batchscope.study.store import Store
from batchscope.study.tasks import Trial, failed, trial_of

MakeRun = Callable[..., TrainResult]
Command = Callable[..., Any]
WHICH = ("batch_size", "learning_rate", "seed")


@pytest.fixture
def store(tmp_path: Path, make_run: MakeRun) -> Iterator[Store]:
    """Trials of every kind, with numbers that are hard to write and texts that are hard to read."""
    with Store.open(tmp_path / "sweep.db", {}) as store:
        run = make_run()
        odd = replace(run.curve[1], score=math.nan, validation_loss=math.inf, learning_rate=1e-300)
        diverged = replace(run, outcome="diverged", curve=(odd,), stack_size=4, best_score=None)
        for trial in (
            trial_of(Trial(8, 0.1, 0), replace(run, outcome="reached", reached=True, best_score=0.1 + 0.2)),
            trial_of(Trial(8, 5e-324, 1), diverged),
            failed(Trial(2**40, 1 / 3, 2**63 - 1), "crashed", '=HYPERLINK("http://example.org")'),
            failed(Trial(16, 0.5, 0), "crashed", 'said "no",\nthen\r\nnothing; größer \udcff'),
        ):
            store.put(trial)
        yield store


def columns(trial: SweepTrial) -> dict[str, Any]:
    return {name: value for name, value in asdict(trial).items() if name not in ("curve", "step_seconds")}


def evaluations(trials: list[SweepTrial]) -> list[dict[str, Any]]:
    rows = []
    for trial in trials:
        for point in trial.curve:
            row = asdict(point)
            row["current_learning_rate"] = row.pop("learning_rate")
            del row["batch_size"], row["noise_scale"]  # the trial's own, and not measured in a sweep
            rows.append({name: getattr(trial, name) for name in WHICH} | row)
    return rows


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def as_was(text: str, like: Any) -> Any:
    if like is None:
        return text or None
    return type(like)(text.removeprefix("'") if isinstance(like, str) else text)


def test_csv_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    trials, written = tmp_path / "new folder" / "trials.csv", tmp_path / "curves.csv"
    assert export(tmp_path / "sweep.db", csv=trials, curves=written) == (trials, written)
    kept = store.trials()
    for rows, expected in ((read_csv(trials), [*map(columns, kept)]), (read_csv(written), evaluations(kept))):
        assert len(rows) == len(expected)
        for row, wanted in zip(rows, expected, strict=True):
            assert set(row) == set(wanted)
            assert repr({name: as_was(row[name], value) for name, value in wanted.items()}) == repr(wanted)


def test_parquet_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(tmp_path / "sweep.db", parquet=tmp_path / "trials.parquet", curves=tmp_path / "curves.PARQUET")
    table = parquet.read_table(tmp_path / "trials.parquet")
    kept = store.trials()
    assert table.to_pylist() == [*map(columns, kept)]
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["seed"], types["learning_rate"], types["outcome"]) == ("int64", "double", "string")
    assert (types["examples_to_target"], types["best_score"], types["message"]) == ("int64", "double", "string")
    rows = parquet.read_table(tmp_path / "curves.PARQUET").to_pylist()
    assert list(map(repr, rows)) == [repr({name: row[name] for name in rows[0]}) for row in evaluations(kept)]


def test_an_empty_store_gives_tables_without_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    Store.open(tmp_path / "sweep.db", {}).close()
    trials, table = tmp_path / "trials.csv", tmp_path / "trials.parquet"
    export(tmp_path / "sweep.db", csv=trials, parquet=table, curves=tmp_path / "curves.csv")
    assert trials.read_text().startswith("batch_size,learning_rate,seed,outcome,")
    assert len(trials.read_text().splitlines()) == 1
    assert parquet.read_table(table).num_rows == 0
    assert str(parquet.read_table(table).schema.field("best_score").type) == "double"


@given(st.text())
def test_no_text_is_run_by_a_spreadsheet(text: str) -> None:
    cell = _harmless(text)
    assert isinstance(cell, str)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert cell.removeprefix("'") == text or cell == text


def test_parquet_without_pyarrow_writes_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'batchscope\[parquet\]'"):
        export(tmp_path / "sweep.db", csv=tmp_path / "trials.csv", parquet=tmp_path / "trials.parquet")
    assert not (tmp_path / "trials.csv").exists()


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="a file to write"):
        export(tmp_path / "sweep.db")
    with pytest.raises(StorageError, match="must be a file"):
        export(tmp_path / "sweep.db", csv=tmp_path / "trials.csv")
    (tmp_path / "record.json").write_text("{}" * 1000)
    with pytest.raises(StorageError, match="must be an SQLite file"):
        export(tmp_path / "record.json", csv=tmp_path / "trials.csv")
    assert not (tmp_path / "trials.csv").exists()

"""Rows of records as data frames of pandas and polars."""

from __future__ import annotations

import csv
import dataclasses
import math
import sys
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

import batchscope as bs
from batchscope.records import CurvePoint, Record
from batchscope.records.base import _KINDS
from batchscope.records.frames import PARENT, _rows, columns_of, names
from batchscope.study.export import export


@pytest.fixture(scope="module")
def digits() -> bs.Workload:
    return bs.load_workload("digits")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study") / "s.db"


@pytest.fixture(scope="module")
def sweep(digits: bs.Workload, store: Path) -> bs.Sweep:
    return bs.sweep(digits, [32, 128], learning_rates=[0.1, 0.4], seeds=2, target=0.9, examples=6400, store=str(store))


def test_trials_have_the_columns_that_export_writes(sweep: bs.Sweep, store: Path, tmp_path: Path) -> None:
    frame = sweep.frame("trials")
    export(store, csv=tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.reader(file))
    assert [column for column in frame.columns if column != "step_seconds"] == written[0]
    assert len(frame) == len(sweep.trials) == len(written) - 1 == 8
    assert frame["batch_size"].dtype == "int64"
    assert list(frame["best_score"]) == [trial.best_score for trial in sweep.trials]
    best = frame.groupby("batch_size")["best_score"].max()
    assert best[32] == max(trial.best_score or 0.0 for trial in sweep.trials if trial.batch_size == 32)


def test_an_interval_becomes_three_columns(sweep: bs.Sweep) -> None:
    frame = sweep.frame("best")
    at = list(frame.columns).index("score")
    assert list(frame.columns)[at : at + 3] == ["score", "score_low", "score_high"]
    for row, line in zip(frame.itertuples(), sweep.best, strict=True):
        assert (row.score, row.score_low, row.score_high) == pytest.approx(
            (line.score.value, line.score.low, line.score.high), abs=0
        )
    assert frame["rates"].iloc[0] == (0.1, 0.4)


def test_rows_inside_of_rows_say_which_they_belong_to(sweep: bs.Sweep) -> None:
    curves = sweep.frame("trials.curve")
    assert len(curves) == sum(len(trial.curve) for trial in sweep.trials)
    for place, trial in enumerate(sweep.trials):
        assert list(curves[curves["row"] == place]["score"]) == [point.score for point in trial.curve]
    joined = curves.join(sweep.frame("trials")[["seed", "outcome"]], on="row")
    assert set(joined["seed"]) == {0, 1}


@pytest.mark.parametrize("name", ["trials", "best", "trials.curve"])
def test_both_libraries_say_the_same(sweep: bs.Sweep, name: str) -> None:
    one, other = sweep.frame(name), sweep.frame(name, library="polars")
    assert isinstance(one, pd.DataFrame)
    assert isinstance(other, pl.DataFrame)
    assert list(one.columns) == other.columns
    for column in other.columns:
        ours = [
            None if value is pd.NA or (isinstance(value, float) and math.isnan(value)) else value
            for value in one[column]
        ]
        theirs = [tuple(value) if isinstance(value, pl.Series) else value for value in other[column]]
        assert ours == theirs, column


def test_without_pandas_polars_is_taken_and_without_both_it_says_so(
    sweep: bs.Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchscope.records import frames

    here = {"polars"}
    monkeypatch.setattr(frames, "find_spec", lambda name: name if name in here else None)
    assert isinstance(sweep.frame("trials"), pl.DataFrame)
    here.clear()
    with pytest.raises(bs.MissingPackageError, match=r"pandas or polars.*batchscope\[pandas\]"):
        sweep.frame("trials")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(bs.MissingPackageError, match=r"batchscope\[polars\]"):
        sweep.frame("trials", library="polars")


def test_types_hold_where_there_are_no_rows(digits: bs.Workload) -> None:
    law = bs.fit_tradeoff([16, 64, 256, 1024], [10_000, 10_900, 14_500, 29_000])
    nothing = bs.sweep(digits, [64], learning_rates=[0.1], seeds=1, examples=1280)
    assert nothing.law is None
    empty, full = nothing.frame("law.points"), law.frame("points")
    assert len(empty) == 0
    assert list(empty.columns) == list(full.columns)
    assert nothing.frame("law.points", library="polars").schema["batch_size"] == pl.Int64
    assert len(full) == 4


def test_names_that_are_none_are_refused(sweep: bs.Sweep) -> None:
    for name in ("workload", "conclusion", "nothing", "", "trials.", "law"):
        with pytest.raises(
            bs.ArgumentError, match=r"the frames of a Sweep are trials, trials\.curve, best, law\.points"
        ):
            sweep.frame(name)
    plan = bs.Plan(batch_size=1, learning_rate=0.1, iterations=1)
    assert len(plan.frame("schedule.phases")) == 0


@pytest.mark.parametrize("kind", sorted(_KINDS))
def test_no_two_columns_of_a_record_s_frames_have_one_name(kind: str) -> None:
    found = _KINDS[kind]
    for name in names(found):
        columns = [column for column, _ in columns_of(row_type(found, name))]
        assert columns, name
        assert len(columns) == len(set(columns)), name
        assert PARENT not in columns, name


def row_type(kind: type[Record], name: str) -> type:
    empty = object.__new__(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        object.__setattr__(empty, field.name, None)
    return _rows(empty, name)[0]


def test_a_point_of_a_curve_has_its_fields() -> None:
    assert [name for name, _ in columns_of(CurvePoint)] == [field.name for field in dataclasses.fields(CurvePoint)]

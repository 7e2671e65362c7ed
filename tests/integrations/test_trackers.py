"""Trackers: what the real ones write, and that one which fails never stops a run."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import batchscope as bs
from batchscope.cli import app
from batchscope.integrations.tracker import open_tracker
from batchscope.training.tracking import CURVES, Tracked

PLAN = bs.Plan(batch_size=32, learning_rate=0.1, examples=3200, shape="linear")
Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def digits() -> bs.Workload:
    return bs.load_workload("digits")


@pytest.fixture
def result(digits: bs.Workload) -> bs.TrainResult:
    return bs.train(digits, PLAN, evaluate_every=800)


@pytest.fixture(scope="module")
def advice() -> bs.Advice:
    """An advice made of closed forms, as the tests of reports have it."""
    folder = Path(__file__).parents[1] / "report"
    found: dict[str, ModuleType] = {}
    for name in ("sample_records", "sample_probes", "sample_advice"):
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    records = found["sample_advice"].every(found["sample_records"], found["sample_probes"].HOSTILE)
    made = records["advice examples"]
    assert isinstance(made, bs.Advice)
    return made


def wanted_of(result: bs.TrainResult) -> Curves:
    """What a tracker is to be told of a run."""
    curves: Curves = {}
    for point in result.curve:
        for name in CURVES:
            if (value := getattr(point, name)) is not None:
                curves.setdefault(name, []).append((point.examples, float(value)))
    return curves


def same(found: Curves, wanted: Curves, tolerance: float = 0.0) -> None:
    assert set(found) == set(wanted)
    for name, points in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points]
        assert [value for _, value in found[name]] == pytest.approx(
            [value for _, value in points], rel=tolerance, abs=0
        )


# What was written, read back by the libraries themselves


def of_tensorboard(folder: Path) -> Curves:
    from tensorboardX.proto.event_pb2 import Event

    [file] = folder.glob("events.out.tfevents.*")
    data, curves = file.read_bytes(), dict[str, list[tuple[int, float]]]()
    while data:  # a record: its length in 8 bytes, a checksum of 4, the event, a checksum of 4
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            curves.setdefault(value.tag, []).append((event.step, value.simple_value))
        data = data[16 + length :]
    return curves


def of_mlflow(uri: str) -> tuple[Curves, Path, str]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    [experiment] = [found for found in client.search_experiments() if found.name == "batchscope"]
    [run] = client.search_runs([experiment.experiment_id])
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    curves = {name: sorted((metric.step, metric.value) for metric in own) for name, own in histories.items()}
    artifacts = client.download_artifacts(run.info.run_id, "result.json")
    return curves, Path(artifacts), run.info.status


def of_wandb(folder: Path) -> tuple[Curves, Path]:
    from wandb.proto import wandb_internal_pb2

    of_bytes: Any = wandb_internal_pb2.Record.FromString  # type: ignore[attr-defined]

    [run] = (folder / "wandb").glob("offline-run-*")
    [file] = run.glob("*.wandb")
    curves: Curves = {}
    end = time.monotonic() + 30
    while True:  # a process of wandb's own writes it, and may be a moment behind
        records = [of_bytes(data) for data in leveldb_records(file.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            break
        assert time.monotonic() < end, "the run was not written to its end"
        time.sleep(0.1)
    for record in records:
        row = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name in CURVES:
            if name in row:
                curves.setdefault(name, []).append((row["examples"], row[name]))
    return curves, run / "files" / "result.json"


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, behind the header of 7 bytes that wandb puts before it.

    A block has 32 KiB. A piece has a checksum in 4 bytes, its length in 2, and its kind: 1 whole, 2 first, 3 middle,
    4 last.
    """
    block, place, held = 32768, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:  # too little for a piece's head: the rest of the block is empty
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        piece = data[place + 7 : place + 7 + length]
        place += 7 + length
        held = piece if kind in (1, 2) else held + piece
        if kind in (1, 4):
            yield held


def test_tensorboard(digits: bs.Workload, tmp_path: Path) -> None:
    result = bs.train(digits, PLAN, evaluate_every=800, noise=True, tracker=open_tracker(f"tensorboard:{tmp_path}/tb"))
    same(of_tensorboard(tmp_path / "tb"), wanted_of(result), tolerance=1e-6)  # events hold float32
    assert bs.load(tmp_path / "tb" / "result.json") == result


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has made, which takes it seconds, without runs."""
    folder = tmp_path_factory.mktemp("mlflow") / "new"
    open_tracker(f"mlflow:{folder}").end()
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("delete from runs")
    return folder / "mlflow.db"


@pytest.mark.parametrize("store", ["folder", "sqlite"])
def test_mlflow(
    digits: bs.Workload, empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place = "runs" if store == "folder" else f"sqlite:///{tmp_path}/own.db"
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db" if store == "folder" else place
    there = Path(uri.removeprefix("sqlite:///"))
    there.parent.mkdir(exist_ok=True)
    shutil.copy(empty_mlflow, there)
    result = bs.train(digits, PLAN, evaluate_every=800, tracker=open_tracker(f"mlflow:{place}"))
    curves, artifact, status = of_mlflow(uri)
    same(curves, wanted_of(result))
    assert bs.load(artifact) == result
    assert status == "FINISHED"
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,)
    assert not (tmp_path / "mlruns").exists()


def test_wandb_offline(digits: bs.Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    result = bs.train(digits, PLAN, evaluate_every=800, tracker=open_tracker("wandb:batchscope"))
    curves, artifact = of_wandb(tmp_path)
    same(curves, wanted_of(result))
    assert bs.load(artifact) == result


def test_the_command_keeps_curves_result_and_advice(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    folder = tmp_path / "tb"
    words = ["train", "digits", "--batch-size", "32", "--learning-rate", "0.1", "--examples", "1600", "--quiet"]
    done = CliRunner().invoke(app, [*words, "--tracker", f"tensorboard:{folder}", "--json", str(tmp_path / "r.json")])
    assert done.exit_code == 0, done.output
    result = bs.load(tmp_path / "r.json")
    assert isinstance(result, bs.TrainResult)
    same(of_tensorboard(folder), wanted_of(result), tolerance=1e-6)
    assert bs.load(folder / "result.json") == result


def test_the_command_keeps_the_advice_that_it_trains_by(tmp_path: Path, advice: bs.Advice) -> None:
    from typer.testing import CliRunner

    folder, file = tmp_path / "tb", advice.to_json(tmp_path / "a.json")
    words = ["train", "digits", "--plan", str(file), "--examples", "640", "--quiet"]
    done = CliRunner().invoke(app, [*words, "--tracker", f"tensorboard:{folder}"])
    assert done.exit_code == 0, done.output
    assert bs.load(folder / "advice.json") == advice
    assert isinstance(bs.load(folder / "result.json"), bs.TrainResult)


def test_the_command_keeps_the_winner_s_curve_with_auto(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    words = ["train", "digits", "--auto", "--target", "0.9", "--budget", "3", "--quiet"]
    done = CliRunner().invoke(
        app, [*words, "--tracker", f"tensorboard:{tmp_path}/tb", "--json", str(tmp_path / "r.json")]
    )
    assert done.exit_code == 0, done.output
    result = bs.load(tmp_path / "r.json")
    assert isinstance(result, bs.TrainResult)
    same(of_tensorboard(tmp_path / "tb"), wanted_of(result), tolerance=1e-6)


@pytest.mark.parametrize("name", ["tensorbord:runs", "tensorboard", "mlflow:", ":x", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(bs.ArgumentError, match="a tracker is tensorboard:DIR, mlflow:URI or wandb:PROJECT"):
        open_tracker(name)


@pytest.mark.parametrize(("module", "name"), [("mlflow", "mlflow:x"), ("wandb", "wandb:x")])
def test_a_package_that_is_missing_is_named(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(bs.MissingPackageError, match=rf"pip install 'batchscope\[{module}\]'"):
        open_tracker(name)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    (tmp_path / "file").write_text("in the way")
    for place in (f"tensorboard:{tmp_path}/file", f"mlflow:{tmp_path}/file"):
        with pytest.raises(bs.StorageError, match="able to write to its destination"):
            open_tracker(place)
    words = ["train", "digits", "--iterations", "5", "--tracker", f"tensorboard:{tmp_path}/file"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert done.stderr.startswith("batchscope: a tracker must be able to write")
    assert done.stdout == ""


# What training tells, and what it bears


class Recorder:
    """A tracker that remembers, and raises in one of its calls."""

    def __init__(self, fails: str = "", error: Callable[[str], BaseException] = RuntimeError) -> None:
        self.fails, self.error = fails, error
        self.calls: list[str] = []
        self.curves: Curves = {}
        self.records: list[Any] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails:
            raise self.error("the disk is gone")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._called("log")
        for name, value in values.items():
            self.curves.setdefault(name, []).append((step, value))

    def artifact(self, path: Path) -> None:
        self._called("artifact")
        self.records.append(bs.load(path))

    def end(self) -> None:
        self._called("end")


def test_training_tells_of_every_evaluation_and_of_the_result(digits: bs.Workload) -> None:
    tracker = Recorder()
    result = bs.train(digits, PLAN, evaluate_every=800, tracker=tracker)
    assert tracker.calls == ["log"] * len(result.curve) + ["artifact", "end"]
    same(tracker.curves, wanted_of(result))
    assert tracker.records == [result]
    assert "training_loss" in tracker.curves
    assert len(tracker.curves["training_loss"]) == len(result.curve) - 1  # there is none before the first update


@pytest.mark.parametrize("error", [RuntimeError, OSError, ValueError])
@pytest.mark.parametrize("call", ["log", "artifact", "end"])
def test_a_tracker_that_fails_is_warned_of_once_and_left_alone(
    digits: bs.Workload, result: bs.TrainResult, call: str, error: Callable[[str], BaseException]
) -> None:
    tracker = Recorder(call, error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracked = bs.train(digits, PLAN, evaluate_every=800, tracker=tracker)
    said = [str(warning.message) for warning in caught if "tracker" in str(warning.message)]
    assert len(said) == 1
    assert f"{call}()" in said[0]
    assert "the disk is gone" in said[0]
    assert tracker.calls.count(call) == 1
    assert tracker.calls[-1] == call
    # And nothing of the run is other than without it.
    assert [point.score for point in tracked.curve] == [point.score for point in result.curve]
    assert [point.training_loss for point in tracked.curve] == [point.training_loss for point in result.curve]


def test_a_run_that_fails_ends_its_tracker(digits: bs.Workload) -> None:
    tracker = Recorder()
    with pytest.raises(bs.PlanError):
        bs.train(digits, bs.Plan(batch_size=10**6, learning_rate=0.1, iterations=1), tracker=tracker)
    assert tracker.calls == ["end"]

    class Failing(Recorder):
        def fail(self) -> None:
            self.calls.append("fail")

    tracker = Failing()
    with pytest.raises(bs.PlanError):
        bs.train(digits, bs.Plan(batch_size=10**6, learning_rate=0.1, iterations=1), tracker=tracker)
    assert tracker.calls == ["fail"]


def test_mlflow_is_told_of_a_run_that_failed(digits: bs.Workload, empty_mlflow: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_mlflow, tmp_path / "runs")
    tracker = open_tracker(f"mlflow:{tmp_path}/runs")
    with pytest.raises(bs.PlanError):
        bs.train(digits, bs.Plan(batch_size=10**6, learning_rate=0.1, iterations=1), tracker=tracker)
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FAILED",)]


def test_numbers_that_are_not_finite_are_not_told(digits: bs.Workload) -> None:
    tracker = Recorder()
    wild = bs.train(digits, bs.Plan(batch_size=32, learning_rate=1e30, iterations=50), tracker=tracker)
    assert wild.outcome == "diverged"
    assert all(abs(value) < float("inf") for points in tracker.curves.values() for _, value in points)
    assert tracker.calls[-2:] == ["artifact", "end"]


def test_without_a_tracker_nobody_is_told() -> None:
    nobody = Tracked(None)
    nobody.end()
    assert nobody.tracker is None

"""Records: what is written is read back, what is malformed is refused, and a file is whole or not there."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batchscope as bs
from batchscope import Comparison, Interval, Plan, PlanError, Record, RecordError, StorageError, TrainResult
from batchscope.records import decode, encode, load, write_atomically

positive = st.integers(1, 10**12)
rates = st.floats(1e-12, 1e6)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    batch_size = draw(positive)
    iterations, examples = draw(st.sampled_from([(True, False), (False, True), (False, False)]))
    budget = iterations or examples
    return Plan(
        batch_size=batch_size,
        learning_rate=draw(rates),
        iterations=draw(positive) if iterations else None,
        examples=draw(positive) if examples else None,
        target=draw(st.floats(-1e9, 1e9)) if not budget or draw(st.booleans()) else None,
        shape=draw(st.sampled_from(["constant", "linear"])) if budget else "constant",
        order=draw(st.sampled_from(["shuffled", "replacement", "stratified", "bucketed"])),
        micro_batch_size=draw(st.none() | st.integers(1, batch_size)),
        patience=draw(st.none() | st.integers(2, 100)),
        tolerance=draw(st.floats(0, 10)),
        rescaled_from=draw(st.none() | positive),
    )


ends = st.none() | st.floats()
st.register_type_strategy(Interval, st.builds(Interval, ends, ends, ends, st.floats(0, 1)))
st.register_type_strategy(Plan, plans())
st.register_type_strategy(float, st.floats())
results = st.builds(TrainResult, state=st.none())
comparisons = st.builds(
    Comparison,
    runs=st.lists(results, max_size=2).map(tuple),
    rows=st.lists(st.from_type(bs.records.ComparisonRow), max_size=2).map(tuple),
)
records: st.SearchStrategy[Record] = st.one_of(plans(), results, comparisons)
slow = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit and of the same types, where nan equals nan and 1 is not 1.0."""
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@given(record=records)
@slow
def test_a_record_comes_back_as_it_was(record: Record, tmp_path: Path) -> None:
    path = record.to_json(tmp_path / "record.json")
    loaded = load(path)
    assert same(record, loaded)
    # What is on disk is JSON as any other program reads it, with nothing that JSON has not.
    data = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert data["record"] == record.kind
    assert data["schema"] == record.schema_version
    assert loaded.to_json(tmp_path / "again.json").read_bytes() == path.read_bytes()


@given(value=st.none() | st.floats(), level=st.floats(0, 1))
def test_infinities_and_nan_are_words(value: float | None, level: float) -> None:
    interval = Interval(value, None, math.inf, level)
    data = json.loads(json.dumps(encode(interval), allow_nan=False))
    assert same(decode(Interval, data, "here"), interval)
    assert data["high"] == "Infinity"


def test_an_interval_is_resolved_where_it_has_a_value_and_nowhere_else() -> None:
    assert not Interval(None, 1.0, 2.0).resolved
    assert not Interval(None, None, None, resolved=True).resolved
    assert not dataclasses.replace(Interval(1.0, 0.0, 2.0), value=None).resolved
    assert not decode(Interval, {"value": None, "low": None, "high": None, "resolved": True}, "here").resolved
    with pytest.raises(RecordError, match="must have no value"):
        decode(Interval, {"value": 1.0, "low": None, "high": None, "resolved": False}, "here")


def test_weights_stay_in_memory(tmp_path: Path, result: TrainResult) -> None:
    kept = dataclasses.replace(result, state={"weight": object()})
    loaded = load(kept.to_json(tmp_path / "r.json"))
    assert isinstance(loaded, TrainResult)
    assert loaded.state is None
    assert "state" not in json.loads((tmp_path / "r.json").read_text())


@pytest.fixture(scope="module")
def result() -> TrainResult:
    """A run with a curve, as JSON could hold it."""
    point = bs.records.CurvePoint(0, 0, 0.0, 0.1, None, 2.3, 0.1)
    where = bs.records.Provenance(
        "2025-01-01T00:00:00+00:00",
        "0.1.0",
        "3.11.7",
        "2.6.0",
        "2.0.0",
        "Linux",
        "a CPU",
        2,
        1,
        None,
        "cpu",
        "float32",
        0,
        "00",
    )
    return TrainResult(
        workload="digits",
        plan=Plan(batch_size=8, learning_rate=0.1, iterations=10),
        seed=0,
        outcome="finished",
        reached=False,
        examples=80,
        iterations=10,
        data_seconds=0.1,
        compute_seconds=0.4,
        step_seconds=0.5,
        evaluation_seconds=0.1,
        total_seconds=0.7,
        best_score=0.5,
        best_loss=1.2,
        best_examples=80,
        final_score=0.5,
        final_loss=1.2,
        training_score=0.6,
        training_loss=1.1,
        generalisation_gap=0.1,
        peak_memory_bytes=None,
        diverged_at_iteration=None,
        message=None,
        curve=(point, dataclasses.replace(point, examples=80, iterations=10, training_loss=1.5)),
        provenance=where,
    )


# Malformed files


def refused(path: Path, content: str | bytes) -> RecordError:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RecordError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000 + 2 * len(str(path))
    return caught.value


PLAN = {"record": "plan", "schema": 1, "batch_size": 8, "learning_rate": 0.1, "iterations": 5}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b'"plan"',
        b"\xff\xfe\x00",
        b"\x00" * 10,
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        json.dumps({"record": ["plan"], "schema": 1}),
        json.dumps({"record": {"plan": 1}, "schema": 1}),
        json.dumps({"record": "recipe", "schema": 1}),
        json.dumps({"record": "x" * 10_000, "schema": 1}),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str | bytes) -> None:
    refused(tmp_path / "r.json", content)


@pytest.mark.parametrize("schema", [0, 2, "1", None, True, 1.0, [1]])
def test_another_schema_is_refused(tmp_path: Path, schema: Any) -> None:
    error = refused(tmp_path / "r.json", json.dumps(PLAN | {"schema": schema}))
    assert "schema 1" in error.rule


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": "8"}, "batch_size must hold a value of type int"),
        ({"batch_size": 8.0}, "batch_size must hold a value of type int"),
        ({"batch_size": True}, "batch_size must hold a value of type int"),
        ({"batch_size": None}, "batch_size must hold"),
        ({"learning_rate": "fast"}, "learning_rate must hold a value of type float"),
        ({"learning_rate": False}, "learning_rate must hold a value of type float"),
        ({"learning_rate": 10**400}, "learning_rate must hold a number below"),
        ({"shape": "triangle"}, "shape must hold one of 'constant', 'linear'"),
        ({"shape": ["linear"]}, "shape must hold one of"),
        ({"iterations": [[5]]}, "iterations must hold"),
        ({"colour": "red"}, "must hold only the fields of Plan"),
        ({"batch_size": 0}, "must hold a Plan that makes sense; got batch_size must be a whole number"),
        ({"learning_rate": -1.0}, "must hold a Plan that makes sense; got learning_rate must be above 0"),
        ({"learning_rate": "NaN"}, "must hold a Plan that makes sense; got learning_rate must be a finite number"),
        ({"examples": 80}, "must hold a Plan that makes sense; got a budget is either"),
    ],
)
def test_a_malformed_field_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    error = refused(tmp_path / "r.json", json.dumps(PLAN | change))
    assert said in str(error)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    content = {key: value for key, value in PLAN.items() if key != "learning_rate"}
    assert "the fields learning_rate of Plan" in str(refused(tmp_path / "r.json", json.dumps(content)))


def test_a_place_deep_inside_is_named(tmp_path: Path, result: TrainResult) -> None:
    data = json.loads(result.to_json(tmp_path / "r.json").read_text())
    data["curve"][1]["score"] = "high"
    assert "curve[1]: score must hold a value of type float; got 'high'" in str(
        refused(tmp_path / "r.json", json.dumps(data))
    )
    data["curve"] = {"0": 1}
    assert "curve must hold a list" in str(refused(tmp_path / "r.json", json.dumps(data)))


def test_a_value_nested_without_end_is_refused(tmp_path: Path) -> None:
    for depth in (50, 300, 600, 900, 990):
        deep = json.dumps(PLAN)[:-1] + ', "patience": ' + "[" * depth + "]" * depth + "}"
        refused(tmp_path / "r.json", deep)


def read_or_refused(path: Path) -> Record | None:
    """What is in a file, or None where it was refused as a record; any other exception comes through."""
    try:
        return load(path)
    except RecordError:
        return None


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["NaN", "Infinity"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_edited_records_are_read_or_refused_and_nothing_else(
    data: st.DataObject, tmp_path: Path, result: TrainResult
) -> None:
    content = json.loads(json.dumps({"record": "training", "schema": 1} | encode(result)))
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = content
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
                break
            place = place[key]
        if key is None:
            continue
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "replace":
            place[key] = data.draw(anything)
        elif action == "remove":
            del place[key]
        elif isinstance(place, dict):
            place[data.draw(st.text(max_size=4))] = data.draw(anything)
        else:
            place.append(data.draw(anything))
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(content))
    loaded = read_or_refused(path)
    if loaded is not None:
        assert isinstance(loaded, TrainResult)
        assert same(load(loaded.to_json(tmp_path / "again.json")), loaded)


@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_read_or_refused_and_nothing_else(
    data: st.DataObject, tmp_path: Path, result: TrainResult
) -> None:
    whole = result.to_json(tmp_path / "whole.json").read_bytes()
    place = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, 20))
    path = tmp_path / "damaged.json"
    path.write_bytes(whole[:place] + data.draw(st.binary(max_size=6)) + whole[place + length :])
    read_or_refused(path)


@pytest.mark.parametrize("name", ["missing.json", "", "file/below.json", "zero\0.json", "x" * 300])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("{}")
    with pytest.raises(RecordError):
        load(tmp_path / name)


# Writing


def test_what_is_written_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    assert write_atomically(path, b"one") == path
    assert write_atomically(str(path), b"two") == path
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_file_s_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("it is the whole process's, other threads included"))
            write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    write_atomically(path, b"new")
    assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (mode, b"new")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    for content in (b"one", b"two"):
        write_atomically(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "file").read_bytes() == content
    assert [entry.name for entry in (tmp_path / "real").iterdir()] == ["file"]


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(path, b"through it")
        assert os.read(reader, 100) == b"through it"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


FULL_DEVICE = Path("/dev/full")


def test_a_full_device_is_said_so_and_stays_a_device() -> None:
    if not FULL_DEVICE.exists():  # another system than Linux
        return
    with pytest.raises(StorageError, match=r"/dev/full \(No space left on device\). Free some room"):
        write_atomically(FULL_DEVICE, b"content")
    assert stat.S_ISCHR(FULL_DEVICE.stat().st_mode)


LIMITED = """
    import resource, sys
    from batchscope import Plan, StorageError

    path = sys.argv[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        Plan(batch_size=8, learning_rate=0.1, iterations=5).to_json(path)
    except StorageError as error:
        print(error)
"""


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(path)], capture_output=True, text=True, check=True
    )
    assert "must be written to a place with room" in done.stdout
    assert str(path) in done.stdout
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("name", ["file/below", "file/further/below", "folder", "", "zero\0", "x" * 300])
def test_a_place_that_cannot_be_written_is_said_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="must be written to a place with room that this user may write"):
        write_atomically(tmp_path / name, b"content")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_folder_that_is_read_only_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As the system would say it; its own permissions mean nothing to root.
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        write_atomically(tmp_path / "file", b"")


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "os.chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_behind_wherever_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(call, fail)
    with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([65 + i]) * 100_000 for i in range(8)]
    threads = [
        threading.Thread(target=lambda content=content: [write_atomically(path, content) for _ in range(5)])
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


# Plans and intervals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"learning_rate": math.inf}, "learning_rate must be a finite number"),
        ({"learning_rate": "0.1"}, "learning_rate must be a finite number"),
        ({"iterations": 0}, "iterations must be a whole number"),
        ({"examples": 5}, "a budget is either iterations or examples"),
        ({"iterations": None}, "a plan needs a budget"),
        ({"target": math.nan}, "target must be a finite number"),
        ({"shape": "triangle"}, "shape must be one of constant, linear, cosine, cooldown"),
        ({"order": "sorted"}, "order must be one of shuffled, replacement, stratified, bucketed"),
        ({"iterations": None, "target": 0.5, "shape": "linear"}, "needs to know where it ends"),
        ({"micro_batch_size": 9}, "micro_batch_size must be at most batch_size; got 9 > 8"),
        (
            {"patience": 1},
            "patience must be a whole number of at least 2; got 1. The first bad evaluation says nothing",
        ),
        ({"tolerance": -0.1}, "tolerance must be at least 0"),
        ({"rescaled_from": 0}, "rescaled_from must be a whole number"),
    ],
)
def test_plans_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"batch_size": 8, "learning_rate": 0.1, "iterations": 5}
    with pytest.raises(PlanError) as caught:
        Plan(**(arguments | changes))
    assert said in str(caught.value)


def test_a_plan_s_budget() -> None:
    assert Plan(batch_size=8, learning_rate=0.1, iterations=5).budget_examples == 40
    assert Plan(batch_size=8, learning_rate=0.1, examples=41).budget_examples == 41
    assert Plan(batch_size=8, learning_rate=0.1, target=0.9).budget_examples is None


def test_records_are_frozen(result: TrainResult) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seed = 1  # type: ignore[misc]


def test_what_an_interval_excludes() -> None:
    interval = Interval(2.0, 1.0, 3.0)
    assert [interval.excludes(x) for x in (0.9, 1.0, 2.5, 3.0, 3.1)] == [True, False, False, False, True]
    assert not Interval(2.0, None, None).excludes(0)
    assert not Interval.unresolved(low=5.0, high=6.0).excludes(0)
    assert Interval(2.0, 1.0, math.inf).excludes(0)


def test_how_an_interval_is_said() -> None:
    assert str(Interval(0.12345678, 0.1, 0.2)) == "0.1235 (0.1 to 0.2)"
    assert str(Interval(3.0, None, None)) == "3"
    assert str(Interval.unresolved()) == "not resolved"

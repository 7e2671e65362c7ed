"""Finished runs on disk: what was kept stays, whatever happens, and what is resumed ends as the unbroken would."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from batchscope.errors import StorageError
from batchscope.measure.child import in_child
from batchscope.progress import ProgressEvent
from batchscope.provenance import data_fingerprint
from batchscope.records import Comparison, Record, Sweep, SweepTrial, TrainResult
from batchscope.study import compare, sweep
from batchscope.study.export import export
from batchscope.study.store import SCHEMA, Store
from batchscope.study.tasks import Trial, failed, key_of, trial_of
from batchscope.workload import Workload, load_workload

Strip = Callable[[Record], Any]
MakeRun = Callable[..., TrainResult]
IDENTITY = {"workload": "f00d", "data": "cafe", "batchscope": "0.1.0", "torch": "2.13.0", "device": "cpu"}
OLD = Path(__file__).parents[1] / "data" / "sweep-schema-1.db"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, IDENTITY) as store:
        yield store


@pytest.fixture
def trials(make_run: MakeRun) -> list[SweepTrial]:
    return [trial_of(Trial(8, 0.1 + 0.2, seed), make_run(seed=seed)) for seed in range(40)]


def run_in_fork(work: Callable[[], object]) -> int:
    """A child that works, and ends without a hook of this process's."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_what_was_put_in_comes_back_as_it_was(path: Path, make_run: MakeRun) -> None:
    run = make_run()
    odd = replace(run.curve[1], score=float("nan"), validation_loss=float("inf"), training_loss=-float("inf"))
    run = replace(run, curve=(run.curve[0], odd, *run.curve[2:]), training_loss=float("inf"), message="a\udcff")
    trial = trial_of(Trial(8, 0.1 + 0.2, 2**63 - 1), replace(run, stack_size=12, best_score=1 / 3))
    lost = failed(Trial(8, 0.1, 0), "timed out", "nothing was heard of it for 300 s")
    with Store.open(path, IDENTITY) as store:
        store.put(failed(key_of(trial), "crashed", "gives way"))
        store.put(trial)
        store.put(lost)
        store.put_run("b8", replace(run, message=None))
    for again in (Store.open(path, IDENTITY), Store.read(path)):
        with again as store:
            # nan is not equal to itself.
            assert repr(store.trials()) == repr([lost, replace(trial, message="a\\udcff")])
            assert repr(store.run("b8")) == repr(replace(run, message=None))
            assert store.run("b16") is None


def test_seconds_add_up_over_sittings(path: Path, monkeypatch: pytest.MonkeyPatch, trials: list[SweepTrial]) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    store = Store.open(path, IDENTITY)
    now += 10
    store.put(trials[0])
    assert store.total_seconds() == 10
    now += 500  # and then it was killed
    monkeypatch.setattr(store, "_note_the_time", lambda: None)
    store.close()
    with Store.open(path, IDENTITY) as store:
        now += 5
        assert store.total_seconds() == 15
    now += 1000
    with Store.open(path, IDENTITY) as store:
        assert store.total_seconds() == 15


# --- whose it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ({"workload": "beef"}, "workload f00d instead of beef"),
        ({"data": "beef"}, "data cafe instead of beef"),
        ({"torch": "2.6.0"}, "torch 2.13.0 instead of 2.6.0"),
        ({"new": "1"}, "new missing instead of 1"),
    ],
)
def test_the_store_of_something_else_is_refused(path: Path, identity: dict[str, str], said: str) -> None:
    Store.open(path, IDENTITY).close()
    with pytest.raises(StorageError, match=f"{said}.* Name another"):
        Store.open(path, IDENTITY | identity)
    Store.open(path, IDENTITY).close()  # and is as it was


def test_a_store_has_one_writer_and_any_number_of_readers(path: Path, store: Store, trials: list[SweepTrial]) -> None:
    store.put(trials[0])

    def other() -> str:
        with Store.read(path) as reader:
            assert reader.trials() == trials[:1]
        try:
            Store.open(path, IDENTITY)
        except StorageError as error:
            return str(error)
        return "opened"

    assert "which another process writes. Wait until that has ended" in (in_child(other).value or "")
    store.close()
    assert in_child(other).value == "opened"


def test_a_forked_process_neither_holds_the_store_nor_takes_it_away(path: Path, store: Store) -> None:
    ours, theirs = os.pipe()
    pid = run_in_fork(lambda: os.read(ours, 1))
    os.waitpid(run_in_fork(lambda: None), 0)
    assert "another process" in (in_child(lambda: _refusal(path)).value or "")
    store.close()
    assert in_child(lambda: _refusal(path)).value is None
    os.write(theirs, b".")
    os.waitpid(pid, 0)


def _refusal(path: Path) -> str | None:
    try:
        Store.open(path, IDENTITY).close()
    except StorageError as error:
        return str(error)
    return None


def test_the_store_of_the_release_before_is_read_and_not_resumed(tmp_path: Path) -> None:
    path = Path(shutil.copy(OLD, tmp_path / "old.db"))
    before = path.read_bytes()
    refusal = r"resumes stores of schema 2; got .* schema 1, which knows its data by a sample only\. Name another file"
    with pytest.raises(StorageError, match=refusal):
        Store.open(path, IDENTITY)
    with Store.read(path) as store:
        [trial] = store.trials()
    assert (trial.batch_size, trial.outcome, trial.examples_to_target) == (128, "reached", 1920)
    export(path, csv=tmp_path / "old.csv")
    assert "128,0.2,0,reached,1920" in (tmp_path / "old.csv").read_text()
    assert path.read_bytes() == before


def test_a_store_of_a_release_to_come_is_refused(path: Path) -> None:
    Store.open(path, IDENTITY).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    for way in (Store.read, lambda path: Store.open(path, IDENTITY)):
        with pytest.raises(StorageError, match=f"schema {SCHEMA + 1}"):
            way(path)


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    text, empty, foreign = tmp_path / "text.db", tmp_path / "empty.db", tmp_path / "foreign.db"
    text.write_text("learning_rate,seed\n0.1,0\n" * 100)
    empty.touch()
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE people (name TEXT)")
    connection.close()
    before = text.read_bytes(), foreign.read_bytes()
    for wrong, said in (
        (text, "must be an SQLite file"),
        (foreign, "a database of something else"),
        (tmp_path, "is a folder"),
        (text / "sweep.db", "a folder that can be made"),
    ):
        with pytest.raises(StorageError, match=said):
            Store.open(wrong, IDENTITY)
    for other in (text, foreign, tmp_path / "missing.db"):
        with pytest.raises(StorageError):
            Store.read(other)
    assert (text.read_bytes(), foreign.read_bytes()) == before
    Store.open(empty, IDENTITY).close()  # nothing was in it


def test_a_damaged_store_is_refused(path: Path, trials: list[SweepTrial], make_run: MakeRun) -> None:
    with Store.open(path, IDENTITY) as store:
        for trial in trials:
            store.put(trial)
        store.put_run("b8", make_run())
        for curve in ("{", "[1]", '[{"examples": 1}]', '[{"examples": "many"}]'):
            with sqlite3.connect(path) as connection:
                connection.execute("UPDATE trials SET curve = ?", (curve,))
                connection.execute("UPDATE runs SET result = ?", (curve,))
            connection.close()
            for asked in (store.trials, lambda: store.run("b8")):
                with pytest.raises(StorageError, match="must be whole"):
                    asked()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="must be whole"):
        Store.open(path, IDENTITY)


# --- where it is ------------------------------------------------------------------------------------------------------


def test_any_place_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: list[SweepTrial]) -> None:
    monkeypatch.chdir(tmp_path)
    relative = Path("a new folder") / "50% of it?" / "my #1 sweep's.db"
    with Store.open(relative, IDENTITY) as store:
        monkeypatch.chdir("/")
        store.put(trials[0])
        assert store.path == tmp_path / relative
    assert [p.name for p in (tmp_path / relative).parent.iterdir()] == [relative.name]
    with Store.read(tmp_path / relative) as reader:
        assert reader.trials() == trials[:1]


def test_a_full_disk_loses_nothing_that_was_written(path: Path, trials: list[SweepTrial]) -> None:
    def fill() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Store.open(path, IDENTITY) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
            for number, trial in enumerate(trials):
                try:
                    store.put(trial)
                except StorageError as error:
                    return f"{number}: {error}"
        return "never"

    number, _, message = (in_child(fill).value or "").partition(": ")
    assert "store" in message
    assert str(path) in message
    with Store.open(path, IDENTITY) as store:
        assert store.trials() == trials[: int(number)]


def test_a_place_that_cannot_be_written(trials: list[SweepTrial]) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        with Store.open(folder / "sweep.db", IDENTITY) as store:
            store.put(trials[0])
        (folder / "sweep.db").chmod(0o444)
        folder.chmod(0o777)

        def as_nobody() -> list[str]:
            if os.getuid() == 0:
                os.chown(folder, 65534, 65534)
                os.setuid(65534)
            said = []
            for name, mode in (("sweep.db", 0o777), ("new.db", 0o555)):
                folder.chmod(mode)
                try:
                    Store.open(folder / name, IDENTITY)
                except StorageError as error:
                    said.append(str(error))
            with Store.read(folder / "sweep.db") as store:
                said.append(str(len(store.trials())))
            return said

        locked, new, count = in_child(as_nobody).value or ("", "", "")
        assert "must be writable" in locked
        assert "may write" in new
        assert count == "1"  # it can be read all the same
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_writer_that_is_killed_leaves_the_store_whole(path: Path, trials: list[SweepTrial]) -> None:
    ours, theirs = os.pipe()

    def write() -> None:
        with Store.open(path, IDENTITY) as store:
            for number in range(10_000):
                store.put(replace(trials[0], seed=number))
                os.write(theirs, b".")

    pid, told = run_in_fork(write), 0
    while told < 20:
        told += len(os.read(ours, 1))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(theirs)
    while rest := os.read(ours, 1 << 16):
        told += len(rest)
    os.close(ours)
    with Store.open(path, IDENTITY) as store:
        assert told <= len(store.trials()) <= told + 1


# --- what the data are ------------------------------------------------------------------------------------------------


class Numbers(Dataset[Any]):
    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.numbers[index], torch.tensor(0)


def test_one_changed_example_makes_other_data(make_workload: Callable[..., Workload]) -> None:
    x, y = torch.randn(1000, 5), torch.randint(0, 3, (1000,))
    workload = make_workload(train=(x, y))
    before = data_fingerprint(workload)
    assert before == data_fingerprint(make_workload(train=(x.t().contiguous().t(), y.clone())))
    x[501, 3] += 1e-6
    assert data_fingerprint(workload) != before  # though the workload is the same object
    assert data_fingerprint(make_workload(validation=(x, y))) != data_fingerprint(make_workload())


def test_of_a_dataset_its_length_and_many_examples_count(make_workload: Callable[..., Workload]) -> None:
    x = torch.randn(512, 5)
    found = [data_fingerprint(make_workload(train=Numbers(x[:n]))) for n in (512, 511)]
    x[256:] += 1  # half of them
    found.append(data_fingerprint(make_workload(train=Numbers(x))))
    assert len(set(found)) == 3


@pytest.mark.parametrize("study", ["sweep", "compare"])
def test_what_was_begun_on_other_data_is_not_resumed(
    make_workload: Callable[..., Workload], tmp_path: Path, study: str
) -> None:
    x, y = torch.randn(1000, 5), torch.randint(0, 3, (1000,))

    def begin() -> object:
        workload = make_workload(train=(x, y))
        if study == "compare":
            return compare(workload, [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path / "s")
        more: dict[str, Any] = {"seeds": 1, "examples": 64, "time_updates": False, "store": tmp_path / "s.db"}
        return sweep(workload, [16], learning_rates=[0.1], **more)

    begin()
    begin()
    x[501, 3] += 1
    with pytest.raises(StorageError, match=r"data [0-9a-f]* instead of"):
        begin()


# --- a sweep that is killed -------------------------------------------------------------------------------------------

SWEEP: dict[str, Any] = {
    "batch_sizes": [4, 16],
    "learning_rates": [0.01, 0.04, 0.16],
    "seeds": 2,
    "target": 0.9,
    "examples": 8_000,
    "evaluate_every": 200,
    "processes": 2,
    "time_updates": False,
}


def without_seconds(record: Sweep) -> list[SweepTrial]:
    return [
        replace(t, sweep_seconds=0.0, stack_size=None, curve=tuple(replace(p, seconds=0.0) for p in t.curve))
        for t in record.trials
    ]


def test_a_sweep_killed_at_any_moment_ends_as_an_unbroken_one(
    make: Callable[..., Workload], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stacks are rounded otherwise than single runs, and which are made depends on what is left.
    monkeypatch.setattr("batchscope.study.ways.refusal", lambda *_: "not here")
    workload, path = make(examples=400, held_out=120), tmp_path / "killed.db"
    kept: dict[Trial, SweepTrial] = {}
    for least in (1, 4, 8):
        pid = run_in_fork(lambda: sweep(workload, store=path, **SWEEP))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.05)
            with contextlib.suppress(StorageError), Store.read(path) as store:  # whose tables may still be being made
                if len(store.trials()) >= least:
                    break
        else:
            break  # it has come to its end
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with Store.open(path, _identity_of(path)) as store:  # which no worker holds
            now = {key_of(trial): trial for trial in store.trials()}
        assert all(now[key] == trial for key, trial in kept.items() if trial.outcome != "pruned")
        kept = now
    assert kept
    resumed = sweep(workload, store=path, **SWEEP)
    unbroken = sweep(workload, **SWEEP | {"processes": 1})
    assert any(trial.outcome == "pruned" for trial in unbroken.trials)
    assert without_seconds(resumed) == without_seconds(unbroken)
    assert [replace(b, trained_as="") for b in resumed.best] == [replace(b, trained_as="") for b in unbroken.best]
    assert not resumed.interrupted


def _identity_of(path: Path) -> dict[str, str]:
    with sqlite3.connect(path) as connection:
        found = dict(connection.execute("SELECT name, value FROM identity").fetchall())
    connection.close()
    return found


# --- a comparison that is killed --------------------------------------------------------------------------------------

PAIRS = [(8, 48), (16, 24), (32, 12)]

# A workload whose updates take a while, so that there is time to kill it in the middle.
SOURCE = """
import os, time
import torch
from torch import nn
from batchscope import Workload

SLEEP = float(os.environ.get("SLEEP", "0"))

class Slow(nn.Linear):
    def forward(self, x):
        if self.training:
            time.sleep(SLEEP)
        return super().forward(x)

x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
slow = Workload(
    model=lambda: nn.Sequential(Slow(4, 8), nn.Dropout(0.1), nn.Linear(8, 2)),
    train=(x[:96], x[:96, :2].relu()), validation=(x[96:], x[96:, :2].relu()), loss=nn.functional.mse_loss,
    optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9), learning_rate=0.05, batch_size=16,
)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "work.py"
    path.write_text(textwrap.dedent(SOURCE))
    return f"{path}:slow"


def finished(store: Path) -> dict[str, str]:
    """The runs that are kept."""
    connection = sqlite3.connect(f"{(store / 'runs.db').as_uri()}?mode=ro", uri=True)
    try:
        return dict(connection.execute("SELECT key, result FROM runs").fetchall())
    except sqlite3.Error:  # its tables are still being made
        return {}
    finally:
        connection.close()


def interrupt_after(examples: int) -> Callable[[ProgressEvent], None]:
    """One Ctrl-C, at the first evaluation after so many examples."""
    to_come = [True]

    def listen(event: ProgressEvent) -> None:
        if event.done > examples and to_come:
            to_come.clear()
            signal.raise_signal(signal.SIGINT)

    return listen


def whole(file: str, store: Path | None = None, **more: Any) -> Comparison:
    return compare(load_workload(file), PAIRS, seeds=2, learning_rate="fixed", store=store, **more)


def test_a_comparison_that_is_killed_goes_on_where_it_was(
    file: str, tmp_path: Path, without_times: Strip, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    monkeypatch.setenv("SLEEP", "0.01")
    slow = load_workload(file)
    monkeypatch.setenv("SLEEP", "0")
    pid = run_in_fork(lambda: compare(slow, PAIRS, seeds=2, learning_rate="fixed", store=store))
    deadline = time.monotonic() + 60
    while not (store / "runs.db").exists() or len(finished(store)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kept = finished(store)
    assert 3 <= len(kept) < 6

    answer = whole(file, store)
    now = finished(store)
    assert len(now) == 6
    assert kept.items() <= now.items(), "a finished run was made again"
    assert without_times(answer) == without_times(whole(file))
    assert not answer.interrupted
    assert answer.total_seconds >= sum(run.total_seconds for run in answer.runs)
    assert not list(store.glob("*.safetensors"))


def test_an_interrupted_run_goes_on_from_its_checkpoint(file: str, tmp_path: Path, without_times: Strip) -> None:
    """In this process: SIGINT comes at an evaluation in the middle of the second run."""
    store = tmp_path / "store"

    first = whole(file, store, progress=interrupt_after(600), evaluate_every=32)
    assert first.interrupted
    assert [run.plan.batch_size for run in first.runs] == [8]
    (checkpoint,) = store.glob("*.safetensors")
    assert checkpoint.name.startswith("run-b16-s0-")
    events: list[ProgressEvent] = []
    answer = whole(file, store, evaluate_every=32, progress=events.append)
    assert without_times(answer) == without_times(whole(file, evaluate_every=32))
    assert [event.done for event in events if event.done < 768][:2] == [384, 640], "it did not go on where it was"


def test_an_interrupted_search_goes_on_too(workload: Workload, tmp_path: Path, without_times: Strip) -> None:
    pairs = [(8, 16), (32, 4)]
    first = compare(workload, pairs, seeds=1, store=tmp_path, progress=interrupt_after(127))
    assert first.interrupted
    assert first.runs == ()
    assert first.conclusion.startswith("No run finished in order")
    assert "edge" not in first.conclusion
    trials = finished(tmp_path)
    assert trials
    answer = compare(workload, pairs, seeds=1, store=tmp_path)
    assert trials.items() <= finished(tmp_path).items()
    assert without_times(answer) == without_times(compare(workload, pairs, seeds=1))


def test_other_plans_live_in_one_store(workload: Workload, tmp_path: Path, without_times: Strip) -> None:
    compare(workload, [(16, 8)], seeds=1, learning_rate="fixed", store=tmp_path)
    before = finished(tmp_path)
    variants: list[dict[str, Any]] = [
        {"seeds": 2},
        {"shape": "constant"},
        {"order": "replacement"},
        {"evaluate_every": 64},
        {"micro_batch_size": 4},
        {"seed": 10**6},  # whose last six digits are those of seed 0
        {"learning_rate": "rescaled"},
    ]
    for number, change in enumerate(variants, start=2):
        arguments: dict[str, Any] = {"seeds": 1, "learning_rate": "fixed"} | change
        stored = compare(workload, [(16, 8)], store=tmp_path, **arguments)
        assert without_times(stored) == without_times(compare(workload, [(16, 8)], **arguments))
        assert len(finished(tmp_path)) == number
    assert before.items() <= finished(tmp_path).items()


def absolute_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(target, 3).sub(output).abs().mean()


def _another_model(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(5, 3), kind())


class _Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class _Tripled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


_Tripled.__name__ = _Tripled.__qualname__ = "_Doubled"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"learning_rate": 0.2}),
        ({}, {"batch_size": 8}),
        ({}, {"loss": absolute_error}),
        ({"loss": lambda o, t: 3 * absolute_error(o, t)}, {"loss": lambda o, t: 2 * absolute_error(o, t)}),
        ({"loss": nn.CrossEntropyLoss()}, {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}),
        ({"score": lambda o, t: 0.0}, {"score": lambda o, t: 1.0}),
        ({"forward": lambda m, b: (m(b[0]), b[1])}, {"forward": lambda m, b: (-m(b[0]), b[1])}),
        ({}, {"optimizer": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.5)}),
        ({}, {"optimizer": lambda params, lr: torch.optim.Adam(params, lr=lr)}),
        ({"model": _another_model(nn.ReLU)}, {"model": _another_model(nn.Tanh)}),
        ({"model": lambda: _Doubled(5, 3)}, {"model": lambda: _Tripled(5, 3)}),
        (
            {"model": lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.1))},
            {"model": lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.2))},
        ),
    ],
)
def test_a_store_of_another_workload_is_refused(
    make_workload: Callable[..., Workload], tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    compare(make_workload(**one), [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path)
    compare(make_workload(**one), [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path)  # the same again
    with pytest.raises(StorageError, match=r"workload \w+ instead of \w+\. Name another"):
        compare(make_workload(**other), [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path)


def test_a_store_that_is_a_file_or_below_one_is_refused(workload: Workload, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    events: list[ProgressEvent] = []
    with pytest.raises(StorageError, match=r"store is a folder; got .*file, which is a file\. Name another"):
        compare(workload, [(16, 2)], seeds=1, store=path, progress=events.append)
    with pytest.raises(StorageError):
        compare(workload, [(16, 2)], seeds=1, store=path / "deeper", progress=events.append)
    assert path.read_text() == "mine"
    assert events == []


def test_a_store_may_move(workload: Workload, tmp_path: Path) -> None:
    compare(workload, [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    before = finished(tmp_path / "b")
    compare(workload, [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path / "b")
    assert finished(tmp_path / "b") == before


def test_a_folder_of_the_release_before_is_refused(workload: Workload, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text("{}")
    with pytest.raises(StorageError, match=r"runs in runs\.db; got .* older release.* Name another folder"):
        compare(workload, [(16, 2)], seeds=1, store=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]

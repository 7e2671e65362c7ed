"""The store of a sweep: what is in it stays, whoever writes, whatever happens, and it is of one sweep alone."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchscope.errors import StorageError
from batchscope.measure.child import in_child
from batchscope.records import CurvePoint, Outcome, TrainResult
from batchscope.study.owners import is_alive, process_of, started_at
from batchscope.study.tasks import Conditions, Ended, Standing, Trial
from batchscope.study.trial_store import SCHEMA, TrialStore, standing_of

MakeRun = Callable[..., TrainResult]
CONDITIONS = Conditions(target=0.9, budget_examples=1000, evaluate_every=100)
IDENTITY = {"workload": "f00d", "batchscope": "0.1.0", "torch": "2.13.0", "device": "cpu"}
ME = f"{socket.gethostname()}:{os.getpid()}:me"
OTHER = f"{socket.gethostname()}:{os.getpid()}:other"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep.db"


def opened(path: str | Path, **changes: Any) -> TrialStore:
    return TrialStore.open(path, IDENTITY, replace(CONDITIONS, **changes))


@pytest.fixture
def store(path: Path) -> Iterator[TrialStore]:
    with opened(path) as store:
        yield store


def ended(run: TrainResult, outcome: Outcome, **changes: Any) -> TrainResult:
    return replace(run, outcome=outcome, reached=outcome == "reached", **changes)


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_a_trial_comes_back_as_it_was(path: Path, make_run: MakeRun) -> None:
    trial = Trial(8, 0.1 + 0.2, 2**63 - 1)
    run = ended(make_run(), "reached", examples=640, iterations=80, stack_size=12, message=None, best_score=1 / 3)
    odd = replace(run.curve[1], score=math.nan, validation_loss=math.inf, training_loss=-math.inf)
    run = replace(run, curve=(*run.curve[:1], odd, *run.curve[2:]), training_loss=math.inf)
    with opened(path) as store:
        store.finish(trial, run, worker="atlas:1")
    with opened(path) as store:
        # nan is not equal to itself.
        assert repr(store.result(trial)) == repr(run)
        assert store.standings() == [Standing(trial, "reached", 640, 1 / 3, run.best_loss)]
        [kept] = store.trials()
        assert repr(kept.curve) == repr(run.curve)
        assert {name: value for name, value in asdict(kept).items() if name != "curve"} == {
            "batch_size": 8,
            "learning_rate": 0.1 + 0.2,
            "seed": 2**63 - 1,
            "outcome": "reached",
            "examples_to_target": 640,
            "examples": 640,
            "iterations": 80,
            "best_score": 1 / 3,
            "best_loss": run.best_loss,
            "final_score": run.final_score,
            "step_seconds": None,
            "sweep_seconds": run.total_seconds,
            "stack_size": 12,
            "message": None,
        }
        assert store.result(Trial(8, 0.3, 0)) is None


@pytest.mark.parametrize(
    ("outcome", "stands", "final"),
    [
        ("reached", "reached", True),
        ("finished", "missed", True),
        ("stopped early", "missed", True),
        ("diverged", "diverged", False),
        ("pruned", "pruned", False),
        ("out of memory", "failed", False),
    ],
)
def test_outcomes(store: TrialStore, make_run: MakeRun, outcome: Outcome, stands: Ended, *, final: bool) -> None:
    trial, run = Trial(8, 0.1, 0), ended(make_run(), outcome)
    store.finish(trial, run)
    assert store.standings() == [standing_of(trial, run)]
    assert store.standings()[0].ended == stands
    [kept] = store.trials()
    assert kept.outcome == ("finished" if outcome == "stopped early" else outcome)
    assert (kept.final_score is not None) == final
    assert (kept.examples_to_target is not None) == (outcome == "reached")


def test_a_trial_lost_with_its_process(store: TrialStore, make_run: MakeRun) -> None:
    trial, curve = Trial(8, 0.1, 0), make_run().curve[:3]
    store.fail(trial, "timed out", "nothing was heard of it for 300 s", curve=curve)
    [kept] = store.trials()
    assert (kept.outcome, kept.message, kept.curve) == ("timed out", "nothing was heard of it for 300 s", curve)
    assert (kept.examples, kept.iterations, kept.best_score) == (400, 50, 0.45)
    assert store.result(trial) is None
    assert [standing.ended for standing in store.standings()] == ["failed"]


def test_an_interrupted_run_is_no_result(store: TrialStore, make_run: MakeRun) -> None:
    store.finish(Trial(8, 0.1, 0), ended(make_run(), "interrupted"))
    assert store.standings() == []


LATER = st.sampled_from(["reached", "finished", "diverged", "pruned", "out of memory", "crashed"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@example([("pruned", 50), ("pruned", 10), ("pruned", 60)])
@given(st.lists(st.tuples(LATER, st.integers(0, 50)), min_size=1, max_size=6))
def test_what_has_ended_stays_and_the_rest_gives_way(make_run: MakeRun, story: list[tuple[Any, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "sweep.db") as store:
        expected: tuple[str, int] | None = None
        for outcome, examples in story:
            if outcome == "crashed":
                store.fail(Trial(8, 0.1, 0), "crashed", "killed by SIGSEGV")
            else:
                store.finish(Trial(8, 0.1, 0), ended(make_run(), outcome, examples=examples))
            if (
                expected is None
                or expected[0] in ("out of memory", "crashed")
                or (expected[0] == "pruned" and not (outcome == "pruned" and examples < expected[1]))
            ):
                expected = (outcome, 0 if outcome == "crashed" else examples)
        [kept] = store.trials()
        assert (kept.outcome, kept.examples) == expected


# --- whose it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "conditions", "said"),
    [
        ({"workload": "beef"}, {}, "workload f00d instead of beef"),
        ({"torch": "2.6.0"}, {}, "torch 2.13.0 instead of 2.6.0"),
        ({"device": "cuda"}, {}, "device cpu instead of cuda"),
        ({}, {"target": 0.95}, "target 0.9 instead of 0.95"),
        ({}, {"target": None}, "target 0.9 instead of null"),
        ({}, {"budget_examples": 2000}, "budget_examples 1000 instead of 2000"),
        ({}, {"evaluate_every": 50}, "evaluate_every 100 instead of 50"),
        ({}, {"shape": "linear"}, 'shape "constant" instead of "linear"'),
        ({}, {"order": "replacement"}, "order"),
        ({"new": "1"}, {}, "new missing instead of 1"),
    ],
)
def test_the_store_of_something_else_is_refused(
    path: Path, identity: dict[str, str], conditions: dict[str, Any], said: str
) -> None:
    opened(path).close()
    with pytest.raises(StorageError) as caught:
        TrialStore.open(path, IDENTITY | identity, replace(CONDITIONS, **conditions))
    assert said in str(caught.value)
    assert "Name another file" in str(caught.value)
    opened(path).close()  # and is as it was


def test_with_and_without_pruning_it_is_the_same_store(path: Path) -> None:
    opened(path).close()
    opened(path, pruning=False).close()


def test_a_store_of_another_release_is_refused(path: Path) -> None:
    opened(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    with pytest.raises(StorageError, match=f"schema {SCHEMA + 1}"):
        opened(path)


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    text, empty, foreign = tmp_path / "text.db", tmp_path / "empty.db", tmp_path / "foreign.db"
    text.write_text("learning_rate,seed\n0.1,0\n" * 100)
    empty.touch()
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE people (name TEXT)")
    connection.close()
    before = text.read_bytes(), foreign.read_bytes()
    with pytest.raises(StorageError, match="must be an SQLite file"):
        opened(text)
    with pytest.raises(StorageError, match="a database of something else"):
        opened(foreign)
    with pytest.raises(StorageError, match="is a folder"):
        opened(tmp_path)
    with pytest.raises(StorageError, match="a folder that can be made"):
        opened(text / "sweep.db")
    for other in (text, foreign, tmp_path / "missing.db"):
        with pytest.raises(StorageError):
            TrialStore.read(other)
    assert (text.read_bytes(), foreign.read_bytes()) == before
    opened(empty).close()  # nothing was in it


def test_a_damaged_store_is_refused(path: Path, make_run: MakeRun) -> None:
    with opened(path) as store:
        for seed in range(40):
            store.finish(Trial(8, 0.1, seed), make_run(seed=seed))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="must be whole"):
        opened(path)
    pages = bytearray(whole)
    pages[8192 : len(pages) - 4096] = os.urandom(len(pages) - 4096 - 8192)
    path.write_bytes(pages)
    with pytest.raises(StorageError, match="must be whole"):
        opened(path)


def test_a_curve_that_was_edited_is_told_of(path: Path, make_run: MakeRun) -> None:
    with opened(path) as store:
        store.finish(Trial(8, 0.1, 0), make_run())
        for curve in ("{", "[1]", '[{"examples": 1}]', '[{"examples": "many"}]'):
            with sqlite3.connect(path) as connection:
                connection.execute("UPDATE trials SET curve = ?", (curve,))
            connection.close()
            with pytest.raises(StorageError, match="must be whole"):
                store.trials()
            with pytest.raises(StorageError, match="must be whole"):
                store.result(Trial(8, 0.1, 0))


# --- where it is ------------------------------------------------------------------------------------------------------


def test_any_place_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_run: MakeRun) -> None:
    monkeypatch.chdir(tmp_path)
    relative = Path("a new folder") / "50% of it?" / "my #1 sweep's.db"
    with opened(relative) as store:
        monkeypatch.chdir("/")
        store.finish(Trial(8, 0.1, 0), make_run())
        assert store.path == tmp_path / relative
    with opened(tmp_path / relative) as store, TrialStore.read(tmp_path / relative) as reader:
        assert len(store.standings()) == len(reader.standings()) == 1


def test_a_full_disk_loses_nothing_that_was_written(path: Path, make_run: MakeRun) -> None:
    with opened(path) as store:
        for seed in range(5):
            store.finish(Trial(8, 0.1, seed), make_run(seed=seed))

        def fill() -> str:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            most = Path(f"{path}-wal").stat().st_size + 40_000 if Path(f"{path}-wal").exists() else 80_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            for seed in range(5, 1000):
                try:
                    store.finish(Trial(8, 0.1, seed), make_run(seed=seed))
                except StorageError as error:
                    return f"{seed}: {error}"
            return "never"

        said = in_child(fill).value
    assert said is not None
    number, _, message = said.partition(": ")
    assert "store" in message
    assert str(path) in message
    with opened(path) as store:
        assert [standing.trial.seed for standing in store.standings()] == list(range(int(number)))


def test_a_place_that_cannot_be_written(make_run: MakeRun) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        with opened(folder / "sweep.db") as store:
            store.finish(Trial(8, 0.1, 0), make_run())
        for place, mode in ((folder / "sweep.db", 0o444), (folder, 0o555)):
            place.chmod(mode)

        def as_nobody() -> list[str]:
            if os.getuid() == 0:
                os.setuid(65534)
            said = []
            for name in ("sweep.db", "new.db"):
                try:
                    opened(folder / name)
                except StorageError as error:
                    said.append(str(error))
            with TrialStore.read(folder / "sweep.db") as store:
                said.append(str(len(store.standings())))
            return said

        said = in_child(as_nobody).value
        assert said is not None
        assert len(said) == 3
        assert "must be writable" in said[0]
        assert "may write" in said[1]
        assert said[2] == "1"  # it can be read all the same
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


# --- several at once --------------------------------------------------------------------------------------------------


def children(number: int, work: Callable[[int], object]) -> None:
    """Forks that do their work at once, and end well."""
    pids = []
    for place in range(number):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(place)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * number


def test_four_processes_write_at_once(store: TrialStore, path: Path, make_run: MakeRun) -> None:
    """Each through the connection that it makes of the one that it inherits, and the parent beside them."""
    trials = [Trial(8, 0.1, seed) for seed in range(50)]
    assert set(store.claim(trials, ME)) == set(trials)

    def work(place: int) -> None:
        for seed in range(50):
            store.finish(Trial(8 * 2**place, 0.1, seed), make_run(seed=seed), worker=str(place))

    children(4, work)
    for seed in range(50):
        store.finish(Trial(1, 0.1, seed), make_run(seed=seed))
    assert [tuple(standing.trial) for standing in store.standings()] == [
        (size, 0.1, seed) for size in (1, 8, 16, 32, 64) for seed in range(50)
    ]
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT count(*) FROM claims").fetchone() == (0,)
        assert connection.execute("SELECT DISTINCT owner FROM trials WHERE batch_size = 8").fetchall() == [(ME,)]
    connection.close()


def test_no_connection_is_carried_over_a_fork(store: TrialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither side goes on with the one that there was: each makes its own, when it needs one."""
    made: list[int] = []
    connect = sqlite3.connect

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(os.getpid())
        return connect(*arguments, **options)

    store.standings()
    monkeypatch.setattr(sqlite3, "connect", counted)
    store.standings()
    assert made == []

    def work(_: int) -> None:
        store.standings()
        assert made == [os.getpid()]

    children(2, work)
    store.standings()
    assert made == [os.getpid()]


def test_processes_that_open_a_new_store_at_once(path: Path, make_run: MakeRun) -> None:
    def work(place: int) -> None:
        with opened(path) as store:
            store.finish(Trial(8, 0.1, place), make_run())

    children(6, work)
    with opened(path) as store:
        assert len(store.standings()) == 6


def test_a_writer_that_is_killed_leaves_the_store_whole(path: Path, make_run: MakeRun) -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        with opened(path) as store:
            for seed in range(10_000):
                store.finish(Trial(8, 0.1, seed), make_run(seed=seed))
                os.write(theirs, b".")
    told = 0
    while told < 20:
        told += len(os.read(ours, 1))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(theirs)
    while rest := os.read(ours, 1 << 16):
        told += len(rest)
    os.close(ours)
    with opened(path) as store:
        kept = [standing.trial.seed for standing in store.standings()]
        assert kept == list(range(len(kept)))
        assert told <= len(kept) <= told + 1
        assert len(store.trials()) == len(kept)


# --- claims -----------------------------------------------------------------------------------------------------------

TRIALS = tuple(Trial(8, rate, 0) for rate in (0.1, 0.2, 0.4))


def test_nobody_gets_what_another_has(path: Path, store: TrialStore, make_run: MakeRun) -> None:
    with opened(path) as second:
        assert store.claim(TRIALS[:2], ME) == TRIALS[:2]
        assert second.claim(TRIALS[::-1], OTHER) == TRIALS[2:]
        assert store.claim(TRIALS, ME) == TRIALS[:2]  # its own again
        store.finish(TRIALS[0], make_run())
        assert second.claim(TRIALS, OTHER) == TRIALS[2:]
        store.release(ME)
        assert second.claim(TRIALS, OTHER) == TRIALS[1:]


def test_what_was_pruned_can_be_claimed_by_who_knows_it(path: Path, store: TrialStore, make_run: MakeRun) -> None:
    with opened(path) as second:
        store.claim(TRIALS, ME)
        store.finish(TRIALS[0], ended(make_run(), "pruned"))
        store.fail(TRIALS[1], "crashed", "killed by SIGSEGV")
        assert second.claim(TRIALS[:2], OTHER) == ()
        assert [standing.ended for standing in second.standings()] == ["pruned", "failed"]
        assert second.claim(TRIALS[:2], OTHER) == TRIALS[:1]
        assert store.claim(TRIALS[:2], ME) == ()  # being trained there
        second.release(OTHER)
        assert store.claim(TRIALS[:2], ME) == TRIALS[:1]  # pruned by itself


def test_the_claims_of_a_process_that_died_can_be_taken(path: Path, store: TrialStore) -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        store.claim(TRIALS, f"{socket.gethostname()}:{os.getpid()}:child")
        os.write(theirs, b".")
        time.sleep(60)
        os._exit(0)
    assert os.read(ours, 1) == b"."
    assert store.claim(TRIALS, ME) == ()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert store.claim(TRIALS[:1], ME) == TRIALS[:1]  # dead, though nobody has collected it yet
    os.waitpid(pid, 0)
    assert store.claim(TRIALS, ME) == TRIALS
    os.close(ours)
    os.close(theirs)


def test_elsewhere_it_is_a_minute_of_silence_that_counts(
    path: Path, store: TrialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    elsewhere = "another.machine.example:1:x"
    with opened(path) as second:
        second.claim(TRIALS, elsewhere)
        monkeypatch.setattr(time, "time", lambda: now + 50)
        assert store.claim(TRIALS, ME) == ()
        second.heartbeat(elsewhere)
        monkeypatch.setattr(time, "time", lambda: now + 100)
        assert store.claim(TRIALS, ME) == ()
        monkeypatch.setattr(time, "time", lambda: now + 120)
        assert store.claim(TRIALS, ME) == TRIALS


def test_a_number_used_again_is_another_process() -> None:
    started = started_at(ME)
    assert started is not None
    assert is_alive(ME, started, math.inf)
    assert not is_alive(ME, started - 1, 0.0)
    assert process_of("a:b:c") is None
    assert started_at("elsewhere.example:1:x") is None


def test_two_sweeps_share_the_work_and_train_nothing_twice(path: Path, make_run: MakeRun) -> None:
    trials = [Trial(size, 0.1, seed) for size in (8, 16) for seed in range(30)]
    opened(path).close()

    def work(place: int) -> None:
        me = f"{socket.gethostname()}:{os.getpid()}:{place}"
        with opened(path) as store:
            while len(store.standings()) < len(trials):
                known = {standing.trial for standing in store.standings()}
                wanted = [trial for trial in trials if trial not in known][:4]
                for trial in store.claim(wanted, me):
                    store.finish(trial, make_run(), worker=me)
                    with (path.parent / "log").open("a") as log:
                        print(trial, file=log)

    children(3, work)
    lines = (path.parent / "log").read_text().splitlines()
    assert sorted(lines) == sorted(map(str, trials))


def test_a_seed_too_large_for_the_file(store: TrialStore) -> None:
    with pytest.raises(StorageError, match=r"below 2\*\*63"):
        store.claim([Trial(8, 0.1, 2**63)], ME)


# --- time over sittings -----------------------------------------------------------------------------------------------


def test_seconds_add_up_over_sittings(path: Path, monkeypatch: pytest.MonkeyPatch, make_run: MakeRun) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    with opened(path) as store:
        assert store.total_seconds() == 0.0
        now += 2
        store.claim(TRIALS, "here:1:a")
        now += 10
        store.finish(TRIALS[0], make_run())  # by a worker, on behalf of whoever claimed it
        now += 500  # killed
    with opened(path) as store:
        assert store.total_seconds() == 12.0
        store.claim(TRIALS, "here:2:b")
        now += 5
        with opened(path) as second:  # beside it
            second.claim(TRIALS, "here:3:c")
            now += 5
            second.release("here:3:c")
        now += 3
        store.heartbeat("here:2:b")
        now += 4
        store.heartbeat("here:2:b")  # too soon to be written
        assert store.total_seconds() == 12.0 + 13.0
        store.release("here:2:b")
        assert store.total_seconds() == 12.0 + 17.0
        now -= 3600  # a clock that was set back takes nothing away
        store.heartbeat("here:2:b")
        assert store.total_seconds() == 29.0


def test_a_store_is_a_plain_database_for_other_programs(path: Path, make_run: MakeRun) -> None:
    with opened(path) as store:
        store.finish(Trial(8, 0.1, 0), make_run())
    with sqlite3.connect(path) as connection:
        [(result, curve)] = connection.execute("SELECT result, curve FROM trials").fetchall()
        assert json.loads(result)["provenance"]["torch"] == "x"
        assert [CurvePoint(**point) for point in json.loads(curve)] == list(make_run().curve)
    connection.close()


def test_a_fork_beside_a_thread_that_writes(store: TrialStore) -> None:
    """It waits until the thread is out of its transaction, and both sides go on."""
    stop: list[bool] = []

    def write() -> None:
        while not stop:
            store.claim(TRIALS, ME)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(10):
            children(1, lambda _: store.standings())
    finally:
        stop.append(True)
        thread.join()
    assert store.claim(TRIALS, ME) == TRIALS


def test_random_state_is_left_alone(store: TrialStore, make_run: MakeRun) -> None:
    before = torch.get_rng_state()
    store.claim(TRIALS, ME)
    store.finish(TRIALS[0], make_run())
    assert torch.equal(torch.get_rng_state(), before)

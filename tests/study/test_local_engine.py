"""Workers on this machine: trials as by plain runs, whatever happens to a worker, and nothing lost with the driver."""

from __future__ import annotations

import itertools
import os
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from batchscope.errors import StorageError
from batchscope.records import CurvePoint, Plan, TrainResult
from batchscope.study import ways
from batchscope.study.channel import Channel
from batchscope.study.here_engine import HereEngine
from batchscope.study.local_engine import LocalEngine, local_engine
from batchscope.study.patience import Patience
from batchscope.study.tasks import (
    Began,
    Conditions,
    Engine,
    Evaluated,
    Event,
    Finished,
    Lost,
    Standing,
    Task,
    TaskDone,
    Trial,
)
from batchscope.study.trial_store import TrialStore
from batchscope.study.worker_process import cause_of_death
from batchscope.training import Prepared, Run
from batchscope.training.ways import FastestWay
from batchscope.workload import Workload

Make = Callable[..., Workload]
CPU = torch.device("cpu")
CONDITIONS = Conditions(target=None, budget_examples=240, evaluate_every=80, pruning=False)
# The rate at which a workload does what a test wants it to.
BAD = 0.5


def events_of(engine: Engine, *tasks: Task, begun: int = 0) -> list[Event]:
    """Everything until each task is done or lost, and as many that began before."""
    for task in tasks:
        engine.submit(task)
    left, events = len(tasks) + begun, list[Event]()
    deadline = time.monotonic() + 60
    while left:
        assert time.monotonic() < deadline, events
        event = engine.next_event(0.5)
        if event is not None:
            events.append(event)
            left -= isinstance(event, (TaskDone, Lost))
    return events


def results_of(events: list[Event]) -> dict[Trial, TrainResult]:
    return {event.trial: event.result for event in events if isinstance(event, Finished)}


def alone(workload: Workload, trial: Trial, conditions: Conditions = CONDITIONS) -> TrainResult:
    return Run(
        Prepared(workload, CPU), conditions.plan(trial), seed=trial.seed, evaluate_every=conditions.evaluate_every
    )()


def points(result: TrainResult) -> list[tuple[Any, ...]]:
    return [(p.examples, p.iterations, p.training_loss, p.validation_loss, p.score) for p in result.curve]


def identity(workload: Workload) -> dict[str, str]:
    return {"workload": workload.title}


@pytest.fixture(params=["workers", "here"])
def engine_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., Engine]]:
    """Either engine."""
    entered: list[Engine] = []

    def make(workload: Workload, conditions: Conditions = CONDITIONS, **more: Any) -> Engine:
        prepared = Prepared(workload, CPU)
        if request.param == "workers":
            entered.append(LocalEngine(prepared, conditions, processes=2, **more))
        else:
            entered.append(HereEngine(prepared, conditions, **more))
        return entered[-1].__enter__()

    yield make
    for engine in entered:
        engine.__exit__(None, None, None)


@pytest.fixture
def workers_of(make: Make) -> Iterator[Callable[..., LocalEngine]]:
    """Two workers on a workload that does something of its own at the learning rate BAD."""
    entered: list[LocalEngine] = []

    def begin(deed: Callable[[], object], **more: Any) -> LocalEngine:
        prepared = Prepared(misbehaving(make, deed), CPU)
        entered.append(LocalEngine(prepared, CONDITIONS, **({"processes": 2} | more)).__enter__())
        return entered[-1]

    yield begin
    for engine in entered:
        engine.__exit__(None, None, None)


def misbehaving(make: Make, deed: Callable[[], object], *, rate: float | None = BAD) -> Workload:
    """A workload that does something of its own before the third update, at one learning rate or at all."""
    bad = rate

    def optimizer(parameters: Any, rate: float) -> torch.optim.Optimizer:
        made, updates = torch.optim.SGD(parameters, lr=rate), itertools.count(1)

        def before(*_: object) -> None:
            if next(updates) == 3 and bad in (None, rate):
                deed()

        made.register_step_pre_hook(before)
        return made

    return make("mlp", optimizer=optimizer)


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_trials_are_those_of_plain_runs(make: Make, engine_of: Callable[..., Engine]) -> None:
    workload = make("dropout")
    tasks = [
        Task(0, (Trial(8, 0.05, 0), Trial(8, 0.1, 3)), way="separate"),
        Task(1, (Trial(16, 0.05, 0),), way="separate"),
        Task(2, (Trial(4, 0.02, 1),), way="separate"),
    ]
    engine = engine_of(workload)
    events = events_of(engine, *tasks)
    results = results_of(events)
    assert set(results) == {trial for task in tasks for trial in task.trials}
    for trial, result in results.items():
        assert points(result) == points(alone(workload, trial))
        assert result.provenance.seed == trial.seed
        assert result.state is None
    for task in tasks:
        own = [event for event in events if event.task == task.number]
        assert isinstance(own[0], Began)
        assert isinstance(own[-1], TaskDone)
        assert "separate runs" in own[-1].trained_as
        told = [event for event in own if isinstance(event, Evaluated)]
        assert [e.point for e in told] == [point for t in task.trials for point in results[t].curve]
    assert engine.next_event(0.0) is None


def test_finished_trials_are_in_the_store_before_they_are_told_of(
    make: Make, engine_of: Callable[..., Engine], tmp_path: Path
) -> None:
    workload = make("mlp")
    with TrialStore.open(tmp_path / "sweep.db", identity(workload), CONDITIONS) as store:
        engine = engine_of(workload, store=store)
        assert engine.stores
        trials = tuple(Trial(8, rate, 0) for rate in (0.01, 0.02, 0.04))
        engine.submit(Task(0, trials))
        left = set(trials)
        while left:
            event = engine.next_event(60.0)
            assert event is not None
            if isinstance(event, Finished):
                assert store.result(event.trial) == event.result
                left.remove(event.trial)


def test_what_is_told_reaches_a_task_that_runs(make: Make, workers_of: Callable[..., LocalEngine]) -> None:
    """A rate that others have beaten is pruned, though nothing said so when its task began."""
    begun, target = Trial(4, 0.01, 0), 2.0
    conditions = Conditions(target=target, budget_examples=10**8, evaluate_every=400)
    with LocalEngine(Prepared(make("mlp"), CPU), conditions, processes=1) as engine:
        engine.submit(Task(0, (begun,)))
        assert isinstance(engine.next_event(60.0), Began)
        assert isinstance(engine.next_event(60.0), Evaluated)
        engine.tell(
            [Standing(Trial(4, 0.1, 0), "reached", 100, target, 0.1), Standing(Trial(8, 1, 0), "reached", 1, 2, 0)]
        )
        results = results_of(events_of(engine, Task(1, (Trial(4, 0.02, 0),)), begun=1))
    # The one that waited, and had not been told when it was submitted, knew it as well.
    assert [result.outcome for result in results.values()] == ["pruned", "pruned"]


def test_what_one_worker_has_measured_the_other_does_not_measure_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(_: Prepared, plan: Plan, count: int) -> FastestWay:
        with (tmp_path / "log").open("a") as log:
            print(plan.batch_size, count, file=log)
        return FastestWay(1, False, False, 1.0, 1.0, "measured")

    monkeypatch.setattr(ways, "fastest_way", measure)
    monkeypatch.setattr(ways, "WORTH_UPDATES", 1)
    with LocalEngine(Prepared(make("mlp"), CPU), CONDITIONS, processes=2) as engine:
        for round_ in range(2):  # the second time, the other way round
            sizes = (8, 16)[:: 1 - 2 * round_]
            events = events_of(
                engine, *(Task(2 * round_ + place, (Trial(size, 0.1, round_),)) for place, size in enumerate(sizes))
            )
            assert {e.trained_as for e in events if isinstance(e, TaskDone)} == {"separate runs: measured"}
            assert len({e.worker for e in events if isinstance(e, Began)}) == 2
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["16 1", "8 1"]


def test_workers_have_a_core_and_a_thread_of_their_own(make: Make) -> None:
    cores: list[Any] = []

    def look() -> nn.Module:
        if os.getpid() != driver:
            raise RuntimeError(
                f"{sorted(os.sched_getaffinity(0))} {torch.get_num_threads()} {os.getpgrp() == os.getpid()}"
            )
        return nn.Linear(6, 3)

    driver, threads = os.getpid(), torch.get_num_threads()
    with LocalEngine(Prepared(make("mlp", model=look), CPU), CONDITIONS, processes=2) as engine:
        torch.set_num_threads(2)
        try:
            events = events_of(engine, Task(0, (Trial(8, 0.1, 0),)), Task(1, (Trial(8, 0.1, 1),)))
        finally:
            torch.set_num_threads(threads)
        cores = [event.reason for event in events if isinstance(event, Lost)]
    mine = sorted(os.sched_getaffinity(0))
    assert set(cores) == {f"RuntimeError: [{core}] 1 True" for core in mine[:2]}


# --- what may happen to a worker --------------------------------------------------------------------------------------


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    while True:
        time.sleep(1)


def fail() -> None:
    raise ValueError("no such thing\nand more")


def leave() -> None:
    sys.exit(7)


def leave_at_once() -> None:
    os._exit(7)


# Where the place of the crash is told on the error stream, which the plug-in that runs tests in parallel takes away.
CRASHED = r'killed by SIGSEGV in File ".*test_local_engine.py", line \d+ in crash'
if "PYTEST_XDIST_WORKER" in os.environ:
    CRASHED = rf"killed by SIGSEGV|{CRASHED}"


@pytest.mark.parametrize(
    ("deed", "outcome", "reason"),
    [
        (crash, "crashed", CRASHED),
        (be_killed, "out of memory", "killed by signal 9, as the system does when memory runs out"),
        (leave_at_once, "crashed", "its process ended by itself, with status 7"),
        (leave, "crashed", "SystemExit: 7"),
        (fail, "crashed", "ValueError: no such thing"),
    ],
)
def test_a_worker_that_is_lost_costs_its_task_alone(
    workers_of: Callable[..., LocalEngine], deed: Callable[[], object], outcome: str, reason: str
) -> None:
    engine = workers_of(deed)
    tasks = [Task(0, (Trial(8, 0.1, 0), Trial(8, BAD, 0), Trial(8, 0.2, 0)), way="separate")]
    tasks += [Task(number, (Trial(8, 0.1, number),)) for number in range(1, 6)]
    events = events_of(engine, *tasks)
    [lost] = [event for event in events if isinstance(event, Lost)]
    assert (lost.task, lost.outcome, lost.blameless) == (0, outcome, False)
    assert re.fullmatch(reason, lost.reason), lost.reason
    # The one before it was finished and told of; the tasks of others all went on.
    assert set(results_of(events)) == {Trial(8, 0.1, number) for number in range(6)}


def test_a_worker_that_hangs_is_given_up(workers_of: Callable[..., LocalEngine]) -> None:
    engine = workers_of(hang, timeout_seconds=3.0)
    events = events_of(engine, Task(0, (Trial(8, BAD, 0),), way="separate"), Task(1, (Trial(8, 0.1, 0),)))
    [lost] = [event for event in events if isinstance(event, Lost)]
    assert lost == Lost(0, "timed out", "nothing was heard of it for 3 s")
    assert set(results_of(events)) == {Trial(8, 0.1, 0)}


def allocate() -> None:
    status = {line.split(":")[0]: line for line in Path("/proc/self/status").read_text().splitlines()}
    size = int(status["VmSize"].split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
    torch.ones(1 << 28)


def test_memory_that_runs_out_is_an_outcome(workers_of: Callable[..., LocalEngine]) -> None:
    engine = workers_of(allocate, processes=1)
    [result] = results_of(events_of(engine, Task(0, (Trial(8, BAD, 0),), way="separate"))).values()
    assert result.outcome == "out of memory"


def test_workers_end_with_the_engine(make: Make) -> None:
    engine = LocalEngine(Prepared(misbehaving(make, hang), CPU), CONDITIONS, processes=2)
    with engine:
        for number in range(2):
            engine.submit(Task(number, (Trial(8, BAD, number),), way="separate"))
        begun = Counter[bool]()
        while begun[True] < 2:
            begun[isinstance(engine.next_event(10.0), Began)] += 1
        pids = [worker.pid for worker in engine._places if worker is not None]
        assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_store_that_cannot_be_written_stops_the_sweep(
    make: Make, engine_of: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = make("mlp")
    with TrialStore.open(tmp_path / "sweep.db", identity(workload), CONDITIONS) as store:

        def full(*_: object, **__: object) -> None:
            raise StorageError("a store needs room on its disk", got="none")

        monkeypatch.setattr(store, "finish", full)
        with pytest.raises(StorageError, match="needs room"):
            events_of(engine_of(workload, store=store), Task(0, (Trial(8, 0.1, 0),)))


def test_the_engine_in_this_process_tells_of_what_goes_wrong_and_goes_on(make: Make) -> None:
    with HereEngine(Prepared(misbehaving(make, fail), CPU), CONDITIONS) as engine:
        events = events_of(
            engine, *(Task(number, (Trial(8, rate, 0),), way="separate") for number, rate in enumerate((BAD, 0.1)))
        )
        assert Lost(0, "crashed", "ValueError: no such thing") in events
        assert set(results_of(events)) == {Trial(8, 0.1, 0)}


def test_the_engine_in_this_process_can_be_left_in_the_middle(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    conditions = replace(CONDITIONS, budget_examples=30_000)
    with HereEngine(Prepared(make("dropout"), CPU), conditions) as engine:
        engine.submit(Task(0, (Trial(8, 0.1, 0),), way="separate"))
        assert isinstance(engine.next_event(60.0), Began)
        assert isinstance(engine.next_event(60.0), Evaluated)
        evaluations: list[CurvePoint] = []
        monkeypatch.setattr("batchscope.study.run_task._Running._evaluated", lambda *_: evaluations.append(_[2]))
    assert evaluations == []  # it went on to none
    assert torch.equal(torch.get_rng_state(), before)


def test_where_it_cannot_fork_it_trains_in_this_process(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(local_engine(make("mlp"), CONDITIONS, processes=3), LocalEngine)
    monkeypatch.setattr("batchscope.study.local_engine.can_fork", lambda: False)
    engine = local_engine(make("mlp"), CONDITIONS, processes=3)
    assert isinstance(engine, HereEngine)
    assert engine.workers == 1


# --- the driver's end -------------------------------------------------------------------------------------------------

TRIALS = tuple(Trial(8, rate, 0) for rate in (0.01, 0.02, 0.04, 0.08, 0.16, 0.32))


def drive(workload: Workload, path: Path, say: Callable[[str], object]) -> None:
    """A sweep of its own: claims what there is to do, does it, and says what its workers are and what is made."""
    with TrialStore.open(path, identity(workload), CONDITIONS) as store:
        known = {standing.trial for standing in store.standings()}
        left = set(
            store.claim([trial for trial in TRIALS if trial not in known], f"{os.uname().nodename}:{os.getpid()}:x")
        )
        with LocalEngine(Prepared(workload, CPU), CONDITIONS, processes=2, store=store) as engine:
            for number, trial in enumerate(sorted(left)):
                engine.submit(Task(number, (trial,), way="separate"))
            while left:
                event = engine.next_event(1.0)
                if isinstance(event, Began):
                    say(f"worker {event.worker.rpartition(':')[2]}")
                if isinstance(event, Finished):
                    left.remove(event.trial)
                    say(f"made {event.trial.learning_rate}")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_ends_takes_its_workers_along_and_loses_nothing_that_was_finished(
    make: Make, tmp_path: Path, number: signal.Signals
) -> None:
    ours, theirs = os.pipe()
    driver = os.fork()
    if driver == 0:
        try:
            slow = misbehaving(make, lambda: time.sleep(0.2), rate=None)
            drive(slow, tmp_path / "sweep.db", lambda line: os.write(theirs, f"{line}\n".encode()))
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, encoding="ascii") as said:
        lines: list[list[str]] = []
        while sum(word == "made" for word, _ in lines) < 2 or len({pid for word, pid in lines if word == "worker"}) < 2:
            lines.append(said.readline().split())
        os.kill(driver, number)
        os.waitpid(driver, 0)
        pids = [int(what) for word, what in lines if word == "worker"]
        said.read()  # ends when the last worker has
    deadline = time.monotonic() + 30
    while any(map(running, pids)):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.01)
    made = {float(what) for word, what in lines if word == "made"}
    with TrialStore.read(tmp_path / "sweep.db") as store:
        kept = {standing.trial.learning_rate for standing in store.standings()}
    assert made <= kept
    again: list[str] = []
    drive(misbehaving(make, lambda: None, rate=None), tmp_path / "sweep.db", again.append)
    assert {float(line.split()[1]) for line in again if line.startswith("made")} == {
        t.learning_rate for t in TRIALS
    } - kept
    with TrialStore.read(tmp_path / "sweep.db") as store:
        assert [standing.trial for standing in store.standings()] == list(TRIALS)


# --- the way between driver and worker --------------------------------------------------------------------------------


def test_a_worker_that_dies_while_it_waits_costs_nothing(make: Make) -> None:
    with LocalEngine(Prepared(make("mlp"), CPU), CONDITIONS, processes=1) as engine:
        events_of(engine, Task(0, (Trial(8, 0.1, 0),)))
        [worker] = [worker for worker in engine._places if worker is not None]
        os.kill(worker.pid, signal.SIGKILL)
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        assert set(results_of(events_of(engine, Task(1, (Trial(8, 0.1, 1),))))) == {Trial(8, 0.1, 1)}


@given(st.lists(st.binary(max_size=300_000), max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_messages_arrive_whole_and_in_order_and_nobody_waits(messages: list[bytes], random: Random) -> None:
    ours, theirs = Channel.pair()
    received: list[bytes] = []
    for message in messages:
        ours.post(message)  # more than there is room for
        if random.random() < 0.5:
            received += theirs.receive()
    while len(received) < len(messages):
        ours.flush()
        received += theirs.receive(wait=True)
    assert received == messages
    ours.close()
    assert theirs.receive(wait=True) == []
    assert theirs.closed
    theirs.post(b"to nobody")
    with pytest.raises(OSError, match="pipe"):
        theirs.send(b"to nobody")
    theirs.close()


def test_half_a_message_of_one_who_died_is_none() -> None:
    ours, theirs = Channel.pair()
    ours.post(list(range(10)))
    ours.post(bytearray(10_000_000))  # of which the beginning alone is on its way
    ours.close()
    assert theirs.receive(wait=True) == [list(range(10))]
    assert theirs.closed
    theirs.close()


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_a_signal_without_a_name_and_a_place_in_the_code_are_told() -> None:
    assert cause_of_death(40, "") == ("crashed", "killed by signal 40")
    words = 'Fatal Python error: Aborted\n\nCurrent thread 0x1 (most recent call first):\n  File "a.py", line 3 in f\n'
    assert cause_of_death(signal.SIGABRT, words) == ("crashed", 'killed by SIGABRT in File "a.py", line 3 in f')


def test_patience_follows_the_pace() -> None:
    patience = Patience()
    patience.heard(64, 30.0)
    patience.heard(64, 20.0)
    assert patience.seconds(64) == patience.seconds(512) == 600.0
    assert patience.seconds(16) == 2400.0
    patience.heard(16, 1000.0)
    assert patience.seconds(1024) == 20_000.0
    assert Patience(7.0).seconds(1) == 7.0

"""Tasks on this machine: trials as by plain runs, whatever happens to a worker, and none outlives its driver."""

from __future__ import annotations

import itertools
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from batchscope.records import CurvePoint, Plan, SweepTrial
from batchscope.study import ways
from batchscope.study.local_engine import ForkEngine, HereEngine, cause_of_death, local_engine
from batchscope.study.patience import Patience
from batchscope.study.tasks import (
    Began,
    Conditions,
    Engine,
    Evaluated,
    Event,
    Finished,
    Lost,
    Task,
    TaskDone,
    Trial,
    key_of,
)
from batchscope.training import Prepared, Run
from batchscope.training.ways import FastestWay
from batchscope.workload import Workload

Make = Callable[..., Workload]
CPU = torch.device("cpu")
CONDITIONS = Conditions(target=None, budget_examples=240, evaluate_every=80, pruning=False)
# The rate at which a workload does what a test wants it to.
BAD = 0.5


def events_of(engine: Engine, *tasks: Task, on_event: Callable[[Event], None] = lambda event: None) -> list[Event]:
    """Everything until each task is done or lost."""
    events: list[Event] = []

    def take(event: Event) -> None:
        events.append(event)
        on_event(event)

    for task in tasks:
        engine.submit(task)
    deadline = time.monotonic() + 60
    while sum(isinstance(event, (TaskDone, Lost)) for event in events) < len(tasks):
        assert time.monotonic() < deadline, events
        engine.work(take, 0.5)
    return events


def results_of(events: list[Event]) -> dict[Trial, SweepTrial]:
    return {key_of(event.result): event.result for event in events if isinstance(event, Finished)}


def points(curve: tuple[CurvePoint, ...]) -> list[CurvePoint]:
    return [replace(point, seconds=0.0) for point in curve]


@pytest.fixture(params=[ForkEngine, HereEngine])
def engine_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., Engine]]:
    """Either engine."""
    entered: list[Engine] = []

    def make(workload: Workload, conditions: Conditions = CONDITIONS) -> Engine:
        entered.append(request.param(Prepared(workload, CPU), conditions).__enter__())
        return entered[-1]

    yield make
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
    ]
    engine = engine_of(workload)
    events = events_of(engine, *tasks)
    results = results_of(events)
    assert set(results) == {trial for task in tasks for trial in task.trials}
    for trial, result in results.items():
        run = Run(Prepared(workload, CPU), CONDITIONS.plan(trial), seed=trial.seed, evaluate_every=80)()
        assert points(result.curve) == points(run.curve)
        assert (result.outcome, result.examples, result.best_loss) == ("finished", run.examples, run.best_loss)
    for task in tasks:
        own = [event for event in events if event.task == task.number]
        assert isinstance(own[0], Began)
        assert isinstance(own[-1], TaskDone)
        told = [event for event in own if isinstance(event, Evaluated)]
        assert [e.point for e in told] == [point for t in task.trials for point in results[t].curve]
    engine.work(lambda event: pytest.fail(f"{event}"), 0.0)


def test_a_trial_that_is_stopped_ends_soon(make: Make, engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(make("mlp"), replace(CONDITIONS, budget_examples=10**8, pruning=True))
    trial = Trial(8, 0.1, 0)

    def stop(event: Event) -> None:
        if isinstance(event, Evaluated) and event.point.examples:
            engine.stop([trial])

    [result] = results_of(events_of(engine, Task(0, (trial,), way="separate"), on_event=stop)).values()
    assert result.outcome == "pruned"


def test_what_one_worker_has_measured_the_next_does_not_measure_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(_: Prepared, plan: Plan, count: int) -> FastestWay:
        with (tmp_path / "log").open("a") as log:
            print(plan.batch_size, count, file=log)
        return FastestWay(1, False, False, 1.0, 1.0, "measured")

    monkeypatch.setattr(ways, "fastest_way", measure)
    monkeypatch.setattr(ways, "WORTH_UPDATES", 1)
    with ForkEngine(Prepared(make("mlp"), CPU), CONDITIONS, processes=1) as engine:
        events = events_of(engine, *(Task(seed, (Trial(8, 0.1, seed),)) for seed in range(2)))
        assert len({e.worker for e in events if isinstance(e, Began)}) == 1
        # A worker that dies while it waits costs nothing.
        [worker] = engine._workers.values()
        os.kill(worker.process.pid or 0, signal.SIGKILL)
        worker.process.join()
        events += events_of(engine, Task(2, (Trial(8, 0.1, 2),)))
    assert {e.trained_as for e in events if isinstance(e, TaskDone)} == {"separate runs: measured"}
    assert len({e.worker for e in events if isinstance(e, Began)}) == 2
    assert (tmp_path / "log").read_text() == "8 1\n"


def test_workers_have_a_core_a_thread_and_a_group_of_their_own(make: Make) -> None:
    def look() -> nn.Module:
        if os.getpid() != driver:
            raise RuntimeError(
                f"{sorted(os.sched_getaffinity(0))} {torch.get_num_threads()} {os.getpgrp() == os.getpid()}"
            )
        return nn.Linear(6, 3)

    driver = os.getpid()
    with ForkEngine(Prepared(make("mlp", model=look), CPU), CONDITIONS, processes=2) as engine:
        events = events_of(engine, Task(0, (Trial(8, 0.1, 0),)), Task(1, (Trial(8, 0.1, 1),)))
    mine = sorted(os.sched_getaffinity(0))
    assert {event.reason for event in events if isinstance(event, Lost)} == {
        f"RuntimeError: [{core}] 1 True" for core in mine[:2]
    }


def test_where_it_cannot_fork_it_trains_in_this_process(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(local_engine(make("mlp"), CONDITIONS, processes=3), ForkEngine)
    monkeypatch.setattr("batchscope.study.local_engine.can_fork", lambda: False)
    engine = local_engine(make("mlp"), CONDITIONS, processes=3)
    assert isinstance(engine, HereEngine)
    assert engine.workers == 1


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
    make: Make, deed: Callable[[], object], outcome: str, reason: str
) -> None:
    tasks = [Task(0, (Trial(8, 0.1, 0), Trial(8, BAD, 0), Trial(8, 0.2, 0)), way="separate")]
    tasks += [Task(number, (Trial(8, 0.1, number),)) for number in (1, 2)]
    with ForkEngine(Prepared(misbehaving(make, deed), CPU), CONDITIONS, processes=2) as engine:
        events = events_of(engine, *tasks)
    [lost] = [event for event in events if isinstance(event, Lost)]
    assert (lost.task, lost.outcome, lost.blameless) == (0, outcome, False)
    assert re.fullmatch(reason, lost.reason), lost.reason
    # The one before it was finished and told of; the tasks of others all went on.
    assert set(results_of(events)) == {Trial(8, 0.1, number) for number in range(3)}


def test_a_worker_that_hangs_is_given_up(make: Make) -> None:
    prepared = Prepared(misbehaving(make, hang), CPU)
    with ForkEngine(prepared, CONDITIONS, processes=2, timeout_seconds=3.0) as engine:
        events = events_of(engine, Task(0, (Trial(8, BAD, 0),), way="separate"), Task(1, (Trial(8, 0.1, 0),)))
    assert [e for e in events if isinstance(e, Lost)] == [Lost(0, "timed out", "nothing was heard of it for 3 s")]
    assert set(results_of(events)) == {Trial(8, 0.1, 0)}


def allocate() -> None:
    status = {line.split(":")[0]: line for line in Path("/proc/self/status").read_text().splitlines()}
    size = int(status["VmSize"].split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
    torch.ones(1 << 28)


def test_memory_that_runs_out_is_an_outcome(make: Make) -> None:
    with ForkEngine(Prepared(misbehaving(make, allocate), CPU), CONDITIONS, processes=1) as engine:
        [result] = results_of(events_of(engine, Task(0, (Trial(8, BAD, 0),), way="separate"))).values()
    assert result.outcome == "out of memory"


def test_the_engine_in_this_process_tells_of_what_goes_wrong_and_goes_on(make: Make) -> None:
    with HereEngine(Prepared(misbehaving(make, fail), CPU), CONDITIONS) as engine:
        events = events_of(
            engine, *(Task(number, (Trial(8, rate, 0),), way="separate") for number, rate in enumerate((BAD, 0.1)))
        )
    assert Lost(0, "crashed", "ValueError: no such thing") in events
    assert set(results_of(events)) == {Trial(8, 0.1, 0)}


def test_what_the_driver_raises_comes_out(make: Make, engine_of: Callable[..., Engine]) -> None:
    def refuse(event: Event) -> None:
        if isinstance(event, Finished):
            raise LookupError("nowhere to keep it")

    with pytest.raises(LookupError, match="nowhere"):
        events_of(engine_of(make("mlp")), Task(0, (Trial(8, 0.1, 0),)), on_event=refuse)


# --- the driver's end -------------------------------------------------------------------------------------------------


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_workers_end_with_the_engine_and_with_the_driver(make: Make) -> None:
    """Left by the one, killed with the other; and what is left open by a child of a worker's holds nobody up."""
    for number in (None, signal.SIGKILL):
        ours, theirs = os.pipe()
        driver = os.fork()
        if driver == 0:
            with ForkEngine(Prepared(misbehaving(make, hang), CPU), CONDITIONS, processes=2) as engine:
                for seed in range(2):
                    engine.submit(Task(seed, (Trial(8, BAD, seed),), way="separate"))
                first, second = (worker.process.pid for worker in engine._workers.values())
                os.write(theirs, f"{first} {second}\n".encode())
                if number is not None:
                    time.sleep(60)
            os._exit(0)
        os.close(theirs)
        with open(ours, encoding="ascii") as said:
            pids = [int(pid) for pid in said.readline().split()]
            if number is not None:
                os.kill(driver, number)
            os.waitpid(driver, 0)
            said.read()  # ends when the last worker has
        assert len(pids) == 2
        deadline = time.monotonic() + 30
        while any(map(is_running, pids)):
            assert time.monotonic() < deadline, "workers outlive their driver"
            time.sleep(0.01)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_a_signal_without_a_name_and_a_place_in_the_code_are_told() -> None:
    assert cause_of_death(-40, "") == ("crashed", "killed by signal 40")
    words = 'Fatal Python error: Aborted\n\nCurrent thread 0x1 (most recent call first):\n  File "a.py", line 3 in f\n'
    assert cause_of_death(-signal.SIGABRT, words) == ("crashed", 'killed by SIGABRT in File "a.py", line 3 in f')


def test_patience_follows_the_pace() -> None:
    patience = Patience()
    patience.heard(64, 30.0)
    patience.heard(64, 20.0)
    assert patience.seconds(64) == patience.seconds(512) == 600.0
    assert patience.seconds(16) == 2400.0
    patience.heard(16, 1000.0)
    assert patience.seconds(1024) == 20_000.0
    assert Patience(7.0).seconds(1) == 7.0

"""The Ray engine, on a real cluster of this machine: workers that are killed, kill themselves, raise and hang."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from batchscope.errors import ArgumentError, MissingPackageError, RunError
from batchscope.study import ray_engine
from batchscope.study.ray_engine import RayEngine, pickled
from batchscope.study.tasks import Began, Conditions, Evaluated, Event, Finished, Lost, Task, TaskDone, Trial, key_of
from batchscope.training import Prepared, Run
from batchscope.workload import Workload, load_workload

CONDITIONS = Conditions(target=None, budget_examples=400, evaluate_every=100, pruning=False)
WAITS, SLOW, EXITS, RAISES, HANGS = 0.0625, 0.3, 1001.0, 1002.0, 1003.0
# Far more than anything here takes; a wait ends as soon as what it is for has happened.
PATIENCE = 240.0
# Ray's own limit for a start, of a minute, is too little for a machine that is busy.
os.environ.setdefault("RAY_raylet_start_wait_time_s", str(int(PATIENCE)))


def optimizer(flag: Path, parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
    """SGD, but for some rates that do something to the process."""
    if learning_rate == WAITS:
        until = time.monotonic() + PATIENCE
        while not flag.exists() and time.monotonic() < until:
            time.sleep(0.02)
    if learning_rate == EXITS:
        os._exit(3)
    if learning_rate == RAISES:
        raise ValueError("a rate that nobody wants")
    if learning_rate == HANGS:
        threading.Event().wait()
    made = torch.optim.SGD(parameters, lr=learning_rate)
    if learning_rate == SLOW:
        made.register_step_pre_hook(lambda *_: time.sleep(0.05))
    return made


def task(number: int, *rates: float) -> Task:
    return Task(number, tuple(Trial(8, rate, number) for rate in rates), way="separate")


# What takes longest first.
TASKS = [
    task(0, 0.5, WAITS, 0.25),
    task(1, EXITS),
    task(2, HANGS),
    task(3, 0.125, 0.25),
    task(4, RAISES),
    task(5, 0.5),
    task(6, SLOW),
]


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def events_of(engine: RayEngine, tasks: list[Task], on_event: Callable[[Event], None] | None = None) -> list[Event]:
    """Run tasks to their end, those lost without blame again; everything that was told."""
    told: list[Event] = []
    left = {each.number: each for each in tasks}

    def take(event: Event) -> None:
        told.append(event)
        if on_event is not None:
            on_event(event)
        if isinstance(event, Lost) and event.blameless:
            engine.submit(left[event.task])
        elif isinstance(event, (Lost, TaskDone)):
            left.pop(event.task)

    for each in tasks:
        engine.submit(each)
    end = time.monotonic() + PATIENCE
    while left:
        assert time.monotonic() < end, f"{left} did not end"
        engine.work(take, 0.5)
    return told


def pid_of(worker: str) -> int:
    return int(worker.rpartition(":")[2])


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    return False


def children() -> set[int]:
    """Processes that this one has started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, *_ = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(parent) == os.getpid() and state != "Z":
                found.add(int(stat.parent.name))
    return found


@pytest.fixture(scope="module")
def workload(make: Callable[..., Workload], tmp_path_factory: pytest.TempPathFactory) -> Workload:
    flag = tmp_path_factory.mktemp("flags") / "go on"
    return make("mlp", optimizer=functools.partial(optimizer, flag), learning_rate=0.5)


@pytest.fixture(scope="module")
def told(workload: Workload, wanted: Callable[[bool, str], None]) -> list[Event]:
    """Everything told of seven tasks on two workers, of which one is killed in the middle of the first task.

    It is the one cluster that is started here; all that needs one is tried in it.
    """
    try:
        import ray
    except ModuleNotFoundError:
        wanted(False, "ray")
    flag = workload.optimizer.args[0]  # type: ignore[attr-defined]
    running: dict[int, int] = {}
    random_state, handler, before = torch.random.get_rng_state(), signal.getsignal(signal.SIGTERM), children()

    def look(event: Event) -> None:
        if isinstance(event, Began):
            running[event.task] = pid_of(event.worker)
        if isinstance(event, Finished) and event.task == 0 and not flag.exists():
            os.kill(running[0], signal.SIGKILL)
            until(lambda: not is_alive(running[0]))
            flag.touch()
        if isinstance(event, Evaluated) and event.trial.learning_rate == SLOW:
            engine.stop([event.trial])

    with (
        pytest.MonkeyPatch.context() as patch,
        RayEngine(workload, CONDITIONS, workers=2, timeout_seconds=30) as engine,
    ):
        patch.setattr(ray_engine, "BLAMELESS_DEATHS", 1)  # each takes a new worker, which takes a while
        events = events_of(engine, TASKS, look)
        started = children() - before
        engine._kill(engine._seats.pop())  # to have room for another
        # A connection that there is is used and kept, and a worker of another version is refused.
        patch.setattr(ray_engine, "versions_here", lambda: {"batchscope": "0.0.1", "torch": "1.0"})
        refusal = r"batchscope 0\.0\.1, torch 1\.0; got batchscope .* on .*same"
        with RayEngine(workload, CONDITIONS, workers=1) as other, pytest.raises(ArgumentError, match=refusal):
            events_of(other, [TASKS[5]])
        assert ray.is_initialized()
    # The cluster lasts as long as the engine.
    assert not ray.is_initialized()
    assert started
    until(lambda: not any(map(is_alive, started | set(running.values()))))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert signal.getsignal(signal.SIGTERM) is handler
    return events


def lost(events: list[Event], number: int) -> list[Lost]:
    return [event for event in events if isinstance(event, Lost) and event.task == number]


def test_every_trial_comes_out_as_by_a_plain_run(told: list[Event], workload: Workload) -> None:
    finished = {key_of(event.result): event.result for event in told if isinstance(event, Finished)}
    wanted = [trial for each in TASKS if each.number in (0, 3, 5) for trial in each.trials]
    assert set(finished) == {*wanted, *TASKS[6].trials}
    prepared = Prepared(workload, torch.device("cpu"))
    for trial in wanted:
        run = Run(prepared, CONDITIONS.plan(trial), seed=trial.seed, evaluate_every=CONDITIONS.evaluate_every)()
        got = finished[trial]
        assert (got.outcome, got.iterations) == (run.outcome, run.iterations)
        assert [(point.examples, point.score) for point in got.curve] == [(p.examples, p.score) for p in run.curve]
        losses = [point.validation_loss for point in run.curve]
        assert [point.validation_loss for point in got.curve] == pytest.approx(losses, rel=1e-6)


def test_a_killed_worker_costs_its_unfinished_trials_only(told: list[Event]) -> None:
    [first] = lost(told, 0)
    assert first.blameless
    assert "killed" in first.reason
    before = told[: told.index(first)]
    assert TASKS[0].trials[0] in [key_of(event.result) for event in before if isinstance(event, Finished)]
    workers = {event.worker for event in told if isinstance(event, Began) and event.task == 0}
    assert len(workers) == 2  # it went on elsewhere
    assert not lost(told, 3)
    assert not lost(told, 5)


def test_a_trial_that_ends_its_process_again_and_again_is_blamed(told: list[Event]) -> None:
    assert [event.blameless for event in lost(told, 1)] == [True, False]
    assert lost(told, 1)[-1].outcome == "crashed"
    assert "2 have died with this trial" in lost(told, 1)[-1].reason


def test_an_exception_is_the_trials_own_and_its_worker_goes_on(told: list[Event]) -> None:
    assert lost(told, 4) == [Lost(4, "crashed", "ValueError: a rate that nobody wants")]


def test_a_worker_that_hangs_is_given_up(told: list[Event]) -> None:
    [hung] = lost(told, 2)
    assert (hung.outcome, hung.blameless) == ("timed out", False)
    [began] = [event for event in told if isinstance(event, Began) and event.task == 2]
    assert not is_alive(pid_of(began.worker))


def test_events_come_in_order(told: list[Event]) -> None:
    for number in (3, 5):
        mine = [event for event in told if event.task == number]
        assert isinstance(mine[0], Began)
        assert isinstance(mine[-1], TaskDone)
        for trial in TASKS[number].trials:
            own = [event.point.examples for event in mine if isinstance(event, Evaluated) and event.trial == trial]
            assert own == [0, 104, 200, 304, 400]


def test_a_trial_that_is_stopped_ends_soon(told: list[Event]) -> None:
    [stopped] = [event.result for event in told if isinstance(event, Finished) and event.task == 6]
    assert stopped.outcome == "pruned"
    assert stopped.examples < CONDITIONS.budget_examples


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1", "[::1]:1"])
def test_no_cluster_there(workload: Workload, address: str) -> None:
    pytest.importorskip("ray")
    refusal = f"Ray cluster must answer at {re.escape(address)}; got .*Error"
    with pytest.raises(RunError, match=refusal), RayEngine(workload, CONDITIONS, address=address):
        pass


def test_without_ray_it_says_what_to_install(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'batchscope\[ray\]'"):
        RayEngine(workload, CONDITIONS)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": True}, {"timeout_seconds": 0}])
def test_numbers_that_make_no_sense(workload: Workload, wrong: dict[str, Any]) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        RayEngine(workload, CONDITIONS, **wrong)


def test_a_workload_that_cannot_be_pickled_is_refused(make: Callable[..., Workload]) -> None:
    pytest.importorskip("ray")
    lock = threading.Lock()

    def guarded(parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
        with lock:
            return torch.optim.SGD(parameters, lr=learning_rate)

    with pytest.raises(ArgumentError, match=r"must be picklable .* lock"):
        pickled(make("mlp", optimizer=guarded))


FILE = """
import torch
from torch import nn
import batchscope as bs

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
    def forward(self, x):
        return helper(self.linear(x))

def helper(x):
    return 2 * x

x, y = torch.randn(40, 3), torch.randint(2, (40,))
work = bs.Workload(model=Net, train=(x, y), validation=(x, y), loss=nn.functional.cross_entropy,
                   optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr), learning_rate=0.1, batch_size=8)
"""


def test_a_persons_own_module_travels_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has no such file; called from a script, which is in ``sys.modules`` under two names."""
    pytest.importorskip("ray")
    from ray import cloudpickle

    script = types.ModuleType("__main__")
    script.__file__ = __file__
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.setitem(sys.modules, "__mp_main__", script)
    path = tmp_path / "mine.py"
    path.write_text(FILE, encoding="utf-8")
    before = set(sys.modules)
    packed = pickled(load_workload(f"{path}:work"))
    [name] = [name for name in set(sys.modules) - before if name.startswith("mine_")]
    del sys.modules[name]
    path.unlink()
    there = cloudpickle.loads(packed)
    assert type(there.model()).__name__ == "Net"
    assert there.model()(torch.zeros(1, 3)).shape == (1, 2)
    assert name not in sys.modules

"""The sweep's loop over an engine that trains nothing: what it asks for, and what it does when things go wrong."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchscope.progress import Report
from batchscope.records import CurvePoint, Provenance, TrainResult
from batchscope.study.rate_search import RateSearch
from batchscope.study.sweep_driver import Driver
from batchscope.study.tasks import Began, Conditions, Evaluated, Event, Finished, Lost, Standing, Task, TaskDone, Trial
from batchscope.study.trial_store import TrialStore

CONDITIONS = Conditions(target=0.9, budget_examples=100_000, evaluate_every=100)
IDENTITY = {"workload": "made up", "batchscope": "0", "torch": "0", "device": "cpu"}
PROVENANCE = Provenance(
    created="2026-01-01T00:00:00+00:00",
    batchscope="0",
    python="3",
    torch="0",
    numpy="0",
    platform="none",
    processor="none",
    cores=2,
    threads=1,
    memory_bytes=1,
    device="cpu",
    dtype="float32",
    seed=0,
    workload_fingerprint="made up",
)


def examples_to_target(trial: Trial) -> int:
    """A valley in log ε whose bottom moves with the batch size, and a hyperbola along it."""
    bottom = 0.1 * math.sqrt(trial.batch_size / 32)
    off = math.log2(trial.learning_rate / bottom)
    return round(1000 * (1 + trial.batch_size / 100) * 2 ** (0.5 * off**2) * (1 + 0.02 * (trial.seed % 3)))


def result_of(trial: Trial, examples: int, outcome: Any = "reached") -> TrainResult:
    point = CurvePoint(examples, examples // trial.batch_size, 1.0, trial.learning_rate, 0.3, 0.3, 0.91)
    return TrainResult(
        workload="made up",
        plan=CONDITIONS.plan(trial),
        seed=trial.seed,
        outcome=outcome,
        reached=outcome == "reached",
        examples=examples,
        iterations=examples // trial.batch_size,
        data_seconds=0.0,
        compute_seconds=1.0,
        step_seconds=1.0,
        evaluation_seconds=0.0,
        total_seconds=1.0,
        best_score=0.91,
        best_loss=0.3,
        best_examples=examples,
        final_score=0.91,
        final_loss=0.3,
        training_score=None,
        training_loss=None,
        generalisation_gap=None,
        peak_memory_bytes=None,
        diverged_at_iteration=None,
        message=None,
        curve=(point,),
        provenance=PROVENANCE,
    )


class PretendEngine:
    """Ends every task at once; ``fate`` may make one go wrong."""

    stores = False

    def __init__(self, workers: int = 2, fate: Callable[[Task], Sequence[Event] | None] = lambda task: None) -> None:
        self.workers, self.fate = workers, fate
        self.submitted: list[Task] = []
        self.told: list[Standing] = []
        self._events: deque[Event] = deque()

    def __enter__(self) -> PretendEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def submit(self, task: Task) -> None:
        self.submitted.append(task)
        self._events.append(Began(task.number, "worker 0"))
        events = self.fate(task)
        if events is None:
            events = [event for trial in task.trials for event in ended(task, trial, examples_to_target(trial))] + [
                TaskDone(task.number, "replicas: made up")
            ]
        self._events.extend(events)

    def tell(self, standings: Sequence[Standing]) -> None:
        self.told.extend(standings)

    def next_event(self, timeout_seconds: float) -> Event | None:
        return self._events.popleft() if self._events else None


def ended(task: Task, trial: Trial, examples: int) -> list[Event]:
    point = CurvePoint(examples // 2, examples // 2 // trial.batch_size, 0.5, trial.learning_rate, 0.5, 0.5, 0.8)
    return [Evaluated(task.number, trial, point), Finished(task.number, trial, result_of(trial, examples))]


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    return TrialStore.open(tmp_path / "trials.db", IDENTITY, CONDITIONS)


def searches(sizes: Sequence[int], rates: tuple[float, ...] | None = None, seeds: int = 2) -> dict[int, RateSearch]:
    return {
        size: RateSearch(0.1, tuple(range(seeds)), batch_size=size, target=0.9, budget_examples=100_000, given=rates)
        for size in sizes
    }


def drive(
    found: dict[int, RateSearch], store: TrialStore, engine: PretendEngine, *, stop: bool = False, report: Any = None
) -> tuple[Driver, bool]:
    driver = Driver(found, store, engine, owner="test", report=report or Report(None, "sweep"))
    return driver, driver(SimpleNamespace(requested=stop))  # type: ignore[arg-type]


def test_every_search_runs_to_its_end_and_finds_the_valley(store: TrialStore) -> None:
    engine = PretendEngine()
    found = searches([8, 32, 128])
    driver, complete = drive(found, store, engine)
    assert complete
    asked = [trial for task in engine.submitted for trial in task.trials]
    assert len(asked) == len(set(asked)) == len(store.trials())
    for size, search in found.items():
        choice = search.choice(driver.of(size))
        assert choice.learning_rate is not None
        assert abs(math.log2(choice.learning_rate / (0.1 * math.sqrt(size / 32)))) <= 0.5
        assert choice.edge is None
        assert driver.trained_as(size) == "replicas: made up"
    assert {standing.trial for standing in engine.told} == set(asked)


def test_a_second_sitting_repeats_nothing(store: TrialStore) -> None:
    drive(searches([8, 32]), store, PretendEngine())
    again = PretendEngine()
    _, complete = drive(searches([8, 32]), store, again)
    assert complete
    assert again.submitted == []


def test_a_request_to_stop_is_heard(store: TrialStore) -> None:
    _, complete = drive(searches([8]), store, PretendEngine(), stop=True)
    assert not complete


def test_a_trial_that_kills_its_worker_is_found_by_halves_and_recorded(store: TrialStore) -> None:
    bad = Trial(32, 0.2, 1)

    def fate(task: Task) -> Sequence[Event] | None:
        return [Lost(task.number, "crashed", "killed by SIGSEGV")] if bad in task.trials else None

    engine = PretendEngine(fate=fate)
    _, complete = drive(searches([32], (0.05, 0.1, 0.2, 0.4)), store, engine)
    assert complete
    outcomes = {Trial(t.batch_size, t.learning_rate, t.seed): (t.outcome, t.message) for t in store.trials()}
    assert outcomes.pop(bad) == ("crashed", "killed by SIGSEGV")
    assert len(outcomes) == 7
    assert {outcome for outcome, _ in outcomes.values()} == {"reached"}


def test_what_had_finished_in_a_lost_task_is_not_trained_again(store: TrialStore) -> None:
    first: list[Trial] = []

    def fate(task: Task) -> Sequence[Event] | None:
        if first:
            return None
        first.append(task.trials[0])
        return [*ended(task, first[0], 1500), Lost(task.number, "crashed", "gone")]

    engine = PretendEngine(workers=1, fate=fate)
    drive(searches([32], (0.05, 0.1), seeds=2), store, engine)
    assert sum(first[0] in task.trials for task in engine.submitted) == 1
    assert len(store.trials()) == 4


def test_a_worker_that_goes_away_is_not_the_trials_fault_twice(store: TrialStore) -> None:
    engine = PretendEngine(
        workers=1, fate=lambda task: [Lost(task.number, "crashed", "its machine went away", blameless=True)]
    )
    _, complete = drive(searches([32], (0.1,), seeds=1), store, engine)
    assert complete
    assert len(engine.submitted) == 3
    (trial,) = store.trials()
    assert (trial.outcome, trial.message) == ("crashed", "its machine went away")


def test_a_wave_is_shared_out_where_a_worker_would_be_idle(store: TrialStore) -> None:
    engine = PretendEngine(workers=2)
    drive(searches([32], (0.05, 0.1, 0.2, 0.4)), store, engine)
    assert sorted(len(task.trials) for task in engine.submitted) == [4, 4]
    # Small batches take most of the time: theirs is cut though there are tasks enough.
    engine = PretendEngine(workers=2)
    drive(searches([8, 64, 512], (0.05, 0.1, 0.2, 0.4)), store, engine)
    by_size = {size: sum(task.trials[0].batch_size == size for task in engine.submitted) for size in (8, 64, 512)}
    assert by_size == {8: 2, 64: 1, 512: 1}
    assert engine.submitted[0].trials[0].batch_size == 8


def test_trials_that_another_sweep_trains_are_waited_for(store: TrialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscope.study.sweep_driver.LOOK_SECONDS", 0.0)
    mine, other = Trial(32, 0.1, 0), Trial(32, 0.2, 0)
    assert set(store.claim((other,), f"{_host()}:1:other")) == {other}  # process 1 is alive
    engine = PretendEngine()
    waited = []

    def next_event(timeout_seconds: float) -> Event | None:
        if engine._events:
            return engine._events.popleft()
        waited.append(1)
        if len(waited) == 3:
            store.finish(other, result_of(other, 1234))
        return None

    engine.next_event = next_event  # type: ignore[method-assign]
    _, complete = drive(searches([32], (0.1, 0.2), seeds=1), store, engine)
    assert complete
    assert [task.trials for task in engine.submitted] == [(mine,)]
    assert len(waited) >= 3


def _host() -> str:
    import socket

    return socket.gethostname()


def test_its_progress_adds_up(store: TrialStore) -> None:
    events: list[Any] = []
    drive(searches([8, 32]), store, PretendEngine(), report=Report(events.append, "sweep"))
    last = events[-1].sweep
    assert [row.batch_size for row in last.rows] == [8, 32]
    assert last.done == len(store.trials()) == sum(row.done for row in last.rows)
    assert last.running == 0
    assert all(row.settled and row.best_rate and row.best_examples for row in last.rows)
    assert last.examples == sum(trial.examples for trial in store.trials())

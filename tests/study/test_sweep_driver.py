"""The sweep's loop over an engine that trains nothing: what it asks for, what comes out, and what may go wrong."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.progress import Report
from batchscope.records import CurvePoint, SweepTrial
from batchscope.study.rate_search import RateSearch
from batchscope.study.store import Store
from batchscope.study.sweep_driver import Driver
from batchscope.study.tasks import (
    Began,
    Conditions,
    Evaluated,
    Event,
    Finished,
    Lost,
    Task,
    TaskDone,
    Trial,
    cut,
    failed,
    key_of,
)

EVERY, BUDGET = 100, 6000
AIMING = Conditions(target=0.9, budget_examples=BUDGET, evaluate_every=EVERY)
SCORED = Conditions(target=None, budget_examples=BUDGET, evaluate_every=EVERY)
RATES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)


def run_of(trial: Trial, conditions: Conditions) -> SweepTrial:
    """A whole run: a valley in log ε whose bottom moves with the batch size, noise over seeds, divergence above it."""
    bottom = 0.1 * math.sqrt(trial.batch_size / 32)
    off = math.log2(trial.learning_rate / bottom)
    noise = Random(repr(trial)).uniform(0.7, 1.4)
    need = 500 * noise * (1 + trial.batch_size / 100) * 2 ** (0.5 * off**2)
    diverges = off > 2.5
    last = 350 if diverges else BUDGET if conditions.target is None else min(BUDGET, EVERY * math.ceil(need / EVERY))
    places = range(0, last + 1, EVERY)
    curve = tuple(
        CurvePoint(
            examples=e,
            iterations=e // trial.batch_size,
            seconds=e / 1000,
            learning_rate=trial.learning_rate,
            training_loss=None,
            validation_loss=math.exp(-e / need),
            score=0.9 * min(1, e / need),
        )
        for e in places
    )
    reached = conditions.target is not None and curve[-1].score >= conditions.target
    return SweepTrial(
        **trial._asdict(),
        outcome="diverged" if diverges else "reached" if reached else "finished",
        examples_to_target=last if reached else None,
        examples=last,
        iterations=last // trial.batch_size,
        best_score=max(point.score for point in curve),
        best_loss=min(point.validation_loss for point in curve),
        final_score=None if diverges else curve[-1].score,
        step_seconds=None,
        sweep_seconds=1.0,
        stack_size=None,
        message=None,
        curve=curve,
    )


class KilledError(Exception):
    """The end of the driver."""


class PretendEngine:
    """Plays runs back: stacks at one pace or trials in turn, in any order of the workers, ``kill`` events long.

    ``fate`` may say what becomes of a task in place of that.
    """

    def __init__(
        self,
        conditions: Conditions = AIMING,
        *,
        workers: int = 2,
        together: bool = True,
        random: Random | None = None,
        kill: float = math.inf,
        fate: Callable[[Task], Sequence[Event] | None] = lambda task: None,
    ) -> None:
        self.conditions, self.workers, self.together = conditions, workers, together
        self.random, self.kill, self.fate = random or Random(0), kill, fate
        self.submitted: list[Task] = []
        self.examples = 0
        self.waiting: deque[Task] = deque()
        self.running: list[Iterator[list[Event]]] = []
        self.stopped: set[Trial] = set()

    def __enter__(self) -> PretendEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def submit(self, task: Task) -> None:
        self.submitted.append(task)
        self.waiting.append(task)

    def stop(self, trials: Any) -> None:
        self.stopped.update(trials)

    def work(self, take: Callable[[Event], None], seconds: float) -> None:
        while self.waiting and len(self.running) < self.workers:
            self.running.append(self.play(self.waiting.popleft()))
        if self.running:
            chosen = self.random.choice(self.running)
            events = next(chosen, None)
            if events is None:
                self.running.remove(chosen)
            for event in events or ():
                self.kill -= 1
                if self.kill < 0:
                    raise KilledError
                take(event)

    def play(self, task: Task) -> Iterator[list[Event]]:
        self.stopped.difference_update(task.trials)
        yield [Began(task.number, "worker")]
        fate = self.fate(task)
        if fate is not None:
            yield list(fate)
            return
        left = [run_of(trial, self.conditions) for trial in task.trials]
        for together in [left] if self.together else [[run] for run in left]:
            step, group = 0, list(together)
            while group:
                told: list[Event] = []
                for run in list(group):
                    told.append(Evaluated(task.number, key_of(run), run.curve[step]))
                    self.examples += EVERY
                    whole = step + 1 == len(run.curve)
                    if whole or key_of(run) in self.stopped:
                        told.append(Finished(task.number, run if whole else cut(run, step + 1)))
                        group.remove(run)
                yield told
                step += 1
        yield [TaskDone(task.number, "replicas: made up")]


def searches(
    sizes: Sequence[int], rates: tuple[float, ...] | None = None, seeds: int = 2, target: float | None = 0.9
) -> dict[int, RateSearch]:
    return {
        size: RateSearch(0.1, tuple(range(seeds)), batch_size=size, target=target, budget_examples=BUDGET, given=rates)
        for size in sizes
    }


def drive(
    found: dict[int, RateSearch], store: Store, engine: PretendEngine, *, stop: bool = False, report: Any = None
) -> tuple[Driver, bool]:
    driver = Driver(found, engine.conditions, store, engine, report=report or Report(None, "sweep"))
    return driver, driver(SimpleNamespace(requested=stop))  # type: ignore[arg-type]


def outcome(driver: Driver) -> list[SweepTrial]:
    return sorted(driver.results(), key=key_of)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open(None, {}) as store:
        yield store


# --- what it asks for, and what comes out -----------------------------------------------------------------------------


def test_every_search_runs_to_its_end_and_finds_the_valley(store: Store) -> None:
    engine = PretendEngine()
    found = searches([8, 32, 128])
    driver, complete = drive(found, store, engine)
    assert complete
    asked = Counter(trial for task in engine.submitted for trial in task.trials)
    assert set(asked) == set(map(key_of, store.trials())) == set(map(key_of, driver.results()))
    assert set(asked.values()) == {1}
    for size, search in found.items():
        choice = search.choice(driver.sizes[size].known)
        assert choice.learning_rate is not None
        assert abs(math.log2(choice.learning_rate / (0.1 * math.sqrt(size / 32)))) <= 1
        assert choice.edge is None
        assert driver.trained_as(size) == "replicas: made up"


@pytest.mark.parametrize("together", [True, False])
def test_pruning_saves_and_changes_no_choice(store: Store, together: bool) -> None:
    spent, chosen = [], []
    for pruning in (True, False):
        conditions = Conditions(0.9, BUDGET, EVERY, pruning=pruning)
        engine = PretendEngine(conditions, together=together)
        found = searches([8, 32], RATES)
        with Store.open(None, {}) as kept:
            driver, _ = drive(found, kept, engine)
        spent.append(engine.examples)
        chosen.append([found[size].choice(driver.sizes[size].known).learning_rate for size in found])
    assert chosen[0] == chosen[1]
    assert spent[0] < 0.7 * spent[1]


@settings(max_examples=25)
@given(
    random=st.integers(0, 10**6).map(Random),
    way=st.fixed_dictionaries({"workers": st.integers(1, 4), "together": st.booleans()}),
    kills=st.lists(st.integers(1, 120), max_size=3),
    rates=st.sampled_from([RATES, None]),
    conditions=st.sampled_from([AIMING, SCORED]),
)
def test_killed_and_resumed_or_on_any_number_of_workers_it_comes_to_the_same(
    random: Random, way: dict[str, Any], kills: list[int], rates: Any, conditions: Conditions
) -> None:
    seeds = 2 if conditions is AIMING else 3  # fewer say nothing without a target
    found = searches([8, 32], rates, seeds, conditions.target)
    with Store.open(None, {}) as store:
        expected = outcome(drive(found, store, PretendEngine(conditions))[0])
    assert any(trial.outcome == "pruned" for trial in expected) or conditions is SCORED
    with Store.open(None, {}) as store:
        for kill in [*kills, math.inf]:
            engine = PretendEngine(conditions, random=random, kill=kill, **way)
            try:
                driver, complete = drive(found, store, engine)
            except KilledError:
                continue
            assert complete
            assert outcome(driver) == expected
            break


def test_a_second_sitting_repeats_nothing(store: Store) -> None:
    first, _ = drive(searches([8, 32]), store, PretendEngine())
    again = PretendEngine()
    second, complete = drive(searches([8, 32]), store, again)
    assert complete
    assert again.submitted == []
    assert outcome(second) == outcome(first)


def test_what_was_pruned_is_trained_on_where_pruning_is_off(store: Store) -> None:
    drive(searches([32], RATES), store, PretendEngine())
    unpruned = Conditions(0.9, BUDGET, EVERY, pruning=False)
    driver, _ = drive(searches([32], RATES), store, PretendEngine(unpruned))
    assert outcome(driver) == sorted(
        (run_of(Trial(32, rate, seed), AIMING) for rate in RATES for seed in (0, 1)), key=key_of
    )


def test_a_trial_that_was_stopped_too_soon_is_trained_on(store: Store) -> None:
    """As by an engine that stops whatever it likes."""
    trial = Trial(32, 0.1, 0)
    whole = run_of(trial, AIMING)
    store.put(cut(whole, 2))
    engine = PretendEngine()
    driver, _ = drive(searches([32], (0.1,), seeds=1), store, engine)
    assert [task.trials for task in engine.submitted] == [(trial,)]
    assert driver.results() == [whole]


def test_a_request_to_stop_is_heard(store: Store) -> None:
    driver, complete = drive(searches([8]), store, PretendEngine(), stop=True)
    assert not complete
    assert driver.results() == []


def test_its_progress_adds_up(store: Store) -> None:
    events: list[Any] = []
    driver, _ = drive(searches([8, 32]), store, PretendEngine(), report=Report(events.append, "sweep"))
    last = events[-1].sweep
    assert [row.batch_size for row in last.rows] == [8, 32]
    assert last.done == len(driver.results()) == sum(row.done for row in last.rows)
    assert last.running == 0
    assert all(row.settled and row.best_rate and row.best_examples for row in last.rows)
    assert last.examples == sum(trial.examples for trial in driver.results())


def test_a_large_wave_is_shared_out(store: Store) -> None:
    engine = PretendEngine(workers=4)
    drive(searches([8, 512], RATES), store, engine)
    first = [task.trials for task in engine.submitted if task.trials[0].batch_size == 8]
    assert len(first) == 4
    assert sum(map(len, first)) == 12


# --- what may go wrong ------------------------------------------------------------------------------------------------


def test_a_trial_that_kills_its_worker_is_found_by_halves_and_recorded(store: Store) -> None:
    bad = Trial(32, 0.2, 1)

    def fate(task: Task) -> Sequence[Event] | None:
        return [Lost(task.number, "crashed", "killed by SIGSEGV")] if bad in task.trials else None

    driver, complete = drive(searches([32], RATES[:4]), store, PretendEngine(fate=fate))
    assert complete
    outcomes = {key_of(trial): (trial.outcome, trial.message) for trial in driver.results()}
    assert outcomes.pop(bad) == ("crashed", "killed by SIGSEGV")
    assert len(outcomes) == 7
    assert {how for how, _ in outcomes.values()} <= {"reached", "pruned"}
    assert failed(bad, "crashed", "killed by SIGSEGV") in store.trials()


def test_what_had_finished_in_a_lost_task_is_not_trained_again(store: Store) -> None:
    first: list[Trial] = []

    def fate(task: Task) -> Sequence[Event] | None:
        if first:
            return None
        first.append(task.trials[0])
        return [Finished(task.number, run_of(first[0], AIMING)), Lost(task.number, "crashed", "gone")]

    engine = PretendEngine(workers=1, fate=fate)
    driver, _ = drive(searches([32], (0.05, 0.1), seeds=2), store, engine)
    assert sum(first[0] in task.trials for task in engine.submitted) == 1
    assert len(driver.results()) == 4


def test_a_worker_that_goes_away_is_not_the_trials_fault_twice(store: Store) -> None:
    engine = PretendEngine(
        workers=1, fate=lambda task: [Lost(task.number, "crashed", "its machine went away", blameless=True)]
    )
    driver, complete = drive(searches([32], (0.1,), seeds=1), store, engine)
    assert complete
    assert len(engine.submitted) == 3
    assert driver.results() == [failed(Trial(32, 0.1, 0), "crashed", "its machine went away")]


def test_a_worker_that_ends_without_a_word_is_told_of(store: Store) -> None:
    driver, _ = drive(
        searches([32], (0.1,), seeds=1), store, PretendEngine(fate=lambda task: [TaskDone(task.number, "made up")])
    )
    assert [(trial.outcome, trial.message) for trial in driver.results()] == [
        ("crashed", "the worker ended without a result")
    ]


def test_a_second_writer_finds_what_the_first_has_kept(tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    with Store.open(path, {}) as store, pytest.raises(KilledError):
        drive(searches([32], RATES), store, PretendEngine(kill=60))
    with Store.open(path, {}) as store:
        kept = store.trials()
        assert kept
        engine = PretendEngine()
        drive(searches([32], RATES), store, engine)
    again = {trial for task in engine.submitted for trial in task.trials}
    assert again.isdisjoint(key_of(trial) for trial in kept if trial.outcome != "pruned")

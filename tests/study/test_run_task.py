"""A task: its trials are those of plain runs, each told of as it ends, and those that cannot win are not finished."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchscope.errors import RunError
from batchscope.records import CurvePoint, Plan, SweepTrial, TrainResult
from batchscope.study import ways
from batchscope.study.run_task import run_task, worker_name
from batchscope.study.tasks import Began, Conditions, Evaluated, Event, Finished, Task, TaskDone, Trial, Way, key_of
from batchscope.study.ways import Ways
from batchscope.training import Prepared, Run
from batchscope.training.interruption import StopRequest
from batchscope.training.replicas import Replicas
from batchscope.training.ways import FastestWay
from batchscope.workload import Workload

Make = Callable[..., Workload]
CPU = torch.device("cpu")
CONDITIONS = Conditions(target=None, budget_examples=160, evaluate_every=40, pruning=False)


def told(
    workload: Workload,
    trials: Sequence[Trial],
    conditions: Conditions = CONDITIONS,
    *,
    way: Way = "separate",
    **more: Any,
) -> list[Event]:
    events: list[Event] = []
    run_task(Prepared(workload, CPU), Task(7, tuple(trials), way=way), conditions, **({"emit": events.append} | more))
    return events


def results_of(events: Sequence[Event]) -> dict[Trial, SweepTrial]:
    return {key_of(event.result): event.result for event in events if isinstance(event, Finished)}


def alone(workload: Workload, trial: Trial, conditions: Conditions = CONDITIONS) -> TrainResult:
    return Run(
        Prepared(workload, CPU), conditions.plan(trial), seed=trial.seed, evaluate_every=conditions.evaluate_every
    )()


@pytest.mark.parametrize("kind", ["mlp", "dropout", "batch norm", "augmented"])
def test_trials_are_those_of_plain_runs(make: Make, kind: str) -> None:
    workload = make(kind)
    conditions = replace(CONDITIONS, shape="linear", order="stratified" if kind == "mlp" else "shuffled")
    trials = [Trial(8, rate, seed) for rate in (0.05, 0.2) for seed in (3, 0)]
    events = told(workload, trials, conditions)
    for trial, result in results_of(events).items():
        expected = alone(workload, trial, conditions)
        assert result.outcome == "finished"
        assert [replace(point, seconds=0.0) for point in result.curve] == [
            replace(point, seconds=0.0) for point in expected.curve
        ]


def test_everything_is_told_in_order(make: Make) -> None:
    trials = [Trial(8, 0.1, 1), Trial(8, 0.1, 0)]
    events = told(make("mlp"), trials)
    assert events[0] == Began(7, worker_name())
    assert events[-1] == TaskDone(7, "separate runs: as asked for")
    for trial, own in zip(trials, (events[1:7], events[7:13]), strict=True):
        *evaluations, finished = own
        assert isinstance(finished, Finished)
        assert key_of(finished.result) == trial
        assert evaluations == [Evaluated(7, trial, point) for point in finished.result.curve]
    assert len(events) == 14


def test_a_target_and_a_divergence_are_outcomes(make: Make) -> None:
    conditions = replace(CONDITIONS, target=0.5, budget_examples=4000)
    results = results_of(told(make("mlp"), [Trial(8, 0.1, 0), Trial(8, 1e30, 0)], conditions))
    assert [result.outcome for result in results.values()] == ["reached", "diverged"]
    assert results[Trial(8, 0.1, 0)].examples < 4000


# --- trials that are stopped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["separate", "replicas"])
def test_trials_are_stopped_at_their_next_evaluation(make: Make, way: Way) -> None:
    conditions = replace(CONDITIONS, budget_examples=800, pruning=True)
    trials = [Trial(8, 0.1, 0), Trial(8, 0.1, 1)]
    events: list[Event] = []

    def stopped() -> list[Trial]:
        return trials[:1] if any(isinstance(e, Evaluated) and e.point.examples >= 200 for e in events) else []

    told(make("mlp"), trials, conditions, way=way, emit=events.append, stopped=stopped)
    first, second = results_of(events).values()
    assert (first.outcome, first.examples, len(first.curve)) == ("pruned", 200, 6)
    assert (second.outcome, second.examples) == ("finished", 800)


def test_separate_runs_that_may_be_stopped_keep_one_pace(make: Make) -> None:
    trials = [Trial(8, rate, seed) for rate in (0.05, 0.2) for seed in (3, 0)]
    events = told(make("dropout"), trials, replace(CONDITIONS, pruning=True))
    order = [event.trial for event in events if isinstance(event, Evaluated) and event.point.examples]
    assert order == trials * 4
    for trial, result in results_of(events).items():
        assert [p.validation_loss for p in result.curve] == [
            p.validation_loss for p in alone(make("dropout"), trial).curve
        ]


def test_separate_runs_that_memory_does_not_hold_together_go_one_after_the_other(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: set[int] = set()

    class Limited(Run):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            alive.add(id(self))
            weakref.finalize(self, alive.discard, id(self))

        def advance(self) -> TrainResult | None:
            found = super().advance()
            return self.stopped("out of memory") if len(alive) > 1 else found

    monkeypatch.setattr("batchscope.study.run_task.Run", Limited)
    trials = [Trial(8, 0.1, seed) for seed in range(3)]
    results = results_of(told(make("mlp"), trials, replace(CONDITIONS, pruning=True)))
    assert {trial: result.outcome for trial, result in results.items()} == dict.fromkeys(trials, "finished")


# --- stacks -----------------------------------------------------------------------------------------------------------

FIVE = [Trial(8, rate, seed) for rate, seed in ((0.1, 0), (0.05, 0), (0.2, 0), (0.1, 1), (0.05, 1))]


def found(**changes: Any) -> FastestWay:
    return replace(FastestWay(4, True, False, 1.0, 2.0, "twice as fast"), **changes)


@pytest.mark.parametrize("kind", ["mlp", "batch norm", "tied"])
def test_a_stack_gives_what_plain_runs_do(make: Make, kind: str) -> None:
    workload = make(kind)
    conditions = replace(CONDITIONS, shape="linear")
    events = told(workload, FIVE, conditions, way="replicas")
    assert events[-1] == TaskDone(7, "replicas: as asked for")
    results = results_of(events)
    assert set(results) == set(FIVE)
    for trial, result in results.items():
        assert result.stack_size == 5
        expected = alone(workload, trial, conditions)
        assert [point.examples for point in result.curve] == [point.examples for point in expected.curve]
        losses = [[point.validation_loss for point in curve] for curve in (result.curve, expected.curve)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        assert [e.point for e in events if isinstance(e, Evaluated) and e.trial == trial] == list(result.curve)


def test_trials_of_a_stack_are_told_of_as_they_end(make: Make) -> None:
    conditions = replace(CONDITIONS, target=0.75, budget_examples=1600, pruning=True)
    best, slow, wild = Trial(8, 0.2, 0), Trial(8, 1e-6, 0), Trial(8, 1e30, 0)
    events = told(make("mlp"), [slow, best, wild], conditions, way="replicas")
    ended = [(key_of(event.result), event.result.outcome) for event in events if isinstance(event, Finished)]
    assert ended == [(wild, "diverged"), (best, "reached"), (slow, "finished")]


def test_as_many_stacks_as_it_takes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "fastest_way", lambda *_: found(stack_size=2))
    monkeypatch.setattr(ways, "WORTH_UPDATES", 1)
    events = told(make("mlp"), FIVE, way="auto")
    assert events[-1] == TaskDone(7, "replicas: twice as fast")
    assert [result.stack_size for result in results_of(events).values()] == [2, 2, 2, 2, 1]
    assert list(results_of(events)) == FIVE


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, *, above: int) -> list[int]:
    """Stacks of more trials than that fail at their first evaluation; the sizes tried, as they come."""
    tried: list[int] = []

    class Failing(Replicas):
        def __init__(self, prepared: Prepared, plans: Any, seeds: Any, **more: Any) -> None:
            tried.append(len(plans))
            super().__init__(prepared, plans, seeds, **more)
            on_evaluation = self.on_evaluation

            def fail(place: int, point: CurvePoint) -> None:
                assert on_evaluation is not None
                on_evaluation(place, point)
                if len(plans) > above:
                    raise error

            self.on_evaluation = fail

    monkeypatch.setattr("batchscope.study.run_task.Replicas", Failing)
    return tried


def test_where_memory_runs_out_stacks_are_halved(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing(monkeypatch, MemoryError("no room"), above=1)
    prepared, events = Prepared(make("mlp"), CPU), list[Event]()
    for number in range(2):
        run_task(prepared, Task(number, tuple(FIVE), way="replicas"), CONDITIONS, emit=events.append)
    done = [event.trained_as for event in events if isinstance(event, TaskDone)]
    assert tried == [5, 2, *[1] * 5, *[1] * 5]  # and it is remembered
    assert done == ["replicas: as asked for; no more than 1 at once (MemoryError: no room)"] * 2
    assert len([event for event in events if isinstance(event, Finished)]) == 10


def test_a_lone_run_out_of_memory_is_its_outcome(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing(monkeypatch, MemoryError("no room"), above=0)
    results = results_of(told(make("mlp"), FIVE[:2], way="replicas"))
    assert tried == [2, 1]
    assert [result.outcome for result in results.values()] == ["finished"] * 2
    assert [result.stack_size for result in results.values()] == [None, None]  # which had room, this time


def test_where_a_stack_fails_runs_are_separate(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing(monkeypatch, RuntimeError("no such\nkernel"), above=0)
    events = told(make("mlp"), FIVE, way="replicas")
    assert tried == [5]
    assert events[-1] == TaskDone(7, "separate runs: a stack failed (RuntimeError: no such)")
    for trial, result in results_of(events).items():
        assert [p.score for p in result.curve] == [p.score for p in alone(make("mlp"), trial).curve]


class Branches(nn.Linear):
    """Does what its data say."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_what_cannot_be_stacked_is_run_separately(make: Make) -> None:
    events = told(make("mlp", model=lambda: Branches(6, 3)), FIVE[:2], way="replicas")
    assert isinstance(events[-1], TaskDone)
    assert events[-1].trained_as.startswith("separate runs: it cannot be batched")
    assert len(results_of(events)) == 2


# --- which way --------------------------------------------------------------------------------------------------------


def test_what_is_fastest_is_measured_where_it_may_differ(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[int, int]] = []
    prepared = Prepared(make("mlp"), CPU)
    plan = Conditions(target=None, budget_examples=10_000, evaluate_every=100).plan

    def fastest(_: Prepared, of: Plan, count: int) -> FastestWay:
        assert of.learning_rate == 0.05  # the reference's, whatever the trial's
        measured.append((of.batch_size, count))
        return found(stack_size=min(count, 4))

    monkeypatch.setattr(ways, "fastest_way", fastest)
    known = Ways()
    # Stacks of four are the fastest: known for three and more, measured anew where twice as many might be better.
    for count, size in ((8, 4), (3, 4), (15, 4), (16, 4), (2, 2), (1, 1), (8, 4), (2, 2)):
        assert known.choose(prepared, plan(Trial(8, 10.0, 0)), count).stack_size == size
    assert measured == [(8, 8), (8, 16), (8, 2), (8, 1)]
    # In turn, any number will do.
    monkeypatch.setattr(ways, "fastest_way", lambda _, __, count: found(stack_size=count, in_turn=True))
    for count in (8, 3, 1, 15):
        assert known.choose(prepared, plan(Trial(16, 0.1, 0)), count) == (True, count, True, "twice as fast")
    assert list(known.measured[16]) == [8]
    # What another process has found out is not measured again.
    other = Ways()
    other.add(pickle.loads(pickle.dumps(known)))
    monkeypatch.setattr(ways, "fastest_way", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(ways, "refusal", lambda *_: pytest.fail("checked again"))
    assert other.choose(prepared, plan(Trial(8, 0.1, 0)), 8).stack_size == 4


def test_what_is_short_is_not_measured(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "refusal", lambda *_: pytest.fail("checked"))
    chosen = Ways().choose(Prepared(make("mlp"), CPU), CONDITIONS.plan(Trial(8, 0.1, 0)), 4)
    assert not chosen.replicas
    assert "fewer than 50 updates" in chosen.reason


def test_where_it_cannot_be_measured_runs_are_separate(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    conditions = Conditions(target=None, budget_examples=10_000, evaluate_every=100)
    for name, said in (("refusal", "a stack cannot be tried"), ("fastest_way", "a stack cannot be timed")):
        with monkeypatch.context() as patched:
            patched.setattr(ways, name, fail)
            chosen = Ways().choose(Prepared(make("mlp"), CPU), conditions.plan(Trial(8, 0.1, 0)), 4)
        assert str(chosen) == f"separate runs: {said}: RuntimeError: no such kernel"


# --- stopping and failing ---------------------------------------------------------------------------------------------


def test_a_request_to_stop_leaves_the_rest(make: Make) -> None:
    stop, events = StopRequest(), list[Event]()

    def emit(event: Event) -> None:
        events.append(event)
        stop.requested = isinstance(event, Finished)

    told(make("mlp"), [Trial(8, 0.1, seed) for seed in range(3)], emit=emit, stop=stop)
    assert len(results_of(events)) == 1
    assert isinstance(events[-1], Finished)


def test_what_the_workload_raises_comes_out(make: Make) -> None:
    def score(*_: object) -> float:
        raise ValueError("no such thing")

    workload = make("mlp")
    object.__setattr__(workload, "score", score)
    with pytest.raises(RunError, match="no such thing"):
        told(workload, [Trial(8, 0.1, 0)])


def test_random_state_is_left_alone(make: Make) -> None:
    before = torch.get_rng_state()
    told(make("dropout"), [Trial(8, 0.1, 0)])
    assert torch.equal(torch.get_rng_state(), before)

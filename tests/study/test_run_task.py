"""A task: its trials are those of plain runs, each told of as it ends, and those that cannot win are not finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from batchscope.errors import RunError
from batchscope.records import TrainResult
from batchscope.study.run_task import run_task, worker_name
from batchscope.study.tasks import Began, Conditions, Evaluated, Event, Finished, Standing, Task, TaskDone, Trial, Way
from batchscope.study.trial_store import standing_of
from batchscope.training import Prepared, Run
from batchscope.training.interruption import StopRequest
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


def results_of(events: Sequence[Event]) -> dict[Trial, TrainResult]:
    return {event.trial: event.result for event in events if isinstance(event, Finished)}


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
    assert events[-1] == TaskDone(7, "separate runs")
    for trial, own in zip(trials, (events[1:7], events[7:13]), strict=True):
        *evaluations, finished = own
        assert isinstance(finished, Finished)
        assert finished.trial == trial
        assert evaluations == [Evaluated(7, trial, point) for point in finished.result.curve]
    assert len(events) == 14


def test_a_target_and_a_divergence_are_outcomes(make: Make) -> None:
    conditions = replace(CONDITIONS, target=0.5, budget_examples=4000)
    results = results_of(told(make("mlp"), [Trial(8, 0.1, 0), Trial(8, 1e30, 0)], conditions))
    assert [result.outcome for result in results.values()] == ["reached", "diverged"]
    assert results[Trial(8, 0.1, 0)].examples < 4000


# --- pruning ----------------------------------------------------------------------------------------------------------

# Nothing scores as much: whatever is not pruned goes through its budget.
AIMING = replace(CONDITIONS, target=2.0, budget_examples=800, pruning=True)


def reached(rate: float, seed: int, examples: int, batch_size: int = 8) -> Standing:
    return Standing(Trial(batch_size, rate, seed), "reached", examples, 2.0, 0.1)


def test_what_others_have_shown_prunes(make: Make) -> None:
    known = [reached(0.4, 0, 200), reached(0.4, 1, 200)]
    trials = [Trial(8, 0.1, 0), Trial(8, 0.1, 1)]
    first, second = results_of(told(make("mlp"), trials, AIMING, known=lambda: known)).values()
    assert first.outcome == second.outcome == "pruned"
    assert 200 < first.examples < 800
    assert second.examples == 0  # its rate was out before it began
    unpruned = results_of(told(make("mlp"), trials, replace(AIMING, pruning=False), known=lambda: known))
    assert [result.outcome for result in unpruned.values()] == ["finished"] * 2
    of_another_size = [reached(0.4, 0, 200, 16), reached(0.4, 1, 200, 16)]
    unpruned = results_of(told(make("mlp"), trials, AIMING, known=lambda: of_another_size))
    assert [result.outcome for result in unpruned.values()] == ["finished"] * 2


def test_what_the_task_came_with_prunes(make: Make) -> None:
    events: list[Event] = []
    task = Task(7, (Trial(8, 0.1, 0),), known=(reached(0.4, 0, 80),), way="separate")
    run_task(Prepared(make("mlp"), CPU), task, AIMING, emit=events.append)
    [result] = results_of(events).values()
    assert result.outcome == "pruned"


def test_what_a_trial_of_the_task_has_shown_prunes_the_next(make: Make) -> None:
    conditions = replace(AIMING, target=0.75, budget_examples=4000)
    best, slow = Trial(8, 0.2, 0), Trial(8, 1e-6, 0)
    events = told(make("mlp"), [best, slow], conditions)
    results = results_of(events)
    assert results[best].outcome == "reached"
    assert results[slow].outcome == "pruned"
    assert results[best].examples <= results[slow].examples < 4000
    assert standing_of(slow, results[slow]).ended == "pruned"


def test_standings_are_asked_for_at_evaluations_and_the_later_counts(make: Make) -> None:
    asked: list[int] = []

    def known() -> list[Standing]:
        asked.append(1)
        return [replace_standing(len(asked))]

    def replace_standing(times: int) -> Standing:
        return reached(0.4, 0, 40) if times > 4 else Standing(Trial(8, 0.4, 0), "running", 40 * times, None, None)

    [result] = results_of(told(make("mlp"), [Trial(8, 0.1, 0)], AIMING, known=known)).values()
    assert result.outcome == "pruned"
    assert len(result.curve) == len(asked) == 5


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

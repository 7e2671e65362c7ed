"""A run that is not worth going on with is pruned: alone and in a stack."""

from __future__ import annotations

from collections.abc import Callable

import torch

from batchscope import Plan, Workload
from batchscope.records import CurvePoint
from batchscope.training import Prepared, Run

CPU = torch.device("cpu")
Make = Callable[..., Workload]


def test_a_run_is_pruned_when_it_is_told_not_to_go_on(make: Make) -> None:
    asked: list[CurvePoint] = []

    def keep_going(point: CurvePoint) -> bool:
        asked.append(point)
        return point.examples < 80

    plan = Plan(batch_size=8, learning_rate=0.05, iterations=20)
    prepared = Prepared(make(), CPU)
    whole = Run(prepared, plan, seed=0, evaluate_every=40)()
    result = Run(prepared, plan, seed=0, evaluate_every=40, keep_going=keep_going)()
    assert (result.outcome, result.examples, result.iterations) == ("pruned", 80, 10)
    assert tuple(asked) == result.curve
    assert [point.score for point in result.curve] == [point.score for point in whole.curve[:3]]
    assert (result.final_score, result.training_score) == (None, None)
    assert result.best_score == max(point.score for point in result.curve)


def test_an_evaluation_that_ends_a_run_is_not_asked_about(make: Make) -> None:
    def never(point: CurvePoint) -> bool:
        return point.iterations == 0

    prepared = Prepared(make(), CPU)
    ended = [Plan(8, 0.05, iterations=5), Plan(8, 0.05, iterations=60, target=0.0)]
    runs = [Run(prepared, plan, seed=0, evaluate_every=40, keep_going=never)() for plan in ended]
    assert [run.outcome for run in runs] == ["finished", "reached"]

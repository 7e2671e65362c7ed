"""Early stopping: patience, tolerance, and the weights at the best score."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import batchscope as bs
from batchscope import Plan, PlanError, Workload
from batchscope.training.early_stopping import BestSoFar

Make = Callable[..., Workload]
scores_ = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def stops_at(scores: list[float], *, patience: int | None, tolerance: float = 0.0) -> int | None:
    """The evaluation after which training stops, from 0."""
    best = BestSoFar(patience=patience, tolerance=tolerance)
    for i, score in enumerate(scores):
        best.update(score, -score, i)
        if best.should_stop:
            return i
    return None


@given(scores=scores_)
def test_the_best_is_the_first_maximum(scores: list[float]) -> None:
    best = BestSoFar()
    kept = [i for i, score in enumerate(scores) if best.update(score, -score, i)]
    assert best.score == max(scores)
    assert best.examples == scores.index(max(scores)) == kept[-1]
    assert best.loss == min(-score for score in scores)
    assert not best.should_stop


@given(scores=scores_, patience=st.integers(2, 6), tolerance=st.floats(0, 10))
def test_it_stops_after_exactly_that_many_evaluations_without_improvement(
    scores: list[float], patience: int, tolerance: float
) -> None:
    reference, waited, expected = -math.inf, 0, None
    for i, score in enumerate(scores):
        if score > reference + tolerance:
            reference, waited = score, 0
        else:
            waited += 1
        if waited == patience:
            expected = i
            break
    assert stops_at(scores, patience=patience, tolerance=tolerance) == expected


def test_one_bad_evaluation_stops_nothing() -> None:
    zigzag = [0.5, 0.4, 0.6, 0.5, 0.7, 0.6, 0.8]
    assert stops_at(zigzag, patience=2) is None
    with pytest.raises(PlanError, match="first bad evaluation says nothing"):
        Plan(batch_size=1, learning_rate=0.1, iterations=1, patience=1)


def test_improvements_within_the_tolerance_add_up() -> None:
    creeping = [0.50, 0.51, 0.52, 0.53, 0.54]
    assert stops_at(creeping, patience=2) is None
    assert stops_at(creeping, patience=2, tolerance=0.1) == 2
    assert stops_at(creeping, patience=3, tolerance=0.015) is None  # 0.52 and 0.54 count, against 0.50 and 0.52


def test_scores_that_are_not_finite_count_as_no_improvement() -> None:
    assert stops_at([0.5, math.nan, math.inf], patience=2) == 2
    best = BestSoFar()
    assert not best.update(math.nan, math.nan, 0)
    assert not best.update(math.inf, math.inf, 8)
    assert (best.score, best.loss, best.examples) == (None, None, None)
    assert best.update(0.1, 1.0, 16)


def test_the_weights_are_copies() -> None:
    layer, best = nn.Linear(2, 2), BestSoFar()
    for value in (1.0, 2.0):
        nn.init.constant_(layer.weight, value)
        best.keep(layer.state_dict())
        nn.init.constant_(layer.weight, -1.0)
        assert best.state is not None
        assert torch.equal(best.state["weight"], torch.full((2, 2), value))


def test_state_that_changes_its_shape_or_is_no_tensor_is_kept_all_the_same() -> None:
    history: list[int] = [1]
    best = BestSoFar()
    best.keep({"cache": torch.zeros(2), "history": history})
    history.append(2)
    assert best.state is not None
    assert best.state["history"] == [1]
    grown = torch.ones(3)
    best.keep({"cache": grown, "history": history, "new": torch.ones(1)})
    grown.zero_()
    history.append(3)
    assert torch.equal(best.state["cache"], torch.ones(3))
    assert best.state["history"] == [1, 2]
    assert torch.equal(best.state["new"], torch.ones(1))


class Scripted:
    """Scores by a list instead of by the model; the first call is the workload's check."""

    def __init__(self, scores: list[float]) -> None:
        self.scores, self.calls = scores, -1

    def __call__(self, output: Any, target: Any) -> float:
        self.calls += 1
        return self.scores[min(max(self.calls - 1, 0), len(self.scores) - 1)]


def trained(make: Make, scores: list[float], **plan: Any) -> tuple[bs.TrainResult, list[dict[str, Tensor]]]:
    score = Scripted(scores)
    models: list[nn.Module] = []

    def model() -> nn.Module:
        models.append(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)))
        return models[-1]

    states: list[dict[str, Tensor]] = []

    def remember(event: object) -> None:
        states.append({key: value.clone() for key, value in models[-1].state_dict().items()})

    workload = make(model=model, score=score)
    result = bs.train(
        workload, Plan(batch_size=5, learning_rate=0.1, iterations=20, **plan), evaluate_every=10, progress=remember
    )
    return result, states


def test_a_run_stops_early_and_goes_back_to_its_best_weights(make: Make) -> None:
    # Evaluations before the first update and every two; the best is the third, and three worse ones follow it.
    result, states = trained(make, [0.1, 0.2, 0.9, 0.3, 0.5, 0.4, 0.95], patience=3)
    assert (result.outcome, result.iterations, result.examples) == ("stopped early", 10, 50)
    assert (result.best_score, result.best_examples, result.final_score) == (0.9, 20, 0.4)
    assert [point.score for point in result.curve] == [0.1, 0.2, 0.9, 0.3, 0.5, 0.4]
    assert result.state is not None
    assert result.state.keys() == states[2].keys()
    assert all(torch.equal(result.state[key], states[2][key]) for key in states[2])  # statistics of batch norm too
    assert not torch.equal(result.state["0.weight"], states[-1]["0.weight"])


def test_a_run_without_patience_goes_on_to_its_end(make: Make) -> None:
    result, _ = trained(make, [0.9, 0.1])
    assert (result.outcome, result.iterations, result.best_examples) == ("finished", 20, 0)


def test_the_target_wins_over_patience(make: Make) -> None:
    result, _ = trained(make, [0.5, 0.4, 0.8], patience=2, target=0.8, tolerance=1.0)
    assert (result.outcome, result.reached) == ("reached", True)

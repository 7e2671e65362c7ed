"""Landscapes against closed forms, and that nothing of the person's is moved by looking at one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from batchscope.errors import ArgumentError, WorkloadError
from batchscope.measure.landscape import filter_normalised, landscape, take_statistics
from batchscope.records import load
from batchscope.seeding import isolated
from batchscope.training.evaluation import EvaluationData, evaluate
from batchscope.workload import Workload

Make = Callable[..., Workload]
CPU = torch.device("cpu")


def states(workload: Workload, count: int) -> list[dict[str, Any]]:
    found = []
    for seed in range(count):
        with isolated(seed):
            found.append(workload.model().state_dict())
    return found


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.reshape(1, -1).expand(len(x), -1)


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * output.square().sum(-1).mean()


def bowl(make: Make) -> Workload:
    return make("mlp", model=Position, loss=half_square, score=None)


def test_along_a_line_through_a_bowl_the_loss_is_a_parabola(make: Make) -> None:
    workload = bowl(make)
    small, large = states(workload, 2)
    found = landscape(workload, [small, large], labels=["small", "large"])
    a, b = (state["theta"].flatten().double().numpy() for state in (small, large))
    alphas = np.array([point.along for point in found.points])
    np.testing.assert_allclose(alphas, np.linspace(-1, 2, 25))
    expected = [0.5 * np.square((1 - alpha) * a + alpha * b).sum() for alpha in alphas]
    np.testing.assert_allclose([p.training_loss for p in found.points], expected, rtol=1e-5)
    np.testing.assert_allclose([p.validation_score for p in found.points], -np.array(expected), rtol=1e-5)
    assert found.shape == "line"
    assert found.length == pytest.approx((np.linalg.norm(b - a), 0.0))
    assert [(p.along, p.across) for p in found.path] == [pytest.approx((0.0, 0.0)), pytest.approx((1.0, 0.0))]
    assert found.statistics_from == 0


@pytest.mark.parametrize("kind", ["mlp", "dropout", "transformer", "augmented", "batch norm"])
def test_the_ends_of_a_line_are_the_states(make: Make, kind: str) -> None:
    workload = make(kind)
    ends = states(workload, 2)
    found = landscape(workload, ends, reach=(0.0, 1.0), points=3, examples=20)
    for state, point in zip(ends, (found.points[0], found.points[-1]), strict=True):
        model = workload.model()
        model.load_state_dict(state)
        training = EvaluationData(workload, "training", CPU, most=20)
        take_statistics(model, training, seed=0)
        loss, score = evaluate(model, training)
        assert (point.training_loss, point.training_score) == pytest.approx((loss, score), rel=1e-5)
        loss, score = evaluate(model, EvaluationData(workload, "validation", CPU, most=20))
        assert (point.validation_loss, point.validation_score) == pytest.approx((loss, score), rel=1e-5)
    assert found.statistics_from == (20 if kind == "batch norm" else 0)


def test_running_statistics_are_those_of_the_examples_at_these_weights(make: Make) -> None:
    workload = make("batch norm")
    model = workload.model()
    data = EvaluationData(workload, "training", CPU, batch_size=100)
    modes = [module.training for module in model.modules()]
    assert take_statistics(model, data, seed=0) == len(data.indices)
    x = workload.train[0][data.indices]
    into = model[0](x)  # type: ignore[index]
    norm = model[1]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, into.mean(0))
    torch.testing.assert_close(norm.running_var, into.var(0))
    assert norm.momentum == 0.1
    assert [module.training for module in model.modules()] == modes
    assert take_statistics(make("mlp").model(), data, seed=0) == 0


@given(seed=st.integers(0, 20), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_filters_of_a_direction_are_as_long_as_those_of_the_weights(seed: int, rows: int, columns: int) -> None:
    generator = np.random.default_rng(seed)
    weights, direction = generator.standard_normal((2, rows * columns + rows))
    found = filter_normalised(direction, weights, [(rows, columns), (rows,)])
    matrix, wanted = (part[: rows * columns].reshape(rows, columns) for part in (found, weights))
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), np.linalg.norm(wanted, axis=1))
    assert not found[rows * columns :].any()
    # A filter twice as large is moved twice as far.
    twice = filter_normalised(direction, 2 * weights, [(rows, columns), (rows,)])
    np.testing.assert_allclose(twice, 2 * found)


def test_a_plane_is_a_grid_about_the_weights(make: Make) -> None:
    workload = make("cnn")
    [state] = states(workload, 1)
    found = landscape(workload, state, points=5, examples=20)
    assert found.shape == "plane"
    assert [(p.along, p.across) for p in found.points[:6]] == [
        (-1, -1),
        (-0.5, -1),
        (0, -1),
        (0.5, -1),
        (1, -1),
        (-1, -0.5),
    ]
    along = landscape(workload, state, shape="direction", points=5, examples=20)
    middle = [point for point in found.points if point.across == 0]
    assert [p.training_loss for p in along.points] == [p.training_loss for p in middle]
    assert found.path[0].distance == 0.0
    assert landscape(workload, state, points=5, examples=20).points == found.points
    assert landscape(workload, state, points=5, examples=20, seed=1).points != found.points


def test_a_path_in_a_plane_is_seen_whole(make: Make) -> None:
    workload = bowl(make)
    first, second, last = states(workload, 3)
    between = {"theta": 0.3 * first["theta"] + 0.5 * second["theta"] + 0.2 * last["theta"]}
    found = landscape(workload, [first, second, between, last], points=4)
    assert found.shape == "path"
    assert sum(found.explained) == pytest.approx(1.0)
    assert found.explained[0] >= found.explained[1]
    assert max(point.distance for point in found.path) < 1e-5
    assert (found.path[-1].along, found.path[-1].across) == pytest.approx((0.0, 0.0), abs=1e-6)
    # Distances between states are those in weight space.
    a, b = (np.array([p.along, p.across]) for p in found.path[:2])
    assert np.linalg.norm(a - b) == pytest.approx(float((first["theta"] - second["theta"]).norm()), rel=1e-5)
    reached = [p.along for p in found.points]
    assert min(reached) < min(p.along for p in found.path)
    assert max(reached) > max(p.along for p in found.path)


def test_what_a_path_leaves_out_is_told(make: Make) -> None:
    workload = make("mlp")
    found = landscape(workload, states(workload, 5), points=2, examples=10)
    assert sum(found.explained) < 1
    assert max(point.distance for point in found.path[:-1]) > 0.1


def test_nothing_of_the_persons_is_changed(make: Make) -> None:
    workload = make("batch norm")
    ends = states(workload, 2)
    before, random = copy.deepcopy(ends), torch.get_rng_state()
    landscape(workload, ends, points=3, examples=20)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(ends, before, strict=True) for k in a)


def test_far_out_the_loss_may_be_infinite_and_is_kept(make: Make, tmp_path: Any) -> None:
    workload = make("mlp")
    found = landscape(workload, states(workload, 2), points=2, reach=(0.0, 1e38), examples=5)
    assert not np.isfinite(found.points[-1].training_loss)
    again = load(found.to_json(tmp_path / "l.json"))
    assert again.points[0] == found.points[0]  # type: ignore[attr-defined]


def test_refusals(make: Make) -> None:
    workload = make("mlp")
    one, other = states(workload, 2)
    wrong: list[tuple[Any, dict[str, Any]]] = [
        ([one], {"shape": "line"}),
        ([one, other], {"shape": "plane"}),
        ([one, other], {"shape": "path"}),
        ([one, other], {"shape": "spiral"}),
        ([one, other], {"points": 1}),
        ([one, other], {"reach": (1.0, 0.0)}),
        ([one, other], {"labels": ["a"]}),
        ([one, other], {"examples": 0}),
        ([one, one, one], {}),
    ]
    for given_states, options in wrong:
        with pytest.raises(ArgumentError):
            landscape(workload, given_states, **options)
    with pytest.raises(WorkloadError, match="state dict"):
        landscape(workload, [one, {"nothing": torch.zeros(1)}])

"""Sharpness against boxes whose largest loss is known, and against what rescaling a network's layers may change."""

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
from batchscope.measure.loss_surface import LossSurface
from batchscope.measure.sharpness import sharpness
from batchscope.measure.subspace import Subspace
from batchscope.records import load
from batchscope.seeding import isolated
from batchscope.workload import Workload

Make = Callable[..., Workload]
HEIGHT = 0.3


class Position(nn.Module):
    def __init__(self, at: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(at.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), -1)


def bowl(make: Make, hessian: Tensor, at: Tensor | None = None) -> Workload:
    """½θᵀHθ + 0.3, from its minimum or from elsewhere."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return 0.5 * torch.einsum("ni,ij,nj->n", output, hessian, output).mean() + HEIGHT

    start = torch.zeros(len(hessian)) if at is None else at
    return make("mlp", model=lambda: Position(start), loss=loss, score=None)


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4, 0.5])
@pytest.mark.parametrize("kind", ["even", "spread", "one direction"])
def test_the_largest_loss_of_a_quadratic_is_found_from_its_minimum(make: Make, kind: str, epsilon: float) -> None:
    direction = torch.randn(150, generator=torch.Generator().manual_seed(0))
    hessian = {
        "even": torch.diag(torch.linspace(0.5, 5, 150)),
        "spread": torch.diag(torch.logspace(-5, 3, 150)),
        "one direction": torch.outer(direction, direction),
    }[kind]
    # Of a diagonal Hessian every corner is the highest point; of a single direction the one of its signs.
    highest = 0.5 * epsilon**2 * float(direction.abs().sum() ** 2 if kind == "one direction" else hessian.diag().sum())
    found = sharpness(bowl(make, hessian), epsilon=epsilon)
    assert found.value == pytest.approx(100 * highest / (1 + HEIGHT), rel=0.01)
    assert found.loss == pytest.approx(HEIGHT)
    assert found.over_runs.low is None


def test_the_box_grows_with_the_weights(make: Make) -> None:
    at, curvature = torch.full((80,), 3.0), 2.0
    found = sharpness(bowl(make, curvature * torch.eye(80), at), epsilon=1e-2)
    centre = 0.5 * curvature * 80 * 9 + HEIGHT
    highest = 0.5 * curvature * 80 * (3 + 1e-2 * 4) ** 2 + HEIGHT
    assert found.value == pytest.approx(100 * (highest - centre) / (1 + centre), rel=1e-3)


def test_in_a_subspace_of_a_round_bowl_phi_is_known(make: Make) -> None:
    # ½λ‖Az‖² over |z_i| ≤ ε, from the minimum at 0; the corners differ by what random columns have in common.
    found = sharpness(bowl(make, 4.0 * torch.eye(3000)), epsilon=0.1, subspace=20)
    expected = 100 * 0.5 * 4.0 * 20 * 0.1**2 / (1 + HEIGHT)
    assert len(found.runs) == 5
    assert found.over_runs.low is not None
    assert found.over_runs.high is not None
    assert found.over_runs.low < found.value < found.over_runs.high
    assert expected < found.value < 1.3 * expected


@given(size=st.integers(1, 12), seed=st.integers(0, 5))
def test_a_subspace_is_the_same_held_or_drawn_anew(size: int, seed: int) -> None:
    held, drawn = Subspace(400, size, seed=seed), Subspace(400, size, seed=seed, held_bytes=0)
    coordinates = np.arange(1.0, size + 1)
    point = held @ coordinates
    np.testing.assert_allclose(drawn @ coordinates, point, rtol=1e-12)
    np.testing.assert_allclose(drawn.transposed(point), held.transposed(point), rtol=1e-12)
    np.testing.assert_allclose(drawn.coordinates(point), coordinates, rtol=1e-8)
    # What lies beside it has no part in the coordinates of the nearest point.
    vector = np.random.default_rng(seed).standard_normal(400)
    beside = vector - held @ held.coordinates(vector)
    np.testing.assert_allclose(held.transposed(beside), 0.0, atol=1e-9)


def rescaled(state: dict[str, Any], factor: float) -> dict[str, Any]:
    """A perceptron of ReLUs that computes the same, with larger weights first and smaller ones afterwards."""
    other = copy.deepcopy(state)
    other["0.weight"] *= factor
    other["0.bias"] *= factor
    other["2.weight"] /= factor
    return other


def test_rescaling_layers_changes_keskars_form_and_not_that_of_filters(make: Make) -> None:
    def relu() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    workload = make("mlp", model=relu)
    with isolated(0):
        state = relu().state_dict()
    plain = [sharpness(workload, s, 0.02, iterations=30).value for s in (state, rescaled(state, 8.0))]
    robust = [sharpness(workload, s, 0.02, box="filters", iterations=30).value for s in (state, rescaled(state, 8.0))]
    assert plain[1] > 1.5 * plain[0]
    assert robust[1] == pytest.approx(robust[0], rel=0.02)


def test_biases_and_norms_stand_still_in_the_box_of_filters(make: Make) -> None:
    found = sharpness(bowl(make, torch.eye(5), torch.ones(5)), box="filters")
    assert found.value == 0.0
    assert found.runs[0].at_bounds == 0.0


@pytest.mark.parametrize("kind", ["batch norm", "dropout", "transformer", "augmented", "noisy"])
def test_it_rises_with_the_box_and_is_settled_by_the_seed(make: Make, kind: str) -> None:
    workload = make(kind)
    state = workload.model().state_dict()
    before = copy.deepcopy(state)
    random = torch.get_rng_state()
    small, large, again = (sharpness(workload, state, e, iterations=20) for e in (1e-3, 1e-2, 1e-2))
    assert 0 < small.value < large.value
    assert (again.value, again.runs) == (large.value, large.runs)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert large.examples == 45


def test_the_surface_is_the_mean_over_ragged_batches(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make("batch norm")
    device = torch.device("cpu")
    whole = LossSurface(workload, None, range(45), seed=0, device=device)
    monkeypatch.setattr("batchscope.measure.loss_surface.BATCH_SIZE", 32)
    ragged = LossSurface(workload, None, range(45), seed=0, device=device)
    values = [surface.value_and_gradient(surface.start) for surface in (whole, ragged)]
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-6)
    np.testing.assert_allclose(values[0][1], values[1][1], atol=1e-7)
    assert whole.value(whole.start) == pytest.approx(values[0][0], rel=1e-6)
    # The slope along a direction is that of finite differences.
    direction = np.random.default_rng(0).standard_normal(whole.dimensions)
    ends = [whole.value(whole.start + sign * 1e-3 * direction) for sign in (1, -1)]
    assert values[0][1] @ direction == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=0.02)


def test_refusals_and_the_record(make: Make, tmp_path: Any) -> None:
    workload = make("mlp")
    for wrong in ({"epsilon": 0.0}, {"box": "round"}, {"iterations": 0}, {"repeats": 0}, {"subspace": 10**6}):
        with pytest.raises(ArgumentError):
            sharpness(workload, **wrong)
    with pytest.raises(ArgumentError, match="filters"):
        sharpness(workload, subspace=3, box="filters")
    broken = {name: value * float("nan") for name, value in workload.model().state_dict().items()}
    with pytest.raises(WorkloadError, match="finite"):
        sharpness(workload, broken)
    found = sharpness(workload, subspace=3, repeats=2)
    assert load(found.to_json(tmp_path / "s.json")) == found

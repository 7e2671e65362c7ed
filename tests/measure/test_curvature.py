"""Curvature against dense matrices in float64, and the bound against gradient descent itself."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from batchscope.errors import ArgumentError, RunError, WorkloadError
from batchscope.measure.curvature import (
    curvature_bound,
    hessian_eigenvalues,
    largest_eigenvalue,
)
from batchscope.measure.curvature_operators import BATCH_SIZE, GaussNewton, Hessian
from batchscope.measure.spectrum import hessian_trace, spectral_density
from batchscope.records import load
from batchscope.records.curvature import HessianEigenvalues
from batchscope.seeding import isolated
from batchscope.workload import Workload, quadratic

Make = Callable[..., Workload]


def dense_hessian(workload: Workload, model: nn.Module, count: int) -> Tensor:
    """The Hessian of the loss over the first examples, in float64 and evaluation mode, reverse over reverse.

    torch.func.hessian goes forward over reverse, which is wrong for layer_norm's weight in torch 2.13: its matrix is
    not even symmetric.
    """
    model = copy.deepcopy(model).double().eval()
    x, y = (part[:count] for part in workload.train)  # type: ignore[union-attr]
    x = x.double() if x.is_floating_point() else x
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in trained.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = torch.split(flat, sizes)
        named = {name: part.view_as(p) for part, (name, p) in zip(parts, trained.items(), strict=True)}
        return workload.loss(functional_call(model, named, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in trained.values()])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense: Tensor = jacrev(grad(loss))(flat)
    assert (dense - dense.T).abs().max() < 1e-10
    return dense


def dense_gauss_newton(workload: Workload, model: nn.Module, count: int) -> Tensor:
    """Σ JᵀH_L J over the first examples, from a dense Jacobian and a dense H_L, in float64."""
    model = copy.deepcopy(model).double().eval()
    x, y = (part[:count] for part in workload.train)  # type: ignore[union-attr]
    x = x.double() if x.is_floating_point() else x
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        output = functional_call(model, trained, (x,))
        parts = jacrev(partial(_outputs, model, x))(trained)
        jacobian = torch.cat([part.reshape(output.numel(), -1) for part in parts.values()], 1)

        def loss(flat: Tensor) -> Tensor:
            return workload.loss(flat.view_as(output), y)

        inner = jacrev(grad(loss))(output.detach().flatten())
    found: Tensor = jacobian.T @ inner @ jacobian
    return found


def _outputs(model: nn.Module, x: Tensor, named: dict[str, Tensor]) -> Tensor:
    out: Tensor = functional_call(model, named, (x,))
    return out


KINDS = ["mlp", "dropout", "batch norm", "frozen norm", "tied", "cnn", "transformer"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton"])
def test_the_top_eigenvalues_are_those_of_the_dense_matrix(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str, matrix: Any
) -> None:
    monkeypatch.setattr("batchscope.measure.curvature_operators.BATCH_SIZE", 32)  # 45 = 32 + 13
    workload = make(kind)
    with isolated(0):
        model = workload.model()
    dense = (dense_hessian if matrix == "hessian" else dense_gauss_newton)(workload, model, 45).numpy()
    found = hessian_eigenvalues(workload, model.state_dict(), 5, examples=45, matrix=matrix, tolerance=1e-6)
    expected = np.linalg.eigvalsh(dense)[::-1][:5]
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-4 * expected[0])
    assert all(found.converged)
    assert found.parameters == len(dense) < 3000
    # The residuals are true: of these vectors and the dense matrix, up to single precision.
    true = np.linalg.norm(dense @ found.vectors - found.vectors * np.array(found.values), axis=0)
    np.testing.assert_allclose(found.residuals, true, atol=3e-5 * expected[0])
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(5), atol=1e-6)


class Position(nn.Module):
    """Returns its weights, the same for every example."""

    def __init__(self, dimensions: int = 60) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(dimensions))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), -1)


def bowl(curvatures: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss whose Hessian has these eigenvalues."""
    return lambda output, target: (0.5 * curvatures * output.square()).sum(-1).mean()


@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton"])
def test_equal_eigenvalues_are_all_found_and_close_ones_told_apart(make: Make, matrix: Any) -> None:
    curvatures = torch.cat([torch.tensor([3.0, 3.0, 3.0, 2.99, 2.0, 2.0]), torch.linspace(0.0, 1.0, 54)])
    workload = make("mlp", model=Position, loss=bowl(curvatures), score=None)
    found = hessian_eigenvalues(workload, k=6, tolerance=1e-7, matrix=matrix)
    assert found.values == pytest.approx((3.0, 3.0, 3.0, 2.99, 2.0, 2.0), rel=1e-5)
    assert found.told_apart == (False, False, True, True, False, True)
    assert max(found.residuals) < 1e-4


def test_held_graphs_change_nothing_but_the_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscope.measure.curvature_operators.BATCH_SIZE", 10)
    for kind in ("transformer", "batch norm", "noisy"):
        workload = make(kind)
        with isolated(0):
            model = workload.model()
        for matrix in (Hessian, GaussNewton):
            made = [matrix(workload, model, list(range(45)), seed=0, held_bytes=b) for b in (0, 20_000, 1 << 30)]
            vectors = np.random.default_rng(0).standard_normal((3, made[0].parameters))
            products = [[operator @ vector for vector in vectors] for operator in made]
            for other in products[1:]:
                np.testing.assert_array_equal(other, products[0])
            held = [sum(graph is not None for graph in operator._held) for operator in made]
            assert held[0] == 0
            assert held[2] == 5
            made[2].release()
            np.testing.assert_array_equal(made[2] @ vectors[0], products[0][0])


def test_the_trace_and_its_interval(make: Make) -> None:
    workload = make("mlp")
    with isolated(0):
        model = workload.model()
    truth = float(dense_gauss_newton(workload, model, 45).trace())
    known = hessian_eigenvalues(workload, model.state_dict(), 8, examples=45, matrix="gauss-newton")
    widths = []
    for eigenvalues in (None, known):
        held, width = 0, 0.0
        for seed in range(40):
            found = hessian_trace(
                workload,
                model.state_dict(),
                examples=45,
                matrix="gauss-newton",
                samples=10,
                seed=seed,
                eigenvalues=eigenvalues,
            )
            assert found.trace.low is not None
            assert found.trace.high is not None
            held += found.trace.low <= truth <= found.trace.high
            width += found.trace.high - found.trace.low
        # Of 40 intervals at 95% at least 33 hold the truth but once in 400 times.
        assert held >= 33
        widths.append(width)
        assert found.mean_eigenvalue.value == pytest.approx((found.trace.value or 0.0) / found.parameters)
    assert widths[1] < 0.5 * widths[0]


def test_the_density_is_that_of_all_eigenvalues(make: Make) -> None:
    workload = make("mlp")
    with isolated(0):
        model = workload.model()
    values = np.linalg.eigvalsh(dense_hessian(workload, model, 45).numpy())
    found = spectral_density(workload, model.state_dict(), examples=45, runs=30, steps=40)
    nodes, weights, grid = map(np.array, (found.nodes, found.weights, found.eigenvalues))
    assert weights.sum() == pytest.approx(1.0)
    assert np.trapezoid(found.density, grid) == pytest.approx(1.0, abs=0.01)
    # Moments, and the share below a point, of 30 random vectors' quadratures.
    for power in (1, 2, 3):
        error = np.sqrt(2 * (values ** (2 * power)).mean() / (len(values) * found.runs))
        assert (weights * nodes**power).sum() == pytest.approx((values**power).mean(), abs=4 * error)
    assert nodes[-1] == pytest.approx(values[-1], rel=1e-4)
    share = (values < -1e-5 * values[-1]).mean()
    assert found.share_negative.value == pytest.approx(share, abs=0.1)


def test_a_density_of_one_vector_has_no_interval(make: Make) -> None:
    found = spectral_density(make("mlp"), examples=20, runs=1, steps=5)
    assert (found.share_negative.low, found.share_negative.high) == (None, None)
    assert (found.runs, found.steps, found.products) == (1, 5, 5)


def test_a_loss_that_is_no_function_is_refused(make: Make) -> None:
    calls = iter(range(1000))

    class Counting(Position):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + next(calls)

    workload = make("mlp", model=Counting, loss=bowl(torch.ones(60)), score=None)
    with pytest.raises(WorkloadError, match="same function"):
        hessian_eigenvalues(workload)


def test_a_record_of_eigenvalues_is_saved_without_vectors(make: Make, tmp_path: Any) -> None:
    found = hessian_eigenvalues(make("mlp"), k=2, examples=20)
    again = load(found.to_json(tmp_path / "e.json"))
    assert isinstance(again, HessianEigenvalues)
    assert again == found
    assert again.vectors is None
    assert found.vectors.shape == (found.parameters, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_eigenvalue_is_that_of_the_dense_hessian(make: Make, kind: str) -> None:
    workload = make(kind)
    with isolated(0):
        model = workload.model()
    dense = dense_hessian(workload, model, 45)
    found = largest_eigenvalue(workload, model.state_dict(), examples=45, tolerance=1e-6)
    largest = torch.linalg.eigvalsh(dense)[-1].item()
    assert found.value == pytest.approx(largest, rel=1e-4)
    assert found.converged
    assert found.residual < 1e-3 * abs(largest)
    assert found.products > 1


def test_products_weight_a_ragged_last_batch_by_its_examples(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscope.measure.curvature_operators.BATCH_SIZE", 32)  # 45 = 32 + 13
    workload = make("mlp")
    with isolated(0):
        model = workload.model()
    operator = Hessian(workload, model, list(range(45)), seed=0)
    vector = np.random.default_rng(0).standard_normal(operator.parameters)
    expected = dense_hessian(workload, model, 45).numpy() @ vector
    np.testing.assert_allclose(operator @ vector, expected, rtol=1e-4, atol=1e-5)
    assert BATCH_SIZE != 32


def test_largest_is_the_largest_value_and_not_the_largest_size(make: Make) -> None:
    # −½‖θ‖² + a little: every eigenvalue but one is about −1.
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return -0.5 * output.square().sum(-1).mean() + 0.2 * output[..., 0].square().mean()

    workload = make("mlp", model=lambda: Position(5), loss=loss, score=None)
    assert largest_eigenvalue(workload, tolerance=1e-6).value == pytest.approx(-0.6, abs=1e-5)


def test_the_quadratic_has_its_known_eigenvalue() -> None:
    workload = quadratic.quadratic(dimensions=40, examples=500, condition=30)
    found = largest_eigenvalue(workload, tolerance=1e-6)
    assert found.value == pytest.approx(1.0, rel=1e-5)
    assert found.examples == 500


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_very_small_models_have_eigenvalues_too(dimensions: int) -> None:
    workload = quadratic.quadratic(dimensions=dimensions, examples=50)
    assert largest_eigenvalue(workload).value == pytest.approx(1.0, rel=1e-4)


def test_the_seed_settles_it_and_nothing_of_the_persons_is_changed(make: Make) -> None:
    workload = make("augmented", model=make("batch norm").model)
    with isolated(0):
        state = workload.model().state_dict()
    before = {name: value.clone() for name, value in state.items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    once, again = (largest_eigenvalue(workload, state, seed=3) for _ in range(2))
    assert once == again
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # type: ignore[index]  # noqa: NPY002
    for name, value in state.items():
        assert torch.equal(value, before[name])


def test_an_operator_leaves_modes_gradients_and_buffers_alone(make: Make) -> None:
    workload = make("batch norm")
    model = workload.model()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    operator = Hessian(workload, model, list(range(20)), seed=0)
    _ = operator @ np.ones(operator.parameters)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_refusals(make: Make) -> None:
    workload = make("mlp")
    with pytest.raises(ArgumentError, match="examples"):
        largest_eigenvalue(workload, examples=0)
    with pytest.raises(ArgumentError, match="tolerance"):
        largest_eigenvalue(workload, tolerance=0.0)
    with pytest.raises(ArgumentError, match="k must"):
        hessian_eigenvalues(workload, k=0)
    with pytest.raises(ArgumentError, match="matrix"):
        hessian_eigenvalues(workload, matrix="fisher")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="same matrix"):
        hessian_trace(workload, eigenvalues=hessian_eigenvalues(workload, matrix="gauss-newton"))
    with pytest.raises(ArgumentError, match="width"):
        spectral_density(workload, width=0.0)
    with pytest.raises(WorkloadError, match="state dict"):
        largest_eigenvalue(workload, {"nothing": torch.zeros(1)})
    broken = {name: value * float("nan") for name, value in workload.model().state_dict().items()}
    with pytest.raises(WorkloadError, match="finite"):
        largest_eigenvalue(workload, broken)


SGD: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "damped": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "slow nesterov": {"momentum": 0.3, "nesterov": True},
    "decay": {"momentum": 0.5, "weight_decay": 0.7},
}


def grows(rate: float, settings: dict[str, Any], curvature: float) -> bool:
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=rate, **settings)
    for _ in range(3000):
        theta.grad = curvature * theta.detach()
        optimizer.step()
        if not abs(theta.item()) < 1e6:
            return True
    return abs(theta.item()) > 1e-2


@pytest.mark.parametrize("kind", SGD)
def test_gradient_descent_is_stable_just_below_the_bound_and_not_just_above(kind: str) -> None:
    curvature = 3.0
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, **SGD[kind])
    bound = curvature_bound(optimizer, curvature)
    assert bound is not None
    assert not grows(0.99 * bound, SGD[kind], curvature)
    assert grows(1.01 * bound, SGD[kind], curvature)


def test_the_bound_of_the_quadratic_workload_is_where_its_training_breaks() -> None:
    workload = quadratic.quadratic(dimensions=8, examples=64, noise=0.0)
    with isolated(0):
        model = workload.model()
    bound = curvature_bound(
        workload.optimizer(model.parameters(), 0.1), largest_eigenvalue(workload, tolerance=1e-6).value
    )
    assert bound is not None
    assert bound == pytest.approx(2.0, rel=1e-4)
    start = model.state_dict()["theta"]
    for factor, stable in ((0.99, True), (1.01, False)):
        loss = quadratic.expected_loss(workload, start, learning_rate=factor * bound, batch_size=64, iterations=500)
        assert (loss < quadratic.true_loss(workload, start)) == stable


def test_no_bound_where_there_is_none() -> None:
    weights = [torch.zeros(1)]
    assert curvature_bound(torch.optim.Adam(weights), 1.0) is None
    assert curvature_bound(torch.optim.SGD(weights, lr=0.1), -1.0) is None
    assert curvature_bound(torch.optim.SGD(weights, lr=0.1), float("nan")) is None


def test_eigenvalues_that_do_not_converge_are_said_to(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscope.measure.eigenvalues.MOST_PRODUCTS", 5)
    with pytest.raises(RunError, match="converge"):
        hessian_eigenvalues(make("mlp"), k=3, tolerance=1e-14)

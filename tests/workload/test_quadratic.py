"""The quadratic's closed forms, held to autograd and to simulation in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, vmap

from batchscope.errors import WorkloadError
from batchscope.workload import quadratic as q
from batchscope.workload.workload import Workload


@pytest.fixture(scope="module")
def workload() -> Workload:
    return q.quadratic(dimensions=7, examples=500, noise=1.5, condition=30, dtype=torch.float64, seed=3)


@pytest.fixture(scope="module")
def theta() -> Tensor:
    return torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def training_set(workload: Workload) -> tuple[Tensor, ...]:
    assert isinstance(workload.train, tuple)
    return workload.train


def loss_of(workload: Workload) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    model = workload.model()
    return lambda theta, x, y: workload.loss(functional_call(model, {"theta": theta}, (x,)), y)


def example_gradients(workload: Workload, theta: Tensor) -> Tensor:
    x, y = training_set(workload)
    loss = loss_of(workload)
    one = grad(lambda t, a, b: loss(t, a[None], b[None]))
    gradients: Tensor = vmap(one, (None, 0, 0))(theta, x, y)
    return gradients


def test_gradient_and_covariance_are_those_of_autograd(workload: Workload, theta: Tensor) -> None:
    gradients = example_gradients(workload, theta)
    torch.testing.assert_close(gradients.mean(0), q.true_gradient(workload, theta), rtol=1e-10, atol=1e-12)
    centred = gradients - gradients.mean(0)
    covariance = centred.T @ centred / len(gradients)
    torch.testing.assert_close(covariance, q.true_covariance(workload).diag(), rtol=1e-10, atol=1e-10)
    assert q.true_covariance_trace(workload) == pytest.approx(covariance.trace().item(), rel=1e-12)
    assert q.simple_noise_scale(workload, theta) == pytest.approx(
        covariance.trace().item() / gradients.mean(0).square().sum().item(), rel=1e-10
    )
    mean, h = gradients.mean(0), q.eigenvalues(workload).diag()
    expected = ((h @ covariance).trace() / (mean @ h @ mean)).item()
    assert q.noise_scale(workload, theta) == pytest.approx(expected, rel=1e-10)


def test_one_example_gives_h_times_the_distance(workload: Workload, theta: Tensor) -> None:
    x = training_set(workload)[0]
    torch.testing.assert_close(example_gradients(workload, theta), q.eigenvalues(workload) * (theta - x))


def test_hessian_is_diagonal_with_the_eigenvalues(workload: Workload, theta: Tensor) -> None:
    x, y = training_set(workload)
    dense = hessian(loss_of(workload))(theta, x, y)
    torch.testing.assert_close(dense, q.eigenvalues(workload).diag(), rtol=1e-12, atol=1e-12)
    values = q.eigenvalues(workload)
    assert values[0] == 1
    assert values[-1].item() == pytest.approx(1 / 30)
    assert (values.diff() < 0).all()


def test_loss(workload: Workload, theta: Tensor) -> None:
    x, y = training_set(workload)
    assert loss_of(workload)(theta, x, y).item() == pytest.approx(q.true_loss(workload, theta), rel=1e-12)
    assert q.true_loss(workload, torch.zeros(7)) == q.lowest_loss(workload)
    assert q.lowest_loss(workload) == pytest.approx(0.5 * 7 * 1.5**2)


@pytest.mark.parametrize(("rate", "batch_size", "iterations"), [(0.1, 4, 50), (0.7, 16, 20), (1.9, 2, 5), (0.1, 1, 0)])
def test_expected_loss_is_the_mean_of_simulated_runs(
    workload: Workload, theta: Tensor, rate: float, batch_size: int, iterations: int
) -> None:
    runs, h, x = 2_000, q.eigenvalues(workload), training_set(workload)[0]
    generator = torch.Generator().manual_seed(0)
    position = theta.expand(runs, -1)
    for _ in range(iterations):
        batch = x[torch.randint(len(x), (runs, batch_size), generator=generator)]
        position = position - rate * h * (position - batch.mean(1))
    losses = 0.5 * (h * position.square()).sum(1) + q.lowest_loss(workload)
    predicted = q.expected_loss(workload, theta, learning_rate=rate, batch_size=batch_size, iterations=iterations)
    error = losses.std().item() / runs**0.5
    assert abs(losses.mean().item() - predicted) <= 4 * error + 1e-9


def test_expected_loss_at_the_edge_of_stability(workload: Workload, theta: Tensor) -> None:
    at, near = (
        q.expected_loss(workload, theta, learning_rate=rate, batch_size=4, iterations=10) for rate in (2.0, 2 - 1e-9)
    )
    assert at == pytest.approx(near, rel=1e-6)


def test_weights_come_from_the_global_generator() -> None:
    workload = q.quadratic()
    torch.manual_seed(5)
    first = workload.model()
    torch.manual_seed(5)
    again, other = workload.model(), workload.model()
    assert torch.equal(first.theta, again.theta)  # type: ignore[arg-type]
    assert not torch.equal(first.theta, other.theta)  # type: ignore[arg-type]
    assert list(first.state_dict()) == ["theta"]


def test_examples_come_from_the_seed() -> None:
    torch.manual_seed(0)
    one = q.quadratic(seed=1)
    assert torch.equal(one.train[0], q.quadratic(seed=1).train[0])
    assert not torch.equal(one.train[0], q.quadratic(seed=2).train[0])
    torch.manual_seed(0)
    untouched = torch.rand(1)
    torch.manual_seed(0)
    q.quadratic(seed=1)
    assert torch.equal(torch.rand(1), untouched)


def test_reference_is_near_the_best_constant_rate() -> None:
    """What the docstring of quadratic() says of its reference setting."""
    workload = q.quadratic()
    steps = 4 * workload.training_examples // workload.batch_size
    ratios = []
    for seed in range(10):
        torch.manual_seed(seed)
        theta = next(workload.model().parameters())

        def excess(rate: float, theta: Tensor = theta) -> float:
            after = q.expected_loss(workload, theta, learning_rate=rate, batch_size=32, iterations=steps)
            return after - q.lowest_loss(workload)

        ratios.append(excess(workload.learning_rate) / min(excess(10 ** (k / 20)) for k in range(-60, 5)))
    assert sorted(ratios)[5] < 1.1


@pytest.mark.parametrize(
    "arguments",
    [
        {"dimensions": 0},
        {"dimensions": 10, "examples": 10},
        {"examples": 2, "dimensions": 1},
        {"noise": -1.0},
        {"noise": float("nan")},
        {"condition": 0.5},
        {"start": float("inf")},
    ],
)
def test_refusals(arguments: dict[str, float]) -> None:
    with pytest.raises(WorkloadError):
        q.quadratic(**arguments)  # type: ignore[arg-type]


def test_the_truth_is_not_known_elsewhere() -> None:
    with pytest.raises(WorkloadError, match="known of quadratic"):
        q.eigenvalues(replace(q.quadratic(), model=lambda: torch.nn.Linear(32, 32)))

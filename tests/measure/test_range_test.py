"""The range test finds rates that train, refuses where nothing is learnt, and leaves everything as it was."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import batchscope as bs
from batchscope.errors import ArgumentError, PlanError, RunError
from batchscope.fit.range_test import estimate_range
from batchscope.measure.range_test import _Test
from batchscope.progress import ProgressEvent
from batchscope.training.step import TrainingStep
from batchscope.workload import Workload, load_workload, quadratic

Make = Callable[..., Workload]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found() -> bs.RangeTest:
    test: bs.RangeTest = bs.range_test(load_workload("digits"), updates=128)
    return test


def test_the_suggested_rate_trains_well_on_digits(found: bs.RangeTest) -> None:
    workload = load_workload("digits")
    assert found.suggested is not None

    def final_loss(rate: float) -> float:
        plan = bs.Plan(batch_size=64, learning_rate=rate, examples=4 * workload.training_examples)
        loss = bs.train(workload, plan).final_loss
        return math.inf if loss is None else loss

    tuned = final_loss(workload.learning_rate)
    assert final_loss(found.suggested) < 1.5 * tuned
    assert final_loss(found.suggested / 30) > 2 * tuned  # so that the bar can be missed
    assert final_loss(found.suggested * 30) > 2 * tuned


def test_the_suggestion_does_not_hang_on_the_workloads_own_rate(found: bs.RangeTest) -> None:
    off = dataclasses.replace(load_workload("digits"), learning_rate=1e-3)
    other = bs.range_test(off, updates=128, curvature=False)
    assert other.suggested is not None
    assert found.suggested is not None
    assert 1 / 3 < other.suggested / found.suggested < 3


def test_the_quadratic_turns_up_at_the_edge_that_curvature_sets() -> None:
    # With little noise nothing but instability raises the loss; it takes some updates to show.
    test: bs.RangeTest = bs.range_test(quadratic.quadratic(noise=0.3), updates=256, seed=1)
    assert test.largest_eigenvalue == pytest.approx(1.0, rel=1e-2)
    assert test.curvature_bound == pytest.approx(2.0, rel=1e-2)
    assert test.largest_stable.value is not None
    assert 1.8 < test.largest_stable.value < 4


def test_labels_that_the_inputs_say_nothing_of_are_refused(make: Make) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4096, 6, generator=g), torch.randint(3, (4096,), generator=g)
    learnt = bs.range_test(make("mlp", train=(x, x[:, :3].argmax(1))), updates=64, curvature=False)
    nothing = bs.range_test(make("mlp", train=(x, y)), updates=64, curvature=False)
    assert learnt.suggested is not None
    assert nothing.suggested is None
    assert not nothing.steepest.resolved
    assert "cannot" in nothing.verdict or "no rate" in nothing.verdict


def test_the_batchs_own_share_of_the_noise_is_taken_out() -> None:
    workload = quadratic.quadratic()
    test = _Test(workload, 32, CPU, 0)
    rates = np.geomspace(1e-5, 1e-3, 64)
    losses = np.stack([test.repeat(rates, r, lambda done: None) for r in range(3)])
    level = losses - losses.mean(1, keepdims=True)
    plain = workload.train[1][:32].square().sum(1).std() / 32**0.5
    assert np.abs(np.diff(level)).max() < 0.01 * float(plain)
    assert losses.mean() == pytest.approx(quadratic.lowest_loss(workload), rel=0.1)  # and the level is the loss's own


@pytest.mark.parametrize("kind", ["dropout", "batch norm"])
def test_the_reference_pass_draws_what_training_draws(make: Make, kind: str) -> None:
    # At rates too small to change anything, the two passes are over the same weights.
    losses = _Test(make(kind), 8, CPU, 0).repeat(np.full(16, 1e-12), 0, lambda done: None)
    np.testing.assert_allclose(losses, losses[0], atol=1e-6)


def test_repeats_begin_at_the_same_weights_with_other_batches(make: Make) -> None:
    workload = make("mlp")
    test = _Test(workload, 8, CPU, 0)
    pairs = [[b.item() for _, b in test._updates(np.full(4, 0.1), repeat)] for repeat in (0, 1, 0)]
    assert pairs[0] == pairs[2]
    assert pairs[0] != pairs[1]


def test_points_and_divergence(found: bs.RangeTest) -> None:
    rates = [point.learning_rate for point in found.points]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.2e-4)
    assert len(rates) < found.updates  # every repeat diverged before the end
    assert found.points[-1].diverged < found.repeats
    diverged = [point.diverged for point in found.points]
    assert diverged == sorted(diverged)
    for point in found.points:
        assert point.low <= point.loss
        assert point.high == math.inf if point.diverged else point.loss <= point.high
    assert found.steepest.value is not None
    assert found.largest_stable.value is not None
    assert found.steepest.value < found.largest_stable.value


def test_each_group_keeps_its_share_of_the_rate(make: Make) -> None:
    def two(parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
        first, *rest = parameters
        groups = [{"params": [first]}, {"params": rest, "lr": 0.1 * learning_rate}]
        return torch.optim.SGD(groups, lr=learning_rate)

    seen: list[tuple[float, float]] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append((self.param_groups[0]["lr"], self.param_groups[1]["lr"]))
            super().step(closure)

    def spied(parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
        return Spy(two(parameters, learning_rate).param_groups, lr=learning_rate)

    list(_Test(make("mlp", optimizer=spied), 8, CPU, 0)._updates(np.array([0.01, 0.1, 1.0]), 0))
    np.testing.assert_allclose(seen[-3:], [(0.01, 0.001), (0.1, 0.01), (1.0, 0.1)])


def test_the_seed_settles_it_and_nothing_of_the_persons_is_changed(make: Make) -> None:
    workload = make("augmented", model=make("dropout").model)
    torch.manual_seed(7)
    random.seed(7)
    states = torch.get_rng_state(), random.getstate()
    once, again = (bs.range_test(workload, updates=64, seed=2, curvature=False) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert once.points == again.points
    assert (once.steepest, once.suggested) == (again.steepest, again.suggested)


def test_a_budget_of_seconds_chooses_the_updates(make: Make) -> None:
    workload = make("mlp")
    assert bs.range_test(workload, seconds=1e-6, repeats=3, curvature=False).updates == 64
    assert bs.range_test(workload, seconds=1e6, repeats=3, curvature=False).updates == 256


def test_a_model_that_cannot_be_differentiated_twice_has_no_eigenvalue(make: Make) -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient.clone()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = Once.apply(self.head(x))  # type: ignore[no-untyped-call]
            return out

    test = bs.range_test(make("mlp", model=Model, loss=F.cross_entropy), updates=64)
    assert test.largest_eigenvalue is None
    assert test.curvature_bound is None


def test_running_out_of_memory_is_said_as_such(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, *arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(TrainingStep, "__call__", full)
    with pytest.raises(RunError, match="memory"):
        bs.range_test(make("mlp"), updates=64)


def test_an_eigenvalue_that_takes_too_long_is_left_out(make: Make) -> None:
    assert bs.range_test(make("mlp"), seconds=1e-6, repeats=3).largest_eigenvalue is None
    assert bs.range_test(make("mlp"), updates=64, repeats=3).largest_eigenvalue is not None


def test_it_tells_of_its_progress_and_its_record_round_trips(found: bs.RangeTest, make: Make, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    bs.range_test(make("mlp"), updates=64, repeats=3, curvature=False, progress=events.append)
    assert [e.done for e in events] == sorted(e.done for e in events)
    assert {e.total for e in events} == {3}
    assert bs.load(found.to_json(tmp_path / "range.json")) == found


def test_refusals_say_what_to_do(make: Make) -> None:
    workload = make("mlp")
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ArgumentError, "repeats", {"repeats": 2}),
        (ArgumentError, "updates", {"updates": 5}),
        (ArgumentError, "seconds", {"seconds": 0}),
        (PlanError, "most", {"least": 0.1, "most": 0.2}),
        (PlanError, "least", {"least": -1.0}),
        (PlanError, "training examples", {"batch_size": 10_000}),
    ]
    for kind, words, arguments in refused:
        with pytest.raises(kind, match=words):
            bs.range_test(workload, **arguments)


def test_estimates_are_those_of_the_arithmetic(make: Make) -> None:
    workload = make("mlp")
    test = _Test(workload, 8, CPU, 5)
    rates = np.geomspace(0.05e-4, 0.05e4, 64)
    losses = np.stack([test.repeat(rates, r, lambda done: None) for r in range(5)])
    assert bs.range_test(workload, updates=64, seed=5, curvature=False).suggested == pytest.approx(
        estimate_range(rates, losses).suggested
    )

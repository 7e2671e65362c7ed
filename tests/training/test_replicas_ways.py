"""What can be stacked, why not, and what is fastest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope import Plan, Workload
from batchscope.training import Prepared
from batchscope.training.chance import NoChance
from batchscope.training.replicas import Replicas
from batchscope.training.ways import _difference_of_weights, _sizes, fastest_way, refusal

CPU = torch.device("cpu")
Make = Callable[..., Workload]


def refused(workload: Workload, **changes: Any) -> str | None:
    plan = Plan(**({"batch_size": 8, "learning_rate": 0.05, "iterations": 100} | changes))
    return refusal(Prepared(workload, CPU, workers=0), plan)


@pytest.mark.parametrize("kind", ["dropout", "batch norm", "noisy", "augmented"])
def test_ordinary_workloads_can_be_stacked(make: Make, kind: str) -> None:
    assert refused(make(kind)) is None


def test_rounding_that_an_optimiser_blows_up_is_no_reason(make: Make) -> None:
    # The key's bias in attention has a gradient of zero but for rounding.
    assert refused(make("transformer", optimizer=lambda p, r: torch.optim.Adagrad(p, lr=r)), shape="linear") is None


class Branching(nn.Module):
    """Takes one way or the other by what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out if out.sum() > 0 else 2 * out


class Counting(nn.Module):
    """Counts its own calls, where no tensor tells of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        out: Tensor = self.layer(x) * (1 + 0.1 * self.calls)
        return out


class Meddling(torch.optim.SGD):
    """Steps by what all of its kind have stepped before."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        Meddling.steps += 1
        for group in self.param_groups:
            group["lr"] = 0.1 * (1 + Meddling.steps % 7)
        return super().step(closure)


def test_what_cannot_be_stacked_is_refused_with_a_reason(make: Make) -> None:
    assert "data-dependent control flow" in (refused(make(model=Branching)) or "")
    assert "loss at update" in (refused(make(model=Counting)) or "")
    assert "loss at update 1" in (refused(make(optimizer=lambda p, r: Meddling(p, lr=r))) or "")
    assert "does not cut its batches" in (refused(make(), micro_batch_size=4) or "")
    mixed = make(model=lambda: nn.Sequential(nn.Linear(6, 6), Halves(), nn.Linear(6, 3).double()))
    assert "of one type" in (refused(mixed) or "")


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def test_weights_and_buffers_that_differ_are_found() -> None:
    def model(weight: float, mean: float) -> nn.Module:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, weight)
        layer.weight.grad = torch.ones(1, 1)
        made = nn.Sequential(layer, nn.BatchNorm1d(1, affine=False))
        made.load_state_dict({"1.running_mean": torch.full((1,), mean)}, strict=False)
        return made

    def difference(weight: float, mean: float) -> str | None:
        return _difference_of_weights(model(weight, mean), model(1.0, 0.5), torch.zeros(1))

    assert difference(1.0, 0.5) is None
    assert difference(1.01, 0.5) is None
    assert "the weights are 0.1 apart, having moved by 1" in (difference(1.1, 0.5) or "")
    assert "the buffer 1.running_mean is another" in (difference(1.0, 0.6) or "")


def test_a_layerwise_optimiser_is_no_reason(make: Make) -> None:
    class Unit(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for parameter in self.param_groups[0]["params"]:
                parameter.grad /= parameter.grad.norm()
            return super().step(closure)

    assert refused(make(optimizer=lambda p, r: Unit(p, lr=r))) is None


def test_refusing_leaves_random_state_and_data_alone(make: Make) -> None:
    workload = make("dropout")
    prepared = Prepared(workload, CPU)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    refusal(prepared, Plan(8, 0.05, iterations=5))
    fastest_way(prepared, Plan(8, 0.05, iterations=5), 4)
    assert torch.equal(torch.rand(1), expected)
    assert len(prepared.validation.indices) == workload.validation_examples


def test_without_chance_dropout_keeps_everything() -> None:
    x = torch.full((50,), 3.0, requires_grad=True)
    with NoChance():  # type: ignore[no-untyped-call]
        assert torch.equal(F.dropout(x, 0.5), 2 * x)
        together = torch.func.vmap(lambda x: F.dropout(x, 0.5), randomness="different")(x.view(5, 10))
        assert torch.equal(together.flatten(), 2 * x)
        assert torch.equal(torch.randn(3), torch.zeros(3))
        assert torch.equal(torch.empty(3).uniform_(2, 4), torch.full((3,), 3.0))
    assert set(F.dropout(x, 0.5).tolist()) == {0.0, 6.0}


def test_sizes_are_halves_of_halves() -> None:
    assert _sizes(24) == [2, 3, 6, 12, 24]
    assert _sizes(5) == [2, 3, 5]
    assert _sizes(1) == []


def test_the_fastest_way_is_one_that_can_be_gone(make: Make) -> None:
    prepared = Prepared(make(), CPU)
    plan = Plan(8, 0.05, iterations=20)
    for count in (1, 6):
        way = fastest_way(prepared, plan, count)
        assert 1 <= way.stack_size <= count
        assert way.update_seconds > 0
        assert way.update_seconds <= way.separate_seconds
        assert "as fast as separate runs" in way.reason or "as long at best" in way.reason
        if way.replicas:
            found = Replicas(prepared, [plan] * way.stack_size, range(way.stack_size), in_turn=way.in_turn)()
            assert len(found) == way.stack_size


def test_separate_runs_are_chosen_where_they_are_faster(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscope.training.ways.MARGIN", 1e9)
    way = fastest_way(Prepared(make(), CPU), Plan(8, 0.05, iterations=20), 4)
    assert (way.replicas, way.stack_size, way.in_turn) == (False, 1, False)
    assert way.update_seconds == way.separate_seconds
    assert way.reason.startswith("replicas would take")


def test_stacks_too_large_for_memory_are_not_chosen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchscope.training.stack import Stack

    update = Stack.update

    def limited(self: Stack, leaves: Any) -> Tensor:
        if self.size > 3:
            raise MemoryError
        return update(self, leaves)

    monkeypatch.setattr(Stack, "update", limited)
    way = fastest_way(Prepared(make(), CPU), Plan(8, 0.05, iterations=20), 24)
    assert way.in_turn or way.stack_size <= 3

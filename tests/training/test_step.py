"""One update: micro-batches give the gradient, and the weights, of the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope import Workload
from batchscope.training.step import TrainingStep

Make = Callable[..., Workload]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch_of(workload: Workload, count: int) -> tuple[Tensor, ...]:
    assert isinstance(workload.train, tuple)
    return tuple(tensor[:count] for tensor in workload.train)


def stepped(
    workload: Workload, batch: tuple[Tensor, ...], micro: int | None, updates: int = 1
) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    model = workload.model()
    step = TrainingStep(workload, model, workload.optimizer(model.parameters(), 0.1), micro_batch_size=micro)
    pieces = [tuple(parts) for parts in zip(*(torch.split(t, micro or len(t)) for t in batch), strict=True)]
    losses = [step(list(pieces), len(batch[0])) for _ in range(updates)]
    return model, losses, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer", "tied"])
@pytest.mark.parametrize("micro", [1, 3, 4, 10, 11])  # of 11 examples: even, ragged and all at once
def test_the_gradient_of_micro_batches_is_that_of_the_batch(make: Make, kind: str, micro: int) -> None:
    workload = make(kind)
    batch = batch_of(workload, 11)
    model, [loss], gradients = stepped(workload, batch, None)
    other, [cut_loss], cut_gradients = stepped(workload, batch, micro)
    assert len(gradients) == len(list(model.parameters()))
    for whole, cut in zip(gradients, cut_gradients, strict=True):
        assert whole.dtype == torch.float64
        assert (whole - cut).abs().max() <= 1e-14 * max(1.0, float(whole.abs().max()))
        assert whole.abs().max() > 1e-6
    assert abs(float(loss) - float(cut_loss)) < 1e-14
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_weights_stay_equal_over_many_updates(make: Make, optimizer: Any) -> None:
    workload = make(optimizer=lambda parameters, rate: optimizer(parameters, lr=rate / 10))
    batch = batch_of(workload, 11)
    one, losses, _ = stepped(workload, batch, None, updates=20)
    other, cut_losses, _ = stepped(workload, batch, 3, updates=20)
    assert losses[-1] < losses[0]
    assert torch.allclose(torch.stack(losses), torch.stack(cut_losses), rtol=0, atol=1e-12)
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-11)


def test_the_gradient_is_that_of_the_mean_loss(make: Make) -> None:
    workload = make()
    batch = batch_of(workload, 11)
    torch.manual_seed(0)
    model = workload.model()
    expected = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    _, _, gradients = stepped(workload, batch, 4)
    for mine, theirs in zip(expected, gradients, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-15)


def test_gradients_do_not_pile_up_from_update_to_update(make: Make) -> None:
    workload = make(optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=0.0))
    batch = batch_of(workload, 11)
    _, _, once = stepped(workload, batch, 3)
    _, _, thrice = stepped(workload, batch, 3, updates=3)
    assert all(torch.equal(a, b) for a, b in zip(once, thrice, strict=True))


def test_frozen_parameters_get_no_gradient_and_stay(make: Make) -> None:
    def frozen() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        model[0].weight.requires_grad_(False)
        return model

    workload = make(model=frozen)
    torch.manual_seed(0)
    model = workload.model()
    before = copy.deepcopy(model.state_dict())
    step = TrainingStep(workload, model, workload.optimizer(model.parameters(), 0.1), micro_batch_size=None)
    step([batch_of(workload, 8)], 8)
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(model.state_dict()["2.weight"], before["2.weight"])


def test_the_loss_returned_keeps_no_graph(make: Make) -> None:
    workload = make()
    for micro in (None, 3):
        _, [loss], _ = stepped(workload, batch_of(workload, 8), micro)
        assert not loss.requires_grad
        assert loss.shape == ()


def test_batch_norm_sees_each_micro_batch_by_itself(make: Make) -> None:
    # As any accumulation does: said in the docstring, and shown here so that nobody is surprised by it.
    workload = make("batch norm")
    _, _, whole = stepped(workload, batch_of(workload, 12), None)
    _, _, cut = stepped(workload, batch_of(workload, 12), 4)
    assert not all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(whole, cut, strict=True))

"""What is tried against the drawbacks of large batches: each does what it says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import batchscope as bs
from batchscope import Workload
from batchscope.errors import ArgumentError, PlanError, WorkloadError
from batchscope.records import Plan
from batchscope.training import ghost_batch_norm
from batchscope.training.loop import Prepared
from batchscope.training.replicas import Replicas
from batchscope.training.ways import refusal

Make = Callable[..., Workload]


def normalised(size: int, x: Tensor) -> nn.Module:
    workload = Workload(
        model=lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)),
        train=(x, x[:, :1]),
        validation=(x, x[:, :1]),
        loss=nn.functional.mse_loss,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        learning_rate=0.1,
        batch_size=8,
    )
    return next(iter(ghost_batch_norm(workload, size).model().children()))


def test_ghost_batches_are_normalised_each_by_itself() -> None:
    x = torch.randn(22, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1
    ghost, plain = normalised(8, x), nn.BatchNorm1d(3)
    found = ghost(x)
    expected = torch.cat([plain(x[:8]), plain(x[8:])])  # the rest of six goes with the last part
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ghost.running_mean, plain.running_mean)
    torch.testing.assert_close(ghost.running_var, plain.running_var)
    torch.testing.assert_close(ghost.eval()(x), plain.eval()(x))
    assert set(ghost.state_dict()) == set(plain.state_dict())
    small = normalised(8, x)
    torch.testing.assert_close(small(x[:10]), nn.BatchNorm1d(3)(x[:10]))


def test_ghost_batch_norm_trains_and_evaluates(make: Make) -> None:
    workload = ghost_batch_norm(make("batch norm"), 4)
    plan = Plan(20, 0.05, iterations=12)
    found = bs.train(workload, plan)
    other = bs.train(make("batch norm"), plan)
    assert found.outcome == "finished"
    assert found.curve[-1].validation_loss != other.curve[-1].validation_loss
    assert found.state is not None
    make("batch norm").model().load_state_dict(found.state)


def test_ghosts_need_a_size_and_a_norm(make: Make) -> None:
    with pytest.raises(ArgumentError, match="at least 2 examples"):
        ghost_batch_norm(make("batch norm"), 1)
    with pytest.raises(WorkloadError, match="needs a model with batch norm"):
        ghost_batch_norm(make(), 4)


def test_conservative_training_goes_towards_the_least_of_the_batch_near_where_it_began(make: Make) -> None:
    # Plain gradient descent on the whole set: one batch, whose proximal problem is known.
    workload = make(optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate))
    n, rate, steps, proximity = workload.training_examples, 0.1, 3, 0.7
    plan = Plan(n, rate, iterations=1, inner_steps=steps, proximity=proximity)
    found = bs.train(workload, plan, seed=3)
    fresh = bs.train(workload, Plan(n, 1e-30, iterations=1), seed=3)
    assert found.state is not None
    assert fresh.state is not None
    model = workload.model()
    model.load_state_dict(fresh.state)
    began = [p.detach().clone() for p in model.parameters()]
    x, y = workload.train  # type: ignore[misc]
    for _ in range(steps):
        loss = workload.loss(model(x), y)
        parts = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g, a in zip(model.parameters(), parts, began, strict=True):
                p.sub_(rate * (g + proximity * (p - a)))
    last = torch.cat([p.flatten() for p in model.parameters()])
    model.load_state_dict(_last(workload, plan))
    torch.testing.assert_close(torch.cat([p.flatten() for p in model.parameters()]), last, rtol=1e-4, atol=1e-6)


def _last(workload: Workload, plan: Plan) -> dict[str, Any]:
    from batchscope.training.loop import Run

    run = Run(Prepared(workload, torch.device("cpu")), plan, seed=3)
    run()
    return run.state()


def test_one_inner_step_is_an_update(make: Make) -> None:
    one = bs.train(make(), Plan(5, 0.05, iterations=9))
    other = bs.train(make(), Plan(5, 0.05, iterations=9, inner_steps=1, proximity=0.0))
    assert one.curve[-1].validation_loss == other.curve[-1].validation_loss
    three = bs.train(make(), Plan(5, 0.05, iterations=9, inner_steps=3))
    assert three.iterations == 9
    assert three.curve[-1].validation_loss != one.curve[-1].validation_loss


def test_what_makes_no_sense_is_refused(make: Make) -> None:
    with pytest.raises(PlanError, match="proximity"):
        Plan(5, 0.1, iterations=1, proximity=0.1)
    with pytest.raises(PlanError, match="inner_steps"):
        Plan(5, 0.1, iterations=1, inner_steps=0)
    plans = [Plan(5, 0.1, iterations=1, inner_steps=2)]
    with pytest.raises(PlanError, match="one step on each batch"):
        Replicas(Prepared(make(), torch.device("cpu")), plans, [0])


def test_training_begins_with_the_weights_that_were_given(make: Make) -> None:
    small = bs.train(make(), Plan(5, 0.05, iterations=30))
    assert small.state is not None
    large = bs.train(make(), Plan(45, 0.05, iterations=4), start=small.state)
    fresh = bs.train(make(), Plan(45, 0.05, iterations=4))
    assert small.best_loss is not None
    assert (
        large.curve[0].validation_loss == pytest.approx(min(point.validation_loss for point in small.curve), rel=1e-5)
        or large.curve[0].validation_loss < fresh.curve[0].validation_loss
    )
    with pytest.raises(WorkloadError, match="state dict of this workload's model"):
        bs.train(make(), Plan(5, 0.05, iterations=1), start={"nothing": torch.zeros(1)})


def test_augmentation_is_seen_by_training_alone(make: Make) -> None:
    seen: list[int] = []

    def shifted(batch: Any) -> Any:
        seen.append(len(batch[0]))
        x, y = batch
        return x + 0.5 * torch.randn_like(x), y

    workload = make(augment=shifted)
    seen.clear()
    found = bs.train(workload, Plan(9, 0.05, iterations=10))
    assert seen
    assert set(seen) <= {9, 8, 4, 5, 1}  # training batches, and never the validation set of 20
    plain = bs.train(make(), Plan(9, 0.05, iterations=10))
    assert found.curve[0].validation_loss == plain.curve[0].validation_loss
    assert found.curve[-1].validation_loss != plain.curve[-1].validation_loss
    again = bs.train(workload, Plan(9, 0.05, iterations=10))
    assert again.curve[-1].validation_loss == found.curve[-1].validation_loss


def test_a_stack_augments_each_of_its_runs(make: Make) -> None:
    def shifted(batch: Any) -> Any:
        return batch[0] + torch.randn_like(batch[0]), batch[1]

    prepared = Prepared(make(augment=shifted), torch.device("cpu"))
    plan = Plan(9, 0.05, iterations=10)
    assert refusal(prepared, plan) is None
    one, other = Replicas(prepared, [plan, plan], [0, 0])()
    # The same weights to begin with and the same batches, and each its own noise.
    assert one.curve[0].validation_loss == other.curve[0].validation_loss
    assert one.curve[-1].validation_loss != other.curve[-1].validation_loss

"""What a workload says of the loop is done: held to loops written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope import Plan, Workload
from batchscope.errors import WorkloadError
from batchscope.seeding import derive, isolated
from batchscope.training import Prepared
from batchscope.training.loop import Run
from batchscope.training.replicas import Replicas

Make = Callable[..., Workload]
CPU = torch.device("cpu")
UPDATES, SIZE = 12, 8


def by_hand(
    workload: Workload,
    plan: Plan,
    *,
    before_step: Callable[[nn.Module], Any] = lambda model: None,
    factor: Callable[[int], float] = lambda update: 1.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A plain loop over the batches that a run with this seed sees."""
    with isolated(derive(seed, "weights"), CPU):
        model = workload.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=plan.learning_rate, momentum=0.9)
    assert plan.budget_examples is not None
    feed = Prepared(workload, CPU).training.feed(plan, plan.budget_examples, seed=derive(seed, "data"))
    for update, [(x, y)] in enumerate(feed):
        optimizer.param_groups[0]["lr"] = plan.learning_rate * factor(update)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x), y))
        before_step(model)
        optimizer.step()
    return model.state_dict()


def trained(workload: Workload, plan: Plan, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    run = Run(Prepared(workload, CPU), plan, seed=0, **options)
    result = run()
    assert result.outcome == "finished"
    return result, run.model.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor], *, tolerance: float = 0.0) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[key], other[key], rtol=tolerance, atol=tolerance) for key in one)


def momentum(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9)


CLIPPED: dict[str, tuple[dict[str, Any], Callable[[nn.Module], Any]]] = {
    "norm": ({"clip_norm": 0.3}, lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.3)),
    "value": ({"clip_value": 0.05}, lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.05)),
}


@pytest.mark.parametrize("kind", CLIPPED)
def test_clipping_is_that_of_a_loop_written_by_hand(make: Make, kind: str) -> None:
    options, by = CLIPPED[kind]
    plan = Plan(SIZE, 0.3, iterations=UPDATES)
    workload = make(optimizer=momentum)
    _, clipped = trained(replace(workload, **options), plan)
    assert same(clipped, by_hand(workload, plan, before_step=by))
    assert not same(clipped, by_hand(workload, plan), tolerance=1e-3)


@pytest.mark.parametrize("kind", CLIPPED)
def test_micro_batches_are_clipped_once_on_their_sum(make: Make, kind: str) -> None:
    workload = replace(make(optimizer=momentum), **CLIPPED[kind][0])
    plan = Plan(SIZE, 0.3, iterations=UPDATES)
    _, whole = trained(workload, plan)
    _, cut = trained(workload, replace(plan, micro_batch_size=3))
    assert same(whole, cut, tolerance=1e-5)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("kind", CLIPPED)
def test_each_replica_of_a_stack_is_clipped_by_itself(make: Make, kind: str, in_turn: bool) -> None:
    workload = replace(make(optimizer=momentum), **CLIPPED[kind][0])
    plans = [Plan(SIZE, rate, iterations=UPDATES) for rate in (0.3, 0.03)]
    stack = Replicas(Prepared(workload, CPU), plans, [0, 0], in_turn=in_turn)
    stack()
    for plan, model in zip(plans, stack.stack.models, strict=True):
        assert same(trained(workload, plan)[1], model.state_dict(), tolerance=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be a finite number above 0; got 0.0"),
        ({"clip_value": True}, "clip_value must be a finite number above 0; got True"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, "gradients are clipped by norm or by value"),
        ({"precision": "float16"}, "precision must be 'bf16', 'fp16' or None; got float16"),
        ({"compile": "yes"}, "compile must be True or False; got yes"),
        ({"warmup_examples": -1}, "warmup_examples must be a whole number of examples, at least 0; got -1"),
        ({"shape": "cooldown"}, "shape must be 'constant', 'linear' or 'cosine'; got cooldown"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(make: Make, options: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        replace(make(), **options)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_the_rate_warms_up_and_falls_as_in_a_loop_written_by_hand(make: Make, shape: Any) -> None:
    warmup, total = 3, UPDATES
    workload = make(optimizer=momentum)
    plan = Plan(SIZE, 0.3, iterations=total)
    assert plan.shape is None
    assert plan.warmup_examples is None

    def factor(update: int) -> float:
        if update + 1 < warmup:
            return (update + 1) / warmup
        done = max(0, update - warmup) / (total - warmup)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[shape]

    result, weights = trained(replace(workload, shape=shape, warmup_examples=warmup * SIZE), plan)
    assert (result.plan.shape, result.plan.warmup_examples, result.notes) == (shape, warmup * SIZE, ())
    assert same(weights, by_hand(workload, plan, factor=factor), tolerance=1e-6)
    assert not same(weights, by_hand(workload, plan), tolerance=1e-3)


def test_what_a_plan_says_of_the_rate_goes_before_what_the_workload_says(make: Make) -> None:
    workload = make(optimizer=momentum)
    plan = Plan(SIZE, 0.3, iterations=UPDATES, shape="constant", warmup_examples=0)
    assert same(trained(replace(workload, shape="cosine", warmup_examples=24), plan)[1], trained(workload, plan)[1])


def test_a_plan_without_a_length_says_that_the_rate_was_kept_constant(make: Make) -> None:
    workload = replace(make(optimizer=momentum), shape="cosine")
    run = Run(Prepared(workload, CPU), Plan(SIZE, 0.05, target=0.3), seed=0)
    result = run()
    assert result.outcome == "reached"
    assert result.plan.shape == "constant"
    [note] = result.notes
    assert note.startswith("the rate was kept constant: the workload's cosine shape needs a length")


def test_a_stack_follows_the_workload_s_shape(make: Make) -> None:
    workload = replace(make(optimizer=momentum), shape="cosine", warmup_examples=24)
    plans = [Plan(SIZE, rate, iterations=UPDATES) for rate in (0.3, 0.03)]
    stack = Replicas(Prepared(workload, CPU), plans, [0, 0])
    stack()
    for plan, model in zip(plans, stack.stack.models, strict=True):
        assert same(trained(workload, plan)[1], model.state_dict(), tolerance=1e-5)

"""accelerate: the noise scale in its loops is that of plain ones, and Workloads of what it prepared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from tests.integrations.data import EXAMPLES, accuracy, network, split
from torch.nn import functional as F
from torch.utils.data import DataLoader

import batchscope as bs
from batchscope.integrations.accelerate import gradient_noise_of, workload_from_accelerate


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerators of one process share their settings."""
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState):
        state._reset_state()


def parts(accumulate: int = 1, **options: Any) -> tuple[Any, ...]:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate, **options)
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train, held_out = split()
    return accelerator, model, optimizer, DataLoader(train, batch_size=16), DataLoader(held_out, batch_size=64)


def with_accelerate(accumulate: int, *, measure: bool = True, **options: Any) -> tuple[bs.GradientNoise | None, Any]:
    accelerator, *made = parts(accumulate, **options)
    model, optimizer, loader, _ = accelerator.prepare(*made)
    noise = gradient_noise_of(accelerator, model, optimizer, every=1) if measure else None
    for _ in range(2):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
    if noise is not None:
        noise.close()
    return noise, accelerator.unwrap_model(model)


def by_hand(accumulate: int) -> bs.GradientNoise:
    _, model, optimizer, loader, _ = parts()
    noise = bs.GradientNoise(model, optimizer, every=1)
    for _ in range(2):
        for i, (x, y) in enumerate(loader):
            (F.cross_entropy(model(x), y) / accumulate).backward()  # type: ignore[no-untyped-call]
            if i % accumulate == accumulate - 1:
                optimizer.step()
                optimizer.zero_grad()
    return noise


@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_is_measured_is_what_a_plain_loop_measures(accumulate: int) -> None:
    noise, _ = with_accelerate(accumulate)
    want = by_hand(accumulate)
    assert noise is not None
    assert noise.source == ["per-example gradients", "accumulated micro-batches"][accumulate > 1]
    assert noise.steps_measured == want.steps_measured > 3
    assert noise.noise_scale == want.noise_scale
    assert noise.trace_covariance == want.trace_covariance


def test_mixed_precision_is_measured_where_the_loss_is_outside_of_the_model() -> None:
    noise, _ = with_accelerate(1, mixed_precision="bf16")
    assert noise is not None
    assert (noise.source, noise.note) == ("per-example gradients", None)
    assert noise.trace_covariance.value == pytest.approx(by_hand(1).trace_covariance.value, rel=0.05)


def test_training_is_the_same_bit_for_bit() -> None:
    (_, watched), (_, alone) = with_accelerate(2), with_accelerate(2, measure=False)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.modules())


@pytest.mark.parametrize("prepared", [False, True])
def test_a_workload_of_what_prepare_was_given_or_returned(prepared: bool) -> None:
    accelerator, *made = parts(2)
    first = made[0]
    if prepared:
        made = accelerator.prepare(*made)
    workload = workload_from_accelerate(accelerator, *made, loss=F.cross_entropy, score=accuracy)
    assert (workload.batch_size, workload.learning_rate) == (32, 0.1)
    assert (workload.training_examples, workload.validation_examples) == (EXAMPLES, 64)
    before = [p.detach().clone() for p in first.parameters()]
    result = bs.train(workload, bs.Plan(batch_size=32, learning_rate=0.1, iterations=60))
    assert result.best_score is not None
    assert result.best_score > 0.5
    assert all(torch.equal(a, b) for a, b in zip(before, first.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, workload.model().parameters(), strict=True))
    made_again = workload.optimizer(workload.model().parameters(), 0.3)
    assert (type(made_again), made_again.param_groups[0]["momentum"]) == (torch.optim.SGD, 0.9)

"""Training, measuring and advising on a CUDA device."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import batchscope as bs
from batchscope import Plan, Workload

Make = Callable[..., Workload]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer", "batch norm"])
def test_a_gpu_trains_what_a_cpu_trains(make: Make, kind: str) -> None:
    plan = Plan(8, 0.05, iterations=60, averaging=8.0)
    on_gpu, on_cpu = (bs.train(make(kind), plan, seed=3, evaluate_every=96, device=d) for d in ("cuda", "cpu"))
    assert on_gpu.outcome == on_cpu.outcome == "finished"
    for here, there in zip(on_gpu.curve, on_cpu.curve, strict=True):
        assert here.validation_loss == pytest.approx(there.validation_loss, rel=1e-3)


def test_updates_are_timed_and_memory_is_counted(make: Make) -> None:
    workload = make("mlp", examples=512)
    times = bs.step_times(workload, batch_sizes=[8, 64, 512], seconds=2.0, device="cuda")
    assert all(point.step_seconds.value for point in times.points)
    assert times.provenance.device.startswith("cuda")
    assert bs.find_max_batch_size(workload, maximum=4_096, limit_bytes=1 << 30, device="cuda") >= 1


def test_measuring_leaves_the_random_state_of_the_device_alone(make: Make) -> None:
    torch.cuda.manual_seed(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(5)
    bs.step_times(make("dropout"), batch_sizes=[8, 16], seconds=0.5, device="cuda")
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_advice_is_given_and_kept(make: Make) -> None:
    workload = bs.load_workload("digits")
    advice = bs.advise(workload, target=0.9, budget_seconds=20.0, device="cuda")
    assert advice.plan is not None
    assert advice.predicted_seconds.value is not None
    assert math.isfinite(advice.predicted_seconds.value)
    assert (bs.train(workload, advice.plan, device="cuda").best_score or 0.0) >= 0.9

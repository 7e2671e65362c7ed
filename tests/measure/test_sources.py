"""Every source of gradients says the same of one point, and holds the truth over the whole training set."""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import batchscope as bs
from batchscope.fit.noise import estimate_noise, moments_of
from batchscope.records import Interval

WORKER = Path(__file__).parent / "sources_worker.py"
SHARED = runpy.run_path(str(WORKER))
EXAMPLES, SEED, GROUP = SHARED["EXAMPLES"], SHARED["SEED"], SHARED["GROUP"]

Found = dict[str, tuple[Interval, Interval, Interval]]


def trained_on_one_point(workload: bs.Workload, size: int, parts: int) -> bs.GradientNoise:
    """A person's own loop at a learning rate of zero."""
    model = SHARED["fresh"](workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    noise = bs.GradientNoise(model, optimizer, every=1, half_life=None, seed=SEED)
    x, y = workload.train  # type: ignore[misc]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    for batch in torch.split(order, size):
        optimizer.zero_grad()
        for part in batch.chunk(parts):
            (F.cross_entropy(model(x[part]), y[part]) / parts).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return noise


def of(measured: Any) -> tuple[Interval, Interval, Interval]:
    return measured.trace_covariance, measured.gradient_norm_squared, measured.noise_scale


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("sources")
    command = [sys.executable, str(WORKER), str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    workload = SHARED["workload"]()
    results = {
        "single examples": of(bs.gradient_noise(workload, examples=EXAMPLES, seed=SEED)),
        "micro-batches": of(estimated(SHARED["micro_batch_rows"](workload))),
        "replicas": of(estimated(SHARED["replica_rows"](workload))),
        "a loop": of(trained_on_one_point(workload, 64, 1)),
        "a loop that accumulates": of(trained_on_one_point(workload, 64, 4)),
    }
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(*ranks)
    return results | {"ranks": of(estimated(ranks[0]))}


def estimated(rows: Tensor) -> Any:
    return estimate_noise(moments_of(rows.double().numpy(), GROUP))


@pytest.fixture(scope="module")
def truth() -> tuple[float, float, float]:
    """tr Σ, ‖G‖² and their ratio in double precision, from the gradients of all examples one by one."""
    workload = SHARED["workload"]()
    model = SHARED["fresh"](workload).double()
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    x, y = workload.train

    def loss(weights: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (a[None],)), b[None])

    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")(
        parameters, x.double(), y
    )
    matrix = torch.cat([rows[name].flatten(1) for name in parameters], dim=1).detach()
    trace = float(matrix.var(0).sum())
    norm = float(matrix.mean(0).square().sum())
    return trace, norm, trace / norm


SOURCES = ["single examples", "micro-batches", "replicas", "ranks", "a loop", "a loop that accumulates"]


@pytest.mark.parametrize("source", SOURCES)
def test_the_truth_lies_in_the_intervals(source: str, found: Found, truth: tuple[float, float, float]) -> None:
    for interval, value in zip(found[source], truth, strict=True):
        assert interval.resolved
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low <= value <= interval.high
        assert interval.high / interval.low < 6  # and they say something


@pytest.mark.parametrize("source", SOURCES[1:])
def test_sources_agree(source: str, found: Found) -> None:
    for one, other in zip(found["single examples"], found[source], strict=True):
        assert one.low is not None
        assert other.low is not None
        assert max(one.low, other.low) <= min(one.high or math.inf, other.high or math.inf)


def test_the_same_groups_give_the_same_numbers(found: Found) -> None:
    """Micro-batches, ranks and replicas take the same groups of the same examples, and differ in rounding only."""
    for one, *others in zip(found["micro-batches"], found["ranks"], found["replicas"], strict=True):
        for other in others:
            assert (other.value, other.low, other.high) == pytest.approx((one.value, one.low, one.high), rel=1e-3)

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
from torch import Tensor, nn
from torch.nn import functional as F

import batchscope as bs
from batchscope.errors import ArgumentError, RunError, WorkloadError
from batchscope.measure.sources import gradient_noise_in_groups
from batchscope.records import Interval, load
from batchscope.seeding import derive, isolated

WORKER = Path(__file__).parent / "sources_worker.py"
SHARED = runpy.run_path(str(WORKER))
EXAMPLES, SEED, GROUP = SHARED["EXAMPLES"], SHARED["SEED"], SHARED["GROUP"]

Found = dict[str, tuple[Interval, Interval, Interval]]


def fresh(workload: bs.Workload) -> nn.Module:
    with isolated(derive(SEED, "weights")):
        return workload.model()


def trained_on_one_point(workload: bs.Workload, size: int, parts: int) -> bs.GradientNoise:
    """A person's own loop at a learning rate of zero."""
    model = fresh(workload)
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
    in_groups = {"examples": EXAMPLES, "group_size": GROUP, "seed": SEED}
    results = {
        "single examples": of(bs.gradient_noise(workload, examples=EXAMPLES, seed=SEED)),
        "micro-batches": of(gradient_noise_in_groups(workload, source="accumulated micro-batches", **in_groups)),
        "replicas": of(gradient_noise_in_groups(workload, source="replicas", replicas=7, **in_groups)),
        "a loop": of(trained_on_one_point(workload, 64, 1)),
        "a loop that accumulates": of(trained_on_one_point(workload, 64, 4)),
    }
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    ranks = [load(folder / f"{rank}.json") for rank in range(2)]
    assert of(ranks[0]) == of(ranks[1])
    return results | {"ranks": of(ranks[0])}


@pytest.fixture(scope="module")
def truth() -> tuple[float, float, float]:
    """tr Σ, ‖G‖² and their ratio in double precision, from the gradients of all examples one by one."""
    workload = SHARED["workload"]()
    model = fresh(workload).double()
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


@pytest.mark.parametrize("kind", ["batch norm", "dropout", "transformer", "tied", "cnn"])
def test_replicas_of_other_models(kind: str, make: Any) -> None:
    workload = make(kind, examples=120)
    options: dict[str, Any] = {"examples": 120, "group_size": 6, "seed": 1}
    replicas = gradient_noise_in_groups(workload, source="replicas", **options)
    again = gradient_noise_in_groups(workload, source="replicas", **options)
    micro = gradient_noise_in_groups(workload, source="accumulated micro-batches", **options)
    assert replicas.trace_covariance == again.trace_covariance
    assert replicas.parameters == micro.parameters
    if kind != "dropout":  # whose masks differ
        assert replicas.trace_covariance.value == pytest.approx(micro.trace_covariance.value, rel=1e-4)


def test_nothing_of_the_persons_changes(make: Any) -> None:
    workload = make("batch norm", examples=120)
    state = {name: value.clone() for name, value in workload.model().state_dict().items()}
    kept = {name: value.clone() for name, value in state.items()}
    random = torch.get_rng_state()
    for source in ("replicas", "accumulated micro-batches"):
        gradient_noise_in_groups(workload, state, source=source, examples=120, group_size=5)
    assert all(torch.equal(state[name], kept[name]) for name in state)
    assert torch.equal(torch.get_rng_state(), random)


def test_what_makes_no_sense_is_refused(make: Any) -> None:
    workload = make("mlp", examples=120)
    with pytest.raises(ArgumentError, match="at least 16 groups"):
        gradient_noise_in_groups(workload, group_size=10)
    with pytest.raises(ArgumentError, match="replicas"):
        gradient_noise_in_groups(workload, group_size=5, replicas=0)
    with pytest.raises(RunError, match="torchrun"):
        gradient_noise_in_groups(workload, source="data-parallel ranks", group_size=5)
    broken = {name: value * float("nan") for name, value in workload.model().state_dict().items()}
    with pytest.raises(WorkloadError, match="finite"):
        gradient_noise_in_groups(workload, broken, group_size=5)

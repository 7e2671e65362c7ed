"""The largest batch size: only one that ran is returned, nothing of the person's is changed, few trials are made."""

from __future__ import annotations

import copy
import functools
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope import ArgumentError, RunError, Workload
from batchscope.measure import max_batch_size
from batchscope.measure.child import can_fork
from batchscope.measure.max_batch_size import BatchSizeTrial, find_max_batch_size, next_size
from batchscope.measure.memory_restore import SavedState, stateful_objects
from batchscope.training.memory import is_out_of_memory

MIB = 1 << 20
# Large beside the free heap that a process full of tests may hold, and that a child fills before it grows.
UNIT = 4 * MIB
PLACES = [pytest.param(True, marks=pytest.mark.skipif(not can_fork(), reason="needs a fork")), False]
needs_fork = pytest.mark.skipif(not can_fork(), reason="needs a fork of a process without CUDA")


def search(
    peak: Callable[[int], float], allowed: float, start: int, *, maximum: int | None = None, precision: float = 0.1
) -> tuple[int, dict[int, float | None], dict[int, float | None]]:
    """The search on a machine made of numbers; peaks of sizes that fail outright, 5% above, are not known."""
    fits: dict[int, Any] = {}
    failed: dict[int, Any] = {}
    size: int | None = start
    while size is not None:
        assert size not in fits
        assert size not in failed
        bytes_ = peak(size)
        if bytes_ <= allowed:
            fits[size] = bytes_
        else:
            failed[size] = bytes_ if bytes_ <= allowed / 0.95 else None
        size = next_size(fits, failed, maximum=maximum, precision=precision, allowed_bytes=allowed)
        assert len(fits) + len(failed) < 60
    return max(fits, default=0), fits, failed


@given(
    state=st.floats(0, 1e9),
    slope=st.floats(1e3, 1e8),
    largest=st.floats(1, 1e5),
    start=st.integers(1, 2000),
    scatter=st.sampled_from([0.0, 0.05, 0.3]),
    floor=st.sampled_from([0.0, 0.5]),
    precision=st.sampled_from([0.0, 0.02, 0.1, 0.3]),
)
def test_the_search_ends_at_a_size_whose_next_does_not_fit(
    *, state: float, slope: float, largest: float, start: int, scatter: float, floor: float, precision: float
) -> None:
    allowed = state + slope * largest

    def peak(size: int) -> float:
        noise = np.random.default_rng(size).uniform(-1, 1)
        return max(floor * allowed, (state + slope * size) * (1 + scatter * noise))

    found, fits, failed = search(peak, allowed, start, precision=precision)
    if not found:
        assert 1 in failed
        return
    assert found in fits
    above = min(failed)
    assert above <= max(found + 1, found * (1 + precision))


@given(largest=st.integers(2, 100000), start=st.integers(1, 100))
def test_a_straight_law_takes_few_trials(largest: int, start: int) -> None:
    start = min(start, largest)
    found, fits, failed = search(lambda m: 1e8 + 1e6 * m, 1e8 + 1e6 * largest, start)
    assert largest / 1.1 - 1 <= found <= largest
    # Start, twice start, one more for each factor of 16 on the way, just under and just beyond the prediction.
    assert len(fits) + len(failed) <= 5 + np.ceil(max(0.0, np.log(largest / (2 * start)) / np.log(16)))


@given(maximum=st.integers(1, 3000), start=st.integers(1, 3000))
def test_the_maximum_is_reached_and_never_passed(maximum: int, start: int) -> None:
    found, fits, failed = search(lambda m: 1e6 * m, 1e12, min(start, maximum), maximum=maximum)
    assert (found, max(fits), failed) == (maximum, maximum, {})


def test_a_law_that_is_proved_wrong_is_left() -> None:
    # Peaks promise 1,000, and everything above 300 fails outright.
    found, _, failed = search(lambda m: 1e6 * m if m <= 300 else 1e12, 1e9, 10)
    assert 273 <= found <= 300
    assert len(failed) < 8


# --- on this machine --------------------------------------------------------------------------------------------------


def allocating(batch_size: int) -> bytearray:
    return bytearray(batch_size * UNIT)


@needs_fork
def test_a_step_that_allocates_is_bounded_by_the_limit() -> None:
    trials: list[BatchSizeTrial] = []
    found = find_max_batch_size(allocating, start=4, limit_bytes=100 * UNIT, margin=0.1, soak=3, report=trials.append)
    assert 80 <= found <= 90  # a bytearray of n MiB, and little else
    assert len(trials) <= 5
    [best] = [trial for trial in trials if trial.batch_size == found]
    assert (best.fits, best.steps, best.reason) == (True, 4, "")
    assert best.peak_bytes == pytest.approx(found * UNIT, rel=0.05)
    above = min(trial.batch_size for trial in trials if not trial.fits)
    assert above <= found * 1.1


@needs_fork
def test_a_start_that_does_not_fit_is_shrunk() -> None:
    trials: list[BatchSizeTrial] = []
    found = find_max_batch_size(allocating, start=1000, limit_bytes=50 * UNIT, soak=0, report=trials.append)
    assert 42 <= found <= 52
    assert trials[0].reason.startswith("MemoryError")


@needs_fork
def test_evaluation_counts() -> None:
    found = find_max_batch_size(
        allocating, start=4, limit_bytes=100 * UNIT, soak=0, evaluate=lambda size: bytearray(2 * size * UNIT)
    )
    assert 42 <= found <= 52


@needs_fork
def test_what_grows_from_step_to_step_is_seen_by_the_soak() -> None:
    held: list[bytearray] = []

    def leaking(batch_size: int) -> None:
        held.append(bytearray(batch_size * UNIT))

    once = find_max_batch_size(leaking, start=4, limit_bytes=100 * UNIT, soak=0)
    soaked = find_max_batch_size(leaking, start=4, limit_bytes=100 * UNIT, soak=4)
    assert 85 <= once <= 99
    assert 17 <= soaked <= 20
    assert held == []


@needs_fork
def test_a_child_that_is_killed_did_not_fit() -> None:
    def deadly(batch_size: int) -> None:
        if batch_size > 20:
            os.kill(os.getpid(), signal.SIGKILL)

    trials: list[BatchSizeTrial] = []
    assert 19 <= find_max_batch_size(deadly, start=8, report=trials.append) <= 20
    assert "killed by SIGKILL" in next(trial.reason for trial in trials if not trial.fits)


@pytest.mark.parametrize("isolate", PLACES)
def test_other_errors_come_through_as_they_are(isolate: bool) -> None:
    def broken(batch_size: int) -> None:
        raise KeyError("labels") if batch_size > 2 else ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing") as caught:
        find_max_batch_size(broken, start=1, isolate=isolate)
    if isolate:
        assert "in broken" in "".join(caught.value.__notes__)
    with pytest.raises(KeyError, match="labels"):
        find_max_batch_size(broken, start=3, isolate=isolate)


@pytest.mark.parametrize("isolate", PLACES)
def test_not_even_one(isolate: bool) -> None:
    def hopeless(batch_size: int) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    with pytest.raises(RunError, match=r"one example must fit into memory.*CUDNN_STATUS_ALLOC_FAILED"):
        find_max_batch_size(hopeless, start=2, isolate=isolate)


@needs_fork
def test_a_first_trial_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(max_batch_size, "FIRST_PATIENCE", 0.3)
    with pytest.raises(RunError, match=r"the first trial must end within 0\.3 s.*isolate=False"):
        find_max_batch_size(lambda size: time.sleep(60), start=2)


@needs_fork
def test_a_later_trial_that_hangs_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(max_batch_size, "PATIENCE", 0.3)
    found = find_max_batch_size(lambda size: time.sleep(60 if size > 2 else 0), start=2, precision=0.9)
    assert found == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"step": 3}, "step must be a function"),
        ({"start": 0}, "start must be"),
        ({"start": 2.0}, "start must be"),
        ({"maximum": -1}, "maximum must be"),
        ({"limit_bytes": 0}, "limit_bytes must be"),
        ({"margin": 1.0}, "margin must be"),
        ({"precision": -0.1}, "precision must be"),
        ({"soak": -1}, "soak must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        find_max_batch_size(**{"step": allocating, "start": 1, **arguments})


def test_it_stops_in_time() -> None:
    sizes: list[int] = []
    found = find_max_batch_size(sizes.append, start=3, soak=0, isolate=False, seconds=0.0, maximum=10**6)
    assert (found, sizes) == (3, [3])


# --- the person's own things ------------------------------------------------------------------------------------------


class Person:
    """A model in the middle of its training, with all that goes with it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        self.model: Any = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 2))
        self.model[0].register_buffer("count", torch.zeros(()), persistent=False)
        self.model[1].eval()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.9)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        self.average = torch.optim.swa_utils.AveragedModel(self.model)
        for _ in range(2):
            self.train_step(4)

    def train_step(self, batch_size: int) -> None:
        self.model[2].train()
        x = torch.randn(batch_size, 8) + random.random() + np.random.rand()  # noqa: NPY002
        self.model[0].count += 1
        loss = F.cross_entropy(self.model(x), torch.randint(2, (batch_size,)))
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.average.update_parameters(self.model)
        if batch_size > 40:
            self.model[1].train()
            raise MemoryError("in the middle of it all")

    def everything(self) -> dict[str, Any]:
        parts: tuple[Any, ...] = (self.model, self.optimizer, self.scheduler, self.scaler, self.average)
        state: dict[str, Any] = {f"{i}": copy.deepcopy(part.state_dict()) for i, part in enumerate(parts)}
        state["count"] = self.model[0].count.clone()
        state["grads"] = [p.grad.clone() if p.grad is not None else None for p in self.model.parameters()]
        state["modes"] = [m.training for m in self.model.modules()]
        state["random"] = [torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)]  # noqa: NPY002
        return state


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("way", "isolate"),
    [
        pytest.param("method", True, marks=needs_fork),
        *((way, False) for way in ("method", "partial", "helper", "given")),
    ],
)
def test_everything_is_as_it_was(isolate: bool, way: str) -> None:
    person = Person()

    def helper(batch_size: int) -> None:
        person.train_step(batch_size)

    steps: dict[str, Callable[[int], object]] = {
        "method": person.train_step,
        "partial": functools.partial(lambda someone, size: someone.train_step(size), person),
        "helper": helper,
        "given": getattr(person, "train_step"),  # noqa: B009
    }
    parts = [person.model, person.optimizer, person.scheduler, person.scaler, person.average]
    before = person.everything()
    pointers = [p.data_ptr() for p in person.model.parameters()]
    found = find_max_batch_size(
        steps[way], start=30, soak=1, isolate=isolate, restore=parts if way == "given" else None, device="cpu"
    )
    assert 37 <= found <= 40
    assert_same(before, person.everything())
    assert pointers == [p.data_ptr() for p in person.model.parameters()]
    # And training goes on from there as if nothing had been.
    person.train_step(5)
    alone = Person()
    alone.train_step(5)
    assert_same(person.everything(), alone.everything())


def test_an_optimiser_that_was_fresh_is_fresh_again() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())

    def step(batch_size: int) -> None:
        model(torch.ones(batch_size, 3)).sum().backward()
        optimizer.step()

    find_max_batch_size(step, start=1, maximum=4, isolate=False, soak=0)
    assert optimizer.state_dict()["state"] == {}
    assert model.weight.grad is None


def test_an_optimisers_state_keeps_its_own_type() -> None:
    model = nn.Linear(3, 1).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.weight]["mean"] = torch.tensor([1 / 3], dtype=torch.float32)
    saved = SavedState([optimizer], torch.device("cpu"))
    optimizer.state[model.weight]["mean"].zero_()
    optimizer.param_groups[0]["lr"] = 7.0
    saved.restore()
    assert optimizer.state[model.weight]["mean"].item() == np.float32(1 / 3)
    assert optimizer.param_groups[0]["lr"] == 0.1


MODEL = nn.Linear(2, 2)


def in_a_helper() -> nn.Module:
    return MODEL


def test_objects_are_found_through_globals_defaults_and_containers() -> None:
    other, third = nn.Linear(1, 1), nn.Linear(1, 1)
    parts = {"models": [other]}

    def step(size: int, given: nn.Module = third) -> Any:
        return in_a_helper(), parts, size

    assert {id(item) for item in stateful_objects(step, None)} == {id(MODEL), id(other), id(third)}


# --- workloads --------------------------------------------------------------------------------------------------------


@needs_fork
def test_a_workload_brings_its_own_step(make: Callable[..., Workload]) -> None:
    wide = make(
        model=lambda: nn.Sequential(nn.Linear(6, 4096), nn.Tanh(), nn.Linear(4096, 3)), examples=3000, batch_size=16
    )
    state = torch.get_rng_state()
    trials: list[BatchSizeTrial] = []
    found = find_max_batch_size(wide, limit_bytes=40 * MIB, soak=2, report=trials.append, device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    assert trials[0].batch_size == 16
    # Each example keeps a few rows of 4,096 floats: 16 KiB apiece.
    assert 200 <= found <= 1300
    assert found in [trial.batch_size for trial in trials if trial.fits and trial.steps == 3]
    assert find_max_batch_size(make(), device="cpu") == 45  # the whole training set


def test_a_workload_runs_in_this_process_too(make: Callable[..., Workload]) -> None:
    state = torch.get_rng_state()
    assert find_max_batch_size(make("dropout"), isolate=False, device="cpu", soak=1) == 45
    assert torch.equal(state, torch.get_rng_state())


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("hipErrorOutOfMemory"),
        RuntimeError("XPU out of memory. Tried to allocate 1.0 GiB"),
        RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("Invalid buffer size: 96.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("could not create a memory object"),
        RuntimeError("DataLoader worker: unable to mmap 8 bytes from file: Cannot allocate memory (12)"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_more_forms_of_running_out_are_known(error: Exception) -> None:
    assert is_out_of_memory(error)
    wrapped, bare = ValueError("the step failed"), ValueError("the step failed")
    wrapped.__cause__ = error
    bare.__context__ = error
    assert is_out_of_memory(wrapped)
    assert is_out_of_memory(bare)
    bare.__suppress_context__ = True
    assert not is_out_of_memory(bare)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker is killed: it is possible that workers are out of shared memory"),
        RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("could not create a primitive"),
        OSError(2, "No such file"),
    ],
)
def test_what_sounds_like_it_is_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_numpy_runs_out_as_well() -> None:
    with pytest.raises(MemoryError) as caught:
        np.ones(1 << 55)
    assert is_out_of_memory(caught.value)

"""What step times say, on clocks and loaders that are made for it: no test here judges how fast the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import batchscope as bs
from batchscope import Workload
from batchscope.measure import step_time
from batchscope.seeding import derive, isolated
from batchscope.training.step import TrainingStep

Make = Callable[..., Workload]


class SlowToRead(Dataset[Any]):
    """Takes a millisecond for each example, far more than computing with it does."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(1e-3)
        return self.x[index], self.y[index]


def test_every_size_is_timed_in_every_round(make: Make) -> None:
    times = bs.step_times(make(examples=60), seconds=0.1)
    assert [point.batch_size for point in times.points] == [1, 2, 4, 8, 16, 32]
    assert {point.rounds for point in times.points} == {times.points[0].rounds}
    assert times.points[0].rounds >= step_time.LEAST_ROUNDS
    for point in times.points:
        assert point.compute_seconds.low <= point.compute_seconds.value <= point.compute_seconds.high  # type: ignore[operator]
        assert point.step_seconds.value >= point.compute_seconds.value  # type: ignore[operator]
        speed = point.batch_size / point.step_seconds.value  # type: ignore[operator]
        assert point.examples_per_second.value == pytest.approx(speed)
        assert point.examples_per_second.low <= speed <= point.examples_per_second.high  # type: ignore[operator]
        assert point.predicted_seconds == pytest.approx(times.law.seconds(point.batch_size))
    assert times.most_examples_per_second == max(p.examples_per_second.value for p in times.points)  # type: ignore[type-var]


def test_the_workloads_own_batch_size_is_among_them(make: Make) -> None:
    times = bs.step_times(make(examples=60, batch_size=11), seconds=0.05)
    assert 11 in [point.batch_size for point in times.points]


@pytest.mark.parametrize("kind", ["batch norm", "frozen norm"])
def test_batch_norm_begins_at_two_examples(make: Make, kind: str) -> None:
    assert [point.batch_size for point in bs.step_times(make(kind, examples=20), seconds=0.05).points] == [2, 4, 8, 16]


def test_a_loader_that_is_slower_than_the_model_is_named(make: Make) -> None:
    workload = make(examples=64)
    slow = make(examples=64, train=SlowToRead(*workload.train))  # type: ignore[misc]
    for workers, reading in ((0, "between updates"), (1, "beside them")):
        times = bs.step_times(slow, batch_sizes=[8, 32], seconds=0.1, workers=workers)
        assert times.loader_bound_from == 8
        assert times.reading == reading
        for point in times.points:
            assert point.data_seconds.value > 0.9e-3 * point.batch_size  # type: ignore[operator]
            longer = max(point.data_seconds.value, point.compute_seconds.value)  # type: ignore[type-var]
            total = point.data_seconds.value + point.compute_seconds.value  # type: ignore[operator]
            assert point.step_seconds.value == pytest.approx(total if workers == 0 else longer, rel=1e-6)


def test_nothing_of_the_persons_own_changes(make: Make) -> None:
    workload = make("augmented")
    before = torch.get_rng_state()
    bs.step_times(workload, batch_sizes=[4, 16], seconds=0.05)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_stay_where_they_are(make: Make) -> None:
    kept: list[torch.nn.Linear] = []

    def model() -> torch.nn.Module:
        kept.append(torch.nn.Linear(6, 3))
        return kept[-1]

    workload = make(model=model, learning_rate=1e6)
    bs.step_times(workload, batch_sizes=[4, 16], seconds=0.05)
    with isolated(derive(0, "weights")):
        fresh = torch.nn.Linear(6, 3)
    assert any(torch.equal(m.weight, fresh.weight) for m in kept)
    assert all(torch.isfinite(m.weight).all() for m in kept)


def test_memory_that_ends_ends_the_grid(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make(examples=60)
    calls = TrainingStep.__call__

    def limited(self: Any, batches: list[Any], examples: int) -> torch.Tensor:
        if examples > 8:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return calls(self, batches, examples)

    monkeypatch.setattr(TrainingStep, "__call__", limited)
    times = bs.step_times(workload, seconds=0.05)
    assert [point.batch_size for point in times.points] == [1, 2, 4, 8]
    monkeypatch.setattr(TrainingStep, "__call__", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        bs.step_times(workload, seconds=0.05)


@pytest.mark.parametrize("sizes", [[], [4], [0, 4], [4, 10**6], [4, True], [1.5, 2]])
def test_sizes_that_make_no_sense(make: Make, sizes: list[Any]) -> None:
    with pytest.raises(bs.ArgumentError, match="batch_sizes must be at least two"):
        bs.step_times(make(), batch_sizes=sizes)


def test_a_record_comes_back_from_its_file(make: Make, tmp_path: Any) -> None:
    times = bs.step_times(make(), batch_sizes=[4, 16], seconds=0.05)
    assert bs.load(times.to_json(tmp_path / "times.json")) == times


def test_the_grid_may_end_before_the_workloads_own_size(make: Make) -> None:
    workload = make(examples=45, batch_size=32)
    found = bs.step_times(workload, longest_update_seconds=1e-9, seconds=0.05)
    assert [point.batch_size for point in found.points] == [1, 2]

"""One thread where an update is too small to share, and as many as before afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import batchscope as bs
from batchscope import Workload
from batchscope.training import threads
from batchscope.training.threads import SMALL_UPDATE_FLOPS, compute_threads, flops_per_example

CPU = torch.device("cpu")
Make = Callable[..., Workload]


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("flops", "expected"), [(0.0, 1), (SMALL_UPDATE_FLOPS / 2, 1), (SMALL_UPDATE_FLOPS, 3), (1e12, 3), (None, 3)]
)
def test_small_updates_are_computed_with_one_thread(flops: float | None, expected: int) -> None:
    with compute_threads(flops, CPU):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 3


def test_a_gpu_s_host_threads_are_left_alone() -> None:
    with compute_threads(0.0, torch.device("cuda")):
        assert torch.get_num_threads() == 3


def test_the_threads_are_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), compute_threads(0.0, CPU):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_the_work_of_an_example_is_counted(make: Make) -> None:
    # A multiplication and an addition for each weight forward, and twice that backward.
    assert flops_per_example(make()) == 3 * 2 * (6 * 16 + 16 * 3)
    # 4 kernels of 3×3 over 4×4 places, and a linear layer of 64×3.
    assert flops_per_example(make("cnn")) == 3 * 2 * (4 * 9 * 16 + 64 * 3)
    assert flops_per_example(make("augmented")) == flops_per_example(make())


def test_the_count_leaves_the_random_state_alone(make: Make) -> None:
    workload, before = make("dropout"), torch.get_rng_state()
    flops_per_example(workload)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_cannot_be_counted_is_trained_all_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make()

    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no counting here")

    monkeypatch.setattr("torch.utils.flop_counter.FlopCounterMode.__init__", fail)
    assert flops_per_example(workload) is None
    result = bs.train(workload, bs.Plan(batch_size=8, learning_rate=0.1, iterations=2))
    assert result.outcome == "finished"
    assert result.provenance.threads == 3


class Watching(nn.Module):
    """Notes how many threads it is computed with while it trains."""

    def __init__(self, seen: set[int]) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(6, 3), seen

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.add(torch.get_num_threads())
        out: Tensor = self.linear(x)
        return out


def test_the_rule_goes_by_the_work_of_an_update(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    workload = make(model=lambda: Watching(seen))
    work = flops_per_example(workload)
    assert work == 3 * 2 * 18
    monkeypatch.setattr(threads, "SMALL_UPDATE_FLOPS", 10 * work)

    def threads_of(batch_size: int, micro_batch_size: int | None = None) -> set[int]:
        seen.clear()
        plan = bs.Plan(batch_size=batch_size, learning_rate=0.1, iterations=3, micro_batch_size=micro_batch_size)
        bs.train(workload, plan)
        assert torch.get_num_threads() == 3
        return set(seen)

    assert threads_of(9) == {1}
    assert threads_of(10) == {3}
    assert threads_of(40, 9) == {1}  # what passes through the model at once counts

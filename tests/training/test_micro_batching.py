"""Training goes on in micro-batches where memory runs out, and ends where the whole batch would have ended."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import batchscope as bs
from batchscope import Plan, Workload
from batchscope.measure.child import can_fork, in_child
from batchscope.training import micro_batching
from batchscope.training.micro_batching import cut_batch
from batchscope.workload.batches import join

Make = Callable[..., Workload]


class Memory:
    """A loss that runs out of memory from one update on, when more than ``room`` examples are in a backward pass.

    The error comes after the forward pass, dropout drawn and all.
    """

    def __init__(self, room: int, *, after: int = 0) -> None:
        self.room, self.after, self.failures, self.sizes = room, after, 0, list[int]()
        self.passes = -1  # the first is the workload's own check

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if output.requires_grad:
            self.passes += 1
            if self.passes > self.after and len(target) > self.room:
                self.failures += 1
                raise RuntimeError("CUDA error: out of memory\nCompile with …")
            self.sizes.append(len(target))
        return F.cross_entropy(output, target)


def plan_of(**changes: Any) -> Plan:
    return Plan(**{"batch_size": 8, "learning_rate": 0.05, "iterations": 12, **changes})


def weights(result: bs.TrainResult) -> dict[str, Tensor]:
    assert result.state is not None
    return result.state


def assert_equal(one: bs.TrainResult, other: bs.TrainResult) -> None:
    assert [(p.validation_loss, p.training_loss) for p in one.curve] == [
        (p.validation_loss, p.training_loss) for p in other.curve
    ]
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


@pytest.mark.parametrize("kind", ["mlp", "dropout", "noisy", "tied", "cnn", "transformer"])
def test_it_ends_as_planned_micro_batches_do(make: Make, kind: str) -> None:
    # Bit for bit, with dropout too: the failed attempts' random numbers are drawn again.
    memory = Memory(3)
    cut = bs.train(make(kind, loss=memory), plan_of(), evaluate_every=8)
    assert (cut.outcome, cut.micro_batch_size, cut.message) == ("finished", 2, None)
    assert memory.failures == 2  # 8, then 4, and never again
    planned = bs.train(make(kind), plan_of(micro_batch_size=2), evaluate_every=8)
    assert planned.micro_batch_size == 2
    assert_equal(cut, planned)


@pytest.mark.parametrize("kind", ["mlp", "tied", "cnn", "transformer", "tensor dataset", "augmented"])
@pytest.mark.parametrize("after", [0, 5])
def test_it_ends_as_the_whole_batch_does(make: Make, kind: str, after: int) -> None:
    memory = Memory(5, after=after)
    cut = bs.train(make(kind, loss=memory), plan_of(examples=83, iterations=None), evaluate_every=8)
    whole = bs.train(make(kind), plan_of(examples=83, iterations=None), evaluate_every=8)
    assert (cut.micro_batch_size, whole.micro_batch_size) == (4, 8)
    assert memory.failures == 1
    for mine, theirs in zip(cut.curve[1:], whole.curve[1:], strict=True):
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)
        assert mine.training_loss == pytest.approx(theirs.training_loss, rel=1e-4)


def test_a_failed_update_draws_its_random_numbers_again(make: Make) -> None:
    # Dropout in whole batches for five updates, cut from the sixth on: by hand, from the sixth update's random state.
    memory = Memory(4, after=5)
    cut = bs.train(make("dropout", loss=memory), plan_of(iterations=6), evaluate_every=48)
    assert memory.failures == 1

    class Late(Memory):  # no failure at all: the loss of the sixth update is given piece by piece
        pass

    free = Late(8)
    state: list[dict[str, Any]] = []
    workload = make("dropout", loss=free)
    step_class = micro_batching.MicroBatchingStep

    def cutting(self: Any, batches: Any, examples: int) -> Tensor:
        state.append({})
        if len(state) == 6:
            self.cut_to = 4
        return step_class.__call__(self, batches, examples)

    patch = pytest.MonkeyPatch()
    patch.setattr("batchscope.training.loop.MicroBatchingStep", type("Cutting", (step_class,), {"__call__": cutting}))
    with patch.context():
        by_hand = bs.train(workload, plan_of(iterations=6), evaluate_every=48)
    patch.undo()
    assert free.failures == 0
    assert_equal(cut, by_hand)


def test_a_planned_micro_batch_is_cut_further(make: Make) -> None:
    memory = Memory(3)
    cut = bs.train(make(loss=memory), plan_of(batch_size=13, micro_batch_size=5, iterations=4))
    assert cut.micro_batch_size == 3
    # Every fifth of the batch is cut by itself, and weighted by what is in it.
    assert memory.sizes[-5:] == [3, 2, 3, 2, 3]
    whole = bs.train(make(), plan_of(batch_size=13, iterations=4))
    assert cut.final_loss == pytest.approx(whole.final_loss, rel=1e-6)


def test_it_goes_down_to_one_and_no_further(make: Make) -> None:
    assert bs.train(make(loss=Memory(1)), plan_of()).micro_batch_size == 1
    memory = Memory(0)
    result = bs.train(make(loss=memory), plan_of())
    assert (result.outcome, result.message) == ("out of memory", "CUDA error: out of memory")
    assert (memory.failures, result.iterations) == (4, 0)  # 8, 4, 2, 1


@pytest.mark.parametrize("kind", ["batch norm", "frozen norm"])
def test_a_batch_norm_is_not_cut_behind_its_back(make: Make, kind: str) -> None:
    result = bs.train(make(kind, loss=Memory(4, after=3)), plan_of())
    assert (result.outcome, result.iterations, result.micro_batch_size) == ("out of memory", 3, 8)
    assert result.message is not None
    assert f"BatchNorm1d {'1' if kind == 'batch norm' else 'live'} normalises over the batch" in result.message
    assert "micro_batch_size=4" in result.message
    assert bs.train(make(kind, loss=Memory(4)), plan_of(micro_batch_size=4)).outcome == "finished"


def test_a_frozen_batch_norm_ties_nothing(make: Make) -> None:
    def model() -> nn.Module:
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        net[1].eval()
        return net

    assert bs.train(make(model=model, loss=Memory(4)), plan_of()).micro_batch_size == 4


def test_buffers_that_a_failed_pass_has_changed_are_not_trusted(make: Make) -> None:
    def model() -> nn.Module:
        return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))

    result = bs.train(make(model=model, loss=Memory(4)), plan_of())
    assert result.outcome == "out of memory"
    assert result.message is not None
    assert "changes its buffer 0.parametrizations.weight.0._u" in result.message


def test_running_out_in_the_optimisers_step_is_not_repeated(make: Make) -> None:
    class Greedy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            raise torch.OutOfMemoryError("CUDA out of memory in the step")

    calls: list[int] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if output.requires_grad:
            calls.append(len(target))
        return F.cross_entropy(output, target)

    workload = make(optimizer=lambda parameters, rate: Greedy(parameters, lr=rate), loss=loss)
    calls.clear()
    result = bs.train(workload, plan_of())
    assert (result.outcome, result.message) == ("out of memory", "CUDA out of memory in the step")
    assert calls == [8]


def test_a_batch_that_cannot_be_cut_says_so(make: Make) -> None:
    def collate(examples: list[Any]) -> dict[str, Any]:
        return {"x": torch.stack([x for x, _ in examples]), "y": torch.tensor([y for _, y in examples]), "longest": 6}

    workload = make(
        "tensor dataset",
        collate=collate,
        forward=lambda model, batch: (model(batch["x"]), batch["y"]),
        loss=Memory(4),
        train=_Pairs(),
        validation=_Pairs(),
    )
    result = bs.train(workload, plan_of())
    assert result.outcome == "out of memory"
    assert result.message is not None
    assert "type int cannot be cut: give micro_batch_size=4 or less" in result.message


class _Pairs(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((6,), index / 20), index % 3


@pytest.mark.parametrize("kind", ["dropout", "augmented"])
def test_a_resumed_run_goes_on_cut_and_ends_the_same(make: Make, kind: str, tmp_path: Path) -> None:
    unbroken = bs.train(make(kind, loss=Memory(4, after=3)), plan_of(), evaluate_every=16)

    class Stopped(Exception):
        pass

    def stop(event: Any) -> None:
        if event.done >= 48:
            raise Stopped

    path, memory = tmp_path / "run.safetensors", Memory(4, after=3)
    workload = make(kind, loss=memory)
    with pytest.raises(Stopped):
        bs.train(workload, plan_of(), evaluate_every=16, checkpoint=path, checkpoint_every_seconds=0.0, progress=stop)
    assert memory.failures == 1
    memory.after, memory.sizes = 0, []
    resumed = bs.train(workload, plan_of(), evaluate_every=16, checkpoint=path)
    assert memory.failures == 1
    assert set(memory.sizes) == {4}
    assert resumed.micro_batch_size == 4
    assert_equal(resumed, unbroken)


@pytest.mark.parametrize(("kind", "each"), [("mlp", 0), ("dropout", 1)])
def test_no_state_is_saved_for_a_model_that_draws_nothing(
    make: Make, kind: str, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, counted = torch.get_rng_state, [0]

    def counting() -> Tensor:
        counted[0] += 1
        return read()

    monkeypatch.setattr(torch, "get_rng_state", counting)
    workload, found = make(kind), []
    for iterations in (1, 2, 12):  # the first time the workload's fingerprint is taken too
        counted[0] = 0
        bs.train(workload, plan_of(iterations=iterations), evaluate_every=96)
        found.append(counted[0])
    assert found[2] - found[1] == 10 * each


def test_a_comparison_goes_on_too(make: Make) -> None:
    answer = bs.compare(make(loss=Memory(4)), [(4, 8), (16, 2)], seeds=1, learning_rate="fixed")
    assert [row.finished for row in answer.rows] == [1, 1]
    assert [run.micro_batch_size for run in answer.runs] == [4, 4]


def test_table_and_page_say_so(make: Make, tmp_path: Path) -> None:
    for loss, said in ((Memory(4), True), (F.cross_entropy, False)):
        console = Console(width=120, file=io.StringIO(), record=True)
        result = bs.train(make(loss=loss), plan_of())
        console.print(result.table())
        assert ("4 (of 8, since memory ran out)" in console.export_text()) == said
        page = result.report(tmp_path / "page.html").read_text(encoding="utf-8")
        assert ("4 (of 8, since memory ran out)" in page) == said


@pytest.mark.skipif(not can_fork(), reason="needs a fork of a process without CUDA")
def test_a_real_limit_is_lived_within() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4096, 32, generator=generator), torch.randint(3, (4096,), generator=generator)
    workload = Workload(
        model=lambda: nn.Sequential(
            nn.Linear(32, 1024), nn.Tanh(), nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 3)
        ),
        train=(x, y),
        validation=(x[:64], y[:64]),
        loss=F.cross_entropy,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        learning_rate=0.01,
        batch_size=64,
    )
    plan = Plan(batch_size=4096, learning_rate=0.01, iterations=2)

    def work() -> tuple[str, int | None, list[float]]:
        result = bs.train(workload, plan, evaluate_every=4096)
        return result.outcome, result.micro_batch_size, [point.validation_loss for point in result.curve]

    # Weights, their gradients and the best weights are some 20 MiB; each of the six tensors of 4,096 × 1,024 is 16.
    free, limited = in_child(work).value, in_child(work, limit_bytes=64 << 20).value
    assert free is not None
    assert limited is not None
    assert free[:2] == ("finished", 4096)
    assert limited[0] == "finished"
    assert limited[1] in (512, 1024, 2048)
    assert limited[2] == pytest.approx(free[2], rel=1e-4)


@given(st.integers(1, 12), st.integers(1, 13))
def test_cut_parts_join_to_the_batch(examples: int, size: int) -> None:
    batch: dict[str, Any] = {
        "x": torch.arange(examples * 3).reshape(examples, 3),
        "pair": (torch.arange(examples), None),
        "names": [f"n{i}" for i in range(examples)],
    }
    parts = cut_batch(batch, examples, size)
    assert [len(part["x"]) for part in parts] == [min(size, examples - i) for i in range(0, examples, size)]
    assert torch.equal(join([part["x"] for part in parts]), batch["x"])
    assert torch.equal(join([part["pair"][0] for part in parts]), batch["pair"][0])
    assert [name for part in parts for name in part["names"]] == batch["names"]


@pytest.mark.parametrize("batch", [torch.tensor(1.0), torch.zeros(3), {"x": torch.zeros(4), "n": 4}, "four"])
def test_what_has_no_entry_for_each_example_is_not_cut(batch: Any) -> None:
    with pytest.raises(TypeError, match=r"(tensor of shape|type)"):
        cut_batch(batch, 4, 2)

"""Data feeding: the same examples whatever reads them, from wherever one goes on, in whatever pieces."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from batchscope import ArgumentError, Plan, PlanError, Workload, WorkloadError
from batchscope.training.feed import LoaderFeed, TensorFeed, TrainingData
from batchscope.training.interruption import stop_requests
from batchscope.workload.batches import as_tensors, take

CPU = torch.device("cpu")
Make = Callable[..., Workload]


def plan_of(batch_size: int, examples: int, **changes: Any) -> Plan:
    return Plan(batch_size=batch_size, learning_rate=0.1, examples=examples, **changes)


def updates_of(workload: Workload, plan: Plan, *, workers: int = 0, start: int = 0) -> list[list[Any]]:
    data = TrainingData(workload, CPU, workers=workers)
    assert plan.examples is not None
    return list(data.feed(plan, plan.examples, seed=3, start_iteration=start))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """The tensors behind a workload as a Dataset that is read one by one."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.x, self.targets = tensors

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.targets[index]


class ManyAtOnce(Pairs):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("they are read many at a time")

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        return [(self.x[i], self.targets[i]) for i in indices]


@pytest.mark.parametrize("order", ["shuffled", "replacement", "stratified"])
@pytest.mark.parametrize(("batch_size", "micro"), [(1, None), (7, None), (7, 3), (45, None), (45, 44)])
def test_tensors_and_datasets_give_the_same_batches(make: Make, order: Any, batch_size: int, micro: int | None) -> None:
    workload = make()
    plan = plan_of(batch_size, 100, order=order, micro_batch_size=micro)
    expected = updates_of(workload, plan)
    tensors = as_tensors(workload.train)
    assert tensors is not None
    assert isinstance(TrainingData(workload, CPU).feed(plan, 100, seed=3), TensorFeed)
    for kind in (Pairs, ManyAtOnce):
        other = make(train=kind(tensors))
        assert isinstance(TrainingData(other, CPU, workers=0).feed(plan, 100, seed=3), LoaderFeed)
        assert equal([[list(m) for m in u] for u in updates_of(other, plan)], [[list(m) for m in u] for u in expected])
    # torch's own TensorDataset is as quick as its tensors; a subclass might change what it returns.
    assert isinstance(TrainingData(make("tensor dataset"), CPU).feed(plan, 100, seed=3), TensorFeed)
    assert equal(updates_of(make("tensor dataset"), plan), expected)


@pytest.mark.parametrize("plan", [plan_of(8, 60), plan_of(8, 60, micro_batch_size=3, order="replacement")])
def test_nothing_depends_on_the_number_of_workers(make: Make, plan: Plan) -> None:
    # Every example is drawn with noise from torch's, Python's and numpy's global generators.
    workload = make("augmented")
    alone = updates_of(workload, plan)
    torch.manual_seed(123)
    random.seed(123)
    np.random.seed(123)  # noqa: NPY002
    assert equal(updates_of(workload, plan), alone)
    assert equal(updates_of(workload, plan, workers=1), alone)
    assert equal(updates_of(workload, plan, workers=2), alone)
    assert not equal(alone[0], updates_of(workload, plan, start=1)[0])  # or equality would say nothing


def test_augmentation_differs_from_one_pass_to_the_next(make: Make) -> None:
    workload = make("augmented", examples=10)
    readings: dict[int, set[float]] = {}
    for [batch] in updates_of(workload, plan_of(5, 100)):
        for index, value in zip(batch["index"].tolist(), batch["input"][:, 0].tolist(), strict=True):
            readings.setdefault(index, set()).add(value)
    assert {len(values) for values in readings.values()} == {10}


@pytest.mark.parametrize("kind", ["mlp", "augmented"])
@pytest.mark.parametrize("micro", [None, 2])
def test_a_resumed_run_gets_the_same_batches(make: Make, kind: str, micro: int | None) -> None:
    workload, plan = make(kind), plan_of(5, 153, micro_batch_size=micro)
    whole = updates_of(workload, plan)
    for start in range(len(whole) + 1):
        assert equal(updates_of(workload, plan, start=start), whole[start:])


def test_a_resumed_run_gets_batches_at_the_same_alignment_in_memory(make: Make) -> None:
    # Groups of 64 small batches are gathered at once; the last bits of a product can depend on where they begin.
    workload, plan = make(), plan_of(3, 600)
    whole = updates_of(workload, plan)
    for start in (1, 63, 64, 65, 130):
        resumed = updates_of(workload, plan, start=start)
        assert [u[0][0].storage_offset() for u in resumed] == [u[0][0].storage_offset() for u in whole[start:]]


@pytest.mark.parametrize("kind", ["mlp", "augmented"])
@pytest.mark.parametrize(("batch_size", "micro"), [(8, 8), (8, 1), (8, 3), (45, 7), (1, 1)])
def test_micro_batches_partition_the_batch(make: Make, kind: str, batch_size: int, micro: int) -> None:
    def indices(batch: Any) -> Tensor:
        # Tensors carry no index: the feature that tells examples apart stands for it.
        found: Tensor = batch["index"] if isinstance(batch, dict) else batch[0][:, 0]
        return found

    workload = make(kind)
    whole = updates_of(workload, plan_of(batch_size, 99))
    cut = updates_of(workload, plan_of(batch_size, 99, micro_batch_size=micro))
    assert len(cut) == len(whole)
    for batch, parts in zip(whole, cut, strict=True):
        assert len(batch) == 1
        count = len(indices(batch[0]))
        assert [len(indices(part)) for part in parts] == [min(micro, count - i) for i in range(0, count, micro)]
        assert torch.equal(torch.cat([indices(part) for part in parts]), indices(batch[0]))


@pytest.mark.parametrize("kind", ["mlp", "tensor dataset", "augmented"])
def test_a_batch_larger_than_the_data_is_refused(make: Make, kind: str) -> None:
    data = TrainingData(make(kind), CPU)
    data.feed(plan_of(45, 90), 90, seed=0)
    with pytest.raises(PlanError, match=r"at most the number of training examples; got 46 > 45\. The full batch is 45"):
        data.feed(plan_of(46, 92), 92, seed=0)


def test_a_full_batch_holds_every_example_once(make: Make) -> None:
    workload = make()
    tensors = as_tensors(workload.train)
    assert tensors is not None
    for [(x, y)] in updates_of(workload, plan_of(45, 135)):
        assert torch.equal(x[x[:, 0].argsort()], tensors[0][tensors[0][:, 0].argsort()])
        assert torch.equal(y.bincount(), tensors[1].bincount())


class Strange:
    """What a collate may return: something that only its own forward understands."""

    def __init__(self, x: Any, y: Tensor) -> None:
        self.x, self.y = x, y


def strange(examples: list[tuple[Tensor, Tensor]]) -> Any:
    own = Strange(None, torch.stack([y for _, y in examples]))
    return {"array": np.stack([x.numpy() for x, _ in examples]), "own": own}


def understand(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    assert isinstance(batch["array"], np.ndarray)
    return model(torch.from_numpy(batch["array"])), batch["own"].y


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_what_collate_returned(make: Make, workers: int) -> None:
    tensors = as_tensors(make().train)
    assert tensors is not None
    workload = make(train=Pairs(tensors), validation=Pairs(tensors), collate=strange, forward=understand)
    [[batch]] = updates_of(workload, plan_of(4, 4), workers=workers)
    assert type(batch["array"]) is type(take(workload.train, [0], strange)["array"]) is np.ndarray
    assert type(batch["own"]).__name__ == "Strange"


class Broken(Pairs):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 30:
            raise OSError("no such file: 30.png")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_example_that_cannot_be_read_is_named(make: Make, workers: int) -> None:
    tensors = as_tensors(make().train)
    assert tensors is not None
    workload = make(train=Broken(tensors))
    with pytest.raises(WorkloadError, match=r"^the training Dataset must yield every example") as caught:
        updates_of(workload, plan_of(1, 45), workers=workers)
    assert "OSError: no such file: 30.png in examples [30]" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [-1, 1.5, True])
def test_a_number_of_workers_that_makes_no_sense_is_refused(make: Make, workers: Any) -> None:
    with pytest.raises(ArgumentError, match="workers"):
        TrainingData(make("augmented"), CPU, workers=workers)


def test_quick_datasets_are_read_in_this_process_and_tensors_always(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchscope.training.feed.SLOW_EXAMPLE_SECONDS", 3600.0)
    assert TrainingData(make("augmented"), CPU).workers == 0
    monkeypatch.setattr("batchscope.training.feed.SLOW_EXAMPLE_SECONDS", -1.0)
    assert TrainingData(make("augmented"), CPU).workers >= 1
    assert TrainingData(make(), CPU, workers=2).workers == 0


def test_the_time_spent_in_reading_is_counted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr("batchscope.training.feed.time.perf_counter", clock)
    for kind, groups in (("mlp", 1), ("augmented", 12)):  # of the twelve batches of tensors all are gathered at once
        feed = TrainingData(make(kind), CPU, workers=0).feed(plan_of(8, 96), 96, seed=0)
        assert len(list(feed)) == 12
        assert feed.seconds == groups


def test_large_tensors_are_gathered_a_few_batches_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workload, plan = make(), plan_of(8, 96)
    expected = updates_of(workload, plan)
    monkeypatch.setattr("batchscope.training.feed.GATHER_BYTES", 700)  # an example has 32 bytes, a batch 256
    cut = updates_of(workload, plan)
    assert equal(cut, expected)
    assert [u[0][0].storage_offset() // 48 for u in cut] == [0, 1] * 6


def test_a_loss_that_weighs_examples_sees_them_all(make: Make) -> None:
    # A tuple of three tensors, with a forward that takes them apart.
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    three = (x, torch.arange(12.0), y)
    workload = make(
        train=three,
        validation=three,
        batch_size=4,
        forward=lambda model, batch: (model(batch[0]) + 0 * batch[1][:, None], batch[2]),
        loss=F.cross_entropy,
    )
    seen = torch.cat([batch[1] for [batch] in updates_of(workload, plan_of(4, 12))])
    assert sorted(seen.tolist()) == list(range(12))


class WhoReads(Pairs):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], torch.tensor(os.getpid())


def test_a_worker_ends_when_it_is_told_to(make: Make) -> None:
    # Though it is forked from a process where SIGTERM asks for a stop after the next update.
    workload = make()
    assert isinstance(workload.train, tuple)
    reader = make(train=WhoReads(workload.train), loss=lambda output, target: output.square().mean(), score=None)
    with stop_requests() as stop:
        updates = iter(TrainingData(reader, CPU, workers=1).feed(plan_of(1, 400), 400, seed=0))
        [batch] = next(updates)
        [worker] = [child for child in multiprocessing.active_children() if child.pid == int(batch[1])]
        with contextlib.suppress(RuntimeError):  # torch watches its workers, and may say so here
            worker.terminate()
            worker.join(5)
        worker.join(5)
        assert worker.exitcode == -signal.SIGTERM
    assert not stop.requested


WORKER_SIGNALS = """
    import os, signal, sys, time, torch, batchscope as bs
    from torch.utils.data import Dataset

    class Data(Dataset):
        def __len__(self): return 40
        def __getitem__(self, i): return torch.full((3,), float(i)), i % 2

    def loss(output, target):
        global updates
        updates += torch.is_grad_enabled()
        if updates == 30 and torch.is_grad_enabled():
            for _ in range(int(sys.argv[1])):
                os.killpg(0, signal.SIGINT)  # what Ctrl-C in a terminal does: to the workers as well
                time.sleep(0.1)
        return torch.nn.functional.cross_entropy(output, target)

    updates = -100
    w = bs.Workload(model=lambda: torch.nn.Linear(3, 2), train=Data(), validation=Data(), loss=loss,
                    optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr), learning_rate=0.01, batch_size=4)
    updates = 0
    try:
        r = bs.train(w, bs.Plan(batch_size=4, learning_rate=1e-5, iterations=200), workers=1, evaluate_every=40)
        print(r.outcome, r.iterations, len(r.curve))
    except KeyboardInterrupt:
        print("interrupted at once")
"""


@pytest.mark.parametrize(("presses", "said"), [(1, "interrupted 30 4"), (2, "interrupted at once")])
def test_ctrl_c_in_a_terminal_reaches_the_workers_and_harms_nothing(presses: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORKER_SIGNALS), str(presses)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said
    assert "Traceback" not in done.stderr

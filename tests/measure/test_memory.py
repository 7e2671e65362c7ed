"""Memory: peaks against what is really allocated, real limits, children that end in every way, and what is free."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from batchscope import ArgumentError, PlanError, Workload
from batchscope.measure import child as child_module
from batchscope.measure import memory as memory_module
from batchscope.measure.child import CannotForkError, ChildResult, can_fork, in_child
from batchscope.measure.memory import memory_use
from batchscope.measure.memory_meter import ResidentPeak, _left_in_control_groups, available_memory, limited_data
from batchscope.measure.memory_trial import FreshTraining, LongestExamples
from batchscope.training.heap import kept_heap
from batchscope.training.meters import status_bytes

Make = Callable[..., Workload]
MIB = 1 << 20
CPU = torch.device("cpu")

needs_fork = pytest.mark.skipif(not can_fork(), reason="needs a fork of a process without CUDA")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def wide(make: Make, examples: int = 4000, **changes: Any) -> Workload:
    """Weights of 0.25 MiB, and 16 KiB for each tensor of activations of an example.

    From 2,048 examples on such a tensor is larger than 32 MiB, and glibc maps it by itself and gives it back at once;
    below that freed blocks stay on its heap, and peaks are up to three times what is in use.
    """

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4096), nn.Tanh(), nn.Linear(4096, 3))

    return make(model=model, examples=examples, **changes)


# --- memory_use -------------------------------------------------------------------------------------------------------


@needs_fork
def test_peaks_follow_the_activations(make: Make) -> None:
    use = memory_use(wide(make), micro_batch_sizes=[4000, 2400, 3200], limit_bytes=1 << 30, device="cpu")
    assert use.meter == "resident memory of a child process"
    assert [point.micro_batch_size for point in use.points] == [2400, 3200, 4000]
    assert use.law is not None
    per_example = use.law.bytes_per_example.value
    assert per_example is not None
    # The first layer's output, tanh's and its gradient are there at once: three tensors of 16 KiB.
    assert per_example == pytest.approx(3 * 16384, rel=0.1)
    assert use.parameter_bytes == 4 * (7 * 4096 + 4097 * 3)
    assert use.optimizer_bytes == use.parameter_bytes  # momentum
    assert (use.limit_source, use.limit_bytes, use.largest_executed) == ("given", 1 << 30, 4000)
    assert (use.largest_predicted, use.holds_all) == (4000, True)


@needs_fork
def test_it_stops_where_the_law_ends_and_says_what_fits(make: Make) -> None:
    # A limit that only sizes from 2,048 on come near: what smaller ones take depends on the heap that a child inherits.
    workload, limit = wide(make, examples=40_000), 400 * MIB
    use = memory_use(workload, limit_bytes=limit, device="cpu", margin=0.1, seconds=60.0)
    assert use.largest_executed is not None
    assert use.largest_predicted is not None
    assert 4096 <= use.largest_executed <= 8192
    assert use.largest_executed <= use.largest_predicted < 3 * use.largest_executed
    assert not use.holds_all
    # The prediction holds: that size runs in a child under the limit, and four times that size does not.
    longest = LongestExamples(workload, seed=0)

    def train(size: int) -> None:
        training = FreshTraining(longest.workload, longest, CPU)
        training.step(size)
        training.evaluate(size)

    predicted = use.largest_predicted
    assert in_child(lambda: train(predicted), limit_bytes=limit).ending == "done"
    assert in_child(lambda: train(4 * predicted), limit_bytes=limit).ending == "out of memory"


@needs_fork
def test_nothing_that_fits_is_a_result(make: Make) -> None:
    use = memory_use(wide(make), micro_batch_sizes=[2000, 4000], limit_bytes=4 * MIB, device="cpu")
    assert (use.points, use.law, use.largest_executed, use.largest_predicted) == ((), None, None, None)
    assert not use.holds_all


@needs_fork
def test_a_child_and_this_process_agree(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    forked = memory_use(wide(make), micro_batch_sizes=[2400, 4000], device="cpu")
    monkeypatch.setattr(memory_module, "can_fork", lambda: False)
    # In a child, whose heap is clean: what the tests before left free on this one would be used again.
    here = in_child(lambda: memory_use(wide(make), micro_batch_sizes=[2400, 4000], device="cpu")).value
    assert here is not None
    assert here.meter == "resident memory of this process"
    for one, other in zip(forked.points, here.points, strict=True):
        assert one.peak_bytes == pytest.approx(other.peak_bytes, rel=0.1)


def test_where_a_fork_has_no_autograd_this_process_is_measured(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise CannotForkError("no autograd")

    monkeypatch.setattr(memory_module, "in_child", refuse)
    use = memory_use(make(), micro_batch_sizes=[8, 32], device="cpu")
    assert use.meter == "resident memory of this process"
    assert use.largest_executed == 32


@pytest.mark.parametrize("kind", ["dropout", "batch norm", "augmented", "noisy"])
def test_the_persons_random_state_is_untouched(make: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make(kind)
    monkeypatch.setattr(memory_module, "can_fork", lambda: False)
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.rand(3).tolist()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate()
    memory_use(workload, micro_batch_sizes=[8], device="cpu")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.random.rand(3).tolist() == expected  # noqa: NPY002


def test_errors_of_the_workloads_own_come_through(make: Make) -> None:
    workload = make()
    armed: list[bool] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if armed:
            raise RuntimeError("shapes do not fit")
        return nn.functional.cross_entropy(output, target)

    workload = make(loss=loss)
    armed.append(True)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        memory_use(workload, micro_batch_sizes=[8], device="cpu")


@pytest.mark.parametrize(
    "arguments",
    [
        {"micro_batch_sizes": []},
        {"micro_batch_sizes": [0]},
        {"micro_batch_sizes": [46]},
        {"micro_batch_sizes": [2.0]},
        {"limit_bytes": 0},
        {"limit_bytes": 1.5},
        {"margin": 1},
        {"margin": -0.1},
        {"seed": -1},
    ],
)
def test_nonsense_is_refused(make: Make, arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        memory_use(make(), device="cpu", **arguments)


class Sentences(Dataset[Any]):
    """Sequences of unequal length, the longest far from the front."""

    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.ones(1 + (index * 7) % 300, dtype=torch.long), index % 3


def padded(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    x = nn.utils.rnn.pad_sequence([x for x, _ in examples], batch_first=True)
    return x.float().mean(1, keepdim=True), torch.tensor([y for _, y in examples])


def test_batches_are_of_the_longest_examples(make: Make) -> None:
    seen: list[int] = []

    def collate(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        seen.extend(len(x) for x, _ in examples)
        return padded(examples)

    workload = make(model=lambda: nn.Linear(1, 3), train=Sentences(), validation=Sentences(), collate=collate)
    longest = LongestExamples(workload, seed=0)
    seen.clear()
    longest.batch(4)
    assert seen == [300, 299, 298, 297]
    seen.clear()
    x, _ = longest.batch(350)
    assert len(x) == 350
    assert seen[:300] == sorted(seen[:300], reverse=True)
    assert seen[300:] == seen[:50]


# --- children ---------------------------------------------------------------------------------------------------------


class Refused(Exception):
    def __init__(self, one: int, two: int) -> None:  # which pickle cannot make anew
        super().__init__(f"refused {one} and {two}")


@needs_fork
def test_a_child_computes_after_the_parent_has_with_many_threads() -> None:
    torch.set_num_threads(2)
    try:
        x = torch.randn(300, 300, requires_grad=True)
        (x @ x).sum().backward()  # type: ignore[no-untyped-call]

        def work() -> tuple[int, float]:
            y = x.detach().clone().requires_grad_()
            (y @ y).sum().backward()  # type: ignore[no-untyped-call]
            assert y.grad is not None
            assert x.grad is not None
            return torch.get_num_threads(), float((y.grad - x.grad).abs().max())

        threads, error = in_child(work, seconds=60).value or (0, 1.0)
        assert threads == 1
        assert error < 1e-3
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@needs_fork
def test_what_a_child_does_stays_there() -> None:
    values = [1]
    weight = torch.zeros(3)

    def work() -> list[int]:
        values.append(2)
        weight.fill_(7)
        return values

    assert in_child(work).value == [1, 2]
    assert values == [1]
    assert weight.tolist() == [0, 0, 0]


@needs_fork
@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (KeyError("x"), KeyError, "x"),
        (PlanError("a rule", got=3), PlanError, r"a rule; got 3\."),
        (Refused(1, 2), RuntimeError, "Refused: refused 1 and 2"),
        (SystemExit(3), SystemExit, "3"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_what_a_child_raises_is_raised_here(error: BaseException, kind: type[BaseException], said: str) -> None:
    def work() -> None:
        raise error

    with pytest.raises(kind, match=said or None) as caught:
        in_child(work)
    assert "in work" in caught.value.__notes__[-1]


@needs_fork
def test_a_child_that_ends_without_a_word() -> None:
    ended: ChildResult[Any] = in_child(lambda: os._exit(3))
    assert (ended.ending, "status 3" in ended.message) == ("killed", True)
    ended = in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert (ended.ending, ended.message) == ("killed", "killed by SIGKILL")


@needs_fork
def test_a_child_that_hangs_is_ended_with_its_own_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def work() -> None:
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(60)
            os._exit(0)
        note.write_text(str(grandchild))
        time.sleep(60)

    began = time.monotonic()
    assert in_child(work, seconds=0.5).ending == "too slow"
    assert time.monotonic() - began < 30
    grandchild = int(note.read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{grandchild}/stat").read_text().split()[2]
        except OSError:
            return
        if state == "Z":  # dead, and waiting for whoever collects orphans here
            return
        time.sleep(0.05)
    pytest.fail("the grandchild lives on")


@needs_fork
def test_a_child_that_leaves_a_process_behind_is_not_waited_for() -> None:
    def work() -> int:
        if os.fork() == 0:  # holds the pipe open
            time.sleep(60)
            os._exit(0)
        return 5

    began = time.monotonic()
    assert in_child(work).value == 5
    assert time.monotonic() - began < 30


@needs_fork
def test_no_descriptor_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        in_child(lambda: 1)
    assert len(os.listdir("/proc/self/fd")) == before


@needs_fork
def test_a_large_answer_comes_whole() -> None:
    assert in_child(lambda: bytes(3 * MIB)).value == bytes(3 * MIB)


@needs_fork
def test_missing_autograd_is_told_apart() -> None:
    def work() -> None:
        raise RuntimeError(f"{child_module._NO_AUTOGRAD}. See …")

    with pytest.raises(CannotForkError):
        in_child(work)


# --- meters and limits ------------------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("mebibytes", [2, 20, 100])
def test_growth_is_measured_to_a_mebibyte(mebibytes: int) -> None:
    def work() -> int | None:
        peak = ResidentPeak()
        torch.ones(mebibytes * MIB // 4)
        return peak.peak_bytes()

    # A parent whose heap is full of holes, that the child must not fill unseen.
    holes = [bytearray(50_000) for _ in range(2000)]
    del holes[::2]
    assert in_child(work).value == pytest.approx(mebibytes * MIB, abs=MIB)
    del holes


@needs_fork
def test_peaks_do_not_depend_on_what_ran_before(make: Make) -> None:
    """Free blocks far larger than the tensors measured, between ones in use, in a process that keeps what is freed."""

    def peaks() -> list[int]:
        return [point.peak_bytes for point in memory_use(wide(make), micro_batch_sizes=[2400, 4000]).points]

    expected = peaks()
    with kept_heap():
        blocks = [torch.ones(size * MIB // 4) for size in (60, 1, 60, 1, 60, 1)]
        del blocks[::2]
        kept = peaks()
    after = peaks()
    assert kept == pytest.approx(expected, rel=0.02)
    assert after == pytest.approx(expected, rel=0.02)
    del blocks


@needs_fork
def test_free_heap_does_not_slip_past_a_limit() -> None:
    with kept_heap():
        blocks = [torch.ones(size * MIB // 4) for size in (60, 1, 60, 1)]
        del blocks[::2]
        assert in_child(lambda: torch.ones(40 * MIB // 4).sum().item(), limit_bytes=20 * MIB).ending == "out of memory"
        assert in_child(lambda: torch.ones(10 * MIB // 4).sum().item(), limit_bytes=20 * MIB).ending == "done"
    del blocks


@needs_linux
def test_a_limit_is_real_and_goes_away() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_data(8 * MIB):
        left, source = available_memory(CPU)
        assert left is not None
        assert (left <= 8 * MIB, source) == (True, "process limit")
        with pytest.raises((RuntimeError, MemoryError)):
            torch.ones(64 * MIB)
        with limited_data(1 << 40):  # the lower one stays in force
            assert (available_memory(CPU)[0] or 0) <= 8 * MIB
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.ones(16 * MIB)


@needs_linux
def test_free_memory_is_what_the_kernel_says() -> None:
    left, source = available_memory(CPU)
    assert left is not None
    assert source in ("free memory", "control group", "process limit")
    assert 0 < left < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert (status_bytes("VmRSS") or 0) > 10 * MIB


def test_control_groups_of_both_versions_are_read(tmp_path: Path) -> None:
    def group(place: str, **files: object) -> None:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (tmp_path / place / name.replace("__", ".")).write_text(f"{content}\n")

    proc = tmp_path / "cgroup"
    group("slice", memory__max=1000, memory__current=300, memory__stat="anon 200\ninactive_file 50")
    group("slice/mine", memory__max="max", memory__current=300)
    group("memory/old", memory__limit_in_bytes=500, memory__usage_in_bytes=450, memory__stat="total_inactive_file 25")
    proc.write_text("0::/slice/mine\n")
    assert _left_in_control_groups(proc, tmp_path) == [750]
    proc.write_text("7:cpu,cpuacct:/x\n4:memory:/old\n")
    assert _left_in_control_groups(proc, tmp_path) == [75]
    proc.write_text("0::/not/mounted/here\n")
    assert _left_in_control_groups(proc, tmp_path) == []
    assert _left_in_control_groups(tmp_path / "none", tmp_path) == []

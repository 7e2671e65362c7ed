"""The clock and the peak of memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from batchscope.training.memory import is_out_of_memory
from batchscope.training.meters import MemoryPeak, Stopwatch

CPU = torch.device("cpu")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("batchscope.training.meters.time.perf_counter", lambda: self.now)


def test_only_the_time_between_start_and_stop_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Clock(monkeypatch), Stopwatch(CPU)
    watch.stop()  # which never began
    assert watch.seconds == 0
    for step in (1.5, 2.0):
        clock.now += 10  # off the clock
        watch.start()
        clock.now += step
        watch.stop()
    clock.now += 10
    watch.stop()  # twice is once
    assert watch.seconds == 3.5


def test_a_resumed_clock_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Clock(monkeypatch), Stopwatch(CPU, 40.0)
    watch.start()
    clock.now += 2
    watch.stop()
    assert watch.seconds == 42.0


@pytest.mark.parametrize("command", ["start", "stop"])
def test_a_gpu_is_waited_for_before_the_clock_is_read(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    clock, watch = Clock(monkeypatch), Stopwatch(torch.device("cuda"))

    def wait(device: torch.device) -> None:
        clock.now += 5.0

    monkeypatch.setattr("torch.cuda.synchronize", wait)
    watch.start()
    clock.now += 1.0
    watch.stop()
    assert watch.seconds == 6.0  # the waiting at the stop is work; that at the start was somebody else's


def peak_of(megabytes: int) -> int:
    peak = MemoryPeak(CPU)
    held = torch.ones(megabytes << 18)  # four bytes each, every page touched
    del held
    found = peak.peak_bytes()
    assert found is not None
    return found


def test_the_peak_is_that_of_memory_already_given_back() -> None:
    if MemoryPeak(CPU).peak_bytes() is None:
        assert sys.platform != "linux" or not can_reset()
        return
    large, small = peak_of(200), peak_of(20)
    assert 195 << 20 < large < 300 << 20
    assert small < 100 << 20  # the mark was set back, so the large one before does not count


def can_reset() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def test_no_peak_is_said_where_it_cannot_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: object, **options: object) -> int:
        raise PermissionError(13, "not permitted")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert MemoryPeak(CPU).peak_bytes() is None
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert MemoryPeak(CPU).peak_bytes() is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: 12"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_out_of_memory_is_recognised_however_it_is_said(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x6 and 5x3)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_a_real_allocation_that_fails_is_recognised() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)

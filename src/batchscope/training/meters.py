"""The training clock and the peak of memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from pathlib import Path

import torch

from batchscope.training.compiling import compile_seconds


class Stopwatch:
    """Seconds of training, with everything else off the clock.

    A CUDA device is waited for at every start and stop, so that no work slips across. Compiling a model is off it too.

    Args:
        device: The device that computes.
        seconds: What was on the clock before, when a run is resumed.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self._began: float | None = None
        self._compiled = 0.0
        self.seconds = seconds

    def start(self) -> None:
        """Let the clock run."""
        self._wait()
        self._compiled = compile_seconds()
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Hold the clock."""
        if self._began is None:
            return
        self._wait()
        self.seconds += time.perf_counter() - self._began - (compile_seconds() - self._compiled)
        self._began = None

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class MemoryPeak:
    """Peak memory since it was made.

    On CUDA what the allocator held at most. On Linux the growth of this process's resident memory over its level at
    the start, after free memory was given back to the system: the kernel's own high-water mark, reset first. Elsewhere
    nothing.

    Args:
        device: The device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._level: int | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            self._level = _reset_high_water_mark()

    def peak_bytes(self) -> int | None:
        """The peak so far, in bytes; None where it cannot be read."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if self._level is None:
            return None
        peak = status_bytes("VmHWM")
        return None if peak is None else max(0, peak - self._level)


def _reset_high_water_mark() -> int | None:
    trim_heap()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not permitted in some containers
        return None
    return status_bytes("VmRSS")


def trim_heap() -> None:
    """Hand free heap back to the system, where the C library is glibc."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def status_bytes(field: str) -> int | None:
    """A field of this process's status on Linux, in bytes; None where it cannot be read."""
    return field_bytes(Path("/proc/self/status"), field)


def field_bytes(path: Path, field: str) -> int | None:
    """A field given in kB in one of the kernel's files of names and values, in bytes; None where it cannot be read."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)

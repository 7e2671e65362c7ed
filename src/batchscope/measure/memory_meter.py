"""How much memory work takes at most, how much there is, and a real limit to run under."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from batchscope.records.memory import LimitSource
from batchscope.training.meters import field_bytes, status_bytes, trim_heap

# A high-water mark that stands this far above the present use could not be reset, and says nothing.
STALE_BYTES = 8 << 20


class ResidentPeak:
    """Peak growth of this process's own memory since this was made.

    On Linux of anonymous memory: what is allocated, without the pages of libraries that are read in when their code
    first runs, which a fork doesn't inherit and the system can drop. The kernel keeps a high-water mark of the whole
    only; the pages of files still resident at the end are taken off it. Free heap is handed back first, since growth
    into it would not show.

    Elsewhere on Unix the growth of the process's maximum resident size, which shows a peak only where it exceeds all
    before. On Windows nothing.
    """

    def __init__(self) -> None:
        trim_heap()
        self._level: int | None = None
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # not permitted in some containers
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            mark, resident = status_bytes("VmHWM"), status_bytes("VmRSS")
            if mark is not None and resident is not None and mark - resident < STALE_BYTES:
                self._level = resident - _file_bytes()
        else:
            self._level = _maximum_resident()

    def peak_bytes(self) -> int | None:
        """The growth so far, in bytes, at least 0; None where it cannot be read."""
        if self._level is None:
            return None
        if sys.platform == "linux":
            mark = status_bytes("VmHWM")
            return None if mark is None else max(0, mark - _file_bytes() - self._level)
        now = _maximum_resident()
        return None if now is None else max(0, now - self._level)


class CudaPeak:
    """Peak growth of what torch's CUDA allocator holds since this was made; cached blocks are handed back first.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        self._allocated = torch.cuda.memory_allocated(device)
        self._reserved = torch.cuda.memory_reserved(device)
        self._retries = self._retries_so_far()

    def peak_bytes(self) -> int:
        """The growth of allocated tensors, in bytes."""
        return max(0, torch.cuda.max_memory_allocated(self._device) - self._allocated)

    def reserved_bytes(self) -> int:
        """The growth of the memory taken from the device, cached blocks included: never less than what is allocated."""
        return max(0, torch.cuda.max_memory_reserved(self._device) - self._reserved)

    def thrashed(self) -> bool:
        """Whether an allocation only succeeded after cached blocks were given up: each costs a wait for the device."""
        return self._retries_so_far() > self._retries

    def _retries_so_far(self) -> int:
        return int(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))


def available_memory(device: torch.device) -> tuple[int | None, LimitSource]:
    """Memory that work may take beyond what this process holds now, and what sets that limit.

    On CUDA what is free on the device, torch's own unused cache counted as free. On Linux the least of: what is free
    without swapping; what control groups (version 1 or 2) still allow, from this process's own to the root, their
    droppable file cache counted as free; and the process's own limits RLIMIT_DATA and RLIMIT_AS.

    Args:
        device: Where the work is done.

    Returns:
        Bytes, None where that is not known, and the source.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached, "CUDA device"
    if device.type != "cpu" or sys.platform != "linux":
        return None, "unknown"
    known: list[tuple[int, LimitSource]] = []
    if (free_bytes := field_bytes(Path("/proc/meminfo"), "MemAvailable")) is not None:
        known.append((free_bytes, "free memory"))
    known += [(left, "control group") for left in _left_in_control_groups()]
    known += [(left, "process limit") for left in _left_in_process()]
    return min(known) if known else (None, "unknown")


@contextlib.contextmanager
def limited_data(limit_bytes: int | None) -> Iterator[None]:
    """Let this process allocate so much more inside the block and no more, by RLIMIT_DATA, on Linux.

    An allocation past it fails at once, as one on a full machine would, and the kernel's killer of processes is never
    called. A limit that is in force already is kept where it is lower.

    Args:
        limit_bytes: Beyond what is held now; None: no limit.

    Yields:
        Nothing.
    """
    held = status_bytes("VmData") if sys.platform == "linux" else None
    if limit_bytes is None or held is None:
        yield
        return
    import resource

    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    in_force = [limit for limit in (before, most) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([held + limit_bytes, *in_force]), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def _file_bytes() -> int:
    return (status_bytes("RssFile") or 0) + (status_bytes("RssShmem") or 0)


def _maximum_resident() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _left_in_process() -> Iterator[int]:
    import resource

    for kind, field in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        limit, held = resource.getrlimit(kind)[0], status_bytes(field)
        if limit != resource.RLIM_INFINITY and held is not None:
            yield max(0, limit - held)


def _left_in_control_groups(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Limit less use of every control group above this process that limits memory."""
    try:
        lines = proc.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        limit_file, use_file = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        # Inside a container the path may name a place that is not mounted: then its root is what counts.
        place = base / path.lstrip("/")
        for folder in {place, *(parent for parent in place.parents if parent == base or base in parent.parents), base}:
            with contextlib.suppress(OSError, ValueError):  # "max": no limit here
                limit = int((folder / limit_file).read_text(encoding="ascii"))
                used = int((folder / use_file).read_text(encoding="ascii"))
                left.append(max(0, limit - used + _droppable_bytes(folder / "memory.stat")))
    return left


def _droppable_bytes(stat: Path) -> int:
    try:
        fields = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return 0
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))

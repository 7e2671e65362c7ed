"""The C library's heap: kept between updates, where speed counts, and out of the way, where memory is measured."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

from batchscope.training.meters import trim_heap

# The largest and the smallest free block that is looked for.
_LARGEST_BLOCK, _SMALLEST_BLOCK = 1 << 36, 16 << 10
# Options of glibc's mallopt(3), and what its own adjustment of them arrives at where large blocks come and go.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}
_KEEPING = {_TRIM_THRESHOLD: 1 << 30, _MMAP_THRESHOLD: 1 << 30}


@contextlib.contextmanager
def kept_heap() -> Iterator[None]:
    """Let glibc keep what is freed inside the block, up to a gigabyte at the top of the heap.

    A traced step frees all of its intermediates, and glibc hands memory beyond 64 MB at the top of the heap back to the
    system each time, to take it again page by page at the next step: 40% of the time of a convolutional network at
    batch size 512. Afterwards the heap is trimmed. Nothing is done where the C library is another.

    Examples:
        >>> with kept_heap():
        ...     pass
    """
    if not _set(_KEEPING):
        yield
        return
    try:
        yield
    finally:
        _set(_USUAL)
        trim_heap()


def occupy_free_heap() -> None:
    """Leave the heap of a process that is about to be measured, and then to end, as if nothing had run in it before.

    Blocks that were freed before would be used again: growth into them is not limited by RLIMIT_DATA, and a tensor that
    the system would map by itself lands there and is not handed back when freed, so that peaks depend on what ran
    before. All of them are taken, never to be freed, with the limit down at what is held, so that the heap cannot
    grow meanwhile; untouched, they take no memory once :func:`batchscope.training.meters.trim_heap` has been called.
    The limits from which on blocks are mapped and handed back are those that glibc comes to by itself.

    Examples:
        >>> from batchscope.measure.child import can_fork, in_child
        >>> in_child(lambda: occupy_free_heap()).ending if can_fork() else "done"
        'done'
    """
    if not _set(_USUAL):
        return
    import resource

    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1, most))  # 0 would be no limit to the kernel
    try:
        size = _LARGEST_BLOCK
        while size >= _SMALLEST_BLOCK:
            if libc.malloc(size) is None:
                size //= 2
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def _set(options: dict[int, int]) -> bool:
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL(None)
        return all(library.mallopt(option, value) for option, value in options.items())
    except (OSError, AttributeError):  # another C library than glibc
        return False

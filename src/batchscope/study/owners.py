"""Whether the process that claimed trials in a store is still at work."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

# A process on another machine that has not been heard of for so long is taken to be gone.
SILENCE_SECONDS = 60.0


def process_of(owner: str) -> tuple[str, int] | None:
    """Host and process number in an owner's name, ``host:pid:anything``; None where it is another kind of name.

    Examples:
        >>> process_of("atlas:4711:9f3c"), process_of("somebody")
        (('atlas', 4711), None)
    """
    host, _, rest = owner.partition(":")
    pid, _, _ = rest.partition(":")
    return (host, int(pid)) if host and pid.isdecimal() else None


def started_at(owner: str) -> int | None:
    """When an owner's process on this machine started, in the kernel's ticks; None where that cannot be read.

    With it a process is told from a later one that was given the same number.
    """
    process = process_of(owner)
    if process is None or process[0] != socket.gethostname():
        return None
    found = _state_and_start(process[1])
    return None if found is None else found[1]


def is_alive(owner: str, started: int | None, silence_seconds: float) -> bool:
    """Whether an owner's process runs; on another machine, whether it was heard of within a minute.

    Args:
        owner: Its name.
        started: What :func:`started_at` said of it when it began; None: not known.
        silence_seconds: Time since it was heard of.

    Returns:
        Whether what it claimed is to be left to it.

    Examples:
        >>> me = f"{socket.gethostname()}:{os.getpid()}"
        >>> is_alive(me, started_at(me), 3600.0), is_alive("elsewhere:1", None, 3600.0)
        (True, False)
    """
    process = process_of(owner)
    if process is None or process[0] != socket.gethostname():
        return silence_seconds <= SILENCE_SECONDS
    pid = process[1]
    found = _state_and_start(pid)
    if found is not None:
        state, start = found
        return state not in "ZX" and started in (None, start)
    with contextlib.suppress(PermissionError):  # somebody else's, and there
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """A process's state and starting time as Linux tells them; None where there is none, or no such kernel."""
    if sys.platform != "linux":
        return None
    try:
        # The name in parentheses may hold anything; what follows it is in fixed places.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None

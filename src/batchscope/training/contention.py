"""How much of the processor other programs take, read from the system's counters.

On Linux the kernel says what all programs together took of the cores that this process may use (``/proc/stat``); what
this process and its children did not take, others did. Elsewhere contention is None: unknown.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from batchscope.fit.contention import share_taken
from batchscope.provenance import available_cores

# The kernel counts in hundredths of a second for each core: over half a second that is 2% a core.
WINDOW_SECONDS = 0.5
STAT = Path("/proc/stat")


class Moment(NamedTuple):
    """What the clocks say at one moment.

    Attributes:
        wall: Seconds of the wall clock.
        own: Processor seconds of this process, all threads, and of its children.
        machine: Processor seconds of all programs on the cores that this process may use; None where unknown.
    """

    wall: float
    own: float
    machine: float | None


Clocks = Callable[[], Moment]


def now() -> Moment:
    """This moment, by the system's clocks."""
    times = os.times()
    own = time.process_time() + times.children_user + times.children_system
    return Moment(time.perf_counter(), own + _live_children_seconds(), _machine_seconds())


class Contention:
    """Watches how much of the processor other programs take.

    Args:
        clocks: Tells the moment.
        cores: Cores that this process may use.

    Examples:
        >>> moments = iter([Moment(0.0, 0.0, 0.0), Moment(1.0, 1.2, 2.0)])
        >>> watch = Contention(lambda: next(moments), cores=2)
        >>> round(watch.others() or 0.0, 6)
        0.8
    """

    def __init__(self, clocks: Clocks = now, *, cores: int | None = None) -> None:
        self.clocks = clocks
        self.cores = available_cores() if cores is None else cores
        self.before = self.clocks()

    def others(self, *, at_least: float = 0.0) -> float | None:
        """Cores that others kept busy on the average since the last answer.

        Args:
            at_least: Seconds that must have passed; before, there is no answer and the time goes on.

        Returns:
            A number from 0 to ``cores``; None where unknown.
        """
        after, before = self.clocks(), self.before
        passed = after.wall - before.wall
        if passed <= 0 or passed < at_least:
            return None
        self.before = after
        if after.machine is None or before.machine is None:
            return None
        return min(float(self.cores), max(0.0, (after.machine - before.machine - (after.own - before.own)) / passed))

    def share(self, threads: int) -> float | None:
        """Share of the processor time wanted that others took since the last answer.

        Args:
            threads: Threads that this process computed with.

        Returns:
            The share, from 0 to 1; None where unknown, or where less than half a second has passed.
        """
        others = self.others(at_least=WINDOW_SECONDS)
        return None if others is None else share_taken(others, threads=threads, cores=self.cores)


def _machine_seconds() -> float | None:
    """Processor seconds of all programs on the cores that this process may use; None where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    try:
        lines = STAT.read_text(encoding="ascii", errors="replace").splitlines()
        # user, nice, system, interrupts (two), and what the hypervisor gave to others; guests are among the users
        ticks = [
            sum(int(row[i]) for i in (1, 2, 3, 6, 7, 8)) for row in map(str.split, lines) if row and row[0] in allowed
        ]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if len(ticks) == len(allowed) else None
    except (OSError, ValueError, IndexError):
        return None


def _live_children_seconds() -> float:
    """Processor seconds of children that run, such as those that read data: they are no strangers."""
    total = 0.0
    for child in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
            total += sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            continue
    return total

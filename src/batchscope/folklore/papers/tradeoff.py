"""Updates to a target against the batch size, at the best learning rate of each."""

from __future__ import annotations

import math

from batchscope.folklore.papers.bench import Bench
from batchscope.folklore.runner import StoppedError
from batchscope.records import Interval, Sweep
from batchscope.records.claims import Picture, Series
from batchscope.study import sweep
from batchscope.workload import load_workload

SIZES, TARGET = (4, 8, 16, 32, 64, 128, 256, 512, 1024), 0.95


def swept(bench: Bench) -> Sweep:
    """Sweep digits over nine batch sizes, and search for the learning rate of each.

    Raises:
        StoppedError: The user asked to stop.
    """
    bench.notify("updates to a target at nine batch sizes")
    found = sweep(load_workload("digits"), SIZES, target=TARGET, seeds=bench.seeds, device=bench.device)
    if found.interrupted or bench.should_stop():
        raise StoppedError("a sweep must finish", got="a request to stop")
    return found


def updates_of(found: Sweep) -> list[tuple[int, Interval]]:
    """Updates to the target at each batch size that reached it."""
    lines = []
    for line in found.best:
        examples = line.examples_to_target
        if examples.value is not None:
            ends = [
                None if end is None else end / line.batch_size for end in (examples.value, examples.low, examples.high)
            ]
            lines.append((line.batch_size, Interval(ends[0], ends[1], ends[2], examples.level)))
    return lines


def slope_of(lines: list[tuple[int, Interval]], first: int, last: int) -> float | None:
    """Slope of log updates over log B between two points."""
    (small, many), (large, few) = lines[first], lines[last]
    if not many.value or not few.value:
        return None
    return math.log(few.value / many.value) / math.log(large / small)


def picture_of(lines: list[tuple[int, Interval]]) -> Picture:
    """Chart of updates against the batch size, beside perfect scaling."""
    across = tuple(float(size) for size, _ in lines)
    first_size, first = lines[0]
    perfect = tuple(Interval((first.value or 0.0) * first_size / size, None, None) for size, _ in lines)
    return Picture(
        "batch size",
        f"updates to {TARGET:g}",
        (Series("here", across, tuple(value for _, value in lines)), Series("perfect scaling", across, perfect)),
        log_upward=True,
    )

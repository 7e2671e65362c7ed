"""What advice is asked for, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchscope.errors import ArgumentError
from batchscope.records import Goal, StepTimes
from batchscope.workload.workload import Workload

# Batches beyond this many times the largest one that was timed save nothing: there throughput had stopped growing.
BEYOND_TIMED = 4
# … and so many of them must fit into the data.
LEAST_BATCHES = 4
SMALLEST = 4


def checked_goal(target: float | None, examples: int | None, seconds: float | None) -> Goal:
    """The one goal that was given.

    Raises:
        ArgumentError: None or several were, or one that makes no sense.

    Examples:
        >>> checked_goal(0.9, None, None)
        Goal(kind='target', value=0.9)
    """
    given = [
        (name, value)
        for name, value in (("target", target), ("examples", examples), ("seconds", seconds))
        if value is not None
    ]
    if len(given) != 1:
        raise ArgumentError(
            "advice needs exactly one goal: target, examples or seconds",
            got=" and ".join(name for name, _ in given) or "none",
            mend="say which score is to be reached, or how many examples or seconds there are",
        )
    name, value = given[0]
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ArgumentError(f"{name} must be a finite number", got=value)
    if name == "target":
        return Goal("target", float(value))
    if value <= 0 or (name == "examples" and int(value) != value):
        kind = "a whole number of at least 1" if name == "examples" else "above 0"
        raise ArgumentError(f"{name} must be {kind}", got=value)
    return Goal("examples" if name == "examples" else "seconds", float(value))


def checked_sizes(batch_sizes: Sequence[int] | None, workload: Workload) -> tuple[int, ...] | None:
    """The batch sizes that may be advised, ascending; None where none were given.

    Raises:
        ArgumentError: One that makes no sense, or that is larger than the data.
    """
    if batch_sizes is None:
        return None
    sizes = sorted(set(batch_sizes))
    for size in sizes:
        if type(size) is not int or not 1 <= size <= workload.training_examples:
            raise ArgumentError(
                "a batch size must be a whole number from 1 to the number of training examples",
                got=size,
                mend=f"there are {workload.training_examples:,}",
            )
    if not sizes:
        raise ArgumentError("there must be a batch size to advise", got="none", mend="leave batch_sizes out")
    return tuple(sizes)


def default_sizes(workload: Workload, measured: StepTimes, least: int) -> tuple[int, ...]:
    """Powers of two that may be worth having.

    Args:
        workload: What is trained.
        measured: Times of its updates, as far as throughput grows.
        least: The smallest batch that the model takes.

    Returns:
        The sizes, ascending; at least one.
    """
    most = min(BEYOND_TIMED * measured.points[-1].batch_size, workload.training_examples // LEAST_BATCHES)
    sizes = [1 << k for k in range(31) if max(least, SMALLEST) <= 1 << k <= most]
    if len(sizes) < 3:
        sizes = [1 << k for k in range(31) if least <= 1 << k <= max(most, workload.training_examples)]
    return tuple(sizes or [least])

"""What advice is asked for, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from batchscope.errors import ArgumentError
from batchscope.progress import Reporter
from batchscope.records import Goal
from batchscope.search.costs import Power
from batchscope.workload.workload import Workload

# So many batches must fit into the data.
LEAST_BATCHES = 4
SMALLEST = 4
# Seconds; a shorter search sees nothing.
LEAST_BUDGET = 1.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a search is asked, as a person gave it: the arguments of :func:`batchscope.advise`.

    Attributes:
        trains_winner: Whether the winner is trained on afterwards.
    """

    workload: Workload
    target: float | None
    examples: int | None
    seconds: float | None
    budget_seconds: float | None
    max_memory_bytes: int | None
    batch_sizes: Sequence[int] | None
    seed: int
    device: str | None
    workers: int | None
    progress: bool | Reporter
    devices: int = 1
    network: tuple[float, float] | None = None
    price_per_hour: float | None = None
    power_watts: Power | None = None
    time_share: float | None = None
    trains_winner: bool = False


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


def default_sizes(workload: Workload, least: int) -> tuple[int, ...]:
    """Batch sizes that may be advised: powers of two, and the one used today.

    Args:
        workload: What is trained.
        least: The smallest batch that the model takes.

    Returns:
        The sizes, ascending; at least one.
    """
    most = workload.training_examples // LEAST_BATCHES
    sizes = {1 << k for k in range(31) if max(least, SMALLEST) <= 1 << k <= most}
    if len(sizes) < 3:
        sizes = {1 << k for k in range(31) if least <= 1 << k <= max(most, workload.training_examples)}
    if least <= workload.batch_size <= workload.training_examples:
        sizes.add(workload.batch_size)
    return tuple(sorted(sizes or {least}))


def checked_budget(budget_seconds: float | None) -> float | None:
    """The budget, if it is at least a second, or None.

    Raises:
        ArgumentError: It is neither.
    """
    if budget_seconds is None:
        return None
    if not isinstance(budget_seconds, (int, float)) or not LEAST_BUDGET <= budget_seconds < math.inf:
        raise ArgumentError(f"a budget must be at least {LEAST_BUDGET:g} second", got=budget_seconds)
    return float(budget_seconds)


def checked_devices(devices: int, network: tuple[float, float] | None) -> int:
    """The number of devices, if it makes sense and the network between several is known.

    Raises:
        ArgumentError: It does not, or it is not.
    """
    if type(devices) is not int or devices < 1:
        raise ArgumentError("devices must be a whole number of at least 1", got=devices)
    if devices > 1 and network is None:
        raise ArgumentError(
            "with several devices the network between them must be known",
            got=f"devices={devices} without network",
            mend="give network=(bytes_per_second, latency_seconds)",
        )
    return devices

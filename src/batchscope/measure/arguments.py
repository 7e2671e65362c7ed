"""What measurements are given, checked: whole numbers, and the examples that they are made on."""

from __future__ import annotations

import torch

from batchscope.errors import ArgumentError
from batchscope.workload.workload import Workload


def checked_whole(name: str, value: object, least: int = 1) -> int:
    """The number, if it is whole and large enough.

    Args:
        name: What it is called.
        value: What was given.
        least: The least that makes sense.

    Raises:
        ArgumentError: It is neither.

    Examples:
        >>> checked_whole("repeats", 3)
        3
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}", got=value)
    return value


def drawn_examples(workload: Workload, count: int, seed: int) -> list[int]:
    """Training examples drawn without replacement; all of them, in random order, where there are no more.

    Args:
        workload: Whose training set.
        count: How many.
        seed: Of the draw.

    Returns:
        Their indices.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(workload.training_examples, generator=generator)[:count].tolist()

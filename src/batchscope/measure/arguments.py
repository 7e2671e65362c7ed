"""What measurements are given, checked: whole numbers, weights, and the examples that they are made on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from batchscope.errors import ArgumentError, WorkloadError, first_line
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


def loaded(model: nn.Module, state: Mapping[str, Any] | None) -> nn.Module:
    """A fresh model with given weights.

    Args:
        model: What the workload made.
        state: A state dict; None: the model keeps its own.

    Returns:
        The same model.

    Raises:
        WorkloadError: The state is another model's.

    Examples:
        >>> float(loaded(nn.Linear(1, 1, bias=False), {"weight": nn.init.ones_(nn.Linear(1, 1).weight)}).weight)
        1.0
    """
    if state is not None:
        try:
            model.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise WorkloadError("state must be a state dict of this workload's model", got=first_line(error)) from error
    return model

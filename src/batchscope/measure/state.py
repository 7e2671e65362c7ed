"""The weights that a measurement is made at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from batchscope.errors import WorkloadError, first_line


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

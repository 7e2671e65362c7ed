"""Where a run goes on from: weights and optimiser state, kept apart from the run that made them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from batchscope.errors import WorkloadError, first_line


@dataclass(frozen=True, eq=False)
class Start:
    """A model's weights and buffers, and an optimiser's state, to go on from in place of fresh ones.

    The optimiser's settings (learning rate, betas …) are no part of it: they are those of the run that goes on.

    Attributes:
        model: A state dict.
        optimizer: The optimiser's state by the parameter's position.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> start = Start.of(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        >>> _ = nn.init.zeros_(model.weight)
        >>> bool((start.model["weight"] == 0).any())
        False
    """

    model: dict[str, Any]
    optimizer: dict[int, dict[str, Any]]

    @classmethod
    def of(cls, model: nn.Module, optimizer: torch.optim.Optimizer) -> Start:
        """Copy where a run stands.

        Args:
            model: Its model.
            optimizer: Its optimiser.

        Returns:
            The copy, which shares nothing with either.
        """
        states = {
            i: copy.deepcopy(optimizer.state[parameter])
            for i, parameter in enumerate(_parameters(optimizer))
            if parameter in optimizer.state
        }
        return cls(copy.deepcopy(model.state_dict()), states)

    def load_into(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put a fresh model and its optimiser where the copied run stood.

        Set as it is rather than with ``load_state_dict``, which shares what it loads and casts it to the type of the
        parameter.

        Args:
            model: Its weights and buffers are overwritten.
            optimizer: Its state is replaced; its settings stay.

        Raises:
            WorkloadError: The weights are another model's.
        """
        try:
            model.load_state_dict(self.model)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise WorkloadError(
                "weights to begin with must be a state dict of this workload's model", got=first_line(error)
            ) from error
        parameters = _parameters(optimizer)
        for i, state in self.optimizer.items():
            optimizer.state[parameters[i]] = copy.deepcopy(state)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]

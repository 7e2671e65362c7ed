"""What an optimiser trains in a loop that is not ours, and whether it can be watched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from batchscope.errors import ArgumentError, WorkloadError


@dataclass(frozen=True)
class Trained:
    """A parameter, its name and the optimiser's group that holds it."""

    name: str
    parameter: nn.Parameter
    group: dict[str, Any]


def trained_by(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[Trained]:
    """The parameters that an optimiser trains, by the model's names for them.

    Args:
        optimizer: The optimiser.
        model: What the loop calls.

    Returns:
        One entry for each parameter, in the optimiser's order.

    Raises:
        ArgumentError: A parameter that is not the model's, or none that requires a gradient.
        WorkloadError: An optimiser or parameters whose gradients cannot be measured in any loop.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise WorkloadError("an update must follow from one gradient", got="LBFGS", mend="use SGD, Adam or their like")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ArgumentError(
                    "the optimiser must train parameters of the model",
                    got="one that the model does not have",
                    mend="give the model that the loop calls and its own optimiser",
                )
            if hasattr(parameter, "full_tensor"):
                raise WorkloadError(
                    "parameters must be whole on every rank", got="sharded ones", mend="use DistributedDataParallel"
                )
            found.append(Trained(names[id(parameter)], parameter, group))
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise WorkloadError(
                "gradients must be dense", got=f"sparse ones of {name}", mend="make it with sparse=False"
            )
    if not any(t.parameter.requires_grad for t in found):
        raise ArgumentError("the optimiser must train at least one parameter that requires a gradient", got="none")
    return found

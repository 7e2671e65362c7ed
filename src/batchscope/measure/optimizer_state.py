"""What an optimiser trains, and what it multiplies each coordinate of the gradient by, read from its own state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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


def preconditioner(optimizer: torch.optim.Optimizer, parameter: Tensor, group: dict[str, Any]) -> Tensor | None:
    """The factor 1/(√v̂ + ε) of each coordinate, by what the optimiser keeps for this parameter.

    Adam, AdamW, NAdam and RAdam keep the mean square as ``exp_avg_sq`` (with AMSGrad its maximum), to be corrected for
    its start at zero; RMSprop keeps ``square_avg``, Adagrad ``sum``.

    Args:
        optimizer: The optimiser.
        parameter: One of its parameters.
        group: The parameter group that holds it.

    Returns:
        A tensor of the parameter's shape; None for an optimiser that scales all coordinates alike, that keeps its
        state in another form, or that has taken no step yet.

    Examples:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> adam = torch.optim.Adam([p])
        >>> p.grad = torch.tensor([1.0, 10.0])
        >>> adam.step()
        >>> preconditioner(adam, p, adam.param_groups[0])
        tensor([1.0000, 0.1000])
    """
    state = optimizer.state.get(parameter)
    if not state or float(state.get("step", 1)) == 0:
        return None
    correction = 1.0
    if "exp_avg_sq" in state and "betas" in group and "step" in state:
        squares = state["max_exp_avg_sq"] if "max_exp_avg_sq" in state else state["exp_avg_sq"]
        correction = 1 - group["betas"][1] ** float(state["step"])
    elif "square_avg" in state and "acc_delta" not in state:  # and not Adadelta
        squares = state["square_avg"]
        if group.get("centered"):
            squares = (squares - state["grad_avg"].square()).clamp_min(0)
    elif "sum" in state:
        squares = state["sum"]
    else:
        return None
    if not isinstance(squares, Tensor) or squares.shape != parameter.shape or correction <= 0:
        return None
    root = (squares / correction).sqrt().add_(group.get("eps", 1e-8))
    return root.reciprocal_()


def preconditioner_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor] | None:
    """What an optimiser multiplies each coordinate of the gradient by, for :func:`gradient_noise`.

    For Adam, AdamW, NAdam and RAdam 1/(√v̂ + ε), v̂ the mean square of the gradient, corrected for its start at zero
    (Kingma and Ba 2015, arXiv 1412.6980); for RMSprop 1/(√v + ε); for Adagrad 1/(√Σg² + ε).

    Args:
        optimizer: The model's optimiser, after at least one step.
        model: The model.

    Returns:
        A factor for every coordinate that is trained, by parameter name: 0 for parameters that the optimiser does not
        hold or has had no gradient for. None for an optimiser that scales all coordinates alike, such as SGD, and
        before the first step.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> adam = torch.optim.Adam(model.parameters())
        >>> preconditioner_of(adam, model) is None
        True
        >>> model.weight.grad = torch.tensor([[1.0, 10.0]])
        >>> adam.step()
        >>> preconditioner_of(adam, model)
        {'weight': tensor([[1.0000, 0.1000]])}
    """
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    factors = {
        name: preconditioner(optimizer, parameter, groups[id(parameter)]) if id(parameter) in groups else None
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    if all(factor is None for factor in factors.values()):
        return None
    parameters = dict(model.named_parameters())
    return {name: torch.zeros_like(parameters[name]) if f is None else f.detach() for name, f in factors.items()}

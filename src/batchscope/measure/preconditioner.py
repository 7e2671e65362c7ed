"""What an adaptive optimiser multiplies each coordinate of the gradient by, read from its own state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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

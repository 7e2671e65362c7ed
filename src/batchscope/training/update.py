"""The model and the optimiser that a run begins with, and what follows its gradients: unscaling and clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from batchscope.training.compiling import compile_in_place
from batchscope.workload.options import check_precision
from batchscope.workload.workload import Workload

# What torch.nn.utils.clip_grad_norm_ adds to the norm, so that a gradient of zero stays one.
NORM_OFFSET = 1e-6


def fresh(workload: Workload, learning_rate: float, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of a workload and its optimiser, as training begins with them.

    torch compiles a model for the size of the first batch, and once more for batches of any size when another comes.

    Args:
        workload: What is trained.
        learning_rate: The optimiser's.
        device: Where.

    Returns:
        Both.

    Raises:
        WorkloadError: A precision that the device does not have.
    """
    check_precision(workload, device)
    model = workload.model().to(device)
    if workload.compile:
        compile_in_place(model)
    return model, workload.optimizer_for(model, learning_rate)


def scaler_for(workload: Workload, device: torch.device) -> GradScaler | None:
    """The loss scaler of a run in half precision; None for any other.

    Args:
        workload: What is trained.
        device: Where.

    Returns:
        A scaler with torch's own settings.
    """
    if workload.precision != "fp16":
        return None
    scaler = GradScaler(device.type)
    scaler.scale(torch.zeros((), device=device))  # its scale is made at first use: now, so that it can be read
    return scaler


def clip(workload: Workload, parameters: Iterable[Tensor]) -> None:
    """Clip the gradient of one model in place, as its workload says.

    Args:
        workload: Its ``clip_norm`` and ``clip_value``.
        parameters: The model's parameters, in the model's order, on which the rounding of the norm depends.
    """
    if workload.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, workload.clip_norm)
    elif workload.clip_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, workload.clip_value)


def clip_rows(workload: Workload, gradients: Tensor) -> None:
    """Clip the gradients of the replicas of a stack in place, each by itself.

    Args:
        workload: As for :func:`clip`.
        gradients: A matrix with the gradient of one replica in each row.

    Examples:
        >>> from dataclasses import replace
        >>> from batchscope.workload.digits import digits
        >>> gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> clip_rows(replace(digits(), clip_norm=1.0), gradients)
        >>> gradients
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    if workload.clip_norm is not None:
        norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
        gradients.mul_((workload.clip_norm / (norms + NORM_OFFSET)).clamp_(max=1.0))
    elif workload.clip_value is not None:
        gradients.clamp_(-workload.clip_value, workload.clip_value)

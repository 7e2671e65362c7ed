"""Options of a workload's training loop: clipping, precision, compilation, warm-up and shape."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from batchscope.errors import WorkloadError, first_line

if TYPE_CHECKING:
    from batchscope.workload.workload import Workload

Precision = Literal["bf16", "fp16"]
LoopShape = Literal["constant", "linear", "cosine"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# The options and their defaults.
DEFAULTS: dict[str, Any] = {
    "clip_norm": None,
    "clip_value": None,
    "precision": None,
    "compile": False,
    "warmup_examples": 0,
    "shape": "constant",
}
# Names of the first parameter of an optimiser factory, and the argument that they select.
FORMS = {"model": "model", "named_parameters": "named_parameters", "named_params": "named_parameters"}


def check_options(workload: Workload) -> None:
    """Check clipping, precision, compilation, warm-up and shape.

    Raises:
        WorkloadError: An invalid option.
    """
    for name in ("clip_norm", "clip_value"):
        value = getattr(workload, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value) and value > 0):
            raise WorkloadError(
                f"{name} must be a finite number above 0", got=value, mend="give 1.0, or None for no clipping"
            )
    if workload.clip_norm is not None and workload.clip_value is not None:
        raise WorkloadError(
            "gradients can be clipped by norm or by value, not both",
            got=f"clip_norm={workload.clip_norm}, clip_value={workload.clip_value}",
            mend="leave one of them out",
        )
    if workload.precision not in (None, *get_args(Precision)):
        raise WorkloadError(
            "precision must be 'bf16', 'fp16' or None",
            got=workload.precision,
            mend="leave it out to train in the precision of the weights",
        )
    if not isinstance(workload.compile, bool):
        raise WorkloadError("compile must be True or False", got=workload.compile)
    warmup = workload.warmup_examples
    if not isinstance(warmup, int) or isinstance(warmup, bool) or warmup < 0:
        raise WorkloadError(
            "warmup_examples must be a whole number of examples, at least 0",
            got=warmup,
            mend="for a warm-up in updates give updates × batch_size",
        )
    if workload.shape not in get_args(LoopShape):
        raise WorkloadError("shape must be 'constant', 'linear' or 'cosine'", got=workload.shape)


def check_precision(workload: Workload, device: torch.device) -> None:
    """Refuse a precision that torch's autocast does not support on a device.

    Raises:
        WorkloadError: An unsupported precision.
    """
    if workload.precision is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns, and computes in single precision
            with workload.autocast(device):
                problem = None if torch.is_autocast_enabled(device.type) else "no autocast of that type"
    except RuntimeError as error:
        problem = first_line(error)
    if problem is not None:
        raise WorkloadError(
            f"precision='{workload.precision}' must be supported by torch {torch.__version__} on {device.type}",
            got=problem,
            mend="use the other precision, another device, or leave precision out",
        )


def form_of(factory: Callable[..., Any]) -> str:
    """The first argument of an optimiser factory, by the name of its first parameter.

    Returns:
        "model", "named_parameters", or "parameters" for any other name.

    Examples:
        >>> form_of(lambda params, lr: None), form_of(lambda named_params, lr: None), form_of(lambda model, lr: None)
        ('parameters', 'named_parameters', 'model')
    """
    try:
        names = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # a function without a signature, as some written in C
        return "parameters"
    return FORMS.get(names[0], "parameters") if names else "parameters"

"""Factories of optimisers with the settings of an existing one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from batchscope.errors import WorkloadError


class OptimizerLike:
    """Make optimisers with the class and the settings of an existing one, at another learning rate.

    Parameter groups are kept by the positions of their parameters in ``model.parameters()``; learning rates of groups
    keep their ratios.

    Args:
        optimizer: The optimiser, or a wrapper that holds one as ``.optimizer``, as accelerate's.
        model: The model with its parameters.
        max_grad_norm: Largest norm of the gradient, applied before each update; None: no clipping.

    Attributes:
        learning_rate: The initial learning rate of the first group.

    Raises:
        WorkloadError: Not an optimiser of this model.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "lr": 0.02}]
        >>> like = OptimizerLike(torch.optim.SGD(groups, lr=0.01, momentum=0.9), model)
        >>> [(g["lr"], g["momentum"], g["weight_decay"]) for g in like(nn.Linear(2, 1).parameters(), 0.1).param_groups]
        [(0.1, 0.9, 0.1), (0.2, 0.9, 0)]
    """

    def __init__(self, optimizer: Any, model: nn.Module, *, max_grad_norm: float | None = None) -> None:
        inner = unwrapped(optimizer)
        self._kind = type(inner) if max_grad_norm is None else _clipping(type(inner), max_grad_norm)
        places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
        self._count = len(places)
        self._groups: list[tuple[list[int], float, dict[str, Any]]] = []
        rates = [_rate(group) for group in inner.param_groups]
        self.learning_rate = rates[0]
        for group, rate in zip(inner.param_groups, rates, strict=True):
            if any(id(parameter) not in places for parameter in group["params"]):
                raise WorkloadError(
                    "the optimiser must train parameters of the model",
                    got="one that the model does not have",
                    mend="give the model and the optimiser that were made for each other",
                )
            ratio = rate / rates[0] if rates[0] else 1.0
            settings = {key: group[key] for key in inner.defaults if key in group and key != "lr"}
            self._groups.append(([places[id(parameter)] for parameter in group["params"]], ratio, settings))
        accepted = inspect.signature(type(inner)).parameters
        takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
        self._defaults = {
            key: value for key, value in inner.defaults.items() if key != "lr" and (takes_all or key in accepted)
        }

    def __call__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        """Make an optimiser.

        Args:
            parameters: ``model.parameters()`` of such a model; others get the settings of the first group.
            learning_rate: Learning rate of the first group.
        """
        given = list(parameters)
        groups: list[dict[str, Any]] = []
        for places, ratio, settings in self._groups:
            mine = [given[place] for place in places] if len(given) == self._count else given
            groups.append({"params": mine, "lr": learning_rate * ratio, **settings})
            if len(given) != self._count:
                break
        kept = [group for group in groups if group["params"]]
        made: torch.optim.Optimizer = self._kind(kept, lr=learning_rate, **self._defaults)  # type: ignore[call-arg]
        return made


def _clipping(kind: type[torch.optim.Optimizer], most: float) -> type[torch.optim.Optimizer]:
    """A subclass that clips gradients before each update.

    A class of its own, since an update of a weight no longer depends on that weight's gradients alone.
    """

    class Clipping(kind):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.register_step_pre_hook(clip)

    def clip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], most)

    Clipping.__name__ = Clipping.__qualname__ = f"{kind.__name__}WithClipping"
    return Clipping


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """Return the torch optimiser inside a wrapper, or the optimiser itself.

    Raises:
        WorkloadError: There is none.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, torch.optim.Optimizer):
        raise WorkloadError("the optimiser must be a torch.optim.Optimizer", got=type(inner).__name__)
    return inner


def _rate(group: dict[str, Any]) -> float:
    """Learning-rate schedulers change ``lr`` when they are made, and keep the initial value."""
    return float(group.get("initial_lr", group["lr"]))

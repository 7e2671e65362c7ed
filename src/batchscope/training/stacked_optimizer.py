"""The person's own optimiser on a stack of replicas, each with its own learning rate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from batchscope.schedule import set_rate

# Optimisers whose update of a weight depends on that weight's own gradients alone, so that all the weights of a
# replica with the same settings may be one parameter. Of these classes themselves: a subclass may do anything.
ELEMENTWISE: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Rprop,
    torch.optim.ASGD,
)
# Those that torch has in one kernel, which goes over the weights once. (Adagrad has one for the CPU alone.)
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
# Entries of a group that are no settings.
_NAMED = ("params", "param_names")


class StackedOptimizer:
    """An optimiser for each replica, or one with a group of parameters for each.

    An elementwise optimiser becomes a single one, in which every replica and every group of its own is one flat
    parameter with the replica's own settings: as exact as separate optimisers, at a fraction of the calls. Any other
    one (layer-wise scaling, clipping by norm, a class of the person's own) stays as the person made it, one for each
    replica, on parameters of their true shapes.

    Args:
        optimizers: The person's, one for each replica.
        trained: Whether each of their parameters is trained, in their order; the others have no gradient.

    Attributes:
        is_flat: Whether it is a single one.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], trained: Sequence[bool]) -> None:
        self._optimizers = list(optimizers)
        self._groups = [optimizer.param_groups for optimizer in optimizers]
        self._trained = list(trained)
        self.is_flat = type(optimizers[0]) in ELEMENTWISE
        self._rows: list[list[nn.Parameter]] = []
        self._one: torch.optim.Optimizer | None = None
        self._rates: Tensor | None = None
        self._factor = 1.0
        self._full_rates = [[float(group["lr"]) for group in groups] for groups in self._groups]

    @property
    def is_capturable(self) -> bool:
        """Whether a step may be recorded on a CUDA device: its rates and counts lie there."""
        return self._rates is not None

    @property
    def learning_rates(self) -> list[float]:
        """The rate of each replica's first group."""
        if self._rates is not None:  # reading it would wait for the device
            return [rates[0] * self._factor for rates in self._full_rates]
        return [float(groups[0]["lr"]) for groups in self._groups]

    def segments(self) -> list[int]:
        """Trained parameters in each group."""
        counts, start = [], 0
        for group in self._optimizers[0].param_groups:
            stop = start + len(group["params"])
            counts.append(sum(self._trained[start:stop]))
            start = stop
        return counts

    def bind(self, weights: Tensor, gradients: Tensor, edges: Sequence[int]) -> None:
        """Let the flat optimiser work on these rows; later calls move it, its state kept.

        Args:
            weights: A row for each replica.
            gradients: Likewise.
            edges: Where in a row each group begins, and the end.
        """
        if not self.is_flat:
            return
        if self._one is None:
            self._one = self._merged(weights, edges)
            self._put_rates_on_the_device()
        for k, row in enumerate(self._rows):
            for parameter, (start, stop) in zip(row, itertools.pairwise(edges), strict=True):
                parameter.data = weights[k, start:stop]
                parameter.grad = gradients[k, start:stop]

    def step(self) -> None:
        """Update every replica from the gradients."""
        if self._one is not None:
            self._one.step()
        else:
            for optimizer in self._optimizers:
                optimizer.step()

    def multiply_rates(self, factor: float) -> None:
        """From now on every full rate is so many times what it was."""
        self._full_rates = [[rate * factor for rate in rates] for rates in self._full_rates]
        self.set_rate_factor(self._factor)

    def set_rate_factor(self, factor: float) -> None:
        """Set every rate to a part of the full one."""
        self._factor = factor
        if self._rates is not None:
            full = [rate for rates in self._full_rates for rate in rates]
            self._rates.copy_(torch.tensor(full, dtype=self._rates.dtype) * factor, non_blocking=True)
            return
        for groups, rates in zip(self._groups, self._full_rates, strict=True):
            for group, rate in zip(groups, rates, strict=True):
                set_rate(group, rate * factor)

    def keep(self, replicas: Sequence[int]) -> None:
        """Forget every replica but these."""
        self._optimizers = [self._optimizers[k] for k in replicas]
        self._groups = [self._groups[k] for k in replicas]
        self._full_rates = [self._full_rates[k] for k in replicas]
        if self._one is not None:
            gone = [row for k, row in enumerate(self._rows) if k not in replicas]
            for parameter in (p for row in gone for p in row):
                self._one.state.pop(parameter, None)
            self._rows = [self._rows[k] for k in replicas]
            self._one.param_groups[:] = [group for groups in self._groups for group in groups]
            self._put_rates_on_the_device()

    def _merged(self, weights: Tensor, edges: Sequence[int]) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        for k, own in enumerate(self._groups):
            row = [nn.Parameter(weights[k, start:stop]) for start, stop in itertools.pairwise(edges)]
            self._rows.append(row)
            for group, parameter in zip(own, row, strict=True):
                settings: dict[str, Any] = {
                    key: value for key, value in group.items() if key not in ("params", "param_names")
                }
                if type(self._optimizers[0]) in FUSED and _may_be_fused(settings, weights):
                    settings |= {"fused": True, "foreach": False}
                groups.append({**settings, "params": [parameter]})
        kind: Any = type(self._optimizers[0])
        one: torch.optim.Optimizer = kind(groups, lr=groups[0]["lr"])
        count = len(self._groups[0])
        self._groups = [one.param_groups[start : start + count] for start in range(0, len(groups), count)]
        return one

    def _put_rates_on_the_device(self) -> None:
        """Let the rates of a fused optimiser on CUDA be parts of one tensor, that a recorded step reads them from."""
        groups = [group for groups in self._groups for group in groups]
        device = groups[0]["params"][0].device
        if device.type != "cuda" or not all(group.get("fused") for group in groups):
            return
        self._rates = torch.tensor([float(group["lr"]) for group in groups], device=device)
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True


def _may_be_fused(settings: dict[str, Any], weights: Tensor) -> bool:
    plain = not settings.get("differentiable") and not settings.get("capturable") and settings.get("fused") is not True
    return plain and weights.is_floating_point() and not isinstance(settings["lr"], Tensor)

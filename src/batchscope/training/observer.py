"""What watches a run from inside: its gradient noise, as far as the loop needs to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from batchscope.records import Interval


class Observer(Protocol):
    """Watches a model's updates by its own hooks; :class:`batchscope.GradientNoise` is one."""

    @property
    def noise_scale(self) -> Interval:
        """The gradient noise scale of late, in examples; raises a WorkloadError where it cannot be measured."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, from which it goes on exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""

    def close(self) -> None:
        """Remove its hooks."""


MakeObserver = Callable[[nn.Module, torch.optim.Optimizer], Observer]

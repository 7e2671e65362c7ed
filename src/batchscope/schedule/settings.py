"""The settings of an optimiser in each phase of a schedule."""

from __future__ import annotations

from typing import Any

import torch

from batchscope.errors import PlanError
from batchscope.records.schedule import Coupling, Phase, Schedule
from batchscope.schedule.scaling import learning_rate_exponent, rescale, set_rate

# Settings that a phase or a scaling rule may change.
_KEYS = ("lr", "initial_lr", "momentum", "betas", "alpha", "eps")


class OptimizerSettings:
    """The first settings of an optimiser, from which those of every phase are computed.

    They do not depend on the previous phase, so that a run can be resumed in any phase.

    Args:
        optimizer: The optimiser, with its settings at the first batch size.
        batch_size: The first batch size.

    Attributes:
        full_rates: Learning rate of each group in this phase, before shape and warm-up.

    Examples:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        >>> settings = OptimizerSettings(optimizer, 64)
        >>> settings.enter(Phase(1000, 128, learning_rate_factor=0.5, momentum=0.95))
        >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]
        (0.05, 0.95)
        >>> settings.enter(Phase(2000, 128), coupling="rule")
        >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]
        (0.2, 0.9)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, batch_size: int) -> None:
        self.optimizer, self.batch_size = optimizer, batch_size
        self._first = [{key: _plain(group[key]) for key in _KEYS if key in group} for group in optimizer.param_groups]
        self.full_rates = [float(first["lr"]) for first in self._first]

    def check(self, schedule: Schedule) -> None:
        """Refuse a schedule that the optimiser does not support.

        Raises:
            PlanError: A momentum for an optimiser without one, or a scaling rule that does not exist.
        """
        if schedule.coupling == "rule":
            learning_rate_exponent(self.optimizer)
        for phase in schedule.phases:
            if phase.momentum is not None:
                self._check_momentum()

    def enter(self, phase: Phase, *, coupling: Coupling = "stated") -> None:
        """Set the optimiser's settings for a phase, but not its state.

        The learning rate is the first one times the phase's factor. A momentum is set as ``momentum`` of SGD and
        RMSprop, and as β₁ of Adam and its variants. With the coupling "rule", settings are first rescaled from the
        first batch size to that of the phase: the learning rate of SGD ∝ B, that of Adam ∝ √B, its β as β**κ, its ε as
        1/√κ.

        Args:
            phase: The phase.
            coupling: As in :class:`batchscope.records.Schedule`.

        Raises:
            PlanError: As :meth:`check`.
        """
        groups = self.optimizer.param_groups
        for group, first in zip(groups, self._first, strict=True):
            group.update({key: value for key, value in first.items() if key not in ("lr", "initial_lr")})
            set_rate(group, first["lr"])
            if "initial_lr" in first:
                group["initial_lr"] = first["initial_lr"]
        if coupling == "rule":
            rescale(self.optimizer, from_batch_size=self.batch_size, to_batch_size=phase.batch_size)
        self.full_rates = [float(group["lr"]) * phase.learning_rate_factor for group in groups]
        if phase.momentum is not None:
            self._check_momentum()
            for group in groups:
                if "betas" in group:
                    group["betas"] = (phase.momentum, *group["betas"][1:])
                else:
                    group["momentum"] = phase.momentum
        self.scale(1.0)

    def scale(self, factor: float) -> None:
        """Set each group's learning rate to that of this phase times a factor, as from :func:`rate_factor`."""
        for group, full_rate in zip(self.optimizer.param_groups, self.full_rates, strict=True):
            set_rate(group, full_rate * factor)

    def multiply_rates(self, factor: float) -> None:
        """Multiply the learning rates of this and all later phases by a positive factor."""
        for first in self._first:
            first["lr"] = float(first["lr"]) * factor
        self.full_rates = [rate * factor for rate in self.full_rates]
        for group in self.optimizer.param_groups:
            set_rate(group, float(group["lr"]) * factor)

    def state_dict(self) -> dict[str, Any]:
        """The first settings as plain values."""
        return {"batch_size": self.batch_size, "first": [dict(first) for first in self._first]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the first settings from :meth:`state_dict`."""
        self.batch_size = state["batch_size"]
        self._first = [dict(first) for first in state["first"]]

    def _check_momentum(self) -> None:
        if any("betas" not in group and "momentum" not in group for group in self.optimizer.param_groups):
            raise PlanError(
                "a phase with a momentum needs an optimiser with momentum",
                got=type(self.optimizer).__name__,
                mend="leave momentum out of the schedule",
            )


def _plain(value: Any) -> Any:
    """The value of a tensor, which may change in place."""
    return float(value) if isinstance(value, torch.Tensor) else value

"""What a change of phase does to an optimiser: to its rate, its momentum, and what follows the batch size."""

from __future__ import annotations

from typing import Any

import torch

from batchscope.errors import PlanError
from batchscope.records.schedule import Coupling, Phase, Schedule
from batchscope.schedule.scaling import learning_rate_exponent, rescale, set_rate

# What a phase or the optimiser's own rule may change.
_KEYS = ("lr", "initial_lr", "momentum", "betas", "alpha", "eps")


class OptimizerSettings:
    """An optimiser's settings as they are made for the first phase, from which those of every phase follow.

    Each phase is worked out from the first settings and never from those of the phase before, so that where a run
    enters a phase, in its course or when it is resumed, does not matter.

    Args:
        optimizer: The optimiser, its settings those of the first batch size.
        batch_size: That batch size.

    Attributes:
        full_rates: Each group's rate in this phase, before shape and warm-up.

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
        """Refuse a schedule that asks of the optimiser what it has not.

        Args:
            schedule: The schedule.

        Raises:
            PlanError: A momentum for an optimiser without one, or the rule of one that has none.
        """
        if schedule.coupling == "rule":
            learning_rate_exponent(self.optimizer)
        for phase in schedule.phases:
            if phase.momentum is not None:
                self._check_momentum()

    def enter(self, phase: Phase, *, coupling: Coupling = "stated") -> None:
        """Give the optimiser the settings of a phase; its state is left alone.

        The rate is the first one times the phase's factor. A momentum is set as ``momentum`` of SGD (with Nesterov's or
        not) and RMSprop, as β₁ of Adam and its kin. With the coupling "rule", before that, everything is rescaled from
        the first batch size to the phase's: the rate of SGD as B, that of Adam as √B, its β as β**κ, its ε as 1/√κ.

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
        """Set each group's rate to this phase's, times a factor.

        Args:
            factor: As :func:`rate_factor` gives it.
        """
        for group, full_rate in zip(self.optimizer.param_groups, self.full_rates, strict=True):
            set_rate(group, full_rate * factor)

    def multiply_rates(self, factor: float) -> None:
        """From now on every rate, that of later phases too, is so many times what it was.

        Args:
            factor: A positive number.
        """
        for first in self._first:
            first["lr"] = float(first["lr"]) * factor
        self.full_rates = [rate * factor for rate in self.full_rates]
        for group in self.optimizer.param_groups:
            set_rate(group, float(group["lr"]) * factor)

    def state_dict(self) -> dict[str, Any]:
        """The first settings, as plain values."""
        return {"batch_size": self.batch_size, "first": [dict(first) for first in self._first]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the first settings of another run, whatever the optimiser's were when this was made.

        Args:
            state: From :meth:`state_dict`.
        """
        self.batch_size = state["batch_size"]
        self._first = [dict(first) for first in state["first"]]

    def _check_momentum(self) -> None:
        if any("betas" not in group and "momentum" not in group for group in self.optimizer.param_groups):
            raise PlanError(
                "the optimiser must have a momentum for a phase to set",
                got=type(self.optimizer).__name__,
                mend="leave momentum out of the schedule",
            )


def _plain(value: Any) -> Any:
    """A number in the place of a tensor that is going to be changed in place."""
    return float(value) if isinstance(value, torch.Tensor) else value

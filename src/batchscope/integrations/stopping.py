"""Stop at a score, or where it gets no better, and go back to the best weights: for frameworks' callbacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from batchscope.errors import ArgumentError
from batchscope.training.early_stopping import BestSoFar


class Stopping:
    """Watch one of the numbers that a framework evaluates.

    Args:
        monitor: Its name, as the framework has it.
        higher_is_better: Whether more of it is better, as of an accuracy; else less is, as of a loss.
        target: The value that ends training; None: none does.
        patience: Evaluations without a better value after which training ends; None: any number.

    Attributes:
        value: The best so far; None before the first finite one.
        updates: Updates made when it was seen.

    Examples:
        >>> model = nn.Linear(1, 1)
        >>> stopping = Stopping("loss", higher_is_better=False, patience=2)
        >>> [stopping.saw({"loss": loss}, model, updates) for updates, loss in enumerate((0.5, 0.4, 0.6, 0.45))]
        [False, False, False, True]
        >>> stopping.value, stopping.updates
        (0.4, 1)
    """

    def __init__(
        self,
        monitor: str,
        *,
        higher_is_better: bool = True,
        target: float | None = None,
        patience: int | None = None,
    ) -> None:
        if patience is not None and (type(patience) is not int or patience < 1):
            raise ArgumentError("patience must be a whole number of at least 1", got=patience, mend="or None")
        if target is not None and not math.isfinite(target):
            raise ArgumentError("a target must be a finite number", got=target)
        self.monitor, self.target = monitor, target
        self._sign = 1.0 if higher_is_better else -1.0
        self._best = BestSoFar(patience=patience)

    @classmethod
    def of(cls, monitor: str | None, **options: Any) -> Stopping | None:
        """As said, or None where nothing is watched.

        Raises:
            ArgumentError: A target or patience without what it is of.
        """
        if monitor is not None:
            return cls(monitor, **options)
        for name in ("target", "patience"):
            if options.get(name) is not None:
                raise ArgumentError(
                    f"{name} needs to know of what", got=f"{name}={options[name]} without monitor", mend="give monitor="
                )
        return None

    @property
    def value(self) -> float | None:
        """The best so far."""
        return None if self._best.score is None else self._sign * self._best.score

    @property
    def updates(self) -> int | None:
        """When it was seen."""
        return self._best.examples

    def saw(self, metrics: Mapping[str, Any], model: nn.Module, updates: int) -> bool:
        """Take in an evaluation, and copy the weights where it is the best.

        Args:
            metrics: Numbers by name.
            model: What was evaluated.
            updates: Updates made.

        Returns:
            Whether training should end.

        Raises:
            ArgumentError: The number watched is not among them.
        """
        if self.monitor not in metrics:
            raise ArgumentError(
                "what is watched must be evaluated",
                got=f"monitor={self.monitor!r}, with {', '.join(sorted(metrics)) or 'nothing'} evaluated",
                mend="give the name of one of these",
            )
        value = self._sign * float(metrics[self.monitor])
        if self._best.update(value, math.nan, updates):
            self._best.keep(model.state_dict())
        there = self.target is not None and value >= self._sign * self.target
        return there or self._best.should_stop

    def go_back(self, model: nn.Module) -> None:
        """Give the model its best weights, where any were seen."""
        if self._best.state is not None:
            model.load_state_dict(self._best.state)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` goes on from, the best weights among it."""
        return dict(vars(self._best))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on; patience is this one's own."""
        self._best = BestSoFar(**(state | {"patience": self._best.patience}))

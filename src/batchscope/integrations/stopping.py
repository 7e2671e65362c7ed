"""Deprecated early stopping of the callbacks, for which the frameworks have callbacks of their own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from batchscope.errors import ArgumentError
from batchscope.training.early_stopping import BestSoFar


class Stopping:
    """Follow an evaluated metric, keep the best weights, and decide when to stop.

    Args:
        monitor: Name of the metric.
        higher_is_better: Whether larger values are better.
        target: Value at which training stops; None: no such value.
        patience: Evaluations without improvement after which training stops; None: no limit.
        instead: What to use instead, for the warning.

    Examples:
        >>> model = nn.Linear(1, 1)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     stopping = Stopping("loss", higher_is_better=False, target=None, patience=2, instead="")
        >>> [stopping.should_stop({"loss": loss}, model, updates) for updates, loss in enumerate((0.5, 0.4, 0.6, 0.45))]
        [False, False, False, True]
        >>> stopping.value, stopping.updates
        (0.4, 1)
    """

    def __init__(
        self, monitor: str, *, higher_is_better: bool, target: float | None, patience: int | None, instead: str
    ) -> None:
        if patience is not None and (type(patience) is not int or patience < 1):
            raise ArgumentError("patience must be a whole number of at least 1", got=patience, mend="or None")
        if target is not None and not math.isfinite(target):
            raise ArgumentError("target must be a finite number", got=target)
        warnings.warn(
            f"monitor=, target= and patience= are deprecated; use {instead}", DeprecationWarning, stacklevel=3
        )
        self.monitor = monitor
        self._sign = 1.0 if higher_is_better else -1.0
        self._target = math.inf if target is None else self._sign * target
        self._best = BestSoFar(patience=patience)

    @property
    def value(self) -> float | None:
        """The best value so far."""
        return None if self._best.score is None else self._sign * self._best.score

    @property
    def updates(self) -> int | None:
        """Updates at the best value."""
        return self._best.examples

    def should_stop(self, metrics: Mapping[str, Any], model: nn.Module, updates: int) -> bool:
        """Take in an evaluation of a model after so many updates, and say whether to stop.

        Raises:
            ArgumentError: The metric is not among those evaluated.
        """
        if self.monitor not in metrics:
            raise ArgumentError(
                "monitor must be an evaluated metric",
                got=f"monitor={self.monitor!r}, with {', '.join(sorted(metrics)) or 'nothing'} evaluated",
                mend="give the name of one of these",
            )
        value = self._sign * float(metrics[self.monitor])
        if self._best.update(value, math.nan, updates):
            self._best.keep(model.state_dict())
        return value >= self._target or self._best.should_stop

    def restore(self, model: nn.Module) -> None:
        """Load the best weights, if any, into the model."""
        if self._best.state is not None:
            model.load_state_dict(self._best.state)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, with the best weights."""
        return dict(vars(self._best))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, with this object's own patience."""
        self._best = BestSoFar(**(state | {"patience": self._best.patience}))

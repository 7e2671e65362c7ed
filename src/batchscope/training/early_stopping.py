"""Stop at the best validation score, and not at the first bad evaluation."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class BestSoFar:
    """The best validation score and loss so far, the weights at that score, and how long ago it was.

    Attributes:
        tolerance: Improvements of the score up to this much do not count as such for ``patience``.
        patience: Evaluations without one after which training should stop; None: never.
        score: Highest score; None before the first finite one.
        loss: Lowest loss; None before the first finite one.
        examples: Examples seen at that score.
        waited: Evaluations since the last improvement that counted.
        state: Weights at the best score, on the device that trains.
    """

    tolerance: float = 0.0
    patience: int | None = None
    score: float | None = None
    loss: float | None = None
    examples: int | None = None
    waited: int = 0
    reference: float = -math.inf
    state: dict[str, Any] | None = field(default=None, repr=False)

    def update(self, score: float, loss: float, examples: int) -> bool:
        """Take in one evaluation.

        Args:
            score: Validation score.
            loss: Validation loss.
            examples: Examples seen.

        Returns:
            Whether it is the best score yet, so that its weights are worth keeping.

        Examples:
            >>> best = BestSoFar(patience=2)
            >>> [best.update(score, 1.0, 0) for score in (0.5, 0.4, 0.6)], best.should_stop
            ([True, False, True], False)
        """
        if math.isfinite(loss):
            self.loss = loss if self.loss is None else min(self.loss, loss)
        if not math.isfinite(score):
            self.waited += 1
            return False
        if score > self.reference + self.tolerance:
            self.reference = score
            self.waited = 0
        else:
            self.waited += 1
        if self.score is not None and score <= self.score:
            return False
        self.score = score
        self.examples = examples
        return True

    @property
    def should_stop(self) -> bool:
        """Whether ``patience`` evaluations went by without an improvement."""
        return self.patience is not None and self.waited >= self.patience

    def keep(self, state: dict[str, Any]) -> None:
        """Copy the weights, over the copy of the last best ones where there is one."""
        held = self.state or {}
        self.state = {key: _copied(value, held.get(key)) for key, value in state.items()}


def _copied(value: Any, held: Any) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if isinstance(held, Tensor) and held.shape == value.shape and held.dtype == value.dtype:
        return held.copy_(value.detach())
    return value.detach().clone()

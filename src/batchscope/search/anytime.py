"""The learning rate of a run that goes on until it is there, however long that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

# A run has stalled when its loss was the least where it had so many times fewer examples.
STALLED = 1.5
CUT = 0.5


class AnytimeRate:
    """By what the rate is multiplied: as it is up to a horizon, then with 1/√examples, and less where that stalls.

    A constant rate c/√T is the best there is for T steps of noisy descent, up to its constant, and c/√t, falling as it
    goes, where T is not known (Robbins and Monro 1951; Bottou, Curtis and Nocedal 2018, arXiv 1606.04838). A horizon
    that was predicted is known roughly: within it the rate is the one chosen for it, and beyond it falls like this.
    Where the loss does not get less all the same, the rate is too large for that, and is halved.

    Args:
        horizon_examples: Examples that the run is expected to take.

    Attributes:
        factor: What the rate is multiplied by at present.

    Examples:
        >>> rate = AnytimeRate(1000.0)
        >>> points = [(examples, 1000 / examples) for examples in (500, 4000)]
        >>> rate.after(points[:1]), rate.after(points)
        (1.0, 0.5)
    """

    def __init__(self, horizon_examples: float) -> None:
        self.horizon = horizon_examples
        self.factor, self._cuts, self._cut_at = 1.0, 1.0, 0.0

    def after(self, points: Sequence[tuple[float, float]]) -> float:
        """The factor from now on.

        Args:
            points: Examples and losses of the evaluations so far, at least one, the last of them new.
        """
        now = points[-1][0]
        if now > self.horizon:
            least = min((loss for _, loss in points), default=math.inf)
            found_at = next(examples for examples, loss in points if not loss > least)
            if now >= STALLED * max(found_at, self._cut_at, self.horizon):
                self._cuts, self._cut_at = CUT * self._cuts, float(now)
            self.factor = self._cuts * math.sqrt(self.horizon / now)
        return self.factor

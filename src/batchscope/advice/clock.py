"""What advice has cost, and what it may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from time import perf_counter as now

# What the advice may cost: this share of a training run, and no less than so many seconds.
BUDGET_SHARE, LEAST_SECONDS = 0.25, 8.0
# Until a training run's length can be told, the advice goes on for this long; a race whose winner is trained on, for
# less: what it does not see goes on being looked for in the training.
MOST_SECONDS_IN_THE_DARK, IN_THE_DARK_TO_TRAIN = 20.0, 12.0


@dataclass
class Clock:
    """What the advice has cost and may cost.

    Attributes:
        began: When it began.
        seconds: What it may cost; None: a share of a training run, as soon as that is known.
        to_train: Whether the winner is trained on.
        limit: What holds at present.
    """

    seconds: float | None
    to_train: bool = False
    began: float = field(default_factory=lambda: now())  # noqa: PLW0108 — looked up when it is called
    limit: float = 0.0

    def __post_init__(self) -> None:
        self.limit = self._most_in_the_dark if self.seconds is None else self.seconds

    @property
    def sure_seconds(self) -> float:
        """What it may cost in any case: what was given, or the least."""
        return LEAST_SECONDS if self.seconds is None else self.seconds

    @property
    def _most_in_the_dark(self) -> float:
        return IN_THE_DARK_TO_TRAIN if self.to_train else MOST_SECONDS_IN_THE_DARK

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return now() - self.began

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.limit - self.spent

    def allow(self, training_seconds: float, *, known: bool) -> None:
        """Set the limit by what a training run takes, where no limit was given.

        Args:
            training_seconds: By the laws so far.
            known: Whether a curve has gone so far that they say something; else they may cost a whole run.
        """
        if self.seconds is None and math.isfinite(training_seconds):
            wanted = BUDGET_SHARE * training_seconds if known else min(training_seconds, self._most_in_the_dark)
            self.limit = max(LEAST_SECONDS, wanted)

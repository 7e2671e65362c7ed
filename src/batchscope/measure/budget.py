"""How often to measure so that measuring takes no more than its share of the time; arithmetic, and one stopwatch."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from typing import Any

# A step of more than so many usual ones is a pause, an evaluation say, and not all of it training.
PAUSE = 10.0
# What a measurement is taken to cost, in steps, before one has been seen; and the first, which is checked as well.
USUAL, FIRST = 0.5, 2.5


class Stopwatch:
    """Adds up the seconds that measuring takes inside a person's loop.

    Examples:
        >>> watch = Stopwatch()
        >>> watch.add_since(watch.now())
        >>> watch.take() > 0, watch.take()
        (True, 0.0)
    """

    now = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self._seconds = 0.0

    def add_since(self, began: float) -> None:
        """Add the time since then."""
        self._seconds += self.now() - began

    def add(self, seconds: float) -> None:
        """Add seconds that were taken before."""
        self._seconds += seconds

    def take(self) -> float:
        """The seconds so far, from now on counted from zero again."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class Budget:
    """Keeps the time spent on measuring under a share of the whole.

    Args:
        share: The most that measuring may take of the time.

    Attributes:
        seconds: The time of training, measuring included; of a pause, ten usual steps.
        spent: The part of it that measuring took.
        steps: Steps seen.
        costs: Of the last few measurements, in seconds.

    Examples:
        >>> budget = Budget(0.05)
        >>> for _ in range(100):
        ...     budget.step(1.0)
        >>> budget.step(1.0 + 10.0, 10.0)  # a measurement as long as ten steps
        >>> budget.sampled(10.0)
        >>> budget.gap()  # (10 + 10)/0.05 = 400 seconds in all: 111 are over, the next takes 10
        279
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.seconds = 0.0
        self.spent = 0.0
        self.steps = 0
        self.costs: deque[float] = deque(maxlen=9)

    def step(self, seconds: float, spent: float = 0.0) -> None:
        """Take note of a step.

        Args:
            seconds: From the end of the step before to the end of this one.
            spent: The part of it that measuring took.
        """
        training = max(0.0, seconds - spent)
        if self.steps:
            training = min(training, PAUSE * max(self.step_seconds, 1e-6))
        self.seconds += training + spent
        self.spent += spent
        self.steps += 1

    def first(self) -> int:
        """Steps before the first measurement, so that even it, which is checked, keeps to the share."""
        return max(2, math.ceil(FIRST * (1 / self.share - 1)))

    def sampled(self, seconds: float) -> None:
        """Take note of what one measurement cost."""
        self.costs.append(seconds)

    @property
    def step_seconds(self) -> float:
        """A step's mean time without measuring; 0 before the first."""
        return (self.seconds - self.spent) / self.steps if self.steps else 0.0

    @property
    def overhead(self) -> float:
        """The share of the time that measuring took; 0 before the first step."""
        return self.spent / self.seconds if self.seconds else 0.0

    def gap(self) -> int:
        """Steps from a measured one to the next, so that after it the share is kept: at least 1."""
        if self.step_seconds <= 0:
            return 1
        cost = statistics.median(self.costs) if self.costs else USUAL * self.step_seconds
        wait = (self.spent + cost) / self.share - self.seconds - cost
        return max(1, math.ceil(wait / self.step_seconds))

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs."""
        return {"seconds": self.seconds, "spent": self.spent, "steps": self.steps, "costs": list(self.costs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.seconds, self.spent, self.steps = state["seconds"], state["spent"], state["steps"]
        self.costs = deque(state["costs"], maxlen=9)

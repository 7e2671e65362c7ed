"""A search's candidates in closed form: every setting walks down one curve, at a speed that is known.

The loss after t seconds is 0.2 + 2·(1 + s·t)^(−1/2) and the score is minus that. The speed s falls off like a parabola
in octaves about a best batch size, and about a best rate that follows ε ∝ √B; rates eight times too large diverge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from batchscope.search.candidates import Candidate, Ended, Point, Setting

BEST = Setting(64, 0.1)
FLOOR, HEIGHT, POWER = 0.2, 2.0, 0.5
# Octaves of batch size and of rate that cost one e-fold of speed; octaves of rate at which training diverges.
BATCH_WIDTH, RATE_WIDTH, DIVERGES = 3.0, 2.5, 3.0
FASTEST = 10.0  # per second
POINT_RATIO = 1.15


def update_seconds(batch_size: int) -> float:
    """An update's fixed cost, and what an example adds."""
    return 2e-3 + 5e-5 * batch_size


def octaves_of_rate(setting: Setting) -> float:
    """Factors of two from the best rate at the batch size."""
    best = BEST.learning_rate * math.sqrt(setting.batch_size / BEST.batch_size)
    return math.log2(setting.learning_rate / best)


def speed(setting: Setting) -> float:
    """How fast a setting comes down the curve; 0 where it diverges."""
    octaves = octaves_of_rate(setting)
    if octaves >= DIVERGES:
        return 0.0
    batch = math.log2(setting.batch_size / BEST.batch_size)
    return FASTEST * math.exp(-((batch / BATCH_WIDTH) ** 2) - (octaves / RATE_WIDTH) ** 2)


def loss_after(setting: Setting, seconds: float) -> float:
    """The loss without its scatter."""
    return float(FLOOR + HEIGHT * (1 + speed(setting) * seconds) ** -POWER)


def seconds_to(setting: Setting, loss: float) -> float:
    """Training time to a loss."""
    if speed(setting) == 0:
        return math.inf
    return float((((loss - FLOOR) / HEIGHT) ** (-1 / POWER) - 1) / speed(setting))


@dataclass
class Valley:
    """Where such candidates come from; its clock is what they cost.

    Args:
        target: Score that ends a candidate.
        scatter: Standard deviation of the loss of a batch of size 1.
        seed: Of the scatter.
        fitting: Largest batch size that fits into memory.
    """

    target: float = math.inf
    scatter: float = 1.0
    seed: int = 0
    fitting: float = math.inf
    elapsed: float = 0.0
    opened: list[Setting] = field(default_factory=list)

    def open(self, setting: Setting) -> Candidate:
        """A new candidate."""
        self.opened.append(setting)
        return Walk(self, setting)

    def elapsed_seconds(self) -> float:
        """What all candidates have cost."""
        return self.elapsed

    def limit(self, seconds: float) -> None:
        """A walk is not interrupted."""

    def close(self) -> None:
        """Nothing runs."""


class Walk:
    """One setting on its way down."""

    memory_bytes = 0

    def __init__(self, valley: Valley, setting: Setting) -> None:
        self.valley, self.setting = valley, setting
        first = FLOOR + HEIGHT
        self.points = [Point(0, 0, 0.0, first, 0.01, -first)]
        self.ended: Ended | None = None
        self.cost_seconds = 0.0
        self._generator = np.random.default_rng([valley.seed, setting.batch_size, round(1e9 * setting.learning_rate)])

    def advance(self, seconds: float) -> None:
        """Go on until the clock shows so many seconds."""
        each = update_seconds(self.setting.batch_size)
        first = True
        while self.ended is None and (first or self.points[-1].seconds < seconds * (1 - 1e-9)):
            wanted = max(1, math.floor(seconds / each + 1e-9))
            self._step(each, wanted)
            first = False
            if self.points[-1].updates >= wanted:
                return

    def _step(self, each: float, most: int) -> None:
        size, before = self.setting.batch_size, self.points[-1].updates
        updates = max(before + 1, min(most, math.ceil(before * POINT_RATIO)))
        self.valley.elapsed += (updates - before) * each
        self.cost_seconds += (updates - before) * each
        truth = loss_after(self.setting, updates * each)
        # A mean over the last third of the batches, as the training loss is.
        error = self.valley.scatter / math.sqrt(size * max(1.0, updates / 3))
        loss: float = truth + error * float(self._generator.standard_normal())
        score: float | None = -truth
        if size > self.valley.fitting:
            self.ended = "out of memory"
        elif speed(self.setting) == 0:
            self.ended, loss, error, score = "diverged", math.inf, 0.0, None
        elif -truth >= self.valley.target:
            self.ended = "reached"
        self.points.append(Point(updates * size, updates, updates * each, loss, error, score))

    def release(self) -> None:
        """Nothing is held."""

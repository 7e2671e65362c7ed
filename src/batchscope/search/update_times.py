"""Seconds of an update: measured at the batch sizes that were trained, and worked out between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from batchscope.fit.contention import QUIET
from batchscope.search.candidates import Observation

# Pieces that took so many times the median of their batch size for an update were disturbed, and do not count.
DISTURBED = 1.5
# Where one batch size is known, what an update takes at all is that of so many examples: on processors examples/s
# reach half of what they can at batch sizes of 1 to 40.
KNEE = 16


class Piece(NamedTuple):
    """A piece of training without a pause.

    Attributes:
        updates: Made in it.
        seconds: Taken by them.
        contention: Share of the processor that other programs took meanwhile; None: not known.
    """

    updates: int
    seconds: float
    contention: float | None = None


@dataclass
class UpdateTimes:
    """Seconds of an update at each batch size, from pieces of training that nothing disturbed.

    Examples:
        >>> times = UpdateTimes()
        >>> for seconds in (1.0, 0.1, 0.1, 0.3, 0.1):
        ...     times.add(8, 1, seconds)
        >>> round(times.seconds(8), 3)
        0.1
    """

    pieces: dict[int, list[Piece]] = field(default_factory=dict)

    def add(self, batch_size: int, updates: int, seconds: float) -> None:
        """Take in a piece of training."""
        self.pieces.setdefault(batch_size, []).append(Piece(updates, seconds))

    def mark(self, contention: float) -> None:
        """Say what other programs took during the pieces since this was last said."""
        for own in self.pieces.values():
            for i in range(len(own) - 1, -1, -1):
                if own[i].contention is not None:
                    break
                own[i] = own[i]._replace(contention=contention)

    def quiet(self, batch_size: int) -> list[Piece]:
        """The pieces that count: not the first one, which warms up, and none from busy moments if there are others."""
        own = self.pieces.get(batch_size, [])
        own = own[1:] if len(own) > 1 else own
        own = [piece for piece in own if (piece.contention or 0.0) <= QUIET] or own
        each = sorted(piece.seconds / piece.updates for piece in own)
        if not each:
            return []
        limit = DISTURBED * each[(len(each) - 1) // 2]
        return [piece for piece in own if piece.seconds / piece.updates <= limit]

    def seconds(self, batch_size: int) -> float:
        """Mean time of an update; NaN where none was made."""
        own = self.quiet(batch_size)
        return sum(p.seconds for p in own) / sum(p.updates for p in own) if own else math.nan

    def spread(self, batch_size: int) -> float:
        """Relative standard deviation of the pieces that count."""
        own = self.quiet(batch_size)
        mean = self.seconds(batch_size)
        return float(np.std([p.seconds / p.updates for p in own]) / mean) if len(own) > 2 else math.nan

    def contention(self, batch_size: int) -> float:
        """Mean share of the processor that other programs took during the pieces that count."""
        own = self.quiet(batch_size)
        return float(np.mean([p.contention or 0.0 for p in own])) if own else 0.0


@dataclass
class UpdateSeconds:
    """Time of an update against the batch size, from candidates' own clocks: c₀ + c₁·B through the nearest ones.

    Examples:
        >>> seconds = UpdateSeconds({8: 1.0, 32: 1.6})
        >>> round(seconds(16), 3), round(seconds(64), 3), round(seconds(4), 3)
        (1.2, 2.4, 0.9)
    """

    known: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> UpdateSeconds:
        """From what was trained."""
        times: dict[int, list[tuple[int, float]]] = {}
        for o in observations:
            if o.points and o.points[-1].updates:
                times.setdefault(o.setting.batch_size, []).append((o.points[-1].updates, o.points[-1].seconds))
        return cls({size: sum(s for _, s in own) / sum(n for n, _ in own) for size, own in times.items()})

    def __call__(self, batch_size: int) -> float:
        """Seconds of an update; with one size known, as much as so many examples take counts as fixed."""
        sizes = sorted(self.known)
        if batch_size in self.known:
            return self.known[batch_size]
        if not sizes:
            return math.nan
        if len(sizes) == 1:
            only = sizes[0]
            return self.known[only] * (KNEE + batch_size) / (KNEE + only)
        i = min(max(int(np.searchsorted(sizes, batch_size)), 1), len(sizes) - 1)
        a, b = sizes[i - 1], sizes[i]
        slope = max(0.0, (self.known[b] - self.known[a]) / (b - a))
        return max(self.known[a] + slope * (batch_size - a), min(self.known.values()) * 0.25)

"""Recorded curves as a source of candidates, so that a search can be played again in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from batchscope.errors import ArgumentError
from batchscope.search.candidates import Candidate, Ended, Point, Setting


@dataclass(frozen=True)
class Curve:
    """How one setting trained, once.

    Attributes:
        setting: The batch size and the learning rate.
        points: How it stood, ascending in seconds.
        ended: How the recording ended; "finished" where it was cut short.
    """

    setting: Setting
    points: tuple[Point, ...]
    ended: Ended = "finished"


class RecordedCandidate:
    """A candidate that walks along a curve.

    Args:
        curve: What was recorded.
        on_cost: Told of the seconds that each advance takes.
        overhead: Wall time over training time.
    """

    def __init__(self, curve: Curve, on_cost: Callable[[float], None], *, overhead: float = 1.0) -> None:
        self._curve, self._on_cost, self._overhead = curve, on_cost, overhead
        self._seen = 0
        self.cost_seconds = 0.0
        self.memory_bytes = 0

    @property
    def setting(self) -> Setting:
        """The batch size and the learning rate."""
        return self._curve.setting

    @property
    def points(self) -> Sequence[Point]:
        """What it has shown so far."""
        return self._curve.points[: self._seen]

    @property
    def ended(self) -> Ended | None:
        """How the recording ended, once all of it was shown."""
        return self._curve.ended if self._seen == len(self._curve.points) else None

    def advance(self, seconds: float) -> None:
        """Show the curve up to so many seconds, and one point more at least."""
        before = self.points[-1].seconds if self._seen else 0.0
        points = self._curve.points
        self._seen = min(max(self._seen + 1, 2), len(points))
        while self._seen < len(points) and points[self._seen].seconds <= seconds * (1 + 1e-9):
            self._seen += 1
        cost = self._overhead * (points[self._seen - 1].seconds - before)
        self.cost_seconds += cost
        self._on_cost(cost)

    def release(self) -> None:
        """Nothing is held."""


@dataclass
class RecordedSource:
    """Candidates from curves; its clock is the cost of what they have shown.

    Args:
        curves: By setting.
        overhead: Wall time over training time.

    Examples:
        >>> curve = Curve(Setting(8, 0.1), (Point(0, 0, 0.0, 2.3), Point(8, 1, 1.0, 2.0), Point(16, 2, 2.0, 1.5)))
        >>> source = RecordedSource({curve.setting: curve}, overhead=1.5)
        >>> candidate = source.open(Setting(8, 0.1))
        >>> candidate.advance(1.0)
        >>> candidate.points[-1].loss, candidate.ended, source.elapsed_seconds()
        (2.0, None, 1.5)
    """

    curves: Mapping[Setting, Curve]
    overhead: float = 1.0
    _elapsed: float = field(default=0.0, init=False)

    def open(self, setting: Setting) -> Candidate:
        """The curve of a setting from its beginning.

        Raises:
            ArgumentError: It was not recorded.
        """
        curve = self.curves.get(setting)
        if curve is None:
            raise ArgumentError("a recorded search trains recorded settings", got=str(setting))
        return RecordedCandidate(curve, self._spend, overhead=self.overhead)

    def elapsed_seconds(self) -> float:
        """Cost of all that was shown."""
        return self._elapsed

    def limit(self, seconds: float) -> None:
        """Nothing overruns: what a step shows is known beforehand."""

    def close(self) -> None:
        """Nothing runs."""

    def _spend(self, seconds: float) -> None:
        self._elapsed += seconds


def until_target(curve: Curve, target: float) -> Curve:
    """A curve up to the first point at a score, where it ends as reached.

    Args:
        curve: What was recorded.
        target: The score.
    """
    for k, point in enumerate(curve.points):
        if point.score is not None and math.isfinite(point.score) and point.score >= target:
            return replace(curve, points=curve.points[: k + 1], ended="reached")
    return curve

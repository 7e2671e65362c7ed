"""Candidates of a search: what a policy may see of one, and what it may ask of a source of them.

A candidate is one setting in training, wherever that happens: in this process (:mod:`batchscope.search.in_process`), on
a recorded curve (:mod:`batchscope.search.recorded`), or in a command that somebody else wrote. A policy sees points on
the candidate's own clock and what it cost, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Ended = Literal["reached", "diverged", "out of memory", "finished", "failed"]


class Setting(NamedTuple):
    """A batch size with a learning rate."""

    batch_size: int
    learning_rate: float

    def __str__(self) -> str:
        return f"batch size {self.batch_size:,} at learning rate {self.learning_rate:.3g}"


@dataclass(frozen=True)
class Point:
    """How a candidate stands at one moment.

    Attributes:
        examples: Examples trained on.
        updates: Updates made.
        seconds: Training alone, on the candidate's own clock; evaluating is not on it.
        loss: What candidates are compared by, lower is better; infinite where training diverged.
        error: Standard error of the loss, as far as it is known to scatter.
        score: What the goal is about, higher is better; None where it was not evaluated here.
    """

    examples: int
    updates: int
    seconds: float
    loss: float
    error: float = 0.0
    score: float | None = None


class Candidate(Protocol):
    """One setting in training."""

    @property
    def setting(self) -> Setting:
        """The batch size and the learning rate."""

    @property
    def points(self) -> Sequence[Point]:
        """How it stood, ascending in seconds."""

    @property
    def ended(self) -> Ended | None:
        """Why it cannot be advanced any further; None while it can."""

    @property
    def cost_seconds(self) -> float:
        """What it has cost the search so far, in seconds of wall time."""

    @property
    def memory_bytes(self) -> int:
        """Memory that it holds between two advances; 0 where that is not known."""

    def advance(self, seconds: float) -> None:
        """Train until its own clock shows so many seconds, or until it ends, and add at least one point.

        Args:
            seconds: On its own clock, in all.
        """

    def release(self) -> None:
        """Let go of everything that it holds but its points."""


class Source(Protocol):
    """Where candidates come from."""

    def open(self, setting: Setting) -> Candidate:
        """A new candidate, not trained yet.

        Args:
            setting: What it trains with.
        """

    def elapsed_seconds(self) -> float:
        """Wall time since the search began, or what stands for it."""

    def limit(self, seconds: float) -> None:
        """Pause whatever trains when so much time has passed.

        Args:
            seconds: On the clock of :meth:`elapsed_seconds`.
        """

    def close(self) -> None:
        """End everything that still runs."""


@dataclass(frozen=True)
class Observation:
    """What is known of one candidate.

    Attributes:
        setting: The batch size and the learning rate.
        points: How it stood, ascending in seconds.
        ended: Why it cannot go on; None where it can.
        is_held: Whether it can be advanced from where it stands.
        cost_seconds: What it has cost in wall time.
    """

    setting: Setting
    points: tuple[Point, ...]
    ended: Ended | None = None
    is_held: bool = True
    cost_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Where its clock stands."""
        return self.points[-1].seconds if self.points else 0.0

    @property
    def seconds_per_update(self) -> float:
        """Mean time of its updates; NaN before the first one.

        Examples:
            >>> Observation(Setting(8, 0.1), (Point(80, 10, 2.0, 1.0),)).seconds_per_update
            0.2
        """
        last = self.points[-1] if self.points else None
        return last.seconds / last.updates if last and last.updates else math.nan

    @property
    def reached(self) -> Point | None:
        """Where it was when it reached the goal; None where it has not."""
        return self.points[-1] if self.ended == "reached" else None

"""What a sweep is made of: trials, tasks of trials of one batch size, and the engines that run them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from batchscope.records import CurvePoint, Order, Plan, Shape, TrainResult

Way = Literal["auto", "replicas", "separate"]
Ended = Literal["running", "reached", "missed", "diverged", "pruned", "failed"]


class Trial(NamedTuple):
    """What sets a trial apart within its sweep."""

    batch_size: int
    learning_rate: float
    seed: int


class Standing(NamedTuple):
    """How far a trial is, or how it ended: all that the search and the pruning look at.

    Attributes:
        trial: Which.
        ended: "running"; "reached" the target; "missed", its budget gone (without a target: finished); "diverged";
            "pruned"; "failed" (out of memory, crashed, timed out).
        examples: Examples so far; to the target, where that was reached.
        score: Best validation score so far; None before the first.
        loss: Lowest validation loss so far; None before the first.
    """

    trial: Trial
    ended: Ended
    examples: int
    score: float | None
    loss: float | None

    @classmethod
    def at_start(cls, trial: Trial) -> Standing:
        """How a trial stands before its first evaluation."""
        return cls(trial, "running", 0, None, None)

    def after(self, point: CurvePoint) -> Standing:
        """How a running trial stands after another evaluation; scores and losses that are not finite count for nothing.

        Examples:
            >>> point = CurvePoint(64, 2, 0.1, 0.5, None, 0.3, float("nan"))
            >>> Standing.at_start(Trial(32, 0.5, 0)).after(point)[1:]
            ('running', 64, None, 0.3)
        """
        return Standing(
            self.trial,
            "running",
            point.examples,
            _better(self.score, point.score, max),
            _better(self.loss, point.validation_loss, min),
        )


def _better(before: float | None, now: float, best: Callable[[float, float], float]) -> float | None:
    if not math.isfinite(now):
        return before
    return now if before is None else best(before, now)


@dataclass(frozen=True)
class Conditions:
    """What all trials of a sweep have in common: with a :class:`Trial`, everything that determines a run.

    Attributes:
        target: Validation score to stop at; None: every trial runs through its budget.
        budget_examples: Most examples of a trial.
        evaluate_every: Examples between two evaluations.
        shape: The rate over the budget.
        order: How batches are drawn.
        pruning: Whether trials that cannot win are stopped.
    """

    target: float | None
    budget_examples: int
    evaluate_every: int
    shape: Shape = "constant"
    order: Order = "shuffled"
    pruning: bool = True

    def plan(self, trial: Trial) -> Plan:
        """The plan of a trial."""
        return Plan(
            batch_size=trial.batch_size,
            learning_rate=trial.learning_rate,
            examples=self.budget_examples,
            target=self.target,
            shape=self.shape,
            order=self.order,
        )


@dataclass(frozen=True)
class Task:
    """Trials of one batch size that one worker runs, together or one after the other.

    Attributes:
        number: Its name.
        trials: Distinct, the most promising first.
        known: How other trials of the batch size stand, for the pruning.
        way: As replicas, as separate runs, or as measured to be faster.
    """

    number: int
    trials: tuple[Trial, ...]
    known: tuple[Standing, ...] = ()
    way: Way = "auto"


@dataclass(frozen=True)
class Began:
    """A worker has begun a task."""

    task: int
    worker: str


@dataclass(frozen=True)
class Evaluated:
    """A trial was evaluated."""

    task: int
    trial: Trial
    point: CurvePoint


@dataclass(frozen=True)
class Finished:
    """A trial has ended by itself; the engine has put it into the store where it writes there (``Engine.stores``)."""

    task: int
    trial: Trial
    result: TrainResult


@dataclass(frozen=True)
class TaskDone:
    """All trials of a task have ended.

    Attributes:
        task: Which.
        trained_as: "replicas" or "separate runs", with the reason for it, in words.
    """

    task: int
    trained_as: str


@dataclass(frozen=True)
class Lost:
    """A task ended without its trials having ended: the worker died, hung, ran out of memory, or an exception came up.

    Trials of it that had finished were told of before. A lone trial is thereby convicted; of several, the sweep finds
    out by running them in halves.

    Attributes:
        task: Which.
        outcome: What that is for a lone trial.
        reason: In words, one line.
        blameless: Whether the machine it ran on went away, which says nothing about the trials: they are run again.
    """

    task: int
    outcome: Literal["out of memory", "crashed", "timed out"]
    reason: str
    blameless: bool = False


Event = Began | Evaluated | Finished | TaskDone | Lost


class Engine(Protocol):
    """Runs tasks somewhere. Used as a context manager: leaving it ends all workers at once.

    Attributes:
        workers: Tasks that run at once.
        stores: Whether finished trials are in the store before their event arrives.
    """

    workers: int
    stores: bool

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exception: object) -> None: ...

    def submit(self, task: Task) -> None:
        """Queue a task; tasks begin in the order submitted."""
        ...

    def tell(self, standings: Sequence[Standing]) -> None:
        """Let running tasks know how trials elsewhere have ended, for the pruning; it may be ignored."""
        ...

    def next_event(self, timeout_seconds: float) -> Event | None:
        """The next event, or None when none came in time."""
        ...


@dataclass
class Known:
    """Standings by trial, the later one counting."""

    standings: dict[Trial, Standing] = field(default_factory=dict)

    def add(self, standings: Sequence[Standing]) -> None:
        """Take in standings."""
        self.standings.update((standing.trial, standing) for standing in standings)

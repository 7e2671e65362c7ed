"""What a sweep is made of: trials, tasks of trials of one batch size, and the engines that run them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

from batchscope.errors import first_line
from batchscope.records import CurvePoint, Order, Plan, Shape, SweepTrial, TrainResult, TrialOutcome
from batchscope.records.training import IN_ORDER
from batchscope.training.memory import is_out_of_memory

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


def ended_of(outcome: TrialOutcome) -> Ended:
    """How a trial of that outcome stands for the search.

    Examples:
        >>> ended_of("finished"), ended_of("timed out")
        ('missed', 'failed')
    """
    match outcome:
        case "reached" | "diverged" | "pruned":
            return outcome
        case "finished":
            return "missed"
        case _:
            return "failed"


def key_of(result: SweepTrial) -> Trial:
    """Which trial a result is of."""
    return Trial(result.batch_size, result.learning_rate, result.seed)


def standing_of(result: SweepTrial) -> Standing:
    """How a trial stands that has ended."""
    return Standing(key_of(result), ended_of(result.outcome), result.examples, result.best_score, result.best_loss)


def trial_of(trial: Trial, run: TrainResult) -> SweepTrial:
    """The result of a trial from its run, which must not have been interrupted."""
    if run.outcome == "interrupted":
        raise ValueError("an interrupted run is no result")
    outcome: TrialOutcome = "finished" if run.outcome == "stopped early" else run.outcome
    return SweepTrial(
        **trial._asdict(),
        outcome=outcome,
        examples_to_target=run.examples if run.reached else None,
        examples=run.examples,
        iterations=run.iterations,
        best_score=run.best_score,
        best_loss=run.best_loss,
        final_score=run.final_score if run.outcome in IN_ORDER else None,
        step_seconds=None,
        # Runs take turns with others: the clock on the wall is not theirs alone.
        sweep_seconds=run.step_seconds + run.evaluation_seconds,
        stack_size=run.stack_size,
        message=run.message,
        curve=run.curve,
    )


def cut(result: SweepTrial, evaluations: int) -> SweepTrial:
    """A trial as if it had been stopped, as "pruned", after so many evaluations; at least one."""
    curve = result.curve[:evaluations]
    standing = Standing.at_start(key_of(result))
    for point in curve:
        standing = standing.after(point)
    return replace(
        result,
        outcome="pruned",
        examples_to_target=None,
        examples=curve[-1].examples,
        iterations=curve[-1].iterations,
        best_score=standing.score,
        best_loss=standing.loss,
        final_score=None,
        message=None,
        curve=curve,
    )


def failed(trial: Trial, outcome: TrialOutcome, reason: str) -> SweepTrial:
    """A trial that was lost together with the process that trained it."""
    return SweepTrial(
        **trial._asdict(),
        outcome=outcome,
        examples_to_target=None,
        examples=0,
        iterations=0,
        best_score=None,
        best_loss=None,
        final_score=None,
        step_seconds=None,
        sweep_seconds=0.0,
        stack_size=None,
        message=reason,
        curve=(),
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
        way: As replicas, as separate runs, or as measured to be faster.
    """

    number: int
    trials: tuple[Trial, ...]
    way: Way = "auto"

    @property
    def batch_size(self) -> int:
        """That of its trials."""
        return self.trials[0].batch_size


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
    """A trial has ended: by itself, or as "pruned" where it was stopped."""

    task: int
    result: SweepTrial


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

    @classmethod
    def by(cls, task: int, error: BaseException) -> Lost:
        """Lost by an exception."""
        return cls(task, "out of memory" if is_out_of_memory(error) else "crashed", first_line(error))


Event = Began | Evaluated | Finished | TaskDone | Lost


class Engine(Protocol):
    """Runs tasks somewhere. Used as a context manager: leaving it ends all workers at once.

    Attributes:
        workers: Tasks that run at once.
    """

    workers: int

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exception: object) -> None: ...

    def submit(self, task: Task) -> None:
        """Queue a task; tasks begin in the order submitted."""
        ...

    def stop(self, trials: Collection[Trial]) -> None:
        """End these trials at their next evaluation, as "pruned"."""
        ...

    def work(self, take: Callable[[Event], None], seconds: float) -> None:
        """Hand over the events that there are; where there is none, wait for one for so many seconds."""
        ...

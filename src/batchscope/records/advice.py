"""The advice: which batch size, learning rate and number of updates, how sure that is, and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.comparison import WorkloadSummary
from batchscope.records.interval import Interval
from batchscope.records.plan import Plan
from batchscope.records.power import PowerUse
from batchscope.records.provenance import Provenance
from batchscope.records.schedule import Schedule

GoalKind = Literal["target", "examples", "seconds"]


@dataclass(frozen=True)
class Goal:
    """What is asked for.

    Attributes:
        kind: "target": least time to a validation score. "examples": best score for a number of examples. "seconds":
            best score in a given time of training.
        value: The score, the examples or the seconds.
    """

    kind: GoalKind
    value: float


@dataclass(frozen=True)
class RacePoint:
    """What a candidate had reached at one moment of the search.

    Attributes:
        examples: Examples trained on.
        iterations: Updates made.
        seconds: Of training alone: updates times the measured time of an update.
        loss: What candidates are compared by: mean loss of the last third of the batches, each before its update. Once
            examples are seen again, the validation loss, shifted by what the two differed by before.
        score: Validation score of the averaged weights, with which the plan ends; None where it was not evaluated.
    """

    examples: int
    iterations: int
    seconds: float
    loss: float
    score: float | None


@dataclass(frozen=True)
class RaceCandidate:
    """A batch size with a learning rate, and how it did.

    Attributes:
        batch_size: Examples per update.
        learning_rate: The rate.
        seed: Seed of its weights and order of the data.
        points: How it stood, ascending in examples.
        ended: "advised"; "beaten": training it further was not worth its cost; "diverged"; "kept": it reached the
            target, and another is advised.
        reason: Why it ended so.
        seconds_spent: What it cost the search, in seconds of wall time.
    """

    batch_size: int
    learning_rate: float
    seed: int
    points: tuple[RacePoint, ...]
    ended: Literal["advised", "beaten", "diverged", "kept"]
    reason: str
    seconds_spent: float


@dataclass(frozen=True)
class ForecastPoint:
    """What a setting is predicted to have reached.

    Attributes:
        examples: Examples trained on.
        seconds: Time of training on them.
        score: Validation score, with what is known about it.
    """

    examples: int
    seconds: float
    score: Interval


@dataclass(frozen=True)
class FrontierRow:
    """One batch size at its best learning rate.

    Attributes:
        batch_size: Examples per update.
        micro_batch_size: Examples that pass through the model at once on each device.
        accumulation_steps: Micro-batches in a batch on each device.
        learning_rate: The best rate, with its uncertainty.
        step_seconds: Time of an update.
        examples_per_second: ``batch_size`` over ``step_seconds``.
        peak_memory_bytes: Peak memory on each device; None where it was not measured.
        iterations: Updates to the goal; None where it is out of reach.
        examples: Examples to the goal: to the target, of the budget, or what the time allows.
        seconds: Seconds to the goal, likewise.
        score: Score at the goal: the target, or what is reached with the budget.
        raced: Whether it was trained; otherwise it was worked out from those that were.
        forecast: The score against examples and seconds, ascending: for other targets and budgets than the one asked.
        cost: Price of the seconds on all devices; None without a price.
        joules: Energy of the seconds on all devices; None where no power is known.
    """

    batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    learning_rate: Interval
    step_seconds: Interval
    examples_per_second: Interval
    peak_memory_bytes: int | None
    iterations: int | None
    examples: Interval
    seconds: Interval
    score: Interval
    raced: bool
    forecast: tuple[ForecastPoint, ...]
    cost: Interval | None = None
    joules: Interval | None = None


@dataclass(frozen=True)
class PresentSetting:
    """What the person uses today, judged for the same goal.

    Attributes:
        batch_size: The workload's own.
        learning_rate: Likewise.
        seconds: Seconds to the goal; unresolved where it was not seen to get there.
        score: Score at the goal.
        sentence: That, against the advice.
    """

    batch_size: int
    learning_rate: float
    seconds: Interval
    score: Interval
    sentence: str


@dataclass(frozen=True)
class Spending:
    """What one part of the advice cost.

    Attributes:
        name: As in "step times", "learning rates", "race".
        seconds: Wall-clock time.
        examples: Examples trained on.
    """

    name: str
    seconds: float
    examples: int


@dataclass(frozen=True)
class Advice(Record):
    """Which batch size, learning rate and number of updates to use, for what, how sure that is, and why.

    Where no setting could be found, ``batch_size`` and all that hangs on it are None, and ``conclusion`` says what was
    found out and what to do.

    Attributes:
        workload: What it is for.
        goal: What was asked for.
        conclusion: The answer in plain sentences.
        batch_size: Examples per update, at the beginning where they grow.
        micro_batch_size: Examples that pass through the model at once on each device.
        accumulation_steps: Micro-batches in a batch on each device.
        learning_rate: The rate, the highest where it changes.
        iterations: Updates that the plan needs, as predicted.
        examples: Examples, likewise.
        schedule: How the batch size changes in the course; None where it does not.
        predicted_seconds: Time of training to the goal, steps and data, evaluation excluded; at 90%.
        predicted_score: Score at the goal; at 90%.
        peak_memory_bytes: Peak memory on each device; None where it was not measured.
        critical_batch_size: Where more examples per update stop saving updates, near the goal.
        noise_scale: tr Σ/‖G‖² of the gradients on the way.
        throughput_knee: Where examples/s stop growing.
        cost_seconds: What the advice cost, in seconds.
        spending: What that went into.
        reasons: Why, with the numbers, in sentences.
        frontier: A row per batch size, ascending.
        alternatives: Batch sizes that the evidence can't tell from the advised one.
        present: The person's present setting; None where it could not be judged.
        race: Every candidate.
        judged_by: How candidates were judged, in words.
        devices: Devices that share each batch.
        plan: What :func:`batchscope.train` takes; None where there is no answer.
        warnings: What to know before trusting the numbers.
        interrupted: Whether it was stopped before its budget was spent.
        provenance: Software, machine and seed.
        price_per_hour: Price of a device for an hour; None without.
        power: Power of a device against batch size; None where it was neither given nor asked for.
        time_share: Share of time in the blend of energy and time that is least; None: time alone is.
        predicted_cost: Price of the predicted time on all devices; None without a price.
        predicted_joules: Energy of the predicted time on all devices; None where no power is known.
    """

    kind: ClassVar[str] = "advice"

    workload: WorkloadSummary
    goal: Goal
    conclusion: str
    batch_size: int | None
    micro_batch_size: int | None
    accumulation_steps: int | None
    learning_rate: float | None
    iterations: int | None
    examples: int | None
    schedule: Schedule | None
    predicted_seconds: Interval
    predicted_score: Interval
    peak_memory_bytes: int | None
    critical_batch_size: Interval
    noise_scale: Interval
    throughput_knee: Interval
    cost_seconds: float
    spending: tuple[Spending, ...]
    reasons: tuple[str, ...]
    frontier: tuple[FrontierRow, ...]
    alternatives: tuple[int, ...]
    present: PresentSetting | None
    race: tuple[RaceCandidate, ...]
    judged_by: str
    devices: int
    plan: Plan | None
    warnings: tuple[str, ...]
    interrupted: bool
    provenance: Provenance
    price_per_hour: float | None = None
    power: PowerUse | None = None
    time_share: float | None = None
    predicted_cost: Interval | None = None
    predicted_joules: Interval | None = None

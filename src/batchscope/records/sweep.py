"""The exhaustive answer: batch size × learning rate × seed, the best of each batch size, and the laws through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.comparison import WorkloadSummary
from batchscope.records.interval import Interval
from batchscope.records.plan import Order, Shape
from batchscope.records.provenance import Provenance
from batchscope.records.step_time import StepTimes
from batchscope.records.tradeoff import TradeoffLaw
from batchscope.records.training import CurvePoint

TrialOutcome = Literal["reached", "finished", "diverged", "pruned", "out of memory", "crashed", "timed out"]
Edge = Literal["lowest", "highest"]
Engine = Literal["local", "ray"]
RateForm = Literal["power", "saturating"]


@dataclass(frozen=True)
class SweepTrial:
    """One batch size, one learning rate, one seed, and what came of them.

    Attributes:
        batch_size: Examples per update.
        learning_rate: The rate, at the first update where it falls.
        seed: Seed of initial weights and data order.
        outcome: "reached" the target; "finished" its budget (with a target: without reaching it); "diverged"; "pruned",
            stopped because it could not be the best of its batch size any more; "out of memory"; "crashed", where the
            process died; "timed out", where nothing was heard of it for too long.
        examples_to_target: Examples until the first evaluation at or above the target; None where it was not reached,
            or where there is none.
        examples: Examples trained on; without the target reached, examples to target are more than these.
        iterations: Updates made.
        best_score: Highest validation score; None where none was finite.
        best_loss: Lowest validation loss; None where none was finite.
        final_score: Validation score at the end; None unless the run reached the target or finished its budget.
        step_seconds: Time of its updates were it trained alone: ``iterations`` times the time measured for an update
            of this batch size; None where that was not measured.
        sweep_seconds: What it cost in the sweep: its share of the time of the stack that it was in.
        stack_size: Runs trained together with it; None where it was trained by itself.
        message: Why it ended, where the outcome alone does not say.
        curve: Its evaluations.
    """

    batch_size: int
    learning_rate: float
    seed: int
    outcome: TrialOutcome
    examples_to_target: int | None
    examples: int
    iterations: int
    best_score: float | None
    best_loss: float | None
    final_score: float | None
    step_seconds: float | None
    sweep_seconds: float
    stack_size: int | None
    message: str | None
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class SweepBest:
    """The best learning rate of one batch size, and what it needs.

    Attributes:
        batch_size: Examples per update.
        learning_rate: The best rate: fewest examples to the target in the geometric mean over seeds, or best mean
            score where there is no target; None where no trial gives one.
        edge: "lowest" or "highest" where the best rate lies at that end of what was tried, so that a better one may
            lie beyond; None where both sides are worse.
        rates: Learning rates tried, ascending.
        runs: Runs at the best rate.
        reached: Those that reached the target; 0 without one.
        examples_to_target: Geometric mean over the runs at the best rate, a missed target counted with what was spent;
            unresolved where none reached it.
        updates_to_target: ``examples_to_target / batch_size``.
        score: Best validation score, mean over the runs at the best rate.
        update_seconds: Time of an update alone, measured; None where it was not.
        seconds_to_target: ``updates_to_target`` times that.
        examples_spent: Examples trained on at this batch size, all trials.
        trials: Trials made at this batch size.
        pruned: Those that were pruned.
        trained_as: How trials were trained: "replicas" or "separate runs", with the reason.
    """

    batch_size: int
    learning_rate: float | None
    edge: Edge | None
    rates: tuple[float, ...]
    runs: int
    reached: int
    examples_to_target: Interval
    updates_to_target: Interval
    score: Interval
    update_seconds: float | None
    seconds_to_target: Interval
    examples_spent: int
    trials: int
    pruned: int
    trained_as: str


@dataclass(frozen=True)
class RatePoint:
    """The best learning rate of one batch size, as the rate's law is fitted to it.

    Attributes:
        batch_size: Examples per update.
        learning_rate: The best rate, between the rates tried where a parabola through its neighbours says so.
        low: The rate below it at which training is clearly worse, or the lowest tried.
        high: The rate above it at which training is clearly worse, or the highest tried.
        edge: Where the best lies at an end of what was tried: only a bound then.
        predicted: What the law gives.
    """

    batch_size: int
    learning_rate: float
    low: float
    high: float
    edge: Edge | None
    predicted: float


@dataclass(frozen=True)
class RateLaw:
    """The best learning rate against batch size.

    "power": ε(B) = c·B^α. "saturating": ε(B) = ε_max/(1 + B_half/B), linear below B_half and flat above (McCandlish et
    al. 2018, arXiv 1812.06162, equation 2.7); chosen where it predicts left-out batch sizes better.

    Attributes:
        form: Which of the two.
        exponent: α of the power law, fitted beside the other form too: 1 is the linear rule, ½ the square root's.
        largest_rate: ε_max of the saturating form; unresolved in the power law or where the data do not show it.
        half_batch_size: B_half of the saturating form; likewise.
        coefficient: c of the power law.
        leave_one_out_error: Root mean square error of log ε at left-out batch sizes; None below four.
        points: A line per batch size, ascending.
        verdict: What that says about the scaling rules, in a sentence.
    """

    form: RateForm
    exponent: Interval
    largest_rate: Interval
    half_batch_size: Interval
    coefficient: float
    leave_one_out_error: float | None
    points: tuple[RatePoint, ...]
    verdict: str


@dataclass(frozen=True)
class TimePoint:
    """Time to the target at one batch size.

    Attributes:
        batch_size: Examples per update.
        update_seconds: Time of an update alone.
        examples: Examples to the target by the law.
        seconds: Their product over the batch size, with the uncertainty of both.
        on_front: Whether no other batch size needs both fewer examples and less time.
    """

    batch_size: int
    update_seconds: Interval
    examples: Interval
    seconds: Interval
    on_front: bool


@dataclass(frozen=True)
class TimeToTarget:
    """Seconds to the target against batch size: the trade-off law times the time of an update.

    Attributes:
        points: A line per batch size measured, ascending.
        best_batch_size: Where the product is least; unresolved where the law is not.
        best_seconds: The least seconds.
        within_ten_per_cent: Smallest and largest batch size whose time is within a tenth of the least; None where
            unresolved.
        verdict: That, in a sentence.
    """

    points: tuple[TimePoint, ...]
    best_batch_size: Interval
    best_seconds: Interval
    within_ten_per_cent: tuple[int, int] | None
    verdict: str


@dataclass(frozen=True)
class Sweep(Record):
    """Every trial of a sweep over batch size, learning rate and seed, the best of each batch size, and the laws.

    Attributes:
        workload: What was trained.
        target: The validation score to reach; None where scores at a budget were asked for.
        budget_examples: Most examples of a trial.
        shape: The rate over the budget.
        order: How batches were drawn.
        seeds: Seeds; each counts at the best rates, fewer at rates that are clearly worse.
        evaluate_every_examples: Examples between two evaluations: examples to the target are that coarse.
        searched: Whether rates were searched; False where they were given.
        pruning: Whether trials that could not win were stopped.
        engine: What ran the trials.
        processes: Worker processes.
        trials: Every trial, by batch size, rate and seed.
        best: A line per batch size.
        law: Examples to the target against batch size; None without a target, or where nothing reached it.
        rate_law: The best rate against batch size; None below three batch sizes.
        time: Seconds to the target; None without a law or without step times.
        step_times: Time of an update against batch size, each trained alone; None where not measured.
        examples_spent: Examples trained on, all trials.
        total_seconds: Wall-clock time, over all sittings where it was resumed.
        conclusion: The answer, in sentences.
        interrupted: Whether it was stopped before the end.
        error: What stopped it, if an error did.
        provenance: Software, machine and seed.
        warnings: What to know before trusting the times, such as that the machine was busy when updates were timed.
    """

    kind: ClassVar[str] = "sweep"

    workload: WorkloadSummary
    target: float | None
    budget_examples: int
    shape: Shape
    order: Order
    seeds: tuple[int, ...]
    evaluate_every_examples: int
    searched: bool
    pruning: bool
    engine: Engine
    processes: int
    trials: tuple[SweepTrial, ...]
    best: tuple[SweepBest, ...]
    law: TradeoffLaw | None
    rate_law: RateLaw | None
    time: TimeToTarget | None
    step_times: StepTimes | None
    examples_spent: int
    total_seconds: float
    conclusion: str
    interrupted: bool
    error: str | None
    provenance: Provenance
    warnings: tuple[str, ...] = ()

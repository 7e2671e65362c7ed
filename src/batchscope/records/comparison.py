"""The answer to the question: batch size a for b iterations, or batch size c for d?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.interval import Interval
from batchscope.records.plan import Order, Shape
from batchscope.records.provenance import Provenance
from batchscope.records.training import TrainResult

RateHandling = Literal["search", "rescaled", "fixed"]


@dataclass(frozen=True)
class WorkloadSummary:
    """What was trained.

    Attributes:
        name: The workload's name.
        parameters: Number of trainable numbers in the model.
        training_examples: Size of the training set.
        validation_examples: Size of the validation set.
        optimizer: The optimiser's class.
        loss: Name of the loss function.
        score: Name of the score function; "minus the loss" where there is none.
        batch_size: What the person uses today.
        learning_rate: What the person uses today.
        tokens_per_example: Of training examples, in the mean; None where the workload does not say.
        options: Clipping, precision, compilation, warm-up and shape as the workload gives them; None: none of them.
    """

    name: str
    parameters: int
    training_examples: int
    validation_examples: int
    optimizer: str
    loss: str
    score: str
    batch_size: int
    learning_rate: float
    tokens_per_example: float | None = None
    options: str | None = None


@dataclass(frozen=True)
class RateTrial:
    """One run of a learning-rate search.

    Attributes:
        learning_rate: The rate tried.
        loss: Validation loss at its end; infinite where it diverged.
        score: Validation score at its end; None where it diverged.
        outcome: How the run ended.
        seed: Its seed; None where it stands for several, or was not recorded.
        examples: Its planned length: the whole budget, or less where it only said where to begin; None where not
            recorded.
    """

    learning_rate: float
    loss: float
    score: float | None
    outcome: str
    seed: int | None = None
    examples: int | None = None


@dataclass(frozen=True)
class RateSearch:
    """The search for the learning rate of one row.

    Attributes:
        batch_size: Examples per update.
        horizon_examples: Length of the runs that the choice was made by: the row's whole budget.
        trials: Every run, screening runs first, by rate and seed.
        learning_rate: What was chosen.
        at_edge: True where the best rate lies at an end of what was tried, so that a better one may lie beyond.
        examples: Examples that the search trained on.
        seconds: Time that the search took.
        seeds: Seeds of the search, none of them a seed of the rows; empty where not recorded.
        interpolated: True where the chosen rate was not trained in the search: the least loss of a parabola through
            the best rate and its neighbours.
        curve: Validation loss against rate at ``horizon_examples``, one point a rate, made comparable over rates that
            were tried with different seeds: the best rate's mean plus the mean difference from it over common seeds.
            Empty where not recorded.
    """

    batch_size: int
    horizon_examples: int
    trials: tuple[RateTrial, ...]
    learning_rate: float
    at_edge: bool
    examples: int
    seconds: float
    seeds: tuple[int, ...] = ()
    interpolated: bool = False
    curve: tuple[RateTrial, ...] = ()


@dataclass(frozen=True)
class ComparisonRow:
    """One way to spend the budget: its score, time and memory over the seeds.

    Attributes:
        batch_size: Examples per update.
        iterations: Updates.
        examples: ``batch_size * iterations``.
        learning_rate: The rate at the first update.
        finished: Runs that ended in order; the intervals below are over these.
        diverged: Runs that diverged.
        failed: Runs that ran out of memory.
        score: Validation score at the end, mean with a 95% interval over seeds.
        best_score: Best validation score on the way.
        loss: Validation loss at the end.
        best_loss: Best validation loss on the way.
        training_score: Score of the final weights on training examples.
        training_loss: Loss of the final weights on training examples.
        generalisation_gap: Training score minus validation score of the final weights.
        step_seconds: Time of a run in steps and data, median over seeds; None where no run finished. Where the machine
            was busy during some runs, the others alone count for times, if there are two.
        step_seconds_low: Its fastest run; less the share that others took, where none was quiet.
        step_seconds_high: Its slowest run.
        data_seconds: Time of a run in gathering batches alone, median.
        examples_per_second: Examples over ``step_seconds``.
        peak_memory_bytes: Largest over the runs; None where it cannot be read.
        common_score_reached: Runs that reached the comparison's ``common_score``.
        examples_to_common_score: Examples until then, median over the runs that reached it.
        seconds_to_common_score: Training time until then, median over the runs that reached it.
        search_seconds: What finding the learning rate took; 0 without a search.
        search_examples: Examples that finding the learning rate took.
    """

    batch_size: int
    iterations: int
    examples: int
    learning_rate: float
    finished: int
    diverged: int
    failed: int
    score: Interval
    best_score: Interval
    loss: Interval
    best_loss: Interval
    training_score: Interval
    training_loss: Interval
    generalisation_gap: Interval
    step_seconds: float | None
    step_seconds_low: float | None
    step_seconds_high: float | None
    data_seconds: float | None
    examples_per_second: float | None
    peak_memory_bytes: int | None
    common_score_reached: int
    examples_to_common_score: float | None
    seconds_to_common_score: float | None
    search_seconds: float
    search_examples: int


@dataclass(frozen=True)
class Difference:
    """One pair of rows, compared seed by seed.

    Attributes:
        first: Index of the first row.
        second: Index of the second row.
        seeds: Seeds for which both rows finished.
        score: Final score of the first minus that of the second, mean over the paired seeds with its interval.
        loss: Final validation loss of the first minus that of the second.
        seconds_ratio: Time of the first over time of the second, geometric mean over the paired seeds; wider by what
            contention leaves open where the machine was busy.
        score_p_value: Two-sided p value of the paired t test on the scores, adjusted for the number of pairs (Holm);
            None with fewer than two seeds.
        seconds_p_value: The same for the logarithm of the times.
        score_told_apart: Whether the scores can be told apart at the 5% level after that adjustment.
        seconds_told_apart: Whether the times can.
    """

    first: int
    second: int
    seeds: int
    score: Interval
    loss: Interval
    seconds_ratio: Interval
    score_p_value: float | None
    seconds_p_value: float | None
    score_told_apart: bool
    seconds_told_apart: bool


@dataclass(frozen=True)
class Comparison(Record):
    """Several ways to spend the same number of examples, trained from the same initial weights per seed.

    Attributes:
        workload: What was trained.
        learning_rate: How rates were chosen: "search" at every batch size, "rescaled" from the reference by the
            optimiser's rule, or "fixed" at the reference.
        shape: The rate over the budget.
        order: How batches were drawn.
        seeds: The seeds, one run each per row.
        evaluate_every_examples: Distance of the evaluations, the same for every row.
        rows: One for each batch size and number of iterations, in the order given.
        differences: One for each pair of rows.
        common_score: The highest score that every finished run reached; None where there was no finished run.
        conclusion: The answer in words, never saying more than the intervals do.
        searches: The learning-rate searches, one a row; empty without one.
        runs: Every run, with its curve.
        total_seconds: What the whole comparison took, runs restored from a store counted at what they took then.
        interrupted: True where it was stopped before every run was done.
        provenance: Software, machine and seed.
        error: What stopped it, where an error did; the runs finished until then are kept. None otherwise.
        contention: Share of the processor time that the comparison needed and other programs took; None where unknown.
            Runs of half a second and more know their own.
    """

    kind: ClassVar[str] = "comparison"

    workload: WorkloadSummary
    learning_rate: RateHandling
    shape: Shape
    order: Order
    seeds: tuple[int, ...]
    evaluate_every_examples: int
    rows: tuple[ComparisonRow, ...]
    differences: tuple[Difference, ...]
    common_score: float | None
    conclusion: str
    searches: tuple[RateSearch, ...]
    runs: tuple[TrainResult, ...]
    total_seconds: float
    interrupted: bool
    provenance: Provenance
    error: str | None = None
    contention: float | None = None

    def search_of(self, row: ComparisonRow) -> RateSearch | None:
        """The search that a row's rate comes from; None without one."""
        own = [search for search in self.searches if search.batch_size == row.batch_size]
        return next((search for search in own if search.horizon_examples == row.examples), own[0] if own else None)

    def runs_of(self, row: ComparisonRow) -> tuple[TrainResult, ...]:
        """The runs behind a row, in the order of the seeds."""
        return tuple(
            run for run in self.runs if (run.plan.batch_size, run.plan.iterations) == (row.batch_size, row.iterations)
        )

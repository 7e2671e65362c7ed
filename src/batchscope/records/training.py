"""What one training run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.plan import Plan
from batchscope.records.provenance import Provenance

Outcome = Literal["reached", "finished", "stopped early", "diverged", "interrupted", "out of memory", "pruned"]
# Outcomes of a run that did what its plan says, so that its final score counts.
IN_ORDER: tuple[Outcome, ...] = ("reached", "finished", "stopped early")


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation of a run.

    Attributes:
        examples: Training examples seen so far.
        iterations: Parameter updates so far.
        seconds: Time in steps and data so far; evaluation is off this clock.
        learning_rate: Rate of the last update; of the first one to come where there was none yet.
        training_loss: Mean loss of the batches since the last evaluation; None before the first update.
        validation_loss: Loss on the validation set.
        score: Score on the validation set, higher is better.
        batch_size: Examples in the last update, or in the first one to come; the last one of a budget may be cut short.
        noise_scale: Gradient noise scale of late, in examples; None where it was not measured, or is not resolved.
    """

    examples: int
    iterations: int
    seconds: float
    learning_rate: float
    training_loss: float | None
    validation_loss: float
    score: float
    batch_size: int | None = None
    noise_scale: float | None = None


@dataclass(frozen=True)
class TrainResult(Record):
    """One training run: how it ended, what it reached, what it cost, and its curve.

    Attributes:
        workload: The workload's name.
        plan: What was asked for.
        seed: Seed of initial weights, data order and everything else random.
        outcome: "reached" the target, "finished" the budget, "stopped early" by patience, "diverged", "interrupted"
            or "out of memory"; in a sweep also "pruned", stopped because it could not be the best any more.
        reached: Whether the target was reached; False where there was none.
        examples: Training examples seen.
        iterations: Parameter updates made, without those that were skipped.
        data_seconds: Time spent gathering batches.
        compute_seconds: Time spent in forward, backward and update.
        step_seconds: Both together: the time that training takes.
        evaluation_seconds: Time spent evaluating, which is off the training clock.
        total_seconds: Everything, set-up included.
        best_score: Highest validation score at an evaluation; None where none was finite.
        best_loss: Lowest validation loss at an evaluation; None where none was finite.
        best_examples: Examples seen when ``best_score`` was first reached.
        final_score: Validation score at the end; None unless the run ended in order.
        final_loss: Validation loss at the end; None unless the run ended in order.
        training_score: Score of the final weights on training examples, as many as there are validation examples
            where there are enough.
        training_loss: Loss of the final weights on the same training examples.
        generalisation_gap: ``training_score - final_score``.
        peak_memory_bytes: Peak memory of the run: on CUDA what the allocator held, on Linux the growth of resident
            memory over its level before the run; None where it cannot be read.
        diverged_at_iteration: The update whose loss was the first to be not finite or to explode; None otherwise.
        message: Why it ended, where the outcome alone does not say.
        curve: The evaluations, the one before the first update included.
        provenance: Software, machine and seed.
        micro_batch_size: Examples that passed through the model at once at the end: as planned, or fewer where memory
            ran out. None where that was not recorded.
        stack_size: Runs in the stack of replicas that it began in; its seconds are then its share of the stack's. None
            where it was trained by itself.
        ranks: Data-parallel processes that shared each batch; times and memory are those of the first.
        skipped_updates: Batches whose update was skipped with ``precision="fp16"``, since scaled gradients overflowed.
            They count among the examples, and not among the updates.
        compile_seconds: Time that torch.compile took, which is in none of the times but the total; None: nothing was
            compiled.
        notes: What was done otherwise than the workload says.
        contention: Share of the processor time that the run needed and other programs took, so that its times are too
            long by up to 1/(1 − contention); 0 on a quiet machine. None where unknown: a run of less than half a
            second, one in a stack or on several ranks, another system than Linux.
        state: Weights at the best validation score (a state dict); in memory only.
    """

    kind: ClassVar[str] = "training"

    workload: str
    plan: Plan
    seed: int
    outcome: Outcome
    reached: bool
    examples: int
    iterations: int
    data_seconds: float
    compute_seconds: float
    step_seconds: float
    evaluation_seconds: float
    total_seconds: float
    best_score: float | None
    best_loss: float | None
    best_examples: int | None
    final_score: float | None
    final_loss: float | None
    training_score: float | None
    training_loss: float | None
    generalisation_gap: float | None
    peak_memory_bytes: int | None
    diverged_at_iteration: int | None
    message: str | None
    curve: tuple[CurvePoint, ...]
    provenance: Provenance
    micro_batch_size: int | None = None
    stack_size: int | None = None
    ranks: int = 1
    skipped_updates: int = 0
    compile_seconds: float | None = None
    notes: tuple[str, ...] = ()
    contention: float | None = None
    state: dict[str, Any] | None = field(default=None, metadata={"json": False}, repr=False, compare=False)

    @property
    def ended_in_order(self) -> bool:
        """Whether the run did what its plan says, so that its final score counts."""
        return self.outcome in IN_ORDER

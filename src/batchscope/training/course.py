"""Where one run stands on its way: its curve, its best, its next evaluation, and what ends it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from batchscope.provenance import provenance
from batchscope.records import CurvePoint, Outcome, Phase, Plan, Schedule, TrainResult
from batchscope.records.training import IN_ORDER
from batchscope.training.checkpoint import Progress
from batchscope.training.early_stopping import BestSoFar
from batchscope.workload.workload import Workload

# A loss this many times the initial one has exploded, though it may never become infinite.
EXPLOSION = 1000.0
# Skipped updates in a row after which a run in half precision has diverged. Each halves the scale of the loss: 32 take
# it from torch's first 2^16 to 2^-16, where only an infinite loss has gradients that overflow.
MOST_SKIPPED = 32


def completed(plan: Plan, workload: Workload) -> tuple[Plan, str | None]:
    """A plan with the shape and the warm-up of the workload where it leaves them open.

    Args:
        plan: What is asked for.
        workload: What is to be trained.

    Returns:
        The plan, and a note where the workload's shape cannot be followed; None where there is nothing to say.

    Examples:
        >>> import dataclasses
        >>> from batchscope.workload.digits import digits
        >>> workload = dataclasses.replace(digits(), shape="cosine", warmup_examples=640)
        >>> plan, note = completed(Plan(batch_size=64, learning_rate=0.1, iterations=100), workload)
        >>> plan.shape, plan.warmup_examples, note
        ('cosine', 640, None)
    """
    shape, warmup, note = plan.shape, plan.warmup_examples, None
    if shape is None:
        shape = workload.shape
        if shape != "constant" and plan.budget_examples is None:
            note = (
                f"the rate was kept constant: the workload's {shape} shape needs a length, and the plan has only a "
                f"target; give examples or iterations as well"
            )
            shape = "constant"
    return replace(plan, shape=shape, warmup_examples=workload.warmup_examples if warmup is None else warmup), note


class Course:
    """The bookkeeping of one run, whoever makes its updates: by itself, or in a stack with others.

    Args:
        workload: What is trained.
        plan: Its target and patience end the run.
        budget: Most examples to train on.
        evaluate_every: Examples between two evaluations.
        next_place: Examples at which the next one is due, after so many; None: every ``evaluate_every``.
        keep_going: Asked after each evaluation that doesn't end the run; False ends it as "pruned".

    Attributes:
        progress: How far it is, and its curve.
        best: The best of its evaluations.
        diverged_at: The update that diverged; None: none has.
        message: Why it ended, where the outcome alone does not say.
        notes: What was done otherwise than the workload says.
    """

    def __init__(
        self,
        workload: Workload,
        plan: Plan,
        *,
        budget: int,
        evaluate_every: int,
        next_place: Callable[[int], int] | None = None,
        keep_going: Callable[[CurvePoint], bool] | None = None,
    ) -> None:
        self.workload = workload
        self.plan, note = completed(plan, workload)
        self.notes = [] if note is None else [note]
        self.budget, self.evaluate_every, self.keep_going = budget, evaluate_every, keep_going
        self.next_place = next_place
        self.progress = Progress()
        self.best = BestSoFar(tolerance=plan.tolerance, patience=plan.patience)
        self.diverged_at: int | None = None
        self.message: str | None = None

    @property
    def schedule(self) -> Schedule:
        """The batch sizes: as planned, or as they have grown by measurement."""
        return self.progress.schedule or self.plan.batch_sizes

    @property
    def iterations(self) -> int:
        """Updates of the whole budget."""
        return self.schedule.updates(self.budget)

    def grow(self, batch_size: int) -> None:
        """From the next update on, make them of another batch size.

        Args:
            batch_size: Examples in each.
        """
        self.progress.schedule = self.schedule.then(Phase(self.progress.examples, batch_size))

    def made(self, *, skipped: bool) -> None:
        """Take note of an update, or of one that was skipped.

        Args:
            skipped: Whether the scaler of a run in half precision skipped it, which has changed no weight.
        """
        progress = self.progress
        progress.iterations += 1
        progress.skipped += skipped
        progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0

    def exploded(self, losses: Sequence[float]) -> bool:
        """Take in the losses of the last updates; whether one of them has exploded.

        Args:
            losses: In order, the last one that of the latest update; those of skipped updates are left out.

        Returns:
            Whether one is not finite, or ``EXPLOSION`` times the first validation loss; or the last ``MOST_SKIPPED``
            updates were all skipped.
        """
        self.progress.losses.extend(losses)
        limit = EXPLOSION * max(1.0, abs(self.progress.curve[0].validation_loss))
        for i, loss in enumerate(losses):
            if not abs(loss) <= limit:  # so that nan counts
                self.diverged_at = self.progress.updates - len(losses) + i + 1
                self.message = f"the loss of update {self.diverged_at:,} is {loss:.4g}"
                return True
        if self.progress.skipped_in_a_row >= MOST_SKIPPED:
            self.diverged_at = self.progress.updates + 1
            self.message = f"the gradients of the last {self.progress.skipped_in_a_row} batches were not finite"
            return True
        return False

    def evaluated(
        self, validation_loss: float, score: float, *, learning_rate: float, noise_scale: float | None = None
    ) -> bool:
        """Take in an evaluation.

        Args:
            validation_loss: Loss on the validation set.
            score: Score on it.
            learning_rate: Rate of the last update, or of the first one to come.
            noise_scale: Gradient noise scale, where it is known.

        Returns:
            Whether it is the best score yet.
        """
        progress, losses = self.progress, self.progress.losses
        point = CurvePoint(
            examples=progress.examples,
            iterations=progress.updates,
            seconds=progress.seconds,
            learning_rate=learning_rate,
            # Summed exactly, so that it does not matter in which groups the losses were read.
            training_loss=math.fsum(losses) / len(losses) if losses else None,
            validation_loss=validation_loss,
            score=score,
            batch_size=self.schedule.batch_size_at(max(0, progress.iterations - 1)),
            noise_scale=noise_scale,
        )
        losses.clear()
        progress.curve.append(point)
        return self.best.update(score, validation_loss, progress.examples)

    def ending(self) -> Outcome | None:
        """What the last evaluation ends the run with, if anything; the end of the budget is none of its business."""
        point = self.progress.curve[-1]
        if not math.isfinite(point.validation_loss):
            self.diverged_at = point.iterations
            self.message = f"the validation loss after update {point.iterations:,} is {point.validation_loss:.4g}"
            return "diverged"
        if self.plan.target is not None and point.score >= self.plan.target:
            return "reached"
        if self.best.should_stop:
            return "stopped early"
        unfinished = self.progress.iterations < self.iterations
        return "pruned" if unfinished and self.keep_going is not None and not self.keep_going(point) else None

    def next_evaluation(self) -> int:
        """The first update at or after the next multiple of ``evaluate_every`` examples, or the last update."""
        if self.next_place is not None:
            place = max(self.next_place(self.progress.examples), self.progress.examples + 1)
        else:
            place = (self.progress.examples // self.evaluate_every + 1) * self.evaluate_every
        return min(self.schedule.updates(place), self.iterations)

    def result(
        self,
        outcome: Outcome,
        *,
        seed: int,
        device: torch.device,
        total_seconds: float,
        training: tuple[float, float] | None = None,
        peak_memory_bytes: int | None = None,
        micro_batch_size: int | None = None,
        stack_size: int | None = None,
        ranks: int = 1,
        contention: float | None = None,
    ) -> TrainResult:
        """The run's result.

        Args:
            outcome: How it ended.
            seed: Its seed.
            device: Where it was trained.
            total_seconds: Everything, set-up included.
            training: Loss and score of the final weights on training examples; None: not evaluated.
            peak_memory_bytes: Peak memory; None: not measured.
            micro_batch_size: Examples that passed through the model at once.
            stack_size: Runs it was trained together with; None: alone.
            ranks: Processes that shared each batch.
            contention: Share of the processor time that it needed and others took; None: unknown.

        Returns:
            The record.
        """
        progress, best = self.progress, self.best
        final = progress.curve[-1] if outcome in IN_ORDER else None
        training_loss, training_score = training or (None, None)
        return TrainResult(
            workload=self.workload.title,
            plan=self.plan,
            seed=seed,
            outcome=outcome,
            reached=outcome == "reached",
            examples=progress.examples,
            iterations=progress.updates,
            data_seconds=progress.data_seconds,
            compute_seconds=progress.seconds - progress.data_seconds,
            step_seconds=progress.seconds,
            evaluation_seconds=progress.evaluation_seconds,
            total_seconds=total_seconds,
            best_score=best.score,
            best_loss=best.loss,
            best_examples=best.examples,
            final_score=final.score if final else None,
            final_loss=final.validation_loss if final else None,
            training_score=training_score,
            training_loss=training_loss,
            generalisation_gap=training_score - final.score if final and training_score is not None else None,
            peak_memory_bytes=peak_memory_bytes,
            diverged_at_iteration=self.diverged_at,
            message=self.message,
            micro_batch_size=micro_batch_size,
            curve=tuple(progress.curve),
            provenance=provenance(self.workload, device=device, seed=seed),
            stack_size=stack_size,
            ranks=ranks,
            notes=tuple(self.notes),
            skipped_updates=progress.skipped,
            compile_seconds=progress.compile_seconds or None,
            contention=contention,
            state=best.state,
        )

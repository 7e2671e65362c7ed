"""One candidate that trains in this process, by the one training loop, in pieces.

A candidate is compared by the training loss of its batches before their updates: as long as no example is seen twice,
that is an unbiased estimate of the loss on new data, for nothing (progressive validation: Blum, Kalai, Langford 1999).
All candidates see the same examples in the same order. The score that the goal is about is evaluated beside it, on
averaged weights as the plan ends with, as often as a tenth of the training time pays for. Where examples are seen again
the loss of those evaluations takes the training loss's place, shifted by what they differed by before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from batchscope.errors import RunError
from batchscope.records import CurvePoint, Plan, TrainResult
from batchscope.search.anytime import AnytimeRate
from batchscope.search.candidates import Ended, Point, Setting
from batchscope.search.shared import EVALUATION_SECONDS, Shared
from batchscope.seeding import derive
from batchscope.training.averaging import POWER
from batchscope.training.evaluation import EvaluationData
from batchscope.training.loop import Run

# Updates are made in pieces of about this long, so that a deadline and Ctrl-C are seen in time.
PIECE_SECONDS = 0.1
# The first pieces are shorter, each this share of the updates so far.
PIECE_GROWTH = 0.3
# The training loss at one moment is the mean over this last part of the updates so far: long enough to average the
# batches' scatter, and the same part at every moment, so that curves keep their shape.
WINDOW = 1 / 3
# Evaluating may take this share of all training; points of a curve are so far apart in time at least.
EVALUATION_SHARE, EVALUATION_RATIO = 0.1, 1.2
# Where examples are seen again nothing but evaluations says how well a candidate does: they may take this share.
REPEATED_SHARE = 0.5
# Points stand a factor of this apart in updates.
POINT_RATIO = 1.15
# Of the run that is trained to the goal: two evaluations lie no nearer than this share of the validation set;
# evaluating an example takes a third of training on it.
FINAL_SHARE, FORWARD_SPEED = 0.5, 3.0


class _SearchRun(Run):
    """A run whose fresh weights, the same for all candidates, are evaluated once."""

    source: Shared

    def _loss_and_score(self, data: EvaluationData) -> tuple[float, float]:
        if self.progress.iterations:
            return super()._loss_and_score(data)
        if self.source.fresh is None:
            few = self.source.validation
            for _ in range(2):  # the first one warms up, which hardly counts in a long one
                began = time.perf_counter()
                fresh = super()._loss_and_score(few)
                taken = time.perf_counter() - began
                if taken > EVALUATION_SECONDS:
                    break
            self.source.choose_examples(taken / len(few.indices))
            self.validation = self.source.validation
            self.source.fresh = fresh if self.validation is few else super()._loss_and_score(self.validation)
            self.source.check_target()
        return self.source.fresh


class Trained:
    """One setting, trained by the one loop.

    Args:
        source: The search's.
        setting: The batch size and the learning rate.
    """

    def __init__(self, source: Shared, setting: Setting) -> None:
        self.source, self._setting = source, setting
        self.run: _SearchRun | None = None
        self.result: TrainResult | None = None
        self.cost_seconds = 0.0
        self._losses: list[float] = []
        self._evaluations: list[CurvePoint] = []
        self._ended: Ended | None = None
        self._evaluated_at = 0.0  # seconds of training at the last evaluation
        self._seconds = 0.0  # of training in wall time
        self._points: tuple[tuple[object, ...], list[Point]] | None = None  # as they were last asked for

    @property
    def setting(self) -> Setting:
        """The batch size and the learning rate."""
        return self._setting

    @property
    def ended(self) -> Ended | None:
        """Why it cannot go on; None where it can."""
        return self._ended

    @property
    def updates(self) -> int:
        """Updates made."""
        return len(self._losses)

    @property
    def memory_bytes(self) -> int:
        """Weights, gradients, the optimiser's state and the average."""
        if self.run is None:
            return 0
        own = sum(p.numel() * p.element_size() for p in self.run.model.parameters())
        state = sum(
            value.numel() * value.element_size()
            for values in self.run.optimizer.state.values()
            for value in values.values()
            if hasattr(value, "numel")
        )
        return int(3 * own + state)

    @property
    def evaluations(self) -> Sequence[CurvePoint]:
        """Evaluations of the averaged weights, fresh ones first."""
        return self._evaluations

    @property
    def points(self) -> Sequence[Point]:
        """How it stood, from fresh weights on."""
        size, each = self._setting.batch_size, self.source.update_seconds(self._setting.batch_size)
        if not self._losses:
            return ()
        if math.isnan(each):  # it ended in its first update
            each = max(self._seconds, 1e-6)
        state = (self.updates, len(self._evaluations), self._ended, each, self.source.shift)
        if self._points is None or self._points[0] != state:
            self._points = state, self._find_points(size, each)
        return self._points[1]

    def _find_points(self, size: int, each: float) -> list[Point]:
        first_pass = self.source.workload.training_examples
        scored = {point.iterations: point for point in self._evaluations}
        places = set(scored) | {self.updates}
        place = 1.0
        while place < self.updates:
            places.add(round(place))
            place = max(place + 1, place * POINT_RATIO)
        found = [self._fresh_point()]
        for updates in sorted(places - {0}):
            evaluated = scored.get(updates)
            loss, error = self._training_loss(updates)
            examples = updates * size
            if examples > first_pass:
                if evaluated is None:
                    continue
                loss = evaluated.validation_loss + (self.source.shift or 0.0)
            score = evaluated.score if evaluated is not None else None
            found.append(Point(examples, updates, updates * each, loss, error, score))
        if self._ended == "diverged":
            last = found[-1]
            found[-1] = Point(last.examples, last.updates, max(last.seconds, each), math.inf)
        return found

    def _fresh_point(self) -> Point:
        fresh = self.source.fresh
        loss, error = self._losses[0], 0.0
        # All candidates have the same fresh weights: what the first batch of each says is one estimate.
        first = [(size, value) for size, value in self.source.first_losses if math.isfinite(value)]
        if len(first) > 1 or (first and not math.isfinite(loss)):
            sizes, values = np.array(first).T
            loss = float(np.average(values, weights=sizes))
            error = math.sqrt(float(np.average((values - loss) ** 2, weights=sizes)) / len(first))
        return Point(0, 0, 0.0, loss, error, None if fresh is None else fresh[1])

    def _training_loss(self, updates: int) -> tuple[float, float]:
        count = max(1, round(WINDOW * updates))
        window = np.array(self._losses[updates - count : updates])
        if count > 2:
            return float(window.mean()), float(window.std() / math.sqrt(count))
        spread = np.std(self._losses[: max(3, updates)]) if len(self._losses) > 1 else abs(self._losses[0])
        return float(window.mean()), float(spread / math.sqrt(count))

    def advance(self, seconds: float) -> None:
        """Train until its own clock shows so many seconds, in pieces."""
        began = time.perf_counter()
        if self.run is None:
            self._make()
        size = self._setting.batch_size
        first = True
        while self._ended is None and (first or not self.source.is_late):
            each = self.source.update_seconds(size)
            wall = self.source.times.seconds(size)
            if math.isnan(each):
                updates = 1  # nothing is known of this batch size: one update says how long the next ones take
            else:
                left = math.ceil(seconds / each - 1e-9) - self.updates
                if left <= 0:
                    if not first:
                        break
                    left = 1
                updates = min(left, max(1, round(PIECE_SECONDS / wall)), max(2, round(PIECE_GROWTH * self.updates)))
            self._piece(updates)
            first = False
            if self._ended is None and self.run is not None:
                self._evaluate_if_due()
        self.cost_seconds += time.perf_counter() - began

    def _make(self) -> None:
        began = time.perf_counter()
        size, rate = self._setting
        plan = Plan(
            batch_size=size,
            learning_rate=rate,
            examples=max(size, self.source.budget_examples(size)),
            micro_batch_size=self.source.micro_batch_size(size),
            shape="constant",
            averaging=POWER,
        )
        self.run = _SearchRun(
            self.source.prepared,
            plan,
            seed=derive(self.source.seed, "race") % 2**31,
            next_place=lambda examples: plan.budget_examples or examples,
            validation=self.source.validation,
            keep_best_weights=False,
            evaluate_training=False,
            measure_memory=False,
        )
        self.run.source = self.source
        self.source.spent.making += time.perf_counter() - began

    def _piece(self, updates: int) -> None:
        run, spent = self.run, self.source.spent
        if run is None:
            return
        kept = self.source.kept_reading
        before = (run.progress.seconds, run.progress.evaluation_seconds, kept.read_seconds if kept else 0.0)
        done = run.progress.iterations
        result = run.advance_updates(updates)
        read = (kept.read_seconds if kept else 0.0) - before[2]
        trained = run.progress.seconds - before[0]
        evaluated = run.progress.evaluation_seconds - before[1]
        made = run.progress.iterations - done
        if made and not self._losses:
            self.source.first_losses.append((self._setting.batch_size, run.progress.losses[-made]))
        self._losses += run.progress.losses[-made:] if made else []
        if run.progress.curve and not self._evaluations:
            self._evaluations.append(run.progress.curve[0])
        spent.training += trained - read
        spent.reading += read
        spent.evaluating += evaluated
        self._seconds += trained
        if made:
            self.source.times.add(self._setting.batch_size, made, max(trained - read, 1e-9))
            self.source.watch()
        if result is not None:
            self._end(result)

    def _end(self, result: TrainResult) -> None:
        self.result = result
        outcomes: dict[str, Ended] = {"diverged": "diverged", "out of memory": "out of memory", "reached": "reached"}
        self._ended = outcomes.get(result.outcome, "finished")
        run = self.run
        if run is not None and len(run.progress.curve) > len(self._evaluations):
            self._evaluations.append(run.progress.curve[-1])
        if self._ended in ("diverged", "out of memory"):
            self._losses = self._losses or [math.inf]
            self.run = None

    def _evaluate_if_due(self) -> None:
        run, source = self.run, self.source
        if run is None or run.progress.iterations == (run.progress.curve[-1].iterations if run.progress.curve else -1):
            return
        each = source.evaluation_seconds
        if self._seconds < EVALUATION_RATIO * self._evaluated_at:
            return
        if self.updates * self._setting.batch_size > source.workload.training_examples:
            is_due = each <= REPEATED_SHARE * (self._seconds - self._evaluated_at)
        else:
            is_due = source.evaluated_seconds + each <= EVALUATION_SHARE * source.spent.training
        if is_due:
            self.evaluate()

    def evaluate(self) -> CurvePoint | None:
        """Evaluate where it stands; None where it holds no weights."""
        run, source = self.run, self.source
        if run is None:
            return None
        began = time.perf_counter()
        run.validation = source.validation
        point = run.evaluate_now()
        taken = time.perf_counter() - began
        source.spent.evaluating += taken
        source.evaluated_seconds += taken
        source.evaluation_seconds = taken if not source.evaluation_seconds else min(taken, source.evaluation_seconds)
        self._evaluations.append(point)
        self._evaluated_at = self._seconds
        if self.updates * self._setting.batch_size <= source.workload.training_examples:
            source.shift = self._training_loss(self.updates)[0] - point.validation_loss
        if source.target is not None and point.score >= source.target:
            self._ended = "reached"
        return point

    def finish(self, target: float | None, rate: AnytimeRate, *, most_examples: float) -> TrainResult:
        """Train on to the goal, judged by the whole validation set.

        Args:
            target: The score that ends it; None: none does.
            rate: What its learning rate is multiplied by as it goes on.
            most_examples: Where it ends, at the first evaluation from there on.

        Returns:
            The result, with the averaged weights.

        Raises:
            RunError: It holds no weights to go on from.
        """
        run, source = self.run, self.source
        if run is None:
            raise RunError("a candidate must hold its weights to go on", got=str(self._setting))
        whole = source.workload.validation_examples

        def next_place(examples: int) -> int:
            # About as many examples are overshot as evaluations cost, if the goal lies as far ahead as the way so far.
            gap = max(FINAL_SHARE * whole, math.sqrt(2 * whole / FORWARD_SPEED * max(examples, 1)))
            return min(math.ceil(examples + gap), max(math.ceil(most_examples), examples + 1))

        run.course.next_place = next_place
        result = self.result if self._ended in ("finished", "diverged") else None
        result = result or run.judge_anew(source.prepared.validation, target)
        seen = len(run.progress.curve) - 1
        factor = 1.0
        while result is None and not source.stopped() and run.progress.examples < most_examples:
            points = [(float(p.examples), p.validation_loss) for p in run.progress.curve[seen:]]
            wanted = rate.after(points)
            if wanted != factor:
                run.multiply_rates(wanted / factor)
                factor = wanted
            result = run.advance()
        result = result or run.stopped("interrupted" if source.stopped() else "finished")
        return result if result.state is not None else replace(result, state=run.state(averaged=True))

    def release(self) -> None:
        """Let go of the weights; the points stay."""
        self.run = None
        if self._ended is None:
            self._ended = "finished"

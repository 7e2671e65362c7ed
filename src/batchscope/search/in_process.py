"""Candidates that train in this process, one after the other, each from where it stands.

A candidate is compared by the training loss of its batches before their updates: as long as no example is seen twice,
that is an unbiased estimate of the loss on new data, for nothing (progressive validation: Blum, Kalai, Langford 1999).
All candidates see the same examples in the same order. The score that the goal is about is evaluated beside it, on
averaged weights as the plan ends with, as often as a tenth of the training time pays for. Where examples are seen again
the loss of those evaluations takes the training loss's place, shifted by what they differed by before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from batchscope.errors import ArgumentError, RunError
from batchscope.records import CurvePoint, Plan, TrainResult
from batchscope.search.anytime import AnytimeRate
from batchscope.search.candidates import Candidate, Ended, Point, Setting
from batchscope.search.reading import keep_reading
from batchscope.seeding import derive
from batchscope.training.averaging import POWER
from batchscope.training.evaluation import EvaluationData
from batchscope.training.goal import check_goal
from batchscope.training.loop import MOST_EPOCHS, Prepared, Run
from batchscope.workload.goal import check_target, perfect_score
from batchscope.workload.workload import Workload

# Updates are made in pieces of about this long, so that a deadline and Ctrl-C are seen in time.
PIECE_SECONDS = 0.1
# The first pieces are shorter, each this share of the updates so far.
PIECE_GROWTH = 0.3
# The training loss at one moment is the mean over this last part of the updates so far: long enough to average the
# batches' scatter, and the same part at every moment, so that curves keep their shape.
WINDOW = 1 / 3
# Evaluating may take this share of training; points of a curve are so far apart in time at least.
EVALUATION_SHARE, EVALUATION_RATIO = 0.1, 1.2
# Where examples are seen again nothing but evaluations says how well a candidate does: they may take this share.
REPEATED_SHARE = 0.5
# An evaluation of the search takes about this long at most, on so many examples at least.
EVALUATION_SECONDS, LEAST_EXAMPLES = 0.05, 64
# Points stand a factor of this apart in updates.
POINT_RATIO = 1.15
# Of the run that is trained to the goal: two evaluations lie no nearer than this share of the validation set;
# evaluating an example takes a third of training on it.
FINAL_SHARE, FORWARD_SPEED = 0.5, 3.0
# Pieces that took so many times the median of their batch size for an update were disturbed, and do not count.
DISTURBED = 1.5


@dataclass
class Spent:
    """Where the wall time of a search goes, in seconds."""

    training: float = 0.0
    evaluating: float = 0.0
    reading: float = 0.0
    making: float = 0.0


@dataclass
class UpdateTimes:
    """Seconds of an update at each batch size, from pieces of training that nothing disturbed.

    Examples:
        >>> times = UpdateTimes()
        >>> for seconds in (1.0, 0.1, 0.1, 0.3, 0.1):
        ...     times.add(8, 1, seconds)
        >>> round(times.seconds(8), 3)
        0.1
    """

    pieces: dict[int, list[tuple[int, float]]] = field(default_factory=dict)

    def add(self, batch_size: int, updates: int, seconds: float) -> None:
        """Take in a piece of training."""
        self.pieces.setdefault(batch_size, []).append((updates, seconds))

    def quiet(self, batch_size: int) -> list[tuple[int, float]]:
        """The pieces that count: the first one, which warms up, is left out where there are others."""
        own = self.pieces.get(batch_size, [])
        own = own[1:] if len(own) > 1 else own
        each = sorted(seconds / updates for updates, seconds in own)
        if not each:
            return []
        limit = DISTURBED * each[(len(each) - 1) // 2]
        return [(updates, seconds) for updates, seconds in own if seconds / updates <= limit]

    def seconds(self, batch_size: int) -> float:
        """Mean time of an update; NaN where none was made."""
        own = self.quiet(batch_size)
        return sum(s for _, s in own) / sum(n for n, _ in own) if own else math.nan

    def spread(self, batch_size: int) -> float:
        """Relative standard deviation of the pieces that count."""
        own = self.quiet(batch_size)
        mean = self.seconds(batch_size)
        return float(np.std([s / n for n, s in own]) / mean) if len(own) > 2 else math.nan


class InProcess:
    """Candidates of one workload in this process.

    Args:
        workload: What is trained.
        device: Where.
        seed: Of the weights and the order of the examples: the same for all candidates.
        target: Score that ends a candidate; None: none does.
        budget_examples: Where a candidate of a batch size ends; None: after many passes over the data.
        workers: Processes that read a Dataset in a run of its own; here reading is shared.
        micro_batch_size: Examples at once at most, at a batch size; None: all.
        stopped: Asked between two pieces of training whether to end.

    Attributes:
        spent: Where the time went.
        times: Seconds of an update at each batch size.
        deadline_seconds: Elapsed time at which whatever trains is interrupted.
    """

    def __init__(
        self,
        workload: Workload,
        device: Any,
        *,
        seed: int,
        target: float | None = None,
        budget_examples: Callable[[int], int] | None = None,
        workers: int | None = None,
        micro_batch_size: Callable[[int], int | None] = lambda batch_size: None,
        stopped: Callable[[], bool] = lambda: False,
        began: float | None = None,
    ) -> None:
        self.began = time.perf_counter() if began is None else began
        self.workload, self.seed, self.target = workload, seed, target
        self.micro_batch_size, self.stopped = micro_batch_size, stopped
        self.prepared = Prepared(workload, device, workers=workers)
        self.reading_workers = self.prepared.training.workers
        self.kept_reading = keep_reading(self.prepared.training)
        self.budget_examples = budget_examples or (lambda batch_size: MOST_EPOCHS * workload.training_examples)
        self.spent, self.times = Spent(), UpdateTimes()
        self.deadline_seconds = math.inf
        self.validation = EvaluationData(workload, "validation", self.prepared.device, most=LEAST_EXAMPLES)
        self.evaluation_seconds = 0.0
        self.fresh: tuple[float, float] | None = None
        self.shift: float | None = None  # training loss minus validation loss, where both were seen
        self.candidates: list[Trained] = []

    def open(self, setting: Setting) -> Candidate:
        """A new candidate; it is made when it is first advanced."""
        candidate = Trained(self, setting)
        self.candidates.append(candidate)
        return candidate

    def elapsed_seconds(self) -> float:
        """Wall time since the search began."""
        return time.perf_counter() - self.began

    def limit(self, seconds: float) -> None:
        """Pause whatever trains when so much time has passed since the search began."""
        self.deadline_seconds = seconds

    def close(self) -> None:
        """Let go of all candidates."""
        for candidate in self.candidates:
            candidate.release()

    @property
    def is_late(self) -> bool:
        """Whether whatever trains is to pause now."""
        return self.stopped() or self.elapsed_seconds() >= self.deadline_seconds

    def update_seconds(self, batch_size: int) -> float:
        """Seconds of an update in a run of its own, reading included; NaN where none was made."""
        compute = self.times.seconds(batch_size)
        if self.kept_reading is None:
            return compute
        reading = batch_size * self.kept_reading.seconds_per_example
        # Worker processes read while others compute.
        return max(compute, reading / self.reading_workers) if self.reading_workers else compute + reading

    def check_target(self) -> None:
        """Refuse a target that cannot be meant, by what fresh weights score.

        Raises:
            ArgumentError: Such a target.
        """
        if self.target is None or self.fresh is None:
            return
        try:
            perfect = perfect_score(self.workload)
            check_target(self.target, [self.fresh[1]], perfect=perfect, minus_loss=self.workload.score is None)
        except ArgumentError:
            check_goal(self.prepared, self.target, seed=self.seed)  # on more examples than these

    def choose_examples(self, seconds_per_example: float) -> None:
        """Take as many validation examples as an evaluation may cost.

        Args:
            seconds_per_example: What evaluating one was seen to take.
        """
        affordable = round(EVALUATION_SECONDS / max(seconds_per_example, 1e-9))
        whole = self.workload.validation_examples
        count = min(max(LEAST_EXAMPLES, affordable), whole)
        if count >= whole:
            self.validation = self.prepared.validation
        elif count > len(self.validation.indices):
            self.validation = EvaluationData(self.workload, "validation", self.prepared.device, most=count)


class _SearchRun(Run):
    """A run whose fresh weights, the same for all candidates, are evaluated once."""

    source: InProcess

    def _loss_and_score(self, data: EvaluationData) -> tuple[float, float]:
        if self.progress.iterations:
            return super()._loss_and_score(data)
        if self.source.fresh is None:
            super()._loss_and_score(self.source.validation)  # the first one warms up
            began = time.perf_counter()
            super()._loss_and_score(self.source.validation)
            each = (time.perf_counter() - began) / len(self.source.validation.indices)
            self.source.choose_examples(each)
            self.validation = self.source.validation
            self.source.fresh = super()._loss_and_score(self.validation)
            self.source.check_target()
        return self.source.fresh


class Trained:
    """One setting, trained by the one loop.

    Args:
        source: The search's.
        setting: The batch size and the learning rate.
    """

    def __init__(self, source: InProcess, setting: Setting) -> None:
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
        first = [(c._setting.batch_size, c._losses[0]) for c in self.source.candidates if c._losses]
        first = [(size, value) for size, value in first if math.isfinite(value)]
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
        self._losses += run.progress.losses[-made:] if made else []
        if run.progress.curve and not self._evaluations:
            self._evaluations.append(run.progress.curve[0])
        spent.training += trained - read
        spent.reading += read
        spent.evaluating += evaluated
        self._seconds += trained
        if made:
            self.source.times.add(self._setting.batch_size, made, max(trained - read, 1e-9))
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
        since = self._seconds - self._evaluated_at
        repeats = self.updates * self._setting.batch_size > source.workload.training_examples
        share = REPEATED_SHARE if repeats else EVALUATION_SHARE
        if each <= share * since and self._seconds >= EVALUATION_RATIO * self._evaluated_at:
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

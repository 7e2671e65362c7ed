"""The one training loop."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batchscope.errors import PlanError, WorkloadError
from batchscope.provenance import fingerprint
from batchscope.records import CurvePoint, Interval, Outcome, Plan, TrainResult, encode
from batchscope.records.schedule import Segment
from batchscope.records.training import IN_ORDER
from batchscope.schedule import OptimizerSettings, decide, rate_factor, rescale, varies
from batchscope.seeding import derive, isolated, random_state, set_random_state
from batchscope.training import checkpoint
from batchscope.training.averaging import WeightAverage
from batchscope.training.checkpoint import Progress
from batchscope.training.compiling import compile_seconds
from batchscope.training.conservative import ConservativeStep
from batchscope.training.contention import Contention
from batchscope.training.course import Course
from batchscope.training.evaluation import EvaluationData, evaluate
from batchscope.training.feed import Feed, TrainingData
from batchscope.training.interruption import StopRequest, stop_requests
from batchscope.training.memory import is_out_of_memory
from batchscope.training.meters import MemoryPeak, Stopwatch
from batchscope.training.micro_batching import MicroBatchingStep
from batchscope.training.observer import MakeObserver, Observer
from batchscope.training.start import Start
from batchscope.training.threads import compute_threads, flops_per_example
from batchscope.training.update import fresh, scaler_for
from batchscope.workload.options import check_precision
from batchscope.workload.workload import Workload

# Losses stay on the device and are read this many at a time, so that a GPU is never waited for at each update.
LOSSES_AT_ONCE = 64
# A target without a budget is given up after this many passes over the data.
MOST_EPOCHS = 200
MOST_EVALUATIONS, LEAST_EVALUATIONS = 40, 10


class Prepared:
    """A workload's data made ready for a device once, for all the runs on it.

    Args:
        workload: What is trained.
        device: Where.
        workers: Processes that read a Dataset; None: as many as pay.
    """

    def __init__(self, workload: Workload, device: torch.device, *, workers: int | None = None) -> None:
        check_precision(workload, device)
        self.workload = workload
        self.device = device
        self.training = TrainingData(workload, device, workers=workers)
        self.validation = EvaluationData(workload, "validation", device)
        self.training_sample = EvaluationData(workload, "training", device)
        self.flops_per_example = flops_per_example(workload) if device.type == "cpu" else None


def evaluation_distance(workload: Workload, examples: int | None) -> int:
    """Examples between two evaluations: 40 in all, or fewer where they would cost more than half of the training.

    Evaluating V examples costs about a third of training on them, so n evaluations of a budget of E examples stay
    below half of it for n ≤ 1.5·E/V. At least 10 are made all the same. Without a budget, on the way to a target, four
    in each pass over the data, as far as that allows.

    Args:
        workload: Whose validation set is evaluated.
        examples: The budget; None where there is only a target.

    Returns:
        The distance, at least 1.
    """
    if examples is None:
        return max(1, workload.training_examples // 4, round(workload.validation_examples / 1.5))
    affordable = round(1.5 * examples / workload.validation_examples)
    return max(1, examples // min(MOST_EVALUATIONS, max(LEAST_EVALUATIONS, affordable)))


def course_of(
    workload: Workload,
    plan: Plan,
    *,
    evaluate_every: int | None,
    next_place: Callable[[int], int] | None = None,
    keep_going: Callable[[CurvePoint], bool] | None = None,
) -> Course:
    """The course of a run that has a plan, its budget and its evaluations filled in where they were left open.

    Args:
        workload: What is trained.
        plan: What is asked for.
        evaluate_every: Examples between two evaluations; None: :func:`evaluation_distance`.
        next_place: Examples at which the next evaluation is due, after so many; None: every ``evaluate_every``.
        keep_going: Asked after each evaluation that doesn't end the run.

    Returns:
        The course, at its start.
    """
    return Course(
        workload,
        plan,
        budget=plan.budget_examples or MOST_EPOCHS * workload.training_examples,
        evaluate_every=evaluate_every or evaluation_distance(workload, plan.budget_examples),
        next_place=next_place,
        keep_going=keep_going,
    )


class Run:
    """One training run: a fresh model and its optimiser, where it stands, and the loop.

    Args:
        prepared: The workload, with its data on the device.
        plan: Batch size, learning rate, budget, shape and schedule.
        seed: Initial weights, data order and everything else random derive from it; the initial weights are the same
            for every plan with this seed.
        evaluate_every: Examples between two evaluations; None: :func:`evaluation_distance`.
        next_place: Examples at which the next evaluation is due, after so many; None: every ``evaluate_every``.
        validation: What to evaluate on; None: the workload's validation set.
        start: Weights and optimiser state to begin with; None: fresh ones. A checkpoint that exists goes before it.
        checkpoint: File to resume from, where it exists, and to save to.
        checkpoint_every_seconds: Least time between two saves; one is always made at the end and when interrupted.
        keep_best_weights: Whether to copy the weights at every new best score.
        evaluate_training: Whether to evaluate on training examples at the end, for the generalisation gap.
        measure_memory: Whether to take the peak of memory; on a CPU the first updates then find the heap cold.
        on_evaluation: Called after each evaluation, off the clock, with the point and the seconds left, if known.
        keep_going: Asked after each evaluation that doesn't end the run; False ends it as "pruned".
        observer: Makes what watches the updates, and measures the noise scale that a measured schedule follows.

    Attributes:
        part: The share of every batch that this process trains on, and how many there are.
        unread: Losses of the updates since the last pause.

    Raises:
        PlanError: A plan that this workload or its optimiser cannot follow.
    """

    def __init__(
        self,
        prepared: Prepared,
        plan: Plan,
        *,
        seed: int,
        evaluate_every: int | None = None,
        next_place: Callable[[int], int] | None = None,
        validation: EvaluationData | None = None,
        start: Start | None = None,
        checkpoint: Path | None = None,
        checkpoint_every_seconds: float = 60.0,
        keep_best_weights: bool = True,
        evaluate_training: bool = True,
        measure_memory: bool = True,
        on_evaluation: Callable[[CurvePoint, float | None], None] | None = None,
        keep_going: Callable[[CurvePoint], bool] | None = None,
        observer: MakeObserver | None = None,
    ) -> None:
        self.began = time.perf_counter()
        self.prepared, self.seed = prepared, seed
        self.workload, self.device = prepared.workload, prepared.device
        prepared.training.check(plan)
        self.validation = validation or prepared.validation
        self.course = course_of(
            self.workload, plan, evaluate_every=evaluate_every, next_place=next_place, keep_going=keep_going
        )
        self.plan = self.course.plan
        self.budget = self.course.budget
        self.checkpoint, self.checkpoint_every_seconds = checkpoint, checkpoint_every_seconds
        self.keep_best_weights, self.on_evaluation = keep_best_weights, on_evaluation
        self.evaluate_training = evaluate_training

        self.memory = MemoryPeak(self.device) if measure_memory else None
        with isolated(derive(seed, "weights"), self.device):
            self.model, self.optimizer = fresh(self.workload, plan.learning_rate, self.device)
        self.scaler = scaler_for(self.workload, self.device)
        if start is not None:
            start.load_into(self.model, self.optimizer)
        if plan.rescaled_from is not None:
            rescale(self.optimizer, from_batch_size=plan.rescaled_from, to_batch_size=plan.batch_size)
        plan = self.plan
        self.average = None if plan.averaging is None else WeightAverage(_tensors(self.model), plan.averaging)
        self.settings = OptimizerSettings(self.optimizer, plan.batch_size)
        self.settings.check(plan.batch_sizes)
        if plan.batch_sizes.measured is not None and observer is None:
            raise PlanError(
                "a measured schedule needs something that measures", got="no observer", mend="train with bs.train"
            )
        self.make_observer = observer
        self.observer: Observer | None = None
        self.segment: Segment | None = None
        self._threads = contextlib.ExitStack()
        self._stop = StopRequest()
        self._random: dict[str, Any] | None = None
        self._compiled = 0.0  # seconds of the compiler's that are counted
        self._rounds: Generator[None, None, Outcome] | None = None
        self._pause_at: int | None = None
        self.clock = Stopwatch(self.device)
        self._contention = Contention()
        self.step: MicroBatchingStep | None = None
        self.unread: list[Tensor] = []
        self.training: tuple[float, float] | None = None

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self.course.progress

    @property
    def iterations(self) -> int:
        """Updates of the whole budget."""
        return self.course.iterations

    def __call__(self) -> TrainResult:
        """Train, from the start or from the checkpoint.

        Returns:
            The result. Divergence, running out of memory and an interruption are outcomes, not exceptions.

        Raises:
            StorageError: A checkpoint that cannot be written, or that belongs to another run.
            WorkloadError: A measured schedule, and a workload whose noise scale cannot be measured.
        """
        with self._at_work(), self._observed():
            while True:
                result = self._round()
                if result is not None:
                    return result

    def advance(self) -> TrainResult | None:
        """Train until the next evaluation only, so that others can be trained in between; nothing observes it.

        Returns:
            The result, when it has ended.
        """
        with self._at_work():
            return self._round()

    def advance_updates(self, updates: int) -> TrainResult | None:
        """Train for so many updates, or until the next evaluation where that comes first; nothing observes it.

        Args:
            updates: At least 1.

        Returns:
            The result, when it has ended.
        """
        self._pause_at = self.progress.iterations + updates
        try:
            return self.advance()
        finally:
            self._pause_at = None

    def evaluate_now(self) -> CurvePoint:
        """Evaluate where it stands, beside the evaluations that are due; the point is added to its curve."""
        with self._at_work():
            self._evaluate()
        return self.progress.curve[-1]

    def state(self, *, averaged: bool = False) -> dict[str, Any]:
        """A copy of the weights, as they are evaluated or as they stand."""
        with self._averaged() if averaged else contextlib.nullcontext():
            return copy.deepcopy(self.model.state_dict())

    def as_it_stands(self) -> tuple[float, float]:
        """Loss and score on the validation set of the weights themselves, where their average is what is evaluated."""
        with self._at_work():
            return self._loss_and_score(self.validation)

    def judge_anew(self, validation: EvaluationData, target: float | None) -> TrainResult | None:
        """Go on by other examples and to another target, beginning with an evaluation of where it stands.

        Args:
            validation: What to evaluate on.
            target: The score that ends it; None: none does.

        Returns:
            The result, where that ends it.
        """
        self.validation = validation
        self.course.plan = replace(self.course.plan, target=target)
        with self._at_work():
            self._evaluate()
        ended = self.course.ending()
        return None if ended is None else self._result(ended)

    def multiply_rates(self, factor: float) -> None:
        """From now on its learning rate is so many times what it was, or what its schedule says.

        Args:
            factor: A positive number.
        """
        self.settings.multiply_rates(factor)

    def stopped(self, outcome: Outcome) -> TrainResult:
        """End it between two evaluations.

        Args:
            outcome: How it ends.

        Returns:
            The result.
        """
        return self._result(outcome)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """The surroundings that training needs; the random stream goes on where it was left."""
        with (
            stop_requests() as self._stop,
            isolated(self._stream(), self.device),
            self._threads,
        ):
            self._compiled = compile_seconds()
            if self._random is not None:
                set_random_state(self._random, self.device)
                self._use_threads(self.course.schedule.batch_size_at(max(0, self.progress.iterations - 1)))
            yield
            self._count_compiling()
            self._random = random_state(self.device)

    def _count_compiling(self) -> None:
        """Take note of the seconds of compilation since this was last called."""
        now = compile_seconds()
        self.progress.compile_seconds += now - self._compiled
        self._compiled = now

    def _round(self) -> TrainResult | None:
        """Train until the next evaluation, or the end."""
        try:
            outcome = self._until_next_evaluation()
        except (RuntimeError, MemoryError) as error:
            if not self._is_outcome(error):
                raise
            outcome, self.course.message = "out of memory", (str(error) or "no memory left").splitlines()[0]
        return None if outcome is None else self._result(outcome)

    def _until_next_evaluation(self) -> Outcome | None:
        if self._rounds is None:
            self._resume()
            self._rounds = self._loop()
        try:
            next(self._rounds)
            return None
        except StopIteration as ended:
            outcome: Outcome = ended.value
        if outcome != "diverged":
            self._save()
        if outcome in IN_ORDER and self.evaluate_training:
            with self._averaged():
                self.training = self._loss_and_score(self.prepared.training_sample)
        return outcome

    @contextlib.contextmanager
    def _observed(self) -> Iterator[None]:
        if self.make_observer is not None:
            self.observer = self._made_observer(self.make_observer)
        try:
            yield
        finally:
            if self.observer is not None:
                self.observer.close()

    def _loop(self) -> Generator[None, None, Outcome]:  # noqa: PLR0915 — the one loop, in one piece
        """Train, with a stop at every evaluation; returns how it ended."""
        plan, course = self.plan, self.course
        progress, varying, average = course.progress, varies(plan), self.average
        step = self.step = self._make_step()
        feed = self.prepared.training.feed(
            plan,
            self.budget,
            seed=derive(self.seed, "data"),
            start_iteration=progress.iterations,
            schedule=course.schedule,
            part=self.part,
        )
        data_seconds_before = progress.data_seconds
        self._use_threads(course.schedule.batch_size_at(max(0, progress.iterations - 1)))
        if not progress.curve:
            self._enter_phase()
        if not progress.curve or progress.evaluation_due:
            self._evaluate()
        ended = course.ending() if progress.curve[-1].examples == progress.examples else None
        if ended is not None or progress.iterations == self.iterations:
            return ended or "finished"
        batch_size, next_change = self._enter_phase()
        next_evaluation = course.next_evaluation()
        next_pause = self._next_pause(next_evaluation, next_change)
        last_saved = time.perf_counter()
        losses = self.unread

        self.clock.start()
        for micro_batches in feed:
            if varying:
                self.settings.scale(rate_factor(plan, progress.examples, batch_size))
            examples = min(batch_size, self.budget - progress.examples)
            loss = step(micro_batches, examples)
            course.made(skipped=step.skipped)
            if not step.skipped:
                losses.append(loss)
            progress.examples += examples
            if average is not None:
                average.see(progress.examples)
            if progress.iterations < next_pause and not self._stop.requested:
                continue

            # A pause: the clock stands still while losses are read, and now and then the model evaluated or a phase
            # begun. What a resumed run would do at once comes before the checkpoint.
            diverged = course.exploded(torch.stack(losses).tolist() if losses else [])
            losses.clear()
            self.clock.stop()
            progress.seconds = self.clock.seconds
            progress.data_seconds = data_seconds_before + feed.seconds
            if diverged:
                return "diverged"
            if progress.iterations == next_change:
                self._grow_or_not(feed)
            evaluated = progress.iterations == next_evaluation
            if evaluated:
                self._evaluate()
                ended = course.ending()
                next_evaluation = course.next_evaluation()
                if ended is None and self._save_is_due(last_saved):
                    self._save()
                    last_saved = time.perf_counter()
            if ended is None and self._stop.requested and progress.iterations < self.iterations:
                ended = "interrupted"
            if ended is not None:
                return ended
            if progress.iterations == next_change < self.iterations:
                batch_size, next_change = self._enter_phase()
                next_evaluation = course.next_evaluation()
            if evaluated or progress.iterations == self._pause_at:
                yield
                next_evaluation = course.next_evaluation()  # whoever looked may want the next one elsewhere
            next_pause = self._next_pause(next_evaluation, next_change)
            self.clock.start()
        return ended or "finished"

    def _next_pause(self, next_evaluation: int, next_change: int) -> int:
        pause_at = self.iterations if self._pause_at is None else self._pause_at
        return min(next_evaluation, next_change, pause_at, self.progress.iterations + LOSSES_AT_ONCE)

    def _enter_phase(self) -> tuple[int, int]:
        """Make the optimiser and the threads those of the update to come.

        Returns:
            Its batch size, and the next update before which either or the batch size may change.
        """
        progress, schedule = self.progress, self.course.schedule
        segment = schedule.segment_at(progress.iterations)
        if segment != self.segment:
            self.segment = segment
            self.settings.enter(segment.phase, coupling=schedule.coupling)
            self._use_threads(segment.phase.batch_size)
        size = segment.phase.batch_size
        self.settings.scale(rate_factor(self.plan, progress.examples, size))
        border, growth = schedule.next_border(progress.iterations), schedule.measured
        next_change = self.iterations if border is None else border
        if growth is not None:
            next_change = min(next_change, (progress.iterations // growth.every + 1) * growth.every)
        return size, next_change

    def _grow_or_not(self, feed: Feed) -> None:
        """Let the batch follow the measured noise scale, where the schedule says so."""
        course, progress, growth = self.course, self.progress, self.course.schedule.measured
        if growth is None or self.observer is None or progress.iterations % growth.every:
            return
        size = course.schedule.batch_size_at(progress.iterations)
        most = self.prepared.training.examples
        wanted, progress.growth_votes = decide(
            growth,
            self._noise(self.observer),
            batch_size=size,
            least=self.plan.batch_size,
            most=most if growth.maximum is None else min(most, growth.maximum),
            votes=progress.growth_votes,
        )
        if wanted != size and progress.iterations < self.iterations:
            course.grow(wanted)
            feed.follow(course.schedule)

    def _use_threads(self, batch_size: int) -> None:
        per_example = self.prepared.flops_per_example
        work = None if per_example is None else per_example * self._at_once(batch_size)
        self._threads.close()
        self._threads.enter_context(compute_threads(work, self.device))

    def _at_once(self, batch_size: int) -> int:
        return min(self.plan.micro_batch_size or batch_size, batch_size)

    def _evaluate(self) -> None:
        began, compiled = time.perf_counter(), compile_seconds()
        progress = self.progress
        progress.evaluation_due = True
        with self._averaged():
            loss, score = self._loss_and_score(self.validation)
            rate = float(self.optimizer.param_groups[0]["lr"])
            new_best = self.course.evaluated(loss, score, learning_rate=rate, noise_scale=self._noise_scale())
            progress.evaluation_due = False
            if new_best and self.keep_best_weights:
                self.course.best.keep(self.model.state_dict())
        progress.evaluation_seconds += time.perf_counter() - began - (compile_seconds() - compiled)
        if self.on_evaluation is not None:
            left = self.budget - progress.examples
            per_example = progress.seconds / progress.examples if progress.examples else None
            self.on_evaluation(progress.curve[-1], None if per_example is None else per_example * left)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts the model is what is evaluated: with the average of its weights, where the plan says so."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def _noise_scale(self) -> float | None:
        try:
            return None if self.observer is None else self.observer.noise_scale.value
        except WorkloadError:  # it cannot be measured here: training goes on without
            return None

    def _identity(self) -> dict[str, Any]:
        return {
            "plan": encode(self.plan),
            "seed": self.seed,
            "workload": fingerprint(self.workload),
            "evaluate_every": self.course.evaluate_every,
        }

    # What ranks do otherwise (training/data_parallel.py)

    part = (0, 1)

    def _stream(self) -> int:
        """Seed of whatever training draws."""
        return derive(self.seed, "training")

    def _make_step(self) -> MicroBatchingStep:
        kind = MicroBatchingStep if self.plan.inner_steps == 1 else ConservativeStep
        step = kind(
            self.workload,
            self.model,
            self.optimizer,
            micro_batch_size=self.plan.micro_batch_size,
            cut_to=self.progress.micro_batch_size,
            scaler=self.scaler,
        )
        if isinstance(step, ConservativeStep):
            step.inner_steps, step.proximity = self.plan.inner_steps, self.plan.proximity
        return step

    def _made_observer(self, make: MakeObserver) -> Observer:
        if self.scaler is None:
            return make(self.model, self.optimizer)
        return make(self.model, self.optimizer, scaler=self.scaler)

    def _noise(self, observer: Observer) -> Interval:
        """What a measured schedule goes by."""
        return observer.noise_scale

    def _loss_and_score(self, data: EvaluationData) -> tuple[float, float]:
        return evaluate(self.model, data)

    def _is_outcome(self, error: Exception) -> bool:
        return is_out_of_memory(error)

    def _save_is_due(self, last_saved: float) -> bool:
        return time.perf_counter() - last_saved >= self.checkpoint_every_seconds

    def _save(self) -> None:
        if self.checkpoint is not None:
            self._write(self.checkpoint)

    def _resume(self) -> None:
        if self.checkpoint is not None and self.checkpoint.exists():
            self._read(self.checkpoint)

    def _write(self, path: Path, other_ranks: Sequence[dict[str, Any]] = ()) -> None:
        """Save a checkpoint, with the random states of other ranks."""
        self._count_compiling()
        self.progress.total_seconds = time.perf_counter() - self.began
        self.progress.micro_batch_size = self.step.cut_to if self.step else None
        checkpoint.save(
            path,
            identity=self._identity(),
            progress=self.progress,
            best=self.course.best,
            model=self.model,
            optimizer=self.optimizer,
            device=self.device,
            observer=self.observer,
            average=self.average,
            scaler=self.scaler,
            other_ranks=other_ranks,
        )

    def _read(self, path: Path, *, rank: int = 0) -> bool:
        """Go on from a checkpoint; whether it has a random state for this rank."""
        self.course.progress, random_state = checkpoint.restore(
            path,
            identity=self._identity(),
            best=self.course.best,
            model=self.model,
            optimizer=self.optimizer,
            observer=self.observer,
            average=self.average,
            scaler=self.scaler,
            rank=rank,
        )
        if random_state is not None:
            set_random_state(random_state, self.device)
        self.clock = Stopwatch(self.device, self.progress.seconds)
        self.began -= self.progress.total_seconds
        return random_state is not None

    def _result(self, outcome: Outcome) -> TrainResult:
        self._count_compiling()
        size = self.course.schedule.batch_size_at(max(0, self.progress.iterations - 1))
        return self.course.result(
            outcome,
            seed=self.seed,
            device=self.device,
            total_seconds=time.perf_counter() - self.began,
            training=self.training,
            peak_memory_bytes=self.memory.peak_bytes() if self.memory else None,
            micro_batch_size=(self.step and self.step.cut_to) or self._at_once(size),
            ranks=self.part[1],
            # Ranks that share a machine are no strangers to each other, and yet look like it.
            contention=self._contention.share(torch.get_num_threads()) if self.part[1] == 1 else None,
        )


def _tensors(model: nn.Module) -> list[Tensor]:
    """All that a model is made of, each tensor once."""
    return list({id(tensor): tensor.data for tensor in (*model.parameters(), *model.buffers())}.values())

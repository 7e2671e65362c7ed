"""Many runs in one stack: each what it would be by itself, all of them in a fraction of the time."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from batchscope.errors import PlanError
from batchscope.records import CurvePoint, Outcome, Plan, TrainResult
from batchscope.records.training import IN_ORDER
from batchscope.schedule import rate_factor, varies
from batchscope.seeding import derive, isolated, random_state, set_random_state
from batchscope.training.averaging import WeightAverage
from batchscope.training.course import Course
from batchscope.training.evaluation import EvaluationData
from batchscope.training.heap import kept_heap
from batchscope.training.interruption import StopRequest, stop_requests
from batchscope.training.loop import LOSSES_AT_ONCE, Prepared, course_of
from batchscope.training.meters import Stopwatch
from batchscope.training.stack import Stack
from batchscope.training.stacked_evaluation import StackedEvaluation
from batchscope.training.stacked_feed import StackedFeed, example_batch
from batchscope.training.threads import compute_threads

# A stack of another size is another trace: ended replicas are dropped from a batched pass when they are half of it, or
# when carrying them on to the end would cost as much as this many updates of the whole stack.
WORTH_A_TRACE = 200


class Replicas:
    """Runs of one workload and one batch size, of different learning rates and seeds, trained together.

    Each is what :class:`Run` makes of its plan and seed, up to rounding: the same initial weights and order of the
    data, the same rates, the same evaluations and the same ending. Dropout and whatever else is drawn in training is
    drawn for each by itself, from another stream than a single run's. The best weights are not kept, and training
    examples not evaluated.

    Args:
        prepared: The workload, with its data on the device.
        plans: One for each; they may differ in the learning rate alone.
        seeds: One for each.
        evaluate_every: Examples between two evaluations; None: as in a single run.
        validation: What to evaluate on; None: the workload's validation set.
        next_place: Examples at which the next evaluation is due, after so many; None: every ``evaluate_every``.
        keep_weights: Whether the results of runs that end in order hold the weights that were evaluated last.
        in_turn: One replica after the other at each update, by a step that was traced for one, instead of all in one
            batched pass: faster where the arithmetic of one fills the processor.
        on_evaluation: Called after each evaluation, off the clock, with the run's position in ``plans`` and the point.
        prune: Asked after each round of evaluations for the positions of the runs to stop, as "pruned".
        on_finished: Called with a run's position and result as soon as it ends.

    Raises:
        PlanError: Plans that differ in more than the learning rate, or that this workload cannot follow.
        WorkloadError: A workload that no stack can be made of; :func:`refusal` says so beforehand.

    Examples:
        >>> import torch
        >>> from batchscope.workload.digits import digits
        >>> prepared = Prepared(digits(), torch.device("cpu"))
        >>> plans = [Plan(batch_size=64, learning_rate=rate, iterations=100) for rate in (0.05, 0.2)]
        >>> [result.best_score > 0.9 for result in Replicas(prepared, plans, seeds=[0, 0])()]
        [True, True]
    """

    def __init__(
        self,
        prepared: Prepared,
        plans: Sequence[Plan],
        seeds: Sequence[int],
        *,
        evaluate_every: int | None = None,
        validation: EvaluationData | None = None,
        next_place: Callable[[int], int] | None = None,
        keep_weights: bool = False,
        in_turn: bool = False,
        on_evaluation: Callable[[int, CurvePoint], None] | None = None,
        prune: Callable[[], Collection[int]] | None = None,
        on_finished: Callable[[int, TrainResult], None] | None = None,
    ) -> None:
        self.began = time.perf_counter()
        self.prepared, self.plans, self.seeds = prepared, list(plans), list(seeds)
        self.workload, self.device = prepared.workload, prepared.device
        _check_alike(self.plans, self.seeds)
        self.on_evaluation, self.prune, self.on_finished = on_evaluation, prune, on_finished
        self.courses = [
            course_of(self.workload, plan, evaluate_every=evaluate_every, next_place=next_place) for plan in self.plans
        ]
        self.plans = [course.plan for course in self.courses]
        self.plan = self.plans[0]
        prepared.training.check(self.plan)
        self.budget, self.iterations = self.courses[0].budget, self.courses[0].iterations
        self.stack = Stack(
            self.workload,
            self.plans,
            self.seeds,
            self.device,
            example=example_batch(prepared.training, self.plan, self.seeds[0]),
            in_turn=in_turn,
        )
        self.evaluation = StackedEvaluation(self.stack, validation or prepared.validation)
        self.feed = StackedFeed.of(prepared.training, self.plan, self.budget, self.seeds)
        self.average = None if self.plan.averaging is None else WeightAverage(self.stack.tensors, self.plan.averaging)
        self.keep_weights = keep_weights
        self.clock = Stopwatch(self.device)
        self.iteration = 0
        # The runs that the stack's rows are, and those of them that have not ended.
        self.rows = list(range(len(self.plans)))
        self.live = set(self.rows)
        self.results: list[TrainResult | None] = [None] * len(self.plans)
        self._batches = iter(self.feed)
        self._seconds, self._data_seconds = 0.0, 0.0
        self._random: dict[str, Any] | None = None
        self.set_up_seconds = (time.perf_counter() - self.began) / len(self.plans)

    def __call__(self) -> list[TrainResult]:
        """Train until all have ended.

        Returns:
            The results, in the order of the plans. Their seconds are shares of the stack's.

        Raises:
            MemoryError: Memory ran out, here or as torch says it (:func:`is_out_of_memory`): a smaller stack may fit.
        """
        with self._at_work() as stop:
            while self.live:
                self._round(stop)
        return [result for result in self.results if result is not None]

    def advance(self) -> bool:
        """Train until the next evaluation only, so that others can be trained in between.

        Returns:
            Whether any has not ended yet.

        Raises:
            MemoryError: As :meth:`__call__`.
        """
        if self.live:
            with self._at_work() as stop:
                self._round(stop)
        return bool(self.live)

    def as_they_stand(self) -> dict[int, tuple[float, float]]:
        """Loss and score of the live runs' weights themselves, where their averages are what is evaluated.

        Returns:
            By position.
        """
        if not self.live:
            return {}
        with self._at_work():
            found = self.evaluation()
        return {k: found[row] for row, k in enumerate(self.rows) if k in self.live}

    def judge_anew(self, validation: EvaluationData, target: float | None) -> None:
        """Go on by other examples and to another target, beginning with an evaluation of where the runs stand.

        Args:
            validation: What to evaluate on.
            target: The score that ends a run; None: none does.
        """
        self.evaluation = StackedEvaluation(self.stack, validation)
        for course in self.courses:
            course.plan = replace(course.plan, target=target)
        if self.live:
            with self._at_work():
                self._evaluate()

    def multiply_rates(self, factor: float) -> None:
        """From the next round on all learning rates are so many times what they were.

        Args:
            factor: A positive number.
        """
        self.stack.optimizer.multiply_rates(factor)

    def stop(self, runs: Collection[int], outcome: Outcome) -> None:
        """End some runs between two rounds.

        Args:
            runs: Their positions; those that have ended already are left alone.
            outcome: How they end.
        """
        self._end(sorted(self.live.intersection(runs)), outcome)

    def state_of(self, run: int, *, averaged: bool = False) -> dict[str, Any] | None:
        """A copy of a run's weights.

        Args:
            run: Its position.
            averaged: As they are evaluated; otherwise as they stand.

        Returns:
            A state dict; None where it was dropped from the stack.
        """
        if run not in self.rows:
            return None
        with self.average.in_place() if averaged and self.average is not None else contextlib.nullcontext():
            return copy.deepcopy(self.stack.models[self.rows.index(run)].state_dict())

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[StopRequest]:
        """The surroundings that training needs; the random stream goes on where it was left."""
        per_example = self.prepared.flops_per_example
        together = self.plan.batch_size * (self.stack.size if self.stack.is_batched else 1)
        work = None if per_example is None else per_example * together
        with (
            stop_requests() as stop,
            isolated(derive(self.seeds[0], "replicas", *self.seeds), self.device),
            compute_threads(work, self.device),
            kept_heap(),
        ):
            if self._random is not None:
                set_random_state(self._random, self.device)
            yield stop
            self._random = random_state(self.device)

    def _round(self, stop: StopRequest) -> None:
        """Train until the next evaluation; the first round begins with one."""
        plan, average = self.plan, self.average
        if self.iteration == 0:
            if varies(plan):  # the first evaluation tells the rate of the first update
                self.stack.optimizer.set_rate_factor(rate_factor(plan, 0, plan.batch_size))
            self._evaluate()
            if not self.live:
                return
        self._compact(self.iterations - self.iteration)
        next_evaluation = self._next_evaluation()
        next_pause = min(next_evaluation, self.iteration + LOSSES_AT_ONCE)
        losses: list[Tensor] = []
        self.clock.start()
        for batch in self._batches:
            if varies(plan):
                factor = rate_factor(plan, self.iteration * plan.batch_size, plan.batch_size)
                self.stack.optimizer.set_rate_factor(factor)
            losses.append(self.stack.update(batch))
            self.iteration += 1
            if average is not None:
                average.see(min(self.iteration * plan.batch_size, self.budget))
            if self.iteration < next_pause and not stop.requested:
                continue

            # A pause: the clock stands still while losses are read, and now and then the replicas evaluated.
            seconds, data_seconds = self._seconds, self._data_seconds
            values = torch.stack(losses, 1).tolist()
            losses.clear()
            self.clock.stop()
            self._seconds, self._data_seconds = self.clock.seconds, self.feed.seconds
            self._advance(self._seconds - seconds, self._data_seconds - data_seconds)
            exploded = [k for k, own in zip(self.rows, values, strict=True) if self._exploded(k, own)]
            self._end(exploded, "diverged")
            evaluated = self.iteration == next_evaluation
            if evaluated and self.live:
                self._evaluate()
            if self.iteration == self.iterations:
                self._end(sorted(self.live), "finished")
            elif stop.requested:
                self._end(sorted(self.live), "interrupted")
            if evaluated or not self.live:
                return
            self._compact(self.iterations - self.iteration)
            next_pause = min(next_evaluation, self.iteration + LOSSES_AT_ONCE)
            self.clock.start()

    def _advance(self, seconds: float, data_seconds: float) -> None:
        """Move the live runs on; each has its share of the time."""
        for k in self.live:
            progress = self.courses[k].progress
            progress.iterations = self.iteration
            progress.examples = min(self.iteration * self.plan.batch_size, self.budget)
            progress.seconds += seconds / len(self.live)
            progress.data_seconds += data_seconds / len(self.live)

    def _exploded(self, k: int, losses: list[float]) -> bool:
        return k in self.live and self.courses[k].exploded(losses)

    def _evaluate(self) -> None:
        began = time.perf_counter()
        rates = self.stack.optimizer.learning_rates
        with contextlib.nullcontext() if self.average is None else self.average.in_place():
            found = self.evaluation()
        spent = (time.perf_counter() - began) / len(self.live)
        evaluated: list[tuple[int, Course]] = []
        for row, k in enumerate(self.rows):
            if k in self.live:
                course = self.courses[k]
                course.evaluated(*found[row], learning_rate=rates[row])
                course.progress.evaluation_seconds += spent
                evaluated.append((k, course))
        for k, course in evaluated:
            if self.on_evaluation is not None:
                self.on_evaluation(k, course.progress.curve[-1])
        for k, course in evaluated:
            ended = course.ending()
            if ended is not None:
                self._end([k], ended)
        if self.prune is not None and self.live and course.progress.iterations < self.iterations:
            self._end(sorted(self.live.intersection(self.prune())), "pruned")

    def _next_evaluation(self) -> int:
        return self.courses[next(iter(self.live))].next_evaluation()

    def _end(self, runs: Sequence[int], outcome: Outcome) -> None:
        for k in runs:
            self.live.discard(k)
            course = self.courses[k]
            if self.keep_weights and outcome in IN_ORDER:
                course.best.state = self.state_of(k, averaged=True)
            result = self.results[k] = course.result(
                outcome,
                seed=self.seeds[k],
                device=self.device,
                total_seconds=self.set_up_seconds + course.progress.seconds + course.progress.evaluation_seconds,
                micro_batch_size=self.plan.batch_size,
                stack_size=len(self.plans),
            )
            if self.on_finished is not None:
                self.on_finished(k, result)

    def _compact(self, updates_left: int) -> None:
        """Drop ended replicas from the stack, where that is worth a new trace."""
        size, live = self.stack.size, len(self.live)
        wasted = updates_left * (size - live) / size
        if live < size and (self.stack.in_turn or live <= size // 2 or wasted >= WORTH_A_TRACE):
            rows = [row for row, k in enumerate(self.rows) if k in self.live]
            self.stack.keep(rows)
            self.feed.keep(rows)
            if self.average is not None:
                self.average.keep(rows, self.stack.tensors)
            self.rows = [self.rows[row] for row in rows]


def _check_alike(plans: Sequence[Plan], seeds: Sequence[int]) -> None:
    """Refuse plans that cannot be followed together."""
    if not plans or len(plans) != len(seeds):
        raise PlanError("a stack needs a plan and a seed for each run", got=f"{len(plans)} plans, {len(seeds)} seeds")
    first = plans[0]
    for plan in plans[1:]:
        for name, value in vars(plan).items():
            if name != "learning_rate" and value != getattr(first, name):
                raise PlanError(
                    "the plans of a stack may differ in the learning rate alone",
                    got=f"{name} {getattr(first, name)!r} and {value!r}",
                )
    if first.inner_steps > 1:
        raise PlanError(
            "runs of a stack make one step on each batch",
            got=f"inner_steps={first.inner_steps}",
            mend="train the runs by themselves",
        )
    if first.schedule is not None:
        raise PlanError(
            "a stack keeps its batch size",
            got=f"a schedule of {len(first.schedule.phases)} phases",
            mend="leave the schedule out, or train the runs by themselves",
        )
    if first.micro_batch_size not in (None, first.batch_size):
        raise PlanError(
            "a stack does not cut its batches",
            got=f"micro_batch_size={first.micro_batch_size}",
            mend="leave micro_batch_size out, or train the runs by themselves",
        )

"""Cached training runs and learning-rate searches that all claims share, within one budget."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from batchscope.errors import ArgumentError, BatchscopeError
from batchscope.fit import mean_interval
from batchscope.folklore.verdicts import paired
from batchscope.measure.step_time import step_times
from batchscope.records import Interval, Plan, Series, StepTimes, TrainResult
from batchscope.seeding import derive, isolated
from batchscope.study.arguments import checked_seeds
from batchscope.study.search import search_learning_rate
from batchscope.training.ghost_norm import ghost_batch_norm
from batchscope.training.loop import Prepared, Run
from batchscope.training.micro_batching import least_batch_size
from batchscope.training.start import Start
from batchscope.training.train import checked_seed
from batchscope.workload.workload import Workload

Rates = Literal["tuned", "fixed", "rescaled"]
TUNED_AND_FIXED: tuple[Rates, Rates] = ("tuned", "fixed")

SMALLEST, MIDDLE, LARGE, LARGEST = 4, 32, 128, 4096
# Keskar's large batch is a tenth of the training examples; here a quarter if there are few.
LARGE_SHARE, LARGE_SHARE_OF_FEW, FEW = 0.1, 0.25, 10_000
# Bounds on the length of a run, in passes over the data.
MOST_EPOCHS, LEAST_EPOCHS = 20.0, 0.25
# Approximate number of runs of all claims together.
RUNS = 165
# A negligible difference of scores, as a share of the improvement by training.
NOTICEABLE = 0.01
LEAST_BUDGET = 5.0
TIMING_SECONDS = 4.0


class StoppedError(BatchscopeError):
    """The user asked to stop."""


@dataclass(frozen=True)
class Trained:
    """The result of a run and its final weights, a state dict."""

    result: TrainResult
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Intervention:
    """A change to a run beyond its plan.

    Attributes:
        after: The run that provides the initial weights; None: fresh weights.
        ghost_size: Examples in a group of ghost batch norm; None: the whole batch.
    """

    after: Plan | None = None
    ghost_size: int | None = None


NO_INTERVENTION = Intervention()


def train_once(
    prepared: Prepared,
    plan: Plan,
    *,
    seed: int,
    should_stop: Callable[[], bool],
    start: Start | None = None,
    evaluate_every: int | None = None,
) -> Trained:
    """Train once, without what experiments do not need.

    Args:
        prepared: The workload, with its data on the device.
        plan: The plan.
        seed: Of weights and order.
        should_stop: Whether to stop instead.
        start: Initial weights; None: fresh weights.
        evaluate_every: Examples between two evaluations; None: the default.

    Raises:
        StoppedError: The user asked to stop.
    """
    run = _run(prepared, plan, seed=seed, should_stop=should_stop, start=start, evaluate_every=evaluate_every)
    result = run()
    if result.outcome == "interrupted":
        raise _stopped()
    return Trained(result, run.state())


def _run(prepared: Prepared, plan: Plan, *, should_stop: Callable[[], bool], **options: Any) -> Run:
    if should_stop():
        raise _stopped()
    return Run(prepared, plan, keep_best_weights=False, evaluate_training=False, measure_memory=False, **options)


def _stopped() -> StoppedError:
    return StoppedError("an experiment needs all its runs", got="a request to stop")


def checked_design(seeds: int | Sequence[int], seed: int, budget_seconds: float) -> tuple[int, ...]:
    """Check the seeds and the budget of experiments.

    Returns:
        The seeds.

    Raises:
        ArgumentError: Fewer than two seeds, or too small a budget.
    """
    chosen = checked_seeds(seeds, checked_seed(seed))
    if len(chosen) < 2:
        raise ArgumentError("an interval needs at least two seeds", got=len(chosen), mend="five are usual")
    if not isinstance(budget_seconds, (int, float)) or not budget_seconds >= LEAST_BUDGET:
        raise ArgumentError(f"a budget must be at least {LEAST_BUDGET:g} seconds", got=budget_seconds)
    return tuple(chosen)


class ExperimentRunner:
    """Train and measure a workload for experiments, each run and each measurement once.

    Args:
        prepared: The workload, with its data on the device.
        seeds: Seeds of every experiment.
        budget_seconds: Approximate time for all claims.
        seed: Of searches and random draws.
        workers: Processes that read a Dataset.
        notify: Called with a description of each step.
        should_stop: Called before each run.

    Attributes:
        examples: Training examples of every run.
        runs: Number of training runs so far.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        seeds: Sequence[int],
        budget_seconds: float,
        seed: int,
        workers: int | None,
        notify: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.prepared, self.seeds, self.seed, self.workers = prepared, tuple(seeds), seed, workers
        self.notify, self.should_stop = notify, should_stop
        self.budget_seconds = budget_seconds
        self._search_seed = derive(seed, "claims", "search") % 2**31
        self.runs = 0
        self._trained: dict[tuple[Plan, int, Intervention], Trained] = {}
        self._with_ghosts: dict[int, Prepared] = {}
        self._rates: dict[int, float] = {}
        self._states: dict[tuple[Plan, int], list[Mapping[str, Any]]] = {}
        n = self.workload.training_examples
        affordable = budget_seconds * self._examples_per_second() / RUNS * 5 / max(1, len(self.seeds))
        most = min(MOST_EPOCHS * n, max(affordable, LEAST_EPOCHS * n))
        # Whole numbers of updates at every power of two that is compared.
        self.examples = max(1, round(most / LARGEST)) * LARGEST if most >= LARGEST else round(most)

    @property
    def workload(self) -> Workload:
        """The workload."""
        return self.prepared.workload

    @cached_property
    def large(self) -> int:
        """The large batch size: a tenth of the training examples, as a power of two, at most 4,096."""
        n = self.workload.training_examples
        share = LARGE_SHARE_OF_FEW if n < FEW else LARGE_SHARE
        return min(LARGEST, max(2 * LARGE, 1 << int(math.log2(max(2, share * n)))), n)

    @cached_property
    def smallest(self) -> int:
        """The smallest batch size that the model can be trained with, at least 4."""
        with isolated(0, self.prepared.device):
            return max(SMALLEST, least_batch_size(self.workload.model()))

    @property
    def small(self) -> int:
        """The small batch size: 32."""
        return max(MIDDLE, self.smallest)

    @cached_property
    def step_times(self) -> StepTimes:
        """Seconds per update over batch sizes."""
        self.notify("timing updates")
        return step_times(
            self.workload, seconds=TIMING_SECONDS, seed=self.seed, device=self.prepared.device, workers=self.workers
        )

    def seconds_per_update(self, batch_size: int) -> float:
        """Interpolate the measured seconds per update, linearly on logarithmic axes."""
        points = [(p.batch_size, p.step_seconds.value) for p in self.step_times.points if p.step_seconds.value]
        if batch_size >= points[-1][0]:
            return points[-1][1] * batch_size / points[-1][0]
        for (low, before), (high, after) in itertools.pairwise(points):
            if low <= batch_size <= high:
                share = math.log(batch_size / low) / math.log(high / low)
                return math.exp((1 - share) * math.log(before) + share * math.log(after))
        return points[0][1]

    def plan(self, batch_size: int, rates: Rates = "tuned", **changes: Any) -> Plan:
        """Make a plan at this batch size, whose learning rate falls linearly to zero.

        Args:
            batch_size: Examples per update.
            rates: "tuned": from a search at this batch size; "fixed": the workload's own; "rescaled": by the
                optimiser's rule.
            changes: Other fields of the plan.
        """
        n = self.workload.training_examples
        size = min(batch_size, n)
        rate = self.tuned_rate(size) if rates == "tuned" else self.workload.learning_rate
        found = Plan(
            batch_size=size,
            learning_rate=rate,
            examples=self.examples,
            shape="linear",
            rescaled_from=self.workload.batch_size if rates == "rescaled" else None,
        )
        return replace(found, **changes)

    def tuned_rate(self, batch_size: int) -> float:
        """Search for the best learning rate at a batch size, once."""
        if batch_size not in self._rates:
            base = Plan(batch_size=batch_size, learning_rate=1.0, examples=self.examples, shape="linear")
            start = self.workload.learning_rate * (batch_size / self.workload.batch_size) ** 0.5
            self.notify(f"learning rates at batch size {batch_size:,}")
            found, _ = search_learning_rate(
                lambda plan, seed: self._run(plan, seed).result, base, start, (self._search_seed,)
            )
            self._rates[batch_size] = found.learning_rate
        return self._rates[batch_size]

    def train(self, plan: Plan, intervention: Intervention = NO_INTERVENTION) -> list[Trained]:
        """Train a plan with every seed, once.

        Args:
            plan: The plan.
            intervention: A change beyond the plan.

        Raises:
            StoppedError: The user asked to stop.
            WorkloadError: Ghost batches of a model without batch norm.
        """
        begun = None if intervention.after is None else self.train(intervention.after)
        prepared = self._prepared(intervention.ghost_size)
        for k, seed in enumerate(self.seeds):
            if (plan, seed, intervention) not in self._trained:
                self.notify(f"batch size {plan.batch_size:,}, rate {plan.learning_rate:.3g}")
                start = None if begun is None else Start(dict(begun[k].state), {})
                self._trained[plan, seed, intervention] = self._run(plan, seed, prepared, start)
        return [self._trained[plan, seed, intervention] for seed in self.seeds]

    def _prepared(self, ghost_size: int | None) -> Prepared:
        if ghost_size is None:
            return self.prepared
        if ghost_size not in self._with_ghosts:
            workload = ghost_batch_norm(self.workload, ghost_size)
            self._with_ghosts[ghost_size] = Prepared(workload, self.prepared.device, workers=self.workers)
        return self._with_ghosts[ghost_size]

    def states_along(self, plan: Plan, parts: int) -> list[Mapping[str, Any]]:
        """Weights at evenly spaced points of a run with the first seed.

        Args:
            plan: The plan.
            parts: Number of points.
        """
        if (plan, parts) not in self._states:
            self.runs += 1
            self.notify(f"batch size {plan.batch_size:,}, weights along the run")
            every = -(-(plan.budget_examples or parts) // parts)
            stop = self.should_stop
            run = _run(self.prepared, plan, seed=self.seeds[0], should_stop=stop, evaluate_every=every)
            states: list[Mapping[str, Any]] = []
            result = None
            while result is None:
                result = run.advance()
                states.append(run.state())
            self._states[plan, parts] = states
        return self._states[plan, parts]

    def scores(self, plan: Plan, intervention: Intervention = NO_INTERVENTION) -> list[float | None]:
        """Final scores, one per seed; the initial score of a run that diverged."""
        found: list[float | None] = []
        for run in self.train(plan, intervention):
            ended = run.result.final_score
            found.append(run.result.curve[0].score if ended is None or not math.isfinite(ended) else ended)
        return found

    def noticeable_score(self) -> float:
        """The least difference of scores that matters: 1% of the improvement by training."""
        runs = self.train(self.plan(self.small))
        gains = [abs((run.result.final_score or 0.0) - run.result.curve[0].score) for run in runs]
        return NOTICEABLE * max(gains)

    def score_interval(self, plan: Plan) -> Interval:
        """Mean final score over seeds."""
        return mean_interval([score for score in self.scores(plan) if score is not None])

    def score_series(self, name: str, batch_sizes: Sequence[int], rates: Rates = "tuned", **changes: Any) -> Series:
        """Mean final scores over batch sizes, as a series of a chart; other arguments as for :meth:`plan`."""
        values = tuple(self.score_interval(self.plan(size, rates, **changes)) for size in batch_sizes)
        return Series(name, tuple(map(float, batch_sizes)), values)

    def gaps(self, small: int, large: int) -> dict[Rates, Interval]:
        """Paired differences of final scores, small minus large batch size, at tuned rates and at one rate for both."""
        return {
            rates: paired(self.scores(self.plan(small, rates)), self.scores(self.plan(large, rates)))
            for rates in TUNED_AND_FIXED
        }

    def gap_series(self, batch_sizes: Sequence[int]) -> tuple[Series, ...]:
        """Mean final scores over batch sizes at tuned rates and at one rate for all, as series of a chart."""
        names = "best learning rate of each", f"learning rate {self.workload.learning_rate:.3g} for all"
        pairs = zip(names, TUNED_AND_FIXED, strict=True)
        return tuple(self.score_series(name, batch_sizes, rates) for name, rates in pairs)

    def _run(self, plan: Plan, seed: int, prepared: Prepared | None = None, start: Start | None = None) -> Trained:
        self.runs += 1
        return train_once(prepared or self.prepared, plan, seed=seed, should_stop=self.should_stop, start=start)

    def _examples_per_second(self) -> float:
        """Examples per second of a short run at batch size 32, evaluations included."""
        n = self.workload.training_examples
        plan = Plan(batch_size=min(MIDDLE, n), learning_rate=self.workload.learning_rate, iterations=64)
        began = time.perf_counter()
        self._run(plan, self._search_seed)
        return float(plan.budget_examples or 1) / (time.perf_counter() - began)

"""What the experiments share: runs that are made once, rates that are searched for once, one budget."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from batchscope.errors import BatchscopeError
from batchscope.fit import mean_interval
from batchscope.measure.step_time import step_times
from batchscope.records import Interval, Plan, Series, StepTimes, TrainResult
from batchscope.seeding import derive, isolated
from batchscope.study.search import search_learning_rate
from batchscope.training.ghost_norm import ghost_batch_norm
from batchscope.training.loop import Prepared, Run
from batchscope.training.micro_batching import least_batch_size
from batchscope.training.start import Start
from batchscope.workload.workload import Workload

Rates = Literal["tuned", "fixed", "rescaled"]

SMALLEST, MIDDLE, LARGE, LARGEST = 4, 32, 128, 4096
# Keskar's large batch is a tenth of the training examples; a quarter where there are few.
LARGE_SHARE, LARGE_SHARE_OF_FEW, FEW = 0.1, 0.25, 10_000
# A run is as long as the budget allows, between these many passes over the data.
MOST_EPOCHS, LEAST_EPOCHS = 20.0, 0.25
# About so many runs of that length come together over all claims, besides what small batches take beyond large ones.
RUNS = 165
# A difference of score below this share of what training gains would not be noticed.
NOTICEABLE = 0.01
TIMING_SECONDS = 4.0


class StoppedError(BatchscopeError):
    """The person asked to stop."""


@dataclass(frozen=True)
class Trained:
    """A run with the weights that it ended with.

    Attributes:
        result: The run.
        state: The weights, a state dict.
    """

    result: TrainResult
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Remedy:
    """What is done for a large batch besides its plan.

    Attributes:
        after: The run whose weights it begins with; None: fresh ones.
        ghost_size: Examples that batch norms see at once; None: all of the batch.
    """

    after: Plan | None = None
    ghost_size: int | None = None


NO_REMEDY = Remedy()


class Lab:
    """A workload, and all that was trained and measured on it so far.

    Args:
        prepared: The workload, with its data on the device.
        seeds: Seeds that every experiment is repeated with.
        budget_seconds: What all of it may take.
        seed: Of the searches and of whatever is drawn.
        workers: Processes that read a Dataset.
        tell: Told what goes on.
        stopped: Asked between two runs whether to end.

    Attributes:
        examples: Training examples of every run.
        runs: Training runs made.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        seeds: Sequence[int],
        budget_seconds: float,
        seed: int,
        workers: int | None,
        tell: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> None:
        self.prepared, self.seeds, self.seed, self.workers = prepared, tuple(seeds), seed, workers
        self.tell, self.stopped = tell, stopped
        self.budget_seconds = budget_seconds
        self.runs = 0
        self._trained: dict[tuple[Plan, int, Remedy], Trained] = {}
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
        """What is trained."""
        return self.prepared.workload

    @cached_property
    def large(self) -> int:
        """The large batch: a tenth of the training examples, as a power of two, and 4,096 at most."""
        n = self.workload.training_examples
        share = LARGE_SHARE_OF_FEW if n < FEW else LARGE_SHARE
        return min(LARGEST, max(2 * LARGE, 1 << int(math.log2(max(2, share * n)))), n)

    @cached_property
    def smallest(self) -> int:
        """The smallest batch that the model can be trained with, 4 or more."""
        with isolated(0, self.prepared.device):
            return max(SMALLEST, least_batch_size(self.workload.model()))

    @property
    def small(self) -> int:
        """The small batch of comparisons: 32."""
        return max(MIDDLE, self.smallest)

    @cached_property
    def step_times(self) -> StepTimes:
        """Times of updates, measured once."""
        self.tell("timing updates")
        return step_times(
            self.workload, seconds=TIMING_SECONDS, seed=self.seed, device=self.prepared.device, workers=self.workers
        )

    def seconds_per_update(self, batch_size: int) -> float:
        """Measured, on straight lines in logarithms between the sizes measured."""
        points = [(p.batch_size, p.step_seconds.value) for p in self.step_times.points if p.step_seconds.value]
        if batch_size >= points[-1][0]:
            return points[-1][1] * batch_size / points[-1][0]
        for (low, before), (high, after) in itertools.pairwise(points):
            if low <= batch_size <= high:
                share = math.log(batch_size / low) / math.log(high / low)
                return math.exp((1 - share) * math.log(before) + share * math.log(after))
        return points[0][1]

    def plan(self, batch_size: int, rates: Rates = "tuned", **changes: Any) -> Plan:
        """A run of this batch size: its rate falls linearly to zero over the examples that all runs have.

        Args:
            batch_size: Examples per update.
            rates: "tuned": searched for at this size; "fixed": the workload's; "rescaled": by the optimiser's rule.
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
        """The best rate at a batch size, by a search of its own."""
        if batch_size not in self._rates:
            base = Plan(batch_size=batch_size, learning_rate=1.0, examples=self.examples, shape="linear")
            start = self.workload.learning_rate * (batch_size / self.workload.batch_size) ** 0.5
            self.tell(f"learning rates at batch size {batch_size:,}")
            found, _ = search_learning_rate(
                lambda plan, seed: self._run(plan, seed).result, base, start, (self._search_seed,)
            )
            self._rates[batch_size] = found.learning_rate
        return self._rates[batch_size]

    def train(self, plan: Plan, remedy: Remedy = NO_REMEDY) -> list[Trained]:
        """Runs of a plan, one for each seed, made once.

        Args:
            plan: What to train with.
            remedy: What is done for a large batch besides.

        Raises:
            StoppedError: The person asked to stop.
            WorkloadError: The model has no batch norm for ghost batches.
        """
        begun = None if remedy.after is None else self.train(remedy.after)
        prepared = self._prepared(remedy.ghost_size)
        for k, seed in enumerate(self.seeds):
            if (plan, seed, remedy) not in self._trained:
                self.tell(f"batch size {plan.batch_size:,}, rate {plan.learning_rate:.3g}")
                start = None if begun is None else Start(dict(begun[k].state), {})
                self._trained[plan, seed, remedy] = self._run(plan, seed, prepared, start)
        return [self._trained[plan, seed, remedy] for seed in self.seeds]

    def _prepared(self, ghost_size: int | None) -> Prepared:
        if ghost_size is None:
            return self.prepared
        if ghost_size not in self._with_ghosts:
            workload = ghost_batch_norm(self.workload, ghost_size)
            self._with_ghosts[ghost_size] = Prepared(workload, self.prepared.device, workers=self.workers)
        return self._with_ghosts[ghost_size]

    def states_along(self, plan: Plan, parts: int) -> list[Mapping[str, Any]]:
        """Weights at the end of each part of a run with the first seed, made once.

        Args:
            plan: What to train.
            parts: How many.
        """
        if (plan, parts) not in self._states:
            if self.stopped():
                raise StoppedError("the person must let it finish", got="a request to stop")
            self.runs += 1
            self.tell(f"batch size {plan.batch_size:,}, on the way")
            every = -(-(plan.budget_examples or parts) // parts)
            run = Run(
                self.prepared,
                plan,
                seed=self.seeds[0],
                evaluate_every=every,
                keep_best_weights=False,
                evaluate_training=False,
                measure_memory=False,
            )
            states: list[Mapping[str, Any]] = []
            result = None
            while result is None:
                result = run.advance()
                states.append(run.state())
            self._states[plan, parts] = states
        return self._states[plan, parts]

    def scores(self, plan: Plan, remedy: Remedy = NO_REMEDY) -> list[float | None]:
        """Final scores, one for each seed; the score at the beginning where a run diverged."""
        found: list[float | None] = []
        for run in self.train(plan, remedy):
            ended = run.result.final_score
            found.append(run.result.curve[0].score if ended is None or not math.isfinite(ended) else ended)
        return found

    def noticeable_score(self) -> float:
        """The least difference of scores that would be noticed: a hundredth of what training gains."""
        runs = self.train(self.plan(self.small))
        gains = [abs((run.result.final_score or 0.0) - run.result.curve[0].score) for run in runs]
        return NOTICEABLE * max(gains)

    def score_interval(self, plan: Plan) -> Interval:
        """The mean final score over seeds."""
        return mean_interval([score for score in self.scores(plan) if score is not None])

    def score_series(self, name: str, batch_sizes: Sequence[int], rates: Rates = "tuned", **changes: Any) -> Series:
        """Mean final scores over batch sizes, for a chart.

        Args:
            name: What they are called.
            batch_sizes: Where they lie.
            rates: As for :meth:`plan`.
            changes: Likewise.
        """
        values = tuple(self.score_interval(self.plan(size, rates, **changes)) for size in batch_sizes)
        return Series(name, tuple(map(float, batch_sizes)), values)

    @property
    def _search_seed(self) -> int:
        return derive(self.seed, "claims", "search") % 2**31

    def _run(self, plan: Plan, seed: int, prepared: Prepared | None = None, start: Start | None = None) -> Trained:
        if self.stopped():
            raise StoppedError("the person must let it finish", got="a request to stop")
        self.runs += 1
        run = Run(
            prepared or self.prepared,
            plan,
            seed=seed,
            start=start,
            keep_best_weights=False,
            evaluate_training=False,
            measure_memory=False,
        )
        result = run()
        if result.outcome == "interrupted":
            raise StoppedError("the person must let it finish", got="a request to stop")
        return Trained(result, run.state())

    def _examples_per_second(self) -> float:
        """Of a short run at the middle size, evaluations included."""
        n = self.workload.training_examples
        plan = Plan(batch_size=min(MIDDLE, n), learning_rate=self.workload.learning_rate, iterations=64)
        began = time.perf_counter()
        self._run(plan, self._search_seed)
        return float(plan.budget_examples or 1) / (time.perf_counter() - began)

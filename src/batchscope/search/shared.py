"""What the candidates that train in one process share: data, a clock, the times of updates, fresh weights' scores."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from batchscope.errors import ArgumentError
from batchscope.search.reading import keep_reading
from batchscope.search.update_times import UpdateTimes
from batchscope.training.contention import Contention
from batchscope.training.evaluation import EvaluationData
from batchscope.training.goal import check_goal
from batchscope.training.loop import MOST_EPOCHS, Prepared
from batchscope.workload.goal import check_target, perfect_score
from batchscope.workload.workload import Workload

# An evaluation of the search takes about this long at most, on so many examples at least.
EVALUATION_SECONDS, LEAST_EXAMPLES = 0.05, 64


@dataclass
class Spent:
    """Where the wall time of a search goes, in seconds."""

    training: float = 0.0
    evaluating: float = 0.0
    reading: float = 0.0
    making: float = 0.0


class Shared:
    """What all candidates of one workload in this process share.

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
        fresh: Loss and score of fresh weights, once they were evaluated.
        shift: Training loss minus validation loss, where both were last seen.
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
        self.evaluation_seconds = 0.0  # of one evaluation
        self.evaluated_seconds = 0.0  # of all but that of fresh weights
        self.fresh: tuple[float, float] | None = None
        self.shift: float | None = None
        self.first_losses: list[tuple[int, float]] = []  # batch sizes, and losses of fresh weights on a first batch
        self._contention = Contention()

    def elapsed_seconds(self) -> float:
        """Wall time since the search began."""
        return time.perf_counter() - self.began

    def limit(self, seconds: float) -> None:
        """Pause whatever trains when so much time has passed since the search began."""
        self.deadline_seconds = seconds

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

    @functools.cached_property
    def perfect(self) -> float | None:
        """What perfect predictions score; None where that is not known."""
        return perfect_score(self.workload)

    def check_target(self) -> None:
        """Refuse a target that cannot be meant, by what fresh weights score.

        Raises:
            ArgumentError: Such a target.
        """
        if self.target is None or self.fresh is None:
            return
        try:
            check_target(self.target, [self.fresh[1]], perfect=self.perfect, minus_loss=self.workload.score is None)
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

    def watch(self) -> None:
        """Note what other programs took of the processor, if enough time has passed to say so."""
        share = self._contention.share(torch.get_num_threads())
        if share is not None:
            self.times.mark(share)

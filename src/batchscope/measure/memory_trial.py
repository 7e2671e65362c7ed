"""A fresh model in training on the longest batches of a workload: what a measurement of memory runs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchscope.measure.arguments import drawn_examples
from batchscope.seeding import derive, isolated
from batchscope.training.modes import evaluating
from batchscope.training.step import TrainingStep
from batchscope.training.update import fresh
from batchscope.workload.batches import as_tensors, nbytes, take, to_device
from batchscope.workload.workload import Batch, Workload

SCAN_SECONDS, MOST_SCANNED = 1.0, 4096


class LongestExamples:
    """Batches of the training examples that take most room, where examples of a Dataset differ in length.

    As many examples as can be read in a second, 4,096 at most, are drawn at random and put in order of their size:
    bytes of tensors and arrays, lengths of text and lists. A batch of m holds the m longest, over again where there are
    fewer. Tensors are all of one length, and their first m stand for any.

    Args:
        workload: Whose training examples.
        seed: Draws the examples to look at.
    """

    def __init__(self, workload: Workload, *, seed: int) -> None:
        self.workload = workload
        self._seed = seed
        self.indices = list(range(min(MOST_SCANNED, workload.training_examples)))
        if as_tensors(workload.train) is None:
            self.indices = self._longest_first()

    def batch(self, size: int) -> Batch:
        """A batch of so many examples."""
        repeats = -(-size // len(self.indices))
        with isolated(derive(self._seed, "longest batch")):
            return take(self.workload.train, (self.indices * repeats)[:size], self.workload.collate)

    def _longest_first(self) -> list[int]:
        drawn = drawn_examples(self.workload, MOST_SCANNED, derive(self._seed, "longest examples"))
        dataset: Any = self.workload.train
        lengths: dict[int, int] = {}
        until = time.perf_counter() + SCAN_SECONDS
        with isolated(derive(self._seed, "longest batch")):
            for index in drawn:
                lengths[index] = _length(dataset[index])
                if time.perf_counter() > until:
                    break
        return sorted(lengths, key=lambda index: -lengths[index])


class FreshTraining:
    """A model of a workload's with its optimiser, as a run begins with them.

    Args:
        workload: What is trained.
        longest: Its batches.
        device: Where.
    """

    def __init__(self, workload: Workload, longest: LongestExamples, device: torch.device) -> None:
        self.workload, self.longest, self.device = workload, longest, device
        self.model, self.optimizer = fresh(workload, workload.learning_rate, device)
        self._step = TrainingStep(workload, self.model, self.optimizer, micro_batch_size=None)

    def step(self, size: int) -> None:
        """One full update with so many examples at once."""
        self._step([self._batch(size)], size)

    def evaluate(self, size: int) -> None:
        """One pass in evaluation mode over so many examples."""
        with evaluating(self.model), torch.no_grad(), self.workload.autocast(self.device):
            self.workload.loss(*self.workload.output_and_target(self.model, self._batch(size)))

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the weights."""
        return nbytes(list(self.model.parameters()))

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimiser's state."""
        return nbytes(list(self.optimizer.state.values()))

    def _batch(self, size: int) -> Batch:
        return to_device(self.longest.batch(size), self.device)


def _length(value: Any) -> int:
    if isinstance(value, (Tensor, np.ndarray)):
        return int(value.nbytes)
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(_length(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_length(item) for item in value)
    return 1

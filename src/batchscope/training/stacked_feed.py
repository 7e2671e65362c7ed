"""Batches for a stack of replicas: each replica's own, with a leading dimension for the replicas."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from batchscope.records import Plan
from batchscope.seeding import derive
from batchscope.training.feed import GATHER_BATCHES, GATHER_BYTES, TrainingData
from batchscope.training.order import ExampleOrder
from batchscope.workload.batches import to_device
from batchscope.workload.workload import Batch


class StackedFeed(ABC):
    """The updates of a stack, each a list of the tensors that make up a batch.

    Replica k gets what a single run with its seed gets: replicas with one seed share the order of the data.

    Args:
        data: The training examples.
        plan: Batch size and order.
        examples: The budget of each replica.
        seeds: The replicas' seeds.

    Attributes:
        seconds: Time spent in getting batches so far.
    """

    def __init__(self, data: TrainingData, plan: Plan, examples: int, seeds: Sequence[int]) -> None:
        self.data, self.plan, self.examples = data, plan, examples
        self.iterations = -(-examples // plan.batch_size)
        self.iteration = 0
        self.seconds = 0.0
        self.seeds = list(dict.fromkeys(seeds))
        self.rows = [self.seeds.index(seed) for seed in seeds]

    @classmethod
    def of(cls, data: TrainingData, plan: Plan, examples: int, seeds: Sequence[int]) -> StackedFeed:
        """The feed for this kind of data."""
        kind: type[StackedFeed] = _OfTensors if data.tensors is not None else _OfADataset
        return kind(data, plan, examples, seeds)

    def __iter__(self) -> Iterator[list[Tensor]]:
        """Yield the tensors of each update's batches."""
        while self.iteration < self.iterations:
            began = time.perf_counter()
            leaves = self._next()
            self.seconds += time.perf_counter() - began
            self.iteration += 1
            yield leaves

    @abstractmethod
    def _next(self) -> list[Tensor]:
        """The batches of update ``self.iteration``."""

    def keep(self, replicas: Sequence[int]) -> None:
        """Go on with these replicas alone, from the next update."""
        self.rows = [self.rows[k] for k in replicas]


class _OfTensors(StackedFeed):
    """Gathered from tensors that stay on the device, many small batches at a time."""

    def __init__(self, data: TrainingData, plan: Plan, examples: int, seeds: Sequence[int]) -> None:
        super().__init__(data, plan, examples, seeds)
        self._orders = [
            ExampleOrder(
                plan.order,
                data.examples,
                seed=derive(seed, "data"),
                labels=data.labels,
                lengths=data.lengths,
                batch_size=plan.batch_size,
            )
            for seed in self.seeds
        ]
        self._gathered: list[list[Tensor]] = []

    def keep(self, replicas: Sequence[int]) -> None:
        super().keep(replicas)
        self._gathered.clear()

    def _next(self) -> list[Tensor]:
        if not self._gathered:
            self._gathered = self._gather()[::-1]
        return self._gathered.pop()

    def _gather(self) -> list[list[Tensor]]:
        tensors, size, start = self.data.tensors or (), self.plan.batch_size, self.iteration * self.plan.batch_size
        left = self.examples - start
        example_bytes = sum(t[:1].numel() * t.element_size() for t in tensors)
        group = max(1, min(GATHER_BATCHES, GATHER_BYTES // max(1, example_bytes * size * len(self.rows)), left // size))
        size = min(size, left)
        drawn = torch.stack([order.indices(start, start + group * size) for order in self._orders])
        wanted = drawn[self.rows].view(len(self.rows), group, size).transpose(0, 1)
        where = wanted.flatten().to(tensors[0].device, non_blocking=True)
        gathered = [tensor.index_select(0, where) for tensor in tensors]
        if tensors[0].device != self.data.device:  # examples too many for the device's memory
            gathered = to_device(gathered, self.data.device)
        shaped = [tensor.view(*wanted.shape, *tensor.shape[1:]).unbind() for tensor in gathered]
        return [list(leaves) for leaves in zip(*shaped, strict=True)]


class _OfADataset(StackedFeed):
    """Read from a Dataset once for each seed, and stacked."""

    def __init__(self, data: TrainingData, plan: Plan, examples: int, seeds: Sequence[int]) -> None:
        super().__init__(data, plan, examples, seeds)
        self._feeds = [iter(data.feed(plan, examples, seed=derive(seed, "data"))) for seed in self.seeds]

    def keep(self, replicas: Sequence[int]) -> None:
        super().keep(replicas)
        wanted = sorted(set(self.rows))
        self._feeds = [self._feeds[row] for row in wanted]
        self.rows = [wanted.index(row) for row in self.rows]

    def _next(self) -> list[Tensor]:
        read = [pytree.tree_leaves(next(feed)[0]) for feed in self._feeds]
        return [torch.stack([read[row][i] for row in self.rows]) for i in range(len(read[0]))]


def example_batch(data: TrainingData, plan: Plan, seed: int) -> Batch:
    """The first batch of a run.

    Args:
        data: The training examples.
        plan: Batch size and order.
        seed: The run's seed.

    Returns:
        The batch, on the device.
    """
    first: list[Any] = next(iter(data.feed(plan, plan.batch_size, seed=derive(seed, "data"))))
    return first[0]

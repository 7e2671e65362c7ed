"""Data feeding: micro-batches on the device, in a stated order, with the time they took kept apart."""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from batchscope.errors import ArgumentError, PlanError, WorkloadError
from batchscope.provenance import available_cores
from batchscope.records import Plan, Schedule
from batchscope.seeding import derive, isolated
from batchscope.training.order import ExampleOrder
from batchscope.training.ranks import share
from batchscope.workload.batches import as_tensors, describe, nbytes, take, to_device
from batchscope.workload.tokens import tokens_of
from batchscope.workload.workload import Batch, Examples, Workload, length

# Small batches are gathered many at a time and handed out as views: one gather of 64 examples costs about as much as
# a gather of one. Bounded, so that a large batch is gathered by itself and memory does not grow.
GATHER_BATCHES = 64
GATHER_BYTES = 1 << 20

# A Dataset that needs longer than this for one example is read by worker processes.
SLOW_EXAMPLE_SECONDS = 2e-4


class TrainingData:
    """A workload's training examples made ready for a device, shared by all the runs on it.

    Args:
        workload: Whose examples.
        device: Where batches are wanted.
        workers: Processes that read a Dataset; None: as many as pay, which is none where reading is quick. What is
            read, and so every result, does not depend on it.

    Raises:
        ArgumentError: A number of workers that makes no sense.
    """

    def __init__(self, workload: Workload, device: torch.device, *, workers: int | None = None) -> None:
        if workers is not None and (type(workers) is not int or workers < 0):
            raise ArgumentError("workers must be a whole number of at least 0", got=workers)
        self.workload = workload
        self.device = device
        self.examples = workload.training_examples
        tensors = as_tensors(workload.train)
        self.tensors = None if tensors is None else _resident(tensors, device)
        self.source: Examples = workload.train
        self._workers = workers
        self._lengths: Tensor | None = None

    @property
    def workers(self) -> int:
        """Processes that read the Dataset; 0 for tensors."""
        if self.tensors is not None:
            return 0
        if self._workers is None:
            self._workers = _workers_that_pay(self.workload)
        return self._workers

    def read_from(self, source: Dataset[Any], *, workers: int) -> None:
        """Read the examples from another Dataset, which yields the same ones.

        Args:
            source: As long as the workload's own.
            workers: Processes that read it.
        """
        self.source, self._workers = source, workers

    def labels(self) -> Tensor:
        """The class of every training example: the last tensor of a tuple, or a Dataset's ``targets`` or ``labels``.

        Raises:
            PlanError: There are none, or they are no classes, or not one for each example.
        """
        source: Any = self.tensors[-1] if self.tensors else None
        if source is None:
            source = getattr(self.workload.train, "targets", getattr(self.workload.train, "labels", None))
        if source is None:
            raise PlanError(
                "a stratified order needs the class of every example",
                got="a Dataset without .targets or .labels",
                mend="add that attribute, or use order='shuffled'",
            )
        try:
            labels: Tensor | None = torch.as_tensor(source).cpu()
        except (TypeError, ValueError, RuntimeError):  # text, lists of unequal length
            labels = None
        if labels is None or labels.shape != (self.examples,) or labels.is_floating_point() or labels.is_complex():
            found = type(source).__name__ if labels is None else describe(labels)
            raise PlanError(
                "a stratified order needs one whole number for each example as its class",
                got=f"targets {found} for {self.examples} examples",
                mend="use order='shuffled'",
            )
        return labels

    def lengths(self) -> Tensor:
        """Tokens of every training example; each is read once.

        Raises:
            PlanError: The workload does not count them.
        """
        workload = self.workload
        if not callable(workload.tokens_per_example):
            raise PlanError(
                "a bucketed order needs the length of every example",
                got=f"tokens_per_example={workload.tokens_per_example}",
                mend="give the workload a function tokens_per_example(batch), or use order='shuffled'",
            )
        if self._lengths is None:
            self._lengths = torch.tensor([tokens_of(workload, index) for index in range(self.examples)])
        return self._lengths

    def check(self, plan: Plan) -> None:
        """Refuse a plan that these examples cannot fill a batch of.

        Raises:
            PlanError: A batch that is larger than the data.
        """
        largest = plan.batch_sizes.largest_batch_size
        if largest > self.examples:
            raise PlanError(
                "batch_size must be at most the number of training examples",
                got=f"{largest} > {self.examples}",
                mend=f"the full batch is {self.examples}",
            )

    def feed(
        self,
        plan: Plan,
        examples: int,
        *,
        seed: int,
        start_iteration: int = 0,
        schedule: Schedule | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Feed:
        """The batches of one run.

        Args:
            plan: Batch size, micro-batch size and order.
            examples: The run's budget.
            seed: Seed of the order, and of whatever a Dataset draws.
            start_iteration: Updates that were made before, when a run is resumed.
            schedule: The batch sizes, where they have grown by measurement; None: the plan's.
            part: Which share of each batch is wanted, and how many there are.

        Returns:
            An iterable of updates, each a list of micro-batches; one of no examples where the share is empty.

        Raises:
            PlanError: A batch that is larger than the data, or labels missing for a stratified order.
        """
        self.check(plan)
        order = ExampleOrder(
            plan.order, self.examples, seed=seed, labels=self.labels, lengths=self.lengths, batch_size=plan.batch_size
        )
        kind: type[Feed] = TensorFeed if self.tensors is not None else LoaderFeed
        schedule = schedule or plan.batch_sizes
        return kind(self, plan, order, schedule, examples=examples, seed=seed, start=start_iteration, part=part)


class Feed(ABC):
    """Updates, each a list of micro-batches on the device.

    Attributes:
        seconds: Time spent in getting batches so far.
    """

    def __init__(
        self,
        data: TrainingData,
        plan: Plan,
        order: ExampleOrder,
        schedule: Schedule,
        *,
        examples: int,
        seed: int,
        start: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.data = data
        self.order = order
        self.schedule = schedule
        self.micro_batch_size = plan.micro_batch_size
        self.examples = examples
        self.seed = seed
        self.start = start
        self.part = part
        self.seconds = 0.0

    @abstractmethod
    def __iter__(self) -> Iterator[list[Batch]]:
        """Yield one list of micro-batches for each update."""

    @property
    def gathered_at_once(self) -> int:
        """Updates whose batches are got in one go, in the first phase."""
        return 1

    @property
    def iterations(self) -> int:
        """Updates in all."""
        return self.schedule.updates(self.examples)

    def follow(self, schedule: Schedule) -> None:
        """Go on with other batch sizes from the next update on; what was read ahead is dropped.

        Args:
            schedule: The batch sizes, those of the updates so far unchanged.
        """
        self.schedule = schedule

    def positions(self, iteration: int) -> range:
        """Positions in the stream that an update trains on."""
        segment = self.schedule.segment_at(iteration)
        size = segment.phase.batch_size
        first = segment.first_example + (iteration - segment.first_update) * size
        return range(first, min(first + size, self.examples))

    def own(self, iteration: int) -> range:
        """Those of them that are in the share."""
        return share(self.positions(iteration), *self.part)


class TensorFeed(Feed):
    """Batches gathered from tensors that stay on the device."""

    @property
    def gathered_at_once(self) -> int:
        """As many small batches as ``GATHER_BATCHES`` and ``GATHER_BYTES`` allow."""
        return self._at_once(self.schedule.batch_size_at(0))

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yield one list of micro-batches for each update."""
        iteration = self.start
        while iteration < self.iterations:
            schedule = self.schedule
            first, last = self._group(iteration)
            began = time.perf_counter()
            updates = self._gather(first, last)
            self.seconds += time.perf_counter() - began
            for update in updates[iteration - first :]:
                yield update
                iteration += 1
                if self.schedule is not schedule:
                    break

    def _group(self, iteration: int) -> tuple[int, int]:
        """The updates, all of one size, that are gathered with this one: the first, and the one after the last.

        Groups lie at fixed places within a phase whatever the start, so that a resumed run sees the same batches at the
        same alignment in memory, on which the last bits of a matrix product can depend.
        """
        segment, border = self.schedule.segment_at(iteration), self.schedule.next_border(iteration)
        group = self._at_once(segment.phase.batch_size)
        first = iteration - (iteration - segment.first_update) % group
        return first, min(first + group, self.iterations if border is None else min(border, self.iterations))

    def _at_once(self, batch_size: int) -> int:
        example_bytes = sum(t[:1].numel() * t.element_size() for t in self.data.tensors or ())
        return max(1, min(GATHER_BATCHES, GATHER_BYTES // max(1, example_bytes * batch_size)))

    def _gather(self, first: int, last: int) -> list[list[Batch]]:
        tensors = self.data.tensors or ()
        micro = self.micro_batch_size
        sizes: int | list[int]
        sizes = largest = self.schedule.batch_size_at(first)
        if self.part[1] == 1:
            indices = self.order.indices(self.positions(first).start, self.positions(last - 1).stop)
        else:
            own = [self.own(iteration) for iteration in range(first, last)]
            sizes = [len(positions) for positions in own]
            largest = max(map(len, own))
            parts = [self.order.indices(positions.start, positions.stop) for positions in own if positions]
            indices = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
        indices = indices.to(tensors[0].device, non_blocking=True)
        gathered = tuple(tensor.index_select(0, indices) for tensor in tensors)
        if tensors[0].device != self.data.device:  # examples too many for the device's memory
            gathered = to_device(gathered, self.data.device)
        batches = zip(*(torch.split(t, sizes) for t in gathered), strict=True)
        if micro is None or micro >= largest:
            return [[batch] for batch in batches]
        return [list(zip(*(torch.split(t, micro) for t in batch), strict=True)) for batch in batches]


class LoaderFeed(Feed):
    """Batches read from a Dataset through torch's DataLoader, in worker processes where that pays."""

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yield one list of micro-batches for each update."""
        iteration = self.start
        while iteration < self.iterations:
            schedule, pieces = self.schedule, self._pieces(iteration)
            while iteration < self.iterations and self.schedule is schedule:
                began = time.perf_counter()
                size = len(self.own(iteration))
                count = -(-size // (self.micro_batch_size or max(1, size)))
                update = [to_device(_checked(next(pieces)), self.data.device) for _ in range(count)]
                self.seconds += time.perf_counter() - began
                yield update
                iteration += 1

    def _pieces(self, start: int) -> Iterator[Batch | WorkloadError]:
        """Read the micro-batches of the updates from this one on, ahead of their use where there are workers."""
        loader: DataLoader[Batch | WorkloadError] = DataLoader(
            _Fetcher(self.data.source, self.data.workload.collate, self.seed),
            sampler=_Pieces(self, start),
            batch_size=None,
            collate_fn=_unchanged,  # torch's own would turn arrays into tensors, which evaluation does not
            num_workers=self.data.workers,
            worker_init_fn=_leave_signals_alone,
            pin_memory=self.data.device.type == "cuda",
            # The loader draws a base seed from this generator instead of from the training run's own stream.
            generator=torch.Generator().manual_seed(0),
        )
        return iter(loader)


class _Pieces:
    """A sampler of (position, indices), one for each micro-batch from an update on."""

    def __init__(self, feed: LoaderFeed, start: int) -> None:
        self.feed = feed
        self.start = start

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        feed = self.feed
        for iteration in range(self.start, feed.iterations):
            positions = feed.own(iteration)
            for start in range(positions.start, positions.stop, feed.micro_batch_size or max(1, len(positions))):
                stop = min(start + (feed.micro_batch_size or len(positions)), positions.stop)
                yield start, feed.order.indices(start, stop).tolist()


class _Fetcher(Dataset[Batch]):
    """Reads one micro-batch, with every generator seeded by its position.

    So random augmentation is the same whether a worker reads it or this process does, before an interruption or
    after it, and training's own random stream is not touched.
    """

    def __init__(self, source: Examples, collate: Callable[[list[Any]], Batch] | None, seed: int) -> None:
        self.source, self.collate = source, collate
        self.seed = seed

    def __getitem__(self, piece: tuple[int, list[int]]) -> Batch | WorkloadError:
        position, indices = piece
        with isolated(derive(self.seed, "dataset", position)):
            try:
                return take(self.source, indices, self.collate)
            except Exception as error:
                # Returned, since the loader would wrap it into a traceback when it is raised in a worker.
                failure = WorkloadError(
                    "the training Dataset must yield every example that its length promises",
                    got=f"{type(error).__name__}: {error} in examples {indices[:4]}{' …' if len(indices) > 4 else ''}",
                    mend="try dataset[i] for these",
                )
                failure.__cause__ = error
                return failure


def _checked(batch: Batch | WorkloadError) -> Batch:
    if isinstance(batch, WorkloadError):
        raise batch
    return batch


def _unchanged(batch: Batch) -> Batch:
    return batch


def _leave_signals_alone(worker: int) -> None:
    """Ctrl-C reaches the workers too: it is for the training process to end them, which it does with SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _resident(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The tensors on the device, or where they are if they would fill more than half of its free memory."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        if nbytes(tensors) > free_bytes // 2:
            return tensors
    return tuple(tensor.to(device) for tensor in tensors)


def _workers_that_pay(workload: Workload) -> int:
    indices = list(range(min(16, length(workload.train))))
    read = partial(take, workload.train, indices, workload.collate)
    with isolated(0):
        read()  # the first one opens files
        began = time.perf_counter()
        read()
    seconds = (time.perf_counter() - began) / len(indices)
    return min(8, max(1, available_cores() - 1)) if seconds > SLOW_EXAMPLE_SECONDS else 0

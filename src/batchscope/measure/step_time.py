"""Time of an update and throughput over a grid of batch sizes, on a machine that may be busy with other things.

All sizes are timed in every round, in an order drawn anew for each, so that a machine that slows down for a while slows
all sizes alike and no trend comes of it. A size's time is the median over the rounds in which nobody else took the
processor that it needed; rounds go on until every median's interval is tight, or the time is up. Where too few rounds
are quiet, intervals are as wide as the contention leaves open (:mod:`batchscope.fit.contention`). The optimiser makes
its updates at a learning rate of zero, so that the weights stay where they are and nothing diverges, however often a
batch is taken.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from batchscope.errors import ArgumentError, RunError
from batchscope.fit.contention import (
    QuietTime,
    busy_warning,
    quiet_time,
    share_taken,
    spread_warning,
    widened,
)
from batchscope.fit.intervals import median_interval
from batchscope.fit.step_time import fastest_point, fit_step_time, loader_bound_from
from batchscope.measure.peak_flops import peak_flops_per_second
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records import Interval, Plan, StepTimePoint, StepTimes
from batchscope.schedule import set_rate
from batchscope.seeding import derive, isolated
from batchscope.training.compiling import compile_seconds
from batchscope.training.contention import WINDOW_SECONDS, Clocks, Contention, now
from batchscope.training.feed import Feed, TrainingData
from batchscope.training.loop import Prepared
from batchscope.training.memory import is_out_of_memory
from batchscope.training.meters import Stopwatch
from batchscope.training.micro_batching import least_batch_size
from batchscope.training.step import TrainingStep
from batchscope.training.threads import compute_threads, flops_per_example
from batchscope.training.train import checked_seed, chosen_device
from batchscope.training.update import fresh
from batchscope.workload.batches import nbytes
from batchscope.workload.tokens import mean_tokens
from batchscope.workload.workload import Batch, Workload

# A block of updates takes at least this long, which is long beside the clock's own resolution and Python's hiccups.
BLOCK_SECONDS = 0.01
LEAST_ROUNDS, MOST_ROUNDS = 6, 60
# Rounds end early when every median is known to within this share of itself, either way.
TIGHT = 0.015
# The grid ends where one update takes this share of the time there is, so that there is time for enough rounds.
LARGEST_SHARE = 1 / 60
# … or where three doublings have raised the throughput by less than this in all.
SATURATED_GAIN = 1.05
READ_BLOCKS = 8
# Batches of one block are gathered beforehand, as far as this much memory holds them.
HELD_BYTES = 64 << 20


@dataclass
class TimedSize:
    """What is timed at one batch size."""

    batch_size: int
    feed: Feed
    batches: Iterator[list[Batch]]
    updates: int = 1
    compute: list[float] = field(default_factory=list)
    data: list[float] = field(default_factory=list)
    shares: list[float | None] = field(default_factory=list)
    threads: int = 1
    made: int = 0

    def quiet(self) -> QuietTime:
        """The time of computing, from the quietest rounds."""
        return quiet_time(self.compute, self.shares)

    def contended(self, rounds: int, share: float) -> None:
        """Take in how much of the processor others took in the last rounds; the larger share counts.

        A block that nobody interrupted is slow all the same where others used the caches just before: with four
        programs beside it on two cores, an update of 0.57 ms took 1.1 ms of the processor's own time.

        Args:
            rounds: How many.
            share: Of the time that its threads wanted.
        """
        for i in range(len(self.shares) - rounds, len(self.shares)):
            self.shares[i] = max(share, self.shares[i] or 0.0)


def step_times(
    workload: Workload,
    *,
    batch_sizes: Sequence[int] | None = None,
    longest_update_seconds: float | None = None,
    seconds: float = 10.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: bool | Reporter = False,
    clocks: Clocks = now,
) -> StepTimes:
    """Measure the time of an update and the throughput over batch sizes, and fit their law.

    Computing (forward, backward, optimiser) and getting batches are timed apart. The law τ(B) = c₀ + c₁·B is fitted to
    the computing (:func:`batchscope.fit.step_time.fit_step_time`); its knee c₀/c₁ is where throughput is half of what
    it can be. Where getting a batch takes longer than computing with it, the loader is the bound, and is named so.

    Args:
        workload: What is trained.
        batch_sizes: Sizes to time. None: powers of two, the workload's own batch size among them, as far as the
            training set, the memory, the time there is and a growing throughput reach; from 2 on with batch norm.
        longest_update_seconds: Where the powers of two end: with the first update that takes longer, be it before the
            workload's own batch size. None: a sixtieth of ``seconds``, and the workload's own in any case.
        seconds: About how long the rounds may take; setting up comes on top.
        seed: Of the weights, the examples and the order of sizes.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        workers: Processes that read a Dataset; None: as many as pay.
        progress: True shows progress on stderr; or a function called with every step.
        clocks: Says how busy the machine is.

    Returns:
        Times with intervals, the law and its residuals, and a warning where the machine was busy.

    Raises:
        ArgumentError: Sizes that make no sense.
        RunError: Not even two sizes could be run.

    Examples:
        >>> import batchscope as bs
        >>> times = bs.step_times(bs.load_workload("digits"), batch_sizes=[8, 64], seconds=0.2)
        >>> [point.batch_size for point in times.points], times.reading
        ([8, 64], 'between updates')
    """
    began, compiled = time.perf_counter(), compile_seconds()
    seed = checked_seed(seed)
    wanted = _checked(batch_sizes, workload.training_examples)
    if not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise ArgumentError("seconds must be a positive number", got=seconds)
    chosen = chosen_device(device)
    timer = Timer(Prepared(workload, chosen, workers=workers), seed)
    with reporter(progress, "timing updates") as report, isolated(derive(seed, "step time"), chosen):
        sizes = timer.grid(wanted, seconds, longest_update_seconds)
        if len(sizes) < 2:
            raise RunError(
                "the law of an update's time needs at least two batch sizes that run",
                got=f"{len(sizes)}, with {workload.training_examples} training examples",
                mend="give batch_sizes that fit into memory",
            )
        order = np.random.default_rng(derive(seed, "order of sizes"))
        started, untold, others = time.perf_counter(), 0, Contention(clocks)
        for done in range(MOST_ROUNDS):
            spent = time.perf_counter() - started
            if done >= LEAST_ROUNDS and (spent > seconds or _all_tight(sizes)):
                break
            report.update(label=f"round {done + 1}", done=round(100 * min(spent, seconds)), total=round(100 * seconds))
            for i in order.permutation(len(sizes)):
                timer.block(sizes[i])
            untold += 1
            if (taken := others.others(at_least=WINDOW_SECONDS)) is not None:
                for size in sizes:
                    size.contended(untold, share_taken(taken, threads=size.threads, cores=others.cores))
                untold = 0
        # What is left of the last window may be too short to say much, and yet more than nothing.
        if untold and (taken := others.others()) is not None:
            for size in sizes:
                size.contended(untold, share_taken(taken, threads=size.threads, cores=others.cores))
        beside = timer.prepared.training.workers > 0
        if beside:
            timer.read_beside(sizes)
    law = fit_step_time([size.batch_size for size in sizes], _rounds(sizes), seed=seed)
    points = tuple(_point(size, law.seconds(size.batch_size) or math.nan, beside=beside) for size in sizes)
    fastest = fastest_point(points)
    known = [one for size in sizes if (one := size.quiet().contention) is not None]
    contention = max(known, default=None)
    if busy_warning(contention):
        law = replace(
            law,
            fixed_seconds=widened(law.fixed_seconds, contention),
            seconds_per_example=widened(law.seconds_per_example, contention),
            knee=widened(law.knee, contention),
        )
    busy = busy_warning(contention) or spread_warning([point.compute_seconds for point in points])
    return StepTimes(
        workload=workload.title,
        points=points,
        law=law,
        reading="beside them" if beside else "between updates",
        workers=timer.prepared.training.workers,
        loader_bound_from=loader_bound_from(points),
        most_examples_per_second=fastest.examples_per_second.value or 0.0,
        fastest_batch_size=fastest.batch_size,
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=chosen, seed=seed),
        tokens_per_example=mean_tokens(workload, seed),
        # Counted already where a CPU's threads go by it.
        flops_per_example=timer.prepared.flops_per_example or flops_per_example(workload),
        compile_seconds=(compile_seconds() - compiled) or None,
        peak_flops_per_second=peak_flops_per_second(chosen, next(timer.model.parameters()).dtype),
        contention=contention,
        warnings=() if busy is None else (busy,),
    )


class Timer:
    """One model and its optimiser at a learning rate of zero, and the blocks of updates that are timed with them."""

    def __init__(self, prepared: Prepared, seed: int) -> None:
        self.prepared, self.seed = prepared, seed
        workload, device = prepared.workload, prepared.device
        with isolated(derive(seed, "weights"), device):
            self.model, optimizer = fresh(workload, workload.learning_rate, device)
        for group in optimizer.param_groups:
            set_rate(group, 0.0)
        self.step = TrainingStep(workload, self.model, optimizer, micro_batch_size=None)
        # Batches to compute with are read in this process, also where training would have workers read beside it.
        self.here = prepared.training
        if self.here.workers:
            self.here = TrainingData(workload, device, workers=0)

    def grid(self, wanted: list[int] | None, seconds: float, longest: float | None) -> list[TimedSize]:
        """The sizes that are timed, each run once to warm up, and how many updates make a block."""
        examples, own = self.prepared.workload.training_examples, self.prepared.workload.batch_size
        least = least_batch_size(self.model)
        powers = [2**i for i in range(examples.bit_length()) if least <= 2**i <= examples]
        candidates = wanted or sorted({*powers, min(own, examples)})
        sizes: list[TimedSize] = []
        rates: list[float] = []
        for batch_size in candidates:
            try:
                size, update_seconds = self._prepare(batch_size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                break
            sizes.append(size)
            rates.append(batch_size / update_seconds)
            if wanted is not None or (longest is None and batch_size <= own):
                continue
            saturated = len(rates) > 6 and max(rates[-3:]) < SATURATED_GAIN * max(rates[:-3])
            too_long = update_seconds > (seconds * LARGEST_SHARE if longest is None else longest)
            if len(sizes) > 1 and (too_long or saturated):
                break
        return sizes

    def block(self, size: TimedSize) -> None:
        """Time one block: its batches, an update to warm up, then the updates."""
        clock = Stopwatch(self.prepared.device)
        updates = self._batches(size, clock)
        data_seconds = clock.seconds / len(updates)
        updates = updates[: size.updates]
        repeats = -(-size.updates // len(updates))
        with self._threads(size.batch_size):
            self.step(updates[-1], size.batch_size)
            clock = Stopwatch(self.prepared.device)
            size.threads = torch.get_num_threads() if self.prepared.device.type == "cpu" else 1
            processor = time.process_time()
            clock.start()
            for update in itertools.chain.from_iterable(itertools.repeat(updates, repeats)):
                self.step(update, size.batch_size)
            clock.stop()
            processor = time.process_time() - processor
            alone = self._alone()
        # One thread that only computes lacks exactly what it was kept from.
        size.shares.append(max(0.0, 1 - processor / clock.seconds) if alone else None)
        size.compute.append(clock.seconds / (repeats * len(updates)))
        size.data.append(data_seconds)
        size.made += repeats * len(updates)

    def read_beside(self, sizes: list[TimedSize]) -> None:
        """Time how fast worker processes read examples when nothing else is done."""
        own = min(self.prepared.workload.batch_size, self.prepared.workload.training_examples)
        plan = Plan(batch_size=own, learning_rate=1.0, iterations=1)
        # What the workers have read ahead before the first block is let pass.
        ahead = 2 * self.prepared.training.workers + 1
        total = own * (ahead + 4 * READ_BLOCKS)
        stream = iter(self.prepared.training.feed(plan, total, seed=derive(self.seed, "reading")))
        for _ in itertools.islice(stream, ahead):
            pass
        seconds_per_example = []
        for _ in range(READ_BLOCKS):
            began = time.perf_counter()
            count = sum(1 for _ in itertools.islice(stream, 4))
            seconds_per_example.append((time.perf_counter() - began) / (count * own))
        for size in sizes:
            size.data = [seconds * size.batch_size for seconds in seconds_per_example]

    def _prepare(self, batch_size: int) -> tuple[TimedSize, float]:
        plan = Plan(batch_size=batch_size, learning_rate=1.0, iterations=1)
        # More batches than are ever taken: the feed makes them as they are asked for.
        feed = self.here.feed(plan, batch_size * 2**40, seed=derive(self.seed, "data", batch_size))
        size = TimedSize(batch_size, feed, iter(feed))
        update = next(size.batches)
        with self._threads(batch_size):
            self.step(update, batch_size)
            seconds = []
            for _ in range(3):
                processor, clock = time.process_time(), Stopwatch(self.prepared.device)
                clock.start()
                self.step(update, batch_size)
                clock.stop()
                # On a busy machine one thread's own time says how many updates fill a block.
                seconds.append(time.process_time() - processor if self._alone() else clock.seconds)
                if sum(seconds) > BLOCK_SECONDS:
                    break
        fastest = max(min(seconds), 1e-9)
        size.updates = max(1, math.ceil(BLOCK_SECONDS / fastest))
        return size, fastest

    def _batches(self, size: TimedSize, clock: Stopwatch) -> list[list[Batch]]:
        """The batches of a block, with the clock running while they are got."""
        clock.start()
        updates = [next(size.batches)]
        # A Dataset's batch serves a whole block: reading one for each update would take most of the time there is.
        if self.here.tensors is not None:
            most = max(1, HELD_BYTES // max(1, nbytes(updates[0])))
            # Whole groups, since a group's first batch pays for them all.
            groups = -(-min(size.updates, most) // size.feed.gathered_at_once)
            updates += itertools.islice(size.batches, groups * size.feed.gathered_at_once - 1)
        clock.stop()
        return updates

    def _alone(self) -> bool:
        """Whether one thread computes, whose processor time is known. Windows counts it in steps of 16 ms."""
        return self.prepared.device.type == "cpu" and torch.get_num_threads() == 1 and sys.platform != "win32"

    def _threads(self, batch_size: int) -> AbstractContextManager[None]:
        per_example = self.prepared.flops_per_example
        return compute_threads(None if per_example is None else per_example * batch_size, self.prepared.device)


def _checked(batch_sizes: Sequence[int] | None, examples: int) -> list[int] | None:
    if batch_sizes is None:
        return None
    sizes = sorted(set(batch_sizes))
    if len(sizes) < 2 or not all(isinstance(b, int) and not isinstance(b, bool) and 1 <= b <= examples for b in sizes):
        raise ArgumentError(
            f"batch_sizes must be at least two different whole numbers between 1 and the {examples} training examples",
            got=list(batch_sizes),
        )
    return sizes


def _rounds(sizes: list[TimedSize]) -> NDArray[np.float64]:
    """Times for the law, a row a round: the rounds that are quiet for all sizes, or all of them brought to the times.

    What contention takes differs between sizes, and the law is about how they differ.
    """
    compute = np.array([size.compute for size in sizes]).T
    quiet = [size.quiet() for size in sizes]
    common = sorted(set.intersection(*(set(one.counted) for one in quiet)))
    if len(common) >= LEAST_ROUNDS and all(one.quiet for one in quiet):
        return np.asarray(compute[common])
    values = np.array([one.seconds.value or math.nan for one in quiet])
    return np.asarray(compute * (values / np.median(compute, axis=0)))


def _all_tight(sizes: list[TimedSize]) -> bool:
    for size in sizes:
        interval = size.quiet().seconds
        if interval.value is None or interval.low is None or interval.high is None:
            return False
        if interval.high - interval.low > 2 * TIGHT * interval.value:
            return False
    return True


def _point(size: TimedSize, predicted: float, *, beside: bool) -> StepTimePoint:
    compute, data = size.quiet().seconds, median_interval(size.data)
    reading = data.value or 0.0
    ends = [
        None if end is None else max(end, reading) if beside else end + reading
        for end in (compute.value, compute.low, compute.high)
    ]
    step = replace(compute, value=ends[0], low=ends[1], high=ends[2])
    return StepTimePoint(
        batch_size=size.batch_size,
        compute_seconds=compute,
        data_seconds=data,
        step_seconds=step,
        examples_per_second=_inverse(step, size.batch_size),
        predicted_seconds=predicted,
        rounds=len(size.compute),
        updates=size.made,
    )


def _inverse(seconds: Interval, batch_size: int) -> Interval:
    value, low, high = (None if s is None else batch_size / s for s in (seconds.value, seconds.low, seconds.high))
    return Interval(value, high, low, seconds.level, seconds.resolved)

"""Peak memory against micro-batch size, its law, and the largest micro-batch that the memory at hand holds."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from batchscope.errors import ArgumentError
from batchscope.fit.memory import fit_memory, largest_that_fits, predicted_bytes
from batchscope.measure.child import CannotForkError, ChildResult, can_fork, in_child
from batchscope.measure.memory_meter import CudaPeak, ResidentPeak, available_memory, limited_data
from batchscope.measure.memory_trial import FreshTraining, LongestExamples
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records.memory import LimitSource, MemoryLaw, MemoryMeter, MemoryPoint, MemoryUse
from batchscope.seeding import derive, isolated
from batchscope.training.memory import is_out_of_memory
from batchscope.training.micro_batching import least_batch_size
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

UPDATES = 3
LEAST_SIZES = 3
# A child that takes this many times the whole budget hangs.
PATIENCE = 10
PAGE = 4096


@dataclass(frozen=True)
class _Peak:
    """What one size took."""

    peak_bytes: int | None
    parameter_bytes: int
    optimizer_bytes: int


def memory_use(
    workload: Workload,
    *,
    micro_batch_sizes: Sequence[int] | None = None,
    limit_bytes: int | None = None,
    margin: float = 0.1,
    seconds: float = 8.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> MemoryUse:
    """Measure peak memory of training against micro-batch size.

    For each size a fresh model makes three full updates, the optimiser's state included, and one pass in evaluation
    mode, on the longest examples where lengths differ. On CUDA the allocator says what was allocated at most. On Linux
    each size runs in a forked child, and the kernel says how far its own memory grew; what the libraries' code takes
    when it is first used is not in that. A child computes with one thread; more threads add their work space.
    Elsewhere the sizes run in this process.

    A heap is less regular than a GPU's memory, since freed blocks stay on it. Peaks of one size mostly differ by some
    per cent; with few tensors of megabytes each they are up to three times what is in use, until at 32 MiB glibc maps
    every block by itself. Against the same updates in a fresh process, the built-in convolutional network's peaks in a
    child are 1 to 2 MiB lower, which libraries take once, and 2 to 6% lower from 256 examples on.

    Args:
        workload: What is trained.
        micro_batch_sizes: Sizes to measure; None: powers of two from 1 (2 with batch norm) to the training set, as far
            as time and memory allow. A size that the law so far puts beyond the limit is not tried.
        limit_bytes: Memory that training may take; None: see
            :func:`batchscope.measure.memory_meter.available_memory`.
        margin: Share of the limit to leave free.
        seconds: What the measurement should take; three sizes are measured in any case.
        seed: Draws weights and examples.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function called with every step.

    Returns:
        The measurement. A size that runs out of memory ends it, and is a result.

    Raises:
        ArgumentError: Sizes, a limit or a margin that make no sense.

    Examples:
        >>> import batchscope as bs
        >>> use = memory_use(bs.load_workload("digits"), micro_batch_sizes=[64, 1024], device="cpu")
        >>> [point.micro_batch_size for point in use.points], use.largest_executed, use.holds_all
        ([64, 1024], 1024, True)
    """
    began = time.perf_counter()
    seed, chosen = checked_seed(seed), chosen_device(device)
    with isolated(derive(seed, "weights"), chosen):
        least = least_batch_size(workload.model())
    sizes = _sizes(micro_batch_sizes, least, workload.training_examples)
    if limit_bytes is not None and (type(limit_bytes) is not int or limit_bytes < 1):
        raise ArgumentError("limit_bytes must be a whole number of bytes, at least 1", got=limit_bytes)
    if not isinstance(margin, (int, float)) or not 0 <= margin < 1:
        raise ArgumentError("margin must be a share of the limit, at least 0 and below 1", got=margin)
    source: LimitSource = "given"
    limit = limit_bytes
    if limit is None:
        limit, source = available_memory(chosen)

    longest = LongestExamples(workload, seed=seed)
    runner = _Runner(workload, longest, chosen, seed=seed, limit_bytes=limit, patience=PATIENCE * max(seconds, 3.0))
    peaks: dict[int, _Peak] = {}
    law: MemoryLaw | None = None
    with reporter(progress, "measuring memory") as report:
        for i, size in enumerate(sizes):
            if law is not None and limit is not None and predicted_bytes(law, size) > (1 - margin) * limit:
                break
            report.update(label=f"micro-batch {size:,}", done=i, total=len(sizes))
            started = time.perf_counter()
            found = runner(size)
            if found.value is None:
                break
            peaks[size] = found.value
            law = _law(peaks)
            # The next size takes about twice as long.
            ahead = 2 * (time.perf_counter() - started)
            if micro_batch_sizes is None and i + 1 >= LEAST_SIZES and time.perf_counter() - began + ahead > seconds:
                break
    known = {size: peak.peak_bytes for size, peak in peaks.items() if peak.peak_bytes is not None}
    largest = _largest(law, limit, margin, workload.training_examples, known)
    return MemoryUse(
        workload=workload.title,
        meter=runner.meter,
        points=tuple(
            MemoryPoint(size, peak, predicted_bytes(law, size) if law else float(peak)) for size, peak in known.items()
        ),
        law=law,
        parameter_bytes=next((peak.parameter_bytes for peak in peaks.values()), 0),
        optimizer_bytes=next((peak.optimizer_bytes for peak in peaks.values()), 0),
        limit_bytes=limit,
        limit_source=source,
        margin=float(margin),
        largest_executed=max(peaks, default=None),
        largest_predicted=largest,
        holds_all=largest == workload.training_examples,
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=chosen, seed=seed),
    )


class _Runner:
    """Runs one size after the other, each in a child where that can be."""

    def __init__(
        self,
        workload: Workload,
        longest: LongestExamples,
        device: torch.device,
        *,
        seed: int,
        limit_bytes: int | None,
        patience: float,
    ) -> None:
        self.workload, self.longest, self.device, self.seed = workload, longest, device, seed
        self.limit_bytes, self.patience = limit_bytes, patience
        self.forks = device.type == "cpu" and can_fork()

    @property
    def meter(self) -> MemoryMeter:
        """How peaks are read."""
        if self.device.type == "cuda":
            return "CUDA allocator"
        return "resident memory of a child process" if self.forks else "resident memory of this process"

    def __call__(self, size: int) -> ChildResult[_Peak]:
        """Measure one size."""
        if self.forks:
            try:
                return in_child(lambda: self._peak(size), limit_bytes=self.limit_bytes, seconds=self.patience)
            except CannotForkError:
                self.forks = False
        gc.collect()
        try:
            with limited_data(self.limit_bytes if self.device.type == "cpu" else None):
                return ChildResult("done", self._peak(size))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return ChildResult("out of memory", message=str(error))

    def _peak(self, size: int) -> _Peak:
        meter = CudaPeak(self.device) if self.device.type == "cuda" else ResidentPeak()
        with isolated(derive(self.seed, "memory"), self.device):
            training = FreshTraining(self.workload, self.longest, self.device)
            for _ in range(UPDATES):
                training.step(size)
            training.evaluate(size)
        return _Peak(meter.peak_bytes(), training.parameter_bytes, training.optimizer_bytes)


def _sizes(given: Sequence[int] | None, least: int, examples: int) -> list[int]:
    if given is None:
        return [*(2**i for i in range(examples.bit_length()) if least <= 2**i < examples), examples]
    if not given or any(type(size) is not int or not 1 <= size <= examples for size in given):
        raise ArgumentError(
            f"micro_batch_sizes must be whole numbers from 1 to the {examples:,} training examples", got=list(given)
        )
    return sorted(set(given))


def _law(peaks: dict[int, _Peak]) -> MemoryLaw | None:
    # A model so small that it found room in pages that were there already has taken a page at most.
    known = {size: max(PAGE, peak.peak_bytes) for size, peak in peaks.items() if peak.peak_bytes is not None}
    return fit_memory(list(known), list(known.values())) if len(known) > 1 else None


def _largest(
    law: MemoryLaw | None, limit: int | None, margin: float, examples: int, known: dict[int, int]
) -> int | None:
    """The largest size within the limit less its margin, by the law or because it ran there."""
    if law is None or limit is None:
        return None
    predicted = largest_that_fits(law, limit, margin=margin)
    ran = max((size for size, peak in known.items() if peak <= (1 - margin) * limit), default=0)
    return examples if predicted is None else max(ran, min(predicted, examples))

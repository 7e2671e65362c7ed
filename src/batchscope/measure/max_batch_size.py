"""The largest batch size that runs: executed, never extrapolated."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from batchscope.errors import ArgumentError, RunError, first_line
from batchscope.fit.memory import fit_memory, largest_that_fits
from batchscope.measure.child import CannotForkError, can_fork, in_child
from batchscope.measure.memory_meter import CudaPeak, ResidentPeak, available_memory, limited_data
from batchscope.measure.memory_restore import SavedState, stateful_objects
from batchscope.measure.memory_trial import FreshTraining, LongestExamples
from batchscope.progress import Reporter, reporter
from batchscope.seeding import derive, isolated
from batchscope.training.memory import is_out_of_memory
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

Step: TypeAlias = Callable[[int], object]

# A law through two sizes that lie close together is not followed further than this at once.
MOST_GROWTH = 16
# Tried first is a size this share below the predicted one: one that fits is worth more than one that doesn't.
JUST_UNDER = 0.02
# Seconds after which a trial in a child is given up: a fixed part, and so many times what the last one promises.
FIRST_PATIENCE, PATIENCE, PATIENCE_FACTOR = 300.0, 60.0, 10.0


@dataclass(frozen=True)
class BatchSizeTrial:
    """One batch size tried.

    Attributes:
        batch_size: Examples per step.
        fits: Whether every step and the evaluation ran, with the margin left free.
        steps: Steps that ran to their end; 0 where the trial's end is all that is known.
        peak_bytes: Peak growth of memory over what was held before; None where it could not be read.
        seconds: What the trial took.
        reason: Why it does not fit; empty where it does.
    """

    batch_size: int
    fits: bool
    steps: int
    peak_bytes: int | None
    seconds: float
    reason: str


def find_max_batch_size(
    step: Step | Workload,
    start: int | None = None,
    *,
    maximum: int | None = None,
    limit_bytes: int | None = None,
    margin: float = 0.05,
    precision: float = 0.1,
    soak: int = 5,
    evaluate: Step | None = None,
    restore: object | Iterable[object] | None = None,
    isolate: bool | None = None,
    seconds: float | None = None,
    report: Callable[[BatchSizeTrial], None] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> int:
    """Find the largest batch size whose training runs in the memory at hand.

    A size counts as fitting when it was executed: a full step, an evaluation, ``soak`` further steps and another
    evaluation, with a share ``margin`` of the memory left free throughout. Peaks of the first sizes give a law, peak =
    state + size × per example; the search goes to just below what it predicts, and closes in from there until a size
    that is larger by ``precision`` fails or lies within the margin: some five trials where the law is straight, up to
    nine on a CPU, whose heap is not.

    On Linux CPUs each trial runs in a forked child process under a real limit (RLIMIT_DATA), so the person's model,
    optimiser and random state are not touched, and the system never runs out of memory itself. What lives outside
    memory is shared with the child all the same: the position in an open file, or a loader's worker processes that
    already run; make such an iterator inside ``step``.

    On CUDA, or with ``isolate=False``, trials run in this process. Everything with a state dict that ``step`` refers to
    is put back exactly after each: weights, gradients, modes, optimiser, scheduler, gradient scaler, random state. The
    state of a data loader or a sampler cannot be, and neither can plain counters. On CUDA an allocation that only
    succeeds after cached blocks were given up counts as not fitting, since each waits for the device.

    Args:
        step: ``step(batch_size)`` runs one full training step, optimiser included; or a Workload, whose model,
            optimiser, longest examples and evaluation are then used.
        start: The first size to try; None: the workload's own, or 1.
        maximum: The largest size to try; None: the workload's training set, or no bound.
        limit_bytes: Memory that a step may take beyond what is held now; None: what is free, see
            :func:`batchscope.measure.memory_meter.available_memory`.
        margin: Share of that to leave free.
        precision: By how much the next larger size, which does not fit, may be larger.
        soak: Steps after the first that a size has to survive.
        evaluate: ``evaluate(batch_size)`` runs an evaluation of that size; None: none.
        restore: The object or objects to put back after a trial in this process; None: those that ``step`` and
            ``evaluate`` refer to.
        isolate: Whether trials run in a child; None: where they can.
        seconds: Time after which no further size is tried once one fits; None: none.
        report: Called with every trial.
        seed: Draws a workload's weights and examples.
        device: "cpu", "cuda" …; None: CUDA where a step's process uses it already, or where there is one for a
            workload.
        progress: True shows progress on stderr; or a function called with every trial.

    Returns:
        The largest size that ran.

    Raises:
        ArgumentError: No callable, or a size, limit or share that makes no sense.
        RunError: Not even one example fits, or the first trial does not end.
        Exception: Whatever ``step`` raises besides running out of memory.

    Examples:
        >>> def step(batch_size):
        ...     return bytearray(batch_size << 20)
        >>> 150 <= find_max_batch_size(step, start=4, limit_bytes=200 << 20, soak=1, device="cpu") <= 220
        True
    """
    if not callable(step) and not isinstance(step, Workload):
        raise ArgumentError(
            "step must be a function of a batch size that runs one training step, or a Workload",
            got=type(step).__name__,
            mend="give step=lambda batch_size: train_one_batch(batch_size)",
        )
    _check_counts(start=start, maximum=maximum, limit_bytes=limit_bytes, soak=soak)
    _check_shares(margin=margin, precision=precision)
    seed, chosen = checked_seed(seed), _device(step, device)
    forks = chosen.type == "cpu" and can_fork()
    if isolate and not forks:
        raise ArgumentError(
            "a trial runs in a child process on Linux and on a CPU only",
            got=f"isolate=True on {chosen}",
            mend="leave isolate out",
        )
    if isinstance(step, Workload):
        maximum = min(maximum or step.training_examples, step.training_examples)
        start = start or step.batch_size
    if restore is None:
        objects = [] if isinstance(step, Workload) else stateful_objects(step, evaluate)
    else:
        objects = list(restore) if isinstance(restore, (list, tuple, set)) else [restore]
    trials = _Trials(
        _subject(step, evaluate, chosen, seed),
        chosen,
        limit_bytes=limit_bytes,
        margin=margin,
        soak=soak,
        objects=objects,
        isolate=forks and isolate is not False,
    )
    began = time.perf_counter()
    fits: dict[int, int | None] = {}
    failed: dict[int, int | None] = {}
    size: int | None = min(start or 1, maximum or start or 1)
    with reporter(progress, "searching for the largest batch size") as shown:
        while size is not None:
            shown.update(label=f"batch {size:,}", done=len(fits) + len(failed), total=None)
            trial = trials.run(size)
            (fits if trial.fits else failed)[size] = trial.peak_bytes
            if report is not None:
                report(trial)
            if trial.batch_size == 1 and not trial.fits:
                raise RunError(
                    "one example must fit into memory, with the margin left free",
                    got=trial.reason,
                    mend="free some memory, give a larger limit_bytes, or take a smaller model",
                )
            size = next_size(fits, failed, maximum=maximum, precision=precision, allowed_bytes=trials.allowed_bytes)
            if fits and seconds is not None and time.perf_counter() - began > seconds:
                break
    return max(fits)


def next_size(
    fits: Mapping[int, int | None],
    failed: Mapping[int, int | None],
    *,
    maximum: int | None,
    precision: float,
    allowed_bytes: float | None,
) -> int | None:
    """Which size to try next: where the law puts the largest that fits, then just beyond it, else between the bounds.

    Args:
        fits: Peaks of the sizes that fit; None where not known.
        failed: Peaks of those that do not.
        maximum: The largest size to try; None: no bound.
        precision: How far above the largest that fits the smallest that fails may lie.
        allowed_bytes: The limit less its margin; None: not known.

    Returns:
        The size; None: the largest size that fits is found, or not even 1 does.

    Examples:
        >>> next_size({8: 180}, {}, maximum=None, precision=0.1, allowed_bytes=1100)
        16
        >>> next_size({8: 180, 16: 260}, {}, maximum=None, precision=0.1, allowed_bytes=1100)
        98
        >>> next_size({8: 180, 16: 260, 98: 1080}, {}, maximum=None, precision=0.1, allowed_bytes=1100)
        107
    """
    low, high = max(fits, default=0), min(failed, default=math.inf)
    if not low:
        return int(high) // 2 if high > 1 else None
    beyond = max(low + 1, math.floor(low * (1 + precision) * (1 + 1e-12)))
    if high <= beyond or low == maximum:
        return None
    predicted = _predicted(fits, failed, allowed_bytes)
    if predicted is not None and predicted < high:  # otherwise the law has been proved wrong, above at least
        size = math.floor(min((1 - min(JUST_UNDER, precision / 2)) * predicted, MOST_GROWTH * low))
        if size < beyond:
            # At the edge by the law. Should sizes beyond it fit, its steps double.
            gap = low - max((other for other in fits if other < low), default=0)
            size = beyond if gap > beyond - low else low + 2 * gap
    else:
        size = 2 * low
    if size >= high:
        size = max(beyond, math.isqrt(low * int(high)))
    return size if maximum is None else min(size, maximum)


def _predicted(
    fits: Mapping[int, int | None], failed: Mapping[int, int | None], allowed_bytes: float | None
) -> float | None:
    """The largest size by the law through all peaks that are known; infinite where they do not rise."""
    peaks = {size: peak for size, peak in (*fits.items(), *failed.items()) if peak}
    if allowed_bytes is None or len(peaks) < 2:
        return None
    # The three largest say most about what lies above them.
    largest = sorted(peaks)[-3:]
    size = largest_that_fits(fit_memory(largest, [peaks[m] or 0 for m in largest]), allowed_bytes)
    return math.inf if size is None else float(size)


@dataclass(frozen=True)
class _Attempt:
    fits: bool
    steps: int
    peak_bytes: int | None
    reason: str


class _Trials:
    """Tries one size after the other, leaving everything as it was."""

    def __init__(
        self,
        subject: Callable[[], tuple[Step, Step | None]],
        device: torch.device,
        *,
        limit_bytes: int | None,
        margin: float,
        soak: int,
        objects: list[object],
        isolate: bool,
    ) -> None:
        self._subject, self._device, self._soak = subject, device, soak
        self._objects, self._isolate = objects, isolate
        self._saved: SavedState | None = None
        if not isolate:
            self._saved = SavedState(objects, device)
        self._limit = available_memory(device)[0] if limit_bytes is None else limit_bytes
        self.allowed_bytes = None if self._limit is None else (1 - margin) * self._limit
        self._last: BatchSizeTrial | None = None

    def run(self, size: int) -> BatchSizeTrial:
        """Try a size."""
        began = time.perf_counter()
        attempt = self._in_child(size) if self._isolate else self._here(size)
        took = time.perf_counter() - began
        trial = BatchSizeTrial(size, attempt.fits, attempt.steps, attempt.peak_bytes, took, attempt.reason)
        if trial.fits:
            self._last = trial
        return trial

    def _in_child(self, size: int) -> _Attempt:
        last, patience = self._last, FIRST_PATIENCE
        if last is not None:
            patience = PATIENCE + PATIENCE_FACTOR * last.seconds * max(1.0, size / last.batch_size)
        try:
            result = in_child(lambda: self._attempt(size), limit_bytes=self._limit, seconds=patience)
        except CannotForkError:
            self._isolate, self._saved = False, SavedState(self._objects, self._device)
            return self._here(size)
        if result.value is not None:
            return result.value
        if result.ending == "too slow" and last is None:
            raise RunError(
                f"the first trial must end within {patience:g} s",
                got=f"batch size {size}, still running",
                mend="start smaller; or, if the step waits for threads that a fork does not have, give isolate=False",
            )
        return _Attempt(False, 0, None, result.message)

    def _here(self, size: int) -> _Attempt:
        message = ""
        try:
            with limited_data(self._limit if self._device.type == "cpu" else None):
                gc.collect()
                return self._attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = first_line(error)
        finally:
            gc.collect()  # what an error held in cycles is free only now, and restoring takes some room
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            if self._saved is not None:
                self._saved.restore()
        return _Attempt(False, 0, None, message)

    def _attempt(self, size: int) -> _Attempt:
        meter = _Meter(self._device)
        step, evaluate = self._subject()
        for steps in range(1, 2 + self._soak):
            step(size)
            if evaluate is not None and steps in (1, 1 + self._soak):
                evaluate(size)
            peak = meter.peak_bytes()
            if self.allowed_bytes is not None and peak is not None and peak > self.allowed_bytes:
                return _Attempt(False, steps, peak, f"its peak of {peak:,} bytes lies within the margin")
            if meter.thrashed():
                return _Attempt(
                    False, steps, peak, "the allocator had to give up cached blocks, and would at each step"
                )
        return _Attempt(True, 1 + self._soak, peak, "")


class _Meter:
    """Peak growth of memory on a device: what was taken from a GPU, what a process's own memory grew by."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = CudaPeak(device) if device.type == "cuda" else None
        self._resident = ResidentPeak() if device.type == "cpu" else None

    def peak_bytes(self) -> int | None:
        if self._cuda is not None:
            return self._cuda.reserved_bytes()
        return None if self._resident is None else self._resident.peak_bytes()

    def thrashed(self) -> bool:
        return self._cuda is not None and self._cuda.thrashed()


def _subject(
    step: Step | Workload, evaluate: Step | None, device: torch.device, seed: int
) -> Callable[[], tuple[Step, Step | None]]:
    """What makes the step and the evaluation of a trial."""
    if not isinstance(step, Workload):
        return lambda: (step, evaluate)
    workload, longest = step, LongestExamples(step, seed=seed)

    def fresh() -> tuple[Step, Step | None]:
        with isolated(derive(seed, "memory"), device):
            training = FreshTraining(workload, longest, device)

        def one(size: int) -> None:
            with isolated(derive(seed, "memory"), device):
                training.step(size)

        return one, training.evaluate if evaluate is None else evaluate

    return fresh


def _device(step: Step | Workload, device: str | torch.device | None) -> torch.device:
    if isinstance(step, Workload) or device is not None:
        return chosen_device(device)
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.device("cuda", torch.cuda.current_device()) if in_use else torch.device("cpu")


def _check_counts(**given: int | None) -> None:
    for name, value in given.items():
        least = 0 if name == "soak" else 1
        if value is not None and (type(value) is not int or value < least):
            raise ArgumentError(f"{name} must be a whole number of at least {least}", got=value)


def _check_shares(**given: float) -> None:
    for name, value in given.items():
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ArgumentError(f"{name} must be a share, at least 0 and below 1", got=value)

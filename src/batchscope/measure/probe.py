"""Everything that the choice of a batch size hangs on, measured in about a minute."""

from __future__ import annotations

import math
import time

import torch

from batchscope.errors import ArgumentError, BatchscopeError
from batchscope.fit.limits import find_limits
from batchscope.measure.branches import branched_runs
from batchscope.measure.memory import memory_use
from batchscope.measure.noise_along import lightly_validated, noise_along_training
from batchscope.measure.range_test import range_test
from batchscope.measure.step_time import step_times
from batchscope.progress import Reporter
from batchscope.provenance import provenance
from batchscope.records import BranchedRuns, MemoryUse, Probe, RangeTest, StepTimes
from batchscope.seeding import derive
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.summary import summarise
from batchscope.workload.workload import Workload

# Shares of the time that a probe may take.
STEP_TIME, MEMORY, NOISE, RANGE, BRANCHES = 0.2, 0.15, 0.2, 0.15, 0.3
MOST_EPOCHS = 10


def probe(
    workload: Workload,
    *,
    seconds: float = 45.0,
    memory_bytes: int | None = None,
    branches: bool = True,
    learning_rate: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: bool | Reporter = False,
) -> Probe:
    """Measure the limits that the choice of a batch size hangs on: memory, throughput, gradient noise.

    Time per update over batch sizes, memory over micro-batch sizes, gradient noise along a short run with the
    workload's own settings, branched runs from its end, and a learning-rate range test from its start; then what
    follows from them (:func:`batchscope.fit.limits.find_limits`).

    Args:
        workload: What is trained.
        seconds: About how long it may take in all, at least 5.
        memory_bytes: Memory that training may take; None: what is free here.
        branches: Whether to measure the critical batch size by branched runs too.
        learning_rate: Whether to make a range test.
        seed: Of everything random.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        workers: Processes that read a Dataset; None: as many as pay.
        progress: True shows progress on stderr; or a function called with every step.

    Returns:
        The measurements and what follows.

    Raises:
        ArgumentError: Less time than a probe needs.
        RunError: Step times could not be measured.

    Examples:
        >>> import batchscope as bs
        >>> found = bs.probe(bs.load_workload("digits"), seconds=5, branches=False, learning_rate=False)
        >>> found.workload.name, found.noise[0].examples, found.memory.holds_all
        ('digits', 0, True)
    """
    began = time.perf_counter()
    seed = checked_seed(seed)
    if not isinstance(seconds, (int, float)) or not 5 <= seconds < math.inf:
        raise ArgumentError("seconds must be at least 5", got=seconds)
    chosen = chosen_device(device)
    warnings: list[str] = []
    speed = step_times(
        workload, seconds=STEP_TIME * seconds, seed=seed, device=chosen, workers=workers, progress=progress
    )
    warnings += speed.warnings

    memory: MemoryUse | None = None
    try:
        memory = memory_use(
            workload, limit_bytes=memory_bytes, seconds=MEMORY * seconds, seed=seed, device=chosen, progress=progress
        )
    except BatchscopeError as error:
        warnings.append(f"Memory could not be measured: {error}")

    along = noise_along_training(
        workload, examples=_affordable(workload, speed, NOISE * seconds), seed=seed, device=chosen, progress=progress
    )
    if along.outcome != "finished":
        warnings.append(
            f"Training with the present settings ended as {along.outcome} after {along.examples:,} examples; noise was "
            f"measured until then."
        )

    tested: RangeTest | None = None
    if learning_rate:
        try:
            tested = range_test(
                workload, seconds=RANGE * seconds, seed=derive(seed, "range test"), device=chosen, progress=progress
            )
        except BatchscopeError as error:
            warnings.append(f"The learning-rate range test failed: {error}")

    branched: BranchedRuns | None = None
    if branches and along.outcome == "finished":
        try:
            branched = branched_runs(
                lightly_validated(workload),
                start=along.end,
                examples_before=along.examples,
                seconds=BRANCHES * seconds,
                seed=derive(seed, "branches"),
                device=chosen,
                progress=progress,
            )
        except BatchscopeError as error:
            warnings.append(f"Branched runs failed: {error}")

    summary = summarise(workload)
    return Probe(
        workload=summary,
        limits=find_limits(summary, speed, memory, along.points, branched),
        step_time=speed,
        memory=memory,
        noise=along.points,
        gradient_noise=along.last,
        branched=branched,
        learning_rate=tested,
        warnings=tuple(warnings),
        replanned=None,
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=chosen, seed=seed),
    )


def _affordable(workload: Workload, speed: StepTimes, seconds: float) -> int:
    """Examples to train on in about that time.

    Sixteen updates times a power of two, so that a time that comes out a little different gives the same number.
    """
    least = 16 * workload.batch_size
    own = min(speed.points, key=lambda point: abs(math.log(point.batch_size / workload.batch_size)))
    fast = own.examples_per_second.value or 1.0
    # Half the time goes into measuring noise and the loss on the way.
    wanted = min(0.5 * seconds * fast, MOST_EPOCHS * workload.training_examples)
    return int(least * 2 ** max(0, round(math.log2(max(1.0, wanted / least)))))

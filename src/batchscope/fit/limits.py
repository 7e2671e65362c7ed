"""The three limits of a batch size put together: memory, throughput knee and critical batch size.

Time to a given loss at batch size B is updates × time of an update. Updates fall as S_min·(1 + B_crit/B) (McCandlish
et al. 2018, arXiv 1812.06162), an update takes τ(B) ≈ c₀ + c₁·B. So the time is in proportion to τ(B)·(1 + B_crit/B):
least at B = √((c₀/c₁)·B_crit), the geometric mean of the knee and the critical batch size, and flat around it. All of
this is arithmetic on records: a saved probe can be put together anew for another machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from batchscope.errors import ArgumentError
from batchscope.fit import limits_in_words as words
from batchscope.fit.memory import largest_that_fits
from batchscope.fit.step_time import fastest_point, loader_bound_from
from batchscope.records import (
    BranchedRuns,
    Interval,
    Limits,
    MemoryUse,
    NoisePoint,
    Probe,
    Replanned,
    StepTimeLaw,
    StepTimes,
    WorkloadSummary,
)
from batchscope.records.probe import CriticalSource

Floats = NDArray[np.float64]

# Batch sizes that take up to this many times the least time are worth having too.
WORTH_SLACK = 1.1


def find_limits(
    workload: WorkloadSummary,
    step_time: StepTimes,
    memory: MemoryUse | None,
    noise: Sequence[NoisePoint],
    branched: BranchedRuns | None,
) -> Limits:
    """Put the measurements of a probe together.

    Args:
        workload: What was measured, and the batch size that the person uses today.
        step_time: Time of an update against batch size.
        memory: Memory against micro-batch size; None where it was not measured.
        noise: Gradient noise along training.
        branched: Branched runs; None where there were none.

    Returns:
        The limits in numbers and words.
    """
    critical, source, where = _critical(noise, branched)
    worth, low, high, excess = _time_optimal_batch_size(workload, step_time, critical)
    knee, largest = step_time.law.knee, None if memory is None else memory.largest_predicted
    return Limits(
        memory=largest,
        memory_sentence=words.memory(memory, workload),
        knee=knee,
        knee_sentence=words.knee(step_time),
        critical=critical,
        critical_source=source,
        critical_sentence=words.critical(critical, source, where, branched, noise),
        worth_having=worth,
        worth_from=low,
        worth_to=high,
        today_excess=excess,
        conclusion=words.conclusion(
            workload, worth, low, high, excess=excess, critical=critical, knee=knee, holds=largest
        ),
    )


def replan(
    probe: Probe, *, memory_bytes: int | None = None, speed: float = 1.0, fixed_speed: float | None = None
) -> Probe:
    """Put a saved probe together anew for another memory or another speed, without measuring.

    Args:
        probe: A probe, as measured or re-planned before (factors then multiply).
        memory_bytes: The memory that training may take there; None: as before.
        speed: Factor by which an example is computed faster there.
        fixed_speed: Factor by which the fixed cost of an update is smaller; None: the same as ``speed``. A faster
            accelerator behind the same processor has a large ``speed`` and a ``fixed_speed`` of about 1.

    Returns:
        The probe with the law of step times, the memory limit and the limits changed; noise is as measured, since it
        belongs to the network and its data, not to the machine.

    Raises:
        ArgumentError: Factors or a memory that make no sense.
    """
    fixed_speed = speed if fixed_speed is None else fixed_speed
    for name, factor in (("speed", speed), ("fixed_speed", fixed_speed)):
        if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not 0 < factor < math.inf:
            raise ArgumentError(f"{name} must be a positive factor", got=factor, mend="2 is twice as fast")
    if memory_bytes is not None and (type(memory_bytes) is not int or memory_bytes < 1):
        raise ArgumentError("memory_bytes must be a whole number of bytes", got=memory_bytes)
    memory = probe.memory
    if memory_bytes is not None and memory is None:
        raise ArgumentError(
            "a probe must have measured memory to be re-planned for another", got="one without", mend="probe again"
        )
    if memory is not None and memory_bytes is not None:
        memory = replace(memory, limit_bytes=memory_bytes, limit_source="given")
        if memory.law is not None:
            most = probe.workload.training_examples
            fits = largest_that_fits(memory.law, memory_bytes, margin=memory.margin)
            largest = most if fits is None else min(fits, most)
            memory = replace(memory, largest_predicted=largest, holds_all=largest == most)
    step_time = _faster(probe.step_time, speed, fixed_speed)
    before = probe.replanned or Replanned(None, 1.0, 1.0)
    return replace(
        probe,
        memory=memory,
        step_time=step_time,
        limits=find_limits(probe.workload, step_time, memory, probe.noise, probe.branched),
        replanned=Replanned(
            memory_bytes if memory_bytes is not None else before.memory_bytes,
            before.speed * speed,
            before.fixed_speed * fixed_speed,
        ),
    )


def time_to_loss(step_time: StepTimes, critical: float, sizes: Floats) -> Floats:
    """Relative time to a given loss: (τ(B) + what it waits for data)·(1 + B_crit/B).

    Args:
        step_time: Whose law and data times are used; data times between the sizes measured are interpolated, beyond
            them taken to be in proportion to B.
        critical: B_crit.
        sizes: Batch sizes.

    Returns:
        Times in an unknown unit, the same for all sizes.
    """
    compute = np.array([step_time.law.seconds(float(size)) or math.nan for size in sizes])
    waits = data_waits(step_time, sizes)
    step = np.maximum(compute, waits) if step_time.reading == "beside them" else compute + waits
    return np.asarray(step * (1 + critical / sizes))


def data_waits(step_time: StepTimes, sizes: Floats) -> Floats:
    """Seconds that getting a batch takes: interpolated, and beyond the sizes measured in proportion to them.

    Args:
        step_time: What was measured.
        sizes: Batch sizes.
    """
    known = np.array([point.batch_size for point in step_time.points], dtype=np.float64)
    data = np.array([point.data_seconds.value or 0.0 for point in step_time.points])
    return np.asarray(np.interp(sizes, known, data) * np.maximum(1.0, sizes / known[-1]))


def _time_optimal_batch_size(
    workload: WorkloadSummary, step_time: StepTimes, critical: Interval
) -> tuple[Interval, int | None, int | None, float | None]:
    """The batch size of least time, the range that takes at most a tenth more, and what today's takes more."""
    level, knee = critical.level, step_time.law.knee
    if critical.value is None or knee.value is None:
        if critical.low and knee.low:
            return Interval.unresolved(level, low=math.sqrt(critical.low * knee.low), high=math.inf), None, None, None
        return Interval.unresolved(level), None, None, None
    sizes = np.geomspace(1, max(2, workload.training_examples), 4000)
    times = time_to_loss(step_time, critical.value, sizes)
    best = float(sizes[int(np.argmin(times))])
    fine = sizes[times <= WORTH_SLACK * times.min()]
    # Half of each interval's length in the logarithm, since both are under the root.
    down = math.hypot(*(math.log((i.value or 1.0) / max(i.low or 0.0, 1e-12)) for i in (knee, critical))) / 2
    up = math.hypot(*(math.log((i.high or math.inf) / (i.value or 1.0)) for i in (knee, critical))) / 2
    today = time_to_loss(step_time, critical.value, np.array([float(workload.batch_size)]))
    excess = float(today[0] / times.min() - 1)
    interval = Interval(best, best * math.exp(-down), best * math.exp(up), level)
    return interval, math.ceil(fine[0]), math.floor(fine[-1]), max(0.0, excess)


def _critical(
    noise: Sequence[NoisePoint], branched: BranchedRuns | None
) -> tuple[Interval, CriticalSource | None, NoisePoint | None]:
    """The best evidence for the critical batch size: branched runs with both ends, else the latest noise scale."""
    if branched is not None and branched.critical_batch_size.resolved:
        found = branched.critical_batch_size
        if found.value and found.low and found.high is not None and math.isfinite(found.high):
            # It lies somewhere between the two: the largest size that recovered is only its lower bound.
            between = replace(found, value=math.sqrt(found.low * found.high))
            return between, "branched runs", None
    for point in reversed(noise):
        preconditioned = point.preconditioned_noise_scale
        if preconditioned is not None and preconditioned.resolved:
            return preconditioned, "preconditioned noise scale", point
        if preconditioned is None and point.noise_scale.resolved:
            return point.noise_scale, "noise scale", point
    last = noise[-1] if noise else None
    return (Interval.unresolved() if last is None else last.noise_scale), None, last


def _faster(step_time: StepTimes, speed: float, fixed_speed: float) -> StepTimes:
    law = step_time.law
    below = law.seconds_per_example_below
    knee = law.knee
    # Both the knee and its ends are ratios of a fixed cost and a cost per example.
    ratio = speed / fixed_speed
    changed = StepTimeLaw(
        fixed_seconds=_scaled(law.fixed_seconds, 1 / fixed_speed),
        seconds_per_example=_scaled(law.seconds_per_example, 1 / speed),
        bend=law.bend,
        seconds_per_example_below=None if below is None else below / speed,
        knee=_scaled(knee, ratio),
        relative_error=law.relative_error,
        bends_at=law.bends_at,
    )
    points = []
    for point in step_time.points:
        factor = (changed.seconds(point.batch_size) or 1.0) / (law.seconds(point.batch_size) or 1.0)
        compute = _scaled(point.compute_seconds, factor)
        waits, computes = point.data_seconds.value or 0.0, compute.value or 0.0
        seconds = max(waits, computes) if step_time.reading == "beside them" else waits + computes
        step = _scaled(point.step_seconds, seconds / (point.step_seconds.value or 1.0))
        points.append(
            replace(
                point,
                compute_seconds=compute,
                step_seconds=step,
                examples_per_second=_scaled(
                    point.examples_per_second, (point.step_seconds.value or 1.0) / (step.value or 1.0)
                ),
                predicted_seconds=point.predicted_seconds * factor,
            )
        )
    fastest = fastest_point(points)
    return replace(
        step_time,
        law=changed,
        points=tuple(points),
        most_examples_per_second=fastest.examples_per_second.value or 0.0,
        fastest_batch_size=fastest.batch_size,
        loader_bound_from=loader_bound_from(points),
        peak_flops_per_second=None,  # of the machine that it was measured on
    )


def _scaled(interval: Interval, factor: float) -> Interval:
    value, low, high = (None if x is None else x * factor for x in (interval.value, interval.low, interval.high))
    return Interval(value, low, high, interval.level, interval.resolved)

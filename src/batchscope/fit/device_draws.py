"""What :mod:`batchscope.fit.devices` works out, in draws: times of an update, of a sum, and examples to the target.

The first of the draws is the estimate; the others are from what the laws leave possible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from batchscope.errors import ArgumentError
from batchscope.fit.communication import all_reduce_seconds
from batchscope.fit.limits import data_waits
from batchscope.fit.sharding import largest_micro_batch
from batchscope.fit.step_time import coefficient_covariance
from batchscope.fit.time_to_target import drawn_examples
from batchscope.records import AllReduceLaw, Interval, Probe, StepTimes, TradeoffLaw
from batchscope.records.devices import AllReduceAlgorithm, UpdatesSource

Floats = NDArray[np.float64]

DRAWS = 1000
LEVEL = 0.95
# A backward pass costs twice a forward pass.
BACKWARD = 2 / 3
# What dividing the weights adds to what is sent: they are gathered for the forward and for the backward pass.
STAGE_3_TRAFFIC = 1.5
# So small a batch takes the least examples that there are.
VANISHING = 1e-9


@dataclass(frozen=True)
class DrawnStep:
    """Times of an update on one device and of the network; the first of each is the estimate, the others are draws."""

    times: StepTimes
    fixed: Floats
    each: Floats
    below: Floats
    latency: Floats
    bytes_per_second: Floats

    @classmethod
    def drawn(cls, times: StepTimes, network: AllReduceLaw, generator: np.random.Generator) -> DrawnStep:
        """From the laws' intervals.

        Raises:
            ArgumentError: A law that is not resolved.
        """
        law = times.law
        if law.fixed_seconds.value is None or law.seconds_per_example.value is None:
            raise ArgumentError("the probe must have a law of step times", got="one that is not resolved")
        points = times.points
        covariance = coefficient_covariance(
            [point.batch_size for point in points], [point.predicted_seconds for point in points], law.bend
        )
        normal = _normals(covariance, generator)
        fixed, each = _drawn(law.fixed_seconds, normal[:, 0]), _drawn(law.seconds_per_example, normal[:, -1])
        below = each
        if law.seconds_per_example_below is not None:
            # The record holds no interval of it; its standard error follows from that of the other slope.
            ratio = math.sqrt(covariance[1, 1] / covariance[2, 2])
            low, high = law.seconds_per_example.low, law.seconds_per_example.high
            half = None if low is None or high is None else ratio * (high - low) / 2
            below = _drawn(_around(law.seconds_per_example_below, half, law.seconds_per_example.level), normal[:, 1])
        return cls(times, fixed, each, below, *_drawn_network(network, generator))

    def computing(self, sizes: Floats) -> Floats:
        """τ without what it waits for its data: a row for each draw, a column for each micro-batch size."""
        bend = self.times.law.bend
        if bend is None:
            return np.asarray(self.fixed[:, None] + self.each[:, None] * sizes)
        low = self.below[:, None] * np.minimum(sizes, bend)
        return np.asarray(self.fixed[:, None] + low + self.each[:, None] * np.maximum(0.0, sizes - bend))

    def waiting(self, sizes: Floats, computing: Floats) -> Floats:
        """τ with it."""
        data = data_waits(self.times, sizes)
        return np.maximum(computing, data) if self.times.reading == "beside them" else computing + data


@dataclass(frozen=True)
class DeviceCase:
    """A number of devices, the batch sizes that it may train with, and what an update of each takes."""

    devices: int
    sizes: Floats
    micro: Floats
    seconds: Floats
    communication: Floats
    measured: tuple[int, int]
    reason: str | None

    @classmethod
    def of(
        cls,
        probe: Probe,
        step: DrawnStep,
        devices: int,
        *,
        algorithm: AllReduceAlgorithm,
        overlap: float,
        zero_stage: int,
        gradient_bytes: int,
    ) -> DeviceCase:
        """Every batch size that this number of devices can train with; none, with the reason, where there is none."""
        largest = None
        if probe.memory is not None:
            largest = largest_micro_batch(
                probe.memory, devices=devices, stage=zero_stage, gradient_bytes=gradient_bytes
            )
        share, micro = _shares(probe.workload.training_examples // devices, largest)
        reason = None
        if not len(share):
            reason = (
                "not even one example fits into a device's memory"
                if largest == 0
                else f"there are {probe.workload.training_examples:,} training examples for {devices:,} devices"
            )
        computing = step.computing(micro)
        summing = all_reduce_seconds(
            step.latency,
            step.bytes_per_second,
            message_bytes=gradient_bytes,
            ranks=devices,
            algorithm=algorithm,
        )
        summing = summing * (STAGE_3_TRAFFIC if zero_stage == 3 else 1.0)
        communication = np.maximum(0.0, summing[:, None] - overlap * BACKWARD * computing)
        seconds = (share / micro) * step.waiting(micro, computing) + communication
        timed = [point.batch_size for point in step.times.points]
        return cls(devices, devices * share, micro, seconds, communication, (min(timed), max(timed)), reason)


@dataclass(frozen=True)
class DrawnExamples:
    """Log of examples to the target against batch size, in the same draws."""

    source: UpdatesSource
    relative: bool
    sizes: Floats
    logs: Floats
    least: Floats

    @classmethod
    def drawn(
        cls,
        probe: Probe,
        law: TradeoffLaw | None,
        target_examples: float | None,
        sizes: Floats,
        generator: np.random.Generator,
    ) -> DrawnExamples:
        """By the trade-off law where there is one, else by the probe's critical batch size.

        Raises:
            ArgumentError: Neither says anything.
        """
        sizes = np.unique(sizes)
        if law is not None:
            grid = np.log(np.concatenate([[VANISHING], sizes]))
            draws = drawn_examples(law, grid, generator, draws=DRAWS)
            logs = np.vstack([[math.log(law.examples(float(size)) or math.nan) for size in np.exp(grid)], draws])
            return cls("trade-off law", False, sizes, logs[:, 1:], logs[:, 0])
        known = probe.limits.critical
        if known.value is None and known.low:  # the least that it can be: no batch up to it is too large
            known = Interval(known.low, None, None)
        if known.value is None:
            raise ArgumentError(
                "the critical batch size must be known, from the probe or from a law",
                got=f"a probe in which it is {probe.limits.critical}",
                mend="probe for longer, or give law= (--law) a sweep or a fitted table",
            )
        critical = _drawn(known, _normals(np.eye(1), generator)[:, 0])
        least = np.zeros_like(critical)
        if target_examples is not None:
            least = math.log(target_examples) - np.log1p(probe.workload.batch_size / critical)
        logs = least[:, None] + np.log1p(sizes / critical[:, None])
        return cls(probe.limits.critical_source or "noise scale", target_examples is None, sizes, logs, least)

    def at(self, sizes: Floats) -> Floats:
        """A row for each draw, a column for each of some of the sizes."""
        return np.asarray(self.logs[:, np.searchsorted(self.sizes, sizes)])


@dataclass(frozen=True)
class SolvedCase:
    """The best batch size of a number of devices, by the estimates and in each draw."""

    case: DeviceCase
    best: int
    times: Floats
    least_times: Floats
    least_sizes: Floats

    @classmethod
    def of(cls, case: DeviceCase, examples: DrawnExamples) -> SolvedCase:
        """The batch size of least time."""
        times = case.seconds * np.exp(examples.at(case.sizes)) / case.sizes
        best, each = int(np.argmin(times[0])), np.argmin(times, axis=1)
        return cls(case, best, times[:, best], times[np.arange(len(times)), each], case.sizes[each])

    @property
    def size(self) -> float:
        """Examples in a batch, by the estimates."""
        return float(self.case.sizes[self.best])

    @property
    def micro(self) -> int:
        """Examples in a micro-batch of it."""
        return int(self.case.micro[self.best])


def drawn_interval(draws: Floats) -> Interval:
    """The estimate, which comes first, with quantiles of the draws behind it."""
    value = float(draws[0])
    low, high = np.quantile(draws[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return Interval(value, min(value, float(low)), max(value, float(high)), LEVEL)


def _shares(most: int, largest: int | None) -> tuple[Floats, Floats]:
    """Examples of an update on each device, and of a micro-batch: powers of two, and half as much again."""
    limit = most if largest is None else min(most, largest)
    whole = {b for k in range(max(0, limit).bit_length()) for b in (2**k, 3 * 2**k // 2) if 1 <= b <= limit}
    pairs = [(float(b), float(b)) for b in sorted(whole)]
    if largest is not None and 0 < largest < most:
        micro = max(whole)
        pairs += [(float(micro * 2**k), float(micro)) for k in range(1, (most // micro).bit_length())]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _drawn_network(network: AllReduceLaw, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Latency and bandwidth, of which a fitted line determines the sum of α and n/(N·β) better than either."""
    covariance = np.eye(2)
    times = [network.seconds(point.message_bytes, ranks=network.ranks or 1) or 0.0 for point in network.points]
    if times and min(times) > 0:
        covariance = coefficient_covariance([point.message_bytes for point in network.points], times)
    normal = _normals(covariance, generator)
    # The bandwidth is the inverse of the slope, so it falls where the slope rises.
    return _drawn(network.latency_seconds, normal[:, 0]), _drawn(network.bytes_per_second, -normal[:, 1])


def _normals(covariance: Floats, generator: np.random.Generator) -> Floats:
    """Zeros first, which stand for the estimate, then draws of standard normals with the correlation of these."""
    deviations = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(deviations, deviations)
    draws = generator.multivariate_normal(np.zeros(len(covariance)), correlation, DRAWS, method="eigh")
    return np.vstack([np.zeros(len(covariance)), draws])


def _around(value: float, half: float | None, level: float) -> Interval:
    return Interval(value, None, None, level) if half is None else Interval(value, value - half, value + half, level)


def _drawn(interval: Interval, normal: Floats) -> Floats:
    """An interval's value moved by standard normals, its logarithm where the lower end is above 0."""
    value, low, high = interval.value, interval.low, interval.high
    if value is None:
        raise ArgumentError("the law of an all-reduce must have a latency and a bandwidth", got="one not resolved")
    if low is None or high is None or not math.isfinite(high):
        return np.full(len(normal), value)
    normal = normal / float(ndtri((1 + interval.level) / 2))
    if low > 0:
        width = np.where(normal < 0, math.log(value / low), math.log(high / value))
        return np.asarray(value * np.exp(normal * width))
    return np.maximum(0.0, value + normal * np.where(normal < 0, value - low, high - value))

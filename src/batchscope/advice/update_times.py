"""The time of an update at any batch size, shared by devices, and in micro-batches where memory asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.interpolate import PchipInterpolator

from batchscope.records import Interval, StepTimes

# Times that were not measured but worked out are known no better than this; measured ones no better than the second.
BEYOND, LEAST_ERROR = 0.15, 0.01
# On a busy machine medians say little, and their intervals less: nothing is taken to be known worse than this.
MOST_ERROR = 0.25
BUSY = 0.08


class UpdateTimes:
    """τ(B), a smooth monotone curve in log τ against log B through what was measured.

    Beyond the largest size measured an example costs what it cost there; below the least an update does.

    Args:
        measured: Of one device.
        largest_micro_batch: Examples that pass through the model at once at most; None: as many as there are.
        devices: Devices that share each batch.
        communication_seconds: What they need to add up their gradients.
    """

    def __init__(
        self,
        measured: StepTimes,
        *,
        largest_micro_batch: int | None = None,
        devices: int = 1,
        communication_seconds: Callable[[int], float] = lambda devices: 0.0,
    ) -> None:
        self.measured, self.devices = measured, devices
        self.largest_micro_batch = largest_micro_batch
        self._communication = communication_seconds(devices) if devices > 1 else 0.0
        points = [p for p in measured.points if p.step_seconds.value]
        self._sizes = [p.batch_size for p in points]
        self._logs = np.log([p.step_seconds.value or math.nan for p in points])
        self._curve = PchipInterpolator(np.log(self._sizes), np.maximum.accumulate(self._logs))
        self._errors = [_relative(p.step_seconds) for p in points]

    def micro_batch_size(self, batch_size: int) -> int:
        """Examples that pass through the model at once on each device."""
        share = -(-batch_size // self.devices)
        return share if self.largest_micro_batch is None else min(share, self.largest_micro_batch)

    def accumulation_steps(self, batch_size: int) -> int:
        """Micro-batches of an update on each device."""
        share = -(-batch_size // self.devices)
        return -(-share // self.micro_batch_size(batch_size))

    def seconds(self, batch_size: int) -> float:
        """Time of an update, with the data that it waits for."""
        micro = self.micro_batch_size(batch_size)
        return self.accumulation_steps(batch_size) * self._one(micro) + self._communication

    def relative_error(self, batch_size: int) -> float:
        """How well that is known, as a share of it."""
        micro = self.micro_batch_size(batch_size)
        error = float(np.interp(math.log(micro), np.log(self._sizes), self._errors))
        return max(error, BEYOND if micro > self._sizes[-1] or micro < self._sizes[0] else LEAST_ERROR)

    @property
    def busy(self) -> bool:
        """Whether the times varied so much that the machine must have been busy with something else."""
        return sorted(self._errors)[len(self._errors) // 2] > BUSY

    def interval(self, batch_size: int, level: float = 0.95) -> Interval:
        """Time of an update with what is known about it."""
        value, width = self.seconds(batch_size), 1.96 * self.relative_error(batch_size)
        return Interval(value, value * math.exp(-width), value * math.exp(width), level)

    def _one(self, size: int) -> float:
        least, most = self._sizes[0], self._sizes[-1]
        inside = min(max(size, least), most)
        return float(np.exp(self._curve(math.log(inside)))) * (size / most if size > most else 1.0)


def _relative(interval: Interval) -> float:
    """A standard error as a share of the value, from a 95% interval."""
    if not interval.low or not interval.high or not interval.value:
        return BEYOND
    return min(MOST_ERROR, (interval.high - interval.low) / (2 * 1.96 * interval.value))

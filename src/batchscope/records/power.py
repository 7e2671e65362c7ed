"""The power that training draws, and where that is known from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from batchscope.records.interval import Interval

PowerSource = Literal["NVML", "RAPL", "given", "assumed"]


@dataclass(frozen=True)
class PowerPoint:
    """The power at one batch size.

    Attributes:
        batch_size: Examples per update.
        watts: Joules over seconds of a device that makes such updates: median over rounds, or as given.
    """

    batch_size: int
    watts: Interval


@dataclass(frozen=True)
class PowerUse:
    """The power that a device draws while it trains, against batch size.

    Attributes:
        source: "NVML", a GPU's own counter; "RAPL", that of the processor's packages; "given" by the person; "assumed",
            a documented default.
        points: By batch size, ascending; a single one stands for all.
        max_watts: The most that the device may draw; where that is not known, the largest of the points.
        note: What is and is not in it.

    Examples:
        >>> known = [PowerPoint(size, Interval(watts, None, None)) for size, watts in ((16, 100.0), (64, 200.0))]
        >>> use = PowerUse("given", tuple(known), 250.0, "")
        >>> [use.watts(size).value for size in (1, 16, 32, 1024)], use.varies
        ([100.0, 100.0, 150.0, 200.0], True)
    """

    source: PowerSource
    points: tuple[PowerPoint, ...]
    max_watts: float
    note: str

    @property
    def varies(self) -> bool:
        """Whether it is known to depend on the batch size."""
        return len({point.watts.value for point in self.points}) > 1

    def watts(self, batch_size: int) -> Interval:
        """The power at a batch size: between two points by the logarithm of the size, beyond them that of the nearest.

        Args:
            batch_size: Examples per update.
        """
        sizes = np.log([point.batch_size for point in self.points])

        def between(values: list[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            return float(np.interp(np.log(batch_size), sizes, known)) if len(known) == len(values) else None

        found = [point.watts for point in self.points]
        value, low, high = (between([getattr(watts, end) for watts in found]) for end in ("value", "low", "high"))
        return Interval(value, low, high)

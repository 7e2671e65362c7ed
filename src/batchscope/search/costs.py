"""What seconds cost in money and energy, and the blend of energy and time that may be minimised in their place.

Zeus (You et al. 2023, arXiv 2208.06102) minimises C = η·energy + (1 − η)·P_max·time, both in joules. With the power
P(B) of a batch size and T(B) seconds that is T(B)·(η·P(B) + (1 − η)·P_max): time, weighted by a factor of the batch
size. Where the power does not depend on it, neither does the factor, and the choice is that of time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from batchscope.errors import ArgumentError
from batchscope.measure.power import assumed_power, find_power_meter, given_power, power_use
from batchscope.records import Goal, Interval, PowerPoint, PowerUse
from batchscope.workload.workload import Workload

Power = float | Mapping[int, float] | Literal["measured"]


@dataclass(frozen=True)
class Costs:
    """What a second of training costs.

    Attributes:
        price_per_hour: Of a device; None without.
        power: Of a device; None where none is known.
        time_share: 1 − η, the share of time in what is minimised; None: time alone is.
        devices: Devices that share each batch.
    """

    price_per_hour: float | None = None
    power: PowerUse | None = None
    time_share: float | None = None
    devices: int = 1

    def weight(self, batch_size: int) -> float:
        """What a second counts for at a batch size, where 1 is a second at the most power: η·P(B)/P_max + (1 − η).

        Args:
            batch_size: Examples per update.
        """
        if self.time_share is None or self.power is None:
            return 1.0
        share = (self.power.watts(batch_size).value or 0.0) / self.power.max_watts
        return (1 - self.time_share) * share + self.time_share

    def money(self, seconds: Interval) -> Interval | None:
        """The price of some seconds on all devices; None without one."""
        return None if self.price_per_hour is None else scaled(seconds, self.devices * self.price_per_hour / 3600)

    def joules(self, batch_size: int, seconds: Interval) -> Interval | None:
        """The energy of some seconds on all devices; None where no power is known."""
        if self.power is None:
            return None
        watts = self.power.watts(batch_size)
        return product(seconds, scaled(watts, self.devices))


def checked_costs(
    price_per_hour: float | None, power_watts: Power | None, time_share: float | None, goal: Goal
) -> None:
    """Refuse what makes no sense, before anything is measured.

    Args:
        price_per_hour: Of a device.
        power_watts: Watts, watts by batch size, or "measured".
        time_share: Share of time in what is minimised.
        goal: What is asked for.

    Raises:
        ArgumentError: One of them makes no sense.
    """
    if price_per_hour is not None and not 0 < price_per_hour < math.inf:
        raise ArgumentError("price_per_hour must be above 0", got=price_per_hour)
    if isinstance(power_watts, Mapping):
        sizes_fit = all(type(size) is int and size >= 1 for size in power_watts)
        if not power_watts or not sizes_fit or not all(0 < watts < math.inf for watts in power_watts.values()):
            raise ArgumentError(
                "power_watts by batch size must be watts above 0 for whole sizes", got=dict(power_watts)
            )
    elif isinstance(power_watts, str):
        if power_watts != "measured":
            raise ArgumentError("power_watts must be watts, watts by batch size, or 'measured'", got=power_watts)
    elif power_watts is not None and not 0 < power_watts < math.inf:
        raise ArgumentError("power_watts must be above 0", got=power_watts)
    if time_share is None:
        return
    if not 0 <= time_share <= 1:
        raise ArgumentError("time_share must be a share from 0 (energy alone) to 1 (time alone)", got=time_share)
    if goal.kind != "target":
        raise ArgumentError(
            "energy and time are weighed up on the way to a target",
            got=f"a goal in {goal.kind}",
            mend="give target=, or leave time_share out",
        )


def find_power(
    workload: Workload,
    power_watts: Power | None,
    *,
    wanted: bool,
    batch_sizes: tuple[int, ...],
    device: torch.device,
    seed: int,
) -> tuple[PowerUse | None, str | None]:
    """The power as it was given, or as it can be measured here, or else assumed.

    Args:
        workload: What is trained.
        power_watts: As for :func:`batchscope.advise`.
        wanted: Whether power is needed where nothing is given.
        batch_sizes: Batch sizes at which it may be measured.
        device: What trains.
        seed: Of what is measured.

    Returns:
        The power, None where it is neither given nor needed; and a warning, None where there is nothing to say.
    """
    if isinstance(power_watts, Mapping):
        points = tuple(
            PowerPoint(size, Interval(float(watts), None, None)) for size, watts in sorted(power_watts.items())
        )
        return PowerUse("given", points, max(map(float, power_watts.values())), "As given, by batch size."), None
    if power_watts is not None and not isinstance(power_watts, str):
        return given_power(float(power_watts)), None
    if power_watts is None and not wanted:
        return None, None
    found = find_power_meter(device)
    if found.meter is None:
        use = assumed_power(device, found.why)
        return use, (
            f"Power is assumed, {use.max_watts:,.0f} W for a device, since it cannot be measured here: {found.why}. "
            f"Energy is no better than that; power_watts (--power) gives another."
        )
    return power_use(workload, batch_sizes=batch_sizes, meter=found.meter, seed=seed, device=device), None


def scaled(known: Interval, factor: float) -> Interval:
    """An interval times a number.

    Args:
        known: The interval.
        factor: Above 0.

    Examples:
        >>> print(scaled(Interval(2.0, 1.0, 3.0), 2.0))
        4 (2 to 6)
    """
    value, low, high = (None if end is None else factor * end for end in (known.value, known.low, known.high))
    return replace(known, value=value, low=low, high=high)


def product(first: Interval, second: Interval) -> Interval:
    """The product of two independent quantities above 0, their half-widths added in square in the logarithm.

    Args:
        first: Whose level is kept.
        second: May be without ends, which adds nothing.

    Examples:
        >>> print(product(Interval(10.0, 9.0, 12.0), Interval(3.0, None, None)))
        30 (27 to 36)
        >>> print(product(Interval(10.0, 8.0, 12.5), Interval(10.0, 8.0, 12.5)))
        100 (72.94 to 137.1)
    """
    if second.value is None:
        return Interval.unresolved(first.level)
    if first.value is None or not second.low or not second.high:
        return scaled(first, second.value)

    middle, other = first.value, second.value

    def end(mine: float | None, theirs: float, sign: int) -> float | None:
        if not mine or not math.isfinite(mine):
            return None if mine is None else mine * other
        return middle * other * math.exp(sign * math.hypot(math.log(mine / middle), math.log(theirs / other)))

    return Interval(middle * other, end(first.low, second.low, -1), end(first.high, second.high, 1), first.level)

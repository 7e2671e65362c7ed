"""What a plan for several devices says in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from batchscope.fit.time_to_target import time_in_words
from batchscope.records import AllReduceLaw, DevicePlan, DeviceRow, Interval, Probe, TradeoffLaw
from batchscope.records.devices import UpdatesSource


def concluded(plan: DevicePlan) -> DevicePlan:
    """The plan with its conclusion."""
    return replace(plan, conclusion=" ".join(filter(None, (_worth(plan), _first(plan), _best(plan), _missing(plan)))))


def warnings(
    probe: Probe,
    rows: Sequence[DeviceRow],
    *,
    source: UpdatesSource,
    law: TradeoffLaw | None,
    network: AllReduceLaw,
    overlap: float,
) -> tuple[str, ...]:
    """What to know before trusting the numbers, most serious first.

    Args:
        probe: What was probed.
        rows: The plan's.
        source: Where the law of examples comes from.
        law: The trade-off law; None where the probe gave one.
        network: The law of an all-reduce.
        overlap: Share of the backward pass that hides communication.
    """
    said = []
    least = probe.limits.critical
    if law is None and least.value is None and least.low:
        said.append(
            f"The probe did not resolve the critical batch size: it is {least.low:,.0f} or more, and that is what the "
            f"plan takes. With a larger one larger batches and more devices pay better."
        )
    if source in ("noise scale", "preconditioned noise scale"):
        said.append(
            "Updates follow the probe's noise scale in place of a critical batch size: in published runs that was 0.05 "
            "to 8 times the noise scale. A sweep with a target, given as law, says more."
        )
    elif source == "branched runs":
        said.append("Updates follow the critical batch size of branched runs early in training; it grows later.")
    if law is not None and not law.follows:
        said.append(f"The trade-off law is not followed: {law.verdict}")
    asked = [row for row in rows if row.asked and row.batch_size is not None]
    if law is not None:
        largest = max(point.batch_size for point in law.points)
        beyond = [row.devices for row in asked if (row.batch_size or 0) > largest]
        if beyond:
            said.append(
                f"From {min(beyond):,} devices on the batch is larger than any that the law was fitted to, {largest:,}."
            )
    far = [row.devices for row in asked if not row.measured_sizes]
    if far:
        numbers = ", ".join(f"{count:,}" for count in far)
        said.append(f"The micro-batch lies outside the sizes that were timed with {numbers} devices.")
    if network.ranks is None:
        said.append("The network is as given, the same between any two devices, and without an interval.")
    if overlap == 0:
        said.append("Gradients are summed after the backward pass; a loop that overlaps the two waits less (overlap).")
    said.append("Every batch size is taken to have its own learning rate: rescale it, or search for it.")
    return (*said, *probe.warnings)


def _worth(plan: DevicePlan) -> str:
    worth, asked = plan.worth_devices, [row for row in plan.rows if row.batch_size is not None]
    if worth.value is None:
        return ""
    rule = f"twice as many gain {plan.least_gain:.0%} or more, at an efficiency of {plan.least_efficiency:.0%} or more"
    place = next(i for i, row in enumerate(asked) if row.devices == worth.value)
    if place == len(asked) - 1:
        return f"More devices pay up to {worth.value:,.0f}, the most that were looked at ({rule})."
    now, then = asked[place], asked[place + 1]
    left = (then.relative_time.value or 0.0) / (now.relative_time.value or 1.0)
    change = f"{1 - left:.0%} less" if left <= 1 else f"{left - 1:.0%} more"
    return (
        f"More devices pay up to {_spoken(worth)} ({rule}): {then.devices:,} in place of {now.devices:,} take "
        f"{change} time, at an efficiency of {100 * (then.efficiency.value or 0.0):.3g}%."
    )


def _first(plan: DevicePlan) -> str:
    row = next((row for row in plan.rows if row.asked and row.batch_size is not None), None)
    if row is None or row.batch_size is None:
        return ""
    took = "" if row.seconds.value is None else f" and takes {time_in_words(row.seconds.value)}"
    return f"With {_devices(row.devices)} a batch of {row.batch_size:,} is the fastest to the target{took}."


def _best(plan: DevicePlan) -> str:
    """What the number that pays takes, or the largest one asked for up to it."""
    worth = plan.worth_devices.value
    rows = [row for row in plan.rows if row.batch_size is not None and row.devices == worth]
    if not rows or rows[0].devices == plan.rows[0].devices:
        return ""
    row = rows[0]
    speed = f"{row.speed_up.value or 0.0:.3g} times as fast ({100 * (row.efficiency.value or 0.0):.3g}% efficiency)"
    took = "" if row.seconds.value is None else f", {time_in_words(row.seconds.value)},"
    cost = ""
    if row.cost is not None and row.cost.value is not None:
        cost = f" It costs {row.cost.value:.3g} for {row.device_hours.value or 0.0:.3g} device hours."
    return f"{_devices(row.devices)} with a batch of {row.batch_size:,}{took} are {speed}.{cost}"


def _missing(plan: DevicePlan) -> str:
    """Numbers of devices for which there is no setting."""
    return " ".join(
        f"There is no setting for {_devices(row.devices)}: {row.reason}."
        for row in plan.rows
        if row.asked and row.reason
    )


def _devices(count: int) -> str:
    return f"{count:,} device" + ("" if count == 1 else "s")


def _spoken(interval: Interval) -> str:
    value, low, high = interval.value or 0.0, interval.low or 0.0, interval.high or 0.0
    if low == high:
        return f"{value:,.0f}"
    if math.isinf(high):
        return f"{value:,.0f} ({low:,.0f} or more)"
    return f"{value:,.0f} ({low:,.0f} to {high:,.0f})"

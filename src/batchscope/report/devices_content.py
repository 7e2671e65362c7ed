"""What a plan for several devices says in words, rows and columns, and its page."""

from __future__ import annotations

from collections.abc import Iterable

from batchscope.records import DevicePlan, DeviceRow, Interval
from batchscope.report import formatting as f
from batchscope.report.content import Content, Facts, Figure, Section, drawn
from batchscope.report.sheets import Column, Line, Sheet, provenance, workload_facts

KILOWATT_HOUR = 3.6e6
ALGORITHMS = {"ring": "round a ring", "tree": "up a tree and down", "fastest": "by a ring or a tree"}
STAGES = (
    "nothing",
    "the optimiser’s state",
    "the optimiser’s state and gradients",
    "the optimiser’s state, gradients and weights",
)


def rows(record: DevicePlan) -> Sheet:
    """A row for each number of devices asked for: the best setting, its time, and what it costs."""
    asked = [row for row in record.rows if row.asked]
    time = f.time_unit(row.seconds.value for row in asked)
    update = f.time_unit(row.step_seconds.value for row in asked)
    space = f.memory_unit(None if row.memory is None else row.memory.at(record.zero_stage) for row in asked)
    whole = not record.relative
    priced, powered = whole and record.price_per_hour is not None, whole and record.power_watts is not None
    columns = (
        Column("devices", align="left"),
        Column("batch", "all devices"),
        Column("micro-", "batch"),
        *((Column("updates"),) if whole else ()),
        Column("time", f"{time.name}, 95%" if whole else "of the first, 95%"),
        Column("efficiency", "95%"),
        Column("device", "hours" if whole else "time, ratio"),
        *((Column("cost"),) if priced else ()),
        *((Column("energy", "kWh"),) if powered else ()),
        Column("update", update.name, minor=True),
        Column("waits", "for gradients", minor=True),
        *((Column("memory", space.name, minor=True),) if any(row.memory for row in asked) else ()),
    )

    def cells(row: DeviceRow) -> tuple[str, ...]:
        split = "" if (row.accumulation_steps or 1) == 1 else f" × {row.accumulation_steps}"
        waits, step = row.communication_seconds.value, row.step_seconds.value
        use = row.efficiency.value
        held = None if row.memory is None else row.memory.at(record.zero_stage)
        return (
            f.count(row.devices),
            f.count(row.batch_size),
            f.count(row.micro_batch_size) + split,
            *((f.number(row.updates.value, 3),) if whole else ()),
            f.within(row.seconds, time) if whole else ratio(row.relative_time),
            percent(row.efficiency),
            f.number(row.device_hours.value if whole else None if not use else 1 / use, 3),
            *((f.number(None if row.cost is None else row.cost.value, 3),) if priced else ()),
            *(
                (f.number(None if row.joules is None else (row.joules.value or 0) / KILOWATT_HOUR, 3),)
                if powered
                else ()
            ),
            update.of(step),
            f.UNKNOWN if waits is None or not step else f.share(waits, step),
            *((space.of(held),) if any(r.memory for r in asked) else ()),
        )

    note = (
        "The batch of least time at each number; updates by the trade-off law, an update by the probe and the network."
    )
    if not whole:
        note += " Times are ratios: how many examples the target takes was not given."
    return Sheet("What each number of devices takes", columns, tuple(Line(cells(row)) for row in asked), note)


def memory(record: DevicePlan) -> Sheet | None:
    """Peak memory of a device at every ZeRO stage; None where none is known."""
    asked = [row for row in record.rows if row.asked and row.memory is not None]
    if not asked:
        return None
    space = f.memory_unit(row.memory.replicated_bytes for row in asked if row.memory is not None)
    columns = (
        Column("devices", align="left"),
        Column("micro-", "batch"),
        Column("whole", space.name),
        Column("ZeRO 1", "optimiser"),
        Column("ZeRO 2", "and gradients"),
        Column("ZeRO 3", "and weights"),
    )
    lines = tuple(
        Line(
            (
                f.count(row.devices),
                f.count(row.micro_batch_size),
                *(space.of(row.memory.at(stage)) for stage in range(4)),
            )
        )
        for row in asked
        if row.memory is not None
    )
    note = "At its peak, with what every device holds whole, and with ever more of it divided among the devices."
    return Sheet("Memory of each device", columns, lines, note)


def facts(record: DevicePlan) -> Facts:
    """What the plan rests on."""
    network, where = record.network, record.updates_from
    given = "given" if network.ranks is None else f"measured on {network.ranks} ranks, {network.backend}"
    links = f"{f.number((network.bytes_per_second.value or 0) / 1e9, 3)} GB/s"
    latency = f.seconds(network.latency_seconds.value)
    found = [
        ("network", f"{links} and {latency} a step, {given}"),
        ("gradients", f"{f.memory(record.gradient_bytes)}, summed {ALGORITHMS[record.algorithm]}"),
        ("overlapped with the backward pass", f"{record.overlap:.0%} of it"),
        ("divided among devices", STAGES[record.zero_stage]),
        ("critical batch size", f"{f.sized(record.critical_batch_size)}, {where}"),
        ("more devices pay up to", f.sized(record.worth_devices)),
        ("a doubling pays", f"from {record.least_gain:.0%} on, efficiency {record.least_efficiency:.0%} or more"),
    ]
    if record.price_per_hour is not None:
        found.append(("price", f"{f.number(record.price_per_hour)} for a device and an hour"))
    if record.power_watts is not None:
        found.append(("power", f"{f.number(record.power_watts)} W for a device, as given"))
    return tuple(found)


def of_devices(record: DevicePlan, available: Iterable[str]) -> Content:
    """The page of a plan for several devices.

    Args:
        record: The plan.
        available: Names of the charts that have something to show.

    Returns:
        The answer, the charts against the number of devices, the tables, and what they rest on.
    """
    held = memory(record)
    sections = (
        Section(
            "How far more devices pay",
            figures=drawn(
                available,
                Figure(
                    "device_times",
                    "Time to the target",
                    note="Line and band: at the best batch size of each number, 95%. Dashed: at full efficiency.",
                ),
                Figure(
                    "device_cost",
                    "Cost",
                    note="Devices × time, and × price where there is one: time lost to waiting is paid for.",
                ),
            ),
            sheets=(rows(record),),
        ),
        Section("Memory", sheets=() if held is None else (held,)),
        Section(
            "What this rests on",
            facts=(
                ("The laws", facts(record)),
                ("The workload", workload_facts(record.workload)),
                ("Provenance of the probe", provenance(record.provenance)),
            ),
        ),
    )
    asked = [f.count(row.devices) for row in record.rows if row.asked]
    return Content(
        name=record.workload.name,
        title="How many devices are worth having?",
        answer=record.conclusion,
        summary=(
            ("devices", ", ".join(asked)),
            ("pay up to", f.sized(record.worth_devices)),
            ("probed on", record.provenance.device),
        ),
        warnings=record.warnings,
        sections=tuple(section for section in sections if section.holds_something()),
    )


def percent(interval: Interval) -> str:
    """A share with its interval.

    Examples:
        >>> percent(Interval(0.74, 0.72, 0.755)), percent(Interval.unresolved())
        ('74% (72–75.5)', '–')
    """
    if interval.value is None:
        return f.UNKNOWN
    low, high = interval.low, interval.high
    value = f"{f.number(100 * interval.value, 3)}%"
    if low is None or high is None or low == high:
        return value
    return f"{value} ({f.number(100 * low, 3)}–{f.number(100 * high, 3)})"


def ratio(interval: Interval) -> str:
    """A ratio of times with its interval."""
    if interval.value is None:
        return f.UNKNOWN
    if interval.low == interval.high:
        return f.number(interval.value, 3)
    return f"{f.number(interval.value, 3)} ({f.number(interval.low, 3)}–{f.number(interval.high, 3)})"

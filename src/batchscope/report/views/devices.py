"""What is shown of a plan for several devices: how far more of them pay, and what each holds in memory."""

from __future__ import annotations

import functools

from batchscope.records import DevicePlan, DeviceRow, Interval
from batchscope.report import formatting as f
from batchscope.report.charts.axes import Point, Spec, axis, domain_around, size_axis, with_headroom
from batchscope.report.charts.intervals import intervals
from batchscope.report.charts.plot import AMBER, BLUE, RED, TEAL, Mark, Plot, kinds, tip
from batchscope.report.view import Column, Facts, Figure, Section, Table, View, facts, measured, table, workload_facts

NAMES = {BLUE: "time", TEAL: "if all paid in full", AMBER: "cost", RED: "more devices pay up to here"}
KILOWATT_HOUR = 3.6e6
ALGORITHMS = {"ring": "by a ring", "tree": "by a tree", "fastest": "by a ring or a tree"}
STAGES = (
    "nothing",
    "the optimiser’s state",
    "the optimiser’s state and gradients",
    "the optimiser’s state, gradients and weights",
)


def view(record: DevicePlan) -> View:
    """A plan: the answer, the charts against the number of devices, the tables, and what they rest on."""
    line = "Line and band: at the best batch size of each number, 95%. Dashed: at full efficiency."
    paid = "Devices × time, and × price where there is one: time lost to waiting is paid for."
    held = memory(record)
    return View(
        name=record.workload.name,
        title="How many devices are worth having?",
        answer=record.conclusion,
        summary=(
            ("devices", ", ".join(f.count(row.devices) for row in record.rows if row.asked)),
            ("pay up to", f.sized(record.worth_devices)),
            ("probed on", record.provenance.device),
        ),
        warnings=record.warnings,
        sections=(
            Section(
                "How far more devices pay",
                figures=(
                    Figure("device_times", "Time to the target", functools.partial(times, record), note=line),
                    Figure("device_cost", "Cost", functools.partial(cost, record), note=paid),
                ),
                tables=(rows(record),),
                on="both",
            ),
            Section("Memory", tables=() if held is None else (held,), on="both"),
            Section("What this rests on", facts=(("The laws", laws(record)),), on="both"),
            measured(
                record.provenance, ("The workload", workload_facts(record.workload)), title="What was probed, and where"
            ),
        ),
        origin=record.provenance,
    )


def rows(record: DevicePlan) -> Table:
    """A row for each number of devices asked for: the best setting, its time, and what it costs."""
    asked = [row for row in record.rows if row.asked]
    time = f.time_unit(row.seconds.value for row in asked)
    update = f.time_unit(row.step_seconds.value for row in asked)
    space = f.memory_unit(None if row.memory is None else row.memory.at(record.zero_stage) for row in asked)
    whole = not record.relative
    priced = whole and record.price_per_hour is not None

    def micro(row: DeviceRow) -> str:
        split = "" if (row.accumulation_steps or 1) == 1 else f" × {row.accumulation_steps}"
        return f.count(row.micro_batch_size) + split

    def hours(row: DeviceRow) -> str:
        use = row.efficiency.value
        return f.number(row.device_hours.value if whole else 1 / use if use else None, 3)

    def energy(row: DeviceRow) -> str:
        return f.number(None if row.joules is None else (row.joules.value or 0) / KILOWATT_HOUR, 3)

    def waits(row: DeviceRow) -> str:
        spent, step = row.communication_seconds.value, row.step_seconds.value
        return f.UNKNOWN if spent is None or not step else f.share(spent, step)

    def held(row: DeviceRow) -> str:
        return space.of(None if row.memory is None else row.memory.at(record.zero_stage))

    columns: tuple[Column[DeviceRow] | bool, ...] = (
        Column("devices", lambda row: f.count(row.devices), align="left"),
        Column("batch", lambda row: f.count(row.batch_size), "all devices"),
        Column("micro-", micro, "batch"),
        whole and Column("updates", lambda row: f.number(row.updates.value, 3)),
        Column(
            "time",
            lambda row: f.within(row.seconds, time) if whole else _ratio(row.relative_time),
            f"{time.name}, 95%" if whole else "of the first, 95%",
        ),
        Column("efficiency", lambda row: percent(row.efficiency), "95%"),
        Column("device", hours, "hours" if whole else "time, ratio", minor=priced),
        priced and Column("cost", lambda row: f.number(None if row.cost is None else row.cost.value, 3)),
        whole and record.power_watts is not None and Column("energy", energy, "kWh"),
        Column("update", lambda row: update.of(row.step_seconds.value), update.name, minor=True),
        Column("waits", waits, "for gradients", minor=True),
        any(row.memory for row in asked) and Column("memory", held, space.name, minor=True),
    )
    note = (
        "The fastest batch size at each number; updates by the trade-off law, their time by the probe and the network."
    )
    if not whole:
        note += " Times are ratios: how many examples the target takes was not given."
    return table("What each number of devices takes", asked, filter(None, columns), note)  # type: ignore[arg-type]


def memory(record: DevicePlan) -> Table | None:
    """Peak memory of a device at every ZeRO stage; None where none is known."""
    known = [(row, row.memory) for row in record.rows if row.asked and row.memory is not None]
    if not known:
        return None
    space = f.memory_unit(held.replicated_bytes for _, held in known)
    stages = (("whole", space.name), ("ZeRO 1", "optimiser"), ("ZeRO 2", "and gradients"), ("ZeRO 3", "and weights"))
    columns: list[Column[tuple[DeviceRow, tuple[str, ...]]]] = [
        Column("devices", lambda item: f.count(item[0].devices), align="left"),
        Column("micro-", lambda item: f.count(item[0].micro_batch_size), "batch"),
    ]
    for stage, (heading, detail) in enumerate(stages):
        columns.append(Column(heading, lambda item, stage=stage: item[1][stage], detail))  # type: ignore[misc]
    note = "At its peak: with everything on every device, and with more and more of it divided among the devices."
    items = [(row, tuple(space.of(held.at(stage)) for stage in range(4))) for row, held in known]
    return table("Memory of each device", items, columns, note)


def laws(record: DevicePlan) -> Facts:
    """What the plan rests on."""
    network = record.network
    given = "given" if network.ranks is None else f"measured on {network.ranks} ranks, {network.backend}"
    links = f"{f.number((network.bytes_per_second.value or 0) / 1e9, 3)} GB/s"
    price, power = record.price_per_hour, record.power_watts
    return facts(
        ("network", f"{links} and {f.seconds(network.latency_seconds.value)} a step, {given}"),
        ("gradients", f"{f.memory(record.gradient_bytes)}, summed {ALGORITHMS[record.algorithm]}"),
        ("overlapped with the backward pass", f"{record.overlap:.0%} of it"),
        ("divided among devices", STAGES[record.zero_stage]),
        ("critical batch size", f"{f.sized(record.critical_batch_size)}, {record.updates_from}"),
        ("more devices pay up to", f.sized(record.worth_devices)),
        ("a doubling pays", f"from {record.least_gain:.0%} on, efficiency {record.least_efficiency:.0%} or more"),
        None if price is None else ("price", f"{f.number(price)} for a device and an hour"),
        None if power is None else ("power", f"{f.number(power)} W for a device, as given"),
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


def _ratio(interval: Interval) -> str:
    if interval.value is None:
        return f.UNKNOWN
    value = f.number(interval.value, 3)
    return (
        value
        if interval.low == interval.high
        else f"{value} ({f.number(interval.low, 3)}–{f.number(interval.high, 3)})"
    )


# Charts


def times(record: DevicePlan) -> Spec | None:
    """Time to the target against the number of devices, beside what it would be at full efficiency."""
    known = _known(record)
    if len(known) < 2:
        return None
    unit = f.time_unit(row.seconds.value for row in known)
    title = "time, ratio to the first" if record.relative else f"time to the target, {unit.name}"
    data = [
        _point(row, row.relative_time, 1.0, NAMES[BLUE])
        if record.relative
        else _point(row, row.seconds, unit.size, NAMES[BLUE])
        for row in known
    ]
    first = data[0]
    ideal = [
        {"devices": p["devices"], "value": first["value"] * first["devices"] / p["devices"], "kind": NAMES[TEAL]}
        for p in data
    ]
    # Full efficiency is followed no further than twice below what is reached: far off it says nothing.
    return _drawn(record, data, ideal, title, below=2.0)


def cost(record: DevicePlan) -> Spec | None:
    """Cost against the number of devices: money where there is a price, device hours, or their ratio to the first's."""
    known = _known(record)
    if len(known) < 2:
        return None
    if record.relative:
        title, found = "device time, ratio to the first", [_inverse(row.efficiency) for row in known]
    elif record.price_per_hour is None:
        title, found = "device hours", [row.device_hours for row in known]
    else:
        title, found = "cost", [row.cost or row.device_hours for row in known]
    data = [_point(row, interval, 1.0, NAMES[AMBER]) for row, interval in zip(known, found, strict=True)]
    return _drawn(record, data, [], title, below=1.2)


def _inverse(interval: Interval) -> Interval:
    low, value, high = (None if not end else 1 / end for end in (interval.high, interval.value, interval.low))
    return Interval(value, low, high, interval.level)


def _known(record: DevicePlan) -> list[DeviceRow]:
    return [row for row in record.rows if row.batch_size is not None and row.relative_time.value is not None]


def _point(row: DeviceRow, interval: Interval, size: float, kind: str) -> Point:
    value = (interval.value or 0.0) / size
    low, high = (value if end is None else end / size for end in (interval.low, interval.high))
    said = {"text": f.number(value, 3), "use": f.share(row.efficiency.value or 0.0, 1), "batch": row.batch_size}
    money = {} if row.cost is None else {"cost": f.number(row.cost.value, 3)}
    ends = {"devices": row.devices, "value": value, "low": low, "high": high, "kind": kind, "asked": row.asked}
    return ends | said | money


def _drawn(record: DevicePlan, data: list[Point], beside: list[Point], title: str, *, below: float) -> Spec:
    counts = [point["devices"] for point in data]
    ends = [point[key] for point in data for key in ("value", "low", "high")]
    worth = record.worth_devices
    marks = [] if worth.value is None else [Mark(worth.value, f"pays up to {f.sized(worth)}", RED, dashed=True)]
    domain = with_headroom([min(ends) / below, max(ends) * 1.2], len(marks), log=True)
    along, value = (
        size_axis("devices", domain_around(counts, room=1.3), "devices", counts),
        axis("value", title, domain, log=True),
    )
    tips = [tip("devices", format=","), tip("text", title.partition(",")[0]), tip("batch", "batch size", ",")]
    tips += [tip("use", "efficiency"), *([tip("cost")] if "cost" in data[0] else [])]
    plot = Plot(along, value, kinds(NAMES)).line(beside, strokeWidth=1.5, strokeDash=[5, 4])
    plot.dots(data, where="!datum.asked", size=30, opacity=0.7, style="", tips=tips)
    asked = [{key: point[key] for key in point if key not in ("low", "high")} for point in data if point["asked"]]
    return intervals(along, value, asked, tips, NAMES, law=data, marks=marks, size=90, under=plot).done()

"""The charts of a plan for several devices: time and cost against their number."""

from __future__ import annotations

from typing import Any

from batchscope.records import DevicePlan, DeviceRow, Interval
from batchscope.report import formatting as f
from batchscope.report.marks import (
    AMBER,
    BLUE,
    RED,
    TEAL,
    Spec,
    Upright,
    altair,
    colours,
    domain_around,
    done,
    size_axis,
    uprights,
    value_axis,
    with_headroom,
)

NAMES = {BLUE: "time", TEAL: "if all paid in full", AMBER: "cost", RED: "more devices pay up to here"}


def times(record: DevicePlan) -> Spec | None:
    """Time to the target against the number of devices, beside what it would be at full efficiency."""
    rows = _known(record)
    if len(rows) < 2:
        return None
    unit = f.time_unit(row.seconds.value for row in rows)
    size, title = (
        (1.0, "time, ratio to the first") if record.relative else (unit.size, f"time to the target, {unit.name}")
    )
    data = [_point(row, row.relative_time if record.relative else row.seconds, size) for row in rows]
    first = data[0]
    ideal = [
        {
            "devices": point["devices"],
            "value": first["value"] * first["devices"] / point["devices"],
            "kind": NAMES[TEAL],
        }
        for point in data
    ]
    ends = [point[key] for point in data for key in ("value", "low", "high")]
    # Full efficiency is followed no further than twice below what is reached: far off it says nothing.
    domain = [min(ends) / 2, max(ends) * 1.2]
    return _drawn(record, data, ideal, domain, title)


def cost(record: DevicePlan) -> Spec | None:
    """Cost against the number of devices: money where there is a price, device hours, or their ratio to the first's."""
    rows = _known(record)
    if len(rows) < 2:
        return None
    if record.relative:
        title, found = "device time, ratio to the first", [_inverse(row.efficiency) for row in rows]
    elif record.price_per_hour is None:
        title, found = "device hours", [row.device_hours for row in rows]
    else:
        title, found = "cost", [row.cost or row.device_hours for row in rows]
    data = [_point(row, interval, 1.0, NAMES[AMBER]) for row, interval in zip(rows, found, strict=True)]
    ends = [point[key] for point in data for key in ("value", "low", "high")]
    return _drawn(record, data, [], [min(ends) / 1.2, max(ends) * 1.2], title)


def _inverse(interval: Interval) -> Interval:
    low, value, high = (None if not end else 1 / end for end in (interval.high, interval.value, interval.low))
    return Interval(value, low, high, interval.level)


def _known(record: DevicePlan) -> list[DeviceRow]:
    return [row for row in record.rows if row.batch_size is not None and row.relative_time.value is not None]


def _point(row: DeviceRow, interval: Interval, size: float, kind: str = NAMES[BLUE]) -> dict[str, Any]:
    value = (interval.value or 0.0) / size
    low, high = (value if end is None else end / size for end in (interval.low, interval.high))
    money = {} if row.cost is None else {"cost": f.number(row.cost.value, 3)}
    return {
        "devices": row.devices,
        "value": value,
        "low": low,
        "high": high,
        "kind": kind,
        "asked": row.asked,
        "batch": row.batch_size,
        "text": f.number(value, 3),
        "use": f.share(row.efficiency.value or 0.0, 1),
        **money,
    }


def _drawn(
    record: DevicePlan,
    data: list[dict[str, Any]],
    beside: list[dict[str, Any]],
    domain: list[float],
    title: str,
) -> Spec:
    alt = altair()
    counts = [point["devices"] for point in data]
    across = domain_around(counts, room=1.3)
    along = size_axis(alt, across, "devices", counts)
    worth = record.worth_devices
    marks = [Upright(worth.value, f"pays up to {f.sized(worth)}", RED, dashed=True)] if worth.value is not None else []
    up = value_axis(alt, with_headroom(domain, len(marks), log=True), title, log=True)
    colour = colours(alt, NAMES)
    base = alt.Chart(alt.Data(values=data)).encode(x=alt.X("devices:Q", **along), color=colour)
    tips = [
        alt.Tooltip("devices:Q", format=","),
        alt.Tooltip("text:N", title=title.partition(",")[0]),
        alt.Tooltip("batch:Q", title="batch size", format=","),
        alt.Tooltip("use:N", title="efficiency"),
        *([alt.Tooltip("cost:N")] if "cost" in data[0] else []),
    ]
    line = alt.Chart(alt.Data(values=beside)).encode(x=alt.X("devices:Q", **along), color=colour)
    y = alt.Y("value:Q", **up)
    chart = alt.layer(
        *([line.mark_line(strokeWidth=1.5, strokeDash=[5, 4], clip=True).encode(y=y)] if beside else []),
        base.mark_area(opacity=0.16, clip=True).encode(y=alt.Y("low:Q", **up), y2="high:Q"),
        base.mark_line(strokeWidth=2, clip=True).encode(y=y),
        base.transform_filter("!datum.asked").mark_point(size=30, filled=True, opacity=0.7).encode(y=y, tooltip=tips),
        base.transform_filter("datum.asked")
        .mark_point(size=90, filled=True, opacity=1, style="halo")
        .encode(y=y, tooltip=tips),
        *uprights(alt, marks, along, colour, NAMES),
    )
    return done(chart)

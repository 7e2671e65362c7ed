"""The charts of a training run, but for its learning curve."""

from __future__ import annotations

from typing import Any

from batchscope.errors import require
from batchscope.records import TrainResult
from batchscope.report import curves, training_sheets
from batchscope.report import formatting as f


def cost_split(run: TrainResult) -> dict[str, Any] | None:
    """A bar per part of the time that a run took."""
    alt: Any = require("altair", "draw charts", "altair")
    unit = f.time_unit([run.total_seconds])
    parts = training_sheets.cost_parts(run)
    data: list[dict[str, Any]] = [
        {
            "part": name,
            "time": spent / unit.size,
            "text": f"{unit.of(spent)} {unit.name}, {f.share(spent, run.total_seconds)}",
        }
        for name, spent in parts
        if f.known(spent)
    ]
    if not any(bar["time"] > 0 for bar in data):
        return None
    longest = max(bar["time"] for bar in data)
    base = alt.Chart(alt.Data(values=data)).encode(
        y=alt.Y("part:N", sort=None, title=None, axis=alt.Axis(labels=False)),
        x=alt.X(
            "time:Q",
            title=f"time, {unit.name}",
            scale=alt.Scale(domain=[0, longest * 1.05], nice=False),
            axis=alt.Axis(**curves.ticks([0, longest], False)),
        ),
    )
    start = {"align": "left", "baseline": "bottom"}
    chart = alt.layer(
        base.mark_bar(height=12, cornerRadiusEnd=3, yOffset=9),
        base.transform_calculate(label="datum.part + ':  ' + datum.text")
        .mark_text(**start, dy=0, dx=0)
        .encode(x=alt.value(0), text="label:N"),
    )
    spec: dict[str, Any] = chart.properties(height=46 * len(data)).to_dict()
    return spec

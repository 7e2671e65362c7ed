"""The charts of a comparison: scores, time against score, quantities against batch size, the learning-rate search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from batchscope.records import Comparison, ComparisonRow, Interval
from batchscope.report import formatting as f
from batchscope.report.charts.axes import Point, Spec, axis, size_axis
from batchscope.report.charts.learning_curves import WIDE
from batchscope.report.charts.plot import Plot, tip

SCORE_TIPS = [tip("row"), tip("score", "mean", ".4~g"), tip("low", format=".4~g"), tip("high", format=".4~g")]


def row_label(row: ComparisonRow) -> str:
    """A row by what defines it: batch size × updates."""
    return f"{row.batch_size:,} × {row.iterations:,}"


def row_labels(record: Comparison) -> tuple[str, ...]:
    """A different label for every row, in their order."""
    labels = [row_label(row) for row in record.rows]
    return tuple(
        label if labels.count(label) == 1 else f"{label} ({labels[: i + 1].count(label)})"
        for i, label in enumerate(labels)
    )


def final_scores(record: Comparison) -> Spec | None:
    """A line per row: every seed faintly, the mean, its interval."""
    labels = row_labels(record)
    means: list[Point] = []
    seeds: list[Point] = []
    for label, row in zip(labels, record.rows, strict=True):
        finals = [run.final_score for run in record.runs_of(row) if run.ended_in_order]
        if len(finals) > 1:  # a single one is its own mean
            seeds += [{"row": label, "score": score} for score in finals if f.known(score)]
        if f.known(row.score.value):
            text = f.fixed(row.score.value, f.places_for([row.score]))
            means.append({"row": label, "score": row.score.value, "text": text, **_ends(row.score)})
    if not means and not seeds:
        return None
    absent = [{"row": label, "text": "no run finished"} for label in labels if label not in {m["row"] for m in means}]
    along = {
        "field": "row",
        "type": "nominal",
        "sort": list(labels),
        "title": None,
        "scale": {"domain": list(labels)},
    }
    value = axis("score", f"{record.workload.score[:40]} at the end", _around(means, seeds), log=False)
    plot = Plot(along, value, _row_colour(record), height=_score_height(record), flip=True)
    plot.dots(seeds, where="", size=42, opacity=0.38, yOffset=9, style="")
    plot.spans(means, strokeWidth=3, opacity=0.85).dots(means, where="", size=120, tips=SCORE_TIPS)
    plot.text(means, dy=-14, fontWeight=600)
    return plot.text(absent, value=6, align="left", fontStyle="italic", opacity=0.75).done()


def trade_off(record: Comparison) -> Spec | None:
    """What a row reaches against what it takes: up and to the left is better."""
    unit = f.time_unit(row.step_seconds for row in record.rows)
    data: list[Point] = []
    for label, row in zip(row_labels(record), record.rows, strict=True):
        if row.step_seconds and f.known(row.score.value):
            spread = {"time": row.step_seconds, "fastest": row.step_seconds_low, "slowest": row.step_seconds_high}
            times = {name: None if t is None else t / unit.size for name, t in spread.items()}
            data.append({"row": label, "score": row.score.value, **_ends(row.score), **times})
    if len(data) < 2:
        return None
    found = [point[key] for point in data for key in ("time", "fastest", "slowest") if point[key]]
    log = max(found) / min(found) >= WIDE
    domain = [min(found) * 0.8, max(found) * 1.25] if log else [0, max(found) * 1.15]
    middle = math.sqrt(domain[0] * domain[1]) if log else domain[1] / 2
    along = axis("time", f"time of a run, {unit.name}", domain, log=log)
    along["axis"]["grid"] = False
    value = axis("score", f"{record.workload.score[:40]} at the end", _around(data), log=False)
    # A name stands on the side of its point where there is room, neighbours in turn above and below it.
    for number, point in enumerate(sorted(data, key=lambda point: point["time"])):
        point["above"] = number % 2 == 1
    plot = Plot(along, value, _row_colour(record), height=_score_height(record))
    plot.spans(data)
    plot.add("rule", data, along="fastest", along_to="slowest", strokeWidth=2.5, strokeCap="round", opacity=0.8)
    plot.dots(data, where="", size=110, tips=[tip("row"), tip("score", format=".4~g")])
    for side, align, dx in (("<", "left", 9), (">=", "right", -9)):
        for above in (True, False):
            where = f"datum.time {side} {middle} && datum.above == {str(above).lower()}"
            plot.text(data, "row", where=where, align=align, dx=dx, dy=-9 if above else 12, fontWeight=600)
    return plot.done()


def time(record: Comparison) -> Spec | None:
    """Time of a run against batch size."""
    unit = f.time_unit(row.step_seconds for row in record.rows)
    return _by_batch_size(
        record, lambda row: (row.step_seconds, row.step_seconds_low, row.step_seconds_high), unit, f"time, {unit.name}"
    )


def throughput(record: Comparison) -> Spec | None:
    """Examples per second against batch size."""
    unit = f.Unit("examples/s", 1.0)
    return _by_batch_size(record, lambda row: (row.examples_per_second, None, None), unit, unit.name)


def memory(record: Comparison) -> Spec | None:
    """Peak memory against batch size."""
    unit = f.memory_unit(row.peak_memory_bytes for row in record.rows)
    return _by_batch_size(record, lambda row: (row.peak_memory_bytes, None, None), unit, f"memory, {unit.name}")


def _by_batch_size(
    record: Comparison, pick: Callable[[ComparisonRow], tuple[Any, Any, Any]], unit: f.Unit, title: str
) -> Spec | None:
    """A quantity against batch size; ``pick`` gives a row's value, low and high."""
    data: list[Point] = []
    for label, row in zip(row_labels(record), record.rows, strict=True):
        value, low, high = (None if not f.known(end) else end / unit.size for end in pick(row))
        if value is not None:
            point = {"row": label, "batch": row.batch_size, "value": value, "low": low, "high": high}
            data.append(point | {"text": f.number(value, 3)})
    if not data:
        return None
    sizes = sorted({point["batch"] for point in data})
    values = [point[key] for point in data for key in ("value", "low", "high") if point[key] is not None]
    log = min(values) > 0 and max(values) / min(values) > 8
    span = [min(values) * 0.7, max(values) * 1.6] if log else [0, max(values) * 1.2 or 1]
    along = size_axis("batch", [sizes[0] * 0.9, sizes[-1] * 1.1], "batch size", sizes)
    along["scale"]["padding"] = 24
    plot = Plot(along, axis("value", title, span, log=log), _row_colour(record), height=220)
    plot.line(data, colour=False, strokeWidth=1.5).spans(data, strokeWidth=3, opacity=0.85)
    plot.dots(data, size=100, tips=[tip("row"), tip("text", title)])
    return plot.text(data, dy=-14, fontWeight=600, fontSize=11).done()


def rate_search(record: Comparison) -> Spec | None:
    """A rate curve per batch size; what diverged, or lies far above, is marked along the upper edge."""
    rows = list(zip(row_labels(record), record.rows, strict=True))
    searches = [
        (next((label for label, row in rows if record.search_of(row) is search), f.count(search.batch_size)), search)
        for search in record.searches
    ]
    trials = [(label, trial) for label, search in searches for trial in search.curve or search.trials]
    finite = [trial.loss for _, trial in trials if f.known(trial.loss) and trial.outcome != "diverged"]
    if not finite:
        return None
    least, log = min(finite), min(finite) > 0
    cap = 30 * least if log else max(finite)
    top = max(loss for loss in finite if loss <= cap)
    data: list[Point] = []
    for label, trial in trials:
        off = trial.outcome == "diverged" or not f.known(trial.loss) or trial.loss > cap
        point = {"row": label, "rate": trial.learning_rate, "loss": None if off else trial.loss, "off": off}
        data.append(point | {"text": f.number(trial.loss), "outcome": trial.outcome})
    # The chosen rate may lie between those tried, at the bottom of a parabola: a wedge on the axis shows it.
    chosen: list[Point] = [{"row": label, "rate": search.learning_rate} for label, search in searches]
    rates = [point["rate"] for point in (*data, *chosen)]
    room = max(1.15, (top / least) ** 0.12) if log else 1.0  # for the wedges below and the crosses above
    pad = 0.1 * (top - least) or 0.1
    span = [least / room, top * room] if log else [least - pad, top + pad]
    along = axis("rate", "learning rate", [min(rates) / 1.3, max(rates) * 1.3], log=True)
    along["axis"]["grid"] = False
    legend = {"title": "batch × updates", "orient": "top", "columns": 4, "symbolType": "circle", "symbolOpacity": 1}
    plot = Plot(along, axis("loss", "validation loss at the end", span, log=log), _row_colour(record, legend))
    tips = [tip("row"), tip("rate", "learning rate", ".3~g"), tip("text", "loss"), tip("outcome")]
    plot.line(data, where="!datum.off", strokeWidth=2, tips=tips)
    plot.dots(data, where="!datum.off", size=50, style="", tips=tips)
    plot.dots(data, value=6, where="datum.off", shape="cross", angle=45, size=70, style="", tips=tips)
    return plot.dots(chosen, value=293, where="", shape="triangle-up", size=130).done()


def _row_colour(record: Comparison, legend: Spec | None = None) -> Spec:
    return {"field": "row", "type": "nominal", "scale": {"domain": list(row_labels(record))}, "legend": legend}


def _score_height(record: Comparison) -> int:
    """Room for a line per row; the charts that stand side by side are of one height."""
    rows = len(record.rows)
    return max((54 if rows <= 6 else 40) * rows + 10, 200)


def _around(*data: list[Point]) -> list[float]:
    """A domain with room for every score and every known end of an interval."""
    known = [point.get(key) for points in data for point in points for key in ("score", "low", "high")]
    values = [value for value in known if f.known(value)]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.02 * abs(low) or 0.01
    return [low - pad, high + pad]


def _ends(interval: Interval) -> Point:
    """Both ends, or neither where one of them is unknown or infinite."""
    known = f.known(interval.low) and f.known(interval.high)
    return {"low": interval.low if known else None, "high": interval.high if known else None}

"""The charts of a comparison, but for its learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from batchscope.errors import require
from batchscope.records import Comparison, Interval
from batchscope.report import curves
from batchscope.report import formatting as f
from batchscope.report.sheets import row_labels

Spec = dict[str, Any]


def final_scores(record: Comparison) -> Spec | None:
    """A line per row: every seed faintly, the mean, its interval."""
    alt = _altair()
    labels = row_labels(record)
    means: list[dict[str, Any]] = []
    seeds: list[dict[str, Any]] = []
    for label, row in zip(labels, record.rows, strict=True):
        finals = [run.final_score for run in record.runs_of(row) if run.ended_in_order]
        if len(finals) > 1:  # a single one is its own mean
            seeds += [{"row": label, "score": score} for score in finals if f.known(score)]
        if f.known(row.score.value):
            low, high = _ends(row.score)
            shown = f.fixed(row.score.value, f.places_for([row.score]))
            means.append({"row": label, "score": row.score.value, "low": low, "high": high, "text": shown})
    if not means and not seeds:
        return None
    absent = [{"row": label, "text": "no run finished"} for label in labels if label not in {m["row"] for m in means}]
    y = alt.Y("row:N", sort=list(labels), title=None, scale=alt.Scale(domain=list(labels)))
    along = {
        "title": f"{record.workload.score[:40]} at the end",
        "scale": alt.Scale(domain=_around(means, seeds), nice=False),
        "axis": alt.Axis(**curves.ticks([0, 1], False)),
    }
    x = alt.X("score:Q", **along)
    colour = alt.Color("row:N", scale=alt.Scale(domain=list(labels)), legend=None)
    tips = [
        alt.Tooltip("row:N"),
        alt.Tooltip("score:Q", title="mean", format=".4~g"),
        alt.Tooltip("low:Q", format=".4~g"),
        alt.Tooltip("high:Q", format=".4~g"),
    ]
    mean = alt.Chart(alt.Data(values=means)).encode(y=y, color=colour)
    every = alt.Chart(alt.Data(values=seeds)).encode(y=y, x=x, color=colour)
    known = mean.transform_filter("datum.low !== null && datum.high !== null")
    chart = alt.layer(
        every.mark_point(size=42, filled=True, opacity=0.38, yOffset=9),
        known.mark_rule(strokeWidth=3, strokeCap="round", opacity=0.85).encode(x=alt.X("low:Q", **along), x2="high:Q"),
        mean.mark_point(size=120, filled=True, opacity=1, style="halo").encode(x=x, tooltip=tips),
        alt.Chart(alt.Data(values=means)).mark_text(dy=-14, fontWeight=600).encode(x=x, y=y, text="text:N"),
        alt.Chart(alt.Data(values=absent))
        .mark_text(align="left", fontStyle="italic", opacity=0.75)
        .encode(x=alt.value(6), y=y, text="text:N"),
    )
    return _done(chart, height=_score_height(record))


def trade_off(record: Comparison) -> Spec | None:
    """What a row reaches against what it takes: up and to the left is better."""
    alt = _altair()
    unit = f.time_unit(row.step_seconds for row in record.rows)
    data: list[dict[str, Any]] = []
    for label, row in zip(row_labels(record), record.rows, strict=True):
        if row.step_seconds and f.known(row.score.value):
            low, high = _ends(row.score)
            spread = (row.step_seconds, row.step_seconds_low, row.step_seconds_high)
            time, fastest, slowest = (None if t is None else t / unit.size for t in spread)
            data.append(
                {"row": label, "score": row.score.value, "low": low, "high": high, "time": time}
                | {"fastest": fastest, "slowest": slowest}
            )
    if len(data) < 2:
        return None
    times = [point[key] for point in data for key in ("time", "fastest", "slowest") if point[key]]
    log = max(times) / min(times) >= curves.WIDE
    across = [min(times) * 0.8, max(times) * 1.25] if log else [0, max(times) * 1.15]
    middle = math.sqrt(across[0] * across[1]) if log else across[1] / 2
    along = {
        "title": f"time of a run, {unit.name}{curves.LOGARITHMIC if log else ''}",
        "scale": alt.Scale(type="log" if log else "linear", domain=across, nice=False),
        "axis": alt.Axis(grid=False, **curves.ticks(across, log)),
    }
    x = alt.X("time:Q", **along)
    up = {
        "title": f"{record.workload.score[:40]} at the end",
        "scale": alt.Scale(domain=_around(data), nice=False),
        "axis": alt.Axis(**curves.ticks([0, 1], False)),
    }
    y = alt.Y("score:Q", **up)
    base = alt.Chart(alt.Data(values=data)).encode(color=_row_colour(alt, record))
    # A name stands on the side of its point where there is room, neighbours in turn above and below it.
    for number, point in enumerate(sorted(data, key=lambda point: point["time"])):
        point["above"] = number % 2 == 1
    names = alt.Chart(alt.Data(values=data)).encode(x=x, y=y, text="row:N")

    def named(**look: Any) -> list[Any]:
        return [
            names.transform_filter(f"datum.time {side} {middle} && datum.above == {str(above).lower()}").mark_text(
                align=align, dx=dx, dy=-9 if above else 12, fontWeight=600, **look
            )
            for side, align, dx in (("<", "left", 9), (">=", "right", -9))
            for above in (True, False)
        ]

    chart = alt.layer(
        base.transform_filter("datum.low !== null && datum.high !== null")
        .mark_rule(strokeWidth=2.5, strokeCap="round", opacity=0.8)
        .encode(x=x, y=alt.Y("low:Q", **up), y2="high:Q"),
        base.mark_rule(strokeWidth=2.5, strokeCap="round", opacity=0.8).encode(
            x=alt.X("fastest:Q", **along), x2="slowest:Q", y=y
        ),
        base.mark_point(size=110, filled=True, opacity=1, style="halo").encode(x=x, y=y, tooltip=["row:N", "score:Q"]),
        *named(style="under"),
        *named(),
    )
    return _done(chart, height=_score_height(record))


def _by_batch_size(
    record: Comparison, pick: Callable[[Any], tuple[Any, Any, Any]], unit: f.Unit, title: str
) -> Spec | None:
    """A quantity against batch size; ``pick`` gives a row's value, low and high."""
    alt = _altair()
    data: list[dict[str, Any]] = []
    for label, row in zip(row_labels(record), record.rows, strict=True):
        value, low, high = (None if not f.known(v) else v / unit.size for v in pick(row))
        if value is not None:
            text = f.number(value, 3)
            data.append({"row": label, "batch": row.batch_size, "value": value, "low": low, "high": high, "text": text})
    if not data:
        return None
    sizes = sorted({point["batch"] for point in data})
    values = [point[key] for point in data for key in ("value", "low", "high") if point[key] is not None]
    log = min(values) > 0 and max(values) / min(values) > 8
    span = [min(values) * 0.7, max(values) * 1.6] if log else [0, max(values) * 1.2 or 1]
    x = alt.X(
        "batch:Q",
        title="batch size",
        scale=alt.Scale(type="log", base=2, padding=24, nice=False, domain=[sizes[0] * 0.9, sizes[-1] * 1.1]),
        axis=alt.Axis(values=sizes, format="d", grid=False, labelOverlap="greedy"),
    )
    up = {
        "title": f"{title}{curves.LOGARITHMIC if log else ''}",
        "scale": alt.Scale(type="log" if log else "linear", domain=span, nice=False),
        "axis": alt.Axis(**curves.ticks(span, log)),
    }
    y = alt.Y("value:Q", **up)
    base = alt.Chart(alt.Data(values=data)).encode(x=x)
    colour = _row_colour(alt, record)
    chart = alt.layer(
        base.mark_line(strokeWidth=1.5).encode(y=y),
        base.transform_filter("datum.low !== null && datum.high !== null")
        .mark_rule(strokeWidth=3, strokeCap="round", opacity=0.85)
        .encode(y=alt.Y("low:Q", **up), y2="high:Q", color=colour),
        base.mark_point(size=100, filled=True, opacity=1, style="halo").encode(
            y=y, color=colour, tooltip=["row:N", alt.Tooltip("text:N", title=title)]
        ),
        base.mark_text(dy=-14, fontWeight=600, fontSize=11, style="under").encode(y=y, text="text:N"),
        base.mark_text(dy=-14, fontWeight=600, fontSize=11).encode(y=y, text="text:N"),
    )
    return _done(chart, height=220)


def time(record: Comparison) -> Spec | None:
    """Time of a run against batch size."""
    unit = f.time_unit(row.step_seconds for row in record.rows)
    return _by_batch_size(
        record, lambda row: (row.step_seconds, row.step_seconds_low, row.step_seconds_high), unit, f"time, {unit.name}"
    )


def throughput(record: Comparison) -> Spec | None:
    """Examples per second against batch size."""
    unit = f.Unit("examples/s", 1.0)
    return _by_batch_size(record, lambda row: (row.examples_per_second, None, None), unit, "examples/s")


def memory(record: Comparison) -> Spec | None:
    """Peak memory against batch size."""
    unit = f.memory_unit(row.peak_memory_bytes for row in record.rows)
    return _by_batch_size(record, lambda row: (row.peak_memory_bytes, None, None), unit, f"memory, {unit.name}")


def rate_search(record: Comparison, legend: bool = True) -> Spec | None:
    """A valley per batch size; what diverged, or lies far above, is marked along the upper edge."""
    alt = _altair()
    rows = list(zip(row_labels(record), record.rows, strict=True))
    curves_of = [
        (next((label for label, row in rows if record.search_of(row) is search), f.count(search.batch_size)), search)
        for search in record.searches
    ]
    finite = [t.loss for _, s in curves_of for t in s.curve or s.trials if f.known(t.loss) and t.outcome != "diverged"]
    if not finite:
        return None
    log = min(finite) > 0
    cap = 30 * min(finite) if log else max(finite)
    top = max(loss for loss in finite if loss <= cap)
    data: list[dict[str, Any]] = []
    for label, search in curves_of:
        for trial in search.curve or search.trials:
            off = trial.outcome == "diverged" or not f.known(trial.loss) or trial.loss > cap
            data.append(
                {
                    "row": label,
                    "rate": trial.learning_rate,
                    "loss": None if off else trial.loss,
                    "off": off,
                    "text": f.number(trial.loss),
                    "outcome": trial.outcome,
                }
            )
    rates = [trial.learning_rate for _, search in curves_of for trial in search.curve or search.trials]
    rates += [search.learning_rate for search in record.searches]
    across = [min(rates) / 1.3, max(rates) * 1.3]
    ratio = top / min(finite) if log else 1.0
    room = max(1.15, ratio**0.12)  # for the wedges below and the crosses above
    pad = 0.1 * (top - min(finite)) or 0.1
    span = [min(finite) / room, top * room] if log else [min(finite) - pad, top + pad]
    x = alt.X(
        "rate:Q",
        title=f"learning rate{curves.LOGARITHMIC}",
        scale=alt.Scale(type="log", nice=False, domain=across),
        axis=alt.Axis(grid=False, **curves.ticks(across, True)),
    )
    y = alt.Y(
        "loss:Q",
        title=f"validation loss at the end{curves.LOGARITHMIC if log else ''}",
        scale=alt.Scale(type="log" if log else "linear", domain=span, nice=False),
        axis=alt.Axis(**curves.ticks(span, log)),
    )
    tips = [
        alt.Tooltip("row:N"),
        alt.Tooltip("rate:Q", title="learning rate", format=".3~g"),
        alt.Tooltip("text:N", title="loss"),
        alt.Tooltip("outcome:N"),
    ]
    names = alt.Legend(title="batch × updates", orient="top", columns=4, symbolType="circle", symbolOpacity=1)
    colour = _row_colour(alt, record, names if legend else None)
    base = alt.Chart(alt.Data(values=data)).encode(x=x, color=colour, tooltip=tips)
    inside = base.transform_filter("!datum.off")
    # The chosen rate may lie between those tried, at the bottom of a parabola: a wedge on the axis shows it.
    chosen = [{"row": label, "rate": search.learning_rate} for label, search in curves_of]
    wedges = alt.Chart(alt.Data(values=chosen)).encode(x=x, color=colour)
    chart = alt.layer(
        inside.mark_line(strokeWidth=2).encode(y=y),
        inside.mark_point(size=50, filled=True, opacity=1).encode(y=y),
        base.transform_filter("datum.off")
        .mark_point(shape="cross", angle=45, size=70, filled=True, opacity=1)
        .encode(y=alt.value(6)),
        wedges.mark_point(shape="triangle-up", size=130, filled=True, opacity=1, style="halo").encode(y=alt.value(293)),
    )
    return _done(chart, height=300)


def _altair() -> Any:
    return require("altair", "draw charts", "altair")


def _done(chart: Any, height: int) -> Spec:
    spec: Spec = chart.properties(height=height).to_dict()
    return spec


def _row_colour(alt: Any, record: Comparison, legend: Any = None) -> Any:
    return alt.Color("row:N", scale=alt.Scale(domain=list(row_labels(record))), legend=legend)


def _score_height(record: Comparison) -> int:
    """Room for a line per row; the charts that stand side by side are of one height."""
    rows = len(record.rows)
    return max((54 if rows <= 6 else 40) * rows + 10, 200)


def _around(*data: list[dict[str, Any]]) -> list[float]:
    """A domain with room for every score and every known end of an interval."""
    known = [point.get(key) for points in data for point in points for key in ("score", "low", "high")]
    values = [value for value in known if f.known(value)]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.02 * abs(low) or 0.01
    return [low - pad, high + pad]


def _ends(interval: Interval) -> tuple[float | None, float | None]:
    """Both ends, or neither where one of them is unknown or infinite."""
    if f.known(interval.low) and f.known(interval.high):
        return interval.low, interval.high
    return None, None

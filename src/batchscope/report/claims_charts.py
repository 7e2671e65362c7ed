"""The chart of an experiment: what it saw, with intervals."""

from __future__ import annotations

from batchscope.records import Picture
from batchscope.report import formatting as f
from batchscope.report.marks import AMBER, BLUE, RED, TEAL, Point, Spec, altair, colours, domain_around, done, size_axis

_ORDER = (BLUE, AMBER, TEAL, RED)


def picture(drawn: Picture) -> Spec | None:
    """Points with their intervals, joined where they belong together."""
    alt = altair()
    data: list[Point] = []
    for series in drawn.series[: len(_ORDER)]:
        for where, value in zip(series.across, series.values, strict=True):
            middle = value.value
            if middle is None or not f.known(middle) or (drawn.log_upward and middle <= 0):
                continue
            least = 1e-3 * middle if drawn.log_upward else None
            bottom = value.low if value.low is not None and f.known(value.low) else middle
            high = value.high if value.high is not None and f.known(value.high) else middle
            data.append(
                {
                    "across": where,
                    "value": middle,
                    "low": bottom if least is None else max(bottom, least),
                    "high": high,
                    "kind": series.name,
                    "joined": series.line,
                }
            )
    if not data:
        return None
    names = {place: series.name for place, series in zip(_ORDER, drawn.series, strict=False)}
    colour = colours(alt, names, tuple(names) if len(names) > 1 else ())
    places = sorted({point["across"] for point in data})
    if drawn.log_across:
        horizontal = size_axis(alt, domain_around(places, 1.2), drawn.across, places if len(places) < 9 else ())
    else:
        horizontal = {"title": drawn.across, "axis": alt.Axis(grid=False), "scale": alt.Scale(nice=False, zero=False)}
    across = alt.X("across:Q", **horizontal)
    scale = alt.Scale(type="log") if drawn.log_upward else alt.Scale(zero=False)
    up = alt.Y("value:Q", title=drawn.upward, scale=scale)
    tips = [
        alt.Tooltip("kind:N", title="what"),
        alt.Tooltip("across:Q", title=drawn.across, format=",.4~g"),
        alt.Tooltip("value:Q", title=drawn.upward, format=".4~g"),
        alt.Tooltip("low:Q", title="from", format=".4~g"),
        alt.Tooltip("high:Q", title="to", format=".4~g"),
    ]
    base = alt.Chart(alt.Data(values=data)).encode(x=across, color=colour)
    lines = base.transform_filter("datum.joined").mark_line(strokeWidth=2).encode(y=up)
    low = alt.Y("low:Q", title=drawn.upward, scale=scale)
    spans = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y=low, y2="high:Q")
    points = base.mark_point(size=45, filled=True, opacity=1).encode(y=up, tooltip=tips)
    return done(alt.layer(lines, spans, points))

"""What the charts against batch size share: logarithmic axes, intervals cut to the plot, labelled uprights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from batchscope.errors import require
from batchscope.records import Interval
from batchscope.report import curves
from batchscope.report import formatting as f

Spec = dict[str, Any]
Point = dict[str, Any]

COLOURS = 4
"""How many colours these charts draw from."""
BLUE, TEAL, AMBER, RED = range(COLOURS)
"""Places in the range of colours: time, gradients, memory and data, the answer."""

HEIGHT = 300
LABEL_HEIGHT = 17
"""Pixels that a line of lettering takes."""

# What is below one, a whole number, and what would take too much room.
COUNT = "datum.value < 1 ? format(datum.value, '.2~r') : format(datum.value, datum.value < 100000 ? ',d' : '.3~s')"
_BYTES = [(2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"), (2.0**40, "TiB")]


@dataclass(frozen=True)
class Upright:
    """A labelled place on the horizontal axis.

    Attributes:
        where: The place; None draws nothing.
        text: Its label.
        colour: Place in the range of colours; None for that of plain lines.
        interval: Shaded around it; None for none.
        dashed: Whether the line is dashed.
        left: Whether its label stands to the left of it; None: on the side where there is more room.
    """

    where: float | None
    text: str
    colour: int | None = None
    interval: Interval | None = None
    dashed: bool = False
    left: bool | None = None


def altair() -> Any:
    """The library that writes Vega-Lite."""
    return require("altair", "draw charts", "altair")


def done(chart: Any, height: int = HEIGHT) -> Spec:
    """The chart as a specification of a height."""
    spec: Spec = chart.properties(height=height).to_dict(validate=False)
    return spec


def colours(alt: Any, names: dict[int, str], legend: Sequence[int] = (), *, above: int = 0) -> Any:
    """A colour channel that gives each name the place in the range that it has on every chart of the page.

    Args:
        alt: The library.
        names: What stands for each place used.
        legend: Places that the chart names above itself.
        above: Room that is left between them and the chart, in pixels, for lettering there.

    Returns:
        An encoding; all layers of a chart must use the same one, since they share a scale.
    """
    domain = [names.get(i, f"({i})") for i in range(COLOURS)]
    shown = None
    if legend:
        values = [names[i] for i in legend]
        look = {"symbolType": "circle", "symbolSize": 90, "symbolStrokeWidth": 0, "symbolOpacity": 1}
        two = {"columns": 2} if sum(map(len, values)) > 34 else {}  # a phone has no room for more side by side
        room = {"offset": above} if above else {}
        shown = alt.Legend(title=None, orient="top", values=values, **look, **two, **room)
    return alt.Color("kind:N", scale=alt.Scale(domain=domain), legend=shown)


def domain_around(values: Iterable[float | None], room: float = 1.25) -> list[float]:
    """A logarithmic domain with some room around all that is finite and positive.

    Examples:
        >>> domain_around([1.0, 100.0, None, math.inf], room=2.0)
        [0.5, 200.0]
    """
    known = [value for value in values if f.known(value) and value > 0]
    return [min(known) / room, max(known) * room] if known else [1.0, 10.0]


def with_headroom(domain: list[float], lines: int, height: int = HEIGHT, *, log: bool) -> list[float]:
    """The domain raised at its upper end by the room for so many lines of lettering.

    Examples:
        >>> with_headroom([0.0, 10.0], 2, height=68, log=False)
        [0.0, 20.0]
    """
    low, high = domain
    share = 1 / (1 - min(0.6, lines * LABEL_HEIGHT / height))
    return [low, low * (high / low) ** share] if log else [low, low + (high - low) * share]


def size_axis(alt: Any, domain: list[float], title: str, sizes: Sequence[float] = ()) -> dict[str, Any]:
    """Properties of a horizontal, logarithmic axis of batch sizes.

    Args:
        alt: The library.
        domain: Both ends.
        title: Its title.
        sizes: Places to mark; where there are none, powers of two.

    Returns:
        Arguments for ``altair.X``.
    """
    places = sorted(sizes) or powers_of_two(domain)
    axis = alt.Axis(values=places, grid=False, labelExpr=COUNT, labelOverlap="greedy", labelSeparation=4)
    return {"title": title, "scale": alt.Scale(type="log", domain=domain, nice=False), "axis": axis}


def value_axis(alt: Any, domain: list[float], title: str, *, log: bool) -> dict[str, Any]:
    """Properties of a vertical axis."""
    ticks = curves.ticks(domain, log)
    if log:  # from thousandths to millions, each label has the form that suits itself
        ticks["labelExpr"] = "datum.value < 10000 ? format(datum.value, ',.6~g') : format(datum.value, '~s')"
    return {
        "title": title + (curves.LOGARITHMIC if log else ""),
        "scale": alt.Scale(type="log" if log else "linear", domain=domain, nice=False),
        "axis": alt.Axis(**ticks),
    }


def memory_axis(alt: Any, domain: list[float], title: str) -> dict[str, Any]:
    """Properties of a vertical, logarithmic axis of bytes, marked at powers of two with their units."""
    label = "format(datum.value, '~r') + ' B'"
    for size, name in _BYTES:
        label = f"datum.value >= {size:.0f} ? format(datum.value / {size:.0f}, '~r') + ' {name}' : {label}"
    axis = alt.Axis(values=powers_of_two(domain, 6), labelExpr=label, labelOverlap=True)
    return {
        "title": title + curves.LOGARITHMIC,
        "scale": alt.Scale(type="log", domain=domain, nice=False),
        "axis": axis,
    }


def cut(interval: Interval, domain: list[float]) -> Point | None:
    """An interval as it can be drawn within a domain.

    Args:
        interval: Any, resolved or with one-sided bounds.
        domain: Both ends of the axis.

    Returns:
        ``value`` (None where unresolved or outside), ``low`` and ``high`` inside the domain, ``below`` and ``above``:
        whether it goes on past that end. None where nothing is known of it.

    Examples:
        >>> cut(Interval(5.0, 2.0, math.inf), [1.0, 10.0])
        {'value': 5.0, 'low': 2.0, 'high': 10.0, 'below': False, 'above': True}
        >>> cut(Interval.unresolved(), [1.0, 10.0]) is None
        True
    """
    first, last = domain
    value, low, high = interval.value, interval.low, interval.high
    if value is not None and low is None and high is None:
        low = high = value
    ends = [end for end in (value, low, high) if end is not None and not math.isnan(end)]
    # From minus infinity, or zero on an axis without one, to infinity says nothing either.
    if not any(math.isfinite(end) and (end > first or value is not None) for end in ends):
        return None
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    return {
        "value": value if value is not None and first <= value <= last else None,
        "low": min(max(low, first), last),
        "high": max(min(high, last), first),
        "below": low < first,
        "above": high > last,
    }


def uprights(
    alt: Any,
    marks: Sequence[Upright],
    along: dict[str, Any],
    colour: Any = None,
    names: Mapping[int, str] = MappingProxyType({}),
) -> list[Any]:
    """Layers for labelled vertical lines, each label on a line of its own at the top, so that none meet.

    Args:
        alt: The library.
        marks: The lines, from the uppermost label down; those without a place are left out.
        along: Properties of the horizontal axis, which is logarithmic.
        colour: The chart's colour channel; None where no line has a colour.
        names: What stands for each colour.

    Returns:
        Bands first, then lines, then labels; one that lies outside the axis is named at its edge.
    """
    first, last = along["scale"].domain
    bands, lines, labels = [], [], []
    shown = [(mark, mark.where) for mark in marks if f.known(mark.where) and mark.where > 0]
    for i, (mark, where) in enumerate(shown):
        inside = first <= where <= last
        place = min(max(where, first), last)
        text = mark.text if inside else f"← {mark.text}" if where < first else f"{mark.text} →"
        datum: Point = {"x": place, "text": text}
        if mark.colour is not None:
            datum["kind"] = names[mark.colour]
        if mark.interval is not None and (ends := cut(mark.interval, [first, last])):
            datum |= {"low": ends["low"], "high": ends["high"]}
        data = alt.Chart(alt.Data(values=[datum]))
        if mark.colour is not None:
            data = data.encode(color=colour)
        if datum.get("high", 0) > datum.get("low", 0):
            bands.append(data.mark_rect(opacity=0.11).encode(x=alt.X("low:Q", **along), x2="high:Q"))
        if inside:
            dash = {"strokeDash": [5, 4]} if mark.dashed else {}
            lines.append(data.mark_rule(strokeWidth=1.5, **dash).encode(x=alt.X("x:Q", **along)))
        left = math.log(place / first) >= 0.5 * math.log(last / first) if mark.left is None else mark.left
        lettering = {"align": "right" if left else "left", "dx": -6 if left else 6, "baseline": "middle"}
        for style in ({"style": "under"}, {}):
            labels.append(
                alt.Chart(alt.Data(values=[datum]))
                .mark_text(**lettering, **style)
                .encode(x=alt.X("x:Q", **along), y=alt.value(6 + LABEL_HEIGHT * i), text="text:N")
            )
    return [*bands, *lines, *labels]


def geometric(domain: list[float], count: int = 60) -> list[float]:
    """So many places from one end of a domain to the other, equally far apart on a logarithmic axis.

    Examples:
        >>> geometric([1.0, 100.0], 3)
        [1.0, 10.0, 100.0]
    """
    low, high = domain
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def powers_of_two(domain: list[float], most: int = 9) -> list[float]:
    """Powers of two inside a domain, as far apart as leaves no more than so many.

    Examples:
        >>> powers_of_two([1.0, 64.0], 4)
        [1.0, 4.0, 16.0, 64.0]
    """
    low, high = math.ceil(math.log2(domain[0])), math.floor(math.log2(domain[1]))
    step = max(1, math.ceil((high - low + 1) / most))
    first = math.ceil(low / step) * step
    return [2.0**k for k in range(first, high + 1, step)]

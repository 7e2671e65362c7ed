"""Axes of charts: domains with room for what is drawn, ticks at round places, intervals cut to the plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from batchscope.records import Interval
from batchscope.report import formatting as f

Spec = dict[str, Any]
Point = dict[str, Any]
Domain = list[float]

HEIGHT = 300
LABEL_HEIGHT = 17
"""Pixels that a line of lettering takes."""
LOGARITHMIC = ", log scale"

# What is below one, a whole number, and what would take too much room.
COUNT = "datum.value < 1 ? format(datum.value, '.2~r') : format(datum.value, datum.value < 100000 ? ',d' : '.3~s')"
_BYTES = [(2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"), (2.0**40, "TiB")]


def domain_around(values: Iterable[float | None], room: float = 1.25) -> Domain:
    """A logarithmic domain with some room around all that is finite and positive.

    Examples:
        >>> domain_around([1.0, 100.0, None, math.inf], room=2.0)
        [0.5, 200.0]
    """
    known = [value for value in values if f.known(value) and value > 0]
    return [min(known) / room, max(known) * room] if known else [1.0, 10.0]


def domain_near(
    values: Iterable[float | None], ends: Iterable[float | None], *, far: float = 3.0, room: float = 1.25
) -> Domain:
    """A logarithmic domain around all values, and around those ends of intervals that are not far from them.

    Examples:
        >>> domain_near([2.0, 4.0], [1.0, 1000.0], room=1.0)
        [1.0, 4.0]
    """
    low, high = domain_around(values, room=1.0)
    return domain_around([low, high, *(end for end in ends if f.known(end) and low / far <= end <= high * far)], room)


def with_headroom(domain: Domain, lines: int, height: int = HEIGHT, *, log: bool) -> Domain:
    """The domain raised at its upper end by the room for so many lines of lettering.

    Examples:
        >>> with_headroom([0.0, 10.0], 2, height=68, log=False)
        [0.0, 20.0]
    """
    low, high = domain
    share = 1 / (1 - min(0.6, lines * LABEL_HEIGHT / height))
    return [low, low * (high / low) ** share] if log else [low, low + (high - low) * share]


def geometric(domain: Domain, count: int = 60) -> list[float]:
    """So many places from one end of a domain to the other, equally far apart on a logarithmic axis.

    Examples:
        >>> geometric([1.0, 100.0], 3)
        [1.0, 10.0, 100.0]
    """
    low, high = domain
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def powers_of_two(domain: Domain, most: int = 9) -> list[float]:
    """Powers of two inside a domain, as far apart as leaves no more than so many.

    Examples:
        >>> powers_of_two([1.0, 64.0], 4)
        [1.0, 4.0, 16.0, 64.0]
    """
    low, high = math.ceil(math.log2(domain[0])), math.floor(math.log2(domain[1]))
    step = max(1, math.ceil((high - low + 1) / most))
    first = math.ceil(low / step) * step
    return [2.0**k for k in range(first, high + 1, step)]


def cut(interval: Interval, domain: Domain, size: float = 1.0) -> Point | None:
    """An interval as it can be drawn within a domain.

    Args:
        interval: Any, resolved or with one-sided bounds.
        domain: Both ends of the axis.
        size: What the interval's numbers are divided by: the axis's unit.

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
    value, low, high = (None if end is None else end / size for end in (interval.value, interval.low, interval.high))
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


def ticks(domain: Domain, log: bool) -> Spec:
    """Properties of an axis: round places, at most about six, and short labels.

    Args:
        domain: Both ends of the scale.
        log: Whether it is logarithmic; the places are then 1, 2 and 5 times powers of ten, more
            where they are few, or the powers alone.

    Returns:
        Properties of a Vega-Lite axis.

    Examples:
        >>> ticks([0.15, 24], True)["values"]
        [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    """
    # Vega would give every label the prefix of the largest one, zero included ("0k").
    large = "datum.value === 0 ? '0' : format(datum.value, '~s')"
    text = large if max(map(abs, domain)) >= 10_000 else "format(datum.value, ',.6~g')"
    if not log:
        return {"labelExpr": text, "labelOverlap": True, "tickCount": 5}
    # From thousandths to millions, each label has the form that suits itself.
    text = "datum.value < 10000 ? format(datum.value, ',.6~g') : format(datum.value, '~s')"
    common: Spec = {"labelExpr": text, "labelOverlap": True}
    low, high = domain
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        places = [float(f"{step}e{decade}") for decade in decades for step in steps]
        places = [place for place in places if low <= place <= high]
        if len(places) <= 7:
            break
    return common | {"values": places} if len(places) >= 2 else common | {"tickCount": 4}


def axis(field: str, title: str | None, domain: Domain, *, log: bool, grid: bool = True, **look: Any) -> Spec:
    """The channel of a quantity.

    Args:
        field: What it is called in the data.
        title: Its title; "log scale" is added where it is one.
        domain: Both ends.
        log: Whether it is logarithmic.
        grid: Whether lines mark its ticks.
        **look: Further properties of the axis, over those of :func:`ticks`.

    Returns:
        A position channel of Vega-Lite.
    """
    return {
        "field": field,
        "type": "quantitative",
        "title": None if title is None else title + (LOGARITHMIC if log else ""),
        "scale": {"type": "log" if log else "linear", "domain": domain, "nice": False},
        "axis": ({} if grid else {"grid": False}) | (look or ticks(domain, log)),
    }


def size_axis(field: str, domain: Domain, title: str, sizes: Sequence[float] = ()) -> Spec:
    """A logarithmic channel of batch sizes, marked at those given; where there are none, at powers of two."""
    places = sorted(set(sizes)) or powers_of_two(domain)
    look = {"values": places, "labelExpr": COUNT, "labelOverlap": "greedy", "labelSeparation": 4}
    return axis(field, title, domain, log=True, grid=False, **look) | {"title": title}


def memory_axis(field: str, domain: Domain, title: str) -> Spec:
    """A logarithmic channel of bytes, marked at powers of two with their units."""
    label = "format(datum.value, '~r') + ' B'"
    for size, name in _BYTES:
        label = f"datum.value >= {size:.0f} ? format(datum.value / {size:.0f}, '~r') + ' {name}' : {label}"
    places = powers_of_two(domain, 6)
    return axis(field, title, domain, log=True, values=places, labelExpr=label, labelOverlap=True)


def rate_axis(field: str, domain: Domain) -> Spec:
    """A logarithmic channel of learning rates, marked at powers of ten; a range within one of them as Vega sees fit."""
    decades = range(math.ceil(math.log10(domain[0]) - 1e-9), math.floor(math.log10(domain[1]) + 1e-9) + 1)
    every = max(1, math.ceil(len(decades) / 8))
    values = [float(f"1e{decade}") for decade in decades if decade % every == 0]
    small = "replace(format(datum.value, '.0e'), '-', '−')"
    label = f"datum.value >= 0.001 && datum.value < 10000 ? format(datum.value, ',.3~r') : {small}"
    look: Spec = {"values": values, "labelExpr": label} if len(values) > 1 else {"tickCount": 4, "format": ".2~g"}
    return axis(field, "learning rate", domain, log=True, grid=False, labelOverlap="greedy", **look)


def thinned(points: Sequence[Any], most: int) -> list[Any]:
    """At most about so many of the points, evenly, the last among them: no screen shows more."""
    stride = max(1, math.ceil(len(points) / most))
    return [point for i, point in enumerate(points) if i % stride == 0 or i == len(points) - 1]


def rounded(value: float | None, digits: int = 6) -> float | None:
    """More digits than a screen shows would only make a page long; JSON has no infinities."""
    return float(f"{value:.{digits}g}") if f.known(value) else None

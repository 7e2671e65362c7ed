"""Layers over one pair of axes: what every chart is put together from, in plain Vega-Lite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from batchscope.records import Interval
from batchscope.report import formatting as f
from batchscope.report.charts.axes import HEIGHT, LABEL_HEIGHT, Point, Spec, cut

COLOURS = 4
"""How many colours charts draw from that have no row for each of them."""
BLUE, TEAL, AMBER, RED = range(COLOURS)
"""Places in the range of colours: time, gradients, memory and data, the answer."""

HOLLOW: Spec = {"filled": False, "strokeWidth": 2}
FULL: Spec = {"filled": True, "style": "halo"}
DASHED: Spec = {"strokeDash": [5, 4], "strokeWidth": 1.5}

_NOTHING: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True)
class Mark:
    """A labelled reference line at a place of the horizontal axis.

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


def tip(field: str, title: str | None = None, format: str | None = None) -> Spec:
    """One line of what a point says when it is pointed at; a number where it has a format."""
    return {
        "field": field,
        "type": "quantitative" if format else "nominal",
        **({} if title is None else {"title": title}),
        **({"format": format} if format else {}),
    }


SIZE = tip("batch", "batch size", ",")
RATE = tip("rate", "learning rate", ".3~g")


def kinds(names: Mapping[int, str], legend: Sequence[int] = (), *, above: int = 0) -> Spec:
    """A colour channel that gives each name the place in the range that it has on every chart of the page.

    Args:
        names: What stands for each place used.
        legend: Places that the chart names above itself.
        above: Room that is left between them and the chart, in pixels, for lettering there.

    Returns:
        A channel; all layers of a chart share it, since they share a scale.
    """
    shown = None
    if legend:
        values = [names[i] for i in legend]
        look = {"symbolType": "circle", "symbolSize": 90, "symbolStrokeWidth": 0, "symbolOpacity": 1}
        two = {"columns": 2} if sum(map(len, values)) > 34 else {}  # a phone has no room for more side by side
        shown = {
            "title": None,
            "orient": "top",
            "values": values,
            **look,
            **two,
            **({"offset": above} if above else {}),
        }
    domain = [names.get(i, f"({i})") for i in range(COLOURS)]
    return {"field": "kind", "type": "nominal", "scale": {"domain": domain}, "legend": shown}


def ramp(sizes: Sequence[int], most: int) -> Spec:
    """A colour channel from cold to warm over batch sizes, with a legend of at most about so many of them."""
    return {
        "field": "batch",
        "type": "quantitative",
        "scale": {"type": "log", "range": "ramp", "domain": [sizes[0], max(sizes[-1], 2 * sizes[0])]},
        "legend": {
            "title": "batch size",
            "orient": "top",
            "gradientLength": 160,
            "gradientThickness": 9,
            "values": list(sizes[:: -(-len(sizes) // most)]),
        },
    }


class Plot:
    """A chart in the making.

    Args:
        along: Channel of what is varied: horizontal, unless ``flip``.
        value: Channel of what is measured.
        colour: Channel of colours that marks have by default; None for those of plain marks.
        height: In pixels.
        flip: Whether what is varied runs upwards and what is measured to the right.
    """

    def __init__(
        self, along: Spec, value: Spec, colour: Spec | None = None, *, height: int = HEIGHT, flip: bool = False
    ) -> None:
        self.along, self.value, self.colour = along, value, colour
        self.height = height
        self.across, self.up = ("y", "x") if flip else ("x", "y")
        self.layers: list[Spec] = []
        self._sets: list[list[Point]] = []

    def add(
        self,
        mark: str,
        data: list[Point],
        *,
        along: Any = None,
        value: Any = None,
        to: str | None = None,
        along_to: str | None = None,
        where: str = "",
        tips: Sequence[Spec] = (),
        colour: bool = True,
        channels: Spec | None = None,
        **look: Any,
    ) -> Self:
        """One layer.

        Args:
            mark: Kind of mark.
            data: Its points; where there are none, nothing is added.
            along: A field, or a number of pixels; None: the axis's own field; False: nowhere on this axis.
            value: Likewise.
            to: Field of the other end of a mark that spans values.
            along_to: Field of the other end of one that spans what is varied.
            where: An expression that the points drawn must satisfy.
            tips: What a point says when it is pointed at.
            colour: Whether it has the chart's colour channel.
            channels: Further channels.
            **look: Properties of the mark.

        Returns:
            The chart.
        """
        if not data:
            return self
        encoding: Spec = {}
        for name, own, place, end in (
            (self.across, self.along, along, along_to),
            (self.up, self.value, value, to),
        ):
            if isinstance(place, int | float) and not isinstance(place, bool):
                encoding[name] = {"value": place}
            elif place is not False:
                encoding[name] = own if place is None else {**own, "field": place}
            if end is not None:
                encoding[f"{name}2"] = {"field": end}
        if colour and self.colour is not None:
            encoding["color"] = self.colour
        if tips:
            encoding["tooltip"] = list(tips)
        layer: Spec = {
            "mark": {"type": mark, **look},
            "data": {"name": self._name(data)},
            "encoding": encoding | (channels or {}),
        }
        if where:
            layer["transform"] = [{"filter": where}]
        self.layers.append(layer)
        return self

    def _name(self, data: list[Point]) -> str:
        place = next((i for i, known in enumerate(self._sets) if known is data), len(self._sets))
        if place == len(self._sets):
            self._sets.append(data)
        return f"data-{place}"

    def line(self, data: list[Point], **options: Any) -> Self:
        """Points joined by a line."""
        return self.add("line", data, **Spec(strokeWidth=1.75, clip=True, strokeJoin="round") | options)

    def band(self, data: list[Point], *, opacity: float = 0.16, where: str = "isValid(datum.low)", **more: Any) -> Self:
        """The area between ``low`` and ``high``."""
        return self.add("area", data, value="low", to="high", opacity=opacity, where=where, clip=True, **more)

    def spans(self, data: list[Point], *, where: str = "datum.low < datum.high", **options: Any) -> Self:
        """A bar from ``low`` to ``high`` of each point."""
        look = Spec(strokeWidth=2.5, opacity=0.8, strokeCap="round", clip=True) | options
        return self.add("rule", data, value="low", to="high", where=where, **look)

    def arrows(self, data: list[Point], *, where: str = "", size: int = 70, **options: Any) -> Self:
        """A wedge at each end where an interval goes on beyond the plot."""
        sides = ("left", "right") if self.up == "x" else ("down", "up")
        for flag, side, end in (("below", sides[0], "low"), ("above", sides[1], "high")):
            if any(point.get(flag) for point in data):
                own = f"datum.{flag}" + (f" && {where}" if where else "")
                look = Spec(shape=f"triangle-{side}", size=size, filled=True, opacity=1) | options
                self.add("point", data, value=end, where=own, **look)
        return self

    def dots(self, data: list[Point], *, where: str = "isValid(datum.value)", **options: Any) -> Self:
        """A filled point, lifted off what it lies on, unless the options say otherwise."""
        return self.add("point", data, where=where, **Spec(size=80, opacity=1) | FULL | options)

    def text(self, data: list[Point], field: str = "text", **options: Any) -> Self:
        """Lettering with a shadow of the background."""
        named = {"text": {"field": field, "type": "nominal"}, **options.pop("channels", {})}
        for style in (Spec(style="under"), Spec()):
            self.add("text", data, colour=False, channels=named, **options, **style)
        return self

    def level(self, value: float | None, text: str, **look: Any) -> Self:
        """A labelled reference line at one value; nothing where it is None."""
        data: list[Point] = [] if value is None else [{"value": value, "text": text}]
        self.add("rule", data, along=False, value="value", colour=False, **DASHED | look)
        return self.text(data, along=6, value="value", align="left", baseline="bottom", dy=-4)

    def marks(self, marks: Sequence[Mark], names: Mapping[int, str] = _NOTHING) -> Self:
        """Labelled reference lines, each label on a line of its own at the top, so that none meet.

        Args:
            marks: From the uppermost label down; those without a place are left out. One that lies outside the axis,
                which is logarithmic, is named at its edge.
            names: What stands for each colour.

        Returns:
            The chart.
        """
        first, last = self.along["scale"]["domain"]
        found: list[tuple[Mark, list[Point]]] = []
        for mark in marks:
            if not f.known(mark.where) or mark.where <= 0:
                continue
            inside = first <= mark.where <= last
            text = mark.text if inside else f"← {mark.text}" if mark.where < first else f"{mark.text} →"
            point: Point = {"x": min(max(mark.where, first), last), "text": text, "inside": inside}
            if mark.colour is not None:
                point["kind"] = names[mark.colour]
            if mark.interval is not None and (ends := cut(mark.interval, [first, last])):
                point |= {"low": ends["low"], "high": ends["high"]}
            found.append((mark, [point]))
        for mark, data in found:
            if data[0].get("high", 0) > data[0].get("low", 0):
                coloured = mark.colour is not None
                self.add("rect", data, along="low", along_to="high", value=False, opacity=0.11, colour=coloured)
        for mark, data in found:
            if data[0]["inside"]:
                dash = Spec(strokeDash=[5, 4]) if mark.dashed else Spec()
                self.add("rule", data, along="x", value=False, colour=mark.colour is not None, strokeWidth=1.5, **dash)
        for i, (mark, data) in enumerate(found):
            share = math.log(data[0]["x"] / first) / math.log(last / first)
            left = share >= 0.5 if mark.left is None else mark.left
            look = Spec(align="right" if left else "left", dx=-6 if left else 6, baseline="middle")
            self.text(data, along="x", value=6 + LABEL_HEIGHT * i, **look)
        return self

    def done(self, **more: Any) -> Spec:
        """The specification, without the width and the colours that depend on where it is shown."""
        sets = {f"data-{i}": data for i, data in enumerate(self._sets)}
        return {"height": self.height, "layer": self.layers, "datasets": sets | more.pop("datasets", {}), **more}

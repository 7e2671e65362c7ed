"""Colours and lettering of charts and page, light and dark, each colour legible on its background."""

from __future__ import annotations

from typing import Any, Literal

Theme = Literal["light", "dark"]

SCREEN_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
IMAGE_FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"

COLOURS: dict[Theme, dict[str, str]] = {
    "light": {
        "page": "#f7f7f5",
        "card": "#ffffff",
        "ink": "#1c1e21",
        "soft": "#5b6168",
        "line": "#e3e3df",
        "grid": "#ececea",
        "axis": "#8f949a",
        "accent": "#1d4f91",
        "warn": "#8a5200",
        "warn_card": "#fff6e5",
        "warn_line": "#e8c58a",
    },
    "dark": {
        "page": "#111317",
        "card": "#191c21",
        "ink": "#e8e9eb",
        "soft": "#a3a9b1",
        "line": "#2c3037",
        "grid": "#272b31",
        "axis": "#787f88",
        "accent": "#8db8ff",
        "warn": "#ffc46b",
        "warn_card": "#2b2315",
        "warn_line": "#6b5426",
    },
}
"""Every colour but those of the data."""

# From cold to warm, since rows come in order of batch size. Four stops that stay apart for red-green and
# blue-yellow blindness, and that have a contrast of at least 3 with the card behind them.
_STOPS: dict[Theme, tuple[str, ...]] = {
    "light": ("#1d3f8f", "#0a8f96", "#c07c00", "#c22f57"),
    "dark": ("#86a8ff", "#35c9c0", "#ffb84d", "#ff7396"),
}


def row_colours(rows: int, theme: Theme) -> list[str]:
    """A colour for each row, in order from cold to warm.

    Args:
        rows: How many are needed.
        theme: Which background they are for.

    Returns:
        Hexadecimal colours.

    Examples:
        >>> row_colours(2, "light")
        ['#1d3f8f', '#c22f57']
    """
    stops = _STOPS[theme]
    chosen = {0: [], 1: [0], 2: [0, 3], 3: [0, 1, 3], 4: [0, 1, 2, 3]}.get(rows)
    if chosen is not None:
        return [stops[i] for i in chosen]
    colours = []
    for i in range(rows):
        place = i / (rows - 1) * (len(stops) - 1)
        k = min(int(place), len(stops) - 2)
        colours.append(_between(stops[k], stops[k + 1], place - k))
    return colours


def vega_config(rows: int, theme: Theme, font: str = SCREEN_FONT) -> dict[str, Any]:
    """How every chart looks: the one place where marks get their colours.

    Args:
        rows: How many rows need a colour.
        theme: Light or dark.
        font: CSS font families.

    Returns:
        A Vega-Lite config.
    """
    c = COLOURS[theme]
    label = {"labelFont": font, "titleFont": font, "labelColor": c["soft"], "titleColor": c["soft"]}
    return {
        "background": c["card"],
        "font": font,
        "range": {"category": row_colours(max(rows, 1), theme), "ramp": row_colours(4, theme)},
        "view": {"stroke": None},
        "axis": {
            **label,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 10,
            "labelPadding": 6,
            "domainColor": c["axis"],
            "tickColor": c["axis"],
            "tickSize": 4,
            "gridColor": c["grid"],
            "labelLimit": 160,
            "titleLimit": 230,
        },
        "axisY": {"domain": False, "ticks": False},
        "legend": {
            **label,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "symbolSize": 90,
            "symbolBaseStrokeColor": c["axis"],
        },
        "title": {
            "font": font,
            "subtitleFont": font,
            "color": c["ink"],
            "subtitleColor": c["soft"],
            "fontSize": 15,
            "subtitleFontSize": 12,
            "anchor": "start",
            "frame": "group",
            "fontWeight": 600,
            "offset": 12,
            "subtitlePadding": 4,
        },
        # Marks that stand for a row are coloured by the range above; these are for the others.
        "text": {"color": c["ink"], "font": font, "fontSize": 12},
        "line": {"color": c["axis"]},
        "rule": {"color": c["axis"]},
        "area": {"color": c["axis"]},
        "point": {"color": c["axis"]},
        "rect": {"color": c["axis"]},
        "bar": {"color": c["accent"]},
        # Lifted off what they lie on: points by a rim, words by a shadow of the background.
        "style": {
            "halo": {"stroke": c["card"], "strokeWidth": 1.5},
            "under": {"stroke": c["card"], "strokeWidth": 5, "strokeJoin": "round"},
            "chosen": {"stroke": c["ink"]},
        },
    }


def _between(first: str, second: str, part: float) -> str:
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (first, second)]
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(*ends, strict=True))

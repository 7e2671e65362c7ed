"""Records as one HTML page that opens offline: text, tables, charts and the record itself in a single file."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from batchscope.errors import require
from batchscope.records import Record, Sweep, encode
from batchscope.report import images
from batchscope.report.charts import learning_curves, palette
from batchscope.report.charts.axes import Spec
from batchscope.report.view import View
from batchscope.report.views import view

MOST_PLAIN = 600_000
"""Characters of JSON in a page above which it is compressed."""
MOST_PACKED = 1_500_000
"""Characters so compressed above which the curves of trials away from the best rates of a sweep are left out."""
_BRAND = '<span class="brand">batchscope</span>'


def render(record: Record) -> str:
    """The record as one self-contained HTML page.

    Nothing in it refers to a place outside the file, and a content security policy forbids it to. All text from the
    record is escaped.

    Args:
        record: Any record; kinds without a page of their own are listed field by field.

    Returns:
        The text of an HTML file.
    """
    shown = view(record)
    charts = _charts(shown)
    switched = next((figure.curves for figure in shown.figures if figure.curves), None)
    return fill(
        "template.html",
        view=shown,
        answer=[part for part in shown.headline if part],
        kind=record.kind,
        colours=palette.COLOURS,
        row_colours={theme: palette.row_colours(shown.colours, theme) for theme in palette.COLOURS},
        across=learning_curves.ACROSS,
        upward=switched.followed() if switched else {},
        spans=learning_curves.SPANS,
        style=file_text("page.css"),
        script=file_text("page.js"),
        library=_library() if charts["figures"] else "",
        charts=json_for_html(charts),
        record=_embedded(record),
    )


def is_made_here(text: str) -> bool:
    """Whether a text is a page that this module made, of this release or an earlier one."""
    return any(mark in text for mark in ('<meta name="generator" content="batchscope">', _BRAND))


def fill(template: str, **values: Any) -> str:
    """A template of this package with these values; all text is escaped.

    Args:
        template: Its file name.
        values: What stands in it.

    Returns:
        HTML.
    """
    jinja: Any = require("jinja2", "write a page", "altair")
    environment = jinja.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja.StrictUndefined
    )
    html: str = environment.from_string(file_text(template)).render(**values)
    return html


@dataclass(frozen=True)
class _Embedded:
    """The record as it stands in the page: JSON, or, where that is long, compressed and in base 64.

    Attributes:
        text: What stands in the script element.
        packed: Whether it is compressed.
        whole: Whether nothing was left out of it.
    """

    text: str
    packed: bool
    whole: bool = True


def _embedded(record: Record) -> _Embedded:
    header = {"record": record.kind, "schema": record.schema_version}
    text = json_for_html(header | encode(record))
    if len(text) <= MOST_PLAIN:
        return _Embedded(text, packed=False)
    found = _Embedded(_packed(text), packed=True)
    if len(found.text) > MOST_PACKED and isinstance(record, Sweep):
        best = {(line.batch_size, line.learning_rate) for line in record.best}
        trials = tuple(
            trial if (trial.batch_size, trial.learning_rate) in best else replace(trial, curve=())
            for trial in record.trials
        )
        found = _Embedded(_packed(json_for_html(header | encode(replace(record, trials=trials)))), True, whole=False)
    return found


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def json_for_html(value: Any) -> str:
    r"""JSON that can stand inside a script element, whatever strings are in it.

    Args:
        value: What ``json`` can write.

    Returns:
        JSON without ``<``, ``>``, ``&`` and the two line separators that end a line of JavaScript.

    Examples:
        >>> json_for_html("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _charts(shown: View) -> dict[str, Any]:
    """What the page's script needs: every definition, the curves' points once, and both themes."""
    specs: dict[str, Spec] = {}
    points: list[dict[str, Any]] = []
    for figure in shown.figures:
        if figure.curves is not None:
            points = figure.curves.points()
            for axes, spec in figure.curves.variants().items():
                drawn = {**spec, "width": "container", "description": figure.title}
                specs[".".join((figure.name, *axes))] = _without_legend(drawn)
        elif figure.spec is not None:
            specs[figure.name] = _without_legend(figure.spec) if figure.legend else figure.spec
    slider = next((section.slider for section in shown.on_page if section.slider and section.shown), None)
    return {
        "slider": None if slider is None else {"stops": slider.stops, "asked": slider.asked},
        "figures": [
            {"name": figure.name, "title": figure.title, "switches": figure.curves is not None}
            for figure in shown.figures
        ],
        "specs": specs,
        "curves": points,
        "configs": {theme: palette.vega_config(shown.colours, theme) for theme in palette.COLOURS},
    }


def _without_legend(spec: Spec) -> Spec:
    """The chart whose rows the page names itself."""
    layers = []
    for layer in spec["layer"]:
        encoding = layer["encoding"]
        if "color" in encoding:
            encoding = {**encoding, "color": {**encoding["color"], "legend": None}}
        layers.append({**layer, "encoding": encoding})
    return {**spec, "layer": layers}


def file_text(name: str) -> str:
    """A file of this package."""
    return resources.files("batchscope.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the converter's own copy."""
    converter: Any = require("vl_convert", "write a page", "vl-convert-python")
    script: str = converter.javascript_bundle(vl_version=images.vega_lite_version())
    return script.replace("</script", "<\\/script")

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
from batchscope.records import (
    Advice,
    Claims,
    Comparison,
    DevicePlan,
    Diagnosis,
    Landscape,
    MonitoredNoise,
    PaperStudy,
    Probe,
    Record,
    Sweep,
    TradeoffLaw,
    TrainResult,
    encode,
)
from batchscope.report import (
    advice_content,
    charts,
    claims_content,
    curvature_content,
    curves,
    devices_content,
    diagnosis_content,
    landscape_content,
    palette,
    paper_content,
    probe_content,
    sheets,
    sweep_content,
    training_sheets,
)
from batchscope.report import formatting as f
from batchscope.report.content import Content, Figure, Section

MOST_PLAIN = 600_000
"""Characters of JSON in a page above which it is compressed."""
MOST_PACKED = 1_500_000
"""Characters so compressed above which the curves of trials away from the best rates of a sweep are left out."""


def render(record: Record) -> str:
    """The record as one self-contained HTML page.

    Nothing in it refers to a place outside the file, and a content security policy forbids it to. All text from the
    record is escaped.

    Args:
        record: Any record; kinds without a page of their own are listed field by field.

    Returns:
        The text of an HTML file.
    """
    specs = charts.every(record, legend=False)
    content = content_of(record, specs)
    shown = _charts(record, content, specs)
    rows = charts.rows_to_colour(record)
    return fill(
        "template.html",
        content=content,
        answer=[part for part in sheets.headline(content.answer) if part],
        kind=record.kind,
        colours=palette.COLOURS,
        row_colours={theme: palette.row_colours(rows, theme) for theme in palette.COLOURS},
        across=curves.ACROSS,
        upward=_followed(record),
        spans=curves.SPANS,
        style=file_text("page.css"),
        script=file_text("page.js"),
        library=_library() if shown["figures"] else "",
        charts=json_for_html(shown),
        record=_embedded(record),
    )


def content_of(record: Record, drawn: dict[str, Any]) -> Content:
    """What is said about a record, whoever draws it.

    Args:
        record: Any record; kinds without a page of their own are listed field by field.
        drawn: Its charts, by name, as :func:`batchscope.report.charts.every` gives them.
    """
    if isinstance(record, Comparison):
        return _comparison(record, set(drawn))
    if isinstance(record, TrainResult):
        return _training(record, set(drawn))
    if isinstance(record, Probe):
        return probe_content.of_probe(record, drawn)
    if isinstance(record, probe_content.Part):
        return probe_content.of_part(record, drawn)
    if isinstance(record, curvature_content.Curvature):
        return curvature_content.of_curvature(record, drawn)
    if isinstance(record, Landscape):
        return landscape_content.of_landscape(record, drawn)
    if isinstance(record, DevicePlan):
        return devices_content.of_devices(record, drawn)
    if isinstance(record, Claims):
        return claims_content.of_claims(record, drawn)
    if isinstance(record, PaperStudy):
        return paper_content.of_paper(record, drawn)
    if isinstance(record, MonitoredNoise):
        return probe_content.of_monitor(record)
    if isinstance(record, Sweep):
        return sweep_content.of_sweep(record, drawn)
    if isinstance(record, TradeoffLaw):
        return sweep_content.of_law(record, drawn)
    if isinstance(record, Advice):
        return advice_content.of_advice(record, drawn)
    if isinstance(record, Diagnosis):
        return diagnosis_content.of_diagnosis(record)
    return _other(record)


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


def _comparison(record: Comparison, available: set[str]) -> Content:
    def figures(*wanted: Figure) -> tuple[Figure, ...]:
        return tuple(figure for figure in wanted if figure.name in available)

    scores_lead = "Faint dots are single seeds; a bar is the 95% interval of their mean."
    if "trade_off" in available:
        scores_lead += " Further up and to the left in the second chart is more in less time."
    sections = [
        Section("What each row reaches and costs", sheets=(sheets.reached(record), sheets.costs(record))),
        Section(
            "Final scores",
            scores_lead,
            figures=figures(Figure("final_scores", "Final score"), Figure("trade_off", "Score against time")),
        ),
        Section(
            "Learning curves",
            "Bold: the mean of the runs that ended in order. Thin: every seed. Dashed: a run that broke off, with a "
            "cross where it did.",
            figures=figures(Figure("learning_curves", "Learning curves", legend=True, switches=True, alone=True)),
        ),
        Section(
            "Time and memory",
            "Medians over the seeds with the fastest and the slowest run; memory at its peak.",
            figures=figures(
                Figure("time", "Time of a run"),
                Figure("throughput", "Examples per second"),
                Figure("memory", "Peak memory"),
            ),
        ),
    ]
    if record.differences:
        every = sheets.differences(record)
        some = sheets.differences(record, most=sheets.MOST_PAIRS)
        folded = every if len(some.lines) < len(every.lines) else None
        sections.append(Section("Which rows can be told apart", sheets=(some,), folded=folded))
    tried = (sheets.searches(record),) if record.searches else ()
    valleys = figures(Figure("rate_search", "Loss against learning rate", legend=True, alone=True))
    lead = sheets.search_cost(record)
    if valleys:
        lead += " A wedge on the axis marks the chosen rate, a cross a trial that diverged or lies far above the rest."
    sections += [
        Section("Learning rates", lead, figures=valleys, sheets=tried, always=True),
        Section(
            "How this was measured",
            facts=(("Settings", sheets.settings(record)), ("Provenance", sheets.provenance(record.provenance))),
        ),
    ]
    handling = {"search": "searched per batch size", "rescaled": "rescaled", "fixed": "the same for all"}
    return Content(
        name=record.workload.name,
        title=_question(record),
        answer=record.conclusion,
        summary=(
            ("examples a run", f.count(record.rows[0].examples) if record.rows else f.UNKNOWN),
            ("seeds", f.count(len(record.seeds))),
            ("learning rates", handling[record.learning_rate]),
            ("took altogether", f.seconds(record.total_seconds)),
            ("on", record.provenance.device),
        ),
        warnings=sheets.warnings(record),
        sections=tuple(section for section in sections if section.holds_something()),
        rows=sheets.row_labels(record),
    )


def _training(run: TrainResult, available: set[str]) -> Content:
    curve = Figure("learning_curves", "Learning curve", switches=True, alone=True)
    split = Figure("cost_split", "Where the time went")
    sections = [
        Section("Learning curve", figures=(curve,) if curve.name in available else ()),
        Section(
            "What it reached", facts=(("Result", training_sheets.results(run)), ("Plan", training_sheets.plan(run)))
        ),
        Section(
            "What it cost",
            "Training time is gathering batches plus forward, backward and update; evaluation is off that clock.",
            figures=(split,) if split.name in available else (),
            sheets=() if split.name in available else (training_sheets.costs(run),),
            folded=training_sheets.curve(run) if run.curve else None,
        ),
        Section("Where it was measured", facts=(("Provenance", sheets.provenance(run.provenance)),)),
    ]
    size, rate = f.count(run.plan.batch_size), f.number(run.plan.learning_rate, 3)
    return Content(
        name=run.workload,
        title=f"Training with batch size {size} at a learning rate of {rate}",
        answer=training_sheets.answer(run),
        summary=(
            ("best score", f.number(run.best_score)),
            ("examples", f.count(run.examples)),
            ("updates", f.count(run.iterations)),
            ("training time", f.seconds(run.step_seconds)),
            ("on", run.provenance.device),
        ),
        warnings=training_sheets.warnings(run),
        sections=tuple(section for section in sections if section.holds_something()),
        rows=(f"seed {run.seed}",),
    )


def _other(record: Record) -> Content:
    facts = tuple((name, str(value)) for name, value in encode(record).items() if value is not None)
    section = Section("Fields", facts=((record.kind, facts),))
    return Content(name="batchscope", title=record.kind.capitalize(), answer="", sections=(section,))


def _question(record: Comparison) -> str:
    rows = record.rows
    if not 2 <= len(rows) <= 4:
        budget = f" for {f.count(rows[0].examples)} examples" if rows else ""
        return f"Which of {len(rows)} batch sizes{budget}?" if len(rows) > 1 else f"One batch size{budget}"
    first, *others = rows
    # No-break spaces: a batch size and its updates stay on one line.
    parts = [f"{f.count(row.batch_size)}\u00a0for\u00a0{f.count(row.iterations)}" for row in others]
    opening = f"Batch size {f.count(first.batch_size)} for {f.count(first.iterations)} updates"
    return ", ".join([opening, *parts[:-1]]) + f"{',' if len(parts) > 1 else ''} or {parts[-1]}?"


def _charts(record: Record, content: Content, drawn: dict[str, Any]) -> dict[str, Any]:
    """What the page's script needs: every definition, the curves' points once, and both themes."""
    figures = [figure for section in content.sections for figure in section.figures]
    specs: dict[str, Any] = {}
    points: list[dict[str, Any]] = []
    for figure in figures:
        if figure.switches and isinstance(record, Comparison | TrainResult):
            points = curves.points(record)
            for axes, spec in curves.variants(record, legend=False).items():
                specs[".".join((figure.name, *axes))] = {**spec, "width": "container", "description": figure.title}
        else:
            specs[figure.name] = drawn[figure.name]
    rows = charts.rows_to_colour(record)
    slider = next((section.slider for section in content.sections if section.slider is not None), None)
    return {
        "slider": None if slider is None else {"stops": slider.stops, "asked": slider.asked},
        "figures": [{"name": figure.name, "title": figure.title, "switches": figure.switches} for figure in figures],
        "specs": specs,
        "curves": points,
        "configs": {theme: palette.vega_config(rows, theme) for theme in palette.COLOURS},
    }


def _followed(record: Record) -> dict[curves.Upward, str]:
    """What the learning curves can show: every quantity that at least one run knows."""
    if not isinstance(record, Comparison | TrainResult):
        return {}
    points = curves.points(record)
    return {y: title for y, title in curves.UPWARD.items() if any(point[y] is not None for point in points)}


def file_text(name: str) -> str:
    """A file of this package."""
    return resources.files("batchscope.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the converter's own copy."""
    converter: Any = require("vl_convert", "write a page", "vl-convert-python")
    script: str = converter.javascript_bundle(vl_version=charts.vega_lite_version())
    return script.replace("</script", "<\\/script")

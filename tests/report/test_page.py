from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchscope.errors import ArgumentError
from batchscope.records import Comparison, Plan, Record, load
from batchscope.report import charts, curves, page, palette

REFERRING = {"src", "href", "srcset", "action", "formaction", "data", "poster", "background", "ping", "manifest"}


class Reader(HTMLParser):
    """Takes a page apart as a browser would."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.scripts: dict[str, str] = {}
        self.text: list[str] = []
        self._script: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attributes if name in REFERRING]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        if tag == "script":
            self._script = dict(attributes).get("id") or f"script {len(self.scripts)}"
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text.append(data)
        else:
            self.scripts[self._script] += data

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def without_library(text: str) -> str:
    """The page without Vega's own code, which names namespaces and schemas but fetches nothing."""
    return text.replace(page._library(), "")


def test_nothing_points_outside_the_file(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        reader = Reader(text)
        outside = [place for place in reader.references if not place.startswith(("#", "data:"))]
        assert outside == [], name
        assert reader.handlers == [], name
        assert set(reader.tags).isdisjoint({"iframe", "img", "object", "embed", "base", "form"}), name
        style = text[text.index("<style>") : text.index("</style>")]
        assert "url(" not in style, name
        assert "@import" not in style, name
        assert "default-src 'none'" in text, name
        assert "unsafe-eval" not in without_library(text), name
    assert re.findall(r"https?://[^\"'\s]*", without_library(pages["plain"]).replace("\\/", "/")) == [
        "https://vega.github.io/schema/vega-lite/v6.4.1.json"
    ] * pages["plain"].count("schema/vega-lite/")


def test_the_record_in_the_page_is_the_record(
    records: dict[str, Record], pages: dict[str, str], tmp_path: Path
) -> None:
    for name, record in records.items():
        path = tmp_path / "record.json"
        path.write_text(Reader(pages[name]).scripts["record"], encoding="utf-8")
        assert load(path) == record, name


def test_hostile_names_are_text(records: dict[str, Record], pages: dict[str, str]) -> None:
    hostile, plain = Reader(pages["hostile"]), Reader(pages["plain"])
    assert hostile.tags.count("script") == plain.tags.count("script") == 4
    record = records["hostile"]
    assert isinstance(record, Comparison)
    assert " ".join(record.workload.name.split()) in hostile.words
    assert "{{ 7*7 }}" in hostile.words
    for block in ("record", "charts"):
        assert not set("<>&\u2028\u2029") & set(hostile.scripts[block])
        json.loads(hostile.scripts[block])
    assert "<script>alert" not in pages["hostile"]


def test_the_answer_comes_before_every_number(pages: dict[str, str], records: dict[str, Record]) -> None:
    record = records["plain"]
    assert isinstance(record, Comparison)
    words = Reader(pages["plain"]).words
    order = [
        "Batch size 8 for 4,096 updates",
        record.conclusion,
        "What it reaches",
        "Final scores",
        "Learning curves",
        "Time and memory",
        "Pairs, seed by seed",
        "Learning-rate search",
        "Provenance",
        "Download the record as JSON",
    ]
    places = [words.index(part) for part in order]
    assert places == sorted(places)


def test_awkward_records_say_so(pages: dict[str, str]) -> None:
    assert "Interrupted before every run was done" in Reader(pages["interrupted"]).words
    assert "128 × 256: no run finished (5 diverged)." in Reader(pages["diverged"]).words
    assert "One seed" in Reader(pages["single seed"]).words
    assert "Learning curves" not in Reader(pages["nothing ran"]).words
    assert "Peak memory" not in Reader(pages["null memory"]).words
    assert "all 66" in Reader(pages["twelve rows"]).words


def test_charts_are_finite_and_valid(pages: dict[str, str]) -> None:
    import altair

    for name in ("plain", "diverged", "single seed", "no run finished", "run finished", "run out of memory"):
        data = json.loads(Reader(pages[name]).scripts["charts"])
        assert data["figures"], name
        for key, spec in data["specs"].items():
            assert spec["width"] == "container", (name, key)
            if not key.startswith("learning_curves") or key.endswith("updates.validation_loss.late"):
                altair.Chart.from_dict(spec, validate=True)  # slow: one of the curves' variants is enough
        texts = json.dumps(data)
        assert "Infinity" not in texts, name
        assert "NaN" not in texts, name


def test_every_switch_has_its_chart(pages: dict[str, str]) -> None:
    specs = json.loads(Reader(pages["plain"]).scripts["charts"])["specs"]
    wanted = {f"learning_curves.{x}.{y}.{s}" for x in curves.ACROSS for y in curves.UPWARD for s in curves.SPANS}
    assert wanted <= set(specs)
    x = {key: spec["layer"][0]["encoding"]["x"] for key, spec in specs.items() if key in wanted}
    assert x["learning_curves.updates.score.whole"]["scale"]["type"] == "log"
    assert x["learning_curves.examples.score.whole"]["scale"]["type"] == "linear"


def test_curves_mean_only_what_ended_in_order(samples: ModuleType) -> None:
    record = samples.comparison((32, 128), diverged={128: 2})
    points = curves.points(record)
    means = [point for point in points if point["kind"] == "mean" and point["row"] == "128 × 256"]
    runs = [run for run in record.runs_of(record.rows[1]) if run.ended_in_order]
    assert len(means) == len(runs[0].curve)
    assert means[-1]["seeds"] == 3
    expected = sum(run.curve[-1].score for run in runs) / 3
    assert means[-1]["score"] == pytest.approx(expected, rel=1e-5)
    stops = [point for point in points if point["kind"] == "stop"]
    assert [stop["outcome"] for stop in stops] == ["diverged", "diverged"]


def test_long_curves_are_thinned_to_both_ends(samples: ModuleType) -> None:
    run = samples.train_result(batch_size=8, points=1000)
    drawn = curves.points(run)
    assert len(drawn) <= curves.MOST_POINTS + 1
    assert (drawn[0]["updates"], drawn[-1]["updates"]) == (0, run.iterations)


def test_a_run_has_its_page(pages: dict[str, str]) -> None:
    words = Reader(pages["run finished"]).words
    assert "Finished its budget after 32,768 examples" in words
    assert "Where the time went" in words
    assert "AMD EPYC 7763" in words
    assert "Diverged: loss is not finite." in Reader(pages["run diverged"]).words


def test_other_records_have_a_page_without_charts() -> None:
    text = page.render(Plan(batch_size=64, learning_rate=0.1, iterations=10))
    assert "vegaEmbed" not in text.replace(page.file_text("page.js"), "")
    assert "batch_size" in Reader(text).words


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_images(samples: ModuleType, theme: palette.Theme) -> None:
    record = samples.comparison()
    for name in charts.names(record):
        text = charts.svg(record, name, theme=theme)
        assert text.startswith("<svg"), name
        assert palette.COLOURS[theme]["card"] in text, name
        assert charts.TITLES[name] in text, name
    image = charts.png(record, charts.OVERVIEW, theme=theme, scale=1)
    assert image.startswith(b"\x89PNG")


def test_an_image_of_nothing_is_refused(samples: ModuleType) -> None:
    with pytest.raises(ArgumentError, match="a chart is one of final_scores"):
        charts.png(samples.comparison(), "sharpness")
    with pytest.raises(ArgumentError, match="must have something to show as rate_search"):
        charts.png(samples.comparison(search=False), "rate_search")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_legible(theme: palette.Theme) -> None:
    colours = palette.COLOURS[theme]
    for rows in (1, 2, 3, 4, 7, 12):
        shades = palette.row_colours(rows, theme)
        assert len(set(shades)) == rows
        assert min(contrast(shade, colours["card"]) for shade in shades) >= 3
    for ink in ("ink", "soft", "accent"):
        assert contrast(colours[ink], colours["card"]) >= 4.5
        assert contrast(colours[ink], colours["page"]) >= 4.5
    assert contrast(colours["warn"], colours["warn_card"]) >= 4.5


def contrast(first: str, second: str) -> float:
    """WCAG's ratio of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_a_page_is_written_whole(samples: ModuleType, tmp_path: Path) -> None:
    path = samples.train_result().report(tmp_path / "new folder" / "run.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [found.name for found in path.parent.iterdir()] == ["run.html"]


def test_json_blocks_hold_any_value() -> None:
    value: Any = {"a": "</script><!--\u2028", "b": [1.5, None, True]}
    text = page.json_for_html(value)
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        page.json_for_html(float("inf"))

"""Comparisons and training runs in a terminal, on a page and in charts, and what pages share."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.report.reading import Page, printed

from batchscope.errors import ArgumentError
from batchscope.records import Comparison, Interval, Plan, Record
from batchscope.report import formatting as f
from batchscope.report import images, page
from batchscope.report.charts import learning_curves as curves
from batchscope.report.charts import palette
from batchscope.report.views import comparison, training, view
from batchscope.report.views.comparison_charts import row_labels


def squeezed(text: str) -> str:
    return " ".join(text.split())


def points_of(record: Record) -> list[dict[str, Any]]:
    [found] = [figure.curves for figure in view(record).figures if figure.curves is not None]
    return found.points()


def test_the_conclusion_comes_first_and_every_row_follows(makers: ModuleType) -> None:
    record = makers.comparison()
    text = printed(record, 100)
    assert squeezed(text).startswith(record.conclusion)
    for label in ("8 × 4,096", "32 × 1,024", "128 × 256", "512 × 64"):
        assert text.count(label) == 2  # what it reaches, what it costs


def test_wide_terminals_get_one_table(makers: ModuleType) -> None:
    assert "What it reaches, and what it costs" in printed(makers.comparison(), 160)
    assert "What it reaches, and what it costs" not in printed(makers.comparison(), 100)


def test_minor_columns_go_before_anything_is_cut(makers: ModuleType) -> None:
    wide, narrow = printed(makers.comparison(), 100), printed(makers.comparison(), 64)
    assert "training" in wide
    assert "training" not in narrow
    assert "0.9725 ± 0.0039" in narrow


def test_numbers_are_those_of_the_record(makers: ModuleType) -> None:
    record = makers.comparison()
    text = printed(record, 100)
    assert f.estimate(record.rows[0].score, 4) in text
    assert f.number(record.rows[1].examples_per_second, 3) in text
    assert f"to {f.number(record.common_score)}" in text


def test_what_broke_is_said(records: dict[str, Record]) -> None:
    text = squeezed(printed(records["diverged"]))
    assert "512 × 64: 3 of 5 runs finished (2 diverged). Its numbers are over those that did." in text
    assert "128 × 256: no run finished (5 diverged)." in text
    assert "0 of 5" in text
    assert "Interrupted before every run was done" in printed(records["interrupted"])
    assert "2 of 5 runs finished (3 not run)" in squeezed(printed(records["interrupted"]))
    assert "One seed" in printed(records["single seed"])


def test_the_search_and_its_edges_are_said(makers: ModuleType) -> None:
    text = squeezed(printed(makers.comparison()))
    assert "26 runs" in text
    assert "The best rate lies at an end of those tried for batch size 512." in text
    assert "° Interpolated between the rates that the search trained." in text
    rates = {line[0]: line[1] for line in comparison.costs(makers.comparison()).lines}
    assert [rate[-1] for rate in rates.values()].count("°") == [rate[-1] for rate in rates.values()].count("*") == 1
    remarks = [line[-1] for line in comparison.searches(makers.comparison()).lines]
    assert remarks == ["interpolated, 1 diverged", "1 diverged", "1 diverged", "best at the edge"]
    assert "none was searched for" in printed(makers.comparison(search=False))


def test_pairs_are_told_apart_or_not(makers: ModuleType) -> None:
    lines = {line[0]: line for line in comparison.differences(makers.comparison()).lines}
    assert len(lines) == 6
    assert lines["8 − 32"][3] == "no"
    assert lines["8 − 512"][3] == "higher"
    assert lines["8 − 512"][5] == "slower"


def test_many_pairs_are_cut_down_to_those_of_the_best_row(records: dict[str, Record]) -> None:
    text = squeezed(printed(records["twelve rows"]))
    assert "The 11 pairs with 16 × 2,048, out of 66." in text


def test_rows_with_one_label_get_numbers(makers: ModuleType) -> None:
    record = makers.comparison((64, 64))
    assert row_labels(record) == ("64 × 512 (1)", "64 × 512 (2)")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("finished", "Finished its budget after 32,768 examples, 1,024 updates"),
        ("diverged", "Diverged at update 288"),
        ("interrupted", "Interrupted after"),
        ("out of memory", "Ran out of memory"),
        ("stopped early", "Stopped early, since the score no longer rose"),
        ("reached", "Reached the target"),
    ],
)
def test_a_run_says_how_it_ended(makers: ModuleType, outcome: str, words: str) -> None:
    text = printed(makers.train_result(outcome=outcome), 160)
    assert text.startswith(words)
    assert "Where the time went" in text


def test_the_parts_of_the_time_add_up(makers: ModuleType) -> None:
    run = makers.train_result()
    assert sum(seconds for _, seconds in training.cost_parts(run)) == pytest.approx(run.total_seconds)


def test_other_records_are_listed() -> None:
    text = printed(Plan(batch_size=64, learning_rate=0.1, iterations=10))
    assert "batch_size" in text
    assert "64" in text


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.97, 0.96, 0.98), "0.970 ± 0.010"),
        (Interval(1.0, 0.5, 3.0), "1.000 (0.500 to 3.000)"),
        (Interval(1.0, float("-inf"), float("inf")), "1.000 ± ∞"),
        (Interval(1.0, None, None), "1.000"),
        (Interval.unresolved(low=0.5), "–"),
    ],
)
def test_estimates(interval: Interval, text: str) -> None:
    assert f.estimate(interval, 3) == text


def test_units_suit_the_column() -> None:
    assert f.time_unit([1.4, 0.45, 0.22, 0.16]).name == "s"
    assert f.time_unit([0.021, 0.15]).name == "ms"
    assert f.time_unit([]).name == "s"
    assert f.memory_unit([3e9, 5e9]).name == "GiB"
    assert f.memory_unit([None]).name == "MiB"
    assert f.seconds(0.0) == "0 s"


def test_the_answer_comes_before_every_number(pages: dict[str, str], records: dict[str, Record]) -> None:
    record = records["plain"]
    assert isinstance(record, Comparison)
    words = Page(pages["plain"]).words
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
    assert "Interrupted before every run was done" in Page(pages["interrupted"]).words
    assert "128 × 256: no run finished (5 diverged)." in Page(pages["diverged"]).words
    assert "One seed" in Page(pages["single seed"]).words
    assert "Learning curves" not in Page(pages["nothing ran"]).words
    assert "Peak memory" not in Page(pages["null memory"]).words
    assert "all 66" in Page(pages["twelve rows"]).words


def test_every_switch_has_its_chart(pages: dict[str, str]) -> None:
    specs = json.loads(Page(pages["plain"]).scripts["charts"])["specs"]
    wanted = {f"learning_curves.{x}.{y}.{s}" for x in curves.ACROSS for y in curves.UPWARD for s in curves.SPANS}
    assert wanted <= set(specs)
    x = {key: spec["layer"][0]["encoding"]["x"] for key, spec in specs.items() if key in wanted}
    assert x["learning_curves.updates.score.whole"]["scale"]["type"] == "log"
    assert x["learning_curves.examples.score.whole"]["scale"]["type"] == "linear"


def test_curves_mean_only_what_ended_in_order(makers: ModuleType) -> None:
    record = makers.comparison((32, 128), diverged={128: 2})
    points = points_of(record)
    means = [point for point in points if point["kind"] == "mean" and point["row"] == "128 × 256"]
    runs = [run for run in record.runs_of(record.rows[1]) if run.ended_in_order]
    assert len(means) == len(runs[0].curve)
    assert means[-1]["seeds"] == 3
    expected = sum(run.curve[-1].score for run in runs) / 3
    assert means[-1]["score"] == pytest.approx(expected, rel=1e-5)
    stops = [point for point in points if point["kind"] == "stop"]
    assert [stop["outcome"] for stop in stops] == ["diverged", "diverged"]


def test_long_curves_are_thinned_to_both_ends(makers: ModuleType) -> None:
    run = makers.train_result(batch_size=8, points=1000)
    drawn = points_of(run)
    assert len(drawn) <= curves.MOST_POINTS + 1
    assert (drawn[0]["updates"], drawn[-1]["updates"]) == (0, run.iterations)


def test_a_run_has_its_page(pages: dict[str, str]) -> None:
    words = Page(pages["run finished"]).words
    assert "Finished its budget after 32,768 examples" in words
    assert "Where the time went" in words
    assert "AMD EPYC 7763" in words
    assert "Diverged: loss is not finite." in Page(pages["run diverged"]).words


def test_other_records_have_a_page_without_charts() -> None:
    text = page.render(Plan(batch_size=64, learning_rate=0.1, iterations=10))
    assert "vegaEmbed" not in text.replace(page.file_text("page.js"), "")
    assert "batch_size" in Page(text).words


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_images(makers: ModuleType, theme: palette.Theme) -> None:
    record = makers.comparison()
    for name in images.names(record):
        text = images.svg(record, name, theme=theme)
        assert text.startswith("<svg"), name
        assert palette.COLOURS[theme]["card"] in text, name
    image = images.png(record, images.OVERVIEW, theme=theme, scale=1)
    assert image.startswith(b"\x89PNG")


def test_an_image_of_nothing_is_refused(makers: ModuleType) -> None:
    with pytest.raises(ArgumentError, match="got sharpness"):
        images.png(makers.comparison(), "sharpness")
    with pytest.raises(ArgumentError, match="something to show in; got rate_search"):
        images.png(makers.comparison(search=False), "rate_search")


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


def test_a_page_is_written_whole(makers: ModuleType, tmp_path: Path) -> None:
    path = makers.train_result().report(tmp_path / "new folder" / "run.html")
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

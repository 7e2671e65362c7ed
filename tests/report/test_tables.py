from __future__ import annotations

import io
from types import ModuleType

import pytest
from rich.console import Console

from batchscope.records import Interval, Plan, Record
from batchscope.report import formatting, sheets, tables


def printed(record: Record, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(tables.render(record))
    return stream.getvalue()


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_the_conclusion_comes_first_and_every_row_follows(samples: ModuleType) -> None:
    record = samples.comparison()
    text = printed(record)
    assert squeezed(text).startswith(record.conclusion)
    for label in ("8 × 4,096", "32 × 1,024", "128 × 256", "512 × 64"):
        assert text.count(label) == 2  # what it reaches, what it costs


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_cell_is_cut_and_no_line_is_too_long(records: dict[str, Record], width: int) -> None:
    for name, record in records.items():
        text = printed(record, width)
        assert max(map(len, text.splitlines())) <= width, name
        assert "…" not in text, name


def test_wide_terminals_get_one_table(samples: ModuleType) -> None:
    assert "What it reaches, and what it costs" in printed(samples.comparison(), 160)
    assert "What it reaches, and what it costs" not in printed(samples.comparison(), 100)


def test_minor_columns_go_before_anything_is_cut(samples: ModuleType) -> None:
    wide, narrow = printed(samples.comparison(), 100), printed(samples.comparison(), 64)
    assert "training" in wide
    assert "training" not in narrow
    assert "0.9725 ± 0.0039" in narrow


def test_numbers_are_those_of_the_record(samples: ModuleType) -> None:
    record = samples.comparison()
    text = printed(record)
    assert formatting.estimate(record.rows[0].score, 4) in text
    assert formatting.number(record.rows[1].examples_per_second, 3) in text
    assert f"to {formatting.number(record.common_score)}" in text


def test_what_broke_is_said(records: dict[str, Record]) -> None:
    text = squeezed(printed(records["diverged"]))
    assert "512 × 64: 3 of 5 runs finished (2 diverged). Its numbers are over those that did." in text
    assert "128 × 256: no run finished (5 diverged)." in text
    assert "0 of 5" in text
    assert "Interrupted before every run was done" in printed(records["interrupted"])
    assert "2 of 5 runs finished (3 not run)" in squeezed(printed(records["interrupted"]))
    assert "One seed" in printed(records["single seed"])


def test_the_search_and_its_edges_are_said(samples: ModuleType) -> None:
    text = squeezed(printed(samples.comparison()))
    assert "26 runs" in text
    assert "The best rate lies at an end of those tried for batch size 512." in text
    assert "° Interpolated between the rates that the search trained." in text
    rates = {line.cells[0]: line.cells[1] for line in sheets.costs(samples.comparison()).lines}
    assert [rate[-1] for rate in rates.values()].count("°") == [rate[-1] for rate in rates.values()].count("*") == 1
    remarks = [line.cells[-1] for line in sheets.searches(samples.comparison()).lines]
    assert remarks == ["interpolated, 1 diverged", "1 diverged", "1 diverged", "best at the edge"]
    assert "none was searched for" in printed(samples.comparison(search=False))


def test_pairs_are_told_apart_or_not(samples: ModuleType) -> None:
    lines = {line.cells[0]: line.cells for line in sheets.differences(samples.comparison()).lines}
    assert len(lines) == 6
    assert lines["8 − 32"][3] == "no"
    assert lines["8 − 512"][3] == "higher"
    assert lines["8 − 512"][5] == "slower"


def test_many_pairs_are_cut_down_to_those_of_the_best_row(records: dict[str, Record]) -> None:
    text = squeezed(printed(records["twelve rows"]))
    assert "The 11 pairs with 16 × 2,048, out of 66." in text


def test_markup_in_names_is_text(records: dict[str, Record]) -> None:
    assert "[bold]x[/bold]" in printed(records["hostile"])


def test_rows_with_one_label_get_numbers(samples: ModuleType) -> None:
    record = samples.comparison((64, 64))
    assert sheets.row_labels(record) == ("64 × 512 (1)", "64 × 512 (2)")


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
def test_a_run_says_how_it_ended(samples: ModuleType, outcome: str, words: str) -> None:
    text = printed(samples.train_result(outcome=outcome), 160)
    assert text.startswith(words)
    assert "Where the time went" in text


def test_the_parts_of_the_time_add_up(samples: ModuleType) -> None:
    from batchscope.report import training_sheets

    run = samples.train_result()
    assert sum(seconds for _, seconds in training_sheets.cost_parts(run)) == pytest.approx(run.total_seconds)


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
    assert formatting.estimate(interval, 3) == text


def test_units_suit_the_column() -> None:
    assert formatting.time_unit([1.4, 0.45, 0.22, 0.16]).name == "s"
    assert formatting.time_unit([0.021, 0.15]).name == "ms"
    assert formatting.time_unit([]).name == "s"
    assert formatting.memory_unit([3e9, 5e9]).name == "GiB"
    assert formatting.memory_unit([None]).name == "MiB"
    assert formatting.seconds(0.0) == "0 s"

"""A sweep's table, charts and page: what they say is what the record says, in every state that a sweep can end in."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report import samples
from tests.report.reading import Page, domain, drawn, layers, printed
from tests.report.reading import points as data

from batchscope.fit.tradeoff_band import tradeoff_band
from batchscope.records import Interval, Record, Sweep, TradeoffLaw, load
from batchscope.report import formatting as f
from batchscope.report import images, page
from batchscope.report.views import sweep as sweep_view
from batchscope.report.views import sweep_charts

ENDS = st.one_of(st.none(), st.floats(1e-3, 1e12), st.just(math.inf), st.just(0.0))


@pytest.fixture(scope="module")
def sweeps() -> dict[str, Record]:
    return samples.group("sweeps")


def of(sweeps: dict[str, Record], name: str) -> Sweep:
    found = sweeps[name]
    assert isinstance(found, Sweep)
    return found


def law_of(sweeps: dict[str, Record], name: str) -> TradeoffLaw:
    found = sweeps[name]
    assert isinstance(found, TradeoffLaw)
    return found


# Every state


def test_what_there_is_to_show(sweeps: dict[str, Record]) -> None:
    shown = {name: images.names(record) for name, record in sweeps.items()}
    law = ("updates_to_target", "examples_to_target")
    rates = ("best_rate", "best_curves", "rate_map")
    assert shown["sweep"] == (*law, "seconds_to_target", "front", *rates)
    assert shown["sweep untimed"] == (*law, *rates)
    assert shown["sweep scores"] == ("score_by_size", *rates)
    assert shown["sweep nothing"] == ("score_by_size", *rates)
    assert shown["sweep diverged"] == ("rate_map",)
    assert shown["sweep empty"] == ()
    assert shown["law"] == law
    assert shown["law nothing"] == ()


def test_the_record_in_the_page_is_the_record(pages: dict[str, str], sweeps: dict[str, Record], tmp_path: Path) -> None:
    for name in ("sweep", "sweep large", "sweep hostile", "law missed"):
        path = tmp_path / "record.json"
        path.write_text(Page(pages[name]).record, encoding="utf-8")
        assert load(path) == sweeps[name], name
    assert 'data-packed="gzip"' in pages["sweep large"]
    assert "holds the whole record" in Page(pages["sweep large"]).words


def test_a_record_too_long_for_a_page_keeps_the_curves_of_the_best_rates(
    sweeps: dict[str, Record], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = of(sweeps, "sweep")
    monkeypatch.setattr(page, "MOST_PLAIN", 1000)
    monkeypatch.setattr(page, "MOST_PACKED", 1000)
    text = page.render(record)
    path = tmp_path / "record.json"
    path.write_text(Page(text).record, encoding="utf-8")
    kept = load(path)
    assert isinstance(kept, Sweep)
    best = {(line.batch_size, line.learning_rate) for line in record.best}
    for was, found in zip(record.trials, kept.trials, strict=True):
        assert found == (was if (was.batch_size, was.learning_rate) in best else replace(was, curve=()))
    assert "without the curves of trials away from the best rates" in Page(text).words


# The trade-off law


@pytest.mark.parametrize(("chart", "per_update"), [("examples_to_target", False), ("updates_to_target", True)])
def test_points_and_line_of_the_law(sweeps: dict[str, Record], chart: str, per_update: bool) -> None:
    record = of(sweeps, "sweep")
    assert record.law is not None
    spec = drawn(record, chart)
    points = {point["batch"]: point for point in data(spec, "missed")}
    for line in record.best:
        measured = line.updates_to_target if per_update else line.examples_to_target
        point = points[line.batch_size]
        assert [point[key] for key in ("value", "low", "high")] == pytest.approx(
            [measured.value, measured.low, measured.high]
        )
    curve = [point for point in data(spec, "batch", "value") if "kind" not in point]
    assert len(curve) >= 60
    for point in curve[::7]:
        [found] = tradeoff_band(record.law, [point["batch"]])
        by = point["batch"] if per_update else 1.0
        assert [point[key] * by for key in ("value", "low", "high")] == pytest.approx(
            [found.value, found.low, found.high]
        )


def test_the_regimes_meet_at_a_third_and_three_times_the_critical_size(sweeps: dict[str, Record]) -> None:
    record = of(sweeps, "sweep")
    assert record.law is not None
    spec = drawn(record, "updates_to_target")
    critical = record.law.critical_batch_size.value or math.nan
    low, high = domain(spec, "x")
    regimes = data(spec, "name")
    assert [regime["kind"] for regime in regimes] == ["perfect scaling", "diminishing returns", "flat"]
    borders = [regimes[0]["low"], *(regime["high"] for regime in regimes)]
    assert borders == pytest.approx([low, critical / 3, critical * 3, high])
    for point in data(spec, "missed"):
        inside = next(r for r in regimes if r["low"] <= point["batch"] <= r["high"])
        law = next(p for p in record.law.points if p.batch_size == point["batch"])
        assert inside["kind"] == law.regime


def test_missed_runs_are_told_by_their_shape(sweeps: dict[str, Record]) -> None:
    law = law_of(sweeps, "law missed")
    spec = drawn(law, "examples_to_target")
    points = {point["batch"]: point for point in data(spec, "missed")}
    assert points[512]["missed"] == 1
    assert points[512]["runs"] == "3, 1 missed the target"
    assert "value" not in points[1024]
    assert points[1024]["low"] == pytest.approx(250_000)
    marks = [layer["mark"] for layer in layers(spec)]
    shapes = [(mark.get("filled"), mark.get("shape")) for mark in marks if mark["type"] == "point"]
    assert {(True, None), (False, None), (False, "triangle-up")} <= set(shapes)
    # Where nothing is known of a size but that all its runs missed, it has no mark.
    unknown = data(drawn(law_of(sweeps, "law missed unknown"), "examples_to_target"), "missed")
    assert 1024 not in {point["batch"] for point in unknown}


def test_an_open_critical_size_is_named_at_the_edge(sweeps: dict[str, Record]) -> None:
    spec = drawn(sweeps["law one branch"], "updates_to_target")
    [label] = {point["text"] for point in data(spec, "x", "text")}
    assert label.startswith("B_crit ")
    assert label.endswith("or more →")
    assert data(spec, "name") == []


def test_every_measured_size_is_inside_the_plot(sweeps: dict[str, Record]) -> None:
    for name, record in sweeps.items():
        found = images.every(record)
        for chart in {"updates_to_target", "examples_to_target"} & set(found):
            spec = found[chart]
            (left, right), (low, high) = domain(spec, "x"), domain(spec, "y")
            for point in data(spec, "missed"):
                assert left < point["batch"] < right, name
                assert low <= point.get("value", point["low"]) <= high, name
                assert low <= point["low"] <= point.get("high", point["low"]) <= high, name


def test_the_table_of_the_law(sweeps: dict[str, Record]) -> None:
    said = printed(sweeps["law missed"])
    law = law_of(sweeps, "law missed")
    assert law.verdict.split(".")[0] in " ".join(said.split())
    assert "> 250,000" in said
    assert "1 of 3" in said
    assert "diminishing returns" in said
    rows = sweep_view.law_points(law_of(sweeps, "law two"))
    assert [column.heading for column in rows.columns] == ["batch", "examples", "updates", "law", "residual", "runs"]
    assert "not reached" in printed(sweeps["law nothing"])
    assert "(B/B_crit)^p" in printed(sweeps["law general"])


@given(value=st.one_of(st.none(), st.floats(1e-3, 1e12)), low=ENDS, high=ENDS)
def test_no_interval_is_printed_with_what_is_not_a_number(
    value: float | None, low: float | None, high: float | None
) -> None:
    said = sweep_view.needs(Interval(value, low, high, resolved=value is not None))
    assert said
    assert not re.search(r"None|nan|inf|∞", said)


# Time


def test_time_is_measured_points_and_a_line_by_the_law(sweeps: dict[str, Record]) -> None:
    record = of(sweeps, "sweep")
    assert record.time is not None
    spec = drawn(record, "seconds_to_target")
    unit = f.time_unit([p.seconds.value for p in record.time.points])
    points = data(spec, "batch", "kind")
    by_law = {p["batch"]: p["value"] * unit.size for p in points if p["kind"] == "by the law"}
    measured = {p["batch"]: p["value"] * unit.size for p in points if p["kind"] == "measured"}
    assert by_law == pytest.approx({p.batch_size: p.seconds.value for p in record.time.points})
    assert measured == pytest.approx({line.batch_size: line.seconds_to_target.value for line in record.best})
    [label] = {point["text"] for point in data(spec, "x", "text")}
    assert label == f"fastest {f.sized(record.time.best_batch_size)}"


def test_the_front_is_of_sizes_that_none_beats_in_both(sweeps: dict[str, Record]) -> None:
    points = data(drawn(sweeps["sweep"], "front"), "examples", "value", "kind")
    assert {point["kind"] for point in points} == {"on the front", "beaten in both"}
    for point in points:
        beaten = any(
            other["examples"] <= point["examples"] and other["value"] < point["value"]
            for other in points
            if other["batch"] != point["batch"]
        )
        assert beaten == (point["kind"] != "on the front"), point["batch"]


# Learning rates


def test_both_rules_go_through_today(sweeps: dict[str, Record]) -> None:
    record = of(sweeps, "sweep")
    lines = data(drawn(record, "best_rate"), "batch", "value", "kind")
    for rule, power in (("linear rule", 1.0), ("square-root rule", 0.5)):
        for point in (p for p in lines if p["kind"] == rule):
            expected = record.workload.learning_rate * (point["batch"] / record.workload.batch_size) ** power
            assert point["value"] == pytest.approx(expected)


def test_best_rates_have_their_bracket_and_their_edge(sweeps: dict[str, Record]) -> None:
    record = of(sweeps, "sweep edge")
    assert record.rate_law is not None
    points = data(drawn(record, "best_rate"), "edge")
    assert [(p["batch"], p["value"], p["low"], p["high"], p["edge"]) for p in points] == [
        (p.batch_size, p.learning_rate, p.low, p.high, p.edge) for p in record.rate_law.points
    ]
    assert "highest" in {point["edge"] for point in points}
    # Without a law: between the rates tried next to it.
    few = of(sweeps, "sweep two sizes")
    assert few.rate_law is None
    for line, point in zip(few.best, data(drawn(few, "best_rate"), "edge"), strict=True):
        below, own, above = (line.rates.index(point[key]) for key in ("low", "value", "high"))
        assert (own - below, above - own) == (1, 1)


def test_cells_of_the_map_tile_each_column(sweeps: dict[str, Record]) -> None:
    for name in ("sweep", "sweep large", "sweep one size scores"):
        cells = data(drawn(sweeps[name], "rate_map"), "rate")
        for _, of_size in itertools.groupby(cells, key=lambda cell: cell["batch"]):
            column = list(of_size)
            assert all(cell["low"] < cell["rate"] < cell["high"] for cell in column)
            for lower, upper in itertools.pairwise(column):
                assert lower["high"] == pytest.approx(upper["low"])
            assert sum(cell["best"] for cell in column) <= 1


def test_cells_say_what_became_of_their_trials(sweeps: dict[str, Record]) -> None:
    record = of(sweeps, "sweep failing")
    cells = data(drawn(record, "rate_map"), "rate")
    assert {cell["state"] for cell in cells} == {"", *sweep_charts.SHAPES}
    for cell in cells:
        own = [t for t in record.trials if (t.batch_size, t.learning_rate) == (cell["batch"], cell["rate"])]
        reached = [t.examples_to_target for t in own if t.examples_to_target is not None]
        assert (cell["value"] is not None) == bool(reached)
        assert (cell["state"] == "") == bool(reached)
        if len(reached) == len(own):
            assert cell["value"] == pytest.approx(math.exp(sum(map(math.log, reached)) / len(reached)))
    shape = next(
        layer["encoding"]["shape"] for layer in layers(drawn(record, "rate_map")) if "shape" in layer["encoding"]
    )
    assert set(shape["legend"]["values"]) == set(sweep_charts.SHAPES)
    assert len(set(shape["scale"]["range"])) == len(sweep_charts.SHAPES)


def test_without_a_target_the_map_is_of_scores(sweeps: dict[str, Record]) -> None:
    record = of(sweeps, "sweep scores")
    spec = drawn(record, "rate_map")
    for cell in data(spec, "rate"):
        own = [t for t in record.trials if (t.batch_size, t.learning_rate) == (cell["batch"], cell["rate"])]
        scores = [t.best_score for t in own if t.outcome == "finished" and t.best_score is not None]
        assert cell["value"] == (pytest.approx(sum(scores) / len(scores)) if scores else None)


@given(rates=st.lists(st.floats(1e-8, 1e3), min_size=1, max_size=12, unique=True).map(sorted))
def test_extents_hold_their_rate_and_meet(rates: list[float]) -> None:
    extents = sweep_charts.extents(rates)
    assert all(low <= rate <= high for rate, (low, high) in zip(rates, extents, strict=True))
    assert [high for _, high in extents[:-1]] == pytest.approx([low for low, _ in extents[1:]])


# Scores and curves


def test_scores_stand_with_their_intervals(sweeps: dict[str, Record]) -> None:
    record = of(sweeps, "sweep scores")
    points = data(drawn(record, "score_by_size"), "batch", "value")
    assert {p["batch"]: p["value"] for p in points} == {line.batch_size: line.score.value for line in record.best}
    [highest] = [p["batch"] for p in points if p["kind"] == "highest"]
    assert highest == max(record.best, key=lambda line: line.score.value or 0.0).batch_size
    target = [p for p in data(drawn(sweeps["sweep nothing"], "score_by_size"), "text") if "batch" not in p]
    assert target == [{"value": 0.95, "text": "target 0.95"}]


def test_curves_are_those_of_the_best_rates(sweeps: dict[str, Record]) -> None:
    record = of(sweeps, "sweep")
    points = data(drawn(record, "best_curves"), "score", "examples")
    best = {line.batch_size: line.learning_rate for line in record.best}
    assert {(point["batch"], point["rate"]) for point in points} == set(best.items())
    runs = [t for t in record.trials if best[t.batch_size] == t.learning_rate]
    assert len({point["run"] for point in points}) == len(runs)


# Words


def test_the_answer_comes_first_and_trials_last(pages: dict[str, str], sweeps: dict[str, Record]) -> None:
    said = Page(pages["sweep"]).words
    order = [
        "Which batch size reaches a score of 0.95 soonest?",
        "fewest examples.",
        "What each batch size needs",
        "The best of each batch size",
        "The trade-off law",
        "Time to the target",
        "Learning rates",
        "All that was tried",
        "Trials: all 117",
        "Provenance",
    ]
    places: list[int] = []
    for part in order:
        places.append(said.index(part, places[-1] if places else 0))
    assert places == sorted(places)
    assert "After 400,000" not in said
    assert "best score after 400,000 examples?" in Page(pages["sweep scores"]).words
    assert len(of(sweeps, "sweep").trials) == 117


def test_the_table_says_what_each_batch_size_needs(sweeps: dict[str, Record]) -> None:
    record = of(sweeps, "sweep")
    said = printed(record, 140)
    assert said.startswith("Of the batch sizes tried, 4 reaches a score of 0.95")
    for line in record.best:
        row = next(text for text in said.splitlines() if text.split()[:1] == [f"{line.batch_size:,}"])
        assert f.number(line.learning_rate, 3) in row
        assert sweep_view.needs(line.examples_to_target) in row
    assert "trials: 117, 80 reached" in said
    assert "AMD EPYC 7763" in " ".join(said.split())


def test_what_to_know_before_trusting_the_numbers(sweeps: dict[str, Record]) -> None:
    assert sweep_view.warnings(of(sweeps, "sweep")) == ()
    said = {name: " ".join(sweep_view.warnings(of(sweeps, name))) for name in sweeps if name.startswith("sweep")}
    assert "Interrupted before the sweep was done" in said["sweep interrupted"]
    assert "the disk is full" in said["sweep stopped"]
    assert "One seed" in said["sweep single seed"]
    assert "Batch size 4, 8, 16: no trial ended with a result." in said["sweep diverged"]
    assert "highest tried" in printed(sweeps["sweep edge"])
    assert "3 trials without a result, crashed: the process was killed by signal 11" in said["sweep failing"]


def test_settings_name_what_trained_the_trials(sweeps: dict[str, Record]) -> None:
    facts = dict(sweep_view.settings(of(sweeps, "sweep")))
    assert facts["trained as"] == "replicas at 6 sizes, separate runs at 3 sizes"
    assert facts["engine"] == "local, 2 processes"
    assert facts["trials"].startswith("80 reached")
    assert dict(sweep_view.settings(of(sweeps, "sweep scores")))["target"] == "none: scores at the budget"


def test_needed_is_measured_with_what_missed(sweeps: dict[str, Record]) -> None:
    found = sweep_charts.needed(of(sweeps, "sweep failing"))
    assert [size for size, _, _, missed in found if missed]
    assert all(examples.value is None for _, examples, runs, missed in found if missed == runs)

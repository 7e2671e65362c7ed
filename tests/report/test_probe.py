"""A probe's charts, table and page: what they say is what the record says, and nothing is said that it does not."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.report.reading import Page, drawn, layers, said
from tests.report.reading import points as data

import batchscope as bs
from batchscope.records import BranchedRuns, Interval, MemoryUse, Probe, Record
from batchscope.report import formatting as f
from batchscope.report import images, page
from batchscope.report.charts import axes
from batchscope.report.charts.plot import AMBER
from batchscope.report.view import Card
from batchscope.report.views import probe as probe_view
from batchscope.report.views import view

PARTS = {
    "part step time": ("step_time", "throughput"),
    "part memory": ("memory",),
    "part noise": ("gradient_error",),
    "part branches": ("branches",),
    "part range": ("rate_range",),
}
ends = st.one_of(st.none(), st.floats(0, 1e12), st.just(math.inf), st.just(-math.inf))


def probe(records: dict[str, Record], name: str) -> Probe:
    found = records[name]
    assert isinstance(found, Probe)
    return found


def answer_of(record: Record) -> str:
    return view(record).answer


# What is drawn


@pytest.mark.parametrize(("name", "expected"), PARTS.items())
def test_a_part_alone_has_the_charts_that_it_has_in_the_probe(
    records: dict[str, Record], name: str, expected: tuple[str, ...]
) -> None:
    assert images.names(records[name]) == expected
    for chart in expected:
        assert drawn(records[name], chart) == drawn(records["probe cnn"], chart)


def test_the_axis_of_limits_holds_every_number(records: dict[str, Record]) -> None:
    for name, record in records.items():
        if not isinstance(record, Probe):
            continue
        spec = drawn(record, "limits")
        low, high = next(layer["encoding"]["x"] for layer in layers(spec) if "scale" in layer["encoding"].get("x", {}))[
            "scale"
        ]["domain"]
        found = record.limits
        numbers = (record.workload.batch_size, found.memory, *(i.value for i in (found.knee, found.critical)))
        assert all(low < value < high for value in numbers if value is not None), name
        for row in data(spec, "place"):
            assert low <= row["at"] <= high, name


def test_limits_are_drawn_where_they_lie(records: dict[str, Record]) -> None:
    record = probe(records, "probe")
    rows = {row["kind"]: row for row in data(drawn(record, "limits"), "place")}
    assert (rows["throughput knee"]["value"], rows["throughput knee"]["low"]) == (38.3, record.limits.knee.low)
    assert (rows["memory"]["high"], rows["memory"]["text"]) == (1_437, "micro-batches up to 1,437")
    assert rows["worth having"]["text"] == "78.3 (67.4 to 91)"
    rows = {row["kind"]: row for row in data(drawn(records["probe transformer"], "limits"), "place")}
    assert rows["critical batch"]["value"] is None
    assert rows["critical batch"]["above"]
    assert rows["critical batch"]["low"] == 900
    rows = {row["kind"]: row for row in data(drawn(records["probe bare"], "limits"), "place")}
    assert {row["align"] for row in rows.values()} == {"none"}
    assert rows["memory"]["text"] == "not known"


@pytest.mark.parametrize("name", ["probe", "probe cnn", "probe transformer"])
def test_lines_are_the_fitted_laws(records: dict[str, Record], name: str) -> None:
    record = probe(records, name)
    law = record.step_time.law
    curve = [p for p in data(drawn(record, "throughput"), "batch", "value") if "kind" not in p]
    assert len(curve) >= 60
    for point in curve:
        assert point["value"] == pytest.approx(point["batch"] / (law.seconds(point["batch"]) or math.nan), rel=1e-9)
    times = [p for p in data(drawn(record, "step_time"), "batch", "value") if "kind" not in p]
    ratios = {round(p["value"] / (law.seconds(p["batch"]) or math.nan), 3) for p in times}
    assert len(ratios) == 1  # one unit
    assert ratios <= {1.0, 1e3, 1e6}
    memory = record.memory
    assert memory is not None
    assert memory.law is not None
    assert memory.law.state_bytes.value is not None
    line = [p for p in data(drawn(record, "memory"), "batch", "value") if "kind" not in p]
    slopes = {(p["value"] - memory.law.state_bytes.value) / p["batch"] for p in line}
    assert max(slopes) == pytest.approx(min(slopes))


def test_the_loader_s_region_is_drawn_where_there_is_one(records: dict[str, Record]) -> None:
    for chart in ("step_time", "throughput"):
        (region,) = [p for p in data(drawn(records["probe cnn"], chart), "text") if p["text"] == "waits for data"]
        assert 256 < region["low"] < 512  # bound from 512 on, and not yet at 256
        assert not [p for p in data(drawn(records["probe"], chart), "text") if p["text"] == "waits for data"]


def test_memory_s_walls_and_marks(records: dict[str, Record]) -> None:
    spec = drawn(records["probe cnn"], "memory")
    walls = {point["margin"]: point["value"] for point in data(spec, "margin")}
    assert walls == {False: 80 * 2**30, True: pytest.approx(72 * 2**30)}
    texts = {point["text"] for point in data(spec, "text")}
    assert {"ran 8,192", "predicted 31,859", "limit 80 GiB, CUDA device", "less 10%: 72 GiB"} <= texts
    assert "training set 1,437" in {point["text"] for point in data(drawn(records["probe"], "memory"), "text")}
    assert data(drawn(records["probe extremes"], "memory"), "margin") == []  # no limit is known


def test_unresolved_noise_is_an_arrow_from_its_bound(records: dict[str, Record]) -> None:
    spec = drawn(records["probe transformer"], "noise_scale")
    plain = [p for p in data(spec, "above") if p["kind"] == "noise scale" and "stretch" not in p]
    assert [p["resolved"] for p in plain] == [True, True, False, False, False]
    assert [p["low"] for p in plain[2:]] == [480, 900, 1_300]
    assert all(p["above"] and p["value"] is None for p in plain[2:])
    assert [p["examples"] for p in data(spec, "stretch") if p["kind"] == "preconditioned"] == [1_024, 2_048]
    assert "noise_scale" not in images.every(records["probe bare"])


def test_a_band_is_not_drawn_across_what_is_unresolved(records: dict[str, Record]) -> None:
    record = probe(records, "probe")
    middle = replace(record.noise[2], noise_scale=Interval.unresolved(low=40.0))
    broken = replace(record, noise=(*record.noise[:2], middle, *record.noise[3:]))
    stretches = [p["stretch"] for p in data(drawn(broken, "noise_scale"), "stretch")]
    assert stretches == ["noise scale 0"] * 2 + ["noise scale 1"] * 2


def test_branches_that_diverged_are_crosses(records: dict[str, Record]) -> None:
    points = {p["batch"]: p for p in data(drawn(records["part branches"], "branches"), "rate")}
    assert points[2_048]["value"] is None
    assert not points[2_048]["far"]
    assert points[64]["kind"] == "came back"
    assert points[1_024]["kind"] == "inconclusive"
    texts = {p["text"] for p in data(drawn(records["part branches"], "branches"), "text")}
    assert {"tolerance 0.01", "critical 512"} <= texts
    assert "critical –" not in {p["text"] for p in data(drawn(records["part branches lost"], "branches"), "text")}


def test_a_branch_far_above_the_tolerance_does_not_flatten_the_others(records: dict[str, Record]) -> None:
    runs = records["part branches"]
    assert isinstance(runs, BranchedRuns)
    far = replace(runs.branches[-1], excess=Interval(0.9, 0.8, 1.0))
    spec = drawn(replace(runs, branches=(*runs.branches[:-1], far)), "branches")
    points = {p["batch"]: p for p in data(spec, "rate")}
    assert (points[2_048]["value"], points[2_048]["far"]) == (None, True)
    axes = [layer["encoding"].get("y", {}) for layer in layers(spec)]
    assert {axis["scale"]["domain"][1] < 0.1 for axis in axes if "scale" in axis} == {True}


def test_a_flat_range_test_marks_no_rate(records: dict[str, Record]) -> None:
    labels = {p["text"] for p in data(drawn(records["part range flat"], "rate_range"), "text")}
    assert labels == {"curvature bound 0.9"}
    labels = {p["text"] for p in data(drawn(records["part range"], "rate_range"), "text")}
    assert labels == {"steepest 0.041", "start from 0.048", "largest stable 0.19", "curvature bound 0.21"}


def test_labels_of_uprights_never_share_a_line(records: dict[str, Record]) -> None:
    heights = [
        layer["encoding"]["y"]["value"]
        for layer in layers(drawn(records["part range"], "rate_range"))
        if layer["mark"].get("type") == "text" and layer["mark"].get("style") is None
    ]
    assert len(set(heights)) == 4
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 15


@given(st.one_of(st.none(), st.floats(1e-9, 1e12)), ends, ends, st.floats(1e-6, 1e3), st.floats(1.5, 1e6))
def test_a_cut_interval_lies_in_the_plot(
    value: float | None, low: float | None, high: float | None, first: float, ratio: float
) -> None:
    domain = [first, first * ratio]
    found = axes.cut(Interval(value, low, high, resolved=value is not None), domain)
    if found is None:
        assert value is None
        return
    for end in (found["low"], found["high"], found["value"] or first):
        assert domain[0] <= end <= domain[1]
    assert found["value"] in (None, value)
    alone = value is not None and low is None and high is None
    assert found["below"] == ((value if alone else -math.inf if low is None else low) < domain[0])  # type: ignore[operator]
    assert found["above"] == ((value if alone else math.inf if high is None else high) > domain[1])  # type: ignore[operator]


@given(st.floats(1e-3, 1e6), st.floats(1.0, 1e9), st.integers(2, 12))
def test_powers_of_two_stay_inside_and_few(low: float, ratio: float, most: int) -> None:
    places = axes.powers_of_two([low, low * ratio], most)
    assert len(places) <= most
    assert all(low * (1 - 1e-12) <= place <= low * ratio * (1 + 1e-12) for place in places)
    assert all(math.log2(place).is_integer() for place in places)


def test_headroom_keeps_the_data_below_the_labels() -> None:
    for log in (True, False):
        low, high = axes.with_headroom([2.0, 8.0], 3, height=300, log=log)
        share = (math.log(8 / low) / math.log(high / low)) if log else (8 - low) / (high - low)
        assert share == pytest.approx(1 - 3 * axes.LABEL_HEIGHT / 300)


# What is said


def test_the_page_answers_first(records: dict[str, Record]) -> None:
    record = probe(records, "probe cnn")
    text = Page(page.render(record)).words
    order = [
        "How large a batch is worth having?",
        record.limits.conclusion,
        "worth having 1,410 (1,190 to 1,670)",
        record.warnings[0],
        "The three limits",
        record.limits.memory_sentence,
        record.limits.knee_sentence,
        record.limits.critical_sentence,
        "Time of an update",
        "Step time",
        "Peak memory",
        "Noise scale along training",
        "Error of a batch's gradient",
        "Branched runs",
        "Learning rate",
        "Provenance",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "Re-planned" not in text


def test_a_replanned_probe_says_so_before_its_answer(records: dict[str, Record]) -> None:
    record = probe(records, "probe replanned")
    sentence = (
        "Re-planned for a memory limit of 24 GiB and computing 2.5 times faster per example, not measured: the laws "
        "below are carried over."
    )
    for text in (Page(page.render(record)).words, said(record)):
        assert text.index(sentence) < text.index(record.limits.conclusion[:20])


def test_what_was_not_measured_has_no_section(records: dict[str, Record]) -> None:
    text = Page(page.render(records["probe bare"])).words
    for title in ("Peak memory", "Branched runs", "Learning rate", "Noise scale along training"):
        assert title not in text
    assert text.count("not resolved") >= 5
    assert view(records["probe bare"]).sections[0].cards[0] == Card(
        "Memory", "not known", "", "Memory could not be measured here.", AMBER
    )


@pytest.mark.parametrize("name", [*PARTS, "part noise unresolved", "part branches lost", "part range flat"])
def test_a_part_has_its_own_page_and_table(records: dict[str, Record], name: str) -> None:
    record = records[name]
    answer = answer_of(record)
    assert said(record, 200).startswith(answer)
    text = Page(page.render(record)).words
    assert answer in text
    assert "Provenance" in text
    assert "provenance" not in said(record)  # the plain list of fields, which has its name


def test_answers_of_parts(records: dict[str, Record]) -> None:
    def answer(name: str) -> str:
        return answer_of(records[name])

    assert answer("part memory") == (
        "Micro-batches of up to 8,192 ran here. By the law, 31,859 fit into 80 GiB with 10% left free."
    )
    use = records["part memory"]
    assert isinstance(use, MemoryUse)
    whole = replace(use, largest_executed=60_000, largest_predicted=60_000, holds_all=True)
    assert answer_of(whole) == "The full training set ran as one batch of 60,000 here."
    assert answer("part step time").endswith("From 512 on, getting a batch takes longer than computing with it.")
    assert answer("part noise unresolved") == (
        "The noise scale is not resolved: 1,300 or more with 512 examples. About 23,000 examples would settle it."
    )
    bare = probe(records, "probe bare").step_time
    assert answer_of(bare).startswith("Where examples per second stop growing is not resolved.")


@pytest.mark.parametrize("name", ["probe cnn", "part step time", "part memory"])
def test_residuals_are_measured_over_predicted(records: dict[str, Record], name: str) -> None:
    record = probe(records, "probe cnn")
    assert record.memory is not None
    steps, memory = probe_view.step_times(record.step_time), probe_view.memory(record.memory)
    for point, line in zip(record.step_time.points, steps.lines, strict=True):
        assert point.compute_seconds.value is not None
        residual = 100 * (point.compute_seconds.value - point.predicted_seconds) / point.predicted_seconds
        assert line[3] == f"{f.fixed(residual, 1, sign=True)}%"
    for peak, line in zip(record.memory.points, memory.lines, strict=True):
        residual = 100 * (peak.peak_bytes - peak.predicted_bytes) / peak.predicted_bytes
        assert line[3] == f"{f.fixed(residual, 1, sign=True)}%"
    shown = said(records[name])
    if name != "part memory":
        assert steps.lines[0][1] in shown
    if name != "part step time":
        assert memory.lines[-1][1] in shown


def test_the_terminal_says_all_of_it(records: dict[str, Record]) -> None:
    record = probe(records, "probe transformer")
    text = said(record, 120)
    assert text.startswith(record.limits.conclusion)
    for part in (
        *record.warnings,
        record.limits.knee_sentence,
        "900 or more",
        "about 45,000",
        "Learning-rate range test",
    ):
        assert part in text
    assert "Branched runs" not in text


def test_the_noise_of_a_persons_own_loop_is_shown(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    noise = bs.GradientNoise(model, optimizer, every=1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        model(torch.randn(32, 4, generator=generator)).square().mean().backward()
        optimizer.step()
    record = noise.measurement()
    noise.close()
    assert record.noise_scale.resolved
    shown = said(record)
    assert f"noise scale tr Σ/‖G‖² {f.sized(record.noise_scale)}" in shown
    assert f"{record.steps_measured} of 40, from per-example gradients" in shown
    text = record.report(tmp_path / "noise.html").read_text()
    assert "How noisy are the gradients?" in text
    assert f.sized(record.noise_scale) in text

"""A probe's table, charts and page: what they say is what the record says, and nothing is said that it does not."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import batchscope as bs
from batchscope.records import BranchedRuns, Interval, MemoryUse, Probe, Record
from batchscope.report import charts, content, marks, page, probe_content, probe_sheets
from batchscope.report import formatting as f

PARTS = {
    "part step time": ("step_time", "throughput"),
    "part memory": ("memory",),
    "part noise": ("gradient_error",),
    "part branches": ("branches",),
    "part range": ("rate_range",),
}
ends = st.one_of(st.none(), st.floats(0, 1e12), st.just(math.inf), st.just(-math.inf))


def probe(probes: dict[str, Record], name: str) -> Probe:
    found = probes[name]
    assert isinstance(found, Probe)
    return found


def drawn(record: Record, name: str) -> dict[str, Any]:
    spec = charts.specification(record, name)
    assert spec is not None
    return spec


def data(spec: dict[str, Any], *fields: str) -> list[dict[str, Any]]:
    """Every point of a chart that has these fields, each data set once."""
    sets = {
        json.dumps(layer.get("data", spec.get("data"))): layer.get("data", spec.get("data")) for layer in layers(spec)
    }
    named = spec.get("datasets", {})
    points = [p for d in sets.values() if d for p in (d["values"] if "values" in d else named.get(d.get("name"), []))]
    return [point for point in points if set(fields) <= set(point)]


def layers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [inner for layer in spec["layer"] for inner in (layers(layer) if "layer" in layer else [layer])]


def printed(record: Record, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(record.table())
    return " ".join(stream.getvalue().split())


def words(text: str) -> str:
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


# What is drawn


def test_charts_are_valid(probes: dict[str, Record]) -> None:
    import altair

    awkward = [("probe transformer", "noise_scale"), ("probe transformer", "limits"), ("probe bare", "limits")]
    for name, chart in [*(("probe cnn", chart) for chart in charts.names(probes["probe cnn"])), *awkward]:
        altair.Chart.from_dict(drawn(probes[name], chart), validate=True)


def test_every_chart_of_every_record_is_finite_and_has_a_title(probes: dict[str, Record]) -> None:
    for name, record in probes.items():
        found = charts.every(record)
        json.dumps(found, allow_nan=False)
        assert charts.rows_to_colour(record) == marks.COLOURS, name
        assert set(found) <= set(charts.TITLES), name
        assert list(found) == [title for title in charts.TITLES if title in found], name
    assert len(charts.names(probes["probe cnn"])) == 8
    assert charts.names(probes["probe bare"]) == ("limits", "step_time", "throughput")


@pytest.mark.parametrize(("name", "expected"), PARTS.items())
def test_a_part_alone_has_the_charts_that_it_has_in_the_probe(
    probes: dict[str, Record], name: str, expected: tuple[str, ...]
) -> None:
    assert charts.names(probes[name]) == expected
    for chart in expected:
        assert drawn(probes[name], chart) == drawn(probes["probe cnn"], chart)


def test_the_axis_of_limits_holds_every_number(probes: dict[str, Record]) -> None:
    for name, record in probes.items():
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


def test_limits_are_drawn_where_they_lie(probes: dict[str, Record]) -> None:
    record = probe(probes, "probe")
    rows = {row["kind"]: row for row in data(drawn(record, "limits"), "place")}
    assert (rows["throughput knee"]["value"], rows["throughput knee"]["low"]) == (38.3, record.limits.knee.low)
    assert (rows["memory"]["high"], rows["memory"]["text"]) == (1_437, "micro-batches up to 1,437")
    assert rows["worth having"]["text"] == "78.3 (67.4 to 91)"
    rows = {row["kind"]: row for row in data(drawn(probes["probe transformer"], "limits"), "place")}
    assert rows["critical batch"]["value"] is None
    assert rows["critical batch"]["above"]
    assert rows["critical batch"]["low"] == 900
    rows = {row["kind"]: row for row in data(drawn(probes["probe bare"], "limits"), "place")}
    assert {row["align"] for row in rows.values()} == {"none"}
    assert rows["memory"]["text"] == "not known"


@pytest.mark.parametrize("name", ["probe", "probe cnn", "probe transformer"])
def test_lines_are_the_fitted_laws(probes: dict[str, Record], name: str) -> None:
    record = probe(probes, name)
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


def test_the_loader_s_region_is_drawn_where_there_is_one(probes: dict[str, Record]) -> None:
    for chart in ("step_time", "throughput"):
        (region,) = [p for p in data(drawn(probes["probe cnn"], chart), "text") if p["text"] == "waits for data"]
        assert 256 < region["low"] < 512  # bound from 512 on, and not yet at 256
        assert not [p for p in data(drawn(probes["probe"], chart), "text") if p["text"] == "waits for data"]


def test_memory_s_walls_and_marks(probes: dict[str, Record]) -> None:
    spec = drawn(probes["probe cnn"], "memory")
    walls = {point["margin"]: point["value"] for point in data(spec, "margin")}
    assert walls == {False: 80 * 2**30, True: pytest.approx(72 * 2**30)}
    texts = {point["text"] for point in data(spec, "text")}
    assert {"ran 8,192", "predicted 31,859", "limit 80 GiB, CUDA device", "less 10%: 72 GiB"} <= texts
    assert "training set 1,437" in {point["text"] for point in data(drawn(probes["probe"], "memory"), "text")}
    assert data(drawn(probes["probe extremes"], "memory"), "margin") == []  # no limit is known


def test_unresolved_noise_is_an_arrow_from_its_bound(probes: dict[str, Record]) -> None:
    spec = drawn(probes["probe transformer"], "noise_scale")
    plain = [p for p in data(spec, "above") if p["kind"] == "noise scale" and "stretch" not in p]
    assert [p["resolved"] for p in plain] == [True, True, False, False, False]
    assert [p["low"] for p in plain[2:]] == [480, 900, 1_300]
    assert all(p["above"] and p["value"] is None for p in plain[2:])
    assert [p["examples"] for p in data(spec, "stretch") if p["kind"] == "preconditioned"] == [1_024, 2_048]
    assert charts.specification(probes["probe bare"], "noise_scale") is None


def test_a_band_is_not_drawn_across_what_is_unresolved(probes: dict[str, Record]) -> None:
    record = probe(probes, "probe")
    middle = replace(record.noise[2], noise_scale=Interval.unresolved(low=40.0))
    broken = replace(record, noise=(*record.noise[:2], middle, *record.noise[3:]))
    stretches = [p["stretch"] for p in data(drawn(broken, "noise_scale"), "stretch")]
    assert stretches == ["noise scale 0"] * 2 + ["noise scale 1"] * 2


def test_branches_that_diverged_are_crosses(probes: dict[str, Record]) -> None:
    points = {p["batch"]: p for p in data(drawn(probes["part branches"], "branches"), "rate")}
    assert points[2_048]["value"] is None
    assert not points[2_048]["far"]
    assert points[64]["kind"] == "came back"
    assert points[1_024]["kind"] == "cannot be told"
    texts = {p["text"] for p in data(drawn(probes["part branches"], "branches"), "text")}
    assert {"tolerance 0.01", "critical 512"} <= texts
    assert "critical –" not in {p["text"] for p in data(drawn(probes["part branches lost"], "branches"), "text")}


def test_a_branch_far_above_the_tolerance_does_not_flatten_the_others(probes: dict[str, Record]) -> None:
    runs = probes["part branches"]
    assert isinstance(runs, BranchedRuns)
    far = replace(runs.branches[-1], excess=Interval(0.9, 0.8, 1.0))
    spec = drawn(replace(runs, branches=(*runs.branches[:-1], far)), "branches")
    points = {p["batch"]: p for p in data(spec, "rate")}
    assert (points[2_048]["value"], points[2_048]["far"]) == (None, True)
    axes = [layer["encoding"].get("y", {}) for layer in layers(spec)]
    assert {axis["scale"]["domain"][1] < 0.1 for axis in axes if "scale" in axis} == {True}


def test_a_flat_range_test_marks_no_rate(probes: dict[str, Record]) -> None:
    labels = {p["text"] for p in data(drawn(probes["part range flat"], "rate_range"), "text")}
    assert labels == {"curvature bound 0.9"}
    labels = {p["text"] for p in data(drawn(probes["part range"], "rate_range"), "text")}
    assert labels == {"steepest 0.041", "start from 0.048", "largest stable 0.19", "curvature bound 0.21"}


def test_labels_of_uprights_never_share_a_line(probes: dict[str, Record]) -> None:
    heights = [
        layer["encoding"]["y"]["value"]
        for layer in layers(drawn(probes["part range"], "rate_range"))
        if layer["mark"].get("type") == "text" and layer["mark"].get("style") is None
    ]
    assert len(set(heights)) == 4
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 15


@given(st.one_of(st.none(), st.floats(1e-9, 1e12)), ends, ends, st.floats(1e-6, 1e3), st.floats(1.5, 1e6))
def test_a_cut_interval_lies_in_the_plot(
    value: float | None, low: float | None, high: float | None, first: float, ratio: float
) -> None:
    domain = [first, first * ratio]
    found = marks.cut(Interval(value, low, high, resolved=value is not None), domain)
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
    places = marks.powers_of_two([low, low * ratio], most)
    assert len(places) <= most
    assert all(low * (1 - 1e-12) <= place <= low * ratio * (1 + 1e-12) for place in places)
    assert all(math.log2(place).is_integer() for place in places)


def test_headroom_keeps_the_data_below_the_labels() -> None:
    for log in (True, False):
        low, high = marks.with_headroom([2.0, 8.0], 3, height=300, log=log)
        share = (math.log(8 / low) / math.log(high / low)) if log else (8 - low) / (high - low)
        assert share == pytest.approx(1 - 3 * marks.LABEL_HEIGHT / 300)


# What is said


def test_the_page_answers_first(probes: dict[str, Record]) -> None:
    record = probe(probes, "probe cnn")
    text = words(page.render(record))
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
    places = [text.index(part.replace("'", "&#39;")) for part in order]
    assert places == sorted(places)
    assert "Re-planned" not in text


def test_a_replanned_probe_says_so_before_its_answer(probes: dict[str, Record]) -> None:
    record = probe(probes, "probe replanned")
    sentence = (
        "Re-planned for a memory limit of 24 GiB and computing 2.5 times faster per example, not measured: the laws "
        "below are carried over."
    )
    for text in (words(page.render(record)), printed(record)):
        assert text.index(sentence) < text.index(record.limits.conclusion[:20])


def test_what_was_not_measured_has_no_section(probes: dict[str, Record]) -> None:
    text = words(page.render(probes["probe bare"]))
    for title in ("Peak memory", "Branched runs", "Learning rate", "Noise scale along training"):
        assert title not in text
    assert text.count("not resolved") >= 5
    shown = probe_content.of_probe(probe(probes, "probe bare"), charts.names(probes["probe bare"]))
    assert shown.sections[0].cards[0] == content.Card(
        "Memory", "not known", "", "Memory could not be measured here.", marks.AMBER
    )


def test_hostile_names_are_text(probes: dict[str, Record]) -> None:
    text = page.render(probes["probe hostile"])
    assert "<script>alert" not in text
    assert "{{ 7*7 }}" in words(text)
    assert "[bold]x[/bold]" in printed(probes["probe hostile"], 200)


@pytest.mark.parametrize("name", [*PARTS, "part noise unresolved", "part branches lost", "part range flat"])
def test_a_part_has_its_own_page_and_table(probes: dict[str, Record], name: str) -> None:
    record = probes[name]
    assert isinstance(record, probe_content.Part)
    answer = probe_content.answer(record)
    assert printed(record, 200).startswith(answer)
    text = words(page.render(record))
    assert answer.replace("'", "&#39;") in text
    assert "Provenance" in text
    assert "provenance" not in printed(record)  # the plain list of fields, which has its name


def test_answers_of_parts(probes: dict[str, Record]) -> None:
    def answer(name: str) -> str:
        record = probes[name]
        assert isinstance(record, probe_content.Part)
        return probe_content.answer(record)

    assert answer("part memory") == (
        "Micro-batches of up to 8,192 ran here. By the law, 31,859 fit into 80 GiB with 10% left free."
    )
    use = probes["part memory"]
    assert isinstance(use, MemoryUse)
    whole = replace(use, largest_executed=60_000, largest_predicted=60_000, holds_all=True)
    assert probe_content.answer(whole) == "The full training set ran as one batch of 60,000 here."
    assert answer("part step time").endswith("From 512 on, getting a batch takes longer than computing with it.")
    assert answer("part noise unresolved") == (
        "The noise scale is not resolved: 1,300 or more with 512 examples. About 23,000 examples would settle it."
    )
    bare = probe(probes, "probe bare").step_time
    assert probe_content.answer(bare).startswith("Where examples per second stop growing is not resolved.")


@pytest.mark.parametrize("name", ["probe cnn", "part step time", "part memory"])
def test_residuals_are_measured_over_predicted(probes: dict[str, Record], name: str) -> None:
    record = probe(probes, "probe cnn")
    assert record.memory is not None
    steps, memory = probe_sheets.step_times(record.step_time), probe_sheets.memory(record.memory)
    for point, line in zip(record.step_time.points, steps.lines, strict=True):
        assert point.compute_seconds.value is not None
        residual = 100 * (point.compute_seconds.value - point.predicted_seconds) / point.predicted_seconds
        assert line.cells[3] == f"{f.fixed(residual, 1, sign=True)}%"
    for peak, line in zip(record.memory.points, memory.lines, strict=True):
        residual = 100 * (peak.peak_bytes - peak.predicted_bytes) / peak.predicted_bytes
        assert line.cells[3] == f"{f.fixed(residual, 1, sign=True)}%"
    shown = printed(probes[name])
    if name != "part memory":
        assert steps.lines[0].cells[1] in shown
    if name != "part step time":
        assert memory.lines[-1].cells[1] in shown


def test_the_terminal_says_all_of_it(probes: dict[str, Record]) -> None:
    record = probe(probes, "probe transformer")
    text = printed(record, 120)
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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_images(probes: dict[str, Record], theme: Any) -> None:
    text = charts.svg(probes["probe"], "limits", theme=theme)
    assert charts.TITLES["limits"] in text
    assert "78.3 (67.4 to 91)" in text
    assert charts.png(probes["part memory"], "memory", theme=theme, scale=1).startswith(b"\x89PNG")


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
    said = words(printed(record))
    assert f"noise scale tr Σ/‖G‖² {f.sized(record.noise_scale)}" in said
    assert f"{record.steps_measured} of 40, from per-example gradients" in said
    page = record.report(tmp_path / "noise.html").read_text()
    assert "How noisy are the gradients?" in page
    assert f.sized(record.noise_scale) in page

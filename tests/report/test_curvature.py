"""Records of curvature in a terminal and on a page."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from tests.report.sample_probes import CPU, HOSTILE

from batchscope.records import (
    HessianEigenvalues,
    HessianTrace,
    Interval,
    Record,
    Sharpness,
    SharpnessRun,
    SpectralDensity,
)
from batchscope.report import charts, curvature_content, page

ON: dict[str, Any] = {"workload": "digits", "seconds": 2.5, "provenance": CPU}
WHERE: dict[str, Any] = {"parameters": 9_930, "examples": 1_437, **ON}
EIGENVALUES = HessianEigenvalues(
    matrix="hessian",
    values=(31.4, 12.0, 12.0),
    residuals=(1e-5, 2e-5, 1e-5),
    converged=(True, True, False),
    told_apart=(True, False, True),
    learning_rate=0.05,
    stable_learning_rate=0.121,
    products=57,
    **WHERE,
)
TRACE = HessianTrace(
    matrix="gauss-newton",
    trace=Interval(120.0, 100.0, 140.0),
    mean_eigenvalue=Interval(0.012, 0.01, 0.014),
    samples=30,
    projected_out=5,
    products=30,
    **WHERE,
)
DENSITY = SpectralDensity(
    matrix="hessian",
    eigenvalues=tuple(x / 10 for x in range(-20, 300)),
    density=tuple(math.exp(-((x / 10) ** 2)) for x in range(-20, 300)),
    width=0.3,
    nodes=(-1.5, 0.0, 29.0),
    weights=(0.1, 0.8, 0.1),
    share_negative=Interval(0.1, 0.05, 0.15),
    runs=4,
    steps=60,
    products=240,
    **WHERE,
)
SHARPNESS = Sharpness(
    box="keskar",
    epsilon=1e-3,
    subspace=100,
    iterations=10,
    loss=0.21,
    value=12.5,
    over_runs=Interval(12.5, 11.0, 14.0),
    runs=(SharpnessRun(0.36, 12.4, 23, 0.97), SharpnessRun(0.365, 12.6, 20, 0.91)),
    **WHERE,
)
RECORDS: list[curvature_content.Curvature] = [EIGENVALUES, TRACE, DENSITY, SHARPNESS]


def printed(record: Record, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), legacy_windows=False)
    console.print(record.table())
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_terminal_and_a_page_say_the_answer_first(record: curvature_content.Curvature) -> None:
    said = curvature_content.answer(record)
    shown = " ".join(printed(record, 400).split())
    assert shown.startswith(said)
    html = page.render(replace(record, workload=HOSTILE))
    assert "<script>alert(1)" not in html
    assert "1,437" in printed(record)


def test_eigenvalues_say_which_are_told_apart_and_what_rate_they_allow() -> None:
    assert "up to 0.121 are stable; the one in use, 0.05, lies below" in curvature_content.answer(EIGENVALUES)
    assert "lies above" in curvature_content.answer(replace(EIGENVALUES, learning_rate=0.2))
    assert "bounds no learning rate" in curvature_content.answer(replace(EIGENVALUES, stable_learning_rate=None))
    table = curvature_content.sheet(EIGENVALUES)
    assert table is not None
    assert [line.cells[3] for line in table.lines] == ["yes", "no", "yes"]


def test_only_a_density_has_a_chart_and_it_is_positive() -> None:
    assert [charts.names(record) for record in RECORDS] == [(), (), ("spectral_density",), ()]
    spec = charts.specification(DENSITY, "spectral_density")
    assert spec is not None
    [values] = [layer["data"]["values"] for layer in [spec] if "data" in layer] or [spec["layer"][0]["data"]["values"]]
    assert len(values) == len(DENSITY.density)
    assert min(point["density"] for point in values) > 0
    assert charts.png(DENSITY, "spectral_density").startswith(b"\x89PNG")
    assert charts.names(replace(DENSITY, density=(0.0,) * 320)) == ()


def test_of_a_subspace_the_mean_is_told_and_of_all_the_largest() -> None:
    assert "in 2 random subspaces" in curvature_content.answer(SHARPNESS)
    assert "all of weight space" in curvature_content.answer(replace(SHARPNESS, subspace=None))

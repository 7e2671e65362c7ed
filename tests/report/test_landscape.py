"""A landscape in a terminal, in its charts and on its page."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.report.sample_probes import CPU, HOSTILE
from tests.report.test_curvature import printed

from batchscope.records import Landscape, LandscapePoint, PathPoint
from batchscope.report import charts, landscape_content, page

REST: dict[str, Any] = {
    "workload": "digits",
    "parameters": 9_930,
    "training_examples": 360,
    "validation_examples": 360,
    "seconds": 2.5,
    "provenance": CPU,
}


def bowl(along: float, across: float) -> LandscapePoint:
    loss = 0.1 + along**2 + 3 * across**2
    return LandscapePoint(along, across, loss, 1 - loss / 10, 1.2 * loss, 0.9 - loss / 10)


LINE = Landscape(
    shape="line",
    labels=("small", HOSTILE),
    length=(3.5, 0.0),
    points=tuple(bowl(k / 4 - 1, 0.0) for k in range(13)),
    path=(PathPoint(0.0, 0.0, 0.0), PathPoint(1.0, 0.0, 0.0)),
    explained=(),
    statistics_from=360,
    **REST,
)
PLACES = [k / 4 - 1 for k in range(9)]
PLANE = Landscape(
    shape="plane",
    labels=("weights",),
    length=(3.5, 3.5),
    points=tuple(bowl(x, y) for y in PLACES for x in PLACES),
    path=(PathPoint(0.0, 0.0, 0.0),),
    explained=(),
    statistics_from=0,
    **REST,
)
PATH = replace(
    PLANE,
    shape="path",
    labels=("1", "2", "3"),
    path=(PathPoint(0.9, 0.5, 0.2), PathPoint(0.4, -0.1, 0.3), PathPoint(0.0, 0.0, 0.0)),
    explained=(0.7, 0.2),
)
RECORDS = {"line": LINE, "direction": replace(LINE, shape="direction", labels=("w",)), "plane": PLANE, "path": PATH}
CHARTS = {"line": ("loss_along_line",), "direction": ("loss_along_line",)}


@pytest.mark.parametrize("shape", RECORDS)
def test_a_terminal_and_a_page_show_it(shape: str) -> None:
    record = RECORDS[shape]
    shown = " ".join(printed(record, 500).split())
    assert shown.startswith(" ".join(landscape_content.answer(record).split())[:60])
    html = page.render(replace(record, workload=HOSTILE))
    assert "<script>alert(1)" not in html
    assert charts.names(record) == CHARTS.get(shape, ("loss_map", "loss_surface"))
    for name in charts.names(record):
        assert charts.png(record, name).startswith(b"\x89PNG")


def test_the_answer_tells_what_lies_between_and_what_is_left_out() -> None:
    assert "does not rise above the higher one" in landscape_content.answer(LINE)
    walled = replace(
        LINE, points=tuple(replace(p, training_loss=0.1 + 4 * max(0.0, p.along * (1 - p.along))) for p in LINE.points)
    )
    assert "rises by 1 above the higher one" in landscape_content.answer(walled)
    assert "10% lies outside" in landscape_content.answer(PATH)


def test_what_is_not_finite_is_left_out_of_lines_and_lowered_in_maps() -> None:
    broken = (replace(LINE.points[0], training_loss=math.inf, validation_loss=math.nan), *LINE.points[1:])
    spec = charts.specification(replace(LINE, points=broken), "loss_along_line")
    assert spec is not None
    assert "Infinity" not in str(spec)
    cliff = (replace(PLANE.points[0], training_loss=math.inf), *PLANE.points[1:])
    spec = charts.specification(replace(PLANE, points=cliff), "loss_map")
    assert spec is not None
    assert "inf" not in str(spec).replace("infer", "")
    nowhere = tuple(replace(p, training_loss=math.nan, validation_loss=math.nan) for p in PLANE.points)
    assert charts.specification(replace(PLANE, points=nowhere), "loss_map") is None
    assert charts.specification(replace(LINE, points=nowhere[:3]), "loss_along_line") is None

"""Plans for several devices, curvature, landscapes: what they say is what the record says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.report.reading import drawn, points
from tests.report.samples import DENSITY, EIGENVALUES, LANDSCAPES, LINE, PATH, PLANE, SHARPNESS, plans

from batchscope.records import Record
from batchscope.report import images
from batchscope.report.views import devices, view


def answer(record: Record) -> str:
    return view(record).answer


def test_columns_follow_what_is_known() -> None:
    found = plans()

    def headings(name: str) -> list[str]:
        return [column.heading for column in devices.rows(found[name]).columns]

    assert {"cost", "energy"} <= set(headings("whole"))
    assert "cost" not in headings("timed")
    assert "updates" in headings("timed")
    assert "updates" not in headings("relative")
    assert "memory" not in headings("without memory")
    assert devices.memory(found["without memory"]) is None
    assert devices.rows(found["too many"]).column("batch")[1] == "–"


def test_charts_hold_every_number_of_devices() -> None:
    found = plans()
    for name in ("relative", "timed", "whole"):
        for chart in ("device_times", "device_cost"):
            held = {point["devices"] for point in points(drawn(found[name], chart), "asked")}
            assert held == {row.devices for row in found[name].rows}
    assert points(drawn(found["whole"], "device_cost"), "cost")
    assert images.names(found["one"]) == ()


def test_eigenvalues_say_which_are_distinct_and_what_rate_they_allow() -> None:
    assert "up to 0.121 are stable; the one in use, 0.05, lies below" in answer(EIGENVALUES)
    assert "lies above" in answer(replace(EIGENVALUES, learning_rate=0.2))
    assert "bounds no learning rate" in answer(replace(EIGENVALUES, stable_learning_rate=None))
    [table] = view(EIGENVALUES).sections[0].tables
    assert table.column("distinct") == ("yes", "no", "yes")


def test_a_density_is_drawn_positive() -> None:
    values = points(drawn(DENSITY, "spectral_density"), "density")
    assert len(values) == len(DENSITY.density)
    assert min(point["density"] for point in values) > 0
    assert images.names(replace(DENSITY, density=(0.0,) * 320)) == ()


def test_of_a_subspace_the_mean_is_given_and_of_all_weights_the_largest() -> None:
    assert "in 2 random subspaces" in answer(SHARPNESS)
    assert "of all weights" in answer(replace(SHARPNESS, subspace=None))


def test_a_line_says_what_lies_between_and_a_path_what_is_left_out() -> None:
    assert "does not rise above the higher one" in answer(LINE)
    walled = tuple(replace(p, training_loss=0.1 + 4 * max(0.0, p.along * (1 - p.along))) for p in LINE.points)
    assert "rises by 1 above the higher one" in answer(replace(LINE, points=walled))
    assert "10% lies outside" in answer(PATH)


@pytest.mark.parametrize("shape", LANDSCAPES)
def test_a_landscape_has_the_charts_of_its_shape(shape: str) -> None:
    expected = ("loss_along_line",) if shape in ("line", "direction") else ("loss_map", "loss_surface")
    assert images.names(LANDSCAPES[shape]) == expected


def test_what_is_not_finite_is_left_out_of_lines_and_lowered_in_maps() -> None:
    broken = (replace(LINE.points[0], training_loss=math.inf, validation_loss=math.nan), *LINE.points[1:])
    kept = points(drawn(replace(LINE, points=broken), "loss_along_line"), "value")
    assert len(kept) == 4 * len(LINE.points) - 2
    cliff = (replace(PLANE.points[0], training_loss=math.inf), *PLANE.points[1:])
    losses = [point["loss"] for point in points(drawn(replace(PLANE, points=cliff), "loss_map"), "loss")]
    assert max(losses) == losses[0] < math.inf
    nowhere = tuple(replace(p, training_loss=math.nan, validation_loss=math.nan) for p in PLANE.points)
    assert images.names(replace(PLANE, points=nowhere)) == images.names(replace(LINE, points=nowhere[:3])) == ()

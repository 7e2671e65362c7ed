"""Plans for several devices in a terminal and on a page."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from tests.report.sample_probes import HOSTILE, cnn, mlp

from batchscope.fit import plan_devices
from batchscope.records import DevicePlan
from batchscope.report import charts, devices_content, page

NETWORK = (12e9, 20e-6)


def plans() -> dict[str, DevicePlan]:
    """Ratios alone, times with money, one number alone, and text that would break a careless page."""
    many = (1, 8, 64)
    relative = plan_devices(mlp(), many, network=NETWORK)
    whole: dict[str, Any] = {"target_examples": 2e6, "price_per_hour": 2.5, "power_watts": 300.0}
    return {
        "relative": relative,
        "whole": plan_devices(cnn(), many, network=NETWORK, algorithm="fastest", zero_stage=3, **whole),
        "timed": plan_devices(cnn(), many, network=NETWORK, target_examples=2e6),
        "one": plan_devices(mlp(), (8,), network=NETWORK),
        "without memory": plan_devices(replace(mlp(), memory=None), many, network=NETWORK),
        "too many": plan_devices(mlp(), (1, 4096), network=NETWORK),
        "hostile": replace(
            relative, workload=replace(relative.workload, name=HOSTILE), conclusion=HOSTILE, warnings=(HOSTILE,)
        ),
    }


@pytest.mark.parametrize("name", plans())
@pytest.mark.parametrize("width", [60, 160])
def test_shown_in_a_terminal(name: str, width: int) -> None:
    plan = plans()[name]
    out = io.StringIO()
    Console(file=out, width=width).print(plan.table())
    said = " ".join(out.getvalue().split())
    assert "What each number of devices takes" in said
    assert " ".join(plan.conclusion.split()[:3]) in said


def test_columns_follow_what_is_known() -> None:
    found = plans()

    def headings(name: str) -> list[str]:
        return [column.heading for column in devices_content.rows(found[name]).columns]

    assert "cost" in headings("whole")
    assert "energy" in headings("whole")
    assert "cost" not in headings("timed")
    assert "updates" in headings("timed")
    assert "updates" not in headings("relative")
    assert "memory" not in headings("without memory")
    assert devices_content.memory(found["without memory"]) is None
    lines = devices_content.rows(found["too many"]).lines
    assert len(lines) == 2
    assert lines[1].cells[1] == "–"


@pytest.mark.parametrize("name", plans())
def test_on_a_page(name: str) -> None:
    plan = plans()[name]
    text = page.render(plan)
    assert "How many devices are worth having?" in text
    assert "<script>alert(1)" not in text
    assert ("device_times" in charts.names(plan)) == (name != "one")


def test_charts_hold_every_number_of_devices() -> None:
    for name in ("relative", "timed", "whole"):
        plan = plans()[name]
        for chart in ("device_times", "device_cost"):
            assert charts.svg(plan, chart).startswith("<svg")
            spec = charts.specification(plan, chart)
            assert spec is not None
            drawn = [p for own in spec["layer"] for p in own.get("data", {}).get("values", []) if "asked" in p]
            assert {p["devices"] for p in drawn} == {row.devices for row in plan.rows}
    priced = charts.specification(plans()["whole"], "device_cost")
    assert "cost" in str(priced)

"""``batchscope plan``: devices planned from a saved probe, and words that make no sense refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.sample_probes import cnn

from batchscope.fit import fit_tradeoff
from batchscope.records import DevicePlan, Plan, load

Command = Callable[..., Any]
Refused = Callable[..., None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cnn().to_json(tmp_path_factory.mktemp("plan") / "probe.json")


def test_plan_prints_the_answer_and_writes_it(command: Command, saved: Path, tmp_path: Path) -> None:
    record, page = tmp_path / "d.json", tmp_path / "d.html"
    said = command(
        "plan", saved, "--devices", "1,8", "--network", "12,20", "--target-examples", 1e6, "--price", 2.5,
        "--power", 300, "--algorithm", "fastest", "--overlap", 0.5, "--zero", 1, "--json", record, "--report", page,
    )  # fmt: skip
    assert said.status == 0, said.err
    found = load(record)
    assert isinstance(found, DevicePlan)
    assert [row.devices for row in found.rows if row.asked] == [1, 8]
    assert (found.price_per_hour, found.power_watts, found.overlap, found.zero_stage) == (2.5, 300.0, 0.5, 1)
    assert found.conclusion.split(":")[0] in " ".join(said.out.split())
    assert "How many devices" in page.read_text()


def test_a_law_is_read_from_its_file(command: Command, saved: Path, tmp_path: Path) -> None:
    law = fit_tradeoff([16, 64, 256, 1024], [1e5 * (1 + b / 500) for b in (16, 64, 256, 1024)])
    there = law.to_json(tmp_path / "law.json")
    said = command("plan", saved, "--network", "12,20", "--law", there, "--json", tmp_path / "d.json")
    assert said.status == 0, said.err
    found = load(tmp_path / "d.json")
    assert isinstance(found, DevicePlan)
    assert (found.updates_from, found.relative) == ("trade-off law", False)
    assert "larger than any that the law was fitted to" in " ".join(said.out.split())


def test_nonsense_is_refused(command: Command, refused: Refused, saved: Path, tmp_path: Path) -> None:
    other = Plan(batch_size=8, learning_rate=0.1, iterations=1).to_json(tmp_path / "plan.json")
    refused(command("plan", other, "--network", "12,20"), "must be a record of batchscope probe", "a plan record")
    refused(command("plan", saved, "--network", "12"), "--network is a bandwidth", "as in 12,20")
    refused(command("plan", saved, "--network", "12,20", "--devices", "a"), "--devices must be numbers")
    refused(command("plan", saved, "--network", "12,20", "--devices", "0"), "whole numbers from 1")
    refused(command("plan", saved, "--network", "12,20", "--law", other), "--law must be", "a plan record")
    refused(command("plan", saved, "--network", "12,20", "--zero", 7), "zero_stage")
    refused(command("plan", tmp_path / "none.json", "--network", "12,20"), "none.json")

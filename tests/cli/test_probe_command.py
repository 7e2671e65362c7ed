"""``batchscope probe``: a workload measured, a saved probe planned anew, and words that make no sense refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import batchscope.measure
from batchscope.cli.parsing import parse_bytes
from batchscope.records import Plan, Probe, load

Command = Callable[..., Any]
Refused = Callable[..., None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from batchscope import load_workload, probe

    path = tmp_path_factory.mktemp("probe") / "digits.json"
    return probe(load_workload("digits"), seconds=5, branches=False, learning_rate=False).to_json(path)


def test_probe_prints_the_answer_and_writes_it(command: Command, file: Path, tmp_path: Path) -> None:
    record, page = tmp_path / "p.json", tmp_path / "p.html"
    said = command("probe", f"{file}:line", "--seconds", 5, "--json", record, "--report", page)
    assert said.status == 0, said.err
    found = load(record)
    assert isinstance(found, Probe)
    assert found.workload.name == "line"
    assert found.limits.conclusion.split(";")[0] in " ".join(said.out.split())
    assert said.out.endswith(f"Wrote {record}\nWrote {page}\n")
    assert page.read_text().lower().startswith("<!doctype html>")
    for task in ("timing updates", "measuring memory", "training and measuring noise", "range test", "branched runs"):
        assert task in said.err


def test_parts_can_be_left_out(command: Command, file: Path, tmp_path: Path) -> None:
    said = command(
        "probe", f"{file}:line", "--seconds", 5, "--no-branches", "--no-range-test", "--json", tmp_path / "p"
    )
    assert said.status == 0, said.err
    found = load(tmp_path / "p")
    assert isinstance(found, Probe)
    assert (found.branched, found.learning_rate) == (None, None)


def test_a_saved_probe_is_planned_anew_without_measuring(
    command: Command, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any, **__: Any) -> None:
        raise AssertionError("it measured")

    monkeypatch.setattr(batchscope.measure, "probe", measured)
    there = tmp_path / "there.json"
    said = command("probe", saved, "--memory", "1MiB", "--speed", 4, "--fixed-speed", 1, "--json", there)
    assert said.status == 0, said.err
    before, after = load(saved), load(there)
    assert isinstance(before, Probe)
    assert isinstance(after, Probe)
    assert after.replanned is not None
    assert (after.replanned.memory_bytes, after.replanned.speed, after.replanned.fixed_speed) == (2**20, 4.0, 1.0)
    each = before.step_time.law.seconds_per_example.value or 0
    assert after.step_time.law.seconds_per_example.value == pytest.approx(each / 4)
    assert after.memory is not None
    assert after.memory.limit_bytes == 2**20
    assert "planned" in said.out
    assert "not measured" in said.out


def test_a_saved_probe_is_not_overwritten_by_its_plan(command: Command, saved: Path, refused: Refused) -> None:
    refused(command("probe", saved, "--json", saved), "each result must go to a file of its own")


def test_only_a_probe_can_be_planned_anew(command: Command, tmp_path: Path, refused: Refused) -> None:
    other = Plan(batch_size=8, learning_rate=0.1, iterations=1).to_json(tmp_path / "plan.json")
    refused(command("probe", other), "a record to re-plan must be a probe", "a plan record")
    refused(command("probe", tmp_path / "none.json"), "a record must be a file")
    (tmp_path / "broken.json").write_text(json.dumps({"record": "probe", "schema": 1}))
    refused(command("probe", tmp_path / "broken.json"), "must hold the fields")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--speed", "2"), "--speed and --fixed-speed need a saved probe"),
        (("--fixed-speed", "2"), "--speed and --fixed-speed need a saved probe"),
        (("--memory", "lots"), "memory is a number with a unit"),
        (("--memory", "-1GB"), "memory is a number with a unit"),
        (("--memory", "0"), "at least one byte"),
        (("--seconds", "1"), "seconds must be at least 5"),
    ],
)
def test_words_that_make_no_sense(
    command: Command, file: Path, refused: Refused, words: tuple[str, ...], said: str
) -> None:
    refused(command("probe", f"{file}:line", *words), said)


@pytest.mark.parametrize("speed", ["0", "-1", "inf", "nan"])
def test_speeds_that_make_no_sense(command: Command, saved: Path, refused: Refused, speed: str) -> None:
    refused(command("probe", saved, "--speed", speed), "speed must be a positive factor")


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("8 GB", 8 * 10**9), ("1.5k", 1500), ("800MB", 8 * 10**8), ("2tib", 2 * 2**40), ("17", 17)],
)
def test_memory_in_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size

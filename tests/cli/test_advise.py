"""``batchscope advise``: words made into arguments, the answer shown, and an exit status that says if there is one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import batchscope.search
from batchscope.records import Advice, load

Command = Callable[..., Any]
Refused = Callable[..., None]


def sample(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "report" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def answers() -> dict[str, Advice]:
    found: dict[str, Advice] = sample("sample_advice").every(sample("sample_records"), "a hostile text")
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Advice]) -> dict[str, Any]:
    """What the library was asked; it answers with what stands under "answer"."""
    calls: dict[str, Any] = {"answer": answers["advice"]}

    def advise(workload: Any, **given: Any) -> Advice:
        calls.update(given, workload=workload)
        answer: Advice = calls["answer"]
        return answer

    monkeypatch.setattr(batchscope.search, "advise", advise)
    return calls


def test_it_prints_the_answer_and_writes_it(
    command: Command, file: Path, tmp_path: Path, asked: dict[str, Any], answers: dict[str, Advice]
) -> None:
    record, page = tmp_path / "a.json", tmp_path / "a.html"
    said = command("advise", f"{file}:line", "--target", 0.89, "--json", record, "--report", page)
    assert said.status == 0, said.err
    assert said.out.startswith("Use batch 128, learning rate 0.12, 2,583 iterations.\n")
    assert said.out.endswith(f"Wrote {record}\nWrote {page}\n")
    assert load(record) == answers["advice"]
    assert page.read_text().lower().startswith("<!doctype html>")
    assert asked["workload"].name == "line"
    again = command("report", record)
    assert again.status == 0, again.err
    assert again.out.startswith("Use batch 128")


def test_words_become_arguments(command: Command, file: Path, asked: dict[str, Any]) -> None:
    assert command("advise", f"{file}:line", "--seconds", 300, "--quiet").out == ""
    nothing = {"target": None, "examples": None, "seconds": 300.0, "budget_seconds": None, "max_memory_bytes": None}
    nothing |= {"batch_sizes": None, "devices": 1, "network": None, "seed": 0, "device": None, "workers": None}
    assert {key: asked[key] for key in nothing} == nothing
    assert asked["progress"] is False
    given = ("--examples", 600_000, "--budget", 12.5, "--max-memory", "2GiB", "--batch-sizes", "8,64", "--devices", 4)
    assert (asked["price_per_hour"], asked["power_watts"], asked["time_share"]) == (None, None, None)
    more = ("--network", "1.5, 50", "--seed", 3, "--device", "cpu", "--workers", 2)
    assert command("advise", f"{file}:line", *given, *more).status == 0
    assert asked["network"] == pytest.approx((1.5e9, 50e-6))
    for power, meant in (("300", 300.0), ("measured", "measured"), ("16:180, 256:240.5", {16: 180.0, 256: 240.5})):
        words = ("--target", 0.9, "--price", 2.5, "--power", power, "--cost", 0.25)
        assert command("advise", f"{file}:line", *words).status == 0
        assert (asked["price_per_hour"], asked["power_watts"], asked["time_share"]) == (2.5, meant, 0.25)
    assert command("advise", f"{file}:line", *given, *more).status == 0
    wanted: dict[str, Any] = {
        "target": None,
        "examples": 600_000,
        "seconds": None,
        "budget_seconds": 12.5,
        "max_memory_bytes": 2**31,
    }
    wanted |= {"batch_sizes": [8, 64], "devices": 4, "seed": 3, "device": "cpu", "workers": 2, "progress": True}
    assert {key: asked[key] for key in wanted} == wanted


def test_the_exit_status_says_whether_there_is_an_answer(
    command: Command, file: Path, tmp_path: Path, asked: dict[str, Any], answers: dict[str, Advice]
) -> None:
    asked["answer"] = answers["advice none"]
    said = command("advise", f"{file}:line", "--target", 0.89, "--json", tmp_path / "a.json")
    assert (said.status, said.err) == (1, "")
    assert said.out.startswith("No setting was found: every rate diverged.\n")
    assert load(tmp_path / "a.json") == answers["advice none"]
    asked["answer"] = answers["advice far"]  # an answer whose time isn't known
    assert command("advise", f"{file}:line", "--target", 0.89).status == 0
    asked["answer"] = replace(answers["advice none"], interrupted=True)
    said = command("advise", f"{file}:line", "--target", 0.89, "--quiet")
    assert said.status == 130
    assert said.err == "batchscope: Interrupted; finished results are kept.\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("--network", "fast"),
            "--network is a bandwidth above 0 in GB/s and a latency in µs, separated by a comma; got fast",
        ),
        (("--network", "0,5"), "--network is a bandwidth above 0 in GB/s"),
        (("--network", "1e3,5"), "--network is a bandwidth above 0 in GB/s"),
        (("--power", "strong"), "--power is watts, watts by batch size, or measured; got strong"),
        (("--power", "16:180,64"), "--power is watts"),
        (("--max-memory", "much"), "memory is a number with a unit"),
        (("--batch-sizes", "8;64"), "--batch-sizes must be numbers separated by commas"),
    ],
)
def test_what_makes_no_sense_is_refused(
    command: Command, refused: Refused, asked: dict[str, Any], given: tuple[str, ...], said: str
) -> None:
    refused(command("advise", "nowhere.py:line", "--target", 0.9, *given), said)
    assert "workload" not in asked


@pytest.mark.parametrize("given", [(), ("--target", 0.9, "--seconds", 5), ("--examples", 0), ("--target", "nan")])
def test_goals_that_make_no_sense_are_refused(
    command: Command, refused: Refused, file: Path, given: tuple[Any, ...]
) -> None:
    refused(command("advise", f"{file}:line", *given), "got")

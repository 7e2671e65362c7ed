"""Schedules, shapes and saved plans on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchscope import Plan, TrainResult, load
from batchscope.schedule import linear_growth, measured, smith

Command = Callable[..., Any]


def plan_of(command: Command, file: Path, tmp_path: Path, *options: object) -> tuple[Plan, TrainResult]:
    said = command("train", f"{file}:line", *options, "--quiet", "--json", tmp_path / "r.json")
    assert said.status == 0, said.err
    result = load(tmp_path / "r.json")
    assert isinstance(result, TrainResult)
    return result.plan, result


def test_a_line_and_a_shape(command: Command, file: Path, tmp_path: Path) -> None:
    options = ("--batch-size", 4, "--learning-rate", 0.05, "--examples", 100, "--warmup-examples", 20)
    shape = ("--shape", "cooldown", "--cooldown", 0.5, "--noise")
    plan, result = plan_of(command, file, tmp_path, *options, *shape, "--schedule", "smith:at=40,factor=2")
    schedule = smith(4, at=(40,), factor=2)
    expected = Plan(4, 0.05, examples=100, schedule=schedule, shape="cooldown", cooldown=0.5, warmup_examples=20)
    assert plan == expected
    assert result.iterations == schedule.updates(100)


def test_files(command: Command, file: Path, tmp_path: Path) -> None:
    schedule = linear_growth(4, 8, examples=40, coupling="stated")
    schedule.to_json(tmp_path / "s.json")
    plan, _ = plan_of(command, file, tmp_path, "--iterations", 12, "--schedule", tmp_path / "s.json")
    assert (plan.batch_size, plan.iterations, plan.schedule) == (4, 12, schedule)
    plan.to_json(tmp_path / "p.json")
    again, _ = plan_of(command, file, tmp_path, "--plan", tmp_path / "p.json")
    assert again == plan
    # What is given beside it changes it, and a budget takes the place of the other kind.
    changed, _ = plan_of(command, file, tmp_path, "--plan", tmp_path / "p.json", "--examples", 50, "--patience", 3)
    assert changed == dataclasses.replace(plan, iterations=None, examples=50, patience=3)


def test_a_measured_schedule(command: Command, file: Path, tmp_path: Path) -> None:
    options = ("--batch-size", 4, "--examples", 80, "--schedule", "measured:knee=50,maximum=8,every=5")
    plan, _ = plan_of(command, file, tmp_path, *options)
    assert plan.schedule == measured(4, knee=50, maximum=8, every=5)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in the working folder."""
    monkeypatch.chdir(tmp_path)
    linear_growth(4, 8, examples=40).to_json("schedule.json")
    Plan(4, 0.05, iterations=5).to_json("plan.json")


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--schedule", "smith"), "the schedule smith is written"),
        (("--schedule", "none.json"), "a record must be a file that can be read"),
        (("--schedule", "plan.json"), "--schedule must be the JSON of a schedule; got plan.json, a plan record"),
        (("--plan", "schedule.json"), "--plan must be a plan, or an advice with a plan"),
        (("--schedule", "schedule.json", "--batch-size", 3), "that of its schedule's first phase; got 3 and 4"),
        (("--warmup-examples", -1), "warmup_examples must be a whole number of at least 0"),
        (("--shape", "cooldown", "--cooldown", 2), "cooldown must be a share"),
    ],
)
def test_what_makes_no_sense_is_refused(command: Command, file: Path, options: tuple[object, ...], said: str) -> None:
    budget = () if "--plan" in options else ("--iterations", 5)
    told = command("train", f"{file}:line", *budget, *options)
    assert told.status == 2
    assert said in told.err

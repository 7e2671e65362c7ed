"""``batchscope sweep``: trials kept, gone on from and shown; and words that make no sense, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchscope.records import Sweep, load

Command = Callable[..., Any]
Refused = Callable[..., None]

ARGUMENTS = ("--learning-rates", "0.02,0.1", "--seeds", "2", "--examples", "2000")


def test_sweep_prints_the_answer_writes_it_and_keeps_its_trials(command: Command, file: Path, tmp_path: Path) -> None:
    record, page, store = tmp_path / "s.json", tmp_path / "s.html", tmp_path / "s.db"
    given = ("sweep", f"{file}:line", "--batch-sizes", "4,8,16", *ARGUMENTS, "--target", "-0.05", "--store", store)
    said = command(*given, "--json", record, "--report", page)
    assert said.status == 0, said.err
    found = load(record)
    assert isinstance(found, Sweep)
    assert [line.batch_size for line in found.best] == [4, 8, 16]
    assert len(found.trials) == 12
    assert found.conclusion.split(".")[0] in " ".join(said.out.split())
    assert said.out.endswith(f"Wrote {record}\nWrote {page}\n")
    assert page.read_text().lower().startswith("<!doctype html>")
    again = command(*given, "--json", tmp_path / "again.json", "--quiet")
    assert again.status == 0, again.err
    repeated = load(tmp_path / "again.json")
    assert isinstance(repeated, Sweep)
    assert [trial.curve for trial in repeated.trials] == [trial.curve for trial in found.trials]


def test_a_budget_alone_compares_scores(command: Command, file: Path, tmp_path: Path) -> None:
    said = command("sweep", f"{file}:line", "--batch-sizes", "8", *ARGUMENTS, "--json", tmp_path / "s.json")
    assert said.status == 0, said.err
    found = load(tmp_path / "s.json")
    assert isinstance(found, Sweep)
    assert (found.target, found.law) == (None, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "a sweep needs a score to reach or a budget"),
        (("--target", "0.9", "--batch-sizes", "8;16"), "--batch-sizes must be numbers separated by commas; got 8;16"),
        (("--target", "0.9", "--batch-sizes", ","), "batch sizes must be different whole numbers"),
        (("--target", "0.9", "--learning-rates", "fast"), "--learning-rates must be numbers separated by commas"),
        (("--target", "0.9", "--batch-sizes", "100000"), "must be at most the number of training examples"),
        (("--target", "0.9", "--address", "auto"), "an address is for a Ray cluster"),
        (("--target", "0.9", "--timeout", "0"), "timeout_seconds must be a number above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    command: Command, refused: Refused, file: Path, given: tuple[str, ...], said: str
) -> None:
    refused(command("sweep", f"{file}:line", *given), said)


def test_the_store_of_another_target_is_refused(command: Command, refused: Refused, file: Path, tmp_path: Path) -> None:
    given = ("sweep", f"{file}:line", "--batch-sizes", "8", *ARGUMENTS, "--store", tmp_path / "s.db", "--quiet")
    assert command(*given, "--target", "-0.05").status == 0
    refused(command(*given, "--target", "-0.04"), "target", status=1)

"""``batchscope claims``, ``sharpness`` and ``landscape``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchscope.records import Claims, Landscape, Sharpness, load

Command = Callable[..., Any]
Refused = Callable[..., None]


def test_one_claim_is_tested_told_and_written(command: Command, tmp_path: Path) -> None:
    record, page = tmp_path / "c.json", tmp_path / "c.html"
    given = ("claims", "digits", "--only", "throughput-saturates", "--seeds", "2", "--budget", "6")
    said = command(*given, "--json", record, "--report", page)
    assert said.status == 0, said.err
    found = load(record)
    assert isinstance(found, Claims)
    assert [claim.name for claim in found.claims] == ["throughput-saturates"]
    assert found.claims[0].verdict in said.out
    assert "then saturate" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "exactly one of a workload and --paper is needed; got neither"),
        (("digits", "--paper", "smith2017"), "exactly one of a workload and --paper is needed; got both"),
        (("--paper", "smith2017", "--only", "sharper-minima"), "--only selects claims"),
        (("digits", "--only", "flat-earth"), "a claim is one of smaller-batches-score-better"),
        (("digits", "--seeds", "1"), "an interval needs at least two seeds"),
        (("digits", "--budget", "1"), "a budget must be at least 5 seconds"),
    ],
)
def test_what_makes_no_sense_is_refused(command: Command, refused: Refused, given: tuple[str, ...], said: str) -> None:
    refused(command("claims", *given), said)


def test_weights_that_were_written_are_measured(command: Command, tmp_path: Path) -> None:
    files = []
    for size in (16, 256):
        files.append(tmp_path / f"batch{size}.safetensors")
        rates = ("--batch-size", size, "--learning-rate", "0.1", "--examples", "4000")
        trained = command("train", "digits", *rates, "--weights", files[-1], "--quiet")
        assert trained.status == 0, trained.err
    said = command("sharpness", "digits", "--weights", files[0], "--repeats", "1", "--json", tmp_path / "s.json")
    assert said.status == 0, said.err
    found = load(tmp_path / "s.json")
    assert isinstance(found, Sharpness)
    assert found.value > 0
    said = command(
        "landscape",
        "digits",
        "--weights",
        files[0],
        "--weights",
        files[1],
        "--points",
        "7",
        "--json",
        tmp_path / "l.json",
    )
    assert said.status == 0, said.err
    line = load(tmp_path / "l.json")
    assert isinstance(line, Landscape)
    assert (line.shape, line.labels, len(line.points)) == ("line", ("batch16", "batch256"), 7)


def test_without_weights_it_trains_first(command: Command, tmp_path: Path) -> None:
    said = command(
        "landscape", "digits", "--shape", "plane", "--points", "3", "--examples", "200", "--batch-sizes", "64",
        "--json", tmp_path / "l.json", "--quiet",
    )  # fmt: skip
    assert said.status == 0, said.err
    plane = load(tmp_path / "l.json")
    assert isinstance(plane, Landscape)
    assert (plane.shape, plane.labels, len(plane.points)) == ("plane", ("batch 64",), 9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("sharpness", "digits", "--weights", "nowhere.safetensors"), "weights must be a file that can be read"),
        (("landscape", "digits", "--weights", "a", "--batch-sizes", "8"), "--batch-sizes trains the model"),
        (("landscape", "digits", "--batch-sizes", "8"), "a line needs 2 batch sizes; got 1"),
    ],
)
def test_weights_that_cannot_be_had_are_refused(
    command: Command, refused: Refused, given: tuple[str, ...], said: str
) -> None:
    refused(command(*given), said)


def test_a_file_that_holds_no_weights_is_refused(command: Command, refused: Refused, tmp_path: Path) -> None:
    other = tmp_path / "weights.safetensors"
    other.write_text("not weights")
    refused(command("sharpness", "digits", "--weights", other), "weights must be a safetensors file")

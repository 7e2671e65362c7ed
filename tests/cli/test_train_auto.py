"""``batchscope train --auto``: from nothing to the target, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import batchscope as bs

Command = Callable[..., Any]
Refused = Callable[..., None]


def test_it_goes_from_nothing_to_the_target(command: Command, tmp_path: Path) -> None:
    said = command(
        "train", "digits", "--auto", "--target", "0.9", "--budget", "20",
        "--json", tmp_path / "r.json", "--weights", tmp_path / "w",
    )  # fmt: skip
    assert said.status == 0, said
    result = bs.load(tmp_path / "r.json")
    assert isinstance(result, bs.TrainResult)
    assert result.reached
    assert result.plan.averaging is not None
    weights = load_file(tmp_path / "w")
    assert set(weights) == set(bs.load_workload("digits").model().state_dict())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--auto", "--target", "0.9", "--batch-size", "8"], "--batch-size"),
        (["--auto", "--target", "0.9", "--checkpoint", "c"], "--checkpoint"),
        (["--auto", "--target", "0.9", "--noise"], "--noise"),
        (["--auto"], "exactly one goal"),
        (["--seconds", "3", "--iterations", "5"], "--seconds"),
        (["--budget", "20", "--iterations", "5"], "--budget"),
    ],
)
def test_what_does_not_go_together_is_refused(command: Command, refused: Refused, wrong: list[str], named: str) -> None:
    said = command("train", "digits", *wrong)
    refused(said, named)

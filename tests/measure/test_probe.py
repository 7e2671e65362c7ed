"""A probe as a whole: its parts are there, fit together, and a part that fails costs only itself."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import batchscope as bs
from batchscope import Workload
from batchscope.errors import RunError
from batchscope.fit import find_limits
from batchscope.records import Probe

Make = Callable[..., Workload]
# The module, whose name the package gives to its function.
module: Any = importlib.import_module("batchscope.measure.probe")


@pytest.fixture(scope="module")
def probed() -> Probe:
    return bs.probe(bs.load_workload("digits"), seconds=6)


def test_all_parts_are_there_and_the_limits_follow_from_them(probed: Probe) -> None:
    # Whether the knee is resolved is a matter of what else the machine does.
    assert len(probed.step_time.points) >= 8
    assert probed.memory is not None
    assert probed.branched is not None
    assert probed.learning_rate is not None
    assert probed.noise[0].examples == 0
    assert probed.noise[-1].examples == probed.branched.examples_before
    assert probed.gradient_noise.noise_scale == probed.noise[-1].noise_scale
    again = find_limits(probed.workload, probed.step_time, probed.memory, probed.noise, probed.branched)
    assert again == probed.limits
    assert probed.warnings == () or "busy" in probed.warnings[0]


def test_a_saved_probe_is_the_probe_and_plans_anew(probed: Probe, tmp_path: Path) -> None:
    loaded = bs.load(probed.to_json(tmp_path / "p.json"))
    assert loaded == probed
    assert isinstance(loaded, Probe)
    faster = bs.replan(loaded, speed=4.0, fixed_speed=1.0)
    before, after = probed.step_time.law, faster.step_time.law
    assert after.seconds_per_example.value == pytest.approx((before.seconds_per_example.value or 0) / 4)
    assert after.fixed_seconds == before.fixed_seconds


def test_the_persons_random_state_is_as_before(make: Make) -> None:
    before = torch.get_rng_state()
    bs.probe(make(), seconds=5, branches=False, learning_rate=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["batch norm", "frozen norm", "augmented", "transformer", "tied"])
def test_every_part_of_it_works_on_every_kind_of_model(make: Make, kind: str) -> None:
    found = bs.probe(make(kind, examples=120), seconds=5)
    assert [warning for warning in found.warnings if "busy" not in warning] == []
    assert found.memory is not None
    assert found.branched is not None
    assert found.learning_rate is not None


def test_a_part_that_fails_is_a_warning_and_the_rest_is_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RunError("this part", got="nothing")

    for part in ("memory_use", "range_test", "branched_runs"):
        monkeypatch.setattr(module, part, broken)
    found = bs.probe(make(), seconds=5)
    assert (found.memory, found.learning_rate, found.branched) == (None, None, None)
    assert len([w for w in found.warnings if "this part" in w]) == 3
    assert found.limits.knee == found.step_time.law.knee


def test_training_that_diverges_is_told_and_branches_are_left_out(make: Make) -> None:
    def squared(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((output - target.unsqueeze(1)) ** 2).mean()

    found = bs.probe(make(learning_rate=1e12, loss=squared), seconds=5, learning_rate=False)
    assert any("ended as diverged" in warning for warning in found.warnings)
    assert found.branched is None


@pytest.mark.parametrize("seconds", [4.9, 0, -1, math.inf, math.nan, "60"])
def test_times_that_make_no_sense(make: Make, seconds: Any) -> None:
    with pytest.raises(bs.ArgumentError, match="seconds must be at least 5"):
        bs.probe(make(), seconds=seconds)

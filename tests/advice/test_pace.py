"""What updates take in a run of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from batchscope import Workload
from batchscope.advice.pace import LONG, SHORT, Pace, pace
from batchscope.training.loop import Prepared


def test_a_run_takes_its_start_and_its_updates() -> None:
    assert Pace(0.5, 0.1).seconds(20) == 2.5


def test_two_short_runs_say_what_both_are(make: Callable[..., Workload]) -> None:
    prepared = Prepared(make(), torch.device("cpu"))
    before = torch.get_rng_state()
    found = pace(prepared, 5, 0.05, seed=0)
    assert found.start_seconds >= 0
    assert found.update_seconds > 0
    assert found.seconds(LONG) > found.seconds(SHORT)
    assert torch.equal(torch.get_rng_state(), before)

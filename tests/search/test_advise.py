"""Advice from end to end, for good workloads and for those where none can be given."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.search.broken import Broken
from torch import Tensor, nn

import batchscope as bs
from batchscope import Workload
from batchscope.errors import ArgumentError
from batchscope.records import Advice
from batchscope.search import advise
from batchscope.search.forecast import CurveForecast
from batchscope.training.loop import Run

Make = Callable[..., Workload]


@pytest.fixture(scope="module")
def digits() -> Workload:
    return dataclasses.replace(bs.load_workload("digits"), batch_size=8, learning_rate=0.005)


@pytest.fixture(scope="module")
def advice(digits: Workload) -> Advice:
    return advise(digits, target=0.93, budget_seconds=20.0)


def test_the_plan_reaches_the_target(digits: Workload, advice: Advice) -> None:
    assert advice.plan is not None
    assert advice.learning_rate is not None
    assert advice.learning_rate >= 0.005
    found = bs.train(digits, advice.plan)
    assert found.reached
    # In examples, which no busy machine changes.
    row = next(row for row in advice.frontier if row.batch_size == advice.batch_size)
    assert row.examples.value is not None
    assert found.examples < 4 * row.examples.value
    assert found.examples > row.examples.value / 4


def test_the_record_says_what_it_rests_on(advice: Advice, tmp_path: Any) -> None:
    assert f"batch size {advice.batch_size:,}" in advice.conclusion
    assert "0.93" in advice.conclusion
    assert len(advice.reasons) >= 5
    sizes = [row.batch_size for row in advice.frontier]
    assert sizes == sorted(sizes)
    assert sum(c.ended == "advised" for c in advice.race) == 1
    assert all(c.points or c.ended == "diverged" for c in advice.race)
    assert {row.batch_size for row in advice.frontier if row.raced} <= {c.batch_size for c in advice.race}
    assert advice.predicted_seconds.level == 0.9
    assert advice.cost_seconds == pytest.approx(sum(part.seconds for part in advice.spending), rel=0.5)
    for row in advice.frontier:
        assert row.micro_batch_size * row.accumulation_steps >= row.batch_size
        assert [p.examples for p in row.forecast] == sorted(p.examples for p in row.forecast)
    advice.to_json(tmp_path / "a.json")
    assert bs.load(tmp_path / "a.json") == advice


def test_nothing_of_the_persons_is_changed(digits: Workload) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    advise(digits, examples=20_000, budget_seconds=2.0, batch_sizes=[32, 128])
    assert torch.equal(before, torch.get_rng_state())


def test_a_budget_of_examples_and_one_of_seconds_are_other_questions(digits: Workload) -> None:
    by_examples = advise(digits, examples=20_000, budget_seconds=2.5)
    assert by_examples.plan is not None
    assert by_examples.plan.examples == 20_000
    assert by_examples.predicted_score.value is not None
    assert 0.7 < by_examples.predicted_score.value <= 1.0
    by_seconds = advise(digits, seconds=0.5, budget_seconds=2.5)
    assert by_seconds.plan is not None
    assert by_seconds.predicted_seconds.value == 0.5


def test_only_the_sizes_that_were_allowed_are_advised(digits: Workload) -> None:
    found = advise(digits, target=0.9, budget_seconds=3.0, batch_sizes=[48, 96])
    assert found.batch_size in (48, 96)
    assert [row.batch_size for row in found.frontier] == [48, 96]
    assert found.present is None  # batch size 8 was not trained
    assert "Today" not in found.conclusion


def test_several_devices_share_the_batch_and_pay_for_the_network(digits: Workload) -> None:
    found = advise(digits, target=0.9, budget_seconds=3.0, devices=4, network=(1e9, 0.05))
    row = found.frontier[-1]
    assert row.micro_batch_size * row.accumulation_steps * 4 >= row.batch_size
    assert row.step_seconds.value is not None
    assert row.step_seconds.value > 2 * 3 * 0.05


def test_a_budget_is_kept_while_one_candidate_trains(make: Make) -> None:
    slow = make(examples=4000, held_out=200, model=Sleeping)
    found = advise(slow, target=0.99, budget_seconds=2.0, batch_sizes=[8, 16])
    assert found.cost_seconds < 1.2 * 2.0 + 0.5  # a piece of training, and the advice itself


class Sleeping(nn.Module):
    """Takes a hundredth of a second for each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01)
        out: Tensor = self.head(x)
        return out


def test_a_target_below_the_score_of_fresh_weights_is_refused(make: Make) -> None:
    with pytest.raises(ArgumentError, match="above the score of fresh weights"):
        advise(make(examples=400, held_out=100), target=0.3, budget_seconds=4.0, batch_sizes=[8, 32])


def test_a_target_that_the_first_updates_reach_is_no_riddle(make: Make) -> None:
    workload = make(examples=2000, held_out=500, learning_rate=0.5)
    found = advise(workload, target=0.6, budget_seconds=4.0, batch_sizes=[8, 32])
    assert found.plan is not None
    assert bs.train(workload, found.plan).reached


def test_where_training_diverges_everywhere_it_says_so(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make(examples=200, held_out=50, model=Broken)
    monkeypatch.setattr(Broken, "factor", math.nan)
    found = advise(workload, target=0.9, budget_seconds=2.0, batch_sizes=[8, 32])
    assert found.batch_size is None
    assert found.plan is None
    assert "training diverged at every learning rate" in found.conclusion
    assert all(candidate.ended == "diverged" for candidate in found.race)
    found.table()


def test_a_score_that_never_rises_still_has_a_setting(make: Make) -> None:
    workload = make(examples=200, held_out=50, score=lambda output, target: 0.5)
    found = advise(workload, target=0.9, budget_seconds=2.0, batch_sizes=[8, 32])
    assert found.batch_size in (8, 32)
    assert found.predicted_seconds.value is None
    assert "not known yet" in found.conclusion


def test_a_target_that_nothing_can_score_is_refused(digits: Workload) -> None:
    with pytest.raises(ArgumentError, match="at most 1, the score of perfect predictions"):
        advise(digits, target=1.5, budget_seconds=4.0)


def test_ten_examples_are_enough_for_an_honest_word(make: Make) -> None:
    found = advise(make(examples=10, held_out=10), target=0.9, budget_seconds=2.0)
    assert found.conclusion


def test_a_budget_that_is_too_small_has_an_answer_all_the_same(make: Make) -> None:
    found = advise(make("transformer", examples=4000, held_out=2000), target=0.9, budget_seconds=1.0)
    assert found.batch_size is not None
    assert found.predicted_seconds.value is not None or "not known yet" in found.conclusion


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({}, "exactly one goal"),
        ({"target": 0.9, "examples": 10}, "exactly one goal"),
        ({"target": math.nan}, "finite"),
        ({"examples": 0}, "whole number"),
        ({"examples": 10.5}, "whole number"),
        ({"seconds": -1.0}, "above 0"),
        ({"target": 0.9, "budget_seconds": 0.0}, "budget"),
        ({"target": 0.9, "batch_sizes": []}, "a batch size to advise"),
        ({"target": 0.9, "batch_sizes": [0]}, "whole number"),
        ({"target": 0.9, "devices": 0}, "devices"),
        ({"target": 0.9, "devices": 2}, "network"),
        ({"target": 0.9, "seed": -1}, "seed"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Make, wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(ArgumentError, match=rule):
        advise(make(), **wrong)


def test_a_target_whose_time_nobody_can_tell_has_a_setting_all_the_same(
    digits: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CurveForecast, "seconds_to", lambda law, score: np.full(len(law.exponent), np.inf))
    found = advise(digits, target=0.9999, budget_seconds=2.0)
    assert found.batch_size is not None
    assert found.learning_rate is not None
    assert found.iterations is None
    assert found.predicted_seconds.value is None
    assert found.predicted_seconds.low is not None
    assert found.predicted_seconds == next(r for r in found.frontier if r.batch_size == found.batch_size).seconds
    assert found.plan is not None
    assert found.plan.target == 0.9999
    assert found.plan.budget_examples is None
    assert "not known yet. It takes more than" in found.conclusion
    found.table()


@pytest.mark.parametrize("today", [8, 64])
def test_running_out_of_memory_is_a_fact_about_a_size(
    digits: Workload, monkeypatch: pytest.MonkeyPatch, today: int
) -> None:
    advance_updates = Run.advance_updates

    def tight(run: Run, updates: int) -> Any:
        return run.stopped("out of memory") if run.plan.batch_size >= 64 else advance_updates(run, updates)

    monkeypatch.setattr(Run, "advance_updates", tight)
    found = advise(dataclasses.replace(digits, batch_size=today, learning_rate=0.02), target=0.9, budget_seconds=3.0)
    assert found.batch_size is not None
    assert found.batch_size < 64
    assert {c.reason for c in found.race if c.batch_size >= 64} <= {"it ran out of memory"}
    assert max(row.batch_size for row in found.frontier if row.raced) < 64


def test_a_language_model_is_told_in_tokens_and_what_its_second_moment_remembers(digits: Workload) -> None:
    def adam(params: Any, learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=learning_rate, betas=(0.9, 0.99))

    words = dataclasses.replace(digits, tokens_per_example=64, optimizer=adam, learning_rate=1e-3, batch_size=8)
    advice = bs.advise(words, target=0.9, batch_sizes=[32, 64], budget_seconds=3.0)
    size = advice.batch_size
    assert size in (32, 64)
    assert size is not None
    assert f"Use batch size {size} ({size * 64:,} tokens), " in advice.conclusion
    [said] = [reason for reason in advice.reasons if "β₂" in reason]
    # A half-life of as many tokens takes 0.99 to the power of the ratio of the batch sizes.
    assert f"which β₂ = {0.99 ** (size / 8):.4g} would keep" in said

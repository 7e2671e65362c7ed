"""Advice from end to end, for good workloads and for those where none can be given."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import batchscope as bs
from batchscope import Workload
from batchscope.advice import advise, clock, train_from_nothing
from batchscope.advice.race import Race
from batchscope.advice.recommendation import _is_vague
from batchscope.errors import ArgumentError, RunError
from batchscope.fit.learning_curve import LearningCurve
from batchscope.records import Advice, Interval

Make = Callable[..., Workload]


@pytest.fixture(scope="module", autouse=True)
def own_time() -> Iterator[None]:
    """A budget in the time that this process has computed, so that a busy machine makes no difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "now", time.process_time)
        yield


@pytest.fixture(scope="module")
def digits() -> Workload:
    return dataclasses.replace(bs.load_workload("digits"), batch_size=8, learning_rate=0.005)


@pytest.fixture(scope="module")
def advice(digits: Workload) -> Advice:
    return advise(digits, target=0.93, budget_seconds=5.0)


def test_the_plan_reaches_the_target_and_beats_the_present_setting(digits: Workload, advice: Advice) -> None:
    assert advice.plan is not None
    found = bs.train(digits, advice.plan)
    assert found.reached
    assert advice.batch_size is not None
    assert 16 <= advice.batch_size <= 1024
    assert advice.learning_rate is not None
    assert advice.learning_rate > 0.02
    # in examples, which no busy machine changes
    row = next(row for row in advice.frontier if row.batch_size == advice.batch_size)
    assert row.examples.value is not None
    assert found.examples < 4 * row.examples.value
    assert found.examples > row.examples.value / 4


def test_the_record_says_what_it_rests_on(advice: Advice, tmp_path: Any) -> None:
    assert advice.conclusion.startswith(f"Use batch size {advice.batch_size:,}")
    assert "0.93" in advice.conclusion
    assert len(advice.reasons) >= 5
    sizes = [row.batch_size for row in advice.frontier]
    assert sizes == sorted(sizes)
    assert sum(row.raced for row in advice.frontier) >= 2
    raced = next(row.raced for row in advice.frontier if row.batch_size == advice.batch_size)
    assert sum(c.ended == "advised" for c in advice.race) == raced
    assert all(c.points or c.ended == "diverged" for c in advice.race)
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
    assert 0.9 < by_examples.predicted_score.value <= 1.05
    by_seconds = advise(digits, seconds=0.5, budget_seconds=2.5)
    assert by_seconds.plan is not None
    assert by_seconds.predicted_seconds.value == pytest.approx(0.5, rel=0.3)


def test_only_the_sizes_that_were_allowed_are_advised(digits: Workload) -> None:
    found = advise(digits, target=0.9, budget_seconds=3.0, batch_sizes=[48, 96])
    assert found.batch_size in (48, 96)
    assert [row.batch_size for row in found.frontier] == [48, 96]


def test_several_devices_share_the_batch_and_pay_for_the_network(digits: Workload) -> None:
    found = advise(digits, target=0.9, budget_seconds=3.0, devices=4, network=(1e9, 0.05))
    row = found.frontier[-1]
    assert row.micro_batch_size * row.accumulation_steps * 4 >= row.batch_size
    assert row.step_seconds.value is not None
    assert row.step_seconds.value > 2 * 3 * 0.05


class Branching(nn.Module):
    """Looks at the values that it is given, which no batched pass can."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        out: Tensor = self.head(torch.tanh(hidden) if float(hidden.detach().sum()) > -1e9 else hidden)
        return out


def test_a_workload_that_cannot_be_stacked_is_raced_in_single_runs(make: Make) -> None:
    workload = make(examples=600, held_out=100, model=Branching)
    found = advise(workload, target=0.93, budget_seconds=4.0, batch_sizes=[8, 32])
    assert found.batch_size in (8, 32)
    assert any("single runs" in warning for warning in found.warnings)


def test_a_target_that_is_reached_at_once_is_no_riddle(make: Make) -> None:
    found = advise(make(examples=400, held_out=100), target=0.3, budget_seconds=4.0, batch_sizes=[8, 32])
    assert found.plan is not None
    assert bs.train(make(examples=400, held_out=100), found.plan).reached


def exploding(output: Tensor, target: Tensor) -> Tensor:
    """Finite with fresh weights; its gradient throws them out at any rate."""
    return (1e12 * output).square().mean()


@pytest.mark.parametrize(
    ("changes", "goal", "said"),
    [
        ({"loss": exploding}, {"target": 0.9}, "diverged"),
        ({"score": lambda output, target: 0.5}, {"target": 0.9}, "at every evaluation"),
    ],
)
def test_where_nothing_can_be_advised_it_says_what_was_found_out(
    make: Make, changes: dict[str, Any], goal: dict[str, Any], said: str
) -> None:
    found = advise(make(examples=200, held_out=50, **changes), **goal, budget_seconds=2.0, batch_sizes=[8, 32])
    assert found.batch_size is None
    assert found.plan is None
    assert said in found.conclusion


def test_a_target_out_of_reach_names_the_best_that_was_seen(digits: Workload) -> None:
    found = advise(digits, target=1.5, budget_seconds=4.0)
    assert found.batch_size is None
    assert "out of reach" in found.conclusion
    assert found.frontier
    assert math.isfinite(found.cost_seconds)


def test_ten_examples_are_enough_for_an_honest_word(make: Make) -> None:
    found = advise(make(examples=10, held_out=10), target=0.9, budget_seconds=2.0)
    assert found.conclusion


def test_a_budget_that_is_too_small_asks_for_more(make: Make) -> None:
    found = advise(make("transformer", examples=4000, held_out=2000), target=0.9, budget_seconds=1.0)
    assert found.batch_size is None or found.predicted_seconds.value is not None
    assert found.conclusion


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
    # Most draws do not get there; one in four does.
    def unlikely(law: LearningCurve, batch_size: float, value: float) -> Any:
        found = examples_to(law, batch_size, value)
        return np.where(np.arange(len(found)) % 4 == 0, np.where(np.isfinite(found), found, 1e6), np.inf)

    examples_to = LearningCurve.examples_to
    monkeypatch.setattr(LearningCurve, "examples_to", unlikely)
    found = advise(digits, target=0.995, budget_seconds=3.0)
    assert found.batch_size is not None
    assert found.learning_rate is not None
    assert found.iterations is None
    assert found.predicted_seconds.value is None
    assert found.plan is not None
    assert found.plan.target == 0.995
    assert found.plan.budget_examples is None
    assert "does not tell how long" in found.conclusion
    assert found.reasons
    found.table()


def test_training_from_nothing_goes_on_from_the_race(digits: Workload) -> None:
    found = train_from_nothing(digits, target=0.95, budget_seconds=4.0)
    assert found.reached
    assert found.best_score is not None
    assert found.best_score >= 0.95
    assert found.total_seconds > found.step_seconds
    assert found.state is not None
    model = digits.model()
    model.load_state_dict(found.state)
    x, y = digits.validation  # type: ignore[misc]
    assert float((model.eval()(x).argmax(-1) == y).double().mean()) == pytest.approx(found.best_score, abs=0.006)


def test_a_target_that_is_late_is_gone_on_with_at_smaller_rates_and_given_up_in_the_end(
    digits: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A race that thinks it is there already.
    seen: list[float] = []

    def horizon(race: Race, batch_size: int) -> float:
        seen.append(float(max(1000, *(lane.examples for lane in race.lanes.values()))))
        return seen[-1]

    monkeypatch.setattr("batchscope.advice.auto.PATIENCE", 2.0)
    monkeypatch.setattr("batchscope.advice.auto.PATIENT_EPOCHS", 0)
    monkeypatch.setattr(Race, "horizon_examples", horizon)
    found = train_from_nothing(digits, target=0.9999, budget_seconds=1.5)
    assert found.outcome == "finished"
    assert found.message is not None
    assert f"expected after {seen[-1]:,.0f} examples" in found.message
    assert found.examples >= 2 * seen[-1]
    rates = [point.learning_rate for point in found.curve]
    assert 0.1 < rates[-1] / rates[0] < 0.8


def test_a_budget_that_ends_before_anything_was_judged_still_trains(digits: Workload) -> None:
    found = train_from_nothing(digits, target=0.9, budget_seconds=1.0)
    assert found.reached


def test_training_from_nothing_says_why_it_cannot(make: Make) -> None:
    with pytest.raises(RunError, match="diverged"):
        train_from_nothing(make(examples=200, loss=exploding), target=0.9, budget_seconds=3.0, batch_sizes=[8, 32])


def test_a_time_that_nobody_knows_is_not_told() -> None:
    assert _is_vague(Interval(1146.0, 6.28, math.inf, 0.9))
    assert not _is_vague(Interval(9.82, 1.38, math.inf, 0.9))  # within a factor of ten of the least that it takes
    assert not _is_vague(Interval(1146.0, 6.28, 9000.0, 0.9))
    assert not _is_vague(Interval.unresolved(0.9, low=6.28))


def test_a_language_model_is_told_in_tokens_and_what_its_second_moment_remembers(digits: Workload) -> None:
    def adam(params: Any, learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=learning_rate, betas=(0.9, 0.99))

    words = dataclasses.replace(digits, tokens_per_example=64, optimizer=adam, learning_rate=1e-3, batch_size=8)
    advice = bs.advise(words, target=0.9, batch_sizes=[32, 64], budget_seconds=3.0)
    size = advice.batch_size
    assert size in (32, 64)
    assert f"Use batch size {size} ({size * 64:,} tokens), " in advice.conclusion
    [said] = [reason for reason in advice.reasons if "β₂" in reason]
    # A half-life of as many tokens takes 0.99 to the power of the ratio of the batch sizes.
    assert f"which {0.99 ** (size / 8):.4g} would keep" in said

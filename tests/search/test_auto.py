"""Training from nothing: the winner goes on from where the search has left it, and nothing else trains."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.search.broken import Broken
from torch.optim.optimizer import register_optimizer_step_post_hook

import batchscope as bs
from batchscope import Workload
from batchscope.errors import RunError
from batchscope.search import auto, train_from_nothing
from batchscope.search.answer import Answer, find_answer
from batchscope.search.candidates import Setting
from batchscope.search.race import Race

Make = Callable[..., Workload]


@pytest.fixture(scope="module")
def digits() -> Workload:
    return dataclasses.replace(bs.load_workload("digits"), batch_size=8, learning_rate=0.005)


@pytest.fixture
def counted() -> Iterator[list[int]]:
    """The number of updates of any optimiser, in the list's one place."""
    count = [0]

    def after(*_: Any) -> None:
        count[0] += 1

    handle = register_optimizer_step_post_hook(after)
    yield count
    handle.remove()


@pytest.fixture
def at_the_end(monkeypatch: pytest.MonkeyPatch, counted: list[int]) -> dict[str, Any]:
    """How things stood when the search was over."""
    seen: dict[str, Any] = {}

    def find(race: Race, *given: Any, **named: Any) -> Answer | None:
        answer = find_answer(race, *given, **named)
        assert answer is not None
        candidate: Any = race.candidates[answer.best]
        weights = {name: value.clone() for name, value in candidate.run.model.state_dict().items()}
        seen.update(
            elapsed=race.source.elapsed_seconds(),
            updates=counted[0],
            own=candidate.updates,
            setting=answer.best,
            weights=weights,
            answer=answer,
        )
        return answer

    monkeypatch.setattr(auto, "find_answer", find)
    return seen


def test_the_winner_goes_on_and_nothing_else_trains(
    digits: Workload, counted: list[int], at_the_end: dict[str, Any]
) -> None:
    found = train_from_nothing(digits, target=0.95, budget_seconds=4.0)
    assert found.reached
    assert found.best_score is not None
    assert found.best_score >= 0.95
    assert at_the_end["own"] > 0
    assert found.iterations >= at_the_end["own"]
    assert counted[0] - at_the_end["updates"] == found.iterations - at_the_end["own"]
    assert Setting(found.plan.batch_size, found.plan.learning_rate) == at_the_end["setting"]
    assert found.total_seconds > found.step_seconds


def test_the_weights_are_those_that_were_scored(digits: Workload) -> None:
    found = train_from_nothing(digits, target=0.95, budget_seconds=4.0)
    assert found.state is not None
    model = digits.model()
    model.load_state_dict(found.state)
    x, y = digits.validation  # type: ignore[misc]
    assert float((model.eval()(x).argmax(-1) == y).double().mean()) == pytest.approx(found.best_score, abs=0.006)


def test_a_target_that_the_search_has_reached_needs_no_further_update(
    digits: Workload, counted: list[int], at_the_end: dict[str, Any]
) -> None:
    found = train_from_nothing(digits, target=0.5, budget_seconds=4.0)
    assert found.reached
    assert found.iterations - at_the_end["own"] == counted[0] - at_the_end["updates"]


@pytest.mark.parametrize("goal", [{"examples": 6000}, {"seconds": 0.4}])
def test_a_budget_is_trained_to_its_end(digits: Workload, goal: dict[str, Any]) -> None:
    found = train_from_nothing(digits, budget_seconds=2.0, **goal)
    assert found.outcome == "finished"
    if "examples" in goal:
        assert found.examples == pytest.approx(6000, abs=found.plan.batch_size or 0)
    else:
        assert 0.1 < found.step_seconds < 1.6  # as measured while it trains, on a machine that may be busy


def test_a_target_that_is_late_is_gone_on_with_at_smaller_rates_and_given_up_in_the_end(
    digits: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "PATIENCE", 3.0)
    monkeypatch.setattr(auto, "PATIENT_EPOCHS", 0)
    found = train_from_nothing(digits, target=0.9999, budget_seconds=1.5)
    assert found.outcome == "finished"
    assert found.message is not None
    said = re.search(r"expected after ([\d,]+) examples", found.message)
    assert said is not None
    expected = int(said[1].replace(",", ""))
    assert found.examples >= 3 * expected * (1 - 1e-3)
    rates = [point.learning_rate for point in found.curve]
    assert 0.1 < rates[-1] / rates[0] < 0.8


def test_a_budget_of_a_second_still_trains(digits: Workload) -> None:
    assert train_from_nothing(digits, target=0.9, budget_seconds=1.0).reached


def test_it_says_why_it_cannot(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make(examples=200, model=Broken)
    monkeypatch.setattr(Broken, "factor", math.nan)
    with pytest.raises(RunError, match="diverged"):
        train_from_nothing(workload, target=0.9, budget_seconds=1.0, batch_sizes=[8, 32])


def test_the_search_keeps_its_budget(digits: Workload, at_the_end: dict[str, Any]) -> None:
    train_from_nothing(digits, target=0.97, budget_seconds=2.0)
    assert at_the_end["elapsed"] < 1.2 * 2.0 + 0.5  # a piece of training, and a decision

"""The search for a learning rate, on valleys whose bottom is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batchscope.fit import valley_bottom
from batchscope.records import Plan, RateSearch, TrainResult
from batchscope.study.search import FACTOR, MOST_TRIALS, horizon, next_exponent, search_learning_rate

PLAN = Plan(batch_size=8, learning_rate=1.0, iterations=4000, shape="linear", order="stratified", micro_batch_size=4)


@pytest.fixture
def search(make_run: Callable[..., TrainResult]) -> Callable[..., tuple[RateSearch, list[Plan]]]:
    """Search a made-up valley: a function from the rate to a loss, or to an outcome that gives none."""

    def run(
        valley: Callable[[float], float | str], start: float = 0.1, plan: Plan = PLAN
    ) -> tuple[RateSearch, list[Plan]]:
        tried: list[Plan] = []

        def train(trial: Plan) -> TrainResult:
            tried.append(trial)
            found = valley(trial.learning_rate)
            if isinstance(found, str):
                return make_run(outcome=found, seconds=2.0)
            return make_run(score=-found, loss=found, seconds=2.0)

        result, runs = search_learning_rate(train, plan, start)
        assert len(runs) == len(tried)
        return result, tried

    return run


def explore(loss: Callable[[int], float]) -> dict[int, float]:
    """Follow next_exponent from 0 until it has enough, or 50 trials."""
    losses: dict[int, float] = {}
    exponent: int | None = 0
    while exponent is not None and len(losses) < 50:
        assert exponent not in losses, "a rate was tried twice"
        losses[exponent] = loss(exponent)
        exponent = next_exponent(losses)
    return losses


@given(bottom=st.floats(-12, 12), width=st.floats(0.1, 30), floor=st.floats(-5, 5))
def test_any_valley_is_bracketed_without_a_gap(bottom: float, width: float, floor: float) -> None:
    def loss(e: int) -> float:
        return floor + ((e - bottom) / width) ** 2

    losses = explore(loss)
    assert sorted(losses) == list(range(min(losses), max(losses) + 1))
    best = max(losses, key=lambda e: (-losses[e], e))
    assert min(losses) < best < max(losses)
    assert abs(best - bottom) <= 0.51
    # No more than the way there, a step beyond, and one to the other side.
    assert len(losses) <= abs(bottom) + 4


@given(cliff=st.integers(-8, 8), bottom=st.floats(-8, 8))
def test_a_cliff_above_is_as_good_as_a_worse_neighbour(cliff: int, bottom: float) -> None:
    """Training diverges from the exponent ``cliff`` on."""
    losses = explore(lambda e: math.inf if e >= cliff else (e - bottom) ** 2)
    finite = [e for e in losses if math.isfinite(losses[e])]
    best = max(finite, key=lambda e: (-losses[e], e))
    assert best == min((e for e in range(-40, cliff)), key=lambda e: abs(e - bottom)) or abs(best - bottom) <= 0.51
    assert min(losses) < best < max(losses)


def test_where_everything_diverges_the_search_goes_down() -> None:
    assert next_exponent({0: math.inf}) == -1
    assert next_exponent({0: math.inf, -1: math.inf}) == -2
    assert next_exponent({0: math.inf, -1: math.inf, -2: 3.0}) == -3  # the first finite one has only a cliff beside it


def test_a_level_valley_is_looked_at_upwards() -> None:
    assert next_exponent({0: 1.0, 1: 1.0}) == 2
    assert next_exponent({0: 1.0, 1: 1.0, 2: 1.5}) is None


@given(bottom=st.floats(math.log(1e-5), math.log(1e3)), width=st.floats(0.5, 4), start=st.floats(1e-2, 1.0))
def test_the_bottom_of_a_parabola_is_found(bottom: float, width: float, start: float) -> None:
    """A loss that is quadratic in log ε: the vertex of the parabola through three points is exact."""
    assume(abs(math.log2(math.exp(bottom) / start)) < MOST_TRIALS - 4)
    losses = explore(lambda e: 1 + ((math.log(start * FACTOR**e) - bottom) / width) ** 2)
    tried = sorted(losses)
    rate, at_edge = valley_bottom([start * FACTOR**e for e in tried], [losses[e] for e in tried])
    assert rate == pytest.approx(math.exp(bottom), rel=1e-3)
    assert not at_edge


@pytest.mark.parametrize("bottom", [0.003, 0.07, 0.1, 0.55, 4.0])
def test_the_chosen_rate_is_within_a_few_per_cent(
    search: Callable[..., tuple[RateSearch, list[Plan]]], bottom: float
) -> None:
    """A valley that is steeper above, as real ones are: cosh in log ε with another width on either side."""

    def valley(rate: float) -> float:
        u = math.log(rate / bottom)
        return 0.3 + 0.05 * (math.cosh(u * (1.1 if u > 0 else 0.9)) - 1)

    result, _ = search(valley)
    assert result.learning_rate == pytest.approx(bottom, rel=0.1)
    assert not result.at_edge


def test_a_search_says_what_it_tried_and_what_it_cost(search: Callable[..., tuple[RateSearch, list[Plan]]]) -> None:
    result, tried = search(lambda rate: math.log(rate / 0.3) ** 2)
    assert [trial.learning_rate for trial in result.trials] == sorted(trial.learning_rate for trial in tried)
    assert [trial.learning_rate for trial in result.trials] == [0.1, 0.2, 0.4, 0.8]
    assert [trial.loss for trial in result.trials] == [
        pytest.approx(math.log(trial.learning_rate / 0.3) ** 2) for trial in result.trials
    ]
    assert result.horizon_examples == horizon(32_000, 8) == 4_000
    assert result.seconds == 2.0 * len(tried)
    assert result.examples == 800 * len(tried)  # what the runs say, not what was planned
    for trial in tried:
        assert trial == replace(PLAN, iterations=None, examples=4_000, learning_rate=trial.learning_rate)


def test_where_every_rate_diverges_the_smallest_is_taken_and_said_to_be_at_the_edge(
    search: Callable[..., tuple[RateSearch, list[Plan]]],
) -> None:
    result, tried = search(lambda rate: "diverged")
    assert len(tried) == MOST_TRIALS
    assert result.at_edge
    assert result.learning_rate == pytest.approx(0.1 * FACTOR ** -(MOST_TRIALS - 1))
    assert all(trial.loss == math.inf and trial.score is None for trial in result.trials)


def test_divergence_on_one_side_leaves_the_best_rate_as_tried(
    search: Callable[..., tuple[RateSearch, list[Plan]]],
) -> None:
    result, _ = search(lambda rate: "diverged" if rate > 0.3 else 1 - rate)
    assert result.learning_rate == pytest.approx(0.2)
    assert not result.at_edge
    assert [trial.outcome for trial in result.trials] == ["finished", "finished", "diverged"]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_slope_without_end_stops_at_the_most_trials(
    search: Callable[..., tuple[RateSearch, list[Plan]]], sign: int
) -> None:
    result, tried = search(lambda rate: sign * math.log(rate))
    assert len(tried) == MOST_TRIALS
    assert result.at_edge
    rates = [trial.learning_rate for trial in tried]
    assert result.learning_rate == (min(rates) if sign > 0 else max(rates))


def test_equal_losses_side_by_side_are_no_edge(search: Callable[..., tuple[RateSearch, list[Plan]]]) -> None:
    losses = {0.1: 1.0, 0.2: 1.0, 0.4: 1.5, 0.05: 1.5}
    result, tried = search(lambda rate: losses[round(rate, 3)])
    assert not result.at_edge
    assert result.learning_rate == pytest.approx(math.sqrt(0.1 * 0.2), rel=1e-6)
    assert len(tried) == 3


def test_out_of_memory_ends_the_search_at_once(search: Callable[..., tuple[RateSearch, list[Plan]]]) -> None:
    result, tried = search(lambda rate: "out of memory")
    assert len(tried) == 1
    assert [trial.outcome for trial in result.trials] == ["out of memory"]
    assert result.learning_rate == 0.1


def test_an_interrupted_search_keeps_the_best_so_far(search: Callable[..., tuple[RateSearch, list[Plan]]]) -> None:
    result, tried = search(lambda rate: "interrupted" if rate > 0.5 else 1 - rate)
    assert [round(trial.learning_rate, 3) for trial in tried] == [0.1, 0.2, 0.4, 0.8]
    assert [round(trial.learning_rate, 3) for trial in result.trials] == [0.1, 0.2, 0.4]
    assert result.learning_rate == pytest.approx(0.4)
    first, _ = search(lambda rate: "interrupted")
    assert first.trials == ()
    assert first.learning_rate == 0.1


@given(examples=st.integers(1, 10**7), batch_size=st.integers(1, 4096))
def test_the_horizon_is_whole_updates_within_the_budget(examples: int, batch_size: int) -> None:
    length = horizon(examples, batch_size)
    assert 1 <= length <= examples
    assert length == examples or length % batch_size == 0
    assert length == examples or (length >= examples // 8 and length >= 128 * batch_size)

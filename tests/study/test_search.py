"""The search for a row's learning rate, on valleys whose bottom is known, also where it drifts with the budget."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchscope.records import Plan, RateSearch, TrainResult
from batchscope.study.rate_search import MOST_WIDENINGS
from batchscope.study.search import screening_examples, search_learning_rate

PLAN = Plan(batch_size=8, learning_rate=1.0, iterations=4000, shape="linear", order="stratified", micro_batch_size=4)
BUDGET, SHORT = 32_000, 4_000
SEEDS = (7, 8)

# Loss of a rate after so many examples with a seed, or an outcome that gives none.
Valley = Callable[[float, int, int], float | str]
Searched = Callable[..., tuple[RateSearch, list[tuple[Plan, int]]]]


@pytest.fixture
def search(make_run: Callable[..., TrainResult]) -> Searched:
    """Search a made-up valley."""

    def run(
        valley: Valley, start: float = 0.1, plan: Plan = PLAN, seeds: tuple[int, ...] = SEEDS, screen: bool = True
    ) -> tuple[RateSearch, list[tuple[Plan, int]]]:
        tried: list[tuple[Plan, int]] = []

        def train(trial: Plan, seed: int) -> TrainResult:
            tried.append((trial, seed))
            found = valley(trial.learning_rate, trial.examples or 0, seed)
            if isinstance(found, str):
                return make_run(outcome=found, seconds=2.0)
            return make_run(score=-found, loss=found, seconds=2.0)

        result, runs = search_learning_rate(train, plan, start, seeds, screen=screen)
        assert len(runs) == len(tried)
        return result, tried

    return run


def octaves(rate: float, bottom: float) -> float:
    return math.log2(rate / bottom)


def whole(result: RateSearch) -> list[float]:
    """Rates that were trained over the whole budget."""
    return sorted({t.learning_rate for t in result.trials if t.examples == result.horizon_examples})


@pytest.mark.parametrize("drift", [-3.0, -1.0, 0.0, 2.0])
@pytest.mark.parametrize("screen", [True, False])
def test_a_best_rate_that_drifts_with_the_budget_is_found_at_the_budget(
    search: Searched, drift: float, screen: bool
) -> None:
    def loss(rate: float, examples: int, seed: int) -> float:
        bottom = 0.3 * 2 ** (drift * math.log(examples / SHORT) / math.log(BUDGET / SHORT))
        return 1 + octaves(rate, bottom) ** 2 + 0.1 * seed

    result, tried = search(loss, screen=screen)
    assert result.learning_rate == pytest.approx(0.3 * 2**drift)
    assert result.horizon_examples == BUDGET
    assert (SHORT in {plan.examples for plan, _ in tried}) == screen
    assert min(whole(result)) < result.learning_rate < max(whole(result))
    assert not result.at_edge
    assert result.interpolated


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # it keeps nothing
@given(bottom=st.floats(-8, 8), width=st.floats(0.3, 10), noise=st.floats(0, 0.05), seed=st.integers(0, 10**6))
def test_the_best_trained_rate_has_a_worse_neighbour_on_either_side_over_both_seeds(
    bottom: float, width: float, noise: float, seed: int, search: Searched
) -> None:
    def loss(rate: float, examples: int, of: int) -> float:
        own = np.random.default_rng([seed, of, examples, round(1000 * octaves(rate, 1e-6))])
        return float(2 + (octaves(rate, 0.1 * 2**bottom) / width) ** 2 + noise * own.normal())

    result, tried = search(loss)
    assert len({(plan.learning_rate, plan.examples, of) for plan, of in tried}) == len(tried)  # none twice
    losses: dict[float, dict[int, float]] = {}
    for trial in result.trials:
        if trial.examples == BUDGET and trial.seed is not None:
            losses.setdefault(trial.learning_rate, {})[trial.seed] = trial.loss
    complete = {rate: sum(own.values()) for rate, own in losses.items() if len(own) == len(SEEDS)}
    best = min(complete, key=lambda rate: complete[rate])
    assert not result.at_edge
    for factor in (0.5**0.5, 2**0.5):
        neighbour = next((rate for rate in complete if abs(math.log(rate / best / factor)) < 1e-6), None)
        assert neighbour is not None
        assert complete[neighbour] >= complete[best]
    # The parabola leads to no further than half-way to a neighbour.
    assert abs(octaves(result.learning_rate, best)) <= 0.25 + 1e-6
    # With little noise that is where the bottom is.
    if noise < 0.01 / width**2:
        assert abs(octaves(result.learning_rate, 0.1 * 2**bottom)) <= 0.3


def test_it_takes_ten_runs_of_the_whole_budget_where_the_start_is_good(search: Searched) -> None:
    # Seeds differ in level, which paired runs do not see, and a little besides.
    result, _ = search(lambda rate, _, seed: 1 + octaves(rate, 0.11) ** 2 + 0.01 * seed)
    assert sum(trial.examples == BUDGET for trial in result.trials) == 10
    assert sum(trial.examples == SHORT for trial in result.trials) == 3


@pytest.mark.parametrize("away", [-7.0, 7.0])
def test_a_start_that_is_off_by_a_hundred_is_made_up_for_by_short_runs(search: Searched, away: float) -> None:
    result, _ = search(lambda rate, _, seed: 1 + abs(octaves(rate, 0.1 * 2**away)))
    assert octaves(result.learning_rate, 0.1) == pytest.approx(away)
    assert sum(trial.examples == BUDGET for trial in result.trials) <= 13


def test_a_dip_beside_a_better_valley_is_found_out(search: Searched) -> None:
    # Mean losses of the regression benchmark at 80 updates of 1,024.
    places = [0.0834, 0.066, 0.0507, 0.0419, 0.0379, 0.039, 0.0758, 0.0905, 0.0829, 0.1807, 2.0427]

    def loss(rate: float, *_: int) -> float | str:
        place = round(2 * math.log2(rate / 0.00546))
        return "diverged" if place >= len(places) else places[place] if place >= 0 else 0.1 - 0.01 * place

    result, _ = search(loss, start=0.0874, screen=False)
    assert 0.02 < result.learning_rate < 0.032
    assert not result.at_edge


def test_a_rate_that_is_lucky_with_one_seed_is_found_out(search: Searched) -> None:
    def loss(rate: float, examples: int, seed: int) -> float:
        lucky = seed == SEEDS[0] and abs(octaves(rate, 0.2)) < 0.1
        return 1 + 0.1 * octaves(rate, 0.1) ** 2 - (0.15 if lucky else -0.15 * (abs(octaves(rate, 0.2)) < 0.1))

    result, _ = search(loss)
    assert abs(octaves(result.learning_rate, 0.1)) <= 0.25


def test_a_search_says_what_it_tried_and_what_it_cost(search: Searched) -> None:
    result, tried = search(lambda rate, *_: 1 + octaves(rate, 0.3) ** 2)
    rates = [trial.learning_rate for trial in result.trials]
    assert sorted(rates) == sorted(plan.learning_rate for plan, _ in tried)
    assert [trial.loss for trial in result.trials] == [1 + octaves(rate, 0.3) ** 2 for rate in rates]
    assert result.seconds == 2.0 * len(tried)
    assert result.examples == 800 * len(tried)  # what the runs say, not what was planned
    assert [point.learning_rate for point in result.curve] == whole(result)
    assert [point.loss for point in result.curve] == pytest.approx([1 + octaves(r, 0.3) ** 2 for r in whole(result)])
    for plan, seed in tried:
        assert (plan.shape, plan.order, plan.micro_batch_size, plan.iterations) == ("linear", "stratified", 4, None)
        assert seed in SEEDS


def test_the_curve_compares_rates_by_the_seeds_they_share(search: Searched) -> None:
    result, _ = search(lambda rate, _, seed: 1 + octaves(rate, 0.1) ** 2 + 5 * (seed - 7))
    # All seeds of the best rate have a mean level of 2.5; a rate with the first seed alone is 2.5 too low.
    assert {round(p.loss - octaves(p.learning_rate, 0.1) ** 2, 6) for p in result.curve} == {3.5}


def test_where_every_rate_diverges_the_smallest_is_taken_and_said_to_be_at_the_edge(search: Searched) -> None:
    result, tried = search(lambda *_: "diverged")
    assert len(tried) <= 2 * (2 + MOST_WIDENINGS)
    assert result.at_edge
    assert result.learning_rate == min(plan.learning_rate for plan, _ in tried)
    assert result.curve == ()
    assert all(trial.loss == math.inf and trial.score is None for trial in result.trials)


def test_beside_a_cliff_the_best_rate_is_one_that_was_trained(search: Searched) -> None:
    result, _ = search(lambda rate, *_: "diverged" if rate > 0.3 else 1 - rate)
    assert result.learning_rate in whole(result)
    assert not result.interpolated
    assert not result.at_edge
    assert 0.3 / 2**0.5 < result.learning_rate <= 0.3


@pytest.mark.parametrize("sign", [1, -1])
def test_a_slope_without_end_ends_at_the_edge(search: Searched, sign: int) -> None:
    result, _ = search(lambda rate, *_: sign * math.log(rate), screen=False)
    assert result.at_edge
    assert result.learning_rate == (min if sign > 0 else max)(whole(result))


def test_one_seed_can_do(search: Searched) -> None:
    result, tried = search(lambda rate, *_: 1 + octaves(rate, 0.1) ** 2, seeds=(3,))
    assert {seed for _, seed in tried} == {3}
    assert result.learning_rate == pytest.approx(0.1)


def test_out_of_memory_ends_the_search_at_once(search: Searched) -> None:
    result, tried = search(lambda *_: "out of memory")
    assert len(tried) == 1
    assert [trial.outcome for trial in result.trials] == ["out of memory"]
    assert result.learning_rate == 0.1


def test_an_interrupted_search_keeps_the_best_so_far(search: Searched) -> None:
    result, tried = search(lambda rate, *_: "interrupted" if rate > 0.5 else 1 - rate, screen=False)
    assert [round(plan.learning_rate, 3) for plan, _ in tried] == [0.1, 0.2, 0.4, 0.8]
    assert [round(trial.learning_rate, 3) for trial in result.trials] == [0.1, 0.2, 0.4]
    assert result.learning_rate == pytest.approx(0.4)
    first, _ = search(lambda *_: "interrupted")
    assert first.trials == ()
    assert first.learning_rate == 0.1


@given(examples=st.integers(1, 10**7), batch_size=st.integers(1, 4096))
def test_screening_is_made_of_whole_updates_and_pays(examples: int, batch_size: int) -> None:
    length = screening_examples(examples, batch_size)
    if length is None:
        assert 128 * batch_size > examples / 4 or examples < 8 * batch_size
    else:
        assert length % batch_size == 0
        assert max(examples / 8, 128 * batch_size) <= length <= examples / 4

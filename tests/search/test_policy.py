"""The policy alone, on curves in closed form: where it starts, what it tries, when it stops, and what it finds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.search.valley import BEST, Valley, seconds_to, speed, update_seconds

from batchscope.records import Goal
from batchscope.search.answer import Answer, find_answer
from batchscope.search.candidates import Observation, Point, Setting
from batchscope.search.policy import Advance, Limits, Policy, Stop, lattice
from batchscope.search.race import Budget, Race
from batchscope.search.update_times import UpdateSeconds

SIZES = tuple(2**k for k in range(2, 11))
LOSS = 0.3
BEST_SECONDS = seconds_to(BEST, LOSS)
# A run as long as the budget that it deserves is meant for.
BUDGET = Budget(0.25 * BEST_SECONDS)


def raced(start: Setting, *, budget: Budget = BUDGET, **changes: Any) -> tuple[Race, Valley]:
    valley = Valley(target=-LOSS, **changes)
    race = Race(valley, Policy(start, SIZES), Goal("target", -LOSS), budget)
    race.run()
    return race, valley


def answered(race: Race) -> Answer:
    answer = find_answer(race, update_seconds)
    assert answer is not None
    return answer


def test_it_starts_with_todays_setting() -> None:
    start = Setting(32, 0.03)
    step = Policy(start, SIZES).next_step([], Limits(10.0, 10.0, 40.0))
    assert isinstance(step, Advance)
    assert step.setting == start
    assert step.seconds < 1.0
    _, valley = raced(start)
    assert valley.opened[0] == start


def test_a_setting_that_is_the_best_is_kept() -> None:
    race, valley = raced(BEST, scatter=0.05)
    assert answered(race).best == BEST
    assert answered(race).keeps_today
    assert valley.elapsed < 0.26 * BEST_SECONDS


def test_it_stops_sooner_where_there_is_less_to_gain() -> None:
    """Of a run that is nearly over nothing can be saved."""
    start, points = BEST, []
    for updates in range(1, 200):
        points.append(Point(64 * updates, updates, 5e-3 * updates, 2.0 * updates**-0.5))
    here = [Observation(start, tuple(points))]
    long = Policy(start, SIZES).next_step(here, Limits(100.0, 100.0, 400.0))
    short = Policy(start, SIZES).next_step(here, Limits(100.0, 100.0, 1e-3))
    assert isinstance(long, Advance)
    assert isinstance(short, Stop) or short.setting != start


@pytest.mark.parametrize("factor", [1 / 8, 8])
@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_valley_from_a_rate_that_is_far_off(factor: float, seed: int) -> None:
    race, valley = raced(Setting(BEST.batch_size, BEST.learning_rate * factor), seed=seed, scatter=0.1)
    assert seconds_to(answered(race).best, LOSS) < 2 * BEST_SECONDS
    assert valley.elapsed < 0.26 * BEST_SECONDS


def test_batches_that_scatter_like_a_real_loss_do_not_mislead_it() -> None:
    """The loss of one example scatters by half of what it can fall."""
    regrets = [seconds_to(answered(raced(BEST, scatter=1.0, seed=seed)[0]).best, LOSS) for seed in range(4)]
    assert max(regrets) < 2 * BEST_SECONDS


@pytest.mark.parametrize("start", [Setting(8, 0.005), Setting(512, 2.0), Setting(1024, 0.4)])
def test_it_finds_the_valley_from_a_batch_size_that_is_far_off(start: Setting) -> None:
    race, _ = raced(start, scatter=0.1)
    assert seconds_to(answered(race).best, LOSS) < 2 * BEST_SECONDS


@pytest.mark.parametrize("start", [Setting(64, 0.0125), Setting(64, 0.8), Setting(8, 0.005)])
def test_the_edge_of_what_was_tried_is_followed(start: Setting) -> None:
    """The advised rate has neighbours on both sides that were trained, or that diverge."""
    race, _ = raced(start, scatter=0.1, budget=Budget(2 * BEST_SECONDS))
    best = answered(race).best
    relative = [
        math.log2(s.learning_rate / best.learning_rate) - 0.5 * math.log2(s.batch_size / best.batch_size)
        for s in race.candidates
    ]
    assert min(relative) < -0.4
    assert max(relative) > 0.4


@pytest.mark.parametrize("fitting", [32, 128])
def test_what_ran_out_of_memory_is_not_tried_again_nor_anything_larger(fitting: int) -> None:
    race, valley = raced(Setting(8, 0.005), fitting=fitting, scatter=0.1)
    too_large = [setting for setting in valley.opened if setting.batch_size > fitting]
    sizes = [setting.batch_size for setting in too_large]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert answered(race).best.batch_size <= fitting


@given(
    octaves=st.tuples(st.integers(2, 10), st.floats(-3, 4)),
    seed=st.integers(0, 99),
    scatter=st.floats(0.0, 2.0),
    budget=st.floats(0.5, 20.0),
)
@settings(max_examples=8, deadline=None)
def test_no_step_costs_more_than_is_left(octaves: tuple[int, float], seed: int, scatter: float, budget: float) -> None:
    start = Setting(2 ** octaves[0], 2.0 ** octaves[1] * BEST.learning_rate)
    valley = Valley(target=-LOSS, scatter=scatter, seed=seed)
    race = Race(valley, Policy(start, SIZES), Goal("target", -LOSS), Budget(budget))
    steps: list[tuple[float, float]] = []

    class Watched(Policy):
        def next_step(self, observations: Any, limits: Limits) -> Advance | Stop:
            step = super().next_step(observations, limits)
            if isinstance(step, Advance) and observations:
                stands = next((o.seconds for o in observations if o.setting == step.setting), 0.0)
                steps.append(((step.seconds - stands) * limits.overhead, limits.budget_seconds))
            return step

    race.policy = Watched(start, SIZES)
    race.run()
    assert all(cost <= left * (1 + 1e-9) for cost, left in steps)
    # The first step is a hundredth of the budget; an update more than a step asks for may be made in each.
    assert valley.elapsed <= budget + (race.steps + 1) * update_seconds(max(SIZES))
    assert set(valley.opened) == set(race.candidates)
    assert len(valley.opened) == len(race.candidates)


def test_rates_are_factors_of_two_from_todays() -> None:
    start = Setting(32, 0.03)
    found = lattice([], start, (16, 32, 64))
    assert start in found
    for setting in found:
        assert math.log2(setting.learning_rate / 0.03) == pytest.approx(
            round(math.log2(setting.learning_rate / 0.03)), abs=1e-9
        )


def test_the_time_of_an_update_is_a_line_through_the_nearest_sizes() -> None:
    points = [
        Observation(Setting(size, 0.1), (Point(10 * size, 10, 10 * update_seconds(size), 1.0),)) for size in SIZES
    ]
    seconds = UpdateSeconds.of(points[2:5])
    for size in SIZES:
        assert seconds(size) == pytest.approx(update_seconds(size), rel=1e-6 if 16 <= size <= 64 else 0.75)
    assert math.isnan(UpdateSeconds()(8))


def test_speeds_of_the_valley_are_what_they_are_meant_to_be() -> None:
    assert speed(BEST) == max(speed(Setting(size, 0.1 * 2.0**k)) for size in SIZES for k in range(-4, 4))
    assert speed(Setting(64, 0.8)) == 0


def stood(setting: Setting, *losses: float) -> Observation:
    """A candidate with a loss after each second, known to 0.01; fresh weights have 3.0."""
    points = [Point(0, 0, 0.0, 3.0, 0.01)]
    points += [Point(100 * k, 100 * k, float(k), loss, 0.01) for k, loss in enumerate(losses, 1)]
    return Observation(setting, tuple(points), None, True, float(len(losses)))


def test_on_a_plateau_todays_setting_is_trained_on() -> None:
    """A rate that lifts the loss a little has not failed, and one that lowers it by 1% has not begun to train."""
    today, high, low = Setting(32, 0.2), Setting(32, 0.8), Setting(32, 0.05)
    policy, limits = Policy(today, SIZES), Limits(14.0, 20.0, 80.0)
    tried = [stood(today, 3.05, 3.1), stood(high, 5.0), stood(low, 2.97)]
    step = policy.next_step(tried, limits)
    assert isinstance(step, Advance)
    assert step.setting in (today, low)
    least = min(tried[0].seconds, tried[2].seconds)
    assert step.seconds == 2 * least


def test_what_stands_on_the_plateau_is_not_the_best_once_another_has_left_it() -> None:
    today, other = Setting(32, 0.2), Setting(64, 0.1)
    policy = Policy(today, SIZES)
    left = stood(today, 3.05, 3.1, 3.0, 2.9, 2.7, 2.4)
    best = policy.best([left, stood(other, 2.93)], 80.0)
    assert best is not None
    assert best.setting == today
    trains = policy.best([left, stood(other, 2.5)], 80.0)
    assert trains is not None
    assert trains.setting == other

"""The search for a rate: on valleys whose best is known, on recorded grids of real runs, and where there is none."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.errors import ArgumentError
from batchscope.study.pruning import by_rate, rank
from batchscope.study.rate_search import MOST_WIDENINGS, RateSearch
from batchscope.study.tasks import Standing, Trial

BUDGET, EVERY = 200_000, 2_000
SEEDS = (0, 1, 2)


def search(**changes: Any) -> RateSearch:
    wanted: dict[str, Any] = {"start": 0.1, "seeds": SEEDS, "batch_size": 32, "target": 1.0, "budget_examples": BUDGET}
    return RateSearch(**(wanted | changes))


def valley(
    replays: Any, seed: int, *, offset: float, noise: float = 0.05, least: float = 20_000, cliff: float = 2.0
) -> Callable[[Trial], Any]:
    """Runs whose log E is a lopsided valley in log₂ ε with its bottom ``offset`` octaves from 0.1.

    Seeds have a level of their own, runs scatter about it, and ``cliff`` octaves above the bottom they diverge.
    """
    generator = np.random.default_rng(seed)
    levels = {s: generator.normal(0, noise) for s in SEEDS}

    @functools.cache
    def curve(trial: Trial) -> Any:
        x = math.log2(trial.learning_rate / 0.1) - offset
        own = np.random.default_rng([seed, trial.seed, round(1000 * x) + 100_000])
        if x > cliff:
            return replays.curve((EVERY,), (0.0,), diverged=True)
        shape = 0.12 * x**2 if x > 0 else 0.5 * (math.exp(-0.55 * x) - 1 + 0.55 * x)
        needed = least * math.exp(shape + levels[trial.seed] + own.normal(0, noise))
        examples = tuple(range(EVERY, BUDGET + 1, EVERY))
        return replays.curve(examples, tuple(min(1.0, e / needed) for e in examples))

    return curve


def full_grid(replays: Any, curve: Callable[[Trial], Any], offset: float, seeds: tuple[int, ...] = SEEDS) -> Any:
    """The rank of every rate within three octaves of the bottom, and the examples of the eight around it, unpruned."""
    middle = round(2 * offset)
    ranks, spent = {}, 0
    for place in range(middle - 6, middle + 7):
        rate = 0.1 * 2.0 ** (place / 2)
        own = replays.run([Trial(32, rate, s) for s in seeds], curve, target=1.0, budget=BUDGET, prune=False)
        ranks[rate] = rank({trial.seed: standing for trial, standing in own.items()}, seeds, BUDGET)
        spent += sum(s.examples for s in own.values()) if -4 <= place - middle < 4 else 0
    return ranks, spent


@pytest.mark.parametrize("together", [True, False])
def test_it_finds_the_best_of_the_full_grid_for_fewer_examples(together: bool, replays: Any) -> None:
    found, shares = [], []
    for seed in range(50):
        generator = np.random.default_rng(1000 + seed)
        offset, cliff = generator.uniform(-3, 3), generator.uniform(0.6, 3)
        curve = valley(replays, seed, offset=offset, cliff=cliff)
        ranks, whole = full_grid(replays, curve, offset)
        choice, _, spent = replays.search(search(), curve, together=together)
        best = min(ranks.values())
        assert choice.edge is None
        found.append(ranks[choice.learning_rate].log_examples - best.log_examples <= math.log(1.02))
        shares.append(spent / whole)
    assert np.mean(found) >= 0.95
    # The full grid is one that knows where the bottom is.
    assert np.median(shares) < 0.8


def test_on_recorded_grids_it_is_near_the_best_and_pruning_saves_and_changes_nothing(replays: Any) -> None:
    behind, spent, whole = [], 0, 0
    for grid in replays.grids():
        if grid.name == "digits_1024":  # the linear rule starts it where the record of low rates ends
            continue
        target = 0.83 if "fashion" in grid.name else 0.95
        ranks = {}
        for place in grid.places:
            own = replays.run(grid.trials([place], SEEDS), grid, target=target, budget=grid.budget, prune=False)
            ranks[grid.rate(place)] = rank({t.seed: s for t, s in own.items()}, SEEDS, grid.budget)
        wanted = search(start=grid.start, batch_size=grid.batch_size, target=target, budget_examples=grid.budget)
        choice, _, examples = replays.search(wanted, grid)
        unpruned, _, all_examples = replays.search(wanted, grid, prune=False)
        assert choice.learning_rate == unpruned.learning_rate
        assert ranks[choice.learning_rate].missed == 0
        behind.append(ranks[choice.learning_rate].log_examples - min(ranks.values()).log_examples)
        spent, whole = spent + examples, whole + all_examples
    # Single runs scatter by a quarter, and the best of many rates is the luckiest of them.
    assert np.median(behind) <= math.log(1.02)
    assert max(behind) <= math.log(1.3)
    # What rates cannot win is not asked for with more seeds anyway: pruning cuts those of the first wave short.
    assert spent < 0.9 * whole


@pytest.mark.parametrize("offset", [-math.log2(100), math.log2(100)])
def test_a_start_that_is_off_by_a_hundred_is_made_up_for(offset: float, replays: Any) -> None:
    curve = valley(replays, 0, offset=offset, noise=0.0)
    choice, standings, _ = replays.search(search(), curve)
    assert abs(math.log2(choice.learning_rate / 0.1) - offset) <= 0.5
    assert choice.edge is None
    assert choice.reached == 3
    assert len({trial.learning_rate for trial in standings}) < 25


def test_where_everything_diverges_it_ends_without_a_rate(replays: Any) -> None:
    choice, standings, _ = replays.search(search(), lambda _: replays.curve((EVERY,), (0.0,), diverged=True))
    assert choice.learning_rate is None
    assert choice.edge is None
    assert choice.trials == ()
    assert min(choice.rates) < 0.1 / 2**20
    assert len(standings) == 5 + 2 * MOST_WIDENINGS


@pytest.mark.parametrize("target", [0.9, None])
def test_where_no_score_is_finite_it_ends_without_a_rate(target: float | None) -> None:
    wanted, known = search(target=target), list[Standing]()
    while wave := wanted.next_wave(known):
        known += [Standing(trial, "missed", BUDGET, None, None) for trial in wave]
        assert len(known) < 50
    assert wanted.choice(known).learning_rate is None
    assert wanted.valley(known).rates == ()


def test_where_nothing_reaches_the_target_the_best_score_decides_and_it_ends(replays: Any) -> None:
    def curve(trial: Trial) -> Any:
        distance = math.log2(trial.learning_rate / 0.1) - 1.5
        return replays.curve((BUDGET // 2, BUDGET), (0.1, 0.9 - 0.02 * distance**2 + 0.001 * trial.seed))

    choice, standings, _ = replays.search(search(), curve)
    assert choice.learning_rate == 0.1 * 2.0**1.5
    assert choice.reached == 0
    assert len(choice.trials) == 3
    assert len(standings) <= 12


def test_a_target_that_some_seeds_miss_goes_to_the_rate_that_misses_fewest(replays: Any) -> None:
    def curve(trial: Trial) -> Any:
        place = round(2 * math.log2(trial.learning_rate / 0.1))
        # The rate with the fewest examples misses with one of the later seeds.
        needed = 10_000 if place == 0 else 14_000 + 2_000 * abs(place - 2)
        misses = place == 0 and trial.seed == 2
        examples = tuple(range(EVERY, BUDGET + 1, EVERY))
        return replays.curve(examples, tuple(0.0 if misses else float(e >= needed) for e in examples))

    choice, _, _ = replays.search(search(), curve)
    assert choice.learning_rate == 0.2
    assert choice.reached == 3


def test_one_seed_is_enough(replays: Any) -> None:
    curve = valley(replays, 3, offset=1.3, noise=0.0)
    choice, standings, _ = replays.search(search(seeds=(7,)), lambda t: curve(t._replace(seed=0)))
    assert abs(math.log2(choice.learning_rate / 0.1) - 1.3) <= 0.5
    assert {trial.seed for trial in standings} == {7}


def test_where_all_rates_reach_it_at_the_first_evaluation_the_middle_is_taken(replays: Any) -> None:
    choice, standings, _ = replays.search(search(), lambda _: replays.curve((EVERY, BUDGET), (1.0, 1.0)))
    assert choice.learning_rate == 0.1
    assert choice.edge is None
    assert len({trial.learning_rate for trial in standings}) <= 7


def test_ties_towards_one_end_are_followed_to_theirs(replays: Any) -> None:
    def curve(trial: Trial) -> Any:
        place = round(2 * math.log2(trial.learning_rate / 0.1))
        if place > 11:
            return replays.curve((EVERY,), (0.0,), diverged=True)
        return replays.curve((EVERY, 2 * EVERY, BUDGET), (float(place >= 3), 1.0, 1.0))

    choice, _, _ = replays.search(search(), curve)
    place = round(2 * math.log2(choice.learning_rate / 0.1))
    assert 5 <= place <= 9


def test_a_best_at_the_edge_of_what_may_be_tried_is_flagged(replays: Any) -> None:
    def curve(trial: Trial) -> Any:  # ever better towards larger rates
        needed = 50_000 / (trial.learning_rate / 0.1) ** 0.1
        examples = tuple(range(500, BUDGET + 1, 500))
        return replays.curve(examples, tuple(float(e >= needed) for e in examples))

    choice, _, _ = replays.search(search(), curve)
    assert choice.edge == "highest"
    assert choice.learning_rate == max(choice.rates)
    given = search(given=(0.1, 0.2, 0.05))
    assert replays.search(given, curve)[0].edge == "highest"
    assert replays.search(given, lambda t: curve(t._replace(learning_rate=0.01 / t.learning_rate)))[0].edge == "lowest"


def test_without_a_target_the_best_mean_score_is_found(replays: Any) -> None:
    for seed in range(10):
        generator = np.random.default_rng(seed)
        offset = generator.uniform(-2, 2)
        noise = {(k, s): generator.normal(0, 0.002) for k in range(-40, 41) for s in SEEDS}

        def score(trial: Trial, offset: float = offset, noise: Any = noise) -> float:
            place = 2 * math.log2(trial.learning_rate / 0.1)
            return float(0.9 - 0.01 * (place / 2 - offset) ** 2 + noise[round(place), trial.seed])

        choice, _, _ = replays.search(search(target=None), lambda t, score=score: replays.curve((BUDGET,), (score(t),)))
        grid = [0.1 * 2.0 ** (k / 2) for k in range(-12, 13)]
        means = {rate: np.mean([score(Trial(32, rate, s)) for s in SEEDS]) for rate in grid}
        assert choice.reached == 0
        assert len(choice.trials) == 3
        assert means[choice.learning_rate] >= max(means.values()) - 0.002


def test_failed_trials_are_neither_chosen_nor_asked_for_again(replays: Any) -> None:
    curve = valley(replays, 5, offset=0.2, noise=0.0)
    known: dict[Trial, Standing] = {}
    wanted = search()
    for _ in range(20):
        wave = wanted.next_wave(known.values())
        if not wave:
            break
        assert not set(wave) & known.keys()
        for trial in wave:
            # The best rate's process dies, whatever the seed, and so does one seed of every other.
            if abs(trial.learning_rate - 0.1) < 1e-9 or trial.seed == 2:
                known[trial] = Standing(trial, "failed", 0, None, None)
            else:
                known |= replays.run([trial], curve, target=1.0, budget=BUDGET, prune=False)
    else:
        raise AssertionError("it does not end")
    choice = wanted.choice(known.values())
    assert choice.learning_rate in (0.1 * 2**0.5, 0.1 / 2**0.5)
    assert [trial.seed for trial in choice.trials] == [0, 1]
    nothing = [Standing(trial, "failed", 0, None, None) for trial in wanted.next_wave([])]
    assert wanted.next_wave(nothing) == ()
    assert wanted.choice(nothing).learning_rate is None


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 10**6))
def test_a_search_that_was_cut_off_goes_on_to_the_same_end(seed: int, cut: int, replays: Any) -> None:
    curve = valley(replays, seed, offset=seed % 7 - 3, noise=0.1)
    whole, standings, _ = replays.search(search(), curve)
    # Any trials of what has ended may have been lost, as those that were running are.
    kept = np.random.default_rng(cut).random(len(standings)) < 0.6
    known = {trial: s for (trial, s), keep in zip(standings.items(), kept, strict=True) if keep}
    wanted = search()
    for _ in range(60):
        wave = wanted.next_wave(known.values())
        if not wave:
            break
        again = {trial for trial in wave if trial in known}
        assert all(known[trial].ended == "pruned" for trial in again)
        known |= replays.run(wave, curve, target=1.0, budget=BUDGET, known=list(known.values()))
    else:
        raise AssertionError("it does not end")
    resumed = wanted.choice(known.values())
    both = by_rate([*standings.values(), *known.values()])
    ranks = [rank(both[c.learning_rate], SEEDS, BUDGET) for c in (whole, resumed) if c.learning_rate]
    assert ranks[1].log_examples <= ranks[0].log_examples + math.log(1.2)


def test_given_rates_are_tried_with_all_seeds_in_one_wave_the_nearest_first() -> None:
    wanted = search(given=(0.4, 0.1, 0.05, 0.1), seeds=(0, 1))
    wave = wanted.next_wave([])
    assert [(t.learning_rate, t.seed) for t in wave] == [(0.1, 0), (0.1, 1), (0.05, 0), (0.05, 1), (0.4, 0), (0.4, 1)]
    done = [Standing(t, "reached", 1000 if t.learning_rate == 0.4 else 2000, 1.0, None) for t in wave]
    assert wanted.next_wave(done[:5]) == wave[5:]
    assert wanted.next_wave(done) == ()
    assert wanted.choice(done).learning_rate == 0.4
    assert wanted.choice(done).rates == (0.05, 0.1, 0.4)


def test_a_pruned_trial_that_is_no_longer_put_out_is_asked_for_again() -> None:
    wanted = search(given=(0.1, 0.2), seeds=(0, 1))
    pruned = [
        Standing(Trial(32, 0.2, 0), "pruned", 1600, None, None),
        Standing(Trial(32, 0.2, 1), "pruned", 0, None, None),
    ]
    lucky = [Standing(Trial(32, 0.1, 0), "reached", 1000, 1.0, None)]
    assert wanted.next_wave([*lucky, Standing(Trial(32, 0.1, 1), "reached", 1000, 1.0, None), *pruned]) == ()
    missed = Standing(Trial(32, 0.1, 1), "missed", BUDGET, 0.5, None)
    started = [pruned[0], pruned[1]._replace(examples=100)]
    assert wanted.next_wave([*lucky, missed, *started]) == tuple(s.trial for s in started)


def test_a_rate_that_was_pruned_by_a_lucky_one_is_looked_at_again() -> None:
    wanted = search(seeds=(0, 1))

    def at(place: int, seed: int, ended: Any, examples: int) -> Standing:
        return Standing(Trial(32, 0.1 * 2.0 ** (place / 2), seed), ended, examples, 1.0, None)

    lucky = [at(0, 0, "reached", 1000), at(0, 1, "reached", 9000)]
    best = [at(1, 0, "reached", 2000), at(1, 1, "reached", 2000)]
    bad = [at(place, 0, "missed", BUDGET) for place in (-4, -2, -1, 4)]
    assert wanted.next_wave([*lucky, *best, *bad, at(2, 0, "pruned", 2000)]) == ()
    assert wanted.next_wave([*lucky, *best, *bad, at(2, 0, "pruned", 1500)]) == (Trial(32, 0.2, 0),)


def test_standings_of_others_and_running_ones() -> None:
    wanted = search()
    wave = wanted.next_wave([])
    others = [
        Standing(Trial(64, 0.1, 0), "reached", 1, 1.0, None),
        Standing(Trial(32, 0.1, 9), "reached", 1, 1.0, None),
        Standing(Trial(32, 0.123, 0), "reached", 1, 1.0, None),
    ]
    assert wanted.next_wave(others) == wave
    assert wanted.choice(others).learning_rate is None
    running = [Standing(trial, "running", 100, None, None) for trial in wave]
    assert wanted.next_wave(running) == ()
    assert wanted.next_wave(running[:1]) == ()


def test_the_valley_compares_rates_by_the_seeds_they_share() -> None:
    def reached(rate: float, examples: list[int]) -> list[Standing]:
        return [Standing(Trial(32, rate, s), "reached", e, 1.0, None) for s, e in enumerate(examples)]

    standings = [
        *reached(0.1, [1000, 2000, 4000]),
        *reached(0.2, [1500]),
        Standing(Trial(32, 0.05, 0), "pruned", 1600, None, None),
        Standing(Trial(32, 0.4, 0), "diverged", 500, None, None),
        Standing(Trial(32, 0.025, 0), "failed", 0, None, None),
    ]
    valley = search().valley(standings)
    assert valley.rates == (0.05, 0.1, 0.2, 0.4)
    assert valley.bounds == (True, False, False, True)
    assert valley.costs[:3] == pytest.approx([math.log(2000 * f) for f in (1.6, 1.0, 1.5)])
    assert valley.costs[3] == math.inf
    assert valley.margin == pytest.approx(0.1)
    assert search().valley([]).rates == ()
    scores = [Standing(Trial(32, rate, 0), "missed", BUDGET, score, None) for rate, score in ((0.1, 0.8), (0.2, 0.9))]
    assert search(target=None).valley(scores).costs == pytest.approx((-0.8, -0.9))
    assert search().valley(scores).costs == pytest.approx((-0.8, -0.9))  # nothing reached it


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (1, 1)}, "no seed twice"),
        ({"start": 0.0}, "above 0"),
        ({"given": ()}, "above 0"),
        ({"given": (0.1, math.nan)}, "above 0"),
    ],
)
def test_searches_that_make_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        search(**changes)

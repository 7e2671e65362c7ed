"""Pruning: exact on any curves where seeds are equal, on recorded grids of real runs, and what little it says without
a target."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.study.pruning import SLACK, Curve, far_behind, hopeless, prunable, rank, resolve
from batchscope.study.rate_search import RateSearch
from batchscope.study.tasks import Conditions, Standing, Trial

BUDGET = 5000
TARGETS = {"digits": (0.93, 0.95, 0.96), "digits_1024": (0.93, 0.95), "digits_linear": (0.95, 0.96)}
TARGETS |= {"fashion_mlp": (0.8, 0.83, 0.84), "fashion_mlp_linear": (0.82, 0.84)}


def at(rate: float, seed: int, ended: Any, examples: int, score: float | None = None) -> Standing:
    return Standing(Trial(32, rate, seed), ended, examples, score, None)


def pruned_rates(*standings: Standing, target: float | None = 0.9, slack: float = SLACK) -> set[float]:
    found = prunable(standings, target=target, budget_examples=BUDGET, slack=slack)
    assert found <= {s.trial for s in standings if s.ended == "running"}
    return {trial.learning_rate for trial in found}


def full(grid: Any, replays: Any, places: list[int], target: float) -> tuple[dict[int, Any], int]:
    """The rank of every rate when all run to their end, and what that takes."""
    ended = replays.run(grid.trials(places, grid.seeds), grid, target=target, budget=grid.budget, prune=False)
    ranks = {}
    for place in places:
        own = {trial.seed: s for trial, s in ended.items() if trial.learning_rate == grid.rate(place)}
        ranks[place] = rank(own, grid.seeds, grid.budget)
    return ranks, sum(s.examples for s in ended.values())


def test_a_rate_is_out_once_it_has_spent_what_a_complete_one_needed() -> None:
    done = [at(0.1, 0, "reached", 1000), at(0.1, 1, "reached", 1210)]  # geometric mean 1100
    assert pruned_rates(*done, at(0.2, 0, "running", 1099), at(0.2, 1, "running", 1099)) == set()
    assert pruned_rates(*done, at(0.2, 0, "running", 1101), at(0.2, 1, "running", 1100)) == {0.2}
    # One seed reached early buys the other one time.
    assert pruned_rates(*done, at(0.2, 0, "reached", 605), at(0.2, 1, "running", 1999)) == set()
    assert pruned_rates(*done, at(0.2, 0, "reached", 605), at(0.2, 1, "running", 2001)) == {0.2}


def test_nothing_is_out_before_another_rate_is_complete() -> None:
    some = [at(0.1, 0, "reached", 100), at(0.1, 1, "running", 4000), at(0.2, 0, "running", 4000)]
    assert pruned_rates(*some, at(0.2, 1, "running", 4000)) == set()


def test_with_some_of_the_seeds_a_rate_has_to_be_behind_by_the_slack() -> None:
    done = [at(0.1, seed, "reached", 1000) for seed in range(3)]
    for behind, out in ((1000, set()), (1499, set()), (1500, {0.2})):
        assert pruned_rates(*done, at(0.2, 0, "running", behind)) == out
        assert pruned_rates(done[0], at(0.2, 0, "running", behind)) == out  # one seed is all there is
    # Trials that wait go with their rate.
    waiting = [at(0.2, 1, "running", 0), at(0.2, 2, "running", 0)]
    found = prunable([*done, at(0.2, 0, "pruned", 1500), *waiting], target=0.9, budget_examples=BUDGET)
    assert found == {s.trial for s in waiting}
    assert pruned_rates(*done, *waiting) == set()


def test_a_rate_that_is_behind_overall_puts_nothing_out_by_the_seed_it_was_lucky_with() -> None:
    lucky = [at(0.1, 0, "reached", 100), at(0.1, 1, "reached", 4000)]
    best = [at(0.2, 0, "reached", 400), at(0.2, 1, "reached", 400)]
    assert pruned_rates(*lucky, at(0.4, 0, "running", 500)) == {0.4}
    assert pruned_rates(*lucky, *best, at(0.4, 0, "running", 500)) == set()
    assert pruned_rates(*lucky, *best, at(0.4, 0, "running", 600)) == {0.4}


def test_misses_come_before_examples_and_failures_count_for_nothing() -> None:
    missed = [at(0.1, 0, "missed", BUDGET), at(0.1, 1, "reached", 100)]
    # It may yet reach the target with both, whatever that takes.
    assert pruned_rates(*missed, at(0.2, 0, "running", 4999), at(0.2, 1, "running", 4999)) == set()
    assert pruned_rates(*missed, at(0.2, 0, "diverged", 10), at(0.2, 1, "running", 10)) == {0.2}
    done = [at(0.1, 0, "reached", 4000), at(0.1, 1, "reached", 4000)]
    assert pruned_rates(*done, at(0.2, 0, "diverged", 10), at(0.2, 1, "running", 10)) == {0.2}
    # With some of the seeds, too: misses are not made up for by examples, and one more of them is enough.
    third = at(0.1, 2, "reached", 100)
    assert pruned_rates(*missed, third, at(0.2, 0, "running", 2000), at(0.2, 1, "running", 2000)) == set()
    assert pruned_rates(*done, third, at(0.2, 0, "missed", BUDGET), at(0.2, 1, "running", 10)) == {0.2}
    assert pruned_rates(at(0.1, 0, "failed", 0), at(0.1, 1, "failed", 0), at(0.2, 0, "running", 4999)) == set()
    # Nor is a failed seed one that the others still lack.
    assert pruned_rates(*done, at(0.2, 2, "failed", 0), at(0.2, 0, "running", 4000), at(0.2, 1, "running", 4000)) == {
        0.2
    }


needs = st.one_of(st.integers(1, 15), st.just(None), st.just("diverges"))


@settings(max_examples=100)
@given(data=st.data(), seeds=st.integers(1, 3), together=st.booleans())
def test_at_slack_one_the_best_by_full_runs_is_never_pruned(
    data: Any, seeds: int, together: bool, replays: Any
) -> None:
    rates = data.draw(st.integers(2, 6))
    grid = data.draw(st.lists(st.lists(needs, min_size=seeds, max_size=seeds), min_size=rates, max_size=rates))
    budget = 12

    def curve(need: Any) -> Any:
        if need == "diverges":
            return replays.curve((1, 2), (0.0, 0.0), diverged=True)
        steps = tuple(range(1, budget + 1))
        return replays.curve(steps, tuple(float(need is not None and step >= need) for step in steps))

    curves = {Trial(8, 0.1 * (i + 1), seed): curve(grid[i][seed]) for i in range(rates) for seed in range(seeds)}

    def ended(**settings: Any) -> dict[float, dict[int, Standing]]:
        found: dict[float, dict[int, Standing]] = {}
        for trial, s in replays.run(list(curves), curves.__getitem__, target=1.0, budget=budget, **settings).items():
            found.setdefault(trial.learning_rate, {})[trial.seed] = s
        return found

    whole = ended(prune=False)
    best = min(rank(own, range(seeds), budget)[:3] for own in whole.values())
    # All seeds of a rate train at once, or those that have not begun are only given where it is their turn.
    pruned = ended(slack=1.0 if together else 1e9, together=together)
    for rate, own in pruned.items():
        if rank(whole[rate], range(seeds), budget)[:3] == best:
            assert all(s.ended != "pruned" for s in own.values())
        for seed, s in own.items():
            assert s.ended == "pruned" or s == whole[rate][seed]


@pytest.mark.parametrize("stride", [1, 2])
def test_on_recorded_grids_the_best_is_never_pruned(stride: int, replays: Any) -> None:
    for grid in replays.grids():
        for target, first in itertools.product(TARGETS[grid.name], (0, 3, 6)):
            places = grid.places[first::stride][:8]
            ranks, _ = full(grid, replays, places, target)
            best = min(ranks.values())
            trials = grid.trials(places, grid.seeds)
            ended = replays.run(trials, grid, target=target, budget=grid.budget)
            for place in places:
                if ranks[place] == best:
                    assert all(ended[trial].ended != "pruned" for trial in grid.trials([place], grid.seeds))


@pytest.mark.parametrize(("together", "digits", "fashion"), [(True, 0.5, 0.7), (False, 0.4, 0.55)])
def test_on_recorded_grids_about_half_of_the_examples_are_saved_and_the_same_rate_is_the_best(
    together: bool, digits: float, fashion: float, replays: Any
) -> None:
    spent: dict[str, list[int]] = {"digits": [], "fashion": []}
    whole: dict[str, list[int]] = {"digits": [], "fashion": []}
    for grid in replays.grids():
        for target in TARGETS[grid.name]:
            name = grid.name.split("_")[0]
            places = grid.places[::-2][:8]  # a factor 2 apart
            ranks, examples = full(grid, replays, places, target)
            search = RateSearch(
                grid.start,
                grid.seeds,
                batch_size=grid.batch_size,
                target=target,
                budget_examples=grid.budget,
                given=tuple(map(grid.rate, places)),
            )
            choice, _, taken = replays.search(search, grid, together=together)
            best = next(rank for place, rank in ranks.items() if grid.rate(place) == choice.learning_rate)
            assert best[:2] == min(ranks.values())[:2]
            assert best.log_examples <= min(ranks.values()).log_examples + math.log(1.02)
            spent[name].append(taken)
            whole[name].append(examples)
    # Where neighbours of the best rate are nearly as good, as Adam's are on fashion, there is less to save.
    assert sum(spent["digits"]) < digits * sum(whole["digits"])
    assert sum(spent["fashion"]) < fashion * sum(whole["fashion"])


def test_without_a_target_the_best_of_a_recorded_grid_is_never_pruned(replays: Any) -> None:
    saved = 0
    for grid in replays.grids():
        for size, stride, first in itertools.product((4, 6, 8), (1, 2), range(0, 14, 3)):
            places = grid.places[first::stride][:size]
            if len(places) < size:
                continue
            ended = replays.run(grid.trials(places, grid.seeds), grid, target=None, budget=grid.budget)
            scores = {place: math.fsum(max(grid.curves[place, s].scores) for s in grid.seeds) for place in places}
            trials = {place: grid.trials([place], grid.seeds) for place in places}
            left = [p for p in places if all(ended[trial].ended != "pruned" for trial in trials[p])]
            assert max(scores[place] for place in left) == max(scores.values())
            saved += sum(standing.ended == "pruned" for standing in ended.values())
    assert saved > 100


def test_without_a_target_little_is_said_and_nothing_early() -> None:
    def rate(score: float, examples: int, rate: float = 0.1, ended: Any = "running", spread: float = 0.001) -> Any:
        return {
            s: Standing(Trial(32, rate, s), ended, examples, score + s * spread, 1 - score - s * spread)
            for s in range(3)
        }

    others = [rate(score, 3000) for score in (0.9, 0.85, 0.5)]
    assert far_behind(rate(0.3, 3000), others, BUDGET)
    assert not far_behind(rate(0.3, 2499), [rate(s, 2499) for s in (0.9, 0.85, 0.5)], BUDGET)  # not half-way
    assert not far_behind(rate(0.3, 3000), others[:2], BUDGET)  # three rates
    assert not far_behind(rate(0.8, 3000), others, BUDGET)  # not far enough
    assert not far_behind(rate(0.3, 2900), others, BUDGET)  # the others are further on
    assert not far_behind(rate(0.3, 3000), [rate(s, 3000, spread=0.3) for s in (0.9, 0.85, 0.5)], BUDGET)  # noise
    lone = {0: rate(0.3, 3000)[0]}
    assert not far_behind(lone, [{0: other[0]} for other in others], BUDGET)  # seeds that say nothing of noise
    assert not far_behind({}, others, BUDGET)
    diverged = rate(0.95, 100) | {2: at(0.1, 2, "diverged", 50)}
    assert not far_behind(diverged, others, BUDGET)
    assert far_behind(diverged, [rate(0.1, BUDGET, ended="missed")], BUDGET)
    everything = [
        s._replace(trial=s.trial._replace(learning_rate=float(i)))
        for i, o in enumerate([rate(0.3, 3000), *others])
        for s in o.values()
    ]
    assert pruned_rates(*everything, target=None) == {0.0, 3.0}


def test_without_a_target_a_lone_divergence_before_any_rate_is_done_says_nothing() -> None:
    others = [at(rate, seed, "running", 3000, 0.5) for rate in (0.1, 0.2, 0.3, 0.4) for seed in range(3)]
    diverged = [at(0.8, 0, "diverged", 100), at(0.8, 1, "running", 0), at(0.8, 2, "running", 0)]
    assert pruned_rates(*others, *diverged, target=None) == set()
    assert pruned_rates(*others[3:], at(0.1, 0, "missed", BUDGET, 0.5), *diverged, target=None) == {0.8}


# --- waves ------------------------------------------------------------------------------------------------------------


def curve(rate: float, seed: int, *examples: int, ended: Any = None) -> Curve:
    trial = Trial(32, rate, seed)
    points = [Standing(trial, "running", e, None, None) for e in examples]
    return Curve(
        trial, points, ended and Standing(trial, ended, 1050 if ended == "diverged" else examples[-1], None, None)
    )


AIMING = Conditions(target=0.9, budget_examples=BUDGET, evaluate_every=500)
EIGHT = (0, 500, 1000, 1500, 2000, 2500, 3000, 3500)


def test_a_wave_ends_as_if_its_trials_were_trained_side_by_side() -> None:
    quick, slow = curve(0.1, 0, *EIGHT[:3], ended="reached"), curve(0.2, 0, *EIGHT, ended="reached")
    found = resolve([slow, quick], [], AIMING)
    assert {t.learning_rate: s.ended for t, s in found.standings.items()} == {0.1: "reached", 0.2: "pruned"}
    assert found.evaluations == {slow.trial: 4}  # 1,500 examples: one seed alone has to be behind by the slack
    assert found.standings[slow.trial].examples == 1500
    assert not found.missing
    assert resolve([slow, quick], [], Conditions(0.9, BUDGET, 500, pruning=False)).evaluations == {}


def test_a_wave_says_what_it_still_has_to_know() -> None:
    short = curve(0.2, 0, *EIGHT[:3])
    assert resolve([short, curve(0.1, 0, *EIGHT[:3], ended="reached")], [], AIMING).missing == {short.trial}
    assert resolve([short], [at(0.1, 0, "reached", 600)], AIMING).missing == set()  # 1,000 are more than 900


def test_a_trial_that_failed_is_as_if_it_were_not_there_and_one_that_diverged_ends_after_its_last_evaluation() -> None:
    failed = Curve(Trial(32, 0.1, 0), [], at(0.1, 0, "failed", 0))
    other = curve(0.2, 0, *EIGHT, ended="missed")
    assert resolve([failed, other], [], AIMING).standings[other.trial].ended == "missed"
    wild, mate = curve(0.4, 0, *EIGHT[:3], ended="diverged"), curve(0.4, 1, *EIGHT)
    best = [curve(0.1, seed, *EIGHT[:2], ended="reached") for seed in (0, 1)]
    found = resolve([wild, mate, *best], [], AIMING)
    assert found.standings[wild.trial].ended == "pruned"  # the best was there before
    assert found.evaluations[mate.trial] == 2
    assert resolve([wild], [], AIMING).standings[wild.trial].ended == "diverged"


def test_what_is_under_way_is_judged_by_where_the_others_were_then() -> None:
    done = curve(0.1, 0, *EIGHT[:3], ended="reached")
    for evaluations, out in ((3, False), (4, True), (8, True)):
        ahead = curve(0.2, 0, *EIGHT[:evaluations])
        assert hopeless([done, ahead], [ahead], [], AIMING) == ({ahead.trial} if out else set())
    # A seed that took long takes nothing from one that has just begun.
    rivals = [curve(0.2, 0, *EIGHT, ended="reached"), curve(0.2, 1, *EIGHT[:2])]
    both = [curve(0.1, seed, *EIGHT[:3], ended="reached") for seed in (0, 1)]
    assert hopeless([*both, *rivals], rivals[1:], [], AIMING) == set()

"""The parts of the race: heats, lanes, the outlook and the clock, on workloads small enough to train to the end."""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from batchscope import Workload
from batchscope.advice.anytime import AnytimeRate
from batchscope.advice.clock import IN_THE_DARK_TO_TRAIN, LEAST_SECONDS, MOST_SECONDS_IN_THE_DARK, Clock
from batchscope.advice.heat import Heat
from batchscope.advice.judge import Judge
from batchscope.advice.lane import Lane
from batchscope.advice.outlook import find_outlook
from batchscope.advice.race import Race
from batchscope.advice.update_times import UpdateTimes
from batchscope.fit.learning_curve import Curve
from batchscope.records import (
    Goal,
    Interval,
    NoiseMeasurement,
    Provenance,
    RacePoint,
    StepTimeLaw,
    StepTimePoint,
    StepTimes,
)
from batchscope.training.evaluation import evaluate
from batchscope.training.loop import Prepared

Make = Callable[..., Workload]


def step_times(seconds: dict[int, float], width: float = 0.02) -> StepTimes:
    def interval(value: float) -> Interval:
        return Interval(value, value * (1 - width), value * (1 + width))

    points = tuple(
        StepTimePoint(
            size, interval(value), Interval(0.0, 0.0, 0.0), interval(value), interval(size / value), value, 6, 60
        )
        for size, value in seconds.items()
    )
    law = StepTimeLaw(interval(1e-3), interval(1e-5), None, None, interval(100.0), 0.01)
    here = Provenance("", "0", "3.11", "2.13", "2", "", "", 1, 1, None, "cpu", "float32", 0, "")
    return StepTimes("w", points, law, "between updates", 0, None, 1e5, max(seconds), 1.0, here)


def heat(
    make: Make,
    rates: list[float],
    *,
    stacked: bool = True,
    target: float | None = None,
    averaging: bool = True,
    as_they_stand: bool = False,
    **kind: object,
) -> Heat:
    prepared = Prepared(make(**kind), torch.device("cpu"))
    return Heat(
        prepared,
        5,
        rates,
        seed=0,
        seconds_per_update=0.5,
        budget_examples=900,
        judge=Judge(prepared, 10_000),
        target=target,
        averaging=averaging,
        as_they_stand=as_they_stand,
        stacked=stacked,
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_candidates_go_on_from_place_to_place_on_the_virtual_clock(make: Make, stacked: bool) -> None:
    own = heat(make, [0.01, 0.1], stacked=stacked)
    own.advance()
    first = own.examples
    assert first >= 30  # six updates of five
    own.advance()
    assert own.examples >= 1.3 * first
    for entrant in own.entrants:
        assert [p.seconds for p in entrant.points] == [p.iterations * 0.5 for p in entrant.points]
    assert own.virtual_seconds == own.examples / 5 * 0.5


def test_stacked_or_not_the_same_is_seen(make: Make) -> None:
    one, other = (heat(make, [0.02, 0.1], stacked=stacked) for stacked in (True, False))
    for _ in range(5):
        one.advance()
        other.advance()
    for a, b in zip(one.entrants, other.entrants, strict=True):
        assert [p.examples for p in a.points] == [p.examples for p in b.points]
        assert [p.loss for p in a.points] == pytest.approx([p.loss for p in b.points], rel=1e-3)


def test_a_candidate_that_diverges_ends_and_stands_for_infinity(make: Make) -> None:
    own = heat(make, [0.05, 1e9])
    while own.examples < 300:
        own.advance()
    assert own.entrants[1].ended == "diverged"
    place = own.entrants[0].points[-1].examples
    assert own.valley(place)[1][1] == math.inf
    assert own.best is own.entrants[0]


def test_the_winner_is_trained_on_and_its_weights_are_what_was_evaluated(make: Make) -> None:
    for stacked in (True, False):
        own = heat(make, [0.02, 0.1], stacked=stacked, target=None)
        own.advance()
        result = own.finish(own.entrants[1], lambda: False)
        assert result.outcome == "finished"
        assert result.examples == 900
        assert own.entrants[0].ended == "another one was trained to the end"
        assert result.state is not None
        model = make().model()
        model.load_state_dict(result.state)
        prepared = Prepared(make(), torch.device("cpu"))
        assert evaluate(model, prepared.validation)[0] == pytest.approx(result.curve[-1].validation_loss, rel=1e-4)


@pytest.mark.parametrize("stacked", [False, True])
def test_the_winner_goes_on_at_another_rate_that_falls_beyond_its_horizon(make: Make, stacked: bool) -> None:
    own = heat(make, [0.02, 0.1], stacked=stacked)
    own.advance()
    began = own.examples
    result = own.finish(own.entrants[1], lambda: False, learning_rate=0.08, rate=AnytimeRate(300.0))
    rates = {point.examples: point.learning_rate for point in result.curve if point.examples > began}
    early = [rate for examples, rate in rates.items() if examples <= 300]
    assert early
    assert early == pytest.approx([0.08] * len(early))
    places = sorted(rates)
    # The rate of an evaluation is that of the update before it, set at the evaluation before.
    for before, place in itertools.pairwise(place for place in places if place > 300):
        assert rates[place] <= 0.08 * math.sqrt(300 / before) * (1 + 1e-6)
    assert rates[places[-1]] < 0.06


def test_stacked_or_not_the_winner_goes_on_alike(make: Make) -> None:
    ends = []
    for stacked in (False, True):
        own = heat(make, [0.02, 0.1], stacked=stacked)
        own.advance()
        result = own.finish(own.entrants[1], lambda: False, learning_rate=0.05, rate=AnytimeRate(200.0))
        ends.append([(point.examples, point.validation_loss, point.learning_rate) for point in result.curve[-4:]])
    assert ends[0] == [pytest.approx(point, rel=1e-3) for point in ends[1]]


def test_a_rate_falls_faster_where_the_loss_gets_no_less() -> None:
    def point(examples: int, loss: float) -> RacePoint:
        return RacePoint(examples=examples, iterations=1, seconds=0.0, loss=loss, score=0.0)

    falling, stuck = [point(e, 100 / e) for e in range(100, 3000, 100)], [point(e, 1.0) for e in range(100, 3000, 100)]
    rate = AnytimeRate(400.0)
    assert [rate.after(falling[: n + 1]) for n in range(4)] == [1.0] * 4
    assert rate.after(falling[:16]) == pytest.approx(0.5)
    halved = AnytimeRate(400.0)
    found = [halved.after(stuck[: n + 1]) for n in range(len(stuck))]
    # At 600, 900, 1,400 and 2,100 half as many examples again had gone by.
    assert found[6] == pytest.approx(0.5 * math.sqrt(400 / 700))
    assert found[-1] == pytest.approx(0.5**4 * math.sqrt(400 / 2900))


def test_a_lane_keeps_the_best_rate_and_the_one_foretold_where_each_costs_as_much(make: Make) -> None:
    lane = Lane(5, lambda size, rates, seed: heat(make, list(rates), stacked=False), [0.001, 0.01, 0.1])
    for _ in range(3):
        lane.advance()
    lane.narrow(0.012)
    assert len(lane.live) == 3  # nothing is known yet
    for _ in range(3):
        lane.advance()
    best = lane.best
    assert best is not None
    lane.narrow(0.0009)
    assert {e.learning_rate for e in lane.live} == {0.001, best.learning_rate}
    together = Lane(5, lambda size, rates, seed: heat(make, list(rates)), [0.001, 0.01, 0.1])
    for _ in range(6):
        together.advance()
    together.narrow(0.0009)
    assert len(together.live) == 3


def test_a_lane_finds_its_valley_across_heats_and_drops_what_lies_far(make: Make) -> None:
    def make_heat(size: int, rates: object, seed: int) -> Heat:
        return heat(make, list(rates))  # type: ignore[call-overload]

    lane = Lane(5, make_heat, [1e-5, 1e-4, 1e-3])
    for _ in range(4):
        lane.advance()
    found = lane.bottom()
    assert found is not None
    assert found[1] == "highest"
    seen = lane.seen_examples
    assert seen > 0
    assert lane.is_level
    lane.extend("highest", 10.0, 3)
    # Those that were added say nothing yet: neither that the lane is at its beginning, nor where the bottom lies.
    assert (lane.examples, lane.seen_examples, lane.is_level) == (0, seen, False)
    assert [e.learning_rate for e in lane.entrants] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    for _ in range(12):
        lane.advance()
    assert lane.is_level
    found = lane.bottom()
    assert found is not None
    assert 1e-2 <= found[0].learning_rate <= 1.0
    lane.drop_far_rates()
    assert any(e.ended and "the best rate" in e.ended for e in lane.entrants if e.learning_rate < 1e-3)


def test_times_follow_what_was_measured_and_go_on_evenly_beyond() -> None:
    times = UpdateTimes(step_times({8: 0.001, 64: 0.002, 512: 0.008}))
    assert times.seconds(64) == pytest.approx(0.002)
    assert 0.002 < times.seconds(128) < 0.008
    assert times.seconds(1024) == pytest.approx(0.016)
    assert times.seconds(2) == pytest.approx(0.001)
    assert times.relative_error(1024) > times.relative_error(64)


def test_memory_and_devices_cut_the_batch() -> None:
    measured = step_times({8: 0.001, 64: 0.002, 512: 0.008})
    times = UpdateTimes(measured, largest_micro_batch=64, devices=2, communication_seconds=lambda n: 0.0005 * n)
    assert (times.micro_batch_size(256), times.accumulation_steps(256)) == (64, 2)
    assert times.seconds(256) == pytest.approx(2 * 0.002 + 0.001)
    assert (times.micro_batch_size(64), times.accumulation_steps(64)) == (32, 1)


def curves(sizes: tuple[int, ...], most: float, critical: float = 100.0) -> list[Curve]:
    found = []
    for size in sizes:
        examples = np.geomspace(most / 16, most, 9)
        x = examples / (1 + size / (critical * (examples / 32_000) ** 0.4))
        found.append(Curve(size, tuple(examples.tolist()), tuple((0.1 + 15 * x**-0.5).tolist())))
    return found


@pytest.mark.parametrize("stacked", [False, True])
def test_weights_as_they_stand_are_judged_beside_their_average(
    make: Make, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchscope.advice.heat.LEAST_SHARE", 0.0)  # or places differ with the ways of judging
    both = heat(make, [0.02, 0.1], stacked=stacked, as_they_stand=True)
    raw, averaged = heat(make, [0.02, 0.1], averaging=False), heat(make, [0.02, 0.1])
    for own in (both, raw, averaged):
        for _ in range(4):
            own.advance()
    for k, entrant in enumerate(both.entrants):
        for points, other in ((entrant.points, raw), (entrant.planned, averaged)):
            expected = other.entrants[k].points
            assert [p.examples for p in points] == [p.examples for p in expected]
            assert [p.loss for p in points] == pytest.approx([p.loss for p in expected], rel=1e-4)
        assert entrant.points[-1].loss != entrant.planned[-1].loss
    both.shift(1.0, 2.0)
    assert both.entrants[0].points[-1].loss == pytest.approx(raw.entrants[0].points[-1].loss + 1, rel=1e-4)
    averaged.shift(1.0, 2.0)
    assert both.entrants[0].planned[-1].score == pytest.approx(averaged.entrants[0].points[-1].score, rel=1e-4)


def test_noisy_valleys_are_means_over_places(make: Make) -> None:
    lane = Lane(5, lambda size, rates, seed: heat(make, list(rates), as_they_stand=True), [0.01, 0.1])
    for _ in range(5):
        lane.advance()
    last = [entrant.points[-3:] for entrant in lane.entrants]
    expected = [math.exp(sum(math.log(p.loss) for p in points) / 3) for points in last]
    rates, losses = lane.valley()
    assert rates == [0.01, 0.1]
    assert losses == pytest.approx(expected)
    scores = [curve.values[-1] for curve in lane.curves(score=True)]
    planned = [curve.values[-1] for curve in lane.curves(score=True, planned=True)]
    best = lane.best
    assert best is not None
    assert (scores, planned) == ([-best.points[-1].score], [-best.planned[-1].score])


def test_far_goals_are_known_to_a_share_of_the_distance_and_all_sizes_share_it() -> None:
    seen = curves((16, 64, 256), 20_000.0)

    def width(target: float, size: int) -> float:
        found = find_outlook(Goal("target", target), seen, seen, (16, 64, 256), lambda size: 1e-3 * (1 + size / 50))
        assert found is not None
        seconds = np.sort(found.seconds[found.sizes.index(size)])
        return float(np.log(seconds[int(0.9 * len(seconds))] / seconds[int(0.1 * len(seconds))]))

    there = float(seen[1].values[-1])
    near, far = -there, -(0.1 + (there - 0.1) / 2)  # what is left above the floor halves: four times the examples
    assert width(far, 64) > width(near, 64) + 0.4


def test_a_rate_is_chosen_for_no_more_than_some_times_what_was_seen() -> None:
    seen, size = curves((16, 64, 256), 20_000.0), 64
    best = float(seen[1].values[-1])

    def lengths(target: float) -> tuple[float, float]:
        found = find_outlook(Goal("target", target), seen, seen, (16, 64, 256), lambda size: 1e-3)
        assert found is not None
        return found.rate_examples(size), float(np.median(found.examples[found.sizes.index(size)]))

    near, foretold = lengths(-best)
    assert near == pytest.approx(foretold, rel=0.2)
    far, foretold = lengths(-(0.1 + (best - 0.1) / 8))  # 64 times the examples
    assert foretold > 20 * near
    assert 3 * near < far < 8 * near
    # A length that is given is no forecast.
    given = find_outlook(Goal("examples", 1e7), seen, seen, (16, 64, 256), lambda size: 1e-3)
    assert given is not None
    assert given.rate_examples(size) == pytest.approx(1e7)


@pytest.mark.parametrize("kind", ["target", "examples", "seconds"])
def test_the_outlook_finds_the_best_batch_size_of_a_law_that_is_known(kind: str) -> None:
    sizes = tuple(1 << k for k in range(2, 12))
    value = {"target": -0.14, "examples": 100_000.0, "seconds": 3.0}[kind]
    seen = curves((16, 64, 256), 32_000)
    times = {size: 1e-3 + 1e-5 * size for size in sizes}
    outlook = find_outlook(Goal(kind, value), seen, seen, sizes, lambda size: times[size])  # type: ignore[arg-type]
    assert outlook is not None

    def loss(size: int, examples: float) -> float:
        return float(0.1 + 15 * (examples / (1 + size / (100.0 * (examples / 32_000) ** 0.4))) ** -0.5)

    def cost(size: int) -> float:
        if kind == "examples":
            return loss(size, 100_000.0)
        if kind == "seconds":
            return loss(size, 3.0 / times[size] * size)
        grid = np.geomspace(1e3, 1e8, 4000)
        return float(next(e for e in grid if loss(size, e) <= 0.14)) / size * times[size]

    costs = [cost(size) for size in sizes]
    chosen = cost(outlook.best())
    assert chosen <= min(costs) * 1.03
    assert outlook.best() in outlook.as_good(sizes)
    assert max(outlook.near_best().values()) > 0.3


def test_without_enough_points_or_anything_gained_there_is_no_outlook() -> None:
    flat = [Curve(8, (1.0, 2.0, 3.0, 4.0, 5.0), (1.0,) * 5)]
    assert find_outlook(Goal("target", 0.5), flat, flat, (8,), lambda size: 1.0) is None
    few = [Curve(8, (1.0, 2.0), (1.0, 0.5))]
    assert find_outlook(Goal("target", 0.5), few, few, (8,), lambda size: 1.0) is None


def test_the_budget_follows_the_training_run_unless_it_was_given() -> None:
    free, given = Clock(None), Clock(3.0)
    for clock in (free, given):
        clock.allow(400.0, known=True)
    assert free.limit == 100.0
    assert given.limit == 3.0
    free.allow(4.0, known=True)
    assert free.limit == LEAST_SECONDS
    free.allow(math.inf, known=True)
    assert free.limit == LEAST_SECONDS
    # Before a curve says something, all of what it may take, and never more than in the dark.
    for seconds, limit in ((2.0, LEAST_SECONDS), (20.0, 20.0), (400.0, MOST_SECONDS_IN_THE_DARK)):
        free.allow(seconds, known=False)
        assert free.limit == limit
    # What a race that trains its winner on has not seen, the training goes on to see.
    training = Clock(None, to_train=True)
    assert training.limit == IN_THE_DARK_TO_TRAIN < MOST_SECONDS_IN_THE_DARK
    training.allow(400.0, known=False)
    assert training.limit == IN_THE_DARK_TO_TRAIN


def test_part_of_the_validation_set_is_set_right_by_one_look_at_all_of_it(make: Make) -> None:
    prepared = Prepared(make(held_out=3000), torch.device("cpu"))
    judge = Judge(prepared, 512)
    assert (judge.is_exact, judge.examples) == (False, 512)
    own = Heat(prepared, 5, [0.05], seed=0, seconds_per_update=0.5, budget_examples=900, judge=judge)
    own.advance()
    model = own.model_of(own.entrants[0])
    assert model is not None
    loss, score = judge.measure_offsets(model)
    whole = evaluate(model, prepared.validation)
    own.shift(loss, score)
    assert own.entrants[0].points[-1].loss == pytest.approx(whole[0], rel=1e-4)
    assert own.entrants[0].points[-1].score == pytest.approx(whole[1], abs=2e-3)
    own.advance()  # what comes later is set right as it comes
    model = own.model_of(own.entrants[0])
    assert model is not None
    assert own.entrants[0].points[-1].loss == pytest.approx(evaluate(model, prepared.validation)[0], rel=0.1)
    assert judge.measure_offsets(model)[0] == pytest.approx(0.0, abs=0.05)


def test_as_much_is_judged_by_as_can_be_afforded(make: Make) -> None:
    prepared = Prepared(make(held_out=3000), torch.device("cpu"))
    assert Judge.affordable(prepared, 1e6).is_exact
    assert Judge.affordable(prepared, 10.0).examples == 512
    assert Judge.affordable(prepared, 16_000.0).examples == 1920


@pytest.mark.parametrize("stacked", [False, True])
def test_a_candidate_at_the_target_ends_unless_it_is_to_be_trained_on(make: Make, stacked: bool) -> None:
    own = heat(make, [0.05, 1e-9], stacked=stacked, target=0.8)
    while own.entrants[0].ended is None and own.examples < 800:
        own.advance()
    assert own.entrants[0].ended == "reached"
    assert own.entrants[0].points[-1].score >= 0.8
    assert own.live == [own.entrants[1]]


def test_the_last_word_is_by_all_of_the_validation_set(make: Make) -> None:
    prepared = Prepared(make(held_out=2000), torch.device("cpu"))
    for stacked in (True, False):
        own = Heat(
            prepared, 5, [0.05, 0.1], seed=0, seconds_per_update=0.5, budget_examples=2000, judge=Judge(prepared, 512),
            target=0.85, to_train=True, stacked=stacked,
        )  # fmt: skip
        own.advance()
        result = own.finish(own.entrants[0], lambda: False)
        assert result.reached
        assert result.plan.target == 0.85
        assert result.state is not None
        model = prepared.workload.model()
        model.load_state_dict(result.state)
        assert evaluate(model, prepared.validation)[1] == pytest.approx(result.curve[-1].score, abs=1e-3)
        assert result.curve[-1].score >= 0.85


@pytest.mark.parametrize(("low", "high", "known"), [(20.0, 80.0, True), (5.0, math.inf, True), (None, None, False)])
def test_the_noise_scale_where_the_pilot_stands_says_about_where_the_critical_batch_size_lies(
    make: Make, low: float | None, high: float | None, known: bool
) -> None:
    prepared = Prepared(make(), torch.device("cpu"))
    scale = Interval.unresolved(0.95) if low is None else Interval(40.0, low, high, 0.95)
    asked: list[float] = []

    def measure(state: dict[str, Tensor], seconds: float) -> NoiseMeasurement | None:
        assert set(state) == set(prepared.workload.model().state_dict())
        asked.append(seconds)
        return types.SimpleNamespace(noise_scale=scale)  # type: ignore[return-value]

    times = UpdateTimes(step_times({5: 0.001, 20: 0.002}), largest_micro_batch=None)
    race = Race(
        prepared, Goal("target", 0.999), (5, 20), times, exponent=1.0, clock=Clock(1.5), seed=0,
        measure_noise=measure, tell=lambda label: None, stopped=lambda: False,
    )  # fmt: skip
    race.run()
    assert asked
    assert all(0 < seconds < 1.5 for seconds in asked)
    prior = race.critical
    assert (prior is not None) == known
    if prior is not None:
        assert prior.batch_size == 40.0
        own = math.log(4) / (2 * 1.96)
        assert prior.spread == pytest.approx(math.hypot(0.8, own) if high == 80.0 else 1.6, rel=1e-3)
        assert prior.examples > 0

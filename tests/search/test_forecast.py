"""Forecasts of a learning curve: closed forms, and whether intervals hold the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from batchscope.search.forecast import EXPONENT, EXPONENT_SPREAD, LONGEST, MISFIT, UPDATES, fit_curve

Floats = NDArray[np.float64]
GOAL_SECONDS = 100.0
POINTS = 14


def falling(x: Floats, exponent: float) -> Floats:
    """1 − (1 − x^(−p))/p: the law in units of the last point's time."""
    return np.asarray(1 - (np.log(x) if abs(exponent) < 1e-9 else (1 - x**-exponent) / exponent))


@pytest.mark.parametrize("exponent", [-0.3, 0.0, 0.3, 0.7])
def test_a_curve_without_scatter_is_continued(exponent: float) -> None:
    times = np.geomspace(2.5, 25.0, POINTS)
    law = fit_curve(times.tolist(), (-falling(times / 25.0, exponent)).tolist())
    assert law is not None
    assert law.last_seconds == 25.0
    assert np.median(law.score_at(25.0)) == pytest.approx(-1.0, abs=0.05)
    for seconds in (10.0, 50.0):
        truth = -float(falling(np.array(seconds / 25.0), exponent))
        assert np.median(law.score_at(seconds)) == pytest.approx(truth, abs=0.1)
        assert np.median(law.seconds_to(truth)) == pytest.approx(seconds, rel=0.15)


def test_time_and_score_are_each_others_inverse() -> None:
    times = np.geomspace(1.0, 10.0, POINTS)
    law = fit_curve(times.tolist(), (-falling(times / 10.0, 0.4)).tolist())
    assert law is not None
    for k, score in enumerate(law.score_at(20.0).tolist()):
        assert law.seconds_to(score)[k] == pytest.approx(20.0, rel=1e-6)


def test_beyond_the_limit_and_beyond_belief_is_never() -> None:
    times = np.geomspace(1.0, 10.0, POINTS)
    law = fit_curve(times.tolist(), (-(0.5 + times**-1.0)).tolist())
    assert law is not None
    assert np.mean(np.isinf(law.seconds_to(10.0))) > 0.9  # minus the loss cannot be that high
    later = law.seconds_to(-0.58)
    assert (later[np.isfinite(later)] <= LONGEST * 10.0).all()


@pytest.mark.parametrize(
    ("seconds", "scores"),
    [([], []), ([1.0], [0.3]), ([1.0, 2.0, 4.0], [0.5, 0.5, 0.5]), ([1.0, 2.0, 4.0], [0.5, math.nan, math.inf])],
)
def test_too_little_gives_no_law(seconds: list[float], scores: list[float]) -> None:
    assert fit_curve(seconds, scores) is None


def test_a_score_that_falls_is_not_forecast_to_rise_soon() -> None:
    law = fit_curve([1.0, 2.0, 4.0, 8.0], [0.8, 0.7, 0.6, 0.5])
    assert law is None or np.median(law.seconds_to(0.9)) > 8.0


def test_as_many_intervals_hold_the_truth_as_they_say() -> None:
    """200 curves whose exponent is drawn from its prior, seen to between a 16th and half of the way."""
    generator, held = np.random.default_rng(0), []
    for seed in range(200):
        exponent = float(generator.normal(EXPONENT, EXPONENT_SPREAD))
        seen = math.exp(generator.uniform(math.log(1 / 16), math.log(1 / 2)))
        times = np.geomspace(GOAL_SECONDS * seen / 10, GOAL_SECONDS * seen, POINTS)
        curve = falling(times / times[-1], exponent)
        curve += MISFIT * float(np.ptp(curve)) * generator.standard_normal(POINTS)
        law = fit_curve(times.tolist(), (-curve).tolist(), seed=seed)
        assert law is not None
        found = law.seconds_to(-float(falling(np.array(1 / seen), exponent)))
        low, high = np.quantile(found, [0.05, 0.95], method="nearest")
        held.append(low <= GOAL_SECONDS <= high)
    assert 0.80 <= np.mean(held) <= 0.97


def test_a_longer_look_narrows_the_forecast() -> None:
    widths = []
    for seen in (1 / 8, 1 / 2):
        times = np.geomspace(GOAL_SECONDS * seen / 10, GOAL_SECONDS * seen, POINTS)
        law = fit_curve(times.tolist(), (-(0.2 + times**-0.3)).tolist())
        assert law is not None
        low, high = np.quantile(law.score_at(GOAL_SECONDS), [0.05, 0.95])
        widths.append(high - low)
    assert widths[1] < 0.7 * widths[0]


def test_an_accuracy_never_exceeds_its_bound() -> None:
    """1 − t^(−1/2): a straight line once it is the log of what is missing to 1."""
    times = np.geomspace(4.0, 40.0, POINTS)
    law = fit_curve(times.tolist(), (1 - times**-0.5).tolist(), most=1.0)
    assert law is not None
    assert (law.score_at(1e6) <= 1.0).all()
    assert np.median(law.seconds_to(0.9)) == pytest.approx(100.0, rel=0.2)
    for k, score in enumerate(law.score_at(80.0).tolist()):
        assert law.seconds_to(score)[k] == pytest.approx(80.0, rel=1e-6)


def test_a_bound_that_was_exceeded_does_not_count() -> None:
    times = np.geomspace(4.0, 40.0, POINTS)
    law, free = (fit_curve(times.tolist(), (2 - times**-0.5).tolist(), most=most) for most in (1.0, math.inf))
    assert law is not None
    assert free is not None
    assert math.isinf(law.most)
    assert (law.score_at(80.0) == free.score_at(80.0)).all()


def test_lengths_of_runs_that_are_usual_count_for_more() -> None:
    times = np.geomspace(1.0, 10.0, POINTS)
    law = fit_curve(times.tolist(), (-(0.5 + times**-0.2)).tolist())
    assert law is not None
    medians = []
    for each in (0.01, 1.0):
        given = law.reaching(-0.9, each)
        seconds = given.seconds_to(-0.9)
        assert np.isfinite(seconds).all()
        assert given.in_sight == np.isfinite(law.seconds_to(-0.9)).mean()
        medians.append(float(np.median(seconds)))
    assert medians[0] < medians[1]
    assert medians[1] > UPDATES * 0.01


def test_a_score_out_of_reach_leaves_the_draws_as_they_are() -> None:
    times = np.geomspace(1.0, 10.0, POINTS)
    law = fit_curve(times.tolist(), (1 - times**-0.5).tolist(), most=1.0)
    assert law is not None
    given = law.reaching(1.0, 0.01)
    assert given.in_sight == 0.0
    assert (given.value == law.value).all()

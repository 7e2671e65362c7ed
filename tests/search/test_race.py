"""What a search may cost, and what it knows of the run's length, from curves whose law is known."""

from __future__ import annotations

import math

import pytest

from batchscope.records import Goal
from batchscope.search.candidates import Point, Setting
from batchscope.search.policy import Advance, Policy
from batchscope.search.race import (
    BUDGET_SHARE,
    FEW_UPDATES,
    FIRST_BUDGET,
    LEAST_SCORES,
    LEAST_SECONDS,
    SEEN_BUDGET,
    Budget,
    Race,
)
from batchscope.search.recorded import Curve, RecordedSource

START, FAST = Setting(32, 0.1), Setting(32, 0.2)


def curve(setting: Setting, speed: float, *, every: int = 1, update_seconds: float = 0.01) -> Curve:
    """A loss of 0.1 + t^(-1/2), and its negative as the score at every so many points."""
    updates = sorted({round(4 * 1.15**k) for k in range(60)})
    points = [Point(0, 0, 0.0, 5.0, 0.0, -5.0)]
    for k, n in enumerate(updates):
        seconds = n * update_seconds
        loss = 0.1 + (speed * seconds + 0.04) ** -0.5
        points.append(Point(n * setting.batch_size, n, seconds, loss, 0.0, -loss if k % every == 0 else None))
    return Curve(setting, tuple(points))


def race_of(*curves: Curve, budget: float | None = None, target: float = -0.3) -> Race:
    source = RecordedSource({c.setting: c for c in curves})
    allowed = {c.setting for c in curves}
    policy = Policy(START, [32], is_allowed=allowed.__contains__)
    return Race(source, policy, Goal("target", target), Budget(budget))


@pytest.mark.parametrize(
    ("run", "seen", "expected"),
    [
        (0.0, 0.0, LEAST_SECONDS),
        (48.0, 0.0, 12.0),
        (1e4, 0.0, FIRST_BUDGET * LEAST_SECONDS),
        (1e4, 100.0, LEAST_SECONDS + SEEN_BUDGET * 100.0),
        (1e4, 1e4, BUDGET_SHARE * 1e4),
        (1e4, math.inf, BUDGET_SHARE * 1e4),
    ],
)
def test_a_budget_is_a_quarter_of_the_run_within_what_was_seen(run: float, seen: float, expected: float) -> None:
    assert Budget(None).limit(run, seen) == pytest.approx(expected)
    assert Budget(3.0).limit(run, seen) == 3.0


def test_without_a_forecast_it_follows_from_the_updates_of_todays_setting() -> None:
    race = race_of(curve(START, 1.0, every=1000, update_seconds=0.06))
    assert race.budget_seconds() == LEAST_SECONDS
    race.advance(Advance(START, 1.0))
    assert race.run_seconds() == (None, None)
    assert race.budget_seconds() == pytest.approx(BUDGET_SHARE * FEW_UPDATES * 0.06)


def test_the_scores_of_all_candidates_tell_the_length_of_the_run() -> None:
    """Each has too few of its own; at the best one's speed they lie on one curve."""
    race = race_of(curve(START, 1.0, every=6), curve(FAST, 2.0, every=6))
    for setting in (START, FAST):
        race.advance(Advance(setting, 1.0))
    best = next(o for o in race.observations() if o.setting == FAST)
    own = [p for p in best.points if p.score is not None and p.seconds > 0]
    pooled = race.pooled_scores(best, 40.0)
    assert len(own) < LEAST_SCORES <= len(pooled)
    assert pooled == sorted(pooled)
    for seconds, score in pooled:
        truth = -(0.1 + (2.0 * seconds + 0.04) ** -0.5)
        assert score == pytest.approx(truth, rel=0.4)
    run_seconds, draws = race.run_seconds()
    assert run_seconds is not None
    assert draws is not None
    assert draws.min() < 12.5 < draws.max()


def test_a_default_budget_is_kept() -> None:
    race = race_of(curve(START, 1.0), curve(FAST, 2.0))
    race.run()
    assert race.limit_seconds >= LEAST_SECONDS
    assert race.source.elapsed_seconds() <= 1.2 * race.limit_seconds

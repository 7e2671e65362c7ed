"""The pure parts of recording learning curves: what is recorded next, where points lie, when a run ends."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from curves_schedule import NEAR_BEST, Seen, Setting, next_setting
from curves_table import Curves, points_at, seconds_or_estimate, time_to_target
from record_one import verdict

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
BEST_STEP, BEST_SIZE = 1, 100.0


def law(setting: Setting) -> float:
    """Seconds with one valley; rates eight times the best diverge."""
    away = setting.step - BEST_STEP - 0.5 * math.log2(setting.batch_size / 64)
    if away >= 3:
        return math.inf
    return 10 * (setting.batch_size / BEST_SIZE + BEST_SIZE / setting.batch_size) * math.exp(away**2 / 6)


def schedule() -> list[Seen]:
    seen: list[Seen] = []
    for _ in range(200):
        setting = next_setting(64, SIZES, seen)
        if setting is None:
            return seen
        fastest = min((s.seconds for s in seen), default=math.inf)
        seconds = law(setting)
        seen.append(Seen(setting, seconds, seconds < 3 * fastest))
    raise AssertionError("the schedule does not end")


def test_schedule_starts_at_the_default_and_names_nothing_twice() -> None:
    settings = [s.setting for s in schedule()]
    assert settings[0] == Setting(64, 0)
    assert len(set(settings)) == len(settings) <= 55


def test_schedule_records_the_best_setting_with_its_neighbours_and_more_seeds() -> None:
    seen = schedule()
    recorded = {s.setting for s in seen}
    best = min((Setting(size, step) for size in SIZES for step in range(-8, 9)), key=law)
    assert {best, best._replace(step=best.step + 1), best._replace(step=best.step - 1)} <= recorded
    assert best._replace(seed=1) in recorded
    fastest = law(best)
    for s in seen:
        assert s.setting.seed == 0 or s.seconds <= NEAR_BEST * fastest


def test_schedule_reaches_the_smallest_and_the_largest_batch_size_and_far_rates() -> None:
    first = [s.setting for s in schedule() if s.setting.seed == 0]
    assert {8, 1024} <= {s.batch_size for s in first}
    for size in {s.batch_size for s in first}:
        steps = [s.step for s in first if s.batch_size == size]
        best = min(steps, key=lambda step: law(Setting(size, step)))
        assert min(steps) <= best - 3


def test_points_are_whole_updates_and_the_same_places_for_every_batch_size() -> None:
    spec: dict[str, float] = {"first": 1 / 500, "dense": 1 / 8, "factor": 1.2, "every": 0.025}
    one = list(itertools.takewhile(lambda n: n <= 20_000, points_at(20_000, 1, **spec)))
    assert one[0] == 40
    assert 50 <= len(one) <= 70
    for size in (8, 512):
        places = list(itertools.islice(points_at(20_000, size, **spec), 20))
        assert all(place % size == 0 for place in places)
        assert all(min(abs(place - other) for other in one) <= size / 2 + 1 for place in places if place <= 20_000)


def curve(seconds: list[float], score: list[float], **other: Any) -> dict[str, Any]:
    points = {"examples": [100 * s for s in seconds], "seconds": seconds, "score": score}
    points |= {"loss": [1 - s for s in score], "training_loss": [1 - s for s in score]}
    return {"outcome": "reached", "batch_size": 8, "learning_rate": 0.1, "seed": 0, "points": points, **other}


def test_time_to_target_lies_between_the_evaluations_around_it() -> None:
    found = time_to_target(curve([1.0, 2.0, 4.0], [0.1, 0.5, 0.9]), 0.7)
    assert found == pytest.approx(2 * math.sqrt(2))
    assert time_to_target(curve([1.0, 2.0], [0.1, 0.5]), 0.7) is None
    assert time_to_target(curve([1.0, 2.0], [0.8, 0.9]), 0.7) == 1.0


def test_a_run_that_was_cut_is_estimated_by_its_slowness() -> None:
    best = curve([1.0, 2.0, 4.0], [0.2, 0.4, 0.8])
    slow = curve([1.0, 2.0], [0.1, 0.2], outcome="cut")
    assert seconds_or_estimate(best, [best, slow], 0.8) == 4.0
    assert seconds_or_estimate(slow, [best, slow], 0.8) == pytest.approx(8.0)
    assert seconds_or_estimate({**slow, "outcome": "diverged"}, [best], 0.8) == math.inf


@pytest.mark.parametrize(
    ("seconds", "score", "expected"),
    [
        ([1.0, 2.0], [0.1, 0.9], None),  # above once: goes on
        ([1.0, 2.0, 2.1], [0.1, 0.9, 0.9], "reached"),  # twice in a row
        ([1.0, 2.0, 2.1, 2.7], [0.1, 0.9, 0.7, 0.7], "reached"),  # 1.3 times the examples
        ([1.0, 3.0], [0.1, 0.1], None),  # bad, but less than 0.4 of the best time
        ([1.0, 6.0], [0.1, 0.15], "cut"),  # at 0.6 worse than the best one at 0.18
        ([1.0, 6.0], [0.1, 0.25], None),
    ],
)
def test_verdict(seconds: list[float], score: list[float], expected: str | None) -> None:
    best = curve([0.5, 1.0, 1.5, 5.0, 10.0], [0.1, 0.15, 0.2, 0.5, 0.8])
    assert verdict(curve(seconds, score)["points"], 0.8, 1.0, 10.0, best) == expected


def test_verdict_of_a_loss_far_above_that_of_fresh_weights() -> None:
    points = curve([1.0, 6.0], [-9.0, -9.0])["points"]
    assert verdict(points, 0.8, 1.0, 10.0, None) == "diverged"

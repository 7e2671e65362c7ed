"""A growing batch by the law, against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from batchscope.advice.growing import growing_batch
from batchscope.fit.learning_curve import LearningCurve

SIZES = [8, 16, 32, 64, 128, 256, 512]


def law(critical: float, growth: float) -> LearningCurve:
    one = np.ones(3)
    return LearningCurve(1e5, one, one, 0.5 * one, critical * one, growth * one, 0.0, 0)


def seconds(size: int) -> float:
    return 1e-3 + 1e-5 * size  # a knee of 100


def test_sizes_follow_the_root_of_knee_times_critical_size() -> None:
    found = growing_batch(law(400.0, 1.0), SIZES, seconds, 1e5)
    sizes = [phase.batch_size for phase in found.schedule.phases]
    assert sizes == sorted(set(sizes))
    # at the end √(100 · 400) = 200 lies between 128 and 256, in the beginning far below
    assert sizes[-1] in (128, 256)
    assert sizes[0] <= 16
    assert found.schedule.coupling == "rule"


def test_the_saving_is_what_a_sum_by_hand_says() -> None:
    growth, critical, goal = 0.5, 400.0, 1e5
    found = growing_batch(law(critical, growth), SIZES, seconds, goal)
    x = np.linspace(1.0, goal, 200_001)
    per = np.array([seconds(s) / s * (1 + s / (critical * (x / 1e5) ** growth)) for s in SIZES])
    by_hand = 1 - per.min(axis=0).sum() / per.sum(axis=1).min()
    assert found.saving == pytest.approx(float(by_hand), abs=0.005)
    assert found.saving > 0.01


def test_where_the_critical_size_stays_nothing_is_saved() -> None:
    found = growing_batch(law(400.0, 0.0), SIZES, seconds, 1e5)
    assert found.saving == 0.0
    assert len(found.schedule.phases) == 1

"""Recorded curves as candidates: what they show, what they cost, and where they end."""

from __future__ import annotations

import pytest

from batchscope.errors import ArgumentError
from batchscope.search.candidates import Point, Setting
from batchscope.search.recorded import Curve, RecordedSource, until_target

SETTING = Setting(8, 0.1)


def curve(*scores: float | None) -> Curve:
    """A point a second from 0 on, with these scores."""
    points = [Point(80 * k, 10 * k, float(k), 2.0 / (k + 1), 0.01, score) for k, score in enumerate(scores)]
    return Curve(SETTING, tuple(points))


def test_a_candidate_shows_its_curve_as_far_as_was_asked() -> None:
    source = RecordedSource({SETTING: curve(*[0.1 * k for k in range(9)])})
    candidate = source.open(SETTING)
    assert candidate.setting == SETTING
    assert not candidate.points
    candidate.advance(3.0)
    assert [point.seconds for point in candidate.points] == [0.0, 1.0, 2.0, 3.0]
    assert candidate.ended is None
    candidate.advance(3.0)  # at least one point more
    assert candidate.points[-1].seconds == 4.0
    candidate.advance(100.0)
    assert candidate.points[-1].seconds == 8.0
    assert candidate.ended == "finished"
    candidate.release()
    assert len(candidate.points) == 9


def test_the_first_advance_leaves_the_fresh_weights() -> None:
    candidate = RecordedSource({SETTING: curve(0.0, 0.1, 0.2)}).open(SETTING)
    candidate.advance(1e-6)
    assert candidate.points[-1].seconds > 0


def test_costs_add_up_on_the_clock_of_the_source() -> None:
    other = Setting(16, 0.1)
    curves = {SETTING: curve(*[0.0] * 9), other: Curve(other, curve(*[0.0] * 9).points)}
    source = RecordedSource(curves, overhead=1.5)
    first, second = source.open(SETTING), source.open(other)
    first.advance(4.0)
    second.advance(2.0)
    first.advance(6.0)
    assert (first.cost_seconds, second.cost_seconds) == (9.0, 3.0)
    assert source.elapsed_seconds() == 12.0
    assert first.memory_bytes == 0


def test_what_was_not_recorded_cannot_be_trained() -> None:
    with pytest.raises(ArgumentError, match=r"recorded settings; got batch size 8 at learning rate 0\.2"):
        RecordedSource({SETTING: curve(0.0)}).open(Setting(8, 0.2))


def test_a_curve_ends_where_it_reaches_the_target() -> None:
    whole = curve(0.1, None, 0.5, 0.4, 0.7)
    reached = until_target(whole, 0.5)
    assert [point.score for point in reached.points] == [0.1, None, 0.5]
    assert reached.ended == "reached"
    assert until_target(whole, 0.8) == whole
    candidate = RecordedSource({SETTING: reached}).open(SETTING)
    candidate.advance(100.0)
    assert candidate.ended == "reached"

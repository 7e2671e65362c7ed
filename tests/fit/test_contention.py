"""What times mean that were taken on a busy machine."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscope.fit.contention import (
    LEAST_SAMPLES,
    QUIET,
    busy_warning,
    quiet_time,
    share_taken,
    spread_warning,
    widened,
)
from batchscope.fit.intervals import median_interval
from batchscope.records import Interval


@pytest.mark.parametrize(
    ("others", "threads", "cores", "share"),
    [
        (0.0, 2, 2, 0.0),
        (1.0, 1, 2, 0.0),  # a core is left for it
        (1.0, 2, 2, 0.5),
        (1.5, 1, 2, 0.5),
        (2.0, 1, 2, 1.0),
        (3.0, 8, 4, 0.75),  # more threads than cores want no more than all cores
        (50.0, 2, 64, 0.0),
    ],
)
def test_the_share_taken(others: float, threads: int, cores: int, share: float) -> None:
    assert share_taken(others, threads=threads, cores=cores) == pytest.approx(share)


def test_quiet_samples_alone_count_where_there_are_enough() -> None:
    seconds = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, *[2.0] * 30]
    found = quiet_time(seconds, [0.01] * 6 + [0.5] * 30)
    assert found.seconds == median_interval(seconds[:6])
    assert found.counted == tuple(range(6))
    assert found.contention == pytest.approx(0.01)
    assert found.quiet


def test_where_nothing_is_known_all_samples_count() -> None:
    seconds = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 2.0]
    found = quiet_time(seconds, [None] * 7)
    assert found.seconds == median_interval(seconds)
    assert found.contention is None
    assert found.quiet


@given(st.integers(0, 10**6), st.floats(0.1, 0.9), st.integers(6, 40))
def test_without_quiet_moments_the_interval_holds_the_quiet_time(seed: int, least: float, count: int) -> None:
    generator = np.random.default_rng(seed)
    shares = generator.uniform(least, min(0.95, least + 0.3), count)
    # What others take may slow it down by all of that, or by less where the work could go on beside.
    slowed = generator.uniform(0, 1, count)
    seconds = (1 / (1 - slowed * shares)).tolist()
    found = quiet_time(seconds, shares.tolist())
    assert not found.quiet
    assert len(found.counted) == max(LEAST_SAMPLES, math.ceil(count / 4))
    low, value, high = found.seconds.low, found.seconds.value, found.seconds.high
    assert low is not None and value is not None and high is not None  # noqa: PT018
    assert low <= 1.0 + 1e-9
    assert high >= 1.0
    assert low <= value <= high
    # It is no better known than by the share that was gone.
    assert high / low >= 1 / (1 - least) - 1e-9


def test_a_single_sample_and_a_machine_that_is_all_gone() -> None:
    found = quiet_time([1.0], [1.0])
    assert found.seconds.low == pytest.approx(0.0075)
    assert found.seconds.high == 1.0
    assert quiet_time([1.0], [0.0]).seconds.value == 1.0


def test_intervals_grow_by_what_times_are_uncertain() -> None:
    assert widened(Interval(2.0, 1.0, 3.0), None) == Interval(2.0, 1.0, 3.0)
    assert widened(Interval(2.0, 1.0, 3.0), 0.5, 0.25) == Interval(2.0, 0.5, 4.0)
    assert widened(Interval.unresolved(), 0.5) == Interval.unresolved()


def test_what_is_said() -> None:
    assert busy_warning(None) is None
    assert busy_warning(QUIET) is None
    assert "took 38% of the processor time that training needed" in (busy_warning(0.38, "training") or "")
    tight, wide = Interval(1.0, 0.95, 1.05), Interval(1.0, 0.7, 1.3)
    assert spread_warning([tight, tight, wide]) is None
    assert "varied by more than 15%" in (spread_warning([tight, wide, wide]) or "")
    assert spread_warning([Interval(1.0, None, None)]) is None

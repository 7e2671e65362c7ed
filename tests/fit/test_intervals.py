"""Intervals and tests over seeds, against scipy's, against closed forms, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from batchscope.fit import holm, mean_interval, paired_p_value, ratio_interval

# Whole thousandths: a spread is either zero or well above the rounding of the values.
numbers = st.integers(-(10**6), 10**6).map(lambda n: n / 1000)
samples = st.lists(numbers, min_size=2, max_size=30)
p_values = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12)


@given(values=samples, level=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_mean_s_interval_is_student_s(values: list[float], level: float) -> None:
    interval = mean_interval(values, level)
    assert interval.resolved
    assert interval.level == level
    assert interval.value == pytest.approx(np.mean(values), abs=1e-9)
    if len(set(values)) > 1:
        low, high = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert interval.low == pytest.approx(low, abs=1e-6)
        assert interval.high == pytest.approx(high, abs=1e-6)
    else:
        assert interval.low == pytest.approx(interval.value)


def test_one_value_has_no_ends_and_none_no_value() -> None:
    one = mean_interval([3.0])
    assert (one.value, one.low, one.high, one.resolved) == (3.0, None, None, True)
    none = mean_interval([], 0.9)
    assert (none.value, none.low, none.high, none.level, none.resolved) == (None, None, None, 0.9, False)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_it_holds_the_mean_as_often_as_it_says(n: int) -> None:
    # 4,000 samples: a standard error of 0.35 per cent at 95, 0.47 at 90.
    generator = np.random.default_rng(0)
    draws = generator.normal(2.0, 3.0, size=(4000, n))
    for level, error in ((0.95, 0.35), (0.9, 0.47)):
        held = np.mean([not mean_interval(sample.tolist(), level).excludes(2.0) for sample in draws])
        assert abs(100 * held - 100 * level) < 4 * error


@given(values=samples)
def test_the_p_value_is_that_of_the_t_test(values: list[float]) -> None:
    found = paired_p_value(values)
    assert found is not None
    if len(set(values)) > 1:
        assert found == pytest.approx(float(stats.ttest_1samp(values, 0.0).pvalue), rel=1e-6, abs=1e-12)
    assert 0 <= found <= 1


def test_differences_without_spread_fall_back_to_the_sign_test() -> None:
    assert paired_p_value([0.0] * 5) == 1.0
    for n in (2, 5, 10):
        expected = stats.binomtest(n, n).pvalue
        assert paired_p_value([0.1] * n) == pytest.approx(expected) == pytest.approx(paired_p_value([-0.1] * n))
    # Five seeds that all differ by the same step of a score do not tell apart at 5 per cent.
    assert paired_p_value([1 / 360] * 5) == 0.0625


def test_fewer_than_two_pairs_test_nothing() -> None:
    assert paired_p_value([]) is None
    assert paired_p_value([1.0]) is None


def test_the_p_value_is_uniform_where_there_is_no_difference() -> None:
    draws = np.random.default_rng(1).normal(size=(4000, 5))
    found = [paired_p_value(sample.tolist()) for sample in draws]
    assert stats.kstest(np.array(found, dtype=float), "uniform").pvalue > 1e-4


def test_the_interval_and_the_p_value_agree() -> None:
    for shift in np.linspace(0, 3, 40):
        sample = (np.array([-1.0, 0.2, 0.5, 1.1, -0.4]) + shift).tolist()
        p_value = paired_p_value(sample)
        assert p_value is not None
        assert mean_interval(sample).excludes(0.0) == (p_value < 0.05)


@given(ratios=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_ratios_are_averaged_by_their_logarithms(ratios: list[float]) -> None:
    interval = ratio_interval([math.log(ratio) for ratio in ratios])
    assert interval.value == pytest.approx(stats.gmean(ratios))
    inverse = ratio_interval([-math.log(ratio) for ratio in ratios])
    assert inverse.value == pytest.approx(1 / (interval.value or 0))
    if len(ratios) > 1:
        assert interval.low is not None
        assert inverse.high == pytest.approx(1 / interval.low, rel=1e-6)
    assert not ratio_interval([]).resolved


def test_a_ratio_s_interval_holds_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(2).normal(math.log(3), 0.4, size=(4000, 5))
    held = np.mean([not ratio_interval(sample.tolist()).excludes(3.0) for sample in draws])
    assert abs(held - 0.95) < 4 * 0.0035


def by_definition(values: list[float | None]) -> list[float | None]:
    """Holm's adjusted p values, written out: the largest over smaller p of (number not smaller) × p."""
    known = [p for p in values if p is not None]
    ranked = sorted(known)
    return [
        None if p is None else min(1.0, max((len(ranked) - i) * q for i, q in enumerate(ranked) if q <= p))
        for p in values
    ]


@given(values=p_values)
def test_holm_s_adjustment(values: list[float | None]) -> None:
    adjusted = holm(values)
    expected = by_definition(values)
    assert [p is None for p in adjusted] == [p is None for p in values]
    for p, found, wanted in zip(values, adjusted, expected, strict=True):
        if p is not None and found is not None:
            assert p <= found <= 1
            assert found == pytest.approx(wanted)


def test_holm_s_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([None, 0.5]) == [None, 0.5]


def test_a_family_without_differences_raises_one_false_alarm_in_twenty() -> None:
    draws = np.random.default_rng(3).uniform(size=(4000, 6)).tolist()
    alarms = np.mean([min(p for p in holm(row) if p is not None) < 0.05 for row in draws])
    assert 0.05 - 4 * 0.0035 < alarms < 0.05 + 4 * 0.0035

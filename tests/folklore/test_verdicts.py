"""Verdicts follow from intervals alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscope import Interval
from batchscope.folklore.verdicts import FAILS, HOLDS, INCONCLUSIVE, all_of, log_of, of_effect, of_equality, paired

ENDS = st.floats(-10, 10)


@given(ENDS, ENDS, st.floats(0, 5))
def test_a_verdict_never_contradicts_the_interval(a: float, b: float, least: float) -> None:
    low, high = min(a, b), max(a, b)
    verdict = of_effect(Interval((low + high) / 2, low, high), least)
    assert (verdict == HOLDS) == (low > 0 and high > least)
    assert (verdict == FAILS) == (high <= least)
    same = of_equality(Interval((low + high) / 2, low, high), least)
    assert (same == HOLDS) == (-least <= low and high <= least)
    if same == FAILS:
        assert low > least or high < -least


def test_without_an_interval_nothing_can_be_told() -> None:
    for unknown in (Interval.unresolved(0.95), Interval(1.0, None, None), Interval(1.0, math.nan, 2.0)):
        assert of_effect(unknown) == INCONCLUSIVE
    assert of_equality(Interval(1.0, None, None), 5.0) == INCONCLUSIVE


def test_a_claim_of_several_parts_needs_all_of_them() -> None:
    assert all_of([HOLDS, HOLDS]) == HOLDS
    assert all_of([HOLDS, INCONCLUSIVE]) == INCONCLUSIVE
    assert all_of([INCONCLUSIVE, FAILS]) == FAILS


def test_pairs_cancel_what_seeds_share() -> None:
    seeds = [0.1, 0.5, 0.9]
    difference = paired([s + 0.02 for s in seeds], seeds)
    assert difference.low == pytest.approx(0.02)
    assert of_effect(difference, 0.01) == HOLDS
    assert paired([1.0, None, math.inf, 2.0], [0.5, 1.0, 1.0, 1.5]).value == pytest.approx(0.5)


def test_the_sign_of_a_log_says_which_is_larger() -> None:
    assert of_effect(log_of(Interval(2.0, 1.5, 3.0))) == HOLDS
    assert of_effect(log_of(Interval(0.5, 0.3, 0.8))) == FAILS
    assert of_effect(log_of(Interval(0.5, -0.3, 0.8))) == INCONCLUSIVE

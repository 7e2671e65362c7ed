"""Which branches came back, and the critical batch size between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscope.fit.branches import judge_branches

SIZES = [8, 16, 32, 64]


def rows(*means: float, spread: float = 0.01, repeats: int = 5) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Losses of each size that share what a repeat's examples do to all of them."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, repeats)
    return np.array([m + shared + rng.normal(0, spread, repeats) for m in means])


def test_the_largest_size_up_to_which_all_came_back_and_the_least_that_did_not() -> None:
    judged = judge_branches(SIZES, rows(1.0, 1.0, 1.02, 1.5), 0.1)
    assert judged.recovered == (True, True, True, False)
    assert (judged.critical.value, judged.critical.low, judged.critical.high) == (32, 32, 64)
    assert "Up to a batch size of 32" in judged.verdict
    assert "at 64 they do not" in judged.verdict


def test_pairs_see_through_what_a_repeats_examples_do() -> None:
    losses = rows(1.0, 1.0, 1.02, 1.5)
    assert losses[0].std() > 0.3  # far more than what is to be told
    assert judge_branches(SIZES, losses, 0.1).excesses[2].value == pytest.approx(0.02, abs=0.03)


def test_a_size_that_the_noise_leaves_open_widens_the_interval() -> None:
    losses = rows(1.0, 1.0, 1.0, 1.5)
    losses[2] += 0.1 + np.array([-0.3, 0.3, -0.2, 0.2, 0.0])
    judged = judge_branches(SIZES, losses, 0.1)
    assert judged.recovered == (True, True, None, False)
    assert (judged.critical.value, judged.critical.high) == (16, 64)


def test_where_none_fails_the_critical_size_is_at_least_the_largest() -> None:
    judged = judge_branches(SIZES, rows(1.0, 1.01, 1.0, 1.02), 0.1)
    assert (judged.critical.value, judged.critical.high) == (64, math.inf)
    assert "at least" in judged.verdict


def test_where_all_but_the_smallest_fail_the_critical_size_is_below_them() -> None:
    judged = judge_branches(SIZES, rows(1.0, 1.5, 2.0, 3.0), 0.1)
    assert not judged.critical.resolved
    assert judged.critical.high == 16
    assert "below that" in judged.verdict


def test_noise_alone_fails_no_size() -> None:
    rng = np.random.default_rng(0)
    verdicts = [judge_branches(SIZES, rng.normal(0, 1, (4, 6)), 0.1) for _ in range(200)]
    assert sum(math.isfinite(judged.critical.high or 0) for judged in verdicts) <= 20
    assert any("leaves open" in judged.verdict and not judged.critical.resolved for judged in verdicts)


def test_sizes_too_small_for_their_rate_are_told_apart_from_sizes_too_large() -> None:
    judged = judge_branches(SIZES, rows(2.0, 1.0, 1.0, 3.0), 0.1)
    assert judged.recovered == (False, True, True, False)
    assert (judged.critical.value, judged.critical.high) == (32, 64)
    assert "At 8 they end worse too" in judged.verdict


def test_divergence_and_lack_of_memory_are_data() -> None:
    losses = rows(1.0, 1.0, 1.0, 1.0)
    losses[3, 1] = math.inf
    judged = judge_branches(SIZES, losses, 0.1)
    assert judged.recovered[3] is False
    assert judged.losses[3].value == math.inf
    assert judged.critical.high == 64
    assert "diverged at 64" in judged.verdict

    losses[3] = math.nan
    judged = judge_branches(SIZES, losses, 0.1)
    assert judged.recovered[3] is None
    assert not judged.losses[3].resolved
    assert (judged.critical.value, judged.critical.high) == (32, math.inf)


def test_nothing_that_trains_is_no_error() -> None:
    judged = judge_branches(SIZES, np.full((4, 3), math.inf), 0.1)
    assert not judged.critical.resolved
    assert "No branch" in judged.verdict


def test_one_repeat_says_nothing_for_sure() -> None:
    judged = judge_branches(SIZES, rows(1.0, 1.1, 2.0, 3.0, repeats=1), 0.1)
    assert judged.recovered == (True, None, None, None)
    assert not judged.critical.resolved


@given(
    st.lists(st.lists(st.floats(-10, 10) | st.just(math.inf), min_size=3, max_size=3), min_size=2, max_size=6),
    st.floats(1e-3, 5),
)
def test_ends_are_sizes_in_order_and_what_lies_below_them_came_back(table: list[list[float]], tolerance: float) -> None:
    sizes = [2**i for i in range(len(table))]
    judged = judge_branches(sizes, np.array(table), tolerance)
    value, high = judged.critical.value, judged.critical.high
    assert judged.verdict.endswith(".")
    if value is not None:
        assert high is not None
        assert value in sizes
        assert value < high
        assert judged.recovered[sizes.index(int(value))] is True
        assert high == math.inf or judged.recovered[sizes.index(int(high))] is False

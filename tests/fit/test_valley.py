"""The bottom of a valley of losses over learning rates, against parabolas whose bottom is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscope.fit import valley_bottom

GRID = [0.001 * 2**k for k in range(10)]


@given(bottom=st.floats(1.0, 8.0), depth=st.floats(0.1, 100), level=st.floats(-10, 10))
def test_the_bottom_of_a_parabola_is_found_exactly(bottom: float, depth: float, level: float) -> None:
    losses = [level + depth * (k - bottom) ** 2 for k in range(10)]
    rate, at_edge = valley_bottom(GRID, losses)
    assert math.log2(rate / 0.001) == pytest.approx(bottom, abs=1e-6)
    assert not at_edge


@given(bottom=st.floats(0.05, 0.95), steps=st.lists(st.floats(0.2, 3.0), min_size=2, max_size=2))
def test_rates_need_not_be_evenly_apart(bottom: float, steps: list[float]) -> None:
    u = [-steps[0], 0.0, steps[1]]
    centre = (bottom - 0.5) * min(steps)  # nearer to the middle rate than to its neighbours
    rate, at_edge = valley_bottom([math.exp(x) for x in u], [(x - centre) ** 2 for x in u])
    assert math.log(rate) == pytest.approx(centre, abs=1e-9)
    assert not at_edge


@given(losses=st.lists(st.floats(-100, 100), min_size=3, max_size=10))
def test_the_bottom_lies_between_the_midpoints_beside_the_best(losses: list[float]) -> None:
    rates = GRID[: len(losses)]
    rate, at_edge = valley_bottom(rates, losses)
    bests = [i for i, loss in enumerate(losses) if loss == min(losses)]
    slack = 1 + 1e-9
    assert any(
        rates[i] == rate
        if i in (0, len(rates) - 1)
        else math.sqrt(rates[i - 1] * rates[i]) / slack <= rate <= math.sqrt(rates[i] * rates[i + 1]) * slack
        for i in bests
    )
    assert at_edge == (rate in (rates[0], rates[-1]))


@given(losses=st.lists(st.floats(0, 1), min_size=3, max_size=8), scale=st.floats(1e-3, 1e3))
def test_units_of_the_rate_do_not_matter(losses: list[float], scale: float) -> None:
    rates = GRID[: len(losses)]
    rate, at_edge = valley_bottom(rates, losses)
    scaled, scaled_at_edge = valley_bottom([r * scale for r in rates], losses)
    assert scaled == pytest.approx(rate * scale)
    assert scaled_at_edge == at_edge


def test_the_best_at_an_end_is_said_to_be_there() -> None:
    assert valley_bottom(GRID[:3], [1.0, 2.0, 3.0]) == (0.001, True)
    assert valley_bottom(GRID[:3], [3.0, 2.0, 1.0]) == (0.004, True)
    assert valley_bottom([0.1], [1.0]) == (0.1, True)


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_beside_a_cliff_the_best_rate_stands(lost: float) -> None:
    assert valley_bottom(GRID[:4], [3.0, 2.0, 1.0, lost]) == (0.004, False)
    assert valley_bottom(GRID[:4], [lost, 1.0, 2.0, 3.0]) == (0.002, False)
    assert valley_bottom(GRID[:3], [lost, 1.0, lost]) == (0.002, False)


def test_a_flat_bottom_gives_one_of_its_rates() -> None:
    rate, _ = valley_bottom(GRID[:5], [2.0, 1.0, 1.0, 1.0, 2.0])
    assert 0.002 <= rate <= 0.008


def test_where_nothing_is_finite_there_is_no_bottom() -> None:
    with pytest.raises(ValueError, match="no finite loss"):
        valley_bottom(GRID[:2], [math.inf, math.nan])


def test_noise_moves_the_bottom_little() -> None:
    # A valley as measured ones are: a factor 2 in the rate off the bottom costs 0.02, seeds differ by 0.002.
    generator = np.random.default_rng(0)
    found = []
    for _ in range(500):
        bottom = generator.uniform(3, 6)
        losses = [0.3 + 0.02 * (k - bottom) ** 2 + 0.002 * generator.normal() for k in range(10)]
        found.append(math.log2(valley_bottom(GRID, losses)[0] / 0.001) - bottom)
    assert abs(np.mean(found)) < 0.02
    assert np.std(found) < 0.15

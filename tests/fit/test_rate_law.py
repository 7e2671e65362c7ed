"""The best rate's law against laws that are known, with the uncertainty of the valleys that it comes from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.errors import ArgumentError
from batchscope.fit.rate_law import Valley, fit_rate_law, rate_point
from batchscope.records.sweep import RatePoint

SIZES = [4 * 2**i for i in range(9)]


def point(batch_size: int, rate: float, *, width: float = 2.0, edge: Any = None) -> RatePoint:
    """A best rate that is known to within a factor ``width`` to either side."""
    return RatePoint(batch_size, rate, rate / width, rate * width, edge, math.nan)


def found(
    law: Any, batch_size: int, seed: int, *, seeds: int = 3, step: float = 2**0.5, noise: float = 0.05
) -> RatePoint:
    """The best rate of a size from noisy trials on a grid of rates, as a search leaves it."""
    generator = np.random.default_rng([seed, batch_size])
    best, offset = law(batch_size), generator.uniform()
    rates = [best * step ** (k + offset) for k in range(-6, 6)]
    costs = [0.3 * math.log(rate / best) ** 2 + generator.normal(0, noise / math.sqrt(seeds)) for rate in rates]
    return rate_point(
        batch_size, Valley(tuple(rates), tuple(costs), (False,) * 12, max(0.1, 2 * noise / math.sqrt(seeds)))
    )


@settings(max_examples=30)
@given(exponent=st.floats(-0.5, 1.5), coefficient=st.floats(1e-6, 1e3))
def test_exact_powers_are_given_back(exponent: float, coefficient: float) -> None:
    law = fit_rate_law([point(b, coefficient * b**exponent) for b in SIZES])
    assert law.form == "power"
    assert law.exponent.value == pytest.approx(exponent, abs=2e-3)
    assert law.coefficient == pytest.approx(coefficient, rel=0.02)
    assert law.leave_one_out_error == pytest.approx(0.0, abs=0.01)
    assert not law.largest_rate.resolved
    assert [p.predicted for p in law.points] == pytest.approx([coefficient * b**exponent for b in SIZES], rel=0.01)


@settings(max_examples=15)
@given(half=st.floats(30.0, 150.0), largest=st.floats(1e-4, 10.0))
def test_exact_rises_are_given_back(half: float, largest: float) -> None:
    law = fit_rate_law([point(b, largest / (1 + half / b), width=1.3) for b in SIZES])
    assert law.form == "saturating"
    assert law.half_batch_size.value == pytest.approx(half, rel=0.02)
    assert law.largest_rate.value == pytest.approx(largest, rel=0.02)
    assert law.half_batch_size.low < half < law.half_batch_size.high  # type: ignore[operator]
    assert law.largest_rate.low < largest < law.largest_rate.high  # type: ignore[operator]
    assert "levels off" in law.verdict


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_intervals_hold_the_truth_as_often_as_they_say(exponent: float) -> None:
    held, resolved = [], 0
    for seed in range(100):
        law = fit_rate_law([found(lambda b: 0.01 * b**exponent, b, seed) for b in SIZES[::2]])
        held.append(law.exponent.low <= exponent <= law.exponent.high)  # type: ignore[operator]
        resolved += law.exponent.resolved
    assert resolved == 100
    assert np.mean(held) > 0.9
    widths = fit_rate_law([found(lambda b: 0.01 * b**exponent, b, 0) for b in SIZES])
    assert widths.exponent.high - widths.exponent.low < 0.4  # type: ignore[operator]


def test_verdicts_name_the_rule_that_holds() -> None:
    def verdict(exponent: float, *, width: float = 1.5, sizes: list[int] = SIZES) -> str:
        return fit_rate_law([point(b, 0.01 * b**exponent, width=width) for b in sizes]).verdict

    assert "the linear rule." in verdict(1.0)
    assert "the square-root rule." in verdict(0.5)
    assert "between the square-root rule and the linear one" in verdict(0.75)
    assert "slower than the square-root rule" in verdict(0.25)
    assert "hardly depends" in verdict(0.0)
    assert "faster than the linear rule" in verdict(1.5)
    assert "it falls" in verdict(-0.4)
    assert "do not tell the square-root rule from the linear one" in verdict(0.75, width=4.0, sizes=SIZES[:3])
    assert "or none at all" in verdict(0.3, width=3.0, sizes=SIZES[:6])


def test_few_sizes_say_what_their_brackets_allow() -> None:
    sharp = fit_rate_law([point(b, 0.01 * b, width=1.1) for b in (8, 512)])
    assert sharp.exponent.low > 0.8  # type: ignore[operator]
    assert sharp.leave_one_out_error is None
    one = fit_rate_law([point(8, 0.1)])
    assert not one.exponent.resolved
    assert "do not determine" in one.verdict
    assert fit_rate_law([point(b, 0.1, edge="highest") for b in SIZES]).exponent.value is None


def test_a_best_rate_at_the_edge_is_a_bound() -> None:
    inner = [point(b, 0.01 * b, width=1.3) for b in SIZES[:6]]
    alone = fit_rate_law(inner)
    # Capped at 1.28: the true best lies above, as the law says anyway.
    capped = fit_rate_law([*inner, *(point(b, 1.28, edge="highest") for b in SIZES[6:])])
    assert capped.exponent.value == pytest.approx(alone.exponent.value, abs=1e-3)
    assert capped.form == "power"
    assert "At 3 of 9 batch sizes" in capped.verdict
    # Taken at their word they would bend it.
    believed = fit_rate_law([*inner, *(point(b, 1.28) for b in SIZES[6:])])
    assert believed.exponent.value < 0.95 * alone.exponent.value  # type: ignore[operator]
    # On the wrong side it pulls.
    for edge, factor, sign in (("highest", 4.0, 1), ("lowest", 0.25, -1)):
        pulled = fit_rate_law([*inner, point(SIZES[-1], factor * 0.01 * SIZES[-1], edge=edge)])
        assert sign * (pulled.exponent.value - alone.exponent.value) > 0.02  # type: ignore[operator]


def test_the_order_of_the_points_does_not_matter() -> None:
    points = [found(lambda b: 0.01 * b**0.7, b, 1) for b in SIZES]
    law, turned = fit_rate_law(points), fit_rate_law(points[::-1])
    assert law == turned
    assert [p.batch_size for p in law.points] == SIZES


def test_a_point_is_the_vertex_between_clearly_worse_rates() -> None:
    rates = (0.1, 0.2, 0.4, 0.8, 1.6)
    costs = tuple(0.5 * math.log(rate / 0.45) ** 2 for rate in rates)
    exact = rate_point(8, Valley(rates, costs, (False,) * 5, 0.3))
    assert exact.learning_rate == pytest.approx(0.45)
    assert (exact.low, exact.high, exact.edge) == (0.2, 1.6, None)
    sharper = rate_point(8, Valley(rates, costs, (False,) * 5, 0.1))
    assert (sharper.low, sharper.high) == (0.2, 0.8)
    flat = rate_point(8, Valley(rates, costs, (False,) * 5, 10.0))
    assert (flat.low, flat.high) == (0.1, 1.6)


def test_a_point_beside_a_cliff_or_a_bound_is_the_rate_itself() -> None:
    rates = (0.1, 0.2, 0.4)
    for last, bound in ((math.inf, True), (2.0, True)):
        beside = rate_point(8, Valley(rates, (2.0, 1.0, last), (False, False, bound), 0.1))
        assert beside.learning_rate == 0.2
        assert (beside.low, beside.high) == (0.1, 0.4)


def test_a_point_at_an_end_is_flagged_and_of_a_tie_the_middle_is_taken() -> None:
    rates = (0.1, 0.2, 0.4)
    assert rate_point(8, Valley(rates, (1.0, 2.0, 3.0), (False,) * 3, 0.1)).edge == "lowest"
    assert rate_point(8, Valley(rates, (3.0, 2.0, 1.0), (False,) * 3, 0.1)).edge == "highest"
    assert rate_point(8, Valley(rates, (3.0, 1.0, 3.0), (False,) * 3, 0.1), edge="highest").learning_rate == 0.2
    tied = rate_point(8, Valley(rates, (1.0, 1.0, 1.0), (False,) * 3, 0.1))
    assert (tied.learning_rate, tied.edge) == (0.2, None)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([], "one best rate for each batch size"),
        ([point(8, 0.1), point(8, 0.2)], "one best rate for each batch size"),
        ([point(0, 0.1)], "one best rate for each batch size"),
        ([RatePoint(8, 0.1, 0.2, 0.3, None, 0.0)], "between their bounds"),
        ([RatePoint(8, 0.0, 0.0, 0.3, None, 0.0)], "above 0"),
    ],
)
def test_points_that_make_no_sense(points: list[RatePoint], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        fit_rate_law(points)


def test_a_valley_without_costs() -> None:
    with pytest.raises(ArgumentError, match="must have a cost"):
        rate_point(8, Valley((0.1,), (math.inf,), (True,), 0.1))

"""The band of the trade-off law: where it meets the law's own intervals, and how often it holds the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.fit import fit_tradeoff
from batchscope.fit.tradeoff_band import tradeoff_band

SIZES = [4 * 2**i for i in range(9)]


def noisy(critical: float, seed: int, spread: float = 0.06, sizes: Sequence[int] = SIZES) -> list[float]:
    generator = np.random.default_rng(seed)
    return [
        1e4 * (1 + b / critical) * math.exp(e)
        for b, e in zip(sizes, generator.normal(0, spread, len(sizes)), strict=True)
    ]


@settings(max_examples=15)
@given(critical=st.floats(10.0, 400.0), seed=st.integers(0, 10**6))
def test_the_middle_of_the_band_is_the_law(critical: float, seed: int) -> None:
    law = fit_tradeoff(SIZES, noisy(critical, seed))
    for point, found in zip(law.points, tradeoff_band(law, SIZES), strict=True):
        assert found.value == pytest.approx(point.predicted, rel=2e-3)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high  # type: ignore[operator]


@pytest.mark.parametrize("seed", range(3))
def test_far_out_the_band_is_the_interval_of_the_least_examples_and_of_the_least_updates(seed: int) -> None:
    law = fit_tradeoff(SIZES, noisy(70.0, seed))
    small, large = tradeoff_band(law, [1e-6, 1e9])
    assert [small.low, small.high] == pytest.approx([law.minimum_examples.low, law.minimum_examples.high], rel=1e-3)
    ends = [end / 1e9 for end in (large.low, large.high) if end is not None]
    assert ends == pytest.approx([law.minimum_updates.low, law.minimum_updates.high], rel=1e-3)


def test_the_band_is_that_of_every_pair_within_the_allowance() -> None:
    """Against a plain search over both numbers, one of the sizes a bound that lies above the law."""
    examples = [*noisy(60.0, 4)[:-1], math.inf]
    law = fit_tradeoff(SIZES, examples, spent=3e5)
    x, y = np.log(SIZES), np.log([*examples[:-1], 3e5])
    critical, least = np.meshgrid(np.linspace(2.0, 7.0, 1001), np.linspace(8.6, 9.8, 1201), indexing="ij")
    gaps = y - (least[..., None] + np.logaddexp(0.0, x - critical[..., None]))
    gaps[..., -1] = np.maximum(gaps[..., -1], 0.0)
    squares = (gaps**2).sum(-1)
    inside = squares <= squares.min() * (1 + 5.9873776 / 6)  # the 95% point of F(1, 6), eight sizes that are known
    for size, found in zip((2.0, 50.0, 2000.0), tradeoff_band(law, [2.0, 50.0, 2000.0]), strict=True):
        curve = (least + np.logaddexp(0.0, math.log(size) - critical))[inside]
        # Within the allowance the bound is taken as the fit takes it, in or out.
        assert [found.low, found.high] == pytest.approx([math.exp(curve.min()), math.exp(curve.max())], rel=0.03)


def test_the_band_holds_the_truth_as_often_as_it_says() -> None:
    places = [4.0, 64.0, 1024.0]
    held = np.zeros(len(places))
    for seed in range(80):
        law = fit_tradeoff(SIZES[::2], noisy(64.0, seed, sizes=SIZES[::2]))
        for i, found in enumerate(tradeoff_band(law, places)):
            held[i] += found.low <= 1e4 * (1 + places[i] / 64.0) <= found.high  # type: ignore[operator]
    assert (held >= 70).all(), held  # 0.95 · 80 = 76, less three standard deviations
    assert held.sum() < 3 * 80


def test_on_one_branch_the_band_is_narrow_along_the_data_and_opens_beyond() -> None:
    law = fit_tradeoff(SIZES, noisy(1e6, 1, spread=0.03))
    assert not law.critical_batch_size.resolved
    inside, beyond = tradeoff_band(law, [64.0, 1e6])
    assert inside.high / inside.low < 1.1  # type: ignore[operator]
    assert beyond.high / beyond.low > 10  # type: ignore[operator]


def test_few_sizes_give_a_line_without_a_band_and_fewer_nothing() -> None:
    line = tradeoff_band(fit_tradeoff([8, 64], [1e4, 1.5e4]), [8.0, 64.0])
    assert [found.value for found in line] == pytest.approx([1e4, 1.5e4], rel=1e-3)
    assert [(found.low, found.high) for found in line] == [(None, None)] * 2
    nothing = tradeoff_band(fit_tradeoff([8, 64], [1e4, math.inf]), [8.0])
    assert not nothing[0].resolved


def test_a_general_exponent_is_followed_with_its_exponent() -> None:
    sizes = [2**k for k in range(2, 13)]
    law = fit_tradeoff(sizes, [1e4 * (1 + (b / 100) ** 0.55) for b in sizes])
    assert law.form == "general exponent"
    for point, found in zip(law.points, tradeoff_band(law, sizes), strict=True):
        assert found.value == pytest.approx(point.predicted, rel=0.02)

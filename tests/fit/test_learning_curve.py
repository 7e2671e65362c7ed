"""The law of learning curves against curves that follow it, and what it says where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.errors import ArgumentError
from batchscope.fit.learning_curve import CriticalPrior, Curve, LearningCurve, fit_learning_curve


def truth(batch_size: float, examples: np.ndarray, *, critical: float = 200.0, growth: float = 0.4) -> np.ndarray:
    """Loss 0.2 + 20·x^(−1/2) with B_c = critical at 64,000 examples."""
    x = examples / (1 + batch_size / (critical * (examples / 64_000) ** growth))
    return 0.2 + 20 * x**-0.5


def curves(sizes: tuple[int, ...], most: float, noise: float = 0.0, seed: int = 0, **law: float) -> list[Curve]:
    generator = np.random.default_rng(seed)
    found = []
    for size in sizes:
        examples = np.geomspace(most / 16, most, 10)
        values = truth(size, examples, **law) + noise * generator.standard_normal(10)
        found.append(Curve(size, tuple(examples.tolist()), tuple(values.tolist())))
    return found


def quantiles(draws: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    return float(low), float(middle), float(high)


def test_within_what_was_seen_the_law_follows_the_curves() -> None:
    law = fit_learning_curve(curves((16, 64, 256, 1024), 64_000))
    for size in (16, 128, 1024):
        assert np.median(law.values(size, 64_000.0)) == pytest.approx(float(truth(size, np.array(64_000.0))), rel=0.01)
    low, middle, high = quantiles(law.critical_batch_size(64_000.0))
    assert low < 200 < high
    assert middle == pytest.approx(200, rel=0.25)


def test_beyond_it_the_interval_holds_the_truth_most_of_the_time() -> None:
    held = 0
    for seed in range(40):
        law = fit_learning_curve(curves((16, 64, 256), 32_000, noise=0.002, seed=seed), seed=seed)
        low, _, high = quantiles(law.values(64, 256_000.0))
        held += low <= float(truth(64, np.array(256_000.0))) <= high
    assert held >= 32  # 90% intervals, 40 times: fewer with a probability of 2%


def test_noise_widens_the_interval() -> None:
    widths = []
    for noise in (0.001, 0.02):
        low, _, high = quantiles(fit_learning_curve(curves((16, 256), 32_000, noise=noise)).values(64, 256_000.0))
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_examples_to_a_value_and_values_at_examples_are_inverse() -> None:
    law = fit_learning_curve(curves((16, 256), 64_000))
    examples = law.examples_to(128, 0.32)
    reached = np.isfinite(examples)
    assert reached.mean() > 0.9
    own = LearningCurve(
        law.reference_examples, law.value[reached], law.gap[reached], law.exponent[reached], law.critical[reached],
        law.growth[reached], law.relative_error, 0,
    )  # fmt: skip
    assert own.values(128, examples[reached]) == pytest.approx(0.32, rel=1e-6)


def test_a_value_below_the_floor_is_never_reached() -> None:
    law = fit_learning_curve(curves((16, 256), 64_000))
    assert np.isinf(law.examples_to(64, 0.05)).mean() > 0.95


def test_a_score_takes_over_what_the_loss_says_about_batch_sizes() -> None:
    loss = fit_learning_curve(curves((16, 256, 1024), 64_000))
    one = [Curve(c.batch_size, c.examples, tuple(0.5 * v - 1 for v in c.values)) for c in curves((64,), 64_000)]
    score = fit_learning_curve(one, shared=loss)
    assert np.median(score.critical) == pytest.approx(float(np.median(loss.critical)), rel=0.2)
    assert np.median(score.values(1024, 64_000.0)) == pytest.approx(
        float(0.5 * truth(1024, np.array(64_000.0)) - 1), abs=0.01
    )


def test_what_is_known_of_the_critical_batch_size_counts_where_the_curves_say_little() -> None:
    alone = curves((64,), 32_000)  # one batch size says nothing about others
    said = fit_learning_curve(alone, critical=CriticalPrior(8_000.0, 50.0, 0.1)).critical_batch_size(8_000.0)
    assert quantiles(said)[1] == pytest.approx(50.0, rel=0.1)
    unknown = quantiles(fit_learning_curve(alone).critical_batch_size(8_000.0))
    assert unknown[2] / unknown[0] > 50
    # Curves of many sizes overrule what is known vaguely: the truth at 64,000 examples is 200.
    wrong = fit_learning_curve(curves((16, 64, 256, 1024), 64_000), critical=CriticalPrior(64_000.0, 50.0, 1.0))
    assert quantiles(wrong.critical_batch_size(64_000.0))[1] == pytest.approx(200, rel=0.3)


def test_the_same_seed_gives_the_same_draws() -> None:
    one, other = (fit_learning_curve(curves((16, 64), 8000), seed=3) for _ in range(2))
    assert np.array_equal(one.value, other.value)


@pytest.mark.parametrize("points", [0, 1, 2])
def test_too_few_points_are_refused(points: int) -> None:
    with pytest.raises(ArgumentError, match="at least three points"):
        fit_learning_curve([Curve(8, tuple(range(1, points + 1)), tuple(1.0 / k for k in range(1, points + 1)))])


def test_a_flat_curve_is_refused() -> None:
    with pytest.raises(ArgumentError, match="must fall"):
        fit_learning_curve([Curve(8, (1.0, 2.0, 3.0, 4.0), (1.0,) * 4)])


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=12),
    st.integers(1, 4096),
    st.floats(1e-3, 1e3),
)
def test_whatever_the_curve_there_are_finite_numbers(values: list[float], size: int, scale: float) -> None:
    if len(set(values)) < 2:
        return
    examples = tuple(1000.0 * (k + 1) for k in range(len(values)))
    law = fit_learning_curve([Curve(size, examples, tuple(scale * v for v in values))])
    assert np.isfinite(law.values(size, 1000.0 * len(values))).all()
    assert (law.examples_to(size, min(values) * scale) > 0).all()

"""The law of the best learning rates against cases in closed form."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import batchscope.fit.rate_drift as module
from batchscope import Interval
from batchscope.fit.learning_curve import GROWTH, LearningCurve
from batchscope.fit.rate_drift import LEVEL_SPREAD, SCATTER, SLOPE_SPREAD, Bottom, fit_rate_drift


def curve_of(critical: float, *, growth: float = 0.5, reference: float = 1000.0, draws: int = 4) -> LearningCurve:
    one = np.ones(draws)
    return LearningCurve(reference, one, one, one, critical * one, growth * one, 0.0, 0)


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """B_s is what the curve says of the critical batch size."""
    monkeypatch.setattr(module, "CRITICAL_FACTOR", 0.0)


def test_one_bottom_moves_by_the_scaling_rule_and_the_usual_growth() -> None:
    law = fit_rate_drift([Bottom(64, 1000.0, 0.1, 0.1)], exponent=0.5)
    assert law.predict(64, 1000.0).value == pytest.approx(0.1, rel=1e-3)
    assert law.predict(256, 1000.0).value == pytest.approx(0.2, rel=1e-2)
    assert law.predict(64, 8000.0).value == pytest.approx(0.1 * 8 ** (-0.5 * GROWTH[0]), rel=0.02)


def test_bottoms_that_disagree_with_the_rule_bend_it() -> None:
    flat = [Bottom(size, 1000.0, 0.1, 0.05) for size in (16, 64, 256, 1024)]
    law = fit_rate_drift(flat, exponent=1.0)
    assert law.predict(1024, 1000.0).value == pytest.approx(0.1, rel=0.3)


def test_far_from_what_was_seen_less_is_known() -> None:
    law = fit_rate_drift([Bottom(64, 1000.0, 0.1, 0.1), Bottom(256, 1000.0, 0.2, 0.1)], exponent=0.5)
    near, far = law.predict(128, 1000.0), law.predict(4096, 100_000.0)
    assert width(near) < width(far)


@pytest.mark.usefixtures("certain")
def test_beyond_the_critical_batch_size_the_rate_no_longer_grows() -> None:
    law = fit_rate_drift([Bottom(16, 1000.0, 0.1, 0.05)], exponent=1.0, curve=curve_of(64.0))
    small, large = law.predict(8, 1000.0).value, law.predict(4096, 1000.0).value
    assert small == pytest.approx(0.1 * (1 + 64 / 16) / (1 + 64 / 8), rel=0.02)
    assert large == pytest.approx(0.1 * (1 + 64 / 16) / (1 + 64 / 4096), rel=0.02)


@pytest.mark.usefixtures("certain")
def test_a_rate_stands_still_until_the_critical_batch_size_has_come_by() -> None:
    # B_s is 64 after 1,000 examples and 1,024 after 256,000.
    law = fit_rate_drift([Bottom(512, 1000.0, 0.1, 0.01)], exponent=1.0, curve=curve_of(64.0))
    soon, late = law.predict(512, 4000.0).value, law.predict(512, 256_000.0).value
    assert soon == pytest.approx(0.1 * (1 + 64 / 512) / (1 + 128 / 512), rel=1e-3)
    assert late == pytest.approx(0.1 * (1 + 64 / 512) / (1 + 1024 / 512), rel=1e-3)


def test_where_the_rates_stop_growing_tells_of_the_critical_batch_size() -> None:
    true = 400.0
    seen = [Bottom(size, 1000.0, 1 / (1 + true / size), 0.05) for size in (8, 32, 128, 512, 2048)]
    law = fit_rate_drift(seen, exponent=1.0, curve=curve_of(100.0))
    said = math.exp(float(law.weights @ np.log(law.critical)))
    # The prior says 100, to within a factor of e.
    assert 200 < said < 600


def width(interval: Interval) -> float:
    return (interval.high or 0.0) / (interval.low or 1.0)


def test_a_bottom_at_the_edge_counts_for_less() -> None:
    sure, unsure = Bottom(64, 1000.0, 0.1, 0.1), Bottom(64, 1000.0, 0.4, 1.0)
    value = fit_rate_drift([sure, unsure], exponent=0.5).predict(64, 1000.0).value
    assert value is not None
    assert 0.1 < value < 0.14


def test_without_a_bottom_there_is_no_law() -> None:
    with pytest.raises(ValueError, match="no bottom"):
        fit_rate_drift([], exponent=1.0)


def test_a_size_that_was_seen_keeps_its_share_of_what_sets_it_apart() -> None:
    usual = [Bottom(size, 1e4, 0.001 * size, 0.25) for size in (16, 32, 128, 256)]
    found = fit_rate_drift([*usual, Bottom(64, 1e4, 0.128, 0.25)], exponent=1.0)
    other = dataclasses.replace(found, own={})
    alone, law = (law.predict(64, 1e4).value for law in (found, other))
    assert alone is not None
    assert law is not None
    # As sure of its valley as sizes are alike: half of the distance is its own.
    assert math.log(alone / law) == pytest.approx(math.log(0.128 / law) / 2)
    assert found.predict(48, 1e4) == other.predict(48, 1e4)


def test_several_places_of_a_size_say_how_its_rate_drifts() -> None:
    places = [1000.0 * 2**k for k in range(6)]
    falling = [Bottom(64, place, 0.1 * (place / 1000) ** -0.35, 0.1) for place in places]
    steady = [dataclasses.replace(bottom, learning_rate=0.1) for bottom in falling]
    drifts = []
    for bottoms in (falling, steady):
        law = fit_rate_drift(bottoms, exponent=0.5)
        near, far = (law.predict(64, examples).value or 0.0 for examples in (32_000.0, 320_000.0))
        drifts.append(math.log(far / near) / math.log(10))
    expected = -0.5 * GROWTH[0]
    assert -0.35 < drifts[0] < expected < drifts[1] < 0


@pytest.mark.usefixtures("certain")
def test_places_of_one_size_share_what_is_its_own() -> None:
    # The posterior of a mixed model, worked out with the size's own part as one more unknown.
    bottoms = [Bottom(64, 1000.0, 0.1, 0.2), Bottom(64, 4000.0, 0.12, 0.3), Bottom(256, 2000.0, 0.15, 0.1)]
    law = fit_rate_drift(bottoms, exponent=0.5, curve=curve_of(100.0))
    limits = np.array([-math.log1p(100.0 * math.sqrt(b.examples / 1000.0) / b.batch_size) for b in bottoms])
    sizes = np.array([b.batch_size for b in bottoms])
    rows = np.stack([np.ones(3), limits - limits.mean(), sizes == 64, sizes == 256], axis=1)
    seen = np.array([math.log(b.learning_rate) for b in bottoms])
    mean = np.array([seen.mean(), 0.5, 0.0, 0.0])
    prior = np.diag([1 / s**2 for s in (LEVEL_SPREAD, SLOPE_SPREAD, SCATTER, SCATTER)])
    noise = np.diag([1 / b.spread**2 for b in bottoms])
    posterior = np.linalg.solve(prior + rows.T @ noise @ rows, prior @ mean + rows.T @ noise @ seen)
    np.testing.assert_allclose(law.mean[0], posterior[:2], rtol=1e-9)
    assert [law.own[64][0][0], law.own[256][0][0]] == pytest.approx(posterior[2:].tolist(), rel=1e-9)
    assert law.exponent == pytest.approx(posterior[1])


def test_the_same_seed_gives_the_same_law() -> None:
    bottoms = [Bottom(32, 1e4, 0.1, 0.1), Bottom(128, 1e4, 0.4, 0.1)]
    first, second, other = (fit_rate_drift(bottoms, exponent=1.0, curve=curve_of(64.0), seed=s) for s in (1, 1, 2))
    assert first.predict(64, 1e5) == second.predict(64, 1e5)
    assert first.predict(64, 1e5) != other.predict(64, 1e5)

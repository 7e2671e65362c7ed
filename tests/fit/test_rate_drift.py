"""The law of the best learning rates against cases in closed form."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from batchscope import Interval
from batchscope.fit.rate_drift import (
    DRIFT,
    DRIFT_SPREAD,
    LEVEL_SPREAD,
    SCATTER,
    SLOPE_SPREAD,
    Bottom,
    fit_rate_drift,
)


def test_one_bottom_moves_by_the_scaling_rule_and_the_usual_drift() -> None:
    law = fit_rate_drift([Bottom(64, 1000.0, 0.1, 0.1)], exponent=0.5)
    assert law.predict(64, 1000.0).value == pytest.approx(0.1, rel=1e-3)
    assert law.predict(256, 1000.0).value == pytest.approx(0.2, rel=1e-2)
    assert law.predict(64, 8000.0).value == pytest.approx(0.1 * 8**DRIFT, rel=1e-2)


def test_bottoms_that_disagree_with_the_rule_bend_it() -> None:
    flat = [Bottom(size, 1000.0, 0.1, 0.05) for size in (16, 64, 256, 1024)]
    law = fit_rate_drift(flat, exponent=1.0)
    assert law.predict(1024, 1000.0).value == pytest.approx(0.1, rel=0.3)


def test_far_from_what_was_seen_less_is_known() -> None:
    law = fit_rate_drift([Bottom(64, 1000.0, 0.1, 0.1), Bottom(256, 1000.0, 0.2, 0.1)], exponent=0.5)
    near, far = law.predict(128, 1000.0), law.predict(4096, 100_000.0)
    assert width(near) < width(far)


def test_beyond_the_critical_batch_size_the_rate_no_longer_grows() -> None:
    law = fit_rate_drift([Bottom(16, 1000.0, 0.1, 0.05)], exponent=1.0, saturation=64.0)
    small, large = law.predict(8, 1000.0).value, law.predict(4096, 1000.0).value
    assert small == pytest.approx(0.1 * 8 / (1 + 8 / 64) / (16 / (1 + 16 / 64)), rel=0.02)
    assert large == pytest.approx(0.1 * 64 / (1 + 64 / 4096) / (16 / (1 + 16 / 64)), rel=0.02)


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
    law = fit_rate_drift(falling, exponent=0.5)
    assert DRIFT > law.mean[2] > -0.35
    steady = fit_rate_drift([dataclasses.replace(bottom, learning_rate=0.1) for bottom in falling], exponent=0.5)
    assert DRIFT < steady.mean[2] < 0.05
    last = falling[-1]
    there, steadily = (found.predict(64, 10 * last.examples).value for found in (law, steady))
    assert there is not None
    assert steadily is not None
    assert there < steadily


def test_places_of_one_size_share_what_is_its_own() -> None:
    # The posterior of a mixed model, worked out with the size's own part as one more unknown.
    bottoms = [Bottom(64, 1000.0, 0.1, 0.2), Bottom(64, 4000.0, 0.12, 0.3), Bottom(256, 2000.0, 0.15, 0.1)]
    law = fit_rate_drift(bottoms, exponent=0.5)
    size = math.exp(sum(math.log(b.batch_size) for b in bottoms) / 3)
    examples = math.exp(sum(math.log(b.examples) for b in bottoms) / 3)
    rows = np.array(
        [
            [
                1.0,
                math.log(b.batch_size / size),
                math.log(b.examples / examples),
                float(b.batch_size == 64),
                float(b.batch_size == 256),
            ]
            for b in bottoms
        ]
    )
    seen = np.array([math.log(b.learning_rate) for b in bottoms])
    mean = np.array([seen.mean(), 0.5, DRIFT, 0.0, 0.0])
    prior = np.diag([1 / s**2 for s in (LEVEL_SPREAD, SLOPE_SPREAD, DRIFT_SPREAD, SCATTER, SCATTER)])
    weights = np.diag([1 / b.spread**2 for b in bottoms])
    posterior = np.linalg.solve(prior + rows.T @ weights @ rows, prior @ mean + rows.T @ weights @ seen)
    np.testing.assert_allclose(law.mean, posterior[:3], rtol=1e-9)
    assert [law.own[64][0], law.own[256][0]] == pytest.approx(posterior[3:].tolist(), rel=1e-9)

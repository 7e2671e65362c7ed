"""Log speeds: what two curves say of each other, and a Gaussian process that knows what it does not know."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from batchscope.search.candidates import Ended, Observation, Point, Setting
from batchscope.search.speed import SLOWEST, Envelope, SpeedPrior, Speeds

PRIOR = SpeedPrior()
HORIZON = math.log(10.0)


def walk(
    setting: Setting,
    speed: float,
    *,
    until: float = 10.0,
    ended: Ended | None = None,
    scatter: float = 0.0,
    seed: int = 0,
) -> Observation:
    """A candidate on the common curve 2·(1 + s·t)^(−1/2)."""
    times = np.geomspace(0.05, until, 25)
    points = [Point(0, 0, 0.0, 2.0, 0.01)]
    for k, t in enumerate(times.tolist(), 1):
        points.append(Point(k, k, t, 2 * (1 + speed * t) ** -0.5))
    if ended == "diverged":
        points[-1] = Point(points[-1].examples, points[-1].updates, points[-1].seconds, math.inf)
    return Observation(setting, tuple(points), ended)


def speeds(*observations: Observation, weight: Callable[[int], float] = lambda size: 1.0) -> Speeds:
    return Speeds(observations, HORIZON, PRIOR, weight)


FAST, SLOW = Setting(64, 0.1), Setting(64, 0.8)


@pytest.mark.parametrize("ratio", [1.5, 3.0, 6.0])
def test_one_curve_at_two_speeds_is_told_by_their_ratio(ratio: float) -> None:
    found = speeds(walk(FAST, 10.0), walk(SLOW, 10.0 / ratio))
    observed = {(round(x[1], 3), round(x[2], 3)): z for x, z in zip(found._data.x, found._data.z, strict=True)}
    rates = {setting: round(math.log2(setting.learning_rate) - 3, 3) for setting in (FAST, SLOW)}
    at_end = round(HORIZON, 3)
    assert observed[rates[FAST], at_end] == pytest.approx(0.0, abs=1e-9)
    # Between its points the envelope is a straight line in the log of the time.
    assert observed[rates[SLOW], at_end] == pytest.approx(-math.log(ratio), abs=0.01)
    mean, covariance = found.posterior([FAST, SLOW])
    assert mean[0] - mean[1] == pytest.approx(math.log(ratio), abs=0.25)
    assert np.sqrt(np.diag(covariance)).max() < 0.2


def test_what_diverged_is_as_slow_as_can_be() -> None:
    found = speeds(walk(FAST, 10.0), walk(SLOW, 20.0, ended="diverged"))
    assert found._data.z.min() == SLOWEST
    mean, _ = found.posterior([FAST, SLOW])
    assert mean[0] - mean[1] > 1.5


def test_far_away_the_posterior_is_the_prior() -> None:
    """Its deviation alone: the mean falls off with the distance from the fastest setting."""
    found = speeds(walk(FAST, 10.0), walk(SLOW, 5.0))
    here, far = found.at_horizon([FAST]), found.at_horizon([Setting(64, 1e12)])
    assert found.posterior_at(far)[1][0, 0] == pytest.approx(PRIOR.deviation**2, rel=1e-6)
    assert found.means(far)[0] == pytest.approx(found._mean(far)[0], abs=1e-6)
    assert found.posterior_at(here)[1][0, 0] < 0.1 * PRIOR.deviation**2
    empty = speeds()
    mean, covariance = empty.posterior([FAST, SLOW])
    assert mean.tolist() == [PRIOR.mean] * 2
    assert np.diag(covariance) == pytest.approx([PRIOR.deviation**2] * 2)


def test_covariances_row_by_row_are_those_of_the_posterior() -> None:
    found = speeds(walk(FAST, 10.0), walk(SLOW, 3.0, until=2.0), walk(Setting(8, 0.02), 2.0, until=0.5))
    generator = np.random.default_rng(0)
    a, b = generator.normal([6.0, -5.0, 1.0], [2.0, 2.0, 1.0], (2, 7, 3))
    mean, covariance = found.posterior_at(np.concatenate([a, b]))
    assert found.covariances(a, b) == pytest.approx(np.diag(covariance[:7, 7:]), abs=1e-9)
    assert found.covariances(a, a) == pytest.approx(np.diag(covariance)[:7], abs=1e-9)
    assert found.means(np.concatenate([a, b])) == pytest.approx(mean, abs=1e-9)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9


def test_the_order_of_candidates_makes_no_difference() -> None:
    several = [walk(FAST, 10.0), walk(SLOW, 3.0, until=2.0), walk(Setting(8, 0.02), 2.0, until=0.5)]
    settings = [o.setting for o in several]
    forwards, backwards = speeds(*several).posterior(settings), speeds(*several[::-1]).posterior(settings)
    assert forwards[0] == pytest.approx(backwards[0], abs=1e-9)
    assert forwards[1] == pytest.approx(backwards[1], abs=1e-9)


def test_seconds_that_count_twice_make_a_setting_half_as_fast() -> None:
    twin = Setting(32, 0.1 / math.sqrt(2))
    same = [walk(FAST, 10.0), walk(twin, 10.0)]
    plain = speeds(*same).posterior([FAST, twin])[0]
    dear = speeds(*same, weight=lambda size: 2.0 if size == 32 else 1.0).posterior([FAST, twin])[0]
    assert plain[0] - plain[1] == pytest.approx(0.0, abs=0.1)
    assert dear[0] - dear[1] == pytest.approx(math.log(2), abs=0.2)


def test_an_envelope_is_the_least_time_to_a_loss() -> None:
    times = np.array([1.0, 2.0, 4.0, 8.0])
    envelope = Envelope([(times, np.array([2.0, 1.5, 1.0, 0.9])), (times, np.array([2.2, 1.8, 0.8, 0.7]))])
    assert envelope.log_time(1.5) == pytest.approx(math.log(2.0))
    assert envelope.log_time(0.8) == pytest.approx(math.log(4.0))
    assert envelope.log_time(0.7) == pytest.approx(math.log(8.0))
    assert envelope.log_time(5.0) == 0.0
    assert envelope.log_time(math.inf) == -math.inf
    assert envelope.slope(1.5) > 0


def test_one_lucky_batch_does_not_set_the_envelope() -> None:
    """A first batch of a few examples, whose loss is off by 1, says nothing against a curve that is known well."""
    lucky = list(walk(SLOW, 0.01, until=0.4).points)
    lucky[1] = Point(1, 1, 0.05, 0.8, 1.0)
    found = speeds(walk(FAST, 10.0, until=0.4), Observation(SLOW, tuple(lucky)))
    mean, _ = found.posterior([FAST, SLOW])
    assert mean[0] - mean[1] > 0.5

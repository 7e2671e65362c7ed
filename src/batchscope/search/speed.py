"""How fast each setting trains beside the fastest one, from curves of very different lengths.

Two curves of one network are, in good approximation, one curve at two speeds: the setting that needs twice the time for
one loss needs about twice the time for the next. So a candidate is summed up by its *log speed*: with E(y) the least
time in which any candidate has come down to the loss y,

    z = log(E(y) / t)

where y is the candidate's loss after t seconds. It is 0 for the fastest and −log 2 for one that is half as fast. What
happens at t does not hold for all of the way: z drifts, smoothly in log t. Log speeds of all settings at all horizons
are therefore one Gaussian process over (log B, log ε, log t) (Rasmussen and Williams 2006; a freeze–thaw search,
Swersky et al. 2014, arXiv 1406.3896, in time to a loss instead of loss). Its posterior at the horizon of the whole run
says which setting is the fastest, how sure that is, and what training any setting further would teach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import isotonic_regression

from batchscope.search.candidates import Observation, Setting

Floats = NDArray[np.float64]

# A candidate further behind than this is as good as stopped: z is bounded there, in e-folds of time.
SLOWEST = -2.5
# Points of one candidate enter the process a factor of 2 apart in time: nearer ones say the same again.
SPACING = math.log(2.0)
MOST_POINTS = 2
# A loss has fallen clearly by so many of its standard errors; before, a candidate has no speed, and is as slow as
# others show it to be, once it lags by more than so many e-folds of time. Both are judgement, not fitted.
CLEAR_FALL, SAME_TIME = 2.0, 0.1
# Curves are alike up to this share of the fall that was seen: where the fastest one hardly falls, as on a plateau at
# the beginning, the time to a loss says little.
MISFIT = 0.05
# Drift is in proportion to the distance from the fastest setting, up to so many factors of two.
DRIFT_OCTAVES = 2.0


@dataclass(frozen=True)
class SpeedPrior:
    """What is expected of log speeds before anything was trained; fitted on recorded curves (``make bench-policy``).

    Attributes:
        mean: Of a setting picked at random, in e-folds.
        deviation: Standard deviation about it, in e-folds.
        batch_octaves: Factors of two in the batch size over which speeds are alike.
        rate_octaves: Likewise in the learning rate, along ε ∝ √B.
        horizon_folds: E-folds of training time over which speeds are alike.
        rate_drift: By how much the log speed of a setting changes for each e-fold of its rate and each of training
            time: negative, since the longest runs want the smallest rates.
        batch_drift: Likewise for each e-fold of the batch size: positive, since late gradients are noisy.
        noise: Standard deviation of one observation, beside what its loss is known to scatter.
        early_noise: Likewise for each e-fold of training time that is still ahead: what a curve's first moments show
            of its speed later on is off by 0.6 e-folds at a 64th of the way, and by 0.2 half-way.
        batch_width: Factors of two in the batch size, away from the fastest one seen, that cost one e-fold of speed.
        rate_width: Likewise in the learning rate.
    """

    mean: float = -0.3
    deviation: float = 1.0
    batch_octaves: float = 3.0
    rate_octaves: float = 2.5
    horizon_folds: float = 8.0
    rate_drift: float = -0.05
    batch_drift: float = 0.1
    noise: float = 0.12
    early_noise: float = 0.28
    batch_width: float = 6.0
    rate_width: float = 5.0


class Envelope:
    """The least time in which any candidate has come down to a loss, on straight lines in the log of the time.

    Args:
        curves: Times and losses of each candidate, ascending in time.
    """

    def __init__(self, curves: Sequence[tuple[Floats, Floats]]) -> None:
        times = np.unique(np.concatenate([t for t, _ in curves])) if curves else np.array([1.0])
        losses = np.full(len(times), np.inf)
        for t, y in curves:
            lowest = np.minimum.accumulate(y)
            own = np.interp(np.log(times), np.log(t), lowest, left=np.inf, right=lowest[-1])
            losses = np.minimum(losses, own)
        losses = np.minimum.accumulate(losses)
        finite = np.isfinite(losses)
        self._logs, self._losses = np.log(times[finite]), losses[finite]

    @property
    def fall(self) -> float:
        """By how much the loss has fallen in all."""
        return float(self._losses[0] - self._losses[-1]) if len(self._losses) else 0.0

    def log_time(self, loss: float) -> float:
        """Log of the least time in which a loss was reached; of the first time seen where it was undercut then.

        Args:
            loss: Any number.
        """
        if not len(self._losses) or not math.isfinite(loss):
            return -math.inf
        if loss >= self._losses[0]:
            return float(self._logs[0])
        falling = np.concatenate([[True], np.diff(self._losses) < 0])
        return float(np.interp(-loss, -self._losses[falling], self._logs[falling]))

    def slope(self, loss: float) -> float:
        """By how much the loss falls for each e-fold of time, about where it is ``loss``.

        Args:
            loss: Any number.
        """
        at = self.log_time(loss)
        if not math.isfinite(at) or len(self._logs) < 2:
            return math.nan
        low, high = np.interp([at - SPACING, at + SPACING], self._logs, self._losses)
        width = min(at + SPACING, self._logs[-1]) - max(at - SPACING, self._logs[0])
        return float((low - high) / width) if width > 0 else math.nan


@dataclass(frozen=True)
class _Data:
    """Coordinates of observed log speeds with their values and noise variances."""

    x: Floats
    z: Floats
    variance: Floats


def coordinates(setting: Setting, log_seconds: float) -> tuple[float, float, float]:
    """Where the process has a setting at a horizon: octaves of the batch, of ε/√B, and e-folds of time.

    The square-root rule lies in the middle of the exponents 0 to 1 that best rates are seen to follow, so that none of
    them is far away in these coordinates.

    Examples:
        >>> coordinates(Setting(16, 4.0), 0.0)
        (4.0, 0.0, 0.0)
    """
    octaves = math.log2(setting.batch_size)
    return octaves, math.log2(setting.learning_rate) - 0.5 * octaves, log_seconds


class Speeds:
    """The posterior of log speeds.

    Args:
        observations: All candidates.
        log_horizon: Log of the (weighted) seconds that the whole run takes; what is asked for holds there.
        prior: What is expected beforehand.
        weight: What a second counts for at a batch size: 1 for time, examples per second where examples are counted.
    """

    def __init__(
        self,
        observations: Sequence[Observation],
        log_horizon: float,
        prior: SpeedPrior,
        weight: Callable[[int], float] = lambda batch_size: 1.0,
    ) -> None:
        self.prior, self.log_horizon, self.weight = prior, log_horizon, weight
        curves = [curve for o in observations if (curve := _curve(o, weight(o.setting.batch_size))) is not None]
        self.envelope = Envelope(curves)
        self._data = self._observed(observations)
        self._fit()

    def _observed(self, observations: Sequence[Observation]) -> _Data:
        x: list[tuple[float, float, float]] = []
        z: list[float] = []
        variance: list[float] = []
        for observation in observations:
            for at, shown, error in _spaced(observation, math.log(self.weight(observation.setting.batch_size))):
                # A loss within its scatter of the first one says at most that others were sooner to fall clearly.
                initial, scatter = observation.points[0].loss, CLEAR_FALL * error
                is_clear = not abs(initial - shown) < scatter
                loss = shown if is_clear else initial - scatter
                behind = max(self.envelope.log_time(loss) - at, SLOWEST) if math.isfinite(loss) else SLOWEST
                if not is_clear and behind > -SAME_TIME:
                    continue
                slope = self.envelope.slope(loss)
                is_exact = error == 0 or not math.isfinite(error) or not math.isfinite(loss)
                off = math.hypot(error, MISFIT * self.envelope.fall)
                known = 0.0 if is_exact else min(off / slope, 1.0) if slope > 0 else 1.0
                x.append(coordinates(observation.setting, at))
                z.append(behind)
                variance.append(float(self.noise_variance(np.array(at))) + known**2)
        return _Data(np.array(x).reshape(-1, 3), np.array(z), np.array(variance))

    def noise_variance(self, log_seconds: Floats) -> Floats:
        """Variance of an observed log speed about what holds for the whole run.

        Args:
            log_seconds: Log of the (weighted) seconds after which it is observed.
        """
        ahead = np.maximum(self.log_horizon - log_seconds, 0.0)
        return np.asarray(self.prior.noise**2 + (self.prior.early_noise * ahead) ** 2)

    def _fit(self) -> None:
        data = self._data
        residual = data.z - self._mean(data.x)
        if not len(residual):
            return
        covariance = self._kernel(data.x, data.x) + np.diag(data.variance)
        self._root = np.linalg.cholesky(covariance)
        self._weights = cho_solve((self._root, True), residual)

    def _mean(self, x: Floats) -> Floats:
        """Prior mean: constant at the run's horizon, and drifting on the way there about the fastest setting seen."""
        prior = self.prior
        if not len(self._data.x):
            return np.full(len(x), prior.mean)
        ahead = self.log_horizon - x[:, 2]
        reach = DRIFT_OCTAVES
        middle = self._data.x[int(np.argmax(self._data.z + 1e-3 * self._data.x[:, 2]))]
        rate = np.clip(x[:, 1] - middle[1], -reach, reach) * math.log(2.0)
        batch = np.clip(x[:, 0] - middle[0], -reach, reach) * math.log(2.0)
        drift = -ahead * (prior.rate_drift * rate + prior.batch_drift * batch)
        valley = ((x[:, 0] - middle[0]) / prior.batch_width) ** 2 + ((x[:, 1] - middle[1]) / prior.rate_width) ** 2
        return np.asarray(prior.mean + drift - valley)

    def _kernel(self, a: Floats, b: Floats) -> Floats:
        return _covariance(a[:, None, :] - b[None, :, :], self.prior)

    def at_horizon(self, settings: Sequence[Setting]) -> Floats:
        """Coordinates of settings at the horizon of the whole run."""
        return np.array([coordinates(s, self.log_horizon) for s in settings]).reshape(-1, 3)

    def posterior(self, settings: Sequence[Setting]) -> tuple[Floats, Floats]:
        """Mean and covariance of log speeds at the horizon of the whole run.

        Args:
            settings: S of them.

        Returns:
            S and S×S numbers.
        """
        return self.posterior_at(self.at_horizon(settings))

    def expected(self, settings: Sequence[Setting]) -> Floats:
        """Mean of log speeds at the horizon of the whole run, S numbers."""
        return self.means(self.at_horizon(settings))

    def means(self, x: Floats) -> Floats:
        """Posterior mean of log speeds at N×3 coordinates."""
        mean = self._mean(x)
        return mean + self._kernel(x, self._data.x) @ self._weights if len(self._data.x) else mean

    def posterior_at(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and covariance at any coordinates, N×3."""
        mean, covariance = self._mean(x), self._kernel(x, x)
        if not len(self._data.x):
            return mean, covariance
        across = self._kernel(x, self._data.x)
        explained = solve_triangular(self._root, across.T, lower=True)
        return mean + across @ self._weights, covariance - explained.T @ explained

    def covariances(self, a: Floats, b: Floats) -> Floats:
        """Posterior covariance of each row of ``a`` with the same row of ``b``, N×3 coordinates both."""
        prior = _covariance(a - b, self.prior)
        if not len(self._data.x):
            return prior
        explained = [solve_triangular(self._root, self._kernel(self._data.x, x), lower=True) for x in (a, b)]
        return np.asarray(prior - (explained[0] * explained[1]).sum(0))


def _covariance(apart: Floats, prior: SpeedPrior) -> Floats:
    """Prior covariance of places that lie so far apart, …×3: Matérn 3/2 over settings, exponential over log time."""
    batch, rate = apart[..., 0] / prior.batch_octaves, apart[..., 1] / prior.rate_octaves
    distance = np.sqrt(3.0 * (batch**2 + rate**2))
    time = np.exp(-np.abs(apart[..., 2]) / prior.horizon_folds)
    return np.asarray(prior.deviation**2 * (1.0 + distance) * np.exp(-distance) * time)


def _curve(observation: Observation, weight: float) -> tuple[Floats, Floats] | None:
    """Times and losses; the loss of fresh weights stands at the time of the first point, over e^2.5."""
    points = [p for p in observation.points if math.isfinite(p.loss)]
    times = [p.seconds for p in points]
    first = next((t for t in times if t > 0), None)
    if first is None:
        return None
    times = [t if t > 0 else first * math.exp(SLOWEST) for t in times]
    losses = np.array([p.loss for p in points])
    errors = np.array([p.error if math.isfinite(p.error) else 0.0 for p in points])
    errors = np.maximum(errors, 1e-3 * np.ptp(losses) + 1e-12)
    # The falling curve nearest to the points: the lowest of many that scatter would be one of chance.
    falling = isotonic_regression(losses, weights=1 / errors**2, increasing=False).x
    return weight * np.array(times), np.asarray(falling)


def _spaced(observation: Observation, log_weight: float) -> list[tuple[float, float, float]]:
    """Log seconds, loss and its error at the last point and at earlier ones, each a factor of 2 before the next."""
    points = [p for p in observation.points if p.seconds > 0]
    found: list[tuple[float, float, float]] = []
    if observation.ended in ("diverged", "failed") and points:
        return [(math.log(points[-1].seconds) + log_weight, math.inf, 0.0)]
    for point in reversed(points):
        at = math.log(point.seconds) + log_weight
        if not found or found[-1][0] - at >= SPACING:
            found.append((at, point.loss, point.error))
        if len(found) == MOST_POINTS:
            break
    return found

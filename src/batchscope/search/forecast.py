"""How long a run takes to a score, and what it scores after a time, from the beginning of its curve.

With x the time over that of the last point seen, a learning curve y, the score with its sign changed, goes like

    y(x) = y₁ − A·(1 − x^(−p))/p,

a power of the time that levels off where p > 0 (Hestness et al. 2017, arXiv 1712.00409), a straight line in the log of
the time for p = 0, and a curve that still speeds up for p < 0, as those of language models do at first. For a given p
it is linear in y₁ and A, whose posterior is a closed form; p is summed over a grid. What a short curve leaves open is
left to the prior of p, so that a forecast from a twentieth of the way is as wide as it should be. Of a score with a
bound, such as an accuracy, y is the log of what is missing to it: forecasts of recorded accuracies from an eighth of
the way are then off by a factor of 2.1 in the geometric mean, and of 3.2 otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Prior of p: normal with this mean and standard deviation, of which 0, 0.15 and 0.3, and 0.3, 0.4 and 0.5 were tried on
# the curves of seven networks (benchmarks/ground_truth/real): these had the least bias and error.
EXPONENT, EXPONENT_SPREAD = 0.15, 0.5
EXPONENTS = np.linspace(-0.9, 1.5, 49)
# Points from so many times the last one's time on are fitted: earlier ones belong to another regime.
WINDOW = 10.0
# Three points are the fewest that a curve can be fitted to.
LEAST_POINTS = 3
# The law is not exact: points lie off it by this share of what the window spans, beside their own scatter.
MISFIT = 0.03
# People ask for scores that can be reached: a run longer than this many times what was seen is not believed.
LONGEST = 300.0
NEARLY_ZERO = 1e-6
# How many updates the runs of public examples take: log-normal about this number with so many e-folds. Of 0.8 to 9
# e-folds these had the least error on recorded curves: forecasts from an eighth of the way are off by a factor of 1.9
# in the geometric mean, those from a thirty-second of it by 2.0 and without bias; with 9 by 2.7, and too short by 1.6.
UPDATES, UPDATES_FOLDS = 2000.0, 1.2


@dataclass(frozen=True)
class CurveForecast:
    """Draws of a learning curve's law.

    Attributes:
        value: y₁, where the curve stands at the last point's time, of each draw.
        slope: A, by how much it falls there for each e-fold of the time; above 0.
        exponent: p.
        last_seconds: The last point's time.
        most: The bound of the score; infinite where it has none.
        in_sight: Share of the draws that come to the score that is asked for.
    """

    value: Floats
    slope: Floats
    exponent: Floats
    last_seconds: float
    most: float = math.inf
    in_sight: float = 1.0

    def reaching(self, score: float, update_seconds: float) -> CurveForecast:
        """The draws that come to a score, each as often as its number of updates is likely.

        People ask for scores that can be reached, and runs take a usual number of updates.

        Args:
            score: Higher is better.
            update_seconds: Seconds of an update.

        Returns:
            As many draws; all as they are where none comes to the score.
        """
        seconds = self.seconds_to(score)
        finite = np.flatnonzero(np.isfinite(seconds))
        if not len(finite):
            return replace(self, in_sight=0.0)
        folds = np.log(seconds[finite] / (UPDATES * update_seconds)) / UPDATES_FOLDS
        shares = np.cumsum(np.exp(((folds**2).min() - folds**2) / 2))
        places = (np.arange(len(seconds)) + 0.5) / len(seconds)
        chosen = finite[np.minimum(np.searchsorted(shares / shares[-1], places), len(finite) - 1)]
        return replace(
            self,
            value=self.value[chosen],
            slope=self.slope[chosen],
            exponent=self.exponent[chosen],
            in_sight=len(finite) / len(seconds),
        )

    def seconds_to(self, score: float) -> Floats:
        """Seconds to a score, for each draw; infinite where it is beyond the curve's limit.

        Args:
            score: Higher is better.
        """
        if score >= self.most:
            return np.full(len(self.value), math.inf)
        wanted = (self.value + float(_unbounded(score, self.most))) / self.slope  # (1 − x^(−p))/p
        left = 1 - self._exponent * wanted
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(left > 0, np.exp(-np.log(np.maximum(left, 1e-300)) / self._exponent), np.inf)
        return np.asarray(np.where(ratio > LONGEST, np.inf, ratio * self.last_seconds))

    def score_at(self, seconds: float) -> Floats:
        """The score after some seconds, for each draw.

        Args:
            seconds: Of training in all.
        """
        drawn = np.asarray(_gain(seconds / self.last_seconds, self._exponent) * self.slope - self.value)
        return drawn if math.isinf(self.most) else np.asarray(self.most - np.exp(-drawn))

    @property
    def _exponent(self) -> Floats:
        return np.where(np.abs(self.exponent) < NEARLY_ZERO, NEARLY_ZERO, self.exponent)


def fit_curve(
    seconds: Sequence[float],
    scores: Sequence[float],
    errors: Sequence[float] | None = None,
    *,
    most: float = math.inf,
    draws: int = 400,
    seed: int = 0,
) -> CurveForecast | None:
    """Fit the law to a curve, as draws from its posterior.

    Args:
        seconds: Times, ascending and above 0.
        scores: Scores there, higher is better.
        errors: Their standard errors; None: not known.
        most: What no score exceeds; it is left out of account where one does.
        draws: How many to draw.
        seed: Of the draws.

    Returns:
        The draws; None with fewer than three points, or where the score has not risen.

    Examples:
        >>> t = np.geomspace(1.0, 10.0, 12)
        >>> law = fit_curve(t, -(0.2 + t**-0.5))
        >>> bool(abs(np.median(law.score_at(20.0)) + 0.2 + 20**-0.5) < 0.02)
        True
    """
    t, known = np.asarray(seconds, float), np.asarray(scores, float)
    most = most if (known < most).all() else math.inf
    y = -_unbounded(known, most)
    kept = (t >= t[-1] / WINDOW) & np.isfinite(y) if len(t) else np.zeros(0, bool)
    t, y = t[kept], y[kept]
    if len(t) < LEAST_POINTS:
        return None
    own = np.zeros(len(t)) if errors is None else np.asarray(errors, float)[kept]
    own = own if math.isinf(most) else own / np.exp(y)
    span = float(np.ptp(y))
    if not span > 0:
        return None
    variance = own**2 + (MISFIT * span) ** 2
    x = t / t[-1]
    posteriors = [_linear(-_gain(x, p if abs(p) > NEARLY_ZERO else NEARLY_ZERO), y, variance) for p in EXPONENTS]
    weights = np.array([density for density, _, _ in posteriors])
    weights -= ((EXPONENTS - EXPONENT) / EXPONENT_SPREAD) ** 2 / 2
    weights = np.exp(weights - weights.max())
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(EXPONENTS), size=draws, p=weights / weights.sum())
    normal = generator.standard_normal((draws, 2))
    found = np.array([posteriors[k][1] + posteriors[k][2] @ n for k, n in zip(chosen, normal, strict=True)])
    value, slope = found[:, 0], found[:, 1]
    falling = slope > 0
    if not falling.any():
        return None
    return CurveForecast(value[falling], slope[falling], EXPONENTS[chosen[falling]], float(t[-1]), most)


def _unbounded(scores: Floats | float, most: float) -> Floats:
    """Scores on a scale without a bound: minus the log of what is missing to it."""
    scores = np.asarray(scores, float)
    if math.isinf(most):
        return scores
    return np.asarray(-np.log(np.maximum(most - scores, np.finfo(float).tiny)))


def _gain(x: Floats | float, exponent: Floats | float) -> Floats:
    """(1 − x^(−p))/p."""
    return np.asarray((1 - np.asarray(x, float) ** -np.asarray(exponent, float)) / exponent)


def _linear(basis: Floats, y: Floats, variance: Floats) -> tuple[float, Floats, Floats]:
    """Log evidence, mean and a root of the covariance of (y₁, A) for y = y₁ + A·basis."""
    design = np.stack([np.ones_like(basis), basis], axis=1)
    root = np.sqrt(variance)
    scaled, target = design / root[:, None], y / root
    precision = scaled.T @ scaled + 1e-9 * np.eye(2)
    covariance = np.linalg.inv(precision)
    mean = covariance @ (scaled.T @ target)
    residual = target - scaled @ mean
    # Noise levels are known only roughly: the scatter about the law counts as well (a t density with as many degrees).
    inflation = max(1.0, float(residual @ residual) / max(1, len(y) - 2))
    evidence = -0.5 * float(residual @ residual) / inflation - 0.5 * np.linalg.slogdet(precision)[1]
    return float(evidence), mean, np.linalg.cholesky(covariance * inflation)

"""How long a run takes to a score, and what it scores after a time, from the beginning of its curve.

A learning curve y, the score with its sign changed, falls like a power of the time,

    y(t) = y∞ + A·t^(−p),

(Hestness et al. 2017, arXiv 1712.00409; Domhan et al. 2015). For a given p it is linear in y∞ and A, whose posterior is
a closed form; p is summed over a grid. What a short curve leaves open is left to the prior of p, so that a forecast from
a twentieth of the way is as wide as it should be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Prior of the exponent: its logarithm is normal about this, with this standard deviation (recorded curves).
EXPONENT, EXPONENT_SPREAD = 0.5, 0.6
EXPONENTS = np.geomspace(0.05, 3.0, 40)
# Points from so many times the last one's time on are fitted: earlier ones belong to another regime.
WINDOW = 10.0
# Three points are the fewest that a curve can be fitted to.
LEAST_POINTS = 3
# The law is not exact: points lie off it by this share of what the window spans, beside their own scatter.
MISFIT = 0.03
# People ask for scores that can be reached: a run longer than this many times what was seen is not believed.
LONGEST = 300.0


@dataclass(frozen=True)
class CurveForecast:
    """Draws of a learning curve's law.

    Attributes:
        limit: y∞ of each draw.
        scale: A, in units of the last point's time.
        exponent: p.
        last_seconds: The last point's time.
        scatter: Standard deviation of single points about the law.
    """

    limit: Floats
    scale: Floats
    exponent: Floats
    last_seconds: float
    scatter: float

    def seconds_to(self, score: float) -> Floats:
        """Seconds to a score, for each draw; infinite where it is beyond the curve's limit.

        Args:
            score: Higher is better.
        """
        above = (-score - self.limit) / self.scale
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(above > 0, np.power(np.maximum(above, 1e-300), -1 / self.exponent), np.inf)
        return np.asarray(np.where(ratio > LONGEST, np.inf, ratio * self.last_seconds))

    def score_at(self, seconds: float) -> Floats:
        """The score after some seconds, for each draw.

        Args:
            seconds: Of training in all.
        """
        return np.asarray(-(self.limit + self.scale * (seconds / self.last_seconds) ** -self.exponent))


def fit_curve(
    seconds: Sequence[float],
    scores: Sequence[float],
    errors: Sequence[float] | None = None,
    *,
    draws: int = 400,
    seed: int = 0,
) -> CurveForecast | None:
    """Fit the law to a curve, as draws from its posterior.

    Args:
        seconds: Times, ascending and above 0.
        scores: Scores there, higher is better.
        errors: Their standard errors; None: not known.
        draws: How many to draw.
        seed: Of the draws.

    Returns:
        The draws; None with fewer than three points, or where the score has not risen.

    Examples:
        >>> t = np.geomspace(1.0, 10.0, 12)
        >>> law = fit_curve(t, -(0.2 + t**-0.5))
        >>> 80 < np.median(law.seconds_to(-0.3)) < 125  # the truth is 100
        True
    """
    t, y = np.asarray(seconds, float), -np.asarray(scores, float)
    kept = (t >= t[-1] / WINDOW) & np.isfinite(y) if len(t) else np.zeros(0, bool)
    t, y = t[kept], y[kept]
    if len(t) < LEAST_POINTS:
        return None
    own = np.zeros(len(t)) if errors is None else np.asarray(errors, float)[kept]
    span = float(np.ptp(y))
    if not span > 0:
        return None
    variance = own**2 + (MISFIT * span) ** 2
    x = t / t[-1]
    posteriors = [_linear(x**-p, y, variance) for p in EXPONENTS]
    weights = np.array([density for density, _, _ in posteriors])
    weights -= (np.log(EXPONENTS / EXPONENT)) ** 2 / (2 * EXPONENT_SPREAD**2)
    weights = np.exp(weights - weights.max())
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(EXPONENTS), size=draws, p=weights / weights.sum())
    normal = generator.standard_normal((draws, 2))
    found = np.array([posteriors[k][1] + posteriors[k][2] @ n for k, n in zip(chosen, normal, strict=True)])
    limit, scale = found[:, 0], found[:, 1]
    falling = scale > 0
    if not falling.any():
        return None
    limit, scale, exponent = limit[falling], scale[falling], EXPONENTS[chosen[falling]]
    return CurveForecast(limit, scale, exponent, float(t[-1]), math.sqrt(float(variance.mean())))


def _linear(basis: Floats, y: Floats, variance: Floats) -> tuple[float, Floats, Floats]:
    """Log evidence, mean and a root of the covariance of (y∞, A) for y = y∞ + A·basis."""
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

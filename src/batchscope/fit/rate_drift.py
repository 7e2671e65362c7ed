"""Where the best learning rate lies at a batch size and a length of training, from valleys at others.

log ε* = u + x·log(f(B)/f(B₀)) + d·log(E/E₀), with f(B) = B/(1 + B/B_s): the optimiser's scaling rule gives the slope x
to begin with, it holds up to about the critical batch size B_s (McCandlish et al. 2018, equation 2.7), and longer runs
want smaller rates (Wu et al. 2018, arXiv 1803.02021, measured from the other side as the short-horizon bias). Both
slopes have a prior, the level has none to speak of, and each bottom of a valley that was seen counts by how well it is
known: Bayesian linear regression, in closed form. Batch sizes differ from the law by something of their own, the same
at every place of one, so that several places of one size say how the bottom drifts. Where bottoms of a size were seen,
the part of their distance from the law that is likely to be its own is added to what the law says (the best linear
unbiased prediction of a random effect; Henderson 1975, Biometrics 31).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from batchscope.records import Interval

Floats = NDArray[np.float64]

# Standard deviations of the priors, in e-folds, and the mean of the drift with the length of training.
LEVEL_SPREAD, SLOPE_SPREAD = 10.0, 0.25
DRIFT, DRIFT_SPREAD = -0.15, 0.12
# Batch sizes differ from the law by this much: a standard deviation in e-folds.
SCATTER = 0.25


@dataclass(frozen=True)
class Bottom:
    """The bottom of one valley of losses over learning rates.

    Attributes:
        batch_size: Examples per update.
        examples: Length of training.
        learning_rate: The best rate.
        spread: How well it is known: a standard deviation in e-folds.
    """

    batch_size: int
    examples: float
    learning_rate: float
    spread: float


@dataclass(frozen=True)
class RateDrift:
    """The law, as a normal distribution of its three numbers.

    Attributes:
        batch_size: B₀.
        examples: E₀.
        saturation: B_s.
        mean: u, x and d.
        covariance: Of the three.
        own: By what each batch size that was seen is expected to differ from the law, and the variance left of that.
    """

    batch_size: float
    examples: float
    saturation: float
    mean: Floats
    covariance: Floats
    own: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    def predict(self, batch_size: float, examples: float, level: float = 0.9) -> Interval:
        """The best rate, with the uncertainty of the law, and of what the batch size may differ from it by."""
        scaled = _saturated(batch_size, self.saturation) - _saturated(self.batch_size, self.saturation)
        row = np.array([1.0, scaled, math.log(examples / self.examples)])
        own, left = self.own.get(round(batch_size), (0.0, 0.0))
        centre = float(row @ self.mean) + own
        deviation = math.sqrt(float(row @ self.covariance @ row) + left)
        width = float(_quantile((1 + level) / 2)) * deviation
        return Interval(math.exp(centre), math.exp(centre - width), math.exp(centre + width), level)


def fit_rate_drift(bottoms: Sequence[Bottom], *, exponent: float, saturation: float = math.inf) -> RateDrift:
    """Fit the law to the bottoms that were seen.

    Args:
        bottoms: At least one.
        exponent: The scaling rule's: 1 for SGD, ½ for Adam.
        saturation: B_s; infinite where it is not known.

    Returns:
        The law.

    Raises:
        ValueError: There is none.

    Examples:
        >>> law = fit_rate_drift([Bottom(32, 1e4, 0.1, 0.1), Bottom(128, 1e4, 0.4, 0.1)], exponent=1.0)
        >>> 0.18 < law.predict(64, 1e4).value < 0.22
        True
    """
    if not bottoms:
        raise ValueError("no bottom of a valley")
    size = math.exp(sum(math.log(b.batch_size) for b in bottoms) / len(bottoms))
    examples = math.exp(sum(math.log(b.examples) for b in bottoms) / len(bottoms))
    middle = _saturated(size, saturation)
    rows = np.array(
        [[1.0, _saturated(b.batch_size, saturation) - middle, math.log(b.examples / examples)] for b in bottoms]
    )
    seen = np.array([math.log(b.learning_rate) for b in bottoms])
    sizes = np.array([b.batch_size for b in bottoms])
    errors = np.diag([b.spread**2 for b in bottoms]) + SCATTER**2 * (sizes[:, None] == sizes[None, :])
    prior_mean = np.array([seen.mean(), exponent, DRIFT])
    prior = np.diag([1 / LEVEL_SPREAD**2, 1 / SLOPE_SPREAD**2, 1 / DRIFT_SPREAD**2])
    weighted = np.linalg.solve(errors, rows)
    covariance = np.linalg.inv(prior + rows.T @ weighted)
    mean = covariance @ (prior @ prior_mean + weighted.T @ seen)
    own: dict[int, tuple[float, float]] = {}
    for each in np.unique(sizes):
        at = sizes == each
        known = 1 / np.array([b.spread for b in bottoms])[at] ** 2
        share = SCATTER**2 * known / (1 + SCATTER**2 * known.sum())
        own[int(each)] = float(share @ (seen - rows @ mean)[at]), SCATTER**2 / (1 + SCATTER**2 * float(known.sum()))
    return RateDrift(size, examples, saturation, mean, covariance, own)


def _saturated(batch_size: float, saturation: float) -> float:
    """Log f(B)."""
    return math.log(batch_size) - math.log1p(batch_size / saturation)


def _quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))

"""Where the best learning rate lies at a batch size and a length of training, from valleys at others.

    log ε*(B, E) = u − x·log(1 + B_s(E)/B),    B_s(E) = B_r·(E/E_r)^q

At equal noise the best step is ε_max/(1 + B_s/B) (McCandlish et al. 2018, arXiv 1812.06162, equation 2.7): it grows
with the batch by the optimiser's scaling rule, of exponent x, up to about the critical batch size B_s, and stays there.
B_s grows as training goes on, so that a small batch wants smaller rates in longer runs (Wu et al. 2018, arXiv
1803.02021, saw it from the other side as the short-horizon bias), a large one the same; and one that is large beside
B_s after a thousand examples is small beside it after a hundred thousand: its best rate stands still first and falls
later.

B_r and q are what learning curves of the same runs say of the critical batch size, to within a factor. For each draw of
the two the rest is linear: the level u has no prior to speak of, x has one, every bottom that was seen counts by how
well it is known, and the draw by how well it explains them, both in closed form. Batch sizes differ from the law by
something of their own, the same at every place of one; the part of their distance from the law that is likely to be
that is added to what the law says (the best linear unbiased prediction of a random effect; Henderson 1975, Biometrics
31).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from batchscope.fit.learning_curve import GROWTH, LearningCurve
from batchscope.records import Interval

Floats = NDArray[np.float64]

# Standard deviations of the priors, in e-folds: of the level, the exponent, and of B_s over the critical batch size.
LEVEL_SPREAD, SLOPE_SPREAD, CRITICAL_FACTOR = 10.0, 0.25, 1.0
# Batch sizes differ from the law by this much: a standard deviation in e-folds.
SCATTER = 0.25
DRAWS = 256
# Of the places of one run those within this factor of the last tell how its best rate drifts; what is noise in one is
# noise in the next, so that each counts as this much of a place of its own.
LAST_PLACES, INDEPENDENCE = 8.0, 0.4
# Where nothing is known of B_s, the scaling rule holds as far as anybody asks.
BEYOND_ALL = 1e6


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


def along_one_run(bottoms: Sequence[Bottom]) -> list[Bottom]:
    """The last bottoms of the same runs, each known as well as it adds to the others.

    Args:
        bottoms: Of one batch size and the same runs, by examples.

    Examples:
        >>> seen = [Bottom(32, examples, 0.1, 0.2) for examples in (100.0, 1000.0, 2000.0)]
        >>> [(bottom.examples, round(bottom.spread, 3)) for bottom in along_one_run(seen)]
        [(1000.0, 0.239), (2000.0, 0.239)]
    """
    last = [bottom for bottom in bottoms if bottom.examples * LAST_PLACES >= bottoms[-1].examples]
    shared = math.sqrt(len(last) / (1 + INDEPENDENCE * (len(last) - 1))) if last else 1.0
    return [replace(bottom, spread=shared * bottom.spread) for bottom in last]


@dataclass(frozen=True)
class RateDrift:
    """The law: draws of B_s, each with its weight and a normal distribution of the rest.

    Attributes:
        reference_examples: E_r.
        critical: B_r in each draw.
        growth: q.
        weights: How likely each draw is; they sum to one.
        middle: What the bottoms' log(1 + B_s/B) come to on the average, which u is the level at.
        mean: u and x, a row for each draw.
        covariance: Of the two.
        own: By what each batch size that was seen is expected to differ from the law in each draw, and the variance
            that is left of that.
    """

    reference_examples: float
    critical: Floats
    growth: Floats
    weights: Floats
    middle: Floats
    mean: Floats
    covariance: Floats
    own: Mapping[int, tuple[Floats, float]] = field(default_factory=dict)

    @property
    def exponent(self) -> float:
        """x, the expected one."""
        return float(self.weights @ self.mean[:, 1])

    def predict(self, batch_size: float, examples: float, level: float = 0.9) -> Interval:
        """The best rate, with the uncertainty of the law, and of what the batch size may differ from it by."""
        limits = _limits(batch_size, examples, self.reference_examples, self.critical, self.growth)
        row = np.stack([np.ones_like(limits), self.middle - limits], axis=1)
        own, left = self.own.get(round(batch_size), (np.zeros_like(limits), SCATTER**2))
        centres = np.einsum("kj,kj->k", row, self.mean) + own
        centre = float(self.weights @ centres)
        within = np.einsum("ki,kij,kj->k", row, self.covariance, row)
        deviation = math.sqrt(float(self.weights @ (within + (centres - centre) ** 2)) + left)
        width = float(_quantile((1 + level) / 2)) * deviation
        return Interval(math.exp(centre), math.exp(centre - width), math.exp(centre + width), level)


def fit_rate_drift(
    bottoms: Sequence[Bottom], *, exponent: float, curve: LearningCurve | None = None, seed: int = 0
) -> RateDrift:
    """Fit the law to the bottoms that were seen.

    Args:
        bottoms: At least one.
        exponent: The scaling rule's: 1 for SGD, ½ for Adam.
        curve: What learning curves of the same runs say, of the critical batch size too; None: nothing is known of it.
        seed: Of the draws.

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
    sizes = np.array([float(b.batch_size) for b in bottoms])
    examples = np.array([b.examples for b in bottoms])
    seen = np.log([b.learning_rate for b in bottoms])
    generator = np.random.default_rng(seed)
    reference, critical, growth = _drawn(curve, sizes, examples, generator)
    limits = _limits(sizes, examples, reference, critical[:, None], growth[:, None])
    middle = limits.mean(axis=1)
    rows = np.stack([np.ones_like(limits), middle[:, None] - limits], axis=2)
    spreads = np.array([b.spread for b in bottoms])
    precision = np.linalg.inv(np.diag(spreads**2) + SCATTER**2 * (sizes[:, None] == sizes[None, :]))
    prior_mean = np.array([seen.mean(), exponent])
    prior = np.diag([1 / LEVEL_SPREAD**2, 1 / SLOPE_SPREAD**2])
    weighted = np.einsum("kni,nm->kim", rows, precision)
    covariance = np.linalg.inv(prior + weighted @ rows)
    mean = np.einsum("kij,kj->ki", covariance, prior @ prior_mean + weighted @ seen)
    left = seen - np.einsum("kni,ki->kn", rows, mean)
    explained = left @ precision
    moved = mean - prior_mean
    # The evidence of each draw, up to what is the same for all of them.
    evidence = -0.5 * (np.einsum("kn,kn->k", left, explained) + np.einsum("ki,ij,kj->k", moved, prior, moved))
    evidence += 0.5 * np.linalg.slogdet(covariance)[1]
    weights = np.exp(evidence - evidence.max())
    own = {}
    for each in np.unique(sizes):
        at = sizes == each
        known = float((1 / spreads[at] ** 2).sum())
        own[int(each)] = (SCATTER**2 * explained[:, at].sum(axis=1), SCATTER**2 / (1 + SCATTER**2 * known))
    return RateDrift(reference, critical, growth, weights / weights.sum(), middle, mean, covariance, own)


def _drawn(
    curve: LearningCurve | None, sizes: Floats, examples: Floats, generator: np.random.Generator
) -> tuple[float, Floats, Floats]:
    """E_r, and draws of B_r and q."""
    if curve is None:
        growth = GROWTH[0] + GROWTH[1] * generator.standard_normal(DRAWS)
        return float(np.exp(np.log(examples).mean())), np.full(DRAWS, BEYOND_ALL * float(sizes.max())), growth
    chosen = generator.integers(curve.draws, size=DRAWS)
    factor = np.exp(CRITICAL_FACTOR * generator.standard_normal(DRAWS))
    return curve.reference_examples, curve.critical[chosen] * factor, curve.growth[chosen]


def _limits(
    batch_size: Floats | float, examples: Floats | float, reference: float, critical: Floats, growth: Floats
) -> Floats:
    """Log(1 + B_s(E)/B): by how much noise keeps the rate below the largest."""
    return np.asarray(np.log1p(critical * (np.asarray(examples) / reference) ** growth / batch_size))


def _quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))

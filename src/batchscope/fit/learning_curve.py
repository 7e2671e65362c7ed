"""What runs of several batch sizes reach, as one law of examples and batch size, and what it says beyond them.

A run of batch size B is by E examples where one of very small batches is by E/(1 + B/B_c) (McCandlish et al. 2018,
arXiv 1812.06162, with the examples of equation 2.11 at equal loss), and B_c grows as the loss falls, which is taken as
B_c = B_r·(E/E_r)^q. Along these effective examples x what is reached, a loss or minus a score, follows

    y(x) = y_r + g·((x/x_r)^(−b) − 1),

a power law above a floor y_r − g. Five numbers for all curves together; weak priors keep what the curves do not
determine within reason, and draws from what they leave possible carry the uncertainty to everything that is derived:
examples to a target at any batch size, what a budget reaches, the batch size of least time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchscope.errors import ArgumentError

Floats = NDArray[np.float64]

# Of each curve what lies within this factor of the most examples: the first steps of training follow no power law.
LAST_FACTOR = 24.0
# Errors are in proportion to what is left to gain, at about this share of it, which counts as so many points.
RELATIVE_ERROR, PRIOR_POINTS = 0.03, 4.0
# What a law leaves over is alike at neighbouring points of a curve: each counts as this much of a point of its own.
INDEPENDENCE = 0.4
# Priors: mean and standard deviation. The floor lies below the last value by about as much as the last factor of four
# gained; exponents of learning curves lie about a half; B_c starts anywhere and grows with about the root of examples.
GAP_SPREAD = 1.0
EXPONENT = (np.log(0.5), 0.6)
CRITICAL_SPREAD = 2.5
GROWTH = (0.5, 0.15)
WALKERS, STEPS, BURN_IN, KEPT_EVERY = 64, 320, 160, 10
STRETCH = 2.0
FARTHEST = 1e3


@dataclass(frozen=True)
class Curve:
    """What one setting reached, on the way.

    Attributes:
        batch_size: Examples per update.
        examples: Examples trained on, ascending.
        values: What was reached there, the lower the better: a loss, or minus a score.
    """

    batch_size: int
    examples: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class LearningCurve:
    """The law, as draws from what the curves leave possible.

    Attributes:
        reference_examples: E_r = x_r.
        value: y_r in each draw.
        gap: g.
        exponent: b.
        critical: B_r, at the reference examples.
        growth: q.
        relative_error: Root mean square of the residuals at the likeliest draw, over what was left to gain.
        best: Index of the likeliest draw.
    """

    reference_examples: float
    value: Floats
    gap: Floats
    exponent: Floats
    critical: Floats
    growth: Floats
    relative_error: float
    best: int

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(self.value)

    def critical_batch_size(self, examples: Floats | float) -> Floats:
        """B_c after so many examples, in each draw."""
        return np.asarray(self.critical * (np.asarray(examples) / self.reference_examples) ** self.growth)

    def effective(self, batch_size: float, examples: Floats | float) -> Floats:
        """x, the examples that very small batches would have needed, in each draw."""
        return np.asarray(examples / (1 + batch_size / self.critical_batch_size(examples)))

    def values(self, batch_size: float, examples: Floats | float) -> Floats:
        """What is reached, in each draw.

        Args:
            batch_size: Examples per update.
            examples: One number, or one for each draw.

        Returns:
            A value for each draw.
        """
        x = self.effective(batch_size, examples)
        return np.asarray(self.value + self.gap * ((x / self.reference_examples) ** -self.exponent - 1))

    def examples_to(self, batch_size: float, value: float) -> Floats:
        """Examples until a value is reached, in each draw; infinite where its floor lies above.

        Args:
            batch_size: Examples per update.
            value: What is to be reached.
        """
        left = 1 + (value - self.value) / self.gap
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            x = np.where(left > 0, self.reference_examples * np.maximum(left, 1e-300) ** (-1 / self.exponent), np.inf)
        far = ~(x < FARTHEST * self.reference_examples)
        return np.where(far, np.inf, self.examples_for(batch_size, np.where(far, self.reference_examples, x)))

    def examples_for(self, batch_size: float, effective: Floats) -> Floats:
        """Examples that come to so many effective ones, in each draw.

        Args:
            batch_size: Examples per update.
            effective: x, one for each draw, finite.
        """
        # E/(1 + B/B_c(E)) = x, with B_c growing: E = x + x·B/B_c(E), which E = x·(1 + B/B_c(x)) bounds from above.
        x = np.asarray(effective)
        low, high = x.copy(), x * (1 + batch_size / self.critical_batch_size(x))
        for _ in range(40):
            middle = np.sqrt(low * high)
            too_few = self.effective(batch_size, middle) < x
            low, high = np.where(too_few, middle, low), np.where(too_few, high, middle)
        return np.asarray(np.sqrt(low * high))


@dataclass(frozen=True)
class CriticalPrior:
    """What is known of the critical batch size beside the curves.

    Attributes:
        examples: Where on the way.
        batch_size: B_c there, its median.
        spread: A standard deviation in e-folds.
    """

    examples: float
    batch_size: float
    spread: float


def fit_learning_curve(
    curves: Sequence[Curve],
    *,
    critical: CriticalPrior | None = None,
    shared: LearningCurve | None = None,
    seed: int = 0,
) -> LearningCurve:
    """Fit the law to curves of several batch sizes.

    Args:
        curves: Each at a learning rate that suits its batch size.
        critical: What is known of B_c beside them; None: nothing.
        shared: A law already fitted to another quantity of the same runs, as the loss, whose B_c and growth are taken
            over, draw by draw; None: these curves determine them.
        seed: Of the draws.

    Returns:
        The law.

    Raises:
        ArgumentError: Fewer than three points in all, or nothing gained between them.

    Examples:
        >>> examples = tuple(1000.0 * 2**k for k in range(6))
        >>> law = fit_learning_curve([Curve(1, examples, tuple(0.1 + 30 / e**0.5 for e in examples))])
        >>> 0.9 < float(np.median(law.examples_to(1, 0.3))) / 22_500 < 1.1
        True
    """
    most = max((max(curve.examples) for curve in curves if curve.examples), default=0.0)
    kept = [
        (curve.batch_size, e, y)
        for curve in curves
        for e, y in zip(curve.examples, curve.values, strict=True)
        if e * LAST_FACTOR >= max(curve.examples) and np.isfinite(y)
    ]
    if len(kept) < 3:
        raise ArgumentError("a learning curve needs at least three points", got=len(kept), mend="train for longer")
    sizes, examples, values = (np.array(column, dtype=float) for column in zip(*kept, strict=True))
    lowest, spread = values.min(), values.max() - values.min()
    if spread <= 0:
        raise ArgumentError("a learning curve must fall", got=f"{len(kept)} points at {lowest:.4g}")
    recent = max(_left_to_gain(examples, values), spread / 50)
    errors = RELATIVE_ERROR * (values - lowest + recent)
    generator = np.random.default_rng(seed)
    given = None
    if shared is not None:
        chosen = generator.integers(shared.draws, size=WALKERS)
        given = np.stack([np.log(shared.critical[chosen]), shared.growth[chosen]], axis=1)
        most = shared.reference_examples
    known = critical or CriticalPrior(most, 4 * float(np.exp(np.log(sizes).mean())), CRITICAL_SPREAD)

    def residuals(theta: Floats) -> Floats:
        y_r, gap, b, critical, q = (theta[:, i : i + 1] for i in range(5))
        with np.errstate(over="ignore", invalid="ignore"):
            x = examples / (1 + sizes / (np.exp(critical) * (examples / most) ** q))
            predicted = y_r + np.exp(gap) * ((x / most) ** -np.exp(b) - 1)
        return np.asarray((predicted - values) / errors)

    def log_density(theta: Floats) -> Floats:
        with np.errstate(over="ignore"):
            squares = INDEPENDENCE * (residuals(theta) ** 2).sum(axis=1)
        fit = -(INDEPENDENCE * len(values) + PRIOR_POINTS) / 2 * np.log(PRIOR_POINTS + squares)
        prior = ((theta[:, 1] - np.log(recent)) / GAP_SPREAD) ** 2 + ((theta[:, 2] - EXPONENT[0]) / EXPONENT[1]) ** 2
        at_known = theta[:, 3] + theta[:, 4] * np.log(known.examples / most)
        prior += ((at_known - np.log(known.batch_size)) / known.spread) ** 2
        prior += ((theta[:, 4] - GROWTH[0]) / GROWTH[1]) ** 2
        density = fit - prior / 2
        return np.where(np.isfinite(density) & (theta[:, 4] > -0.2), density, -np.inf)

    at_most = np.log(known.batch_size) - GROWTH[0] * np.log(known.examples / most)
    start = np.array([lowest, np.log(recent), EXPONENT[0], at_most, GROWTH[0]])
    scales = np.array([recent / 4, 0.5, 0.3, min(1.0, known.spread), 0.2])
    walkers = start + scales * generator.standard_normal((WALKERS, 5))
    if given is not None:
        walkers[:, 3:] = given
    drawn, densities = _ensemble(log_density, walkers, generator, moving=5 if given is None else 3)
    best = int(np.argmax(densities))
    left = residuals(drawn[best : best + 1])[0] * RELATIVE_ERROR
    return LearningCurve(
        reference_examples=most,
        value=drawn[:, 0],
        gap=np.exp(drawn[:, 1]),
        exponent=np.exp(drawn[:, 2]),
        critical=np.exp(drawn[:, 3]),
        growth=drawn[:, 4],
        relative_error=float(np.sqrt(np.mean(left**2))),
        best=best,
    )


def _left_to_gain(examples: Floats, values: Floats) -> float:
    """About what is left above the floor: of a power law with the exponent ½, by what its last factor of 4 gained.

    Where there are fewer examples than that to look back on, by what those gained.
    """
    order = np.argsort(examples)
    most = examples[order[-1]]
    back = examples <= most / 4
    first = examples[back].max() if back.any() else examples.min()
    ratio = most / first
    if ratio <= 1:
        return 0.0
    at_first = values[examples == first].min()
    return float((at_first - values.min()) / (np.sqrt(ratio) - 1))


def _ensemble(
    log_density: Callable[[Floats], Floats], walkers: Floats, generator: np.random.Generator, *, moving: int
) -> tuple[Floats, Floats]:
    """Draws by the affine-invariant ensemble of Goodman and Weare (2010), which needs no scales of the parameters.

    Parameters from ``moving`` on stay with their walker: they were drawn already.
    """
    density = log_density(walkers)
    kept: list[Floats] = []
    densities: list[Floats] = []
    half = len(walkers) // 2
    for step in range(STEPS):
        for first in (True, False):
            own = slice(0, half) if first else slice(half, None)
            others = walkers[half:] if first else walkers[:half]
            count = len(walkers[own])
            z = ((STRETCH - 1) * generator.random(count) + 1) ** 2 / STRETCH
            partner = others[generator.integers(len(others), size=count)]
            proposed = walkers[own].copy()
            proposed[:, :moving] = partner[:, :moving] + z[:, None] * (proposed[:, :moving] - partner[:, :moving])
            new = log_density(proposed)
            with np.errstate(invalid="ignore"):
                accept = np.log(generator.random(count)) < (moving - 1) * np.log(z) + new - density[own]
            walkers[own] = np.where(accept[:, None], proposed, walkers[own])
            density[own] = np.where(accept, new, density[own])
        if step >= BURN_IN and step % KEPT_EVERY == 0:
            kept.append(walkers.copy())
            densities.append(density.copy())
    return np.concatenate(kept), np.concatenate(densities)

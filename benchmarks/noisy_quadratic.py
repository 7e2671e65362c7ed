"""Stochastic gradient descent on noisy quadratics: learning curves whose expectation is known in closed form.

The loss is ½ Σ hᵢ θᵢ², with the power-law spectrum hᵢ = i^(−a) and θᵢ² = 1 at first. A gradient on B examples has in
coordinate i the variance (hᵢ² θᵢ² + c·hᵢ)/B: that of least squares with Gaussian inputs and label noise c, without its
terms between coordinates. Then

    E θᵢ² ← ((1 − ε·hᵢ)² + ε²·hᵢ²/B)·E θᵢ² + ε²·c·hᵢ/B

(Schaul et al. 2013, arXiv 1206.1106; Zhang et al. 2019, arXiv 1907.04164). Small batches are held up by noise, large
ones by the cost of an update, c₀ + c₁·B seconds; rates are held up by the largest curvature or by the noise floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from batchscope.search.candidates import Point, Setting
from batchscope.search.recorded import Curve

Floats = NDArray[np.float64]

# Curvatures are so many, lumped together to fewer modes that lie evenly in their logs.
COORDINATES, MODES = 10_000, 48
SIZES = tuple(2**k for k in range(2, 11))
RATES = tuple(2.0**k for k in range(-16, 2))
# The best run takes so many seconds and so many updates, and its noise floor is at most this share of the target.
BEST_SECONDS, BEST_UPDATES, FLOOR_SHARE = 60.0, (300, 5000), 0.5
# Targets, as shares of the loss of fresh weights; one at random of those that keep to these limits.
TARGET_SHARES = (0.1, 0.14, 0.2, 0.28)
# Twice the best rate takes at most so many times as long: 1.05 to 1.9 times on the measured tables of ground_truth/.
TWICE_THE_RATE = 2.0
MOST_UPDATES = 1 << 22
COARSE = np.geomspace(1, MOST_UPDATES, 160)
# Losses of single examples scatter by so much of the loss of fresh weights, all along: 0.1 to 0.6 on the recorded
# networks. Scores come from a large validation set.
SCATTER, SCORE_SCATTER = 0.3, 0.004
# Blocks of training losses, and points, are these factors apart; a point's loss is the mean of the last third.
BLOCK_FACTOR, POINT_EVERY, WINDOW = 1.04, 3, 1 / 3
# A run whose loss is so many times that of fresh weights has diverged.
FAR_ABOVE = 3.0


@dataclass(frozen=True)
class NoisyQuadratic:
    """One problem.

    Attributes:
        spectrum: Curvatures hᵢ, the largest first.
        counts: How many coordinates have each of them.
        label_noise: c.
        fixed_seconds: c₀, seconds of an update of no examples.
        example_seconds: c₁, seconds that each example adds.
        target: Loss to reach.
    """

    spectrum: Floats
    counts: Floats
    label_noise: float
    fixed_seconds: float
    example_seconds: float
    target: float

    @property
    def initial_loss(self) -> float:
        """Loss of fresh weights."""
        return float(0.5 * self.counts @ self.spectrum)

    def update_seconds(self, batch_size: int) -> float:
        """Seconds of an update."""
        return self.fixed_seconds + self.example_seconds * batch_size

    def loss(self, setting: Setting, updates: Sequence[float] | Floats) -> Floats:
        """Expected loss after some updates; infinite where it overflows.

        Examples:
            >>> problem = NoisyQuadratic(np.ones(1), np.ones(1), 1.0, 1e-3, 1e-4, 0.1)
            >>> after = [(1 - 0.5) ** 2 + 0.5**2 / 8 + 0.5**2 / 8]
            >>> bool(np.allclose(problem.loss(Setting(8, 0.5), [0, 1]), [0.5, 0.5 * after[0]]))
            True
        """
        size, rate = setting
        h = self.spectrum
        kept = (1 - rate * h) ** 2 + (rate * h) ** 2 / size
        added = rate**2 * self.label_noise * h / size
        k = np.asarray(updates, float)[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            power = kept**k
            settles = np.abs(1 - kept) > 1e-12
            squares = power + added * np.where(settles, (1 - power) / np.where(settles, 1 - kept, 1.0), k)
            total = 0.5 * squares @ (self.counts * h)
        return np.asarray(np.where(np.isnan(total), np.inf, total))

    def floor(self, setting: Setting) -> float:
        """Loss at which the noise holds training up; infinite where it diverges."""
        size, rate = setting
        h = self.spectrum
        shrinks = 1 - (1 - rate * h) ** 2 - (rate * h) ** 2 / size
        if (shrinks <= 0).any():
            return math.inf
        return float(0.5 * self.counts @ (h * rate**2 * self.label_noise * h / size / shrinks))

    def updates_to_target(self, setting: Setting) -> float:
        """Updates after which the expected loss is down to the target; infinite where it never is."""
        if self.floor(setting) >= self.target:
            return math.inf
        low, high = 0, 1
        while self.loss(setting, [high])[0] > self.target:
            low, high = high, 2 * high
            if high > MOST_UPDATES:
                return math.inf
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.loss(setting, [middle])[0] > self.target else (low, middle)
        return float(high)

    def seconds_to_target(self, setting: Setting) -> float:
        """Seconds to the target; infinite where it is never reached."""
        return self.updates_to_target(setting) * self.update_seconds(setting.batch_size)

    def curve(self, setting: Setting, seconds: float, seed: int) -> Curve:
        """A learning curve as a search would see it: noisy losses, up to the target or to so many seconds.

        Args:
            setting: The batch size and the learning rate.
            seconds: Where it is cut short.
            seed: Of the noise.
        """
        size, rate = setting
        each = self.update_seconds(size)
        generator = np.random.default_rng([seed, size, round(8 * math.log2(rate)) + 1000])
        ends = [0]
        while ends[-1] * each < seconds:
            ends.append(max(ends[-1] + 1, round(ends[-1] * BLOCK_FACTOR)))
        at = np.array(ends)
        counts = np.diff(at) * size
        means = self.loss(setting, (at[:-1] + at[1:] - 1) / 2)  # a loss is seen before its update
        blocks = means + SCATTER * self.initial_loss / np.sqrt(counts) * generator.standard_normal(len(counts))
        after = self.loss(setting, at[1:])
        points = [Point(0, 0, 0.0, self.initial_loss, 0.0, -self.initial_loss)]
        for i, expected in enumerate(after.tolist()):
            updates = int(at[i + 1])
            if not blocks[i] <= FAR_ABOVE * self.initial_loss:
                points.append(Point(updates * size, updates, updates * each, math.inf))
                return Curve(setting, tuple(points), "diverged")
            reached = expected <= self.target
            if i % POINT_EVERY and updates > POINT_EVERY and not reached:
                continue
            loss, error = window_mean(np.cumsum(counts[: i + 1]), blocks[: i + 1])
            score = -expected * (1 + SCORE_SCATTER * generator.standard_normal())
            points.append(Point(updates * size, updates, updates * each, loss, error, score))
            if reached:
                return Curve(setting, tuple(points), "reached")
        return Curve(setting, tuple(points))


def window_mean(examples: Floats, losses: Floats, share: float = WINDOW) -> tuple[float, float]:
    """Mean training loss over the last share of the examples, with its standard error.

    The scatter of a block is its distance from the line through its neighbours, so that the fall of the loss does not
    count as scatter.

    Args:
        examples: Where each block of losses ends, ascending.
        losses: Mean of each block.
        share: Of all examples so far.

    Returns:
        The mean, and its standard error; 0 with fewer than three blocks.

    Examples:
        >>> window_mean(np.array([10.0, 20.0, 30.0]), np.array([3.0, 2.0, 1.0]))
        (1.0, 0.0)
    """
    counts = np.diff(examples, prepend=0)
    first = int(np.searchsorted(examples, (1 - share) * examples[-1], side="right"))
    first = min(first, len(losses) - 1)
    mean = float(np.average(losses[first:], weights=counts[first:]))
    near = slice(min(first, max(0, len(losses) - 8)), None)  # enough blocks to know their scatter
    y, n = losses[near], counts[near]
    if len(y) < 3:
        return mean, 0.0
    middle = y[1:-1] - (y[:-2] + y[2:]) / 2
    variance = float(np.mean(middle**2 / (1 / n[1:-1] + (1 / n[:-2] + 1 / n[2:]) / 4)))
    return mean, math.sqrt(variance / float(counts[first:].sum()))


def power_law(exponent: float) -> tuple[Floats, Floats]:
    """Curvatures i^(−a) in modes, and how many coordinates each has.

    Examples:
        >>> spectrum, counts = power_law(1.5)
        >>> float(spectrum[0]), int(counts.sum())
        (1.0, 10000)
    """
    first = np.unique(np.round(np.geomspace(1, COORDINATES + 1, MODES)))
    counts = np.diff(first)
    middle = np.sqrt(first[:-1] * (first[1:] - 1))
    return middle**-exponent, counts


def draw(seed: int) -> tuple[NoisyQuadratic, dict[Setting, float]]:
    """A random problem, scaled so that its best run takes a minute.

    Args:
        seed: Same seed, same problem.

    Returns:
        The problem, and the seconds to its target at each setting that reaches it.
    """
    generator = np.random.default_rng(seed)
    while True:
        spectrum, counts = power_law(generator.uniform(1.0, 2.0))
        knee = 2.0 ** generator.uniform(1.0, 7.0)
        noise = 10.0 ** generator.uniform(0.0, 2.0)
        problem = NoisyQuadratic(spectrum, counts, noise, knee, 1.0, math.nan)
        settings = [Setting(size, rate) for size in SIZES for rate in RATES]
        roughly = {s: np.minimum.accumulate(problem.loss(s, COARSE)) for s in settings}
        for share in generator.permutation(TARGET_SHARES).tolist():
            problem = replace(problem, target=share * problem.initial_loss)
            updates = {s: _first(losses, problem.target) for s, losses in roughly.items()}
            if not _is_wanted(problem, updates):
                continue
            updates = {s: problem.updates_to_target(s) for s, n in updates.items() if math.isfinite(n)}
            seconds = {s: n * problem.update_seconds(s.batch_size) for s, n in updates.items()}
            scale = BEST_SECONDS / min(seconds.values())
            problem = replace(problem, fixed_seconds=scale * knee, example_seconds=scale)
            return problem, {s: scale * value for s, value in seconds.items()}


def _first(losses: Floats, target: float) -> float:
    """Updates at which a loss is first reached on the coarse grid; infinite where it is not."""
    place = int(np.searchsorted(-losses, -target))
    return float(COARSE[place]) if place < len(losses) else math.inf


def _is_wanted(problem: NoisyQuadratic, updates: dict[Setting, float]) -> bool:
    """Whether every batch size reaches the target, and the best setting with room."""
    seconds = {s: n * problem.update_seconds(s.batch_size) for s, n in updates.items() if math.isfinite(n)}
    if {s.batch_size for s in seconds} != set(SIZES):
        return False
    best = min(seconds, key=lambda s: seconds[s])
    twice = seconds.get(Setting(best.batch_size, 2 * best.learning_rate), math.inf)
    return (
        BEST_UPDATES[0] <= updates[best] <= BEST_UPDATES[1]
        and problem.floor(best) <= FLOOR_SHARE * problem.target
        and twice <= TWICE_THE_RATE * seconds[best]
    )

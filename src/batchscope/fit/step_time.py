"""The law of an update's time against batch size: τ(B) = c₀ + c₁·B, with a bend where the data call for one.

A small batch leaves the machine idle while each operation is dispatched, which costs c₀ whatever B; a large one costs
c₁ for each example. Where activations outgrow a cache, or more threads begin to pay, c₁ changes, and a continuous line
of two pieces fits. Errors of times are relative, so residuals are taken relative to the measured times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from batchscope.records import Interval
from batchscope.records.step_time import StepTimeLaw, StepTimePoint

Floats = NDArray[np.float64]

# A bend has to earn its two parameters: predict left-out sizes clearly better than one line, which must be visibly off.
BEND_GAIN = 0.7
VISIBLY_OFF = 0.03
LEAST_SIZES_FOR_BEND = 7
REPLICATES = 300


@dataclass(frozen=True)
class _Curve:
    """τ(B) = fixed + below·min(B, bend) + above·max(0, B − bend), all three at least 0."""

    fixed: float
    below: float
    above: float
    bend: float

    def seconds(self, sizes: Floats) -> Floats:
        return self.fixed + self.below * np.minimum(sizes, self.bend) + self.above * np.maximum(0.0, sizes - self.bend)

    @property
    def most_per_second(self) -> float:
        """The supremum of B/τ(B): at the bend, where examples grow dearer there, otherwise in the limit."""
        limit = 1 / self.above if self.above > 0 else math.inf
        if not math.isfinite(self.bend):
            return 1 / self.below if self.below > 0 else math.inf
        at_bend = self.fixed + self.below * self.bend
        return max(limit, self.bend / at_bend if at_bend > 0 else math.inf)

    @property
    def knee(self) -> float:
        """The least B with B/τ(B) at half of its supremum; infinite where that is."""
        most = self.most_per_second
        if math.isinf(most):
            return math.inf
        # B = (most/2)·τ(B) on the first piece, then on the second.
        slope = 1 - most / 2 * self.below
        first = most / 2 * self.fixed / slope if slope > 0 else math.inf
        if first <= self.bend:
            return first
        slope = 1 - most / 2 * self.above
        offset = self.fixed + (self.below - self.above) * self.bend
        return most / 2 * offset / slope if slope > 0 else math.inf


def fit_step_time(batch_sizes: Sequence[int], seconds: Floats, *, level: float = 0.95, seed: int = 0) -> StepTimeLaw:
    """Fit the law to times that were measured round by round.

    Least squares of relative residuals of the medians, with c₀, c₁ ≥ 0. One line, or two pieces that meet at one of the
    inner sizes: the latter where it predicts left-out sizes with at most 0.7 of the one line's error and that is above
    3%. Intervals are percentiles over resampled rounds, whose medians are perturbed by the law's own residuals with
    random signs (wild bootstrap; Wu 1986), so that both the noise of timing and the law's misfit are in them.

    Args:
        batch_sizes: K sizes, ascending.
        seconds: Rounds×K, the time of an update in each round.
        level: Level of the intervals.
        seed: Of the resampling.

    Returns:
        The law; the knee is not resolved where its interval spans more than a factor of 10, as when no size was large
        enough for its examples to cost anything, or none small enough for the fixed cost to show.

    Raises:
        ValueError: Fewer than two sizes, or times that are not positive.

    Examples:
        >>> sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
        >>> law = fit_step_time(sizes, np.array([[1e-4 + 2e-6 * b for b in sizes]] * 6))
        >>> round(law.knee.value, 6), law.bend
        (50.0, None)
    """
    sizes = np.asarray(batch_sizes, dtype=np.float64)
    if len(sizes) < 2 or seconds.ndim != 2 or seconds.shape[1] != len(sizes) or not (seconds > 0).all():
        raise ValueError("at least two sizes with positive times are needed")
    medians = np.median(seconds, axis=0)
    bends = _bends(sizes, medians)
    curve = _fit(sizes, medians, bends)
    predicted = curve.seconds(sizes)
    residuals = medians / predicted - 1
    freedom = len(sizes) - (2 if bends is None else 4)

    generator = np.random.default_rng(seed)
    inflated = residuals * math.sqrt(len(sizes) / max(1, freedom))
    curves = []
    for _ in range(REPLICATES):
        rounds = generator.integers(len(seconds), size=len(seconds))
        noise = np.median(seconds[rounds], axis=0) / medians
        signs = generator.choice([-1.0, 1.0], size=len(sizes))
        # Not below a tenth: a residual near −1 with its sign turned must not make a time vanish.
        curves.append(_fit(sizes, predicted * noise * np.maximum(0.1, 1 + inflated * signs), bends))

    def interval(value: float, values: list[float]) -> Interval:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="nearest")
        return Interval(value, min(float(low), value), max(float(high), value), level)

    knee = interval(curve.knee, [c.knee for c in curves])
    if knee.low is None or knee.high is None or not knee.high <= 10 * knee.low:
        knee = Interval.unresolved(level, low=knee.low, high=knee.high)
    dearer: Literal["dearer", "cheaper"] = "dearer" if curve.above > curve.below else "cheaper"
    return StepTimeLaw(
        fixed_seconds=interval(curve.fixed, [c.fixed for c in curves]),
        seconds_per_example=interval(curve.above, [c.above for c in curves]),
        bend=None if bends is None else round(curve.bend),
        seconds_per_example_below=None if bends is None else curve.below,
        knee=knee,
        relative_error=float(np.sqrt(np.mean(residuals**2))),
        bends_at=None if bends is None else dearer,
    )


def coefficient_covariance(batch_sizes: Sequence[float], seconds: Sequence[float], bend: float | None = None) -> Floats:
    """Covariance of the fitted coefficients over the variance of the relative residuals: (XᵀX)⁻¹.

    X has the rows [1, B]/τ(B), or [1, min(B, bend), max(0, B − bend)]/τ(B) with a bend, which is taken as known. A
    fixed cost that came out too high goes with a cost per example that came out too low, so that τ is known better
    between the sizes that were timed than either coefficient.

    Args:
        batch_sizes: The sizes that were timed.
        seconds: τ of each, by the law.
        bend: Where the second piece begins; None: there is one line.

    Returns:
        2×2, or 3×3 with a bend; only its diagonal is not 0 where the sizes are too few to determine it.

    Examples:
        >>> covariance = coefficient_covariance([1, 3], [1.0, 1.0])
        >>> covariance.round(6).tolist()
        [[2.5, -1.0], [-1.0, 0.5]]
    """
    design = _design(np.asarray(batch_sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64), bend)
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0] = 1.0
    scaled = design / scale
    if np.linalg.matrix_rank(scaled) < scaled.shape[1]:
        return np.diag(1 / scale**2)
    return np.asarray(np.linalg.inv(scaled.T @ scaled) / np.outer(scale, scale))


def fastest_point(points: Sequence[StepTimePoint]) -> StepTimePoint:
    """The point of the highest throughput."""
    return max(points, key=lambda point: point.examples_per_second.value or 0.0)


def loader_bound_from(points: Sequence[StepTimePoint]) -> int | None:
    """The least batch size at which getting a batch takes longer than computing with it; None: none of them."""
    bound = [p.batch_size for p in points if (p.data_seconds.value or 0.0) > (p.compute_seconds.value or 0.0)]
    return min(bound, default=None)


def _bends(sizes: Floats, medians: Floats) -> Floats | None:
    """The places where the law may bend; None where one line does."""
    if len(sizes) < LEAST_SIZES_FOR_BEND:
        return None
    bends = sizes[2:-2]
    line = _fit(sizes, medians, None)
    if float(np.sqrt(np.mean((medians / line.seconds(sizes) - 1) ** 2))) <= VISIBLY_OFF:
        return None
    one, two = _left_out_error(sizes, medians, None), _left_out_error(sizes, medians, bends)
    return bends if two < BEND_GAIN * one else None


def _left_out_error(sizes: Floats, medians: Floats, bends: Floats | None) -> float:
    """Mean absolute relative error at inner sizes, each predicted from the others."""
    errors = []
    for i in range(1, len(sizes) - 1):
        kept = np.arange(len(sizes)) != i
        curve = _fit(sizes[kept], medians[kept], bends)
        errors.append(float(curve.seconds(sizes[i : i + 1])[0] / medians[i] - 1))
    return float(np.mean(np.abs(errors)))


def _design(sizes: Floats, seconds: Floats, bend: float | None = None) -> Floats:
    """A column for each coefficient, relative to the seconds."""
    pieces = [sizes] if bend is None else [np.minimum(sizes, bend), np.maximum(0.0, sizes - bend)]
    return np.stack([np.ones(len(sizes)), *pieces], axis=1) / seconds[:, None]


def _fit(sizes: Floats, seconds: Floats, bends: Floats | None) -> _Curve:
    """The best curve with its bend at one of these places, or of one piece."""
    from scipy.optimize import nnls

    target = np.ones(len(sizes))
    if bends is None:
        (fixed, slope), _ = nnls(_design(sizes, seconds), target)
        return _Curve(float(fixed), float(slope), float(slope), math.inf)
    best: tuple[float, _Curve] | None = None
    for bend in bends:
        (fixed, below, above), misfit = nnls(_design(sizes, seconds, float(bend)), target)
        if best is None or misfit < best[0]:
            best = misfit, _Curve(float(fixed), float(below), float(above), float(bend))
    if best is None:
        raise ValueError("no place for a bend")
    return best[1]

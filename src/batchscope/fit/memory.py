"""The law of memory: peak = state + micro-batch size × bytes per example, never below a floor.

Fitted to peaks of a geometric grid by least squares of *relative* residuals, since an allocator's rounding and the
fragmentation of a heap grow with what is allocated: a plain fit would follow the largest peak alone.

Small micro-batches may all cost the same: an allocator hands out blocks of megabytes, and a library's work space does
not shrink below some size. Where that shows, the peaks of these sizes are a constant *floor*, and the line is fitted to
those above it only, so that the floor doesn't bend the line that is to be followed upwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from batchscope.records.interval import Interval
from batchscope.records.memory import MemoryLaw

# A floor is believed where it lowers the sum of squared relative residuals by this factor at least …
FLOOR_GAIN = 4.0
# … and where a line alone is off by more than this; closer than that a floor would be fitted to noise.
FLOOR_ERROR = 0.02
LEAST_ABOVE_FLOOR = 2

Floats = NDArray[np.float64]


def fit_memory(sizes: Sequence[int], peak_bytes: Sequence[float], *, level: float = 0.95) -> MemoryLaw:
    """Fit the law to measured peaks.

    Minimised is Σ((s + c·mᵢ)/pᵢ − 1)² over s ≥ 0 and c ≥ 0: non-negative least squares with weights 1/pᵢ². The
    intervals are Student's, from the residuals' variance and n − 2 degrees of freedom (n − 1 with the state at 0): they
    say how well the line is determined by peaks that scatter about it independently, and nothing about a bend beyond
    the largest size.

    Args:
        sizes: Micro-batch sizes, two different ones at least, in any order.
        peak_bytes: Peak memory of each, above 0.
        level: Level of the intervals.

    Returns:
        The law. With two sizes its intervals have no ends. Where memory does not rise with the size, bytes per example
        are unresolved and the state is the mean of all peaks.

    Raises:
        ValueError: Fewer than two different sizes, or a peak that is not above 0.

    Examples:
        >>> law = fit_memory([1, 2, 4, 8], [110, 120, 140, 180])
        >>> round(law.state_bytes.value), round(law.bytes_per_example.value)
        (100, 10)
        >>> round(predicted_bytes(law, 16))
        260
    """
    m, p = np.asarray(sizes, dtype=np.float64), np.asarray(peak_bytes, dtype=np.float64)
    if len(m) != len(p) or len(set(sizes)) < 2 or not np.all(np.isfinite(p) & (p > 0)):
        raise ValueError("a law needs peaks above 0 of at least two different sizes")
    ascending = np.argsort(m, kind="stable")
    m, p = m[ascending], p[ascending]
    from_size, floor = _floor(m, p)
    above = m >= from_size
    state, per_example = _line(m[above], p[above], level)
    law = MemoryLaw(state, per_example, 0.0, floor)
    residuals = np.array([predicted_bytes(law, size) for size in m]) / p - 1
    return MemoryLaw(state, per_example, _rms(residuals), floor)


def predicted_bytes(law: MemoryLaw, micro_batch_size: float) -> float:
    """The law's peak for a micro-batch size."""
    line = (law.state_bytes.value or 0.0) + (law.bytes_per_example.value or 0.0) * float(micro_batch_size)
    return max(law.floor_bytes, line)


def largest_that_fits(law: MemoryLaw, limit_bytes: float, *, margin: float = 0.0) -> int | None:
    """The largest micro-batch size whose peak the law puts within a limit.

    Solves max(floor, state + c·m) ≤ (1 − margin)·limit for the largest whole m.

    Args:
        law: Fitted before.
        limit_bytes: Memory that there is.
        margin: Share of it that is to stay free.

    Returns:
        The size; 0 where not even one example fits. None: memory does not rise with the size, so there is no limit.

    Examples:
        >>> law = fit_memory([1, 2, 4], [110, 120, 140])
        >>> largest_that_fits(law, 1000.0, margin=0.1), largest_that_fits(law, 100.0)
        (80, 0)
    """
    room = (1 - margin) * limit_bytes
    if room < law.floor_bytes or room < predicted_bytes(law, 0):
        return 0
    per_example = law.bytes_per_example.value
    if per_example is None:
        return None
    # The division may land a rounding error below the whole number that it should be.
    most = (room - (law.state_bytes.value or 0.0)) / per_example
    size = math.floor(most)
    return size + 1 if predicted_bytes(law, size + 1) <= room * (1 + 1e-12) else size


def _line(m: Floats, p: Floats, level: float) -> tuple[Interval, Interval]:
    """State and bytes per example."""
    from scipy.optimize import nnls

    design = np.stack([1 / p, m / p], axis=1)
    scale = np.linalg.norm(design, axis=0)  # the sizes may span many orders of magnitude
    state, slope = nnls(design / scale, np.ones(len(m)))[0] / scale
    if slope * (m[-1] - m[0]) < 1e-9 * p[-1]:  # memory that does not rise is all state
        return _intervals([state], design[:, :1], level)[0], Interval.unresolved(level)
    if state == 0:
        return Interval(0.0, 0.0, None, level), _intervals([slope], design[:, 1:], level)[0]
    found = _intervals([state, slope], design, level)
    return found[0], found[1]


def _intervals(values: list[float], design: Floats, level: float) -> list[Interval]:
    """Student's intervals of least-squares coefficients whose target is 1 everywhere."""
    count, parameters = design.shape
    freedom = count - parameters
    if freedom < 1:
        return [Interval(float(v), None, None, level) for v in values]
    variance = float(np.sum((1 - design @ values) ** 2)) / freedom
    scale = np.linalg.norm(design, axis=0)
    inverse = np.linalg.pinv((design / scale).T @ (design / scale))
    half = float(stdtrit(freedom, (1 + level) / 2)) * np.sqrt(variance * np.diag(inverse)) / scale
    return [Interval(float(v), max(0.0, float(v - h)), float(v + h), level) for v, h in zip(values, half, strict=True)]


def _floor(m: Floats, p: Floats) -> tuple[float, float]:
    """The size from which the line holds, and the floor below it; the smallest size and 0 where no floor shows."""
    plain = _squares_of_line(m, p)
    best, from_size, floor = plain, float(m[0]), 0.0
    if math.sqrt(plain / len(m)) < FLOOR_ERROR:
        return from_size, floor
    for start in np.unique(m)[2:]:
        below = m < start
        if len(np.unique(m[~below])) < LEAST_ABOVE_FLOOR:
            break
        level = float(np.sum(1 / p[below]) / np.sum(1 / p[below] ** 2))
        squares = float(np.sum((level / p[below] - 1) ** 2)) + _squares_of_line(m[~below], p[~below])
        if squares < best and squares * FLOOR_GAIN < plain:
            best, from_size, floor = squares, float(start), level
    return from_size, floor


def _squares_of_line(m: Floats, p: Floats) -> float:
    from scipy.optimize import nnls

    design = np.stack([1 / p, m / p], axis=1)
    return float(nnls(design / np.linalg.norm(design, axis=0), np.ones(len(m)))[1] ** 2)


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))

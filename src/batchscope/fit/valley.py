"""The bottom of a valley: loss against the logarithm of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence


def valley_bottom(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, bool]:
    """The learning rate at the bottom of a valley, by a parabola through the best rate and its two neighbours.

    In u = log ε, through (u₋, L₋), (u₀, L₀), (u₊, L₊) with L₀ the least: the parabola's vertex, kept between the
    midpoints to either neighbour, so that a lopsided valley cannot throw it out.

    Args:
        rates: Learning rates, rising.
        losses: The loss at each; infinite where training diverged.

    Returns:
        The rate, and whether the best one lies at an end of what was tried. Beside a diverged neighbour the best
        rate itself, since a parabola knows nothing of cliffs.

    Raises:
        ValueError: No loss is finite.

    Examples:
        >>> rate, at_edge = valley_bottom([0.01, 0.1, 1.0], [2.0, 1.0, 2.0])
        >>> round(rate, 6), at_edge
        (0.1, False)
    """
    finite = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
    if not finite:
        raise ValueError("no finite loss")
    best = max(finite, key=lambda i: (-losses[i], i))  # the larger of equals, where the search went on from
    if best == 0 or best == len(rates) - 1:
        return rates[best], True
    left, right = losses[best - 1], losses[best + 1]
    if not (math.isfinite(left) and math.isfinite(right)):
        return rates[best], False
    u = [math.log(rates[i]) for i in (best - 1, best, best + 1)]
    slope_left = (losses[best] - left) / (u[1] - u[0])
    slope_right = (right - losses[best]) / (u[2] - u[1])
    if slope_right <= slope_left:  # flat
        return rates[best], False
    # The slope is exact at the middle of each half for a parabola; its zero lies between by linear interpolation.
    middle_left, middle_right = (u[0] + u[1]) / 2, (u[1] + u[2]) / 2
    zero = middle_left - slope_left * (middle_right - middle_left) / (slope_right - slope_left)
    return math.exp(min(max(zero, middle_left), middle_right)), False

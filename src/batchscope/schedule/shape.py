"""The learning rate over a budget."""

from __future__ import annotations

from batchscope.records import Shape


def rate_factor(shape: Shape, iteration: int, iterations: int) -> float:
    """What the learning rate is multiplied by at an update.

    Constant: 1. Linear: 1 − k/S at update k of S, so that the first update has the whole rate and the last one 1/S
    of it: none is wasted at a rate of zero.

    Args:
        shape: "constant" or "linear".
        iteration: The update, from 0.
        iterations: Updates in all.

    Returns:
        The factor, above 0 and at most 1.

    Examples:
        >>> [rate_factor("linear", k, 4) for k in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    return 1.0 if shape == "constant" else 1.0 - iteration / iterations

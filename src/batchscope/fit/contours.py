"""Lines of equal height through a grid of heights: marching squares."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Place = tuple[float, float]


def contour(
    along: Sequence[float], across: Sequence[float], heights: NDArray[np.float64], level: float
) -> list[tuple[Place, Place]]:
    """The pieces of the line where a surface has a height.

    In every cell of the grid the sides that the line crosses are found by linear interpolation and joined; where it
    crosses all four, the mean of the corners says which belong together.

    Args:
        along: First coordinates, ascending.
        across: Second coordinates, ascending.
        heights: A row for each second coordinate.
        level: The height.

    Returns:
        Pairs of places, in no order. Cells with a corner that is not finite have none.

    Examples:
        >>> contour([0.0, 1.0], [0.0, 1.0], np.array([[0.0, 1.0], [0.0, 1.0]]), 0.25)
        [((0.25, 0.0), (0.25, 1.0))]
    """
    found: list[tuple[Place, Place]] = []
    for j in range(len(across) - 1):
        for i in range(len(along) - 1):
            corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
            values = [float(heights[y, x]) for x, y in corners]
            if not all(map(math.isfinite, values)):
                continue
            above = [value >= level for value in values]
            crossed = [k for k in range(4) if above[k] != above[(k + 1) % 4]]
            points = {}
            for k in crossed:
                (x0, y0), (x1, y1) = corners[k], corners[(k + 1) % 4]
                share = (level - values[k]) / (values[(k + 1) % 4] - values[k])
                points[k] = (
                    float(along[x0] + share * (along[x1] - along[x0])),
                    float(across[y0] + share * (across[y1] - across[y0])),
                )
            if len(crossed) == 2:
                found.append((points[crossed[0]], points[crossed[1]]))
            elif len(crossed) == 4:
                middle = sum(values) / 4 >= level
                # Sides 0 and 3 meet at corner 0: the line cuts it off unless the middle belongs to it.
                pairs = ((0, 1), (2, 3)) if middle == above[0] else ((3, 0), (1, 2))
                found += [(points[a], points[b]) for a, b in pairs]
    return found

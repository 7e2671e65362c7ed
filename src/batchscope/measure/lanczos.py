"""Lanczos steps with full reorthogonalisation, and the quadrature that they make of a spectrum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from batchscope.measure.eigenvalues import Matrix

Floats = NDArray[np.float64]

# Of the largest coefficient: an off-diagonal one below this ends the steps, since nothing new is left in the space.
ENDED = 1e-6


def quadrature(
    matrix: Matrix, steps: int, *, generator: np.random.Generator, goes_on: Callable[[], None] = lambda: None
) -> tuple[Floats, Floats]:
    """Nodes and weights of the spectral density that a random vector sees.

    The eigenvalues of the tridiagonal matrix of the steps, and the squared first entries of its eigenvectors (Golub and
    Welsch 1969).

    Args:
        matrix: A symmetric matrix given by its products.
        steps: Lanczos steps; fewer where the dimension is smaller.
        generator: Draws the vector.
        goes_on: Called before every product.

    Returns:
        Ritz values, ascending, and their weights, whose sum is 1.

    Examples:
        >>> class Diagonal:
        ...     parameters = 4
        ...     def __matmul__(self, v):
        ...         return np.arange(1.0, 5.0) * v
        >>> nodes, weights = quadrature(Diagonal(), 10, generator=np.random.default_rng(0))
        >>> nodes.round(6).tolist(), round(float(weights.sum()), 9)
        ([1.0, 2.0, 3.0, 4.0], 1.0)
    """
    size = matrix.parameters
    steps = min(steps, size)
    vector = generator.standard_normal(size)
    vector /= np.linalg.norm(vector)
    basis = np.empty((steps, size))
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(steps):
        basis[step] = vector
        goes_on()
        through = matrix @ vector
        diagonal.append(float(vector @ through))
        for _ in range(2):  # twice is enough (Parlett 1980)
            through = through - basis[: step + 1].T @ (basis[: step + 1] @ through)
        length = float(np.linalg.norm(through))
        if length <= ENDED * max(map(abs, [*diagonal, *beside])) or step == steps - 1:
            break
        beside.append(length)
        vector = through / length
    between = beside[: len(diagonal) - 1]
    tridiagonal = np.diag(diagonal) + np.diag(between, 1) + np.diag(between, -1)
    nodes, turn = np.linalg.eigh(tridiagonal)
    return nodes, turn[0] ** 2

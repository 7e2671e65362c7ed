"""The largest eigenvalues of a curvature operator, with their true residuals, equal ones among them.

SciPy's implicitly restarted Lanczos method finds them from products alone. From one starting vector it sees but one
direction of each eigenspace, so that eigenvalues that are equal, or nearly so, can be left out. So what was found is
projected out and the largest one left is looked for anew, from another vector, until it lies below the least of those
that were asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

Floats = NDArray[np.float64]

# Below so many dimensions all columns are computed.
DENSE = 20
# How well one that was left out must be known to tell that it was, as a share of the largest; and how often to look.
CHECKED_TO, MOST_CHECKS = 0.02, 8
# Lanczos vectors before a restart, where one eigenvalue is looked for.
SHORT_BASIS, BASIS = 12, 20
# Restarts, at most.
MOST_RESTARTS = 300


class Matrix(Protocol):
    """A symmetric matrix given by its products."""

    @property
    def parameters(self) -> int:
        """Its dimension."""

    def __matmul__(self, vector: NDArray[Any], /) -> Floats:
        """A product."""


@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenvalues of a matrix.

    Attributes:
        values: Descending.
        vectors: Unit vectors, the columns of an array.
        residuals: ‖Hv − λv‖ of each: some eigenvalue of the matrix lies within this of λ.
        converged: Whether each met the tolerance.
    """

    values: Floats
    vectors: Floats
    residuals: Floats
    converged: tuple[bool, ...]


def top_eigenpairs(
    matrix: Matrix,
    count: int,
    *,
    tolerance: float,
    generator: np.random.Generator,
    checked: bool = True,
    goes_on: Callable[[], None] = lambda: None,
) -> Eigenpairs:
    """The largest eigenvalues, by value and not by size.

    Args:
        matrix: Of which.
        count: How many; all there are, where those are fewer.
        tolerance: Relative accuracy.
        generator: Draws starting vectors.
        checked: Whether to look for equal ones that were left out.
        goes_on: Called before every product; what it raises ends the search.

    Returns:
        The eigenvalues with their vectors and residuals.

    Examples:
        >>> class Diagonal:
        ...     parameters = 100
        ...     def __matmul__(self, v):
        ...         return np.r_[3.0, 3.0, np.linspace(0, 1, 98)] * v
        >>> found = top_eigenpairs(Diagonal(), 3, tolerance=1e-8, generator=np.random.default_rng(0))
        >>> found.values.round(6).tolist(), bool(found.residuals.max() < 1e-6)
        ([3.0, 3.0, 1.0], True)
    """
    size = matrix.parameters
    count = min(count, size)

    def product(vector: Floats) -> Floats:
        goes_on()
        return matrix @ vector.reshape(-1)

    if size <= max(DENSE, count + 1):
        dense = np.stack([product(column) for column in np.eye(size)], axis=1)
        values, vectors = np.linalg.eigh(_symmetric(dense))
        values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
        residuals = np.linalg.norm(dense @ vectors - values * vectors, axis=0)
        return Eigenpairs(values, vectors, residuals, (True,) * count)
    start = generator.standard_normal(size)
    values, vectors = _lanczos(product, start, count, tolerance=tolerance, basis=max(BASIS, 2 * count + 1))
    complete = len(values) == count
    for _ in range(MOST_CHECKS if checked and complete else 0):
        left = _largest_left(product, values, vectors, generator.standard_normal(size), CHECKED_TO)
        if left is None or left[0] <= values[-1] + tolerance * abs(values[0]):
            break
        # Refined from there, on what is left.
        value, vector = _largest_left(product, values, vectors, left[1], tolerance) or left
        order = np.argsort(np.append(values, value))[::-1][:count]
        values, vectors = np.append(values, value)[order], np.column_stack([vectors, vector])[:, order]
    through = np.stack([product(vector) for vector in vectors.T], axis=1) if len(values) else vectors
    # The best that the span of them has, with nothing lost: their products are known now.
    values, turn = np.linalg.eigh(_symmetric(vectors.T @ through))
    values, vectors, through = values[::-1], vectors @ turn[:, ::-1], through @ turn[:, ::-1]
    residuals = np.linalg.norm(through - values * vectors, axis=0)
    least = np.finfo(np.float64).tiny
    converged = tuple(bool(r <= max(10 * tolerance, 1e-4) * max(abs(values[0]), least)) for r in residuals)
    return Eigenpairs(values, vectors, residuals, converged)


def _symmetric(matrix: Floats) -> Floats:
    return (matrix + matrix.T) / 2


def _lanczos(
    product: Callable[[Floats], Floats],
    start: Floats,
    count: int,
    *,
    tolerance: float,
    basis: int,
) -> tuple[Floats, Floats]:
    """The largest eigenvalues, descending, and their vectors: those that converged, where not all did."""
    size = len(start)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    try:
        values, vectors = eigsh(
            operator, k=count, which="LA", v0=start, tol=tolerance, ncv=min(basis, size), maxiter=MOST_RESTARTS
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    order = np.argsort(values)[::-1]
    return np.asarray(values)[order], np.asarray(vectors)[:, order]


def _largest_left(
    product: Callable[[Floats], Floats],
    values: Floats,
    vectors: Floats,
    start: Floats,
    tolerance: float,
) -> tuple[float, Floats] | None:
    """The largest eigenvalue that is left when those found are projected out; None where it was not found."""
    if len(values) >= len(start) - 1:
        return None
    # What was found is moved below everything else, and not to zero, which may be the largest of the rest.
    below = -2.0 * float(np.abs(values).max())

    def rest(vector: Floats) -> Floats:
        vector = vector.reshape(-1)
        along = vectors.T @ vector
        beside = vector - vectors @ along
        through = product(beside)
        return np.asarray(through - vectors @ (vectors.T @ through) + below * (vectors @ along))

    first = start - vectors @ (vectors.T @ start)
    value, vector = _lanczos(rest, first, 1, tolerance=tolerance, basis=SHORT_BASIS)
    if not len(value):
        return None
    found = vector[:, 0] - vectors @ (vectors.T @ vector[:, 0])
    return float(value[0]), found / np.linalg.norm(found)

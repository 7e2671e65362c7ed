"""The largest eigenvalues of a curvature operator, with their true residuals, equal ones among them.

A Rayleigh–Ritz method on a growing subspace whose products are kept: Lanczos' method with full reorthogonalisation,
restarted thickly (Wu and Simon 2000, SIAM J. Matrix Anal. Appl. 22) when the room is used up. Products are what costs,
so it ends at the very one after which the residuals are small, and has these for nothing. (SciPy's eigsh looks whether
it is done at the end of a restart, and leaves the residuals to be computed.)

From one starting vector one direction of each eigenspace is seen, so that eigenvalues that are equal, or nearly so, can
be left out. So another vector is let grow in what the subspace leaves, until the largest eigenvalue there is known
roughly. Whatever belongs among the largest shows in the subspace of both, and is refined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Below so many dimensions all columns are computed.
DENSE = 20
# Dimensions of the subspace before a restart, besides four for each eigenvalue; those that a restart keeps besides
# those wanted; and about the most memory that the subspace and its products take.
ROOM, KEPT_BESIDE, ROOM_BYTES = 32, 8, 1 << 30
# How well the largest of what may have been left out must be known, as a share of it; steps towards it, the least and
# the most; and how often it is looked for.
CHECKED_TO, LEAST_STEPS, CHECK_STEPS, MOST_CHECKS = 0.005, 5, 24, 8
# Where it lies below those wanted by so many times what it may be off, it need not be known better than to this share.
FAR, CHECKED_FAR = 3.0, 0.2
MOST_PRODUCTS = 3000
# Residuals fall no lower than some times the rounding of the products.
ROUNDING_FACTOR = 10.0
# By the Gram matrix of the products residuals are known down to about this share of the largest eigenvalue.
GRAM_ACCURACY = 1e-7
# A direction that is this much of a vector's length, or less, is rounding.
NOTHING_NEW = 1e-10


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
    rounding: float = 0.0,
    goes_on: Callable[[], None] = lambda: None,
) -> Eigenpairs:
    """The largest eigenvalues, by value and not by size.

    Args:
        matrix: Of which.
        count: How many; all there are, where those are fewer.
        tolerance: Of the residual of each, relative to its eigenvalue.
        generator: Draws starting vectors.
        checked: Whether to look for equal ones that were left out.
        rounding: Relative rounding of the products.
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
        return matrix @ vector

    if size <= max(DENSE, count + 1):
        dense = np.stack([product(column) for column in np.eye(size)], axis=1)
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
        residuals = np.linalg.norm(dense @ vectors - values * vectors, axis=0)
        return Eigenpairs(values, vectors, residuals, (True,) * count)
    search = _Search(product, size, count=count, tolerance=tolerance, rounding=rounding, generator=generator)
    search.converge(generator.standard_normal(size))
    for _ in range(MOST_CHECKS if checked else 0):
        if not search.is_converged() or not search.finds_another():
            break
    values, vectors, residuals = search.found()
    limit = max(10 * tolerance, 1e-4) * max(abs(values[0]), np.finfo(np.float64).tiny)
    return Eigenpairs(values, vectors, residuals, tuple(bool(residual <= limit) for residual in residuals))


class _Search:
    """A subspace with its products, and the best that it has.

    Args:
        product: Multiplies a vector.
        size: Dimension of the matrix.
        count: Eigenvalues wanted.
        tolerance: Of residuals, relative.
        rounding: Of products, relative.
        generator: Draws vectors.
    """

    def __init__(
        self,
        product: Callable[[Floats], Floats],
        size: int,
        *,
        count: int,
        tolerance: float,
        rounding: float,
        generator: np.random.Generator,
    ) -> None:
        self.product, self.size, self.count, self.generator = product, size, count, generator
        self.tolerance, self.rounding = tolerance, rounding
        self.keep = count + KEPT_BESIDE
        affordable = ROOM_BYTES // (16 * size)
        room = min(size, max(self.keep + 4, min(4 * count + ROOM, affordable)))
        # Orthonormal rows, their products, and the inner products of both: the matrix within the subspace, and of the
        # products with each other, which residuals follow from without touching long vectors.
        self.basis, self.through = np.empty((room, size)), np.empty((room, size))
        self.within, self.gram = np.zeros((room, room)), np.zeros((room, room))
        self.used = self.products = 0

    def converge(self, direction: Floats) -> None:
        """Let the subspace grow from a direction until the wanted residuals are small, or nothing more can be had."""
        while self.products < MOST_PRODUCTS:
            if self.used == len(self.basis):
                if self.used == self.size:
                    return
                direction = self._worst_residual()
                self._restart(self.keep)
            if not self._grow(direction) and not self._grow(self.generator.standard_normal(self.size)):
                return
            if self.is_converged():
                return
            direction = self.through[self.used - 1]

    def finds_another(self) -> bool:
        """Let another vector grow in what the subspace leaves; whether something of the wanted was left out there."""
        before = self.values()[: self.count]
        if self.used + CHECK_STEPS > len(self.basis):
            self._restart(min(self.keep, len(self.basis) - 4))
        first, direction = self.used, self.generator.standard_normal(self.size)
        reach = np.inf
        while self.used < min(len(self.basis), first + CHECK_STEPS) and self._grow(direction):
            direction = self.through[self.used - 1]
            last, (largest, reach) = reach, self._largest_since(first, direction)
            below = largest + FAR * reach < self.values()[self.count - 1]
            known = reach <= (CHECKED_FAR if below else CHECKED_TO) * abs(largest)
            # Where it grows again something larger has just begun to show.
            if self.used >= first + LEAST_STEPS and known and reach <= last and self.is_converged():
                break
        if self.used < self.size and not self.is_converged():
            self.converge(self._worst_residual())
        gained = self.values()[: self.count] - before
        return bool((gained > self.tolerance * abs(before[0])).any())

    def is_converged(self) -> bool:
        """Whether the residuals of the wanted ones are as small as asked for."""
        if self.used < min(self.count + 1, self.size):
            return False
        values, turn = self._ritz()
        allowed = np.maximum(self.tolerance * np.abs(values), ROUNDING_FACTOR * self.rounding * np.abs(values).max())
        squares = np.einsum("ji,jk,ki->i", turn, self.gram[: self.used, : self.used], turn) - values**2
        seen = GRAM_ACCURACY * np.abs(values).max()
        if (np.sqrt(np.maximum(squares, 0.0)) > np.maximum(allowed, seen)).any():
            return False
        return bool((allowed > seen).all() or (self._residuals(values, turn) <= allowed).all())

    def found(self) -> tuple[Floats, Floats, Floats]:
        """The wanted values, their vectors as columns, and their residuals."""
        values, turn = self._ritz()
        return values, self.basis[: self.used].T @ turn, self._residuals(values, turn)

    def values(self) -> Floats:
        """Of the subspace, descending."""
        values: Floats = np.linalg.eigh(self.within[: self.used, : self.used])[0]
        return values[::-1]

    def _ritz(self, first: int = 0) -> tuple[Floats, Floats]:
        """The wanted values of the subspace from a basis vector on, descending, and their vectors in its basis."""
        values, turn = np.linalg.eigh(self.within[first : self.used, first : self.used])
        return values[::-1][: self.count], turn[:, ::-1][:, : self.count]

    def _residuals(self, values: Floats, turn: Floats) -> Floats:
        rest = turn.T @ self.through[: self.used] - values[:, None] * (turn.T @ self.basis[: self.used])
        lengths: Floats = np.sqrt(np.einsum("ij,ij->i", rest, rest))
        return lengths

    def _worst_residual(self) -> Floats:
        """The residual of the wanted one that is furthest from converged."""
        values, turn = self._ritz()
        k = int(np.argmax(self._residuals(values, turn) / np.maximum(np.abs(values), 1e-12 * np.abs(values).max())))
        rest: Floats = turn[:, k] @ self.through[: self.used] - values[k] * (turn[:, k] @ self.basis[: self.used])
        return rest

    def _largest_since(self, first: int, direction: Floats) -> tuple[float, float]:
        """The largest value in what was added since, and within what of it there is an eigenvalue of what is left.

        Args:
            first: Basis vectors before.
            direction: The next one, not yet orthogonal.
        """
        values, turn = self._ritz(first)
        return float(values[0]), float(np.linalg.norm(self._beside(direction)) * abs(turn[-1, 0]))

    def _beside(self, vector: Floats) -> Floats:
        """The part that is orthogonal to the subspace; twice is enough (Parlett 1980)."""
        for _ in range(2):
            vector = vector - (self.basis[: self.used] @ vector) @ self.basis[: self.used]
        return vector

    def _grow(self, direction: Floats) -> bool:
        """Add a direction with its product, unless it lies in the subspace already."""
        whole = float(np.linalg.norm(direction))
        beside = self._beside(direction)
        length = float(np.linalg.norm(beside))
        if self.used == len(self.basis) or not length > NOTHING_NEW * whole:
            return False
        k = self.used
        self.basis[k] = beside / length
        self.through[k] = self.product(self.basis[k])
        self.products += 1
        self.used = k + 1
        inside = self.basis[: k + 1] @ self.through[k]
        # Symmetric but for rounding: the mean of the two.
        inside[:k] = (inside[:k] + self.through[:k] @ self.basis[k]) / 2
        self.within[k, : k + 1] = self.within[: k + 1, k] = inside
        self.gram[k, : k + 1] = self.gram[: k + 1, k] = self.through[: k + 1] @ self.through[k]
        return True

    def _restart(self, keep: int) -> None:
        """Keep the subspace of so many largest ones."""
        values, turn = np.linalg.eigh(self.within[: self.used, : self.used])
        keep = min(keep, self.used)
        turn = turn[:, ::-1][:, :keep]
        for rows in (self.basis, self.through):
            rows[:keep] = turn.T @ rows[: self.used]
        self.gram[:keep, :keep] = turn.T @ self.gram[: self.used, : self.used] @ turn
        self.within[:keep, :keep] = np.diag(values[::-1][:keep])
        self.used = keep

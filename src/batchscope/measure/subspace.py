"""A random subspace of weight space, held or drawn anew as memory allows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Columns are held in memory up to this many bytes, and drawn anew for every product beyond.
HELD_BYTES = 2 << 30
BLOCK_BYTES = 64 << 20


class Subspace:
    """The range of A, a matrix whose columns are random directions of unit length.

    Args:
        dimensions: Rows of A.
        size: Columns.
        seed: Of the columns; the same ones whether they are held or not.
        held_bytes: The most memory that they are held in.

    Examples:
        >>> space = Subspace(1000, 10, seed=0)
        >>> bool(np.allclose(space.coordinates(space @ np.arange(10.0)), np.arange(10.0)))
        True
    """

    def __init__(self, dimensions: int, size: int, *, seed: int, held_bytes: int = HELD_BYTES) -> None:
        self.dimensions, self.size, self.seed = dimensions, size, seed
        self._block = max(1, min(size, BLOCK_BYTES // (8 * dimensions)))
        holds = 8 * dimensions * size <= held_bytes
        self._held = list(self._drawn()) if holds else None

    def __matmul__(self, coordinates: Floats) -> Floats:
        """A·z."""
        total = np.zeros(self.dimensions)
        for first, columns in self._blocks():
            total += columns @ coordinates[first : first + columns.shape[1]]
        return total

    def transposed(self, vector: Floats) -> Floats:
        """Aᵀ·v."""
        return np.concatenate([columns.T @ vector for _, columns in self._blocks()])

    def coordinates(self, vector: Floats) -> Floats:
        """A⁺·v, the coordinates of the point of the subspace that is nearest to v."""
        from scipy.sparse.linalg import LinearOperator, cg

        # Random columns are nearly orthogonal, so that conjugate gradients on AᵀA·z = Aᵀv take a few steps only.
        gram = LinearOperator((self.size, self.size), matvec=lambda z: self.transposed(self @ z), dtype=np.float64)
        found, _ = cg(gram, self.transposed(vector), rtol=1e-12, maxiter=10 * self.size)
        return np.asarray(found)

    def _blocks(self) -> Iterator[tuple[int, Floats]]:
        yield from self._held if self._held is not None else self._drawn()

    def _drawn(self) -> Iterator[tuple[int, Floats]]:
        generator = np.random.default_rng(self.seed)
        for first in range(0, self.size, self._block):
            count = min(self._block, self.size - first)
            # Column by column, so that the block size does not matter.
            columns = np.stack([generator.standard_normal(self.dimensions) for _ in range(count)], axis=1)
            yield first, columns / np.linalg.norm(columns, axis=0)

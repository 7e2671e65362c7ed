"""The search for the largest eigenvalues on spectra that are known: equal ones, close ones, none above zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from batchscope.measure import eigenvalues
from batchscope.measure.eigenvalues import top_eigenpairs

Floats = NDArray[np.float64]


class Diagonal:
    """A matrix with these eigenvalues, that counts its products."""

    def __init__(self, values: Floats) -> None:
        self.values, self.products = values, 0

    @property
    def parameters(self) -> int:
        return len(self.values)

    def __matmul__(self, vector: Floats) -> Floats:
        self.products += 1
        through: Floats = self.values * vector
        return through


def equal_ones(rng: np.random.Generator, size: int) -> Floats:
    top = np.repeat(rng.uniform(1, 10, 5), rng.integers(1, 4, 5))
    values: Floats = np.r_[top, rng.uniform(-0.1, 0.9, size - len(top))]
    return values


def close_ones(rng: np.random.Generator, size: int) -> Floats:
    top = rng.uniform(1, 3, 3)
    values: Floats = np.r_[top, top * (1 - 1e-3), top * (1 - 1e-2), rng.uniform(-1, 0.8, size - 9)]
    return values


def power_law(rng: np.random.Generator, size: int) -> Floats:
    return 10.0 / np.arange(1, size + 1)


def none_above_zero(rng: np.random.Generator, size: int) -> Floats:
    values: Floats = -np.r_[rng.uniform(50, 100, 5), rng.uniform(1, 2, size - 5)]
    return values


@pytest.mark.parametrize("spectrum", [equal_ones, close_ones, power_law, none_above_zero])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_known_spectra(spectrum: Callable[[np.random.Generator, int], Floats], count: int) -> None:
    rng = np.random.default_rng(count)
    for size in (30, 200, 3000):
        values = rng.permutation(spectrum(rng, size))
        found = top_eigenpairs(Diagonal(values), count, tolerance=1e-5, generator=rng)
        expected = np.sort(values)[::-1][:count]
        np.testing.assert_allclose(found.values, expected, rtol=1e-5)
        assert all(found.converged)
        true = np.linalg.norm(values[:, None] * found.vectors - found.vectors * found.values, axis=0)
        np.testing.assert_allclose(found.residuals, true, atol=1e-9 * np.abs(values).max())
        np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(count), atol=1e-9)


def test_equal_ones_are_looked_for_only_where_that_is_asked() -> None:
    values = np.r_[5.0, 5.0, 2.0, np.random.default_rng(1).uniform(0, 1, 2997)]
    matrices = Diagonal(values), Diagonal(values)
    checked, unchecked = (
        top_eigenpairs(matrix, 2, tolerance=1e-3, generator=np.random.default_rng(0), checked=k == 0)
        for k, matrix in enumerate(matrices)
    )
    np.testing.assert_allclose(checked.values, [5, 5], rtol=1e-5)
    np.testing.assert_allclose(unchecked.values, [5, 2], rtol=1e-5)  # one vector sees one direction of the two
    assert matrices[1].products < matrices[0].products


def test_a_small_room_is_enough_and_a_search_that_must_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.r_[3.0, 2.9, np.linspace(0, 2, 1998)]
    monkeypatch.setattr(eigenvalues, "ROOM_BYTES", 1)  # the least that a restart needs
    matrix = Diagonal(values)
    found = top_eigenpairs(matrix, 2, tolerance=1e-6, generator=np.random.default_rng(0))
    np.testing.assert_allclose(found.values, [3.0, 2.9], rtol=1e-6)
    monkeypatch.setattr(eigenvalues, "MOST_PRODUCTS", 6)
    ended = top_eigenpairs(Diagonal(values), 2, tolerance=1e-6, generator=np.random.default_rng(0))
    assert not any(ended.converged)
    assert len(ended.values) == 2


def test_what_goes_on_may_end_it() -> None:
    matrix = Diagonal(np.linspace(0, 1, 500))

    def goes_on() -> None:
        if matrix.products == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        top_eigenpairs(matrix, 2, tolerance=1e-6, generator=np.random.default_rng(0), goes_on=goes_on)
    assert matrix.products == 4

"""All eigenvalues of the training loss's curvature at once: their sum, and how they are spread.

From random vectors, by exact products with the Hessian or the Gauss–Newton matrix
(:mod:`batchscope.measure.curvature_operators`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batchscope.errors import ArgumentError
from batchscope.fit.intervals import mean_interval
from batchscope.measure.arguments import checked_whole
from batchscope.measure.curvature_operators import counting, operator_at
from batchscope.measure.eigenvalues import Matrix
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records import CurvatureMatrix, HessianEigenvalues, HessianTrace, Interval, SpectralDensity
from batchscope.seeding import derive
from batchscope.workload.workload import Workload

Floats = NDArray[np.float64]

# Eigenvalues this small beside the largest are zero, for what single precision knows of them.
ROUNDING = 1e-5
GRID = 512
# Of the largest coefficient: an off-diagonal one below this ends the steps, since nothing new is left in the space.
ENDED = 1e-6


def hessian_trace(
    workload: Workload,
    state: Mapping[str, Any] | None = None,
    *,
    examples: int | None = None,
    matrix: CurvatureMatrix = "hessian",
    samples: int = 30,
    eigenvalues: HessianEigenvalues | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> HessianTrace:
    """The trace of the Hessian of the mean training loss, with an interval.

    Hutchinson's estimate (1990): the mean of vᵀHv over random vectors of signs, whose variance is 2·Σ H_ij² over i ≠ j.
    With eigenvalues that are known already, their part is exact and the random vectors see the rest alone (Meyer et al.
    2021, arXiv 2010.09649), which makes the interval narrower by as much as they stand out.

    Args:
        workload: What is trained.
        state: A state dict; None: fresh weights under the seed.
        examples: Training examples that the loss is the mean of; None: as :func:`hessian_eigenvalues` chooses.
        matrix: "hessian", or "gauss-newton".
        samples: Random vectors.
        eigenvalues: Of the same matrix at the same weights, with their vectors.
        seed: Draws the examples, fresh weights and random vectors.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function that is called with every step.

    Returns:
        The trace with its 95% interval, by Student's t over the vectors.

    Raises:
        ArgumentError: A number that makes no sense, or eigenvalues of another matrix.
        WorkloadError: As for :func:`hessian_eigenvalues`.

    Examples:
        >>> import batchscope as bs
        >>> workload = bs.load_workload("quadratic")
        >>> found = hessian_trace(workload, samples=20)  # a diagonal Hessian, of which signs miss nothing
        >>> found.samples, round(found.trace.high - found.trace.low, 3)
        (20, 0.0)
    """
    began = time.perf_counter()
    samples = checked_whole("samples", samples, least=2)
    operator, weights_device = operator_at(workload, state, matrix, examples, seed=seed, device=device)
    known, basis = 0.0, np.zeros((operator.parameters, 0))
    if eigenvalues is not None:
        basis = np.asarray(eigenvalues.vectors)
        if eigenvalues.matrix != matrix or basis.ndim != 2 or len(basis) != operator.parameters:
            raise ArgumentError(
                "eigenvalues must be those of the same matrix, with their vectors",
                got=f"{eigenvalues.matrix}, {eigenvalues.parameters} parameters",
                mend="give what hessian_eigenvalues returned for this workload and these weights",
            )
        known = float(sum(eigenvalues.values))
    generator = np.random.default_rng(derive(seed, "trace"))
    found = []
    with reporter(progress, "trace") as report:
        goes_on = counting(report, operator, samples)
        for _ in range(samples):
            goes_on()
            vector = generator.choice([-1.0, 1.0], size=operator.parameters)
            vector -= basis @ (basis.T @ vector)
            # What is projected out of the vector is so of the matrix, whose own part of it is exact.
            found.append(known + float(vector @ (operator @ vector)))
    operator.release()
    size = operator.parameters
    return HessianTrace(
        workload=workload.title,
        matrix=matrix,
        parameters=size,
        examples=operator.examples,
        trace=mean_interval(found),
        mean_eigenvalue=mean_interval([value / size for value in found]),
        samples=samples,
        projected_out=basis.shape[1],
        products=operator.products,
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=weights_device, seed=seed),
    )


def spectral_density(
    workload: Workload,
    state: Mapping[str, Any] | None = None,
    *,
    examples: int | None = None,
    matrix: CurvatureMatrix = "hessian",
    runs: int = 4,
    steps: int = 60,
    width: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> SpectralDensity:
    """How the eigenvalues of the Hessian of the mean training loss are spread: stochastic Lanczos quadrature.

    From each random vector, Lanczos steps with full reorthogonalisation make a quadrature of the spectral density that
    is exact for polynomials of degree 2·steps − 1 (Lin, Saad and Yang 2016, arXiv 1308.5467; Ghorbani et al. 2019,
    arXiv 1901.10159); the mean over vectors is drawn with Gaussians.

    Args:
        workload: What is trained.
        state: A state dict; None: fresh weights under the seed.
        examples: Training examples that the loss is the mean of; None: as :func:`hessian_eigenvalues` chooses.
        matrix: "hessian", or "gauss-newton".
        runs: Random vectors.
        steps: Lanczos steps from each; the memory is that of so many vectors.
        width: Standard deviation of the Gaussians; None: a hundredth of the spectrum's reach.
        seed: Draws the examples, fresh weights and random vectors.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function that is called with every step.

    Returns:
        The density over a grid, and the quadrature itself.

    Raises:
        ArgumentError: A number that makes no sense.
        WorkloadError: As for :func:`hessian_eigenvalues`.

    Examples:
        >>> import batchscope as bs
        >>> found = spectral_density(bs.load_workload("quadratic"), steps=20)
        >>> abs(sum(found.weights) - 1) < 1e-9, 0.9 < found.nodes[-1] < 1.1
        (True, True)
    """
    began = time.perf_counter()
    runs, steps = checked_whole("runs", runs), checked_whole("steps", steps, least=2)
    if width is not None and not (isinstance(width, (int, float)) and 0 < width < math.inf):
        raise ArgumentError("width must be a positive number", got=width)
    operator, weights_device = operator_at(workload, state, matrix, examples, seed=seed, device=device)
    nodes: list[NDArray[np.float64]] = []
    weights: list[NDArray[np.float64]] = []
    with reporter(progress, "spectral density") as report:
        goes_on = counting(report, operator, runs * min(steps, operator.parameters))
        for run in range(runs):
            generator = np.random.default_rng(derive(seed, "density", run))
            own, shares = quadrature(operator, steps, generator=generator, goes_on=goes_on)
            nodes.append(own)
            weights.append(shares)
    operator.release()
    least = ROUNDING * max(float(np.abs(own).max()) for own in nodes)
    negative = [float(shares[own < -least].sum()) for own, shares in zip(nodes, weights, strict=True)]
    places, shares = np.concatenate(nodes), np.concatenate(weights) / runs
    order = np.argsort(places)
    places, shares = places[order], shares[order]
    reach = float(places[-1] - places[0]) or max(abs(float(places[0])), 1.0)
    spread = reach / 100 if width is None else float(width)
    grid = np.linspace(places[0] - 4 * spread, places[-1] + 4 * spread, GRID)
    density = np.exp(-(((grid[:, None] - places) / spread) ** 2) / 2) @ shares / (spread * math.sqrt(2 * math.pi))
    return SpectralDensity(
        workload=workload.title,
        matrix=matrix,
        parameters=operator.parameters,
        examples=operator.examples,
        eigenvalues=tuple(grid.tolist()),
        density=tuple(density.tolist()),
        width=spread,
        nodes=tuple(places.tolist()),
        weights=tuple(shares.tolist()),
        share_negative=_mean_share(negative),
        runs=runs,
        steps=min(steps, operator.parameters),
        products=operator.products,
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=weights_device, seed=seed),
    )


def _mean_share(values: list[float]) -> Interval:
    """The mean of shares with its 95% interval, which does not go below zero."""
    found = mean_interval(values)
    return found if found.low is None else replace(found, low=max(0.0, found.low))


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

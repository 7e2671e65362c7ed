"""Curvature of the training loss at given weights: largest eigenvalues, trace, spectral density, the rate they allow.

All of it from exact products with the Hessian or the Gauss–Newton matrix
(:mod:`batchscope.measure.curvature_operators`), on a sample of training examples, in evaluation mode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import nn

from batchscope.errors import ArgumentError
from batchscope.fit.intervals import mean_interval
from batchscope.measure.curvature_operators import GaussNewton, Hessian, Operator
from batchscope.measure.eigenvalues import top_eigenpairs
from batchscope.measure.lanczos import quadrature
from batchscope.measure.state import loaded
from batchscope.progress import Report, Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records import Interval
from batchscope.records.curvature import CurvatureMatrix, HessianEigenvalues, HessianTrace, SpectralDensity
from batchscope.seeding import derive, isolated
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

# Where nothing is said: enough for the largest eigenvalues to be those of the training loss within some per cent.
EXAMPLES = 4096
MATRICES: dict[CurvatureMatrix, type[Operator]] = {"hessian": Hessian, "gauss-newton": GaussNewton}
# Products that an eigenvalue takes, and the first one, where nothing is known yet: for the cost told beforehand.
PRODUCTS_EACH, PRODUCTS_FIRST = 7, 20
# Eigenvalues this small beside the largest are zero, for what single precision knows of them.
ROUNDING = 1e-5
# A product is off by about this many units in the last place, beside the largest eigenvalue.
PRODUCT_EPS = 10.0
GRID = 512


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue of the Hessian, with what is known of its error.

    Attributes:
        value: λ.
        residual: ‖Hv − λv‖ of its unit vector: some eigenvalue lies within this of λ.
        converged: Whether the method met its tolerance.
        products: Hessian-vector products that it took.
        examples: Examples behind the loss.
    """

    value: float
    residual: float
    converged: bool
    products: int
    examples: int


def hessian_eigenvalues(
    workload: Workload,
    state: Mapping[str, Any] | None = None,
    k: int = 5,
    *,
    examples: int | None = None,
    matrix: CurvatureMatrix = "hessian",
    tolerance: float = 1e-4,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> HessianEigenvalues:
    """The k largest eigenvalues of the Hessian of the mean training loss, with vectors and true residuals.

    Implicitly restarted Lanczos (Lehoucq, Sorensen and Yang 1998) on exact products. Equal eigenvalues, which it can
    leave out, are looked for by themselves. The model is in evaluation mode: dropout is off, and batch norm uses its
    running statistics.

    Args:
        workload: What is trained.
        state: A state dict; None: fresh weights under the seed.
        k: How many; all, where there are fewer.
        examples: Training examples of the loss, drawn without replacement; None: 4,096, or all where there are fewer.
        matrix: "hessian", or "gauss-newton" for JᵀH_L J.
        tolerance: Relative accuracy at which the method stops; single precision allows about 1e-5.
        seed: Draws the examples, fresh weights and the first vectors.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr, and first what it is going to cost; or a function that is told.

    Returns:
        The eigenvalues, descending by value, and the learning rate that the first allows.

    Raises:
        ArgumentError: A number that makes no sense.
        WorkloadError: Weights that do not fit the model, derivatives that are not finite, or a loss that differs from
            one call to the next.

    Examples:
        >>> import batchscope as bs
        >>> found = hessian_eigenvalues(bs.load_workload("quadratic"), k=2)
        >>> round(found.values[0], 4), max(found.residuals) < 1e-3, found.told_apart
        (1.0, True, (True, True))
    """
    began = time.perf_counter()
    k = _whole("k", k)
    _check_tolerance(tolerance)
    operator, weights_device = _operator(workload, state, matrix, examples, seed=seed, device=device)
    with reporter(progress, "eigenvalues") as report:
        goes_on = _counting(report, operator, PRODUCTS_FIRST + PRODUCTS_EACH * min(k, operator.parameters))
        found = top_eigenpairs(
            operator,
            k,
            tolerance=tolerance,
            generator=np.random.default_rng(derive(seed, "first vector")),
            goes_on=goes_on,
        )
    operator.release()
    # Residuals are of products as they are computed, whose own rounding they don't see.
    reach = np.append(found.residuals + PRODUCT_EPS * operator.epsilon * np.abs(found.values).max(), 0.0)
    gaps = np.append(-np.diff(found.values), math.inf)
    return HessianEigenvalues(
        workload=workload.title,
        matrix=matrix,
        parameters=operator.parameters,
        examples=operator.examples,
        values=tuple(found.values.tolist()),
        residuals=tuple(found.residuals.tolist()),
        converged=found.converged,
        told_apart=tuple(bool(gap > a + b) for gap, a, b in zip(gaps, reach[:-1], reach[1:], strict=True)),
        learning_rate=workload.learning_rate,
        stable_learning_rate=curvature_bound(_optimizer(workload), float(found.values[0])),
        products=operator.products,
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=weights_device, seed=seed),
        vectors=found.vectors,
    )


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
        examples: As for :func:`hessian_eigenvalues`, and so is what is not named here.
        matrix: Likewise.
        samples: Random vectors.
        eigenvalues: Of the same matrix at the same weights, with their vectors.
        seed: Likewise.
        device: Likewise.
        progress: Likewise.

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
    samples = _whole("samples", samples, least=2)
    operator, weights_device = _operator(workload, state, matrix, examples, seed=seed, device=device)
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
        goes_on = _counting(report, operator, samples)
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
        examples: As for :func:`hessian_eigenvalues`, and so is what is not named here.
        matrix: Likewise.
        runs: Random vectors.
        steps: Lanczos steps from each; the memory is that of so many vectors.
        width: Standard deviation of the Gaussians; None: a hundredth of the spectrum's reach.
        seed: Likewise.
        device: Likewise.
        progress: Likewise.

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
    runs, steps = _whole("runs", runs), _whole("steps", steps, least=2)
    if width is not None and not (isinstance(width, (int, float)) and 0 < width < math.inf):
        raise ArgumentError("width must be a positive number", got=width)
    operator, weights_device = _operator(workload, state, matrix, examples, seed=seed, device=device)
    nodes: list[NDArray[np.float64]] = []
    weights: list[NDArray[np.float64]] = []
    with reporter(progress, "spectral density") as report:
        goes_on = _counting(report, operator, runs * min(steps, operator.parameters))
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
    density = norm.pdf(grid[:, None], loc=places, scale=spread) @ shares
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


def largest_eigenvalue(
    workload: Workload,
    state: Mapping[str, Any] | None = None,
    *,
    examples: int = 1024,
    tolerance: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Eigenvalue:
    """The largest eigenvalue λ_max of the Hessian of the training loss, on a sample of examples.

    Args:
        workload: What is trained.
        state: A state dict; None: fresh weights under the seed.
        examples: Training examples to use, drawn without replacement; all of them where there are fewer.
        tolerance: Relative accuracy at which the method stops; single precision allows about 1e-5.
        seed: Draws the examples, fresh weights and the first vector.
        device: "cpu", "cuda" …; None: CUDA where there is one.

    Returns:
        The eigenvalue of largest value (not of largest size) and its residual.

    Raises:
        ArgumentError: A number of examples or a tolerance that makes no sense.
        WorkloadError: Weights that do not fit the model, or derivatives that are not finite.

    Examples:
        >>> import batchscope as bs
        >>> round(largest_eigenvalue(bs.load_workload("quadratic")).value, 4)
        1.0
    """
    _check_tolerance(tolerance)
    operator, _ = _operator(workload, state, "hessian", examples, seed=seed, device=device)
    generator = np.random.default_rng(derive(seed, "first vector"))
    found = top_eigenpairs(operator, 1, tolerance=tolerance, generator=generator, checked=False)
    operator.release()
    if not len(found.values):
        return Eigenvalue(math.nan, math.nan, converged=False, products=operator.products, examples=operator.examples)
    return Eigenvalue(
        float(found.values[0]), float(found.residuals[0]), found.converged[0], operator.products, operator.examples
    )


def _operator(
    workload: Workload,
    state: Mapping[str, Any] | None,
    matrix: CurvatureMatrix,
    examples: int | None,
    *,
    seed: int,
    device: str | torch.device | None,
) -> tuple[Operator, torch.device]:
    seed = checked_seed(seed)
    count = EXAMPLES if examples is None else _whole("examples", examples)
    if matrix not in MATRICES:
        raise ArgumentError(f"matrix must be one of {', '.join(MATRICES)}", got=matrix)
    chosen = chosen_device(device)
    generator = torch.Generator().manual_seed(derive(seed, "curvature examples"))
    indices = torch.randperm(workload.training_examples, generator=generator)[:count].tolist()
    with isolated(derive(seed, "weights"), chosen):
        model = loaded(workload.model(), state).to(chosen)
        return MATRICES[matrix](workload, model, indices, seed=derive(seed, "curvature")), chosen


def _counting(report: Report, operator: Operator, expected: int) -> Callable[[], None]:
    """Tells before each product how many there were; after the first one, what all of them are going to take."""
    began = time.perf_counter()

    def goes_on() -> None:
        done = operator.products
        each = (time.perf_counter() - began) / done if done else 0.0
        report.update(
            label=f"products over {operator.examples:,} examples",
            done=min(done, expected),
            total=expected,
            seconds_left=each * max(0, expected - done) if done else None,
        )

    return goes_on


def _mean_share(values: list[float]) -> Interval:
    """The mean of shares with its 95% interval, which does not go below zero."""
    found = mean_interval(values)
    return found if found.low is None else replace(found, low=max(0.0, found.low))


def _optimizer(workload: Workload) -> torch.optim.Optimizer:
    return workload.optimizer([nn.Parameter(torch.zeros(1))], workload.learning_rate)


def _whole(name: str, value: int, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}", got=value)
    return value


def _check_tolerance(tolerance: float) -> None:
    if not (isinstance(tolerance, (int, float)) and 0 < tolerance < 1):
        raise ArgumentError("tolerance must be between 0 and 1", got=tolerance)


def curvature_bound(optimizer: torch.optim.Optimizer, eigenvalue: float) -> float | None:
    """The learning rate from which on this optimiser is unstable along an eigenvector of that curvature.

    On a quadratic of curvature λ, with momentum m (heavy ball, dampening d): the iteration
    θ₊ = θ + m(θ − θ₋) − ε(1 − d)λθ has both roots inside the unit circle for ε(1 − d)λ < 2(1 + m). Nesterov's, which
    takes the gradient of m·b₊ + g after torch's form, for ελ < 2(1 + m)/(1 + 2m). Weight decay w adds to λ. Each is a
    bound for noiseless full batches; with noise the edge comes sooner (Cohen et al. 2021, arXiv 2103.00065).

    Args:
        optimizer: Its first group's settings count.
        eigenvalue: λ_max.

    Returns:
        The bound; None where λ is not above zero, and for optimisers that scale their steps by themselves.

    Examples:
        >>> weight = [torch.zeros(1)]
        >>> curvature_bound(torch.optim.SGD(weight, lr=0.1, momentum=0.9), 10.0)
        0.38
        >>> curvature_bound(torch.optim.Adam(weight), 10.0) is None
        True
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return None
    group = optimizer.param_groups[0]
    curvature = eigenvalue + float(group["weight_decay"])
    if not curvature > 0:
        return None
    m, kept = float(group["momentum"]), 1.0 - float(group["dampening"])
    if m == 0:
        return 2 / curvature
    return 2 * (1 + m) / ((1 + 2 * m) * curvature) if group["nesterov"] else 2 * (1 + m) / (kept * curvature)

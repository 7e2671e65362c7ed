"""The largest eigenvalues of the training loss at given weights, and the learning rate that they allow.

All of it from exact products with the Hessian or the Gauss–Newton matrix
(:mod:`batchscope.measure.curvature_operators`), on a sample of training examples, in evaluation mode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from batchscope.errors import ArgumentError, RunError
from batchscope.measure.arguments import checked_whole
from batchscope.measure.curvature_operators import counting, operator_at
from batchscope.measure.eigenvalues import top_eigenpairs
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records.curvature import CurvatureMatrix, HessianEigenvalues
from batchscope.seeding import current_device, derive, isolated
from batchscope.workload.workload import Workload

# Products that an eigenvalue takes, and the first one, where nothing is known yet: for the cost told beforehand.
PRODUCTS_EACH, PRODUCTS_FIRST = 7, 20
# A product is off by about this many units in the last place, beside the largest eigenvalue.
PRODUCT_EPS = 10.0


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

    Lanczos' method, restarted thickly (Wu and Simon 2000), on exact products. Equal eigenvalues, which it can leave
    out, are looked for by themselves. The model is in evaluation mode: dropout is off, and batch norm uses its running
    statistics.

    Args:
        workload: What is trained.
        state: A state dict; None: fresh weights under the seed.
        k: How many; all, where there are fewer.
        examples: Training examples of the loss, drawn without replacement; None: 4,096, or all where there are fewer.
        matrix: "hessian", or "gauss-newton" for JᵀH_L J.
        tolerance: Relative accuracy at which the method stops; single precision allows about 1e-5.
        seed: Draws the examples, fresh weights and the first vectors.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr, and first the expected cost; or a function called with every step.

    Returns:
        The eigenvalues, descending by value, and the learning rate that the first allows.

    Raises:
        ArgumentError: A number that makes no sense.
        WorkloadError: Weights that do not fit the model, derivatives that are not finite, or a loss that differs from
            one call to the next.
        RunError: No eigenvalue met the tolerance.

    Examples:
        >>> import batchscope as bs
        >>> found = hessian_eigenvalues(bs.load_workload("quadratic"), k=2)
        >>> round(found.values[0], 4), max(found.residuals) < 1e-3, found.told_apart
        (1.0, True, (True, True))
    """
    began = time.perf_counter()
    k = checked_whole("k", k)
    _check_tolerance(tolerance)
    operator, weights_device = operator_at(workload, state, matrix, examples, seed=seed, device=device)
    with reporter(progress, "eigenvalues") as report:
        goes_on = counting(report, operator, PRODUCTS_FIRST + PRODUCTS_EACH * min(k, operator.parameters))
        found = top_eigenpairs(
            operator,
            k,
            tolerance=tolerance,
            generator=np.random.default_rng(derive(seed, "first vector")),
            rounding=operator.epsilon,
            goes_on=goes_on,
        )
    operator.release()
    if not any(found.converged):
        raise RunError(
            "an eigenvalue must converge", got=f"none in {operator.products:,} products", mend="give a larger tolerance"
        )
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
    operator, _ = operator_at(workload, state, "hessian", examples, seed=seed, device=device)
    generator = np.random.default_rng(derive(seed, "first vector"))
    found = top_eigenpairs(
        operator, 1, tolerance=tolerance, generator=generator, checked=False, rounding=operator.epsilon
    )
    operator.release()
    return Eigenvalue(
        float(found.values[0]), float(found.residuals[0]), found.converged[0], operator.products, operator.examples
    )


def _optimizer(workload: Workload) -> torch.optim.Optimizer:
    with isolated(0, current_device()):
        return workload.optimizer_for(workload.model(), workload.learning_rate)


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

"""The Hessian's largest eigenvalue at given weights, and the bound that it puts on the learning rate.

Computed by SciPy's Lanczos method from exact products Hv, each a gradient of gᵀv (Pearlmutter 1994), on a sample of
training examples. The model is in evaluation mode, so that the loss is a function: dropout is off and batch norm uses
its running statistics. Products are in the model's own precision, vectors in float64. (On CUDA torch's default is
TF32 in convolutions, good for about 1e-3.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchscope.errors import ArgumentError, WorkloadError
from batchscope.measure.state import loaded
from batchscope.seeding import derive, isolated
from batchscope.training.modes import evaluating
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.batches import take, to_device
from batchscope.workload.workload import Batch, Workload

BATCH_SIZE = 256


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
    seed = checked_seed(seed)
    if type(examples) is not int or examples < 1:
        raise ArgumentError("examples must be a whole number of at least 1", got=examples)
    if not (isinstance(tolerance, (int, float)) and 0 < tolerance < 1):
        raise ArgumentError("tolerance must be between 0 and 1", got=tolerance)
    chosen = chosen_device(device)
    generator = torch.Generator().manual_seed(derive(seed, "curvature examples"))
    indices = torch.randperm(workload.training_examples, generator=generator)[:examples].tolist()
    with isolated(derive(seed, "weights"), chosen):
        model = loaded(workload.model(), state)
        hessian = Hessian(workload, model.to(chosen), indices, seed=derive(seed, "curvature"))
    start = np.random.default_rng(derive(seed, "first vector")).standard_normal(hessian.parameters)
    value, vector, converged = _top(hessian, start, tolerance)
    residual = float(np.linalg.norm(hessian @ vector - value * vector))
    return Eigenvalue(value, residual, converged, hessian.products, len(indices))


class Hessian:
    """The Hessian of the mean training loss at a model's present weights, as an operator on flat vectors.

    Args:
        workload: Whose loss.
        model: The model on its device; its weights, buffers, modes and gradients are left as they are.
        indices: Training examples.
        seed: Of whatever the model draws in evaluation mode, the same at every product.

    Attributes:
        parameters: Its dimension: the parameters that are trained.
        products: Products computed so far.
    """

    def __init__(self, workload: Workload, model: nn.Module, indices: list[int], *, seed: int) -> None:
        self.workload, self.model, self.seed = workload, model, seed
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._device = self._trained[0].device
        self._count = len(indices)
        self._batches: list[tuple[int, Batch]] = []
        with isolated(derive(seed, "dataset"), self._device):  # read once, so that random augmentation stands still
            for start in range(0, len(indices), BATCH_SIZE):
                part = indices[start : start + BATCH_SIZE]
                self._batches.append((len(part), take(workload.train, part, workload.collate)))
        self.parameters = sum(parameter.numel() for parameter in self._trained)
        self.products = 0

    def __matmul__(self, vector: NDArray[Any]) -> NDArray[np.float64]:
        """Hv, in float64: the mean over examples, so that a last batch that is smaller counts less."""
        flat = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float64).reshape(-1))
        total = torch.zeros(self.parameters, dtype=torch.float64)
        with evaluating(self.model), sdpa_kernel(SDPBackend.MATH), isolated(self.seed, self._device):
            for count, batch in self._batches:
                total += self._product(batch, self._split(flat)).cpu().double() * (count / self._count)
        self.products += 1
        if not torch.isfinite(total).all():
            raise WorkloadError(
                "second derivatives must be finite", got="one that is not", mend="measure at weights that train"
            )
        result: NDArray[np.float64] = total.numpy()
        return result

    def _product(self, batch: Batch, vectors: list[Tensor]) -> Tensor:
        with torch.enable_grad():
            output, target = self.workload.output_and_target(self.model, to_device(batch, self._device))
            loss = self.workload.loss(output, target)
            gradients = torch.autograd.grad(loss, self._trained, create_graph=True, allow_unused=True)
            along = torch.stack(
                [(g * v).sum() for g, v in zip(gradients, vectors, strict=True) if g is not None and g.requires_grad]
                or [loss * 0.0]  # a loss that is linear in every parameter
            ).sum()
            products = torch.autograd.grad(along, self._trained, allow_unused=True)
        parts = zip(products, self._trained, strict=True)
        return torch.cat([(torch.zeros_like(p) if h is None else h).flatten() for h, p in parts]).detach()

    def _split(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [parameter.numel() for parameter in self._trained])
        return [part.view_as(p).to(p.device, p.dtype) for part, p in zip(parts, self._trained, strict=True)]


def _top(hessian: Hessian, start: NDArray[np.float64], tolerance: float) -> tuple[float, NDArray[np.float64], bool]:
    """The largest eigenvalue, its unit vector, and whether it converged."""
    size = hessian.parameters
    if size <= 2:  # too small for Lanczos
        dense = np.stack([hessian @ column for column in np.eye(size)], axis=1)
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        return float(values[-1]), vectors[:, -1], True
    operator = LinearOperator((size, size), matvec=lambda v: hessian @ v, dtype=np.float64)
    try:
        values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance)
        return float(values[0]), vectors[:, 0], True
    except ArpackNoConvergence as error:
        if len(error.eigenvalues):
            return float(error.eigenvalues[-1]), error.eigenvectors[:, -1], False
        return math.nan, start / np.linalg.norm(start), False


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

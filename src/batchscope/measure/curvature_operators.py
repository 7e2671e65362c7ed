"""Curvature of the training loss at given weights, as operators: the Hessian and the Gauss–Newton matrix.

Products are exact, by automatic differentiation (Pearlmutter 1994, Neural Computation 6; Schraudolph 2002, Neural
Computation 14), means over the examples whatever the batches that these come in. A product differentiates a graph that
is the same for every vector: it is built once and held, as far as the memory allowed holds it, which leaves about half
of the arithmetic. The model is in evaluation mode, so that the loss is a function of the weights: dropout is off and
batch norm uses its running statistics. Attention goes through torch's own arithmetic, since its fused kernels have no
second derivatives. Products are in the model's own precision, sums and vectors in float64. (On CUDA torch's default is
TF32 in convolutions, good for about 1e-3.)
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from batchscope.errors import ArgumentError, WorkloadError
from batchscope.measure.arguments import checked_whole, drawn_examples, loaded
from batchscope.measure.flat import batches_read_once, flattened, parts_of
from batchscope.progress import Report
from batchscope.records import CurvatureMatrix
from batchscope.seeding import derive, isolated
from batchscope.training.modes import evaluating
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.batches import to_device
from batchscope.workload.workload import Batch, Workload

Floats = NDArray[np.float64]

# Where nothing is said: enough for the largest eigenvalues to be those of the training loss within some per cent.
EXAMPLES = 4096
BATCH_SIZE = 256
# Graphs that are held for the next product take at most about this much.
HELD_BYTES = 2 << 30
# Two evaluations of one loss differ by no more than this, relatively, where it is a function.
SAME = 1e-5


class Operator(ABC):
    """A symmetric matrix given by its products, the mean over examples of one for each.

    Args:
        workload: Whose loss.
        model: The model on its device; its weights, buffers, modes and gradients are left as they are. As long as the
            operator is used, they must not change.
        indices: Training examples.
        seed: Of whatever the model draws in evaluation mode, the same at every product.
        held_bytes: About the most memory for graphs that are held between products.

    Attributes:
        parameters: Its dimension: the parameters that are trained.
        products: Products computed so far.
        examples: How many it is the mean over.
        epsilon: Relative rounding of the model's numbers.

    Raises:
        WorkloadError: Nothing is trained, or the loss differs from one evaluation to the next.
    """

    def __init__(
        self, workload: Workload, model: nn.Module, indices: Sequence[int], *, seed: int, held_bytes: int = HELD_BYTES
    ) -> None:
        self.workload, self.model, self.seed = workload, model, seed
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.trained:
            raise WorkloadError(
                "curvature needs a parameter that is trained", got="none", mend="set requires_grad on some"
            )
        self.device = self.trained[0].device
        self.examples = len(indices)
        self._batches = batches_read_once(workload, indices, BATCH_SIZE, seed=seed, device=self.device)
        self.parameters = sum(parameter.numel() for parameter in self.trained)
        self.products = 0
        self.epsilon = max(torch.finfo(parameter.dtype).eps for parameter in self.trained)
        self._left, self._bytes_per_example = held_bytes, 0.0
        self._held: list[Any] = [None] * len(self._batches)
        self._check_is_function()

    def __matmul__(self, vector: NDArray[Any]) -> Floats:
        """The product with a vector, in float64.

        Raises:
            WorkloadError: It is not finite.
        """
        vectors, total = parts_of(vector, self.trained), np.zeros(self.parameters)
        with torch.enable_grad(), self._as_function():
            for k, (count, batch) in enumerate(self._batches):
                graph = self._held[k] or self._built(batch)
                keep = self._held[k] is not None or self._may_hold(count)
                parts = self._product(graph, vectors, keep=keep)
                if keep:
                    self._held[k] = graph
                total += flattened(parts, self.trained) * (count / self.examples)
        self.products += 1
        if not np.isfinite(total).all():
            raise WorkloadError(
                "second derivatives must be finite", got="one that is not", mend="measure at weights that train"
            )
        return total

    def release(self) -> None:
        """Let go of the graphs that are held."""
        self._held = [None] * len(self._batches)

    @abstractmethod
    def _graph(self, batch: Batch) -> Any:
        """What is differentiated at every product."""

    @abstractmethod
    def _product(self, graph: Any, vectors: Sequence[Tensor], *, keep: bool) -> Sequence[Tensor | None]:
        """A batch's part of the product, by parameters; the graph is kept for another one or not."""

    def _loss(self, batch: Batch) -> Tensor:
        output, target = self.workload.output_and_target(self.model, to_device(batch, self.device))
        return self.workload.loss(output, target)

    @contextlib.contextmanager
    def _as_function(self) -> Iterator[None]:
        with evaluating(self.model), sdpa_kernel(SDPBackend.MATH), isolated(self.seed, self.device):
            yield

    def _check_is_function(self) -> None:
        batch = self._batches[0][1]
        found = []
        for _ in range(2):
            with torch.no_grad(), self._as_function():
                found.append(float(self._loss(batch)))
        if abs(found[0] - found[1]) > SAME * abs(found[0]):
            raise WorkloadError(
                "the loss in evaluation mode must be the same function at every call",
                got=f"{found[0]:.6g}, and then {found[1]:.6g} on the same examples",
                mend="let nothing in the model count its calls or draw from a generator of its own",
            )

    def _built(self, batch: Batch) -> Any:
        if self._bytes_per_example:
            return self._graph(batch)
        with _Allocated() as allocated:
            graph = self._graph(batch)
        self._bytes_per_example = max(1, allocated.bytes) / self._batches[0][0]
        return graph

    def _may_hold(self, count: int) -> bool:
        """Whether there is room for one more graph, which is then taken."""
        wanted = round(count * self._bytes_per_example)
        if wanted > self._left:
            return False
        self._left -= wanted
        return True


class Hessian(Operator):
    """The Hessian of the mean training loss: products are gradients of gᵀv, with g the gradient.

    Takes the arguments of :class:`Operator`.
    """

    def _graph(self, batch: Batch) -> list[tuple[int, Tensor]]:
        gradients = torch.autograd.grad(self._loss(batch), self.trained, create_graph=True, allow_unused=True)
        # Where the loss is linear in a parameter its gradient is a constant.
        return [(i, g) for i, g in enumerate(gradients) if g is not None and g.requires_grad]

    def _product(
        self, graph: list[tuple[int, Tensor]], vectors: Sequence[Tensor], *, keep: bool
    ) -> Sequence[Tensor | None]:
        if not graph:
            return [None] * len(self.trained)
        return torch.autograd.grad(
            [gradient for _, gradient in graph],
            self.trained,
            grad_outputs=[vectors[i] for i, _ in graph],
            retain_graph=keep,
            allow_unused=True,
        )


class GaussNewton(Operator):
    """The generalised Gauss–Newton matrix JᵀH_L J: J of the model's output, H_L of the loss in the output.

    What is left of the Hessian where the model is replaced by its linearisation; without negative eigenvalues where the
    loss is convex in the output (Schraudolph 2002; Martens 2014, arXiv 1412.1193). Takes the arguments of
    :class:`Operator`.

    Raises:
        WorkloadError: The model's output is not one tensor.
    """

    def _graph(self, batch: Batch) -> tuple[Tensor, Tensor, list[tuple[int, Tensor]], Tensor, Tensor | None]:
        output, target = self.workload.output_and_target(self.model, to_device(batch, self.device))
        if not isinstance(output, Tensor):
            raise WorkloadError(
                "the Gauss–Newton matrix needs a model whose output is one tensor",
                got=type(output).__name__,
                mend="return the tensor from forward=, or take the Hessian",
            )
        # Jv is the derivative of Jᵀu in u, which is linear in u, so that any u will do.
        at = torch.zeros_like(output, requires_grad=True)
        back = torch.autograd.grad(output, self.trained, at, create_graph=True, allow_unused=True)
        place = output.detach().requires_grad_()
        [slope] = torch.autograd.grad(self.workload.loss(place, target), place, create_graph=True)
        seen = [(i, g) for i, g in enumerate(back) if g is not None and g.requires_grad]
        return output, at, seen, place, slope if slope.requires_grad else None

    def _product(
        self,
        graph: tuple[Tensor, Tensor, list[tuple[int, Tensor]], Tensor, Tensor | None],
        vectors: Sequence[Tensor],
        *,
        keep: bool,
    ) -> Sequence[Tensor | None]:
        output, at, back, place, slope = graph
        if slope is None or not back:
            return [None] * len(self.trained)
        [forward] = torch.autograd.grad(
            [g for _, g in back], at, grad_outputs=[vectors[i] for i, _ in back], retain_graph=True
        )
        [bent] = torch.autograd.grad(slope, place, forward, retain_graph=keep)
        return torch.autograd.grad(output, self.trained, bent, retain_graph=keep, allow_unused=True)


# Which of them, by name.
MATRICES: dict[CurvatureMatrix, type[Operator]] = {"hessian": Hessian, "gauss-newton": GaussNewton}


def curvature_examples(workload: Workload, examples: int | None, seed: int) -> list[int]:
    """The training examples that curvature and sharpness are measured on, the same for both.

    Args:
        workload: Whose training set.
        examples: How many; None: 4,096, or all where there are fewer.
        seed: Of the draw.
    """
    count = EXAMPLES if examples is None else checked_whole("examples", examples)
    return drawn_examples(workload, count, derive(seed, "curvature examples"))


def operator_at(
    workload: Workload,
    state: Mapping[str, Any] | None,
    matrix: CurvatureMatrix,
    examples: int | None,
    *,
    seed: int,
    device: str | torch.device | None,
) -> tuple[Operator, torch.device]:
    """An operator at given weights, on a sample of training examples.

    Args:
        workload: Whose loss.
        state: A state dict; None: fresh weights under the seed.
        matrix: Which one.
        examples: How many; None: 4,096, or all where there are fewer.
        seed: Draws the examples and fresh weights.
        device: "cpu", "cuda" …; None: CUDA where there is one.

    Returns:
        The operator, and the device that it computes on.

    Raises:
        ArgumentError: A number of examples or a matrix that there is none of.
        WorkloadError: Weights that do not fit the model.
    """
    seed = checked_seed(seed)
    indices = curvature_examples(workload, examples, seed)
    if matrix not in MATRICES:
        raise ArgumentError(f"matrix must be one of {', '.join(MATRICES)}", got=matrix)
    chosen = chosen_device(device)
    with isolated(derive(seed, "weights"), chosen):
        model = loaded(workload.model(), state).to(chosen)
        return MATRICES[matrix](workload, model, indices, seed=derive(seed, "curvature")), chosen


def counting(report: Report, operator: Operator, expected: int) -> Callable[[], None]:
    """Tells before each product how many there were; after the first one, what all of them are going to take.

    Args:
        report: Where to.
        operator: Whose products.
        expected: How many there are going to be.
    """
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


class _Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what the operations inside the block return: about what a graph of them holds, and no less.

    Attributes:
        bytes: The sum.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor._base is None:
                self.bytes += tensor.numel() * tensor.element_size()
        return out

"""One replica's training step as a function of tensors, for all replicas of a stack together or for each in turn."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils import _pytree as pytree

from batchscope.seeding import derive, isolated
from batchscope.training.flat_graph import Flat, flat_graph
from batchscope.training.memory import is_out_of_memory
from batchscope.training.stacked_attention import batched_attention
from batchscope.workload.workload import Workload

Function = Callable[..., "list[Tensor]"]


class Trace(NamedTuple):
    """What came of tracing a function.

    Attributes:
        flat: The trace; None where the function cannot be traced, or where the trace does not do what it does.
        form: How the results are put together, where the function tells of it.
    """

    flat: Flat | None
    form: pytree.TreeSpec | None


# Traces by workload, for the stacks of one shape that follow each other in a sweep.
_traces: weakref.WeakKeyDictionary[Workload, dict[Any, Trace]] = weakref.WeakKeyDictionary()


class TensorNames:
    """The tensors of a model, by name: those that are trained, and the others (frozen parameters and buffers).

    Args:
        trained: Names of the trained parameters.
        others: Names of all other tensors.
    """

    def __init__(self, trained: Sequence[str], others: Sequence[str]) -> None:
        self.trained, self.others = tuple(trained), tuple(others)
        self._parameters = [f"model.{name}" for name in (*trained, *others)]

    def __len__(self) -> int:
        return len(self._parameters)

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Tensors by their names in a module that holds the model."""
        return dict(zip(self._parameters, tensors, strict=True))


def losses_and_gradients(workload: Workload, model: nn.Module, names: TensorNames, form: pytree.TreeSpec) -> Function:
    """Loss and gradients of one replica, as a function of its trained tensors, its others and its batch.

    Args:
        workload: Whose loss.
        model: Lends its modules; its own tensors are not used.
        names: In the order of the arguments.
        form: How a batch is put together of its tensors.

    Returns:
        The function; it returns the loss, followed by the gradients in the order of the trained tensors.
    """
    module = _Loss(workload, model)
    trained = len(names.trained)

    def loss_of(weights: tuple[Tensor, ...], others: tuple[Tensor, ...], leaves: tuple[Tensor, ...]) -> Tensor:
        batch = pytree.tree_unflatten(list(leaves), form)
        loss: Tensor = functional_call(module, names.named((*weights, *others)), (batch,))
        return loss

    def function(*tensors: Tensor) -> list[Tensor]:
        weights, others, leaves = tensors[:trained], tensors[trained : len(names)], tensors[len(names) :]
        gradients, loss = grad_and_value(loss_of)(weights, others, leaves)
        return [loss, *gradients]

    return function


def outputs(
    workload: Workload, model: nn.Module, names: TensorNames, form: pytree.TreeSpec, made: list[pytree.TreeSpec]
) -> Function:
    """Loss, output and target of one replica, as a function of its tensors and a batch.

    Args:
        workload: Whose loss.
        model: Lends its modules.
        names: In the order of the arguments.
        form: How a batch is put together of its tensors.
        made: Is told how (loss, output, target) is put together of what the function returns.

    Returns:
        The function.
    """
    module = _Outputs(workload, model)

    def function(*tensors: Tensor) -> list[Tensor]:
        batch = pytree.tree_unflatten(list(tensors[len(names) :]), form)
        results, found = pytree.tree_flatten(functional_call(module, names.named(tensors[: len(names)]), (batch,)))
        made[:] = [found]
        return results

    return function


class _Loss(nn.Module):
    def __init__(self, workload: Workload, model: nn.Module) -> None:
        super().__init__()
        self.workload, self.model = workload, model
        self.device = next(model.parameters()).device

    def forward(self, batch: Any) -> Tensor:
        with self.workload.autocast(self.device):
            return self.workload.loss(*self.workload.output_and_target(self.model, batch))


class _Outputs(_Loss):
    def forward(self, batch: Any) -> Any:
        with self.workload.autocast(self.device):
            output, target = self.workload.output_and_target(self.model, batch)
            return self.workload.loss(output, target), output, target


def batched(function: Function, dimensions: tuple[int | None, ...] | int = 0) -> Function:
    """A function of one replica's tensors as one of the tensors of all, with random numbers of their own for each."""
    together = vmap(function, in_dims=dimensions, randomness="different")

    def batched_function(*tensors: Tensor) -> list[Tensor]:
        with batched_attention(), warnings.catch_warnings():
            # An operation without a batching rule runs in a loop: whether that pays is measured, not warned of.
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            return list(together(*tensors))

    return batched_function


def traced(
    workload: Workload,
    function: Function,
    inputs: Sequence[Tensor],
    into: Sequence[Tensor],
    *,
    key: tuple[Any, ...],
    written: slice,
    form: Sequence[pytree.TreeSpec] = (),
) -> Trace:
    """The trace of a function for inputs of these shapes, checked against the function, and kept.

    Args:
        workload: Whose function: traces are kept for as long as it lives.
        function: A function of tensors; it is not kept.
        inputs: What it will be called with; traced with these, checked with the last ones turned around.
        into: Memory for its last results, as :func:`flat_graph` takes it.
        key: What tells the function from others of the workload.
        written: The inputs that a call may change, as batch norm changes its statistics.
        form: Where the function leaves word of how its results are put together.

    Returns:
        The trace.
    """
    known = _traces.setdefault(workload, {})
    key = (*key, *((t.shape, t.stride(), t.dtype, t.device) for t in (*inputs, *into)))
    if key not in known:
        flat = _trace(function, list(inputs), [torch.zeros_like(place) for place in into], written)
        known[key] = Trace(flat, form[0] if form else None)
    return known[key]


def _trace(function: Function, inputs: list[Tensor], into: list[Tensor], written: slice) -> Flat | None:
    device, seed = inputs[0].device, derive(0, "trace")

    def arguments(turn: bool) -> list[Tensor]:
        copied = list(inputs)
        copied[written] = [tensor.clone() for tensor in copied[written]]
        copied[written.stop :] = [_turned(tensor) if turn else tensor for tensor in copied[written.stop :]]
        return copied

    try:
        with isolated(seed, device):
            flat = flat_graph(function, arguments(False), given=len(into))
        found, right = arguments(True), arguments(True)
        with isolated(seed, device):
            results = [*flat(*found, *into), *into]
        with isolated(seed, device):
            expected = function(*right)
        agree = all(map(_agree, [*results, *found[written]], [*expected, *right[written]]))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None  # the function is called as it is then; what is wrong with it comes up there
    return flat if agree else None


def _turned(tensor: Tensor) -> Tensor:
    return tensor.flip(tuple(range(min(2, tensor.dim()))))


def _agree(found: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    if found.shape != right.shape or found.dtype != right.dtype:
        return False
    if not right.is_floating_point():
        return bool((found == right).all())
    tolerance = math.sqrt(torch.finfo(right.dtype).eps)
    size = float(torch.linalg.vector_norm(right.float()))
    return float(torch.linalg.vector_norm((found - right).float())) <= tolerance * (size + tolerance)


def untraced(function: Function, given: int) -> Flat:
    """The function itself, called as its trace would be.

    Args:
        function: A function of tensors.
        given: How many of its last results are written into memory given after the inputs.

    Returns:
        The same function, called and answering as :func:`flat_graph` says.
    """

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, into = tensors[: len(tensors) - given], tensors[len(tensors) - given :]
        results = function(*inputs)
        for place, result in zip(into, results[len(results) - given :], strict=True):
            place.copy_(result)
        return tuple(results[: len(results) - given])

    return call

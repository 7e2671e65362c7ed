"""Going on in micro-batches where a batch does not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from batchscope.seeding import random_state, set_random_state
from batchscope.training.memory import is_out_of_memory
from batchscope.training.step import TrainingStep
from batchscope.workload.workload import Batch, Workload


class MicroBatchingStep(TrainingStep):
    """A training step that goes on with fewer examples at once where memory runs out.

    An update that runs out of memory in its forward or backward pass has changed no weight. It is repeated from the
    same weights and random state with half as many examples at once, down to one, and the updates after it are cut
    likewise. The gradient is that of the whole batch, up to rounding; only dropout, which draws its masks piece by
    piece, sees other random numbers than it would have. Nothing is copied while memory suffices.

    Three cases are not repeated, since the result would be another than was asked for: a batch norm that normalises
    over the batch; buffers that each forward pass changes, which a failed one may have changed already; and running out
    in the optimiser's own step, which may have changed some weights. Batches that cannot be cut, since they hold
    something else than an entry for each example, are not either.

    Args:
        workload: What is trained.
        model: Its model, on the device.
        optimizer: Its optimiser.
        micro_batch_size: Examples in every micro-batch as they come; None: batches come whole.
        cut_to: Examples at once where memory ran out before, when a run is resumed.
        scaler: As in :class:`batchscope.training.step.TrainingStep`.

    Attributes:
        cut_to: Examples at once since memory ran out; None: it has not.
    """

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batch_size: int | None,
        cut_to: int | None = None,
        scaler: GradScaler | None = None,
    ) -> None:
        super().__init__(workload, model, optimizer, micro_batch_size=micro_batch_size, scaler=scaler)
        self.cut_to = cut_to
        self._random = _RandomMark(self.device)
        self._buffers = _versions(model)

    def __call__(self, micro_batches: list[Batch], examples: int) -> Tensor:
        """Make one update, in as many pieces as memory calls for.

        Args:
            micro_batches: The batch as it came.
            examples: Examples in all of them.

        Returns:
            The batch's mean loss before the update, detached and on the device.

        Raises:
            MemoryError: Memory ran out, and the update cannot be repeated; the message says why, and what would help.
        """
        loss = self.repeatable_gradient(micro_batches, examples)
        self.update()
        return loss

    def repeatable_gradient(self, micro_batches: list[Batch], examples: int) -> Tensor:
        """Leave the batch's gradient in the parameters, in as many pieces as memory calls for.

        Args:
            micro_batches: The batch as it came.
            examples: Examples in all of them.

        Returns:
            The batch's mean loss, as :meth:`__call__` returns it.

        Raises:
            MemoryError: As there.
        """
        self._random.mark()
        pieces, sizes = self._cut(micro_batches, examples)
        while True:
            try:
                loss = self.gradient(pieces, sizes)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or max(sizes) == 1:
                    raise
                self._check_repeatable(max(sizes), error)
                self.cut_to = -(-max(sizes) // 2)
            # Only now, with the error gone, are the failed attempt's activations free.
            for parameter in self.parameters:
                parameter.grad = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._random.rewind()
            pieces, sizes = self._cut(micro_batches, examples)
        self._random.see()
        return loss

    def _cut(self, micro_batches: list[Batch], examples: int) -> tuple[list[Batch], list[int]]:
        sizes = self.sizes(examples)
        if self.cut_to is None:
            return micro_batches, sizes
        try:
            cut = [cut_batch(batch, size, self.cut_to) for batch, size in zip(micro_batches, sizes, strict=True)]
        except TypeError as error:
            raise MemoryError(
                f"memory ran out with {max(sizes):,} examples at once, and a batch that holds {error} cannot be cut: "
                f"give micro_batch_size={self.cut_to} or less"
            ) from error
        pieces = [piece for parts in cut for piece in parts]
        return pieces, [min(self.cut_to, size - start) for size in sizes for start in range(0, size, self.cut_to)]

    def _check_repeatable(self, size: int, error: BaseException) -> None:
        for name, module in self.model.named_modules():
            if ties_examples(module):
                raise MemoryError(
                    f"memory ran out with {size:,} examples at once, and {type(module).__name__} {name or 'itself'} "
                    f"normalises over the batch, so that smaller micro-batches would train something else: "
                    f"give micro_batch_size={-(-size // 2)} or less to accept that, or a smaller batch"
                ) from error
        now = _versions(self.model)
        for name in self._buffers:
            if now.get(name) != self._buffers[name]:
                raise MemoryError(
                    f"memory ran out with {size:,} examples at once, and the model changes its buffer {name} in "
                    f"every forward pass, so that the update cannot be repeated: "
                    f"give micro_batch_size={-(-size // 2)} or less"
                ) from error


def ties_examples(module: nn.Module) -> bool:
    """Whether a module normalises over the batch, so that an example's output depends on the others in it.

    Examples:
        >>> ties_examples(nn.BatchNorm1d(3)), ties_examples(nn.BatchNorm1d(3).eval()), ties_examples(nn.LayerNorm(3))
        (True, False, False)
    """
    batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return batch_norm and (module.training or not module.track_running_stats)


def least_batch_size(model: nn.Module) -> int:
    """The smallest batch that a model in training mode takes: one example alone has no spread to normalise by.

    Examples:
        >>> least_batch_size(nn.Linear(2, 2)), least_batch_size(nn.Sequential(nn.BatchNorm1d(2)))
        (1, 2)
    """
    return 2 if any(ties_examples(module) for module in model.modules()) else 1


def cut_batch(batch: Batch, examples: int, size: int) -> list[Batch]:
    """Cut a batch into parts of at most ``size`` examples, whatever its tensors are nested in.

    Args:
        batch: Tensors whose first dimension counts examples, and lists of text or numbers with an entry for each,
            nested in dicts, tuples and lists.
        examples: Examples in the batch.
        size: Examples in every part but the last.

    Returns:
        The parts; tensors are views.

    Raises:
        TypeError: Something in it is neither; the message names it.

    Examples:
        >>> cut_batch({"x": torch.arange(3), "name": ["a", "b", "c"]}, 3, 2)
        [{'x': tensor([0, 1]), 'name': ['a', 'b']}, {'x': tensor([2]), 'name': ['c']}]
    """
    return [_slice(batch, examples, slice(start, start + size)) for start in range(0, examples, size)]


def _slice(value: Any, examples: int, where: slice) -> Any:
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.dim() == 0 or len(value) != examples:
            raise TypeError(f"a tensor of shape {tuple(value.shape)} for {examples:,} examples")
        return value[where]
    if isinstance(value, Mapping):
        return type(value)({key: _slice(item, examples, where) for key, item in value.items()})  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_slice(item, examples, where) for item in value))
    if isinstance(value, (tuple, list)):
        if len(value) == examples and all(isinstance(item, (str, bytes, int, float)) for item in value):
            return value[where]
        return type(value)(_slice(item, examples, where) for item in value)
    raise TypeError(f"a value of type {type(value).__name__}")


class _RandomMark:
    """The random state before an update, kept of those generators only that the first update drew from.

    Reading the state of all of them takes as long as an update of a small model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state = random_state(device)
        self._drawn_from: set[str] | None = None

    def mark(self) -> None:
        """Before an update."""
        if not self._drawn_from:
            return
        if self._drawn_from <= {"torch", "cuda"}:
            self._state = {"torch": torch.get_rng_state()}
            if "cuda" in self._drawn_from:
                self._state["cuda"] = torch.cuda.get_rng_state(self._device)
        else:
            self._state = random_state(self._device)

    def see(self) -> None:
        """After a gradient: which generators did the first one draw from?"""
        if self._drawn_from is None:
            now = random_state(self._device)
            self._drawn_from = {key for key, value in now.items() if not _same(value, self._state[key])}
            self._state = {}

    def rewind(self) -> None:
        """Back to before the update."""
        set_random_state(random_state(self._device) | self._state, self._device)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(np.array_equal(one, other))


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Which tensor each buffer is, and how often it was changed in place."""
    return {name: (id(buffer), buffer._version) for name, buffer in model.named_buffers()}

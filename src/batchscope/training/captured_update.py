"""An update recorded on a CUDA device once, and replayed: a launch in place of one for each of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class CapturedUpdate:
    """A CUDA graph of an update, fed by copying each batch to where the recorded one lay.

    Recording executes nothing: weights and optimiser state are as they were. Whatever the update reads and writes
    must lie where it lay when it was recorded, and the optimiser must have all of its state by then.

    Args:
        update: Makes an update from the tensors of a batch, and returns the losses.
        leaves: A batch.
    """

    def __init__(self, update: Callable[[Sequence[Tensor]], Tensor], leaves: Sequence[Tensor]) -> None:
        self._leaves = [leaf.clone() for leaf in leaves]
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(leaves[0].device)
        with torch.cuda.graph(self._graph):
            self._losses = update(self._leaves)

    def __call__(self, leaves: Sequence[Tensor]) -> Tensor:
        """Make the update.

        Args:
            leaves: A batch of the shapes that were recorded.

        Returns:
            The losses.
        """
        for place, leaf in zip(self._leaves, leaves, strict=True):
            place.copy_(leaf, non_blocking=True)
        self._graph.replay()
        return self._losses.clone()


def captured_or_none(
    update: Callable[[Sequence[Tensor]], Tensor], leaves: Sequence[Tensor]
) -> Callable[[Sequence[Tensor]], Tensor] | None:
    """Record an update, where that can be done.

    Args:
        update: As for :class:`CapturedUpdate`.
        leaves: A batch.

    Returns:
        The recorded update; None where an operation in it cannot be recorded: one that waits for the device, say.
    """
    try:
        return CapturedUpdate(update, leaves)
    except Exception:
        torch.cuda.synchronize(leaves[0].device)
        return None  # nothing has been executed: the update is made as before

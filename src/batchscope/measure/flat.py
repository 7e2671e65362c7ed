"""Weights and gradients as one flat vector in float64, and back; the filters in it; batches that are read once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscope.seeding import derive, isolated
from batchscope.workload.batches import take
from batchscope.workload.workload import Batch, Workload

Floats = NDArray[np.float64]


def flattened(parts: Sequence[Tensor | None], like: Sequence[Tensor]) -> Floats:
    """Tensors one after the other.

    Args:
        parts: The tensors; zeros stand for None.
        like: Of their shapes.

    Examples:
        >>> flattened([torch.ones(2), None], [torch.ones(2), torch.ones(1)]).tolist()
        [1.0, 1.0, 0.0]
    """
    pairs = zip(parts, like, strict=True)
    flat = torch.cat([(torch.zeros_like(p) if part is None else part).detach().flatten() for part, p in pairs])
    found: Floats = flat.cpu().double().numpy()
    return found


def parts_of(flat: Floats, like: Sequence[Tensor]) -> list[Tensor]:
    """The pieces of a flat vector, each in the shape, the type and the place of its tensor.

    Args:
        flat: All of them, one after the other.
        like: The tensors.
    """
    whole = torch.from_numpy(np.ascontiguousarray(flat, dtype=np.float64).reshape(-1))
    parts = torch.split(whole, [tensor.numel() for tensor in like])
    return [part.view_as(tensor).to(tensor.device, tensor.dtype) for part, tensor in zip(parts, like, strict=True)]


def put(flat: Floats, tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors with the pieces of a flat vector.

    Args:
        flat: All of them, one after the other.
        tensors: What is overwritten.
    """
    with torch.no_grad():
        for tensor, part in zip(tensors, parts_of(flat, tensors), strict=True):
            tensor.copy_(part)


def filters(flat: Floats, shapes: Sequence[tuple[int, ...]]) -> Iterator[tuple[slice, Floats]]:
    """Where in a flat vector the tensors with filters lie, and those as rows; vectors, as biases, have none.

    Args:
        flat: Tensors one after the other.
        shapes: Theirs.

    Yields:
        The place of each tensor, and an array with a row for each filter.
    """
    first = 0
    for shape in shapes:
        own = slice(first, first := first + math.prod(shape))
        if len(shape) > 1:
            yield own, flat[own].reshape(shape[0], -1)


def batches_read_once(
    workload: Workload, indices: Sequence[int], size: int, *, seed: int, device: torch.device
) -> list[tuple[int, Batch]]:
    """Training examples in batches, the last of which may be smaller; random augmentation stands still in them.

    Args:
        workload: Whose.
        indices: Which.
        size: Examples in a batch.
        seed: Of what reading draws.
        device: Whose random state is kept.

    Returns:
        The number of examples of each batch, and the batch, where the workload holds it.
    """
    found = []
    with isolated(derive(seed, "dataset"), device):
        for start in range(0, len(indices), size):
            part = list(indices[start : start + size])
            found.append((len(part), take(workload.train, part, workload.collate)))
    return found

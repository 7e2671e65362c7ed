"""Operations on nested batches: gather, move to a device, measure, join."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from batchscope.workload.workload import Batch, Examples

Collate = Callable[[list[Any]], Batch]


def as_tensors(examples: Examples) -> tuple[Tensor, ...] | None:
    """The tensors that hold the examples, if any: they are gathered without Python code per example."""
    if isinstance(examples, tuple):
        return examples
    # A subclass may transform its tensors.
    return examples.tensors if type(examples) is TensorDataset else None


def take(examples: Examples, indices: Sequence[int], collate: Collate | None = None) -> Batch:
    """Gather examples into one batch.

    Args:
        examples: A tuple of tensors or a Dataset.
        indices: Positions of the examples.
        collate: Collates a list of examples of a Dataset; None: torch's default.

    Returns:
        A tuple of tensors, or what ``collate`` returns.

    Examples:
        >>> take((torch.arange(5), torch.arange(5) * 10), [3, 1])
        (tensor([3, 1]), tensor([30, 10]))
    """
    tensors = as_tensors(examples)
    if tensors is not None:
        where = torch.as_tensor(indices, dtype=torch.long)
        return tuple(tensor.index_select(0, where.to(tensor.device)) for tensor in tensors)
    dataset: Dataset[Any] = examples  # type: ignore[assignment]
    together = getattr(dataset, "__getitems__", None)  # some Datasets read many at once
    items = [dataset[i] for i in indices] if together is None else together(list(indices))
    return (collate or default_collate)(items)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move every tensor in a nested batch to a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        moved = {key: to_device(value, device) for key, value in batch.items()}
        return moved if type(batch) is dict else _rebuilt(batch, moved)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(item, device) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(item, device) for item in batch)
    return batch.to(device) if hasattr(batch, "to") else batch


def _rebuilt(original: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    try:
        return type(original)(**items)
    except TypeError:
        return items


def nbytes(value: Any) -> int:
    """Bytes of every tensor in a nested value."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(nbytes(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return sum(nbytes(item) for item in value)
    return 0


def join(parts: list[Any]) -> Any:
    """Concatenate nested batches along their first dimension.

    Raises:
        TypeError: A value is not a tensor.
        RuntimeError: Tensors differ beyond their first dimension.

    Examples:
        >>> join([{"a": torch.zeros(2)}, {"a": torch.ones(1)}])
        {'a': tensor([0., 0., 1.])}
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        joined = {key: join([part[key] for part in parts]) for key in first}
        return joined if type(first) is dict else _rebuilt(first, joined)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(join(list(items)) for items in zip(*parts, strict=True)))
    if isinstance(first, (tuple, list)):
        return type(first)(join(list(items)) for items in zip(*parts, strict=True))
    raise TypeError(f"cannot join {type(first).__name__}")


def describe(batch: Batch) -> str:
    """The shapes in a batch, for an error message.

    Examples:
        >>> describe((torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)))
        '(float32[2×3], int64[2])'
    """
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')}[{'×'.join(map(str, batch.shape))}]"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, (tuple, list)):
        return "(" + ", ".join(describe(item) for item in batch) + ")"
    return type(batch).__name__

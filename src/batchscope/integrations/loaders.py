"""What a DataLoader reads from, apart from how it cuts it into batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from batchscope.errors import WorkloadError

SAMPLERS = (WeightedRandomSampler, SubsetRandomSampler)


@dataclass(frozen=True)
class Source:
    """What a loader reads, and how it makes a batch of it.

    Attributes:
        dataset: The examples.
        collate: Makes a batch of a list of examples; None: torch's default.
        batch_size: Examples at once; None: the loader does not say.
    """

    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any] | None
    batch_size: int | None


def source_of(loader: Any, name: str) -> Source:
    """Take a loader apart; nothing is read.

    Args:
        loader: A DataLoader, or one that accelerate has prepared.
        name: What it is called in errors.

    Returns:
        Its parts. A subset of tensors comes as tensors, which are gathered faster than example by example.

    Raises:
        WorkloadError: It is none, or it reads what cannot be drawn by index.

    Examples:
        >>> import torch
        >>> source = source_of(DataLoader(TensorDataset(torch.zeros(8, 2)), batch_size=4), "train")
        >>> len(source.dataset), source.collate, source.batch_size
        (8, None, 4)
    """
    if isinstance(loader, (list, tuple)) and len(loader) == 1:
        loader = loader[0]
    if not isinstance(loader, DataLoader):
        several = isinstance(loader, (list, tuple, dict))
        raise WorkloadError(
            f"{name} must be read by one DataLoader",
            got=f"{len(loader)} of them" if several else type(loader).__name__,
            mend="return one; torch.utils.data.ConcatDataset joins datasets" if several else "return one",
        )
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise WorkloadError(
            f"{name} must be a map-style Dataset, since batches of every size are drawn by index",
            got=f"an iterable {type(dataset).__name__}",
            mend="give a Dataset with __len__ and __getitem__",
        )
    if isinstance(loader.sampler, SAMPLERS):
        raise WorkloadError(
            f"{name} must be drawn evenly from its Dataset",
            got=f"a {type(loader.sampler).__name__}",
            mend="let the Dataset hold what is to be drawn (torch.utils.data.Subset), or put weights into the loss",
        )
    if loader.batch_size is None and loader.batch_sampler is None:
        raise WorkloadError(
            f"{name} must hold single examples",
            got="a DataLoader without batching (batch_size=None)",
            mend="let the Dataset return one example for each index",
        )
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return Source(_plain(dataset, collate), collate, size)


def _plain(dataset: Dataset[Any], collate: Callable[[list[Any]], Any] | None) -> Dataset[Any]:
    if isinstance(dataset, (list, tuple)):
        return _OneByOne(dataset)
    if collate is not None:
        # Tensors are gathered without a collate; one of the person's is to see every example.
        return _OneByOne(dataset) if type(dataset) is TensorDataset else dataset
    if type(dataset) is Subset and type(dataset.dataset) is TensorDataset:
        where = list(dataset.indices)
        return TensorDataset(*(tensor[where] for tensor in dataset.dataset.tensors))
    return dataset


class _OneByOne(Dataset[Any]):
    """Tensors, or a list, read example by example."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


def reference_batch_size(given: int | None, found: int | None, examples: int, *, times: int = 1) -> int:
    """The batch size that the person trains with today.

    Args:
        given: What they say; None: nothing.
        found: What their loader says.
        examples: Training examples.
        times: Batches of the loader in one update.

    Returns:
        The batch size, at most the number of examples.

    Raises:
        WorkloadError: Neither says.
    """
    if given is not None:
        return given
    if found is None:
        raise WorkloadError(
            "the batch size in use today must be known",
            got="a DataLoader whose batch sampler does not say",
            mend="give batch_size=",
        )
    return min(found * times, examples)

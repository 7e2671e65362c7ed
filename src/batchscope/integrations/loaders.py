"""The dataset and the collate function of a DataLoader."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
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
from batchscope.integrations.optimizers import OptimizerLike
from batchscope.workload import Workload
from batchscope.workload.batches import take

SAMPLERS = (WeightedRandomSampler, SubsetRandomSampler)


@dataclass(frozen=True)
class Source:
    """The parts of a DataLoader.

    Attributes:
        dataset: The examples.
        collate: The collate function; None: torch's default.
        batch_size: Batch size, if known.
    """

    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any] | None
    batch_size: int | None

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.dataset)  # type: ignore[arg-type]

    def few(self) -> Any:
        """A batch of the first examples, two at most."""
        return take(self.dataset, range(min(2, self.examples)), self.collate)


def source_of(loader: Any, name: str) -> Source:
    """Take a loader apart without reading from it.

    Args:
        loader: A DataLoader, or one prepared by accelerate.
        name: Its name in error messages.

    Returns:
        Its parts, with a subset of tensors as tensors, which are faster to gather.

    Raises:
        WorkloadError: Not a DataLoader, or a dataset that cannot be indexed.

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
            f"{name} must be sampled uniformly from its Dataset",
            got=f"a {type(loader.sampler).__name__}",
            mend="select examples in the Dataset (torch.utils.data.Subset), or weight them in the loss",
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
        # Tensors are gathered without a collate function, but the user's own must be applied to every example.
        return _OneByOne(dataset) if type(dataset) is TensorDataset else dataset
    if type(dataset) is Subset and type(dataset.dataset) is TensorDataset:
        where = list(dataset.indices)
        return TensorDataset(*(tensor[where] for tensor in dataset.dataset.tensors))
    return dataset


class _OneByOne(Dataset[Any]):
    """Tensors or a list, read example by example."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


def workload_of(
    train: Source,
    validation: Source,
    optimizer: OptimizerLike,
    module: nn.Module,
    *,
    batch_size: int | None,
    times: int = 1,
    name: str | None,
    **parts: Any,
) -> Workload:
    """Make a Workload of the parts that a framework's objects have in common.

    Args:
        train: The training data.
        validation: The validation data.
        optimizer: The optimiser.
        module: The framework's model, whose class is the default name.
        batch_size: The user's argument.
        times: Batches of the loader in one update.
        name: The user's argument.
        parts: Other arguments of the Workload.
    """
    return Workload(
        train=train.dataset,
        validation=validation.dataset,
        optimizer=optimizer,
        learning_rate=optimizer.learning_rate,
        batch_size=reference_batch_size(batch_size, train.batch_size, train.examples, times=times),
        collate=train.collate,
        name=name or type(module).__name__,
        **parts,
    )


def copies_of(model: nn.Module) -> Callable[[], nn.Module]:
    """Make a factory of copies of a model as it is now, on the CPU and in training mode."""
    kept = copy.deepcopy(model).cpu()
    kept.zero_grad(set_to_none=True)
    return lambda: copy.deepcopy(kept).train()


def reference_batch_size(given: int | None, found: int | None, examples: int, *, times: int = 1) -> int:
    """Return the present batch size: the one given, or that of the loader, at most the number of examples.

    Args:
        given: The user's argument.
        found: The loader's batch size.
        examples: Training examples.
        times: Batches of the loader in one update.

    Raises:
        WorkloadError: Neither is known.
    """
    if given is not None:
        return given
    if found is None:
        raise WorkloadError(
            "the present batch size must be known",
            got="a DataLoader whose batch sampler has none",
            mend="give batch_size=",
        )
    return min(found * times, examples)

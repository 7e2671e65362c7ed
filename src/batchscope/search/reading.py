"""A Dataset read once for all candidates of a search, with the time that reading takes kept apart.

All candidates of one seed see the same examples in the same order. What one has read is kept for the others, up to a
bound, so that slow data is paid for once; on a candidate's clock reading counts as it would in a run of its own.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from torch.utils.data import Dataset

from batchscope.training.feed import TrainingData
from batchscope.workload.batches import nbytes
from batchscope.workload.workload import length

# Examples that are kept take this much memory at most.
KEPT_BYTES = 512 << 20


class KeptReading(Dataset[Any]):
    """A Dataset that remembers what was read.

    Args:
        dataset: What is read.
        kept_bytes: Most memory for what is remembered.

    Attributes:
        read_seconds: Time spent in reading what was not there yet.
        read_examples: How many examples that were.
    """

    def __init__(self, dataset: Dataset[Any], *, kept_bytes: int = KEPT_BYTES) -> None:
        self.dataset, self.kept_bytes = dataset, kept_bytes
        self.read_seconds, self.read_examples = 0.0, 0
        self._kept: dict[int, Any] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """Number of examples."""
        return length(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """One example."""
        if index in self._kept:
            return self._kept[index]
        began = time.perf_counter()
        example = self.dataset[index]
        self.read_seconds += time.perf_counter() - began
        self.read_examples += 1
        size = max(nbytes(example), sys.getsizeof(example))
        if self._bytes + size <= self.kept_bytes:
            self._kept[index] = example
            self._bytes += size
        return example

    def __getattr__(self, name: str) -> Any:
        """Targets, labels and whatever else the Dataset has."""
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def seconds_per_example(self) -> float:
        """Mean time of reading one example for the first time; 0 before any was read."""
        return self.read_seconds / self.read_examples if self.read_examples else 0.0


def keep_reading(data: TrainingData) -> KeptReading | None:
    """Let all runs on some training data share what was read of it, in this process.

    Args:
        data: A workload's training examples.

    Returns:
        What was put in the Dataset's place; None where the examples are tensors.
    """
    if data.tensors is not None:
        return None
    kept = KeptReading(data.workload.train)  # type: ignore[arg-type]
    data.read_from(kept, workers=0)
    return kept

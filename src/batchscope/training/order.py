"""The order of examples: an endless stream of indices, a function of the seed and the position alone.

The stream is cut into stretches of N positions, N being the number of training examples. Batches are cut out of the
stream one after the other and may lie across a border between stretches, so every batch has exactly B examples and a
run sees exactly the examples it was given; only the last batch of a budget that B does not divide is shorter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from batchscope.errors import PlanError
from batchscope.records import Order
from batchscope.seeding import derive


class ExampleOrder:
    """Indices of training examples by position in the stream.

    * shuffled: each stretch is a permutation, so every example is seen once before any is seen again;
    * replacement: each position is drawn independently;
    * stratified: each stretch is a permutation in which every class comes at even distances, so that every batch
      has the data's class proportions to within two examples of a class.

    Args:
        kind: One of those.
        examples: N.
        seed: Seed of the order.
        labels: Called for the class of every example when the order is stratified.

    Raises:
        PlanError: A stratified order without labels to go by.

    Examples:
        >>> order = ExampleOrder("shuffled", 4, seed=0)
        >>> sorted(order.indices(0, 4).tolist()), sorted(order.indices(4, 8).tolist())
        ([0, 1, 2, 3], [0, 1, 2, 3])
    """

    def __init__(self, kind: Order, examples: int, *, seed: int, labels: Callable[[], Tensor] | None = None) -> None:
        self.kind = kind
        self.examples = examples
        self.seed = seed
        self._labels: Tensor | None = None
        if kind == "stratified":
            if labels is None:
                raise PlanError("a stratified order needs labels", got="none", mend="use order='shuffled'")
            self._labels = labels()
        self._stretch_number = -1
        self._stretch = torch.empty(0, dtype=torch.long)

    def indices(self, start: int, stop: int) -> Tensor:
        """Indices at positions ``start`` to ``stop`` of the stream, int64.

        Args:
            start: First position.
            stop: The position after the last one.

        Returns:
            A tensor of ``stop - start`` indices below N.
        """
        parts = []
        while start < stop:
            number, offset = divmod(start, self.examples)
            end = min(offset + stop - start, self.examples)
            parts.append(self._stretch_at(number)[offset:end])
            start += end - offset
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _stretch_at(self, number: int) -> Tensor:
        if number != self._stretch_number:
            generator = torch.Generator().manual_seed(derive(self.seed, "order", number))
            if self.kind == "replacement":
                self._stretch = torch.randint(self.examples, (self.examples,), generator=generator)
            elif self._labels is None:
                self._stretch = torch.randperm(self.examples, generator=generator)
            else:
                self._stretch = _stratified(self._labels, generator)
            self._stretch_number = number
        return self._stretch


def _stratified(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A permutation with every class at even distances: its j-th example of n stands at (j + ½)/n of the way."""
    shuffled = torch.randperm(len(labels), generator=generator)
    classes = labels[shuffled].numpy()
    by_class = np.argsort(classes, kind="stable")
    _, first, counts = np.unique(classes[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(classes)) - np.repeat(first, counts)
    place = np.empty(len(classes))
    place[by_class] = (rank + 0.5) / np.repeat(counts, counts)
    # Classes of one size tie at every place; which of them comes first is drawn once for the whole stretch, so that
    # they take turns in one order and no batch catches a class twice while another waits.
    tie = torch.randperm(len(counts), generator=generator).numpy()
    turn = np.empty(len(classes))
    turn[by_class] = np.repeat(tie, counts)
    return shuffled[torch.from_numpy(np.lexsort((turn, place)))]

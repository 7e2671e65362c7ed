"""The order of examples: an endless stream of indices, a function of the seed and the position alone.

The stream is cut into stretches of N positions, N being the number of training examples. Batches are cut out of the
stream one after the other and may lie across a border between stretches, so every batch has exactly B examples and a
run sees exactly the examples it was given; only the last batch of a budget that B does not divide is shorter.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from batchscope.errors import PlanError
from batchscope.records import Order
from batchscope.seeding import derive

# Batches among whose examples lengths are sorted: many, so that they differ little within one; few, so that who is
# with whom changes from stretch to stretch.
BUCKETED_BATCHES = 64


class ExampleOrder:
    """Indices of training examples by position in the stream.

    * shuffled: each stretch is a permutation, so every example is seen once before any is seen again;
    * replacement: each position is drawn independently;
    * stratified: each stretch is a permutation in which every class comes at even distances, so that every batch
      has each class's share of it to within two examples;
    * bucketed: each stretch is a permutation in which batches are of examples of about equal length: those that 64
      batches have at random are sorted by length and cut into batches, which come in random order.

    Args:
        kind: One of those.
        examples: N.
        seed: Seed of the order.
        labels: Called for the class of every example when the order is stratified.
        lengths: Called for the length of every example when it is bucketed.
        batch_size: Examples that are kept together when it is bucketed.

    Raises:
        PlanError: A stratified order without labels to go by, or a bucketed one without lengths.

    Examples:
        >>> order = ExampleOrder("shuffled", 4, seed=0)
        >>> sorted(order.indices(0, 4).tolist()), sorted(order.indices(4, 8).tolist())
        ([0, 1, 2, 3], [0, 1, 2, 3])
    """

    def __init__(
        self,
        kind: Order,
        examples: int,
        *,
        seed: int,
        labels: Callable[[], Tensor] | None = None,
        lengths: Callable[[], Tensor] | None = None,
        batch_size: int = 1,
    ) -> None:
        self.kind = kind
        self.examples = examples
        self.seed = seed
        self._labels: Tensor | None = None
        if kind == "stratified":
            if labels is None:
                raise PlanError("a stratified order needs labels", got="none", mend="use order='shuffled'")
            self._labels = labels()
        self._bucketed: _Bucketed | None = None
        if kind == "bucketed":
            if lengths is None:
                raise PlanError("a bucketed order needs lengths", got="none", mend="use order='shuffled'")
            self._bucketed = _Bucketed(lengths(), batch_size)
        self._stratified: _Stratified | None = None
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
            elif self._bucketed is not None:
                self._stretch = self._bucketed.permutation(generator, number * self.examples)
            elif self._labels is None:
                self._stretch = torch.randperm(self.examples, generator=generator)
            else:
                self._stratified = self._stratified or _Stratified(self._labels)
                self._stretch = self._stratified.permutation(generator)
            self._stretch_number = number
        return self._stretch


class _Bucketed:
    """Permutations whose batches are of examples of about equal length."""

    def __init__(self, lengths: Tensor, batch_size: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size

    def permutation(self, generator: torch.Generator, start: int) -> Tensor:
        """Random but for who is with whom; the batch that lies across the border to the stretch before is filled first.

        Args:
            generator: Of the draw.
            start: Position in the stream at which the stretch begins.
        """
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        begun, rest = shuffled.tensor_split([min(-start % self.batch_size, len(shuffled))])
        batches: list[Tensor] = []
        for window in torch.split(rest, BUCKETED_BATCHES * self.batch_size):
            batches += torch.split(window[torch.argsort(self.lengths[window], stable=True)], self.batch_size)
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        order = torch.randperm(len(whole), generator=generator).tolist()
        ends = [batch for batch in batches if len(batch) < self.batch_size]
        return torch.cat([begun, *(whole[i] for i in order), *ends])


class _Stratified:
    """Permutations in which every class comes at even distances."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.numpy()
        self.counts = np.unique(self.labels, return_counts=True)[1]
        self.classes = _even_classes(self.counts)

    def permutation(self, generator: torch.Generator) -> Tensor:
        """Examples of a class take its places at random, classes of one size each other's, and either end is first."""
        shuffled = torch.randperm(len(self.labels), generator=generator).numpy()
        ties = torch.randperm(len(self.counts), generator=generator).numpy()
        plays = np.empty_like(ties)
        plays[np.argsort(self.counts, kind="stable")] = np.lexsort((ties, self.counts))
        at_place = plays[self.classes]
        if torch.randint(2, (), generator=generator):
            at_place = at_place[::-1]
        examples = np.empty_like(shuffled)
        examples[np.argsort(at_place, kind="stable")] = shuffled[np.argsort(self.labels[shuffled], kind="stable")]
        return torch.from_numpy(examples)


def _even_classes(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The class at each of N places, such that the first L hold less than one more or fewer of a class than nL/N.

    So its example j of n must stand between places ⌊jN/n⌋ and ⌈(j + 1)N/n⌉ − 1. There is always such a sequence, and
    giving each place to the class that may have it and whose time runs out first finds it (Steiner and Yeomans 1993,
    "Level schedules for mixed-model, just-in-time processes").
    """
    places = int(counts.sum())
    taken = [0] * len(counts)
    from_place: list[list[int]] = [[] for _ in range(places + 1)]
    from_place[0] = list(range(len(counts)))
    ready: list[tuple[int, int]] = []
    classes = np.empty(places, dtype=np.int64)
    sizes = counts.tolist()
    for place in range(places):
        for c in from_place[place]:
            heapq.heappush(ready, (-(-(taken[c] + 1) * places // sizes[c]), c))
        _, chosen = heapq.heappop(ready)
        classes[place] = chosen
        taken[chosen] += 1
        from_place[max(place + 1, taken[chosen] * places // sizes[chosen])].append(chosen)
    return classes

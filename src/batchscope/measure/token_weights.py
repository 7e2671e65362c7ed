"""What each example weighs in the gradient of a batch whose loss is a mean over tokens."""

from __future__ import annotations

import torch
from torch import nn

from batchscope.seeding import isolated
from batchscope.training.modes import evaluating
from batchscope.workload.batches import take, to_device
from batchscope.workload.tokens import mean_tokens, tokens_of
from batchscope.workload.workload import Workload

# Examples among which pairs of unequal length are looked for, and pairs that are tried.
LOOKED_AT, PAIRS = 64, 8
# The two means of a pair's losses differ by at least this share of them, and the loss lies this close to one of both.
APART, CLOSE = 1e-4, 0.1


class TokenWeights:
    """Tokens of an example over those of a mean one, where the loss of a batch is a mean over all of its tokens.

    Then the gradient of a batch is Σ nᵢgᵢ / Σ nᵢ, so that an example's row is (nᵢ/n̄)·gᵢ: means of rows are the batch's
    gradient, and their variance is its noise. (In place of nᵢ(gᵢ − G)/n̄ + G, whose variance a ratio of two random sums
    has: the noise scale comes out larger by the variance of nᵢ/n̄, less than one example as a rule.)

    Args:
        workload: Whose ``tokens_per_example`` may be a function.
        model: The model on its device; modes and random state are left as they are.

    Attributes:
        apply: Whether rows are to be weighted.
    """

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        self.workload = workload
        self._tokens: dict[int, float] = {}
        self.apply = callable(workload.tokens_per_example) and self._is_mean_over_tokens(model)
        self._mean = (mean_tokens(workload) or 1.0) if self.apply else 1.0

    def of(self, groups: list[list[int]]) -> torch.Tensor:
        """Weights of groups of examples, each the mean over its examples.

        Args:
            groups: Training examples of each.

        Returns:
            Float64, one for each group.
        """
        counts = [sum(map(self._count, group)) / len(group) for group in groups]
        return torch.tensor(counts, dtype=torch.float64) / self._mean

    def _count(self, index: int) -> float:
        if index not in self._tokens:
            self._tokens[index] = tokens_of(self.workload, index)
        return self._tokens[index]

    def _is_mean_over_tokens(self, model: nn.Module) -> bool:
        """Whether the loss of two examples of unequal length lies where their tokens put it, and not halfway."""
        device = next(model.parameters()).device
        ordered = sorted(range(min(LOOKED_AT, self.workload.training_examples)), key=self._count)

        def loss(*indices: int) -> float:
            with torch.no_grad(), evaluating(model), isolated(0, device):
                batch = to_device(take(self.workload.train, indices, self.workload.collate), device)
                return float(self.workload.loss(*self.workload.output_and_target(model, batch)))

        for short, long in zip(ordered[:PAIRS], ordered[::-1][:PAIRS], strict=False):
            few, many = self._count(short), self._count(long)
            if not few < many:
                return False
            first, second = loss(short), loss(long)
            halfway, by_tokens = (first + second) / 2, (few * first + many * second) / (few + many)
            if abs(halfway - by_tokens) > APART * abs(halfway):
                return abs(loss(short, long) - by_tokens) < CLOSE * abs(halfway - by_tokens)
        return False

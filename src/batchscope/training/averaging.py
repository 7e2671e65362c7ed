"""The average of a run's weights, in which late ones count most: what the run has reached beneath its noise.

At a constant learning rate the weights wander about where they are heading, and a single point of their path is worse
than the middle of it. The average with density ∝ sⁿ over the examples s seen so far (polynomial-decay averaging, Shamir
and Zhang 2013, arXiv 1212.1824) has a window that grows with the run, about the last 1/(n + 1) of it, so that there is
nothing to choose beforehand: neither where training will end nor how long the window is. With n = 8 it reaches, at
every moment, what a linear cooldown over the last fifth would have reached there (docs/methods.md has the
measurements), without a cooldown's training and without knowing the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

POWER = 8.0
# The average takes in the weights whenever the examples have grown by this share: some twenty times in its window.
SPACING = 1 / 200


class WeightAverage:
    """The polynomial-decay average of some tensors over a run.

    After s examples the average is (n + 1)/s^(n+1) · ∫ tⁿ·w(t) dt, taken in steps: from s₀ to s it moves towards the
    weights by 1 − (s₀/s)^(n+1). What is not floating-point is taken as it stands.

    Args:
        tensors: Weights and buffers, as they are trained; their contents are read when they are due.
        power: n.

    Examples:
        >>> weight = torch.zeros(1)
        >>> average = WeightAverage([weight], power=1.0)
        >>> for examples in (1, 2):
        ...     _ = weight.fill_(examples)
        ...     average.see(examples)
        >>> with average.in_place():  # (1² · 1 + (2² − 1²) · 2)/2²
        ...     print(weight)
        tensor([1.7500])
        >>> print(weight)
        tensor([2.])
    """

    def __init__(self, tensors: Sequence[Tensor], power: float = POWER) -> None:
        self.power = power
        self.examples = 0
        self._due = 0.0
        self._averaged: list[Tensor] = []
        self._copied: list[Tensor] = []
        self.bind(tensors)

    def bind(self, tensors: Sequence[Tensor]) -> None:
        """Go on with these tensors, which hold what the last ones held."""
        self._tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
        self._others = [tensor for tensor in tensors if not tensor.is_floating_point()]

    @torch.no_grad()
    def see(self, examples: int) -> None:
        """After an update: take the weights in, where that is due.

        Args:
            examples: Examples seen so far.
        """
        if examples < self._due:
            return
        if not self._averaged:
            self._averaged = [tensor.detach().clone() for tensor in self._tensors]
        elif examples > self.examples:
            weight = 1.0 - (self.examples / examples) ** (self.power + 1)
            torch._foreach_lerp_(self._averaged, self._tensors, weight)
        self._copied = [tensor.detach().clone() for tensor in self._others]
        self.examples, self._due = examples, examples * (1 + SPACING)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts the tensors hold the average; before the first update there is none, and they stay."""
        if not self._averaged:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self, rows: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Go on with these rows of the first dimension alone.

        Args:
            rows: Their positions.
            tensors: The tensors that hold those rows now.
        """
        self._averaged = [average[list(rows)] for average in self._averaged]
        self._copied = [copy[list(rows)] for copy in self._copied]
        self.bind(tensors)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` goes on from; its tensors are the average itself."""
        return {
            "examples": self.examples,
            "due": self._due,
            "averaged": list(self._averaged),
            "copied": list(self._copied),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self.examples, self._due = state["examples"], state["due"]
        self._averaged = _like(state["averaged"], self._tensors)
        self._copied = _like(state["copied"], self._others)

    @torch.no_grad()
    def _swap(self) -> None:
        for held, own in zip((*self._averaged, *self._copied), (*self._tensors, *self._others), strict=True):
            kept = own.detach().clone()
            own.copy_(held)
            held.copy_(kept)


def _like(saved: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    return [part.detach().to(own.device, own.dtype, copy=True) for part, own in zip(saved, tensors, strict=bool(saved))]

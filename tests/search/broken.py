"""A network that can be made to diverge at every rate."""

from __future__ import annotations

from torch import Tensor, nn


class Broken(nn.Module):
    """Where ``factor`` is not a number, neither is what it gives in training."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out * self.factor if self.training else out

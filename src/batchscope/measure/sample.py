"""What one measured step of a loop says, and the sums that it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Way = Literal["single", "halves", "micro-batches", "ranks"]


@dataclass(frozen=True)
class Sample:
    """What one step says of tr Σ and ‖G‖², plain and in the optimiser's own scaling."""

    trace: float
    norm_squared: float
    scaled: tuple[float, float] | None
    group_size: float
    batch_size: int


@dataclass(frozen=True)
class Void:
    """A step that says nothing, and why.

    Attributes:
        reason: What stood in the way.
        lasting: Whether it would at every step.
        next_way: What to try instead; None: the same again.
    """

    reason: str
    lasting: bool = False
    next_way: Way | None = None


@dataclass
class Norms:
    """Squared norms, one entry for each parameter: numbers, or one for each example."""

    plain: list[Tensor] = field(default_factory=list)
    scaled: list[Tensor] = field(default_factory=list)

    def add(self, plain: Tensor, scaled: Tensor | None) -> None:
        """Add a parameter's."""
        self.plain.append(plain)
        if scaled is not None:
            self.scaled.append(scaled)

    def means(self, with_scaled: bool) -> Tensor:
        """The sums over parameters, averaged over examples: of the plain norms, and of the scaled ones."""
        parts = [self.plain, self.scaled] if with_scaled else [self.plain]
        return torch.stack([torch.stack(part).double().sum(0).mean() for part in parts])


def squares(gradient: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """‖g‖², and with each coordinate's square times its factor."""
    if gradient.dtype in (torch.float16, torch.bfloat16):
        gradient = gradient.float()
    plain = torch.linalg.vector_norm(gradient).square()
    return plain, None if factor is None else (gradient.square() * factor).sum()

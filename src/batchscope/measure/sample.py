"""What one measured step of a loop says, the sums that it comes from, and what the last steps say together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from batchscope.fit.noise import NoiseEstimate
from batchscope.fit.noise_series import estimate_series

# A sample that counts for less than this of the newest is dropped.
LEAST_WEIGHT = 1 / 64
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


class Window:
    """Samples that count for half after so many steps.

    Args:
        half_life: That number of steps; None: all count alike.

    Attributes:
        samples: Step, tr Σ, ‖G‖², both in the optimiser's scaling or NaN, and batch size of each.
        measured: Samples ever taken in.
        examples: Examples in those.
        batch_size: That of the last; None before the first.
        group_size: Examples in each of the gradients that the last batch's was compared with.
    """

    def __init__(self, half_life: float | None) -> None:
        self.half_life = half_life
        self.samples: list[tuple[float, ...]] = []
        self.measured = 0
        self.examples = 0
        self.batch_size: int | None = None
        self.group_size = 1.0

    def add(self, step: int, sample: Sample) -> None:
        """Take in a sample, and drop those that hardly count any more."""
        scaled = sample.scaled or (np.nan, np.nan)
        self.samples.append((float(step), sample.trace, sample.norm_squared, *scaled, float(sample.batch_size)))
        self.measured += 1
        self.examples += sample.batch_size
        self.batch_size, self.group_size = sample.batch_size, sample.group_size
        if self.half_life is not None:
            oldest = step + self.half_life * np.log2(LEAST_WEIGHT)
            while self.samples[0][0] < oldest:
                self.samples.pop(0)

    def estimate(self) -> NoiseEstimate:
        """What the samples say."""
        return self._estimate(1)

    def scaled_estimate(self) -> NoiseEstimate | None:
        """The same in the optimiser's scaling; None where it has none."""
        return None if all(np.isnan(sample[3]) for sample in self.samples) else self._estimate(3)

    def _estimate(self, column: int) -> NoiseEstimate:
        rows = np.array(self.samples, dtype=np.float64).reshape(-1, 6)
        rows = rows[~np.isnan(rows[:, column])]
        weights = np.ones(len(rows))
        if self.half_life is not None and len(rows):
            weights = 0.5 ** ((rows[-1, 0] - rows[:, 0]) / self.half_life)
        batch = float(rows[:, 5].mean()) if len(rows) else 1.0
        return estimate_series(rows[:, column], rows[:, column + 1], weights=weights, examples=batch)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs."""
        kept = ("samples", "measured", "examples", "batch_size", "group_size")
        return {name: list(self.samples) if name == "samples" else getattr(self, name) for name in kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.samples = [tuple(sample) for sample in state["samples"]]
        self.measured, self.examples = state["measured"], state["examples"]
        self.batch_size, self.group_size = state["batch_size"], state["group_size"]

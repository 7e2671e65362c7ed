"""Whether gradients of single examples, and of halves of a batch, are what autograd makes of the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from batchscope.measure.per_example_rules import ParameterUse, by_example, single_gradients

# How far a sum of single gradients may lie from autograd's: of its own length, and of the whole gradient's.
RELATIVE, OF_ALL = 0.05, 0.01

TIED = "the gradient of one example reaches another: something in the model ties the examples of a batch"
ELSEWHERE = (
    "part of the gradient does not come through the model's output, from a penalty on the weights or a second output "
    "in the loss"
)


def gradients_of_rows(
    output: Tensor, gradient: Tensor, rows: Tensor, parameters: list[nn.Parameter]
) -> dict[int, Tensor]:
    """What some examples put into the batch's gradient, by a backward pass of their own.

    Args:
        output: The model's output, B·m×…, whose graph stays as it is.
        gradient: Its gradient.
        rows: Which of the B examples, as booleans.
        parameters: Of which gradients are wanted.

    Returns:
        By the parameter's ``id``; without those that the output does not depend on.
    """
    spread = by_example(gradient, len(rows))
    masked = (spread * rows.view(-1, *[1] * (spread.dim() - 1))).flatten(0, 1)
    found = torch.autograd.grad(output, parameters, masked, retain_graph=True, allow_unused=True)
    return {id(p): g.detach() for p, g in zip(parameters, found, strict=True) if g is not None}


@dataclass
class Probe:
    """Gradients of some of the examples and of all others, by autograd, and how far from them others' ways came.

    Attributes:
        chosen: Of the chosen examples, by the parameter's ``id``.
        others: Of the others; None where nothing is to be checked.
    """

    chosen: dict[int, Tensor]
    others: dict[int, Tensor] | None
    _names: list[str] = field(default_factory=list)
    _rows_off: list[Tensor] = field(default_factory=list)
    _sizes: list[Tensor] = field(default_factory=list)
    _sums_off: list[Tensor] = field(default_factory=list)

    def compare_rows(self, name: str, parameter: nn.Parameter, uses: list[ParameterUse]) -> None:
        """Hold the sum of the chosen examples' gradients to autograd's."""
        chosen = self.chosen.get(id(parameter))
        if chosen is None:
            return
        total = torch.stack([rows.sum(0) for rows in single_gradients(uses, parameter.shape)]).sum(0)
        self._names.append(name)
        self._rows_off.append(torch.linalg.vector_norm(total - chosen))
        self._sizes.append(torch.linalg.vector_norm(chosen))

    def split(self, parameter: nn.Parameter, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's gradient as that of the chosen examples and of the others, which is held to autograd's."""
        zero = torch.zeros_like(gradient)
        chosen = self.chosen.pop(id(parameter), zero)
        others = gradient - chosen
        if self.others is not None:
            self._sums_off.append(torch.linalg.vector_norm(others - self.others.pop(id(parameter), zero)))
        return chosen, others

    def all_comes_through_the_output(self, length: float) -> bool:
        """Whether the chosen and the others make up the batch's gradient, which is of this length."""
        return all(float(off) <= RELATIVE * length for off in self._sums_off)

    def first_that_differs(self, length: float) -> str | None:
        """A parameter whose single gradients are not autograd's; None where all are."""
        for name, off, size in zip(self._names, self._rows_off, self._sizes, strict=True):
            if not float(off) <= RELATIVE * float(size) + OF_ALL * length:
                return name
        return None


def length_of(squares: list[Tensor]) -> float:
    """The length of a gradient from the squared norms of its parts."""
    return math.sqrt(sum(map(float, squares)))

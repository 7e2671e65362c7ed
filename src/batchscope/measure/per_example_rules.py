"""Gradients of single examples from what a backward pass passes by: the uses of a parameter, and a rule for each.

Where a parameter meets a batch of activations, the gradient of example i follows from row i of the activations and of
the gradient of the result, both of which any backward pass has in hand (Goodfellow 2015, arXiv 1510.01799; Li et al.
2022, arXiv 2110.05679, for sequences). With a_t and g_t the rows of example i at place t:

| use | gradient of example i |
|---|---|
| linear, matrix product | Σ_t g_t a_tᵀ |
| convolution | the same, with a_t the patch under the kernel at place t |
| embedding | g_t added to the row of each token |
| weight of a layer, group or RMS norm | Σ_t g_t ⊙ â_t, with â the normalised activations |
| sum, bias | Σ_t g_t |
| product with a parameter | Σ_t g_t ⊙ a_t |

Σ_t g_t a_tᵀ of T places is either formed, at T·P multiplications, or its squared norm taken from the two T×T Gram
matrices as Σ_ts (g_t·g_s)(a_t·a_s), whichever is less. Rows come as k×m×…: k examples, and m places for each where a
model folds places into the first dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Numbers in the gradients of single examples that are formed at once.
CHUNK = 1 << 22

RowsRule = Callable[[Tensor, Tensor], Tensor]
SquaresRule = Callable[[Tensor, Tensor, Tensor | None], Tensor | None]
Pullback = Callable[[Tensor], Tensor]


@dataclass
class ParameterUse:
    """One use of a parameter in a forward pass.

    Attributes:
        inputs: What it met, k×m×…; of an addition, where it does not matter, an empty k×0.
        rows: Gives k gradients of what was used from the inputs and the gradient of the result.
        squares: Their squared norms without forming them, each coordinate's square scaled, or None where that costs
            more than to form them.
        pullbacks: Lead from the gradient of what was used, a slice or a transpose say, to that of the parameter.
        gradient: Of the result, k×m×…, from when it arrives.
    """

    inputs: Tensor
    rows: RowsRule
    squares: SquaresRule | None = None
    pullbacks: tuple[Pullback, ...] = ()
    gradient: Tensor | None = None


def single_gradients(uses: Sequence[ParameterUse], shape: torch.Size) -> Iterator[Tensor]:
    """Yield the gradients of single examples, some at a time: rows of the parameter's shape, summed over its uses.

    Args:
        uses: Those of one parameter in one forward pass.
        shape: The parameter's.
    """
    count = len(uses[0].inputs)
    size = max(1, CHUNK // max(1, shape.numel()))
    for start in range(0, count, size):
        chunk = slice(start, start + size)
        total: Tensor | None = None
        for use in uses:
            if use.gradient is None:  # its result did not enter the loss
                continue
            rows = use.rows(use.inputs[chunk], use.gradient[chunk])
            for back_through in reversed(use.pullbacks):
                rows = back_through(rows)
            total = rows if total is None else total + rows
        if total is None:
            total = uses[0].inputs.new_zeros(min(size, count - start), *shape)
        yield total.reshape(len(total), *shape)


def squared_norms(
    uses: Sequence[ParameterUse], shape: torch.Size, factor: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Squared norms of the gradients of single examples.

    Args:
        uses: Those of one parameter in one forward pass.
        shape: The parameter's.
        factor: What each coordinate's square counts for in the second norm; None: there is no second.

    Returns:
        k squared norms, and k more with the factor.
    """
    if len(uses) == 1 and not uses[0].pullbacks:
        use = uses[0]
        if use.squares is not None and use.gradient is not None:
            plain = use.squares(use.inputs, use.gradient, None)
            scaled = None if factor is None else use.squares(use.inputs, use.gradient, factor)
            if plain is not None and (factor is None) == (scaled is None):
                return plain, scaled
    plains, scaleds = [], []
    for rows in single_gradients(uses, shape):
        squares = rows.square().reshape(len(rows), -1)
        plains.append(squares.sum(1))
        if factor is not None:
            scaleds.append(squares @ factor.flatten().to(squares.dtype))
    return torch.cat(plains), torch.cat(scaleds) if scaleds else None


def linear_rows(x: Tensor, g: Tensor) -> Tensor:
    """Out×in of x ↦ x·Wᵀ."""
    return torch.bmm(_places(g).transpose(1, 2), _places(x))


def matmul_rows(x: Tensor, g: Tensor) -> Tensor:
    """In×out of x ↦ x·W."""
    return torch.bmm(_places(x).transpose(1, 2), _places(g))


def linear_squares(x: Tensor, g: Tensor, factor: Tensor | None) -> Tensor | None:
    """‖Σ_t g_t x_tᵀ‖²: a product of norms for one place, from Gram matrices where those are smaller."""
    x, g = _places(x), _places(g)
    count = x.shape[1]
    if count == 1:
        squares, others = x[:, 0].square(), g[:, 0].square()
        return squares.sum(1) * others.sum(1) if factor is None else ((squares @ factor.T) * others).sum(1)
    if factor is None and count * (x.shape[2] + g.shape[2]) < x.shape[2] * g.shape[2]:
        return (torch.bmm(x, x.transpose(1, 2)) * torch.bmm(g, g.transpose(1, 2))).sum((1, 2))
    return None


def matmul_squares(x: Tensor, g: Tensor, factor: Tensor | None) -> Tensor | None:
    """The same for x ↦ x·W."""
    return linear_squares(x, g, None if factor is None else factor.T)


def sum_rows(shape: torch.Size, sign: float = 1.0) -> RowsRule:
    """Of x ↦ x ± p, with p of this shape broadcast over the batch."""

    def rows(x: Tensor, g: Tensor) -> Tensor:
        return sign * _unbroadcast(g, shape)

    return rows


def product_rows(shape: torch.Size) -> RowsRule:
    """Of x ↦ x ⊙ p, with p of this shape broadcast over the batch."""

    def rows(x: Tensor, g: Tensor) -> Tensor:
        return _unbroadcast(g * x, shape)

    return rows


def layer_norm_rows(shape: torch.Size, normalise: Callable[[Tensor], Tensor]) -> RowsRule:
    """Of the weight of a norm over the last dimensions."""

    def rows(x: Tensor, g: Tensor) -> Tensor:
        return _unbroadcast(g * normalise(x), shape)

    return rows


def channel_rows(x: Tensor, g: Tensor) -> Tensor:
    """Of a bias for each channel, the third dimension here."""
    return g.sum(1).reshape(len(g), g.shape[2], -1).sum(2)


def group_norm_rows(groups: int, eps: float) -> RowsRule:
    """Of the weight of a group norm."""

    def rows(x: Tensor, g: Tensor) -> Tensor:
        normalised = F.group_norm(x.flatten(0, 1), groups, eps=eps).reshape(x.shape)
        return channel_rows(x, g * normalised)

    return rows


def embedding_rule(weight: Tensor, padding: int | None) -> tuple[RowsRule, SquaresRule]:
    """Of a table of vectors looked up by token; the padding token has no gradient."""
    size, width = weight.shape
    padding = None if padding is None else padding % size

    def flat(tokens: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        tokens, g = tokens.flatten(1), g.reshape(len(g), -1, width)
        return tokens, g if padding is None else g * (tokens != padding).unsqueeze(2)

    def rows(tokens: Tensor, g: Tensor) -> Tensor:
        tokens, g = flat(tokens, g)
        first = torch.arange(len(tokens), device=tokens.device).unsqueeze(1) * size
        table = g.new_zeros(len(g) * size, width).index_add_(0, (tokens + first).flatten(), g.flatten(0, 1))
        return table.view(len(g), size, width)

    def squares(tokens: Tensor, g: Tensor, factor: Tensor | None) -> Tensor | None:
        tokens, g = flat(tokens, g)
        if tokens.shape[1] ** 2 > 4 * size:
            return None
        same = tokens.unsqueeze(1) == tokens.unsqueeze(2)
        scaled = g if factor is None else g * factor[tokens].to(g.dtype)
        return (torch.bmm(scaled, g.transpose(1, 2)) * same).sum((1, 2))

    return rows, squares


def convolution_rows(
    shape: torch.Size, stride: Sequence[int], padding: str | Sequence[int], dilation: Sequence[int], groups: int
) -> RowsRule:
    """Of a convolution's kernel, out×in/groups×…, over one, two or three dimensions."""
    kernel = shape[2:]

    def rows(x: Tensor, g: Tensor) -> Tensor:
        k, m = x.shape[:2]
        patches = F.pad(x.flatten(0, 1), _padding(kernel, padding, dilation))
        for i, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True)):
            # Windows along dimension i become a last dimension; of a dilated one every so many are kept.
            patches = patches.unfold(2 + i, apart * (size - 1) + 1, step)[..., ::apart]
        n = len(kernel)
        # km×C×places…×kernel… → km×groups×(C/groups·kernel)×places
        order = (0, 1, *range(2 + n, 2 + 2 * n), *range(2, 2 + n))
        columns = patches.permute(order).reshape(k * m * groups, shape[1:].numel(), -1)
        result = torch.bmm(g.reshape(k * m * groups, shape[0] // groups, -1), columns.transpose(1, 2))
        return result.reshape(k, m, *shape).sum(1)

    return rows


def _padding(kernel: Sequence[int], padding: str | Sequence[int], dilation: Sequence[int]) -> list[int]:
    """As F.pad wants it: of the last dimension first, both ends."""
    ends: list[int] = []
    for i in reversed(range(len(kernel))):
        if isinstance(padding, str):
            total = dilation[i] * (kernel[i] - 1) if padding == "same" else 0
            ends += [total // 2, total - total // 2]
        else:
            ends += [padding[i], padding[i]]
    return ends


def pullback(function: Callable[[Tensor], Any], source: Tensor) -> Pullback:
    """The way back through a linear function of a parameter alone: a slice, a transpose, a look-up of positions."""
    back = torch.func.vjp(function, source.detach())[1]
    batched = torch.func.vmap(lambda row: back(row)[0])

    def back_through(rows: Tensor) -> Tensor:
        result: Tensor = batched(rows.to(source.dtype))
        return result

    return back_through


def by_example(tensor: Tensor, batch_size: int) -> Tensor:
    """B·m×… as B×m×….

    Examples:
        >>> by_example(torch.zeros(6, 5), 3).shape
        torch.Size([3, 2, 5])
    """
    return tensor.reshape(batch_size, -1, *tensor.shape[1:])


def _places(x: Tensor) -> Tensor:
    """k×m×…×d as k×T×d."""
    return x.reshape(len(x), -1, x.shape[-1])


def _unbroadcast(g: Tensor, shape: torch.Size) -> Tensor:
    """Sum k×m×… over what was broadcast, to k×shape."""
    g = g.sum(1)
    extra = g.dim() - 1 - len(shape)
    if extra > 0:
        g = g.flatten(1, extra).sum(1)
    # A parameter with a first dimension of 1 for the batch is as long as the result; k takes that place.
    sizes = shape if extra >= 0 else shape[-extra:]
    over = [i + 1 for i, size in enumerate(sizes) if size == 1 and g.shape[i + 1] != 1]
    if over:
        g = g.sum(over, keepdim=True)
    return g.reshape(len(g), *shape)

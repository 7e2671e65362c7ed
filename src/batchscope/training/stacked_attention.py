"""Attention in a batched pass, by the kernel that a single run uses.

torch's fused attention on a CPU has no batching rule: under ``vmap`` it falls back to a loop. A replica is one more
batch dimension to it, though, so that the rule is a reshape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


@contextlib.contextmanager
def batched_attention() -> Iterator[None]:
    """Let attention be batched by ``vmap`` inside the block.

    Plain ``scaled_dot_product_attention`` on a CPU (no mask but the causal one, no dropout) takes the fused kernel.
    Everything else takes what is written in plain operations, which ``vmap`` knows how to batch; so do torch's own
    transformer layers when they evaluate, for which they have a kernel of their own.

    Examples:
        >>> q = torch.ones(3, 2, 1, 4, 8)
        >>> with batched_attention():
        ...     out = torch.func.vmap(F.scaled_dot_product_attention)(q, q, q)
        >>> out.shape
        torch.Size([3, 2, 1, 4, 8])
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _Fused():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Fused(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return function(*args, **kwargs)


def _attention(  # noqa: PLR0917 — torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **others: Any,
) -> Tensor:
    scale = others.pop("scale", None)
    plain = attn_mask is None and dropout_p == 0 and not any(others.values())
    shapes = [tensor.shape for tensor in (query, key, value)]
    alike = all(
        len(s) == 4 and s[0] == shapes[0][0] and s[1] == shapes[0][1] and s[3] == shapes[0][3] and 0 not in s
        for s in shapes
    )
    if plain and alike and query.device.type == "cpu" and query.is_floating_point():
        out: Tensor = _Forward.apply(query, key, value, is_causal, scale)[0]  # type: ignore[no-untyped-call]
        return out
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **others)


class _Forward(torch.autograd.Function):
    """The fused kernel, with a batching rule."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None) -> Any:
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, ctx.causal, ctx.scale = inputs
        out, logsumexp = output
        ctx.mark_non_differentiable(logsumexp)
        ctx.save_for_backward(query, key, value, out, logsumexp)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:
        saved = (gradient, *ctx.saved_tensors)
        return *_Backward.apply(*saved, ctx.causal, ctx.scale), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dimensions: tuple[int | None, ...], *args: Any) -> Any:
        folded = [_folded(a, d, info.batch_size) for a, d in zip(args[:3], dimensions, strict=False)]
        out = _Forward.apply(*folded, *args[3:])  # type: ignore[no-untyped-call]
        return tuple(tensor.unflatten(0, (info.batch_size, -1)) for tensor in out), (0, 0)


class _Backward(torch.autograd.Function):
    """The fused kernel's gradient, with a batching rule; second derivatives are not wanted of a training step."""

    @staticmethod
    def forward(*args: Any) -> Any:
        *tensors, causal, scale = args
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, 0.0, causal, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(info: Any, dimensions: tuple[int | None, ...], *args: Any) -> Any:
        folded = [_folded(a, d, info.batch_size) for a, d in zip(args[:6], dimensions, strict=False)]
        out = _Backward.apply(*folded, *args[6:])  # type: ignore[no-untyped-call]
        return tuple(tensor.unflatten(0, (info.batch_size, -1)) for tensor in out), (0, 0, 0)


def _folded(tensor: Tensor, dimension: int | None, replicas: int) -> Tensor:
    """The replicas as more examples, one after the other."""
    stacked = tensor.expand(replicas, *tensor.shape) if dimension is None else tensor.movedim(dimension, 0)
    return stacked.flatten(0, 1)

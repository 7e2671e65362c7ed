"""Training with the chance taken out of it, so that two ways of doing the same can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class NoChance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations that draw random numbers give the same ones always, inside the block.

    Dropout keeps everything (and scales it, as it does what it keeps); uniform numbers are the middle of their range,
    normal ones their mean. What draws whole numbers, a permutation say, draws them.

    Examples:
        >>> with NoChance():
        ...     torch.nn.functional.dropout(torch.ones(4), p=0.5)
        tensor([2., 2., 2., 2.])
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        settled = _SETTLED.get(function)
        return function(*args, **kwargs) if settled is None else settled(function, *args, **kwargs)


def _filled(value: float) -> Callable[..., Any]:
    def settled(function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs).fill_(value)

    return settled


def _uniform(function: Any, tensor: Any, low: float = 0.0, high: float = 1.0, **kwargs: Any) -> Any:
    return tensor.fill_((low + high) / 2)


def _normal(function: Any, tensor: Any, mean: float = 0.0, *others: Any, **kwargs: Any) -> Any:
    return tensor.fill_(mean)


def _dropout(function: Any, tensor: Any, p: float, train: bool | None) -> Any:
    kept = torch.ones_like(tensor, dtype=torch.bool)
    return tensor / (1 - p) if train is not False and p < 1 else tensor.clone(), kept


_SETTLED: dict[Any, Callable[..., Any]] = {
    aten.bernoulli.default: _filled(1.0),
    aten.bernoulli.p: _filled(1.0),
    aten.bernoulli_.float: _filled(1.0),
    aten.bernoulli_.Tensor: _filled(1.0),
    aten.native_dropout.default: _dropout,
    aten.rand.default: _filled(0.5),
    aten.rand_like.default: _filled(0.5),
    aten.randn.default: _filled(0.0),
    aten.randn_like.default: _filled(0.0),
    aten.uniform_.default: _uniform,
    aten.normal_.default: _normal,
}

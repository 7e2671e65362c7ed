"""The module to watch in a training step, and the values to log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from batchscope.errors import WorkloadError
from batchscope.measure import GradientNoise
from batchscope.records import Interval


class Calls:
    """Record which modules with trainable parameters a training step calls, in order.

    Args:
        module: The whole model.
        depth: 0: outermost calls; 1: calls directly inside those.

    Attributes:
        called: The modules.
    """

    def __init__(self, module: nn.Module, *, depth: int = 0) -> None:
        self.called: list[nn.Module] = []
        self._wanted, self._depth = depth, 0
        self._handles: list[Any] = []
        for each in module.modules():
            if any(parameter.requires_grad for parameter in each.parameters()):
                self._handles.append(each.register_forward_pre_hook(self._before))
                self._handles.append(each.register_forward_hook(self._after, always_call=True))

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, module: nn.Module, _: Any) -> None:
        if self._depth == self._wanted and torch.is_grad_enabled():
            self.called.append(module)
        self._depth += 1

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._depth -= 1


class Span(nn.Module):
    """A model whose forward pass lasts from the beginning of one of its modules to the end of another.

    :class:`batchscope.GradientNoise` watches it if a training step calls parts of a model, such as an encoder and a
    decoder, but never the model itself. It is never called.

    Args:
        whole: The model.
        first: The first module; its input has one row per example.
        last: The last module; the loss must follow from its output.
    """

    def __init__(self, whole: nn.Module, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        # In lists, so that they are not registered as submodules.
        self._whole, self._ends = [whole], [first, last]

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Delegate to the model."""
        return self._whole[0].named_parameters(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Delegate to the model."""
        found: Iterator[tuple[str, nn.Module]] = self._whole[0].named_modules(*args, **kwargs)
        return found

    def register_forward_pre_hook(self, hook: Callable[..., Any], **kwargs: Any) -> Any:
        """Register on the first module."""
        return self._ends[0].register_forward_pre_hook(hook, **kwargs)

    def register_forward_hook(self, hook: Callable[..., Any], **kwargs: Any) -> Any:
        """Register on the last module."""
        return self._ends[1].register_forward_hook(hook, **kwargs)


def span(whole: nn.Module, called: list[nn.Module]) -> nn.Module:
    """The model, or the span between the first and the last module called.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> span(model, [model]) is model, type(span(model, [model[0], model[1]])).__name__
        (True, 'Span')
    """
    if not called or called == [whole]:
        return whole
    return Span(whole, called[0], called[-1])


def interval_of(noise: GradientNoise) -> Interval | None:
    """The noise scale so far; None if the loop cannot be measured."""
    with suppress(WorkloadError):
        return noise.noise_scale
    return None


def values_of(interval: Interval | None, prefix: str = "noise_scale") -> dict[str, float]:
    """The finite values to log of an interval: the estimate and both ends, or the lower end if it is not resolved.

    Examples:
        >>> values_of(Interval(120.0, 90.0, 180.0))
        {'noise_scale': 120.0, 'noise_scale_low': 90.0, 'noise_scale_high': 180.0}
    """
    if interval is None:
        return {}
    named = {prefix: interval.value, f"{prefix}_low": interval.low, f"{prefix}_high": interval.high}
    if not interval.resolved:
        named = {f"{prefix}_low": interval.low if interval.low else None}
    return {name: float(value) for name, value in named.items() if value is not None and abs(value) < float("inf")}

"""Compiling a model in place, and the seconds that torch.compile takes, which are no part of any training time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import nn

# A code object for each structure of a model: torch keeps what it compiled by code object, and stops compiling after
# eight versions of one.
_codes: dict[str, CodeType] = {}


class CompiledForward:
    """A model's forward pass through ``torch.compile``.

    The model's own hooks run outside of what is compiled, and whatever was compiled for another model of the same
    structure is used again. (``nn.Module.compile`` compiles the hooks as well, and leaves an ``nn.Sequential`` as it
    is.)

    Args:
        model: Whose forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._call: Callable[..., Any] | None = None  # made at the first call, when a copied model is whole

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        if self._call is None:
            self._call = torch.compile(_forward_of(self.model, type(self.model).forward))
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy as the forward pass of the copied model."""
        return type(self), (self.model,)


def _forward_of(model: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def through(*args: Any, **kwargs: Any) -> Any:
        return forward(model, *args, **kwargs)

    through.__code__ = _codes.setdefault(f"{type(model)} {model}", through.__code__.replace())
    return through


def compile_in_place(model: nn.Module) -> None:
    """Compile a model's forward pass; its class, its parameters and its state dict stay as they are.

    Args:
        model: A model; one that ``torch.compile`` has made is left alone.
    """
    if "forward" not in vars(model) and model._compiled_call_impl is None:
        _clock.listen()  # which loads the compiler, before any training clock runs
        model.forward = CompiledForward(model)


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` stands between a module and its hooks, or those of its children.

    Examples:
        >>> module = nn.Linear(2, 1)
        >>> compile_in_place(module)
        >>> is_compiled(module), is_compiled(nn.Linear(2, 1))
        (True, False)
    """
    return (
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or isinstance(vars(module).get("forward"), CompiledForward)
    )


class _CompileClock:
    """Listens to torch's compiler."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began: float | None = None

    def listen(self) -> None:
        """Register with the compiler, once, and again after ``torch._dynamo.reset()`` has removed it."""
        from torch._dynamo.callback import callback_handler

        if self.start not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(self.start)
        if self.end not in callback_handler.end_callbacks:
            callback_handler.register_end_callback(self.end)

    def start(self, _: object) -> None:
        """The outermost compilation begins."""
        self._began = time.perf_counter()

    def end(self, _: object) -> None:
        """It ends."""
        if self._began is not None:
            self.seconds += time.perf_counter() - self._began
        self._began = None


_clock = _CompileClock()


def compile_seconds() -> float:
    """Seconds of compilation since this was first called with torch's compiler loaded; 0 where it is not loaded.

    Examples:
        >>> before = compile_seconds()
        >>> compile_seconds() - before
        0.0
    """
    if "torch._dynamo" in sys.modules:
        _clock.listen()
    return _clock.seconds

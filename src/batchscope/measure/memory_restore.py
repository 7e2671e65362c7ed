"""A person's model, optimiser, scheduler and random state, kept by value and put back exactly."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from batchscope.seeding import random_state, set_random_state

# How far to follow what a step function refers to: helpers, containers, attributes.
MOST_HOPS = 5


def stateful_objects(*roots: object) -> list[Any]:
    """Everything with ``state_dict`` and ``load_state_dict`` that functions refer to.

    Followed are closures, the globals that a function names, bound selves, partials, default arguments, containers and
    the attributes of objects.

    Args:
        *roots: Functions, methods or other callables; None is passed over.

    Returns:
        The objects, each once, in the order found.

    Examples:
        >>> model = nn.Linear(1, 1)
        >>> stateful_objects(lambda: model) == [model]
        True
    """
    found: list[Any] = []
    seen: set[int] = set()

    def visit(value: Any, hops: int) -> None:
        if id(value) in seen or hops > MOST_HOPS or isinstance(value, (type, types.ModuleType, Tensor, str, bytes)):
            return
        seen.add(id(value))
        if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
            found.append(value)
            return
        for item in _referred_to(value):
            visit(item, hops + 1)

    for root in roots:
        visit(root, 0)
    return found


def _referred_to(value: Any) -> Iterable[Any]:
    if isinstance(value, types.FunctionType):
        if value.__module__ and value.__module__.partition(".")[0] in ("torch", "numpy"):
            return []
        names = inspect.getclosurevars(value)
        return [*names.nonlocals.values(), *names.globals.values(), *(value.__defaults__ or ())]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    own = list(getattr(value, "__dict__", {}).values())
    call = inspect.getattr_static(type(value), "__call__", None)
    return [*own, call] if isinstance(call, types.FunctionType) else own


class SavedState:
    """States as they are now, by value and in the host's memory.

    Of modules also gradients, modes and the buffers that no state dict holds; of optimisers the state itself, since
    loading a state dict may cast it. Besides these torch's, Python's and numpy's random state.

    Args:
        objects: What to keep the state of.
        device: The device whose random state is kept besides the CPU's.
    """

    def __init__(self, objects: Iterable[Any], device: torch.device) -> None:
        self._device = device
        self._random = random_state(device)
        self._kept: list[_Kept] = []
        for item in objects:
            if isinstance(item, nn.Module):
                self._kept.append(_Module(item))
            elif isinstance(item, torch.optim.Optimizer):
                self._kept.append(_Optimizer(item))
            else:
                self._kept.append(_Other(item))

    def restore(self) -> None:
        """Put everything back."""
        for kept in self._kept:
            kept.restore()
        set_random_state(self._random, self._device)


class _Module:
    def __init__(self, module: nn.Module) -> None:
        self._tensors = [(t, _on_host(t)) for t in (*module.parameters(), *module.buffers())]
        self._gradients = [(p, None if p.grad is None else _on_host(p.grad)) for p in module.parameters()]
        self._modes = [(m, m.training) for m in module.modules()]
        # A buffer may be replaced by another tensor in a forward pass, so it is put back by name.
        self._buffers = [(m, name, buffer) for m in module.modules() for name, buffer in m._buffers.items()]

    def restore(self) -> None:
        for module, name, buffer in self._buffers:
            module._buffers[name] = buffer
        with torch.no_grad():
            for tensor, value in self._tensors:
                tensor.copy_(value)
        for parameter, gradient in self._gradients:
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
        for module, mode in self._modes:
            module.training = mode


class _Optimizer:
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._state = {parameter: _by_value(state) for parameter, state in optimizer.state.items()}
        self._groups = [
            {k: v if k == "params" else _by_value(v) for k, v in group.items()} for group in optimizer.param_groups
        ]

    def restore(self) -> None:
        self._optimizer.state.clear()
        self._optimizer.state.update({parameter: _back(state) for parameter, state in self._state.items()})
        for group, kept in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.clear()
            group.update({k: v if k == "params" else _back(v) for k, v in kept.items()})


class _Other:
    def __init__(self, item: Any) -> None:
        self._item, self._state = item, _by_value(item.state_dict())

    def restore(self) -> None:
        self._item.load_state_dict(_back(self._state))


_Kept = _Module | _Optimizer | _Other


class _HostTensor:
    """A tensor's value on the host, and the device that it belongs on."""

    def __init__(self, tensor: Tensor) -> None:
        self.value, self.device = _on_host(tensor), tensor.device


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _by_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _HostTensor(value)
    if isinstance(value, dict):
        return {key: _by_value(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_by_value(item) for item in value)
    return copy.deepcopy(value)


def _back(value: Any) -> Any:
    if isinstance(value, _HostTensor):
        return value.value.to(value.device, copy=True)
    if isinstance(value, dict):
        return {key: _back(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_back(item) for item in value)
    return copy.deepcopy(value)

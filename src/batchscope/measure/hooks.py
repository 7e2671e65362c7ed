"""What a person's own forward and backward pass shows of each parameter's uses, on the steps that are measured.

During one forward pass every torch function passes through :class:`Capture`, a ``TorchFunctionMode``. Where a trained
parameter goes into a function that :mod:`batchscope.measure.per_example_rules` covers, a few examples' rows of the
other operand are kept, and a hook on the result keeps the same rows of its gradient in the backward pass. This sees
parameters used by modules and by hand alike, and costs nothing outside of the pass.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _ntuple
from torch.overrides import TorchFunctionMode

from batchscope.errors import first_line
from batchscope.measure import per_example_rules as rules
from batchscope.measure.budget import Stopwatch
from batchscope.measure.per_example_rules import ParameterUse, Pullback


class Capture(TorchFunctionMode):
    """Keeps what the gradients of some examples follow from, while it is entered around a forward pass.

    Args:
        trained: The parameters.
        batch_size: Examples in the batch; they lie along the first dimension of every activation.
        examples: Which of them, as indices on the device.
        stopwatch: Told of the time that this takes.

    Attributes:
        uses: By the parameter's ``id``, its uses in this forward pass.
        entered: Whether functions are seen at present.
        probing: While True, arriving gradients are those of the chosen examples alone.
        ignoring: While True, arriving gradients are of no interest.
        error: The first error of this class's own, none of which stop a pass.
        leaks: Whether, of those, any reached another example: one flag for each result.
    """

    def __init__(self, trained: Iterable[Tensor], batch_size: int, examples: Tensor, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.uses: dict[int, list[ParameterUse]] = defaultdict(list)
        self.probing = False
        self.ignoring = False
        self.entered = False
        self.error: str | None = None
        self.leaks: list[Tensor] = []
        self.batch_size = batch_size
        self.examples = examples
        others = torch.ones(batch_size, dtype=torch.bool, device=examples.device)
        others[examples] = False
        self._others = others
        self._stopwatch = stopwatch
        # Parameters, and what came of them without meeting a batch; held, so that no ``id`` comes up twice.
        self._known: dict[int, tuple[Tensor, Tensor, tuple[Pullback, ...]]] = {id(p): (p, p, ()) for p in trained}
        self._same_for_all: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and note the uses of parameters in it."""
        kwargs = kwargs or {}
        reader = READERS.get(func)
        if reader is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        began = self._stopwatch.now()
        try:
            found = reader(self, func, args, kwargs)
        except Exception:  # of no rule, or of a call that none expects
            # Unseen, a parameter shows as one without uses, or with too few of them, which the check finds.
            found = None
        self._stopwatch.add_since(began)
        result = func(*args, **kwargs)
        if found:
            began = self._stopwatch.now()
            try:
                self._note(found, result)
            except Exception as error:
                self.error = self.error or first_line(error)
            self._stopwatch.add_since(began)
        return result

    def _note(self, found: Any, result: Any) -> None:
        if callable(found):
            found(result)
        elif isinstance(result, Tensor) and result.requires_grad:
            hook(result, functools.partial(self._arrived, [use for _, use in found]))
            for parameter, use in found:
                self.uses[parameter].append(use)

    def __enter__(self) -> Self:
        """Begin to see functions."""
        self.entered = True
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def leave(self) -> None:
        """See no more functions, and forget what was only needed in the forward pass."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.entered = False
        self._known.clear()
        self._same_for_all.clear()

    def _arrived(self, uses: list[ParameterUse], gradient: Tensor) -> None:
        if self.ignoring:
            return
        began = self._stopwatch.now()
        try:
            if self.probing:
                spread = rules.by_example(gradient, self.batch_size)
                self.leaks.append((spread[self._others] != 0).any())
            elif self.has_rows(gradient):  # of any other, the check finds that something is missing
                rows = self.pick(gradient)
                for use in uses:
                    use.gradient = rows
        except Exception as error:
            self.error = self.error or first_line(error)
        self._stopwatch.add_since(began)

    def has_rows(self, tensor: Any) -> TypeGuard[Tensor]:
        """Whether this can hold m rows for each example along its first dimension."""
        if not isinstance(tensor, Tensor) or id(tensor) in self._same_for_all:
            return False
        return tensor.dim() > 0 and len(tensor) > 0 and len(tensor) % self.batch_size == 0

    def pick(self, tensor: Any) -> Tensor:
        """The chosen examples' rows, k×m×…, of a tensor with B·m rows."""
        if not self.has_rows(tensor):
            raise _NoRuleError
        rows = rules.by_example(tensor.detach(), self.batch_size).index_select(0, self.examples)
        return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows

    def nothing(self) -> Tensor:
        """Rows where the inputs do not matter."""
        return torch.empty(len(self.examples), 0, device=self.examples.device)

    def is_known(self, tensor: Any) -> bool:
        """Whether this is a trained parameter, or came of one without meeting a batch."""
        return id(tensor) in self._known

    def note_same_for_all(self, tensor: Tensor) -> None:
        """Know that this does not depend on the batch, whatever its size."""
        self._same_for_all[id(tensor)] = tensor

    def use(self, used: Any, inputs: Tensor, rows: rules.RowsRule, squares: rules.SquaresRule | None = None) -> _Found:
        """One use, of a parameter or of what came of it; none of anything else."""
        if not self.is_known(used):
            return []
        _, parameter, pullbacks = self._known[id(used)]
        return [(id(parameter), ParameterUse(inputs, rows, squares, pullbacks))]

    def follow(self, source: Tensor, function: Callable[[Tensor], Any], result: Any) -> None:
        """Know what came of a parameter, by a linear function, as well as the parameter itself."""
        if isinstance(result, Tensor) and result.requires_grad and result is not source:
            _, parameter, pullbacks = self._known[id(source)]
            self._known[id(result)] = (result, parameter, (*pullbacks, rules.pullback(function, source)))


def hook(tensor: Tensor, function: Callable[[Tensor], None]) -> Any:
    """Call a function with the tensor's gradient when a backward pass brings it; returns the handle."""
    return tensor.register_hook(function)  # type: ignore[no-untyped-call]


_Found = list[tuple[int, ParameterUse]]
_Reader = Callable[[Capture, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class _NoRuleError(Exception):
    """This use of a parameter has no rule."""


def _linear(c: Capture, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Found:
    def read(input: Any, weight: Any, bias: Any = None) -> _Found:
        if not c.is_known(weight) and not c.is_known(bias):
            return []
        found = c.use(weight, c.pick(input), rules.linear_rows, rules.linear_squares) if c.is_known(weight) else []
        return found + (c.use(bias, c.nothing(), rules.sum_rows(bias.shape)) if bias is not None else [])

    return read(*args, **kwargs)


def _matmul(c: Capture, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Found:
    def read(input: Any, other: Any = None, mat2: Any = None) -> _Found:
        weight = mat2 if other is None else other
        if c.is_known(input) or not c.is_known(weight):
            return []
        if weight.dim() != 2:
            raise _NoRuleError
        return c.use(weight, c.pick(input), rules.matmul_rows, rules.matmul_squares)

    return read(*args, **kwargs)


def _addmm(c: Capture, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Found:
    def read(input: Any, mat1: Any, mat2: Any) -> _Found:  # beta and alpha are refused as unknown names
        if c.is_known(mat1) or not (c.is_known(input) or c.is_known(mat2)):
            return []
        found = c.use(mat2, c.pick(mat1), rules.matmul_rows, rules.matmul_squares) if c.is_known(mat2) else []
        return found + c.use(input, c.nothing(), rules.sum_rows(input.shape))

    return read(*args, **kwargs)


def _convolution(n: int) -> _Reader:
    tupled: Callable[[Any], tuple[int, ...]] = _ntuple(n)  # type: ignore[no-untyped-call]

    def reader(c: Capture, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Found:
        def read(  # noqa: PLR0917 — torch's own order
            input: Any,
            weight: Any,
            bias: Any = None,
            stride: Any = 1,
            padding: Any = 0,
            dilation: Any = 1,
            groups: int = 1,
        ) -> _Found:
            if not c.is_known(weight) and not c.is_known(bias):
                return []
            if input.dim() != n + 2:  # a single example without a batch
                raise _NoRuleError
            found: _Found = []
            if c.is_known(weight):
                ends = padding if isinstance(padding, str) else tupled(padding)
                rule = rules.convolution_rows(weight.shape, tupled(stride), ends, tupled(dilation), groups)
                found = c.use(weight, c.pick(input), rule)
            return found + c.use(bias, c.nothing(), rules.channel_rows)

        return read(*args, **kwargs)

    return reader


def _embedding(c: Capture, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def read(  # noqa: PLR0917 — torch's own order
        input: Any,
        weight: Any,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Any:
        if not c.is_known(weight):
            return []
        if max_norm is not None or scale_grad_by_freq or sparse:
            raise _NoRuleError
        if not c.has_rows(input):  # positions, the same for every example
            look_up = functools.partial(F.embedding, input, padding_idx=padding_idx)
            return lambda result: c.follow(weight, look_up, result)
        return c.use(weight, c.pick(input), *rules.embedding_rule(weight, padding_idx))

    return read(*args, **kwargs)


def _layer_norm(c: Capture, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Found:
    def read(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> _Found:
        if not c.is_known(weight) and not c.is_known(bias):
            return []
        normalise = functools.partial(F.layer_norm, normalized_shape=list(normalized_shape), eps=eps)
        rule = rules.layer_norm_rows(torch.Size(normalized_shape), normalise)
        found = c.use(weight, c.pick(input), rule)
        return found + (c.use(bias, c.nothing(), rules.sum_rows(bias.shape)) if bias is not None else [])

    return read(*args, **kwargs)


def _rms_norm(c: Capture, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Found:
    def read(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> _Found:
        if not c.is_known(weight):
            return []
        normalise = functools.partial(F.rms_norm, normalized_shape=list(normalized_shape), eps=eps)
        return c.use(weight, c.pick(input), rules.layer_norm_rows(torch.Size(normalized_shape), normalise))

    return read(*args, **kwargs)


def _group_norm(c: Capture, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Found:
    def read(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> _Found:
        if not c.is_known(weight) and not c.is_known(bias):
            return []
        found = c.use(weight, c.pick(input), rules.group_norm_rows(num_groups, eps))
        return found + c.use(bias, c.nothing(), rules.channel_rows)

    return read(*args, **kwargs)


def _elementwise(kind: str) -> _Reader:
    """Of x ± p and x ⊙ p, in either order, where p is the same for every example."""

    def reader(c: Capture, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Found:
        def read(input: Any, other: Any) -> _Found:  # alpha is refused as an unknown name
            first, second = c.is_known(input), c.is_known(other)
            if first == second:  # neither, or a sum of two parameters
                return []
            used, x = (input, other) if first else (other, input)
            if not isinstance(x, Tensor) or x.dim() < used.dim() or (x.dim() == used.dim() and len(used) != 1):
                raise _NoRuleError
            if kind == "mul":
                return c.use(used, c.pick(x), rules.product_rows(used.shape))
            if not c.has_rows(x):
                raise _NoRuleError
            sign = -1.0 if kind == "sub" and not first else 1.0
            return c.use(used, c.nothing(), rules.sum_rows(used.shape, sign))

        return read(*args, **kwargs)

    return reader


def _view(c: Capture, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A slice, a transpose and the like of a parameter: itself a parameter from there on."""
    source, *rest = args
    if not c.is_known(source):
        return []
    return lambda result: c.follow(source, lambda value: func(value, *rest, **kwargs), result)


def _arange(c: Capture, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions, which are the same for every example even where there are as many of them as examples."""
    return c.note_same_for_all


READERS: dict[Any, _Reader] = {
    F.linear: _linear,
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    torch.addmm: _addmm,
    torch.arange: _arange,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_), _elementwise("add")),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.sub_), _elementwise("sub")),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.mul_), _elementwise("mul")),
    **dict.fromkeys(
        (
            *(Tensor.__getitem__, Tensor.t, Tensor.transpose, Tensor.permute, Tensor.view, Tensor.reshape),
            *(Tensor.unsqueeze, Tensor.squeeze, Tensor.flatten, Tensor.to, Tensor.float, Tensor.type_as),
            *(torch.t, torch.transpose, torch.permute, torch.reshape, torch.unsqueeze, torch.squeeze, torch.flatten),
            *(Tensor.T.__get__, Tensor.mT.__get__),  # type: ignore[attr-defined]
        ),
        _view,
    ),
}

"""One training step of a person's own loop, watched: the gradients of its examples, micro-batches or ranks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from batchscope.errors import first_line
from batchscope.fit.noise_series import from_two_sizes
from batchscope.measure.agreement import ELSEWHERE, TIED, Probe, gradients_of_rows, length_of
from batchscope.measure.budget import Stopwatch
from batchscope.measure.hooks import Capture, hook
from batchscope.measure.optimizer_state import Trained, preconditioner
from batchscope.measure.per_example_rules import ParameterUse, squared_norms
from batchscope.measure.sample import Norms, Sample, Void, Way, squares

Parameters = ParamSpec("Parameters")


@dataclass
class _Backward:
    """What one backward pass brought, and the forward pass that it belongs to."""

    batch_size: int | None
    capture: Capture | None
    probe: Probe | None
    whole: Norms = field(default_factory=Norms)
    single: Norms = field(default_factory=Norms)
    halves: tuple[Norms, Norms] = field(default_factory=lambda: (Norms(), Norms()))


def _harmless(
    method: Callable[Concatenate[MeasuredStep, Parameters], None],
) -> Callable[Concatenate[MeasuredStep, Parameters], None]:
    """Let an error of ours end the measuring and not the training."""

    @functools.wraps(method)
    def guarded(self: MeasuredStep, *args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        if self.broken is None:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self.broken = first_line(error)

    return guarded  # type: ignore[return-value]


class MeasuredStep:
    """Hooks on a model and its parameters from the end of one update to the end of the next.

    Args:
        model: What the loop calls.
        trained: What the optimiser trains.
        optimizer: The optimiser.
        way: What to compare with the batch's gradient.
        check: Whether to hold the gradients of single examples, or of halves, to autograd's.
        examples: Most single examples to take from the batch.
        sums: Whether the loss is a sum over examples, not a mean.
        loss_scale: What the loss was multiplied by.
        generator: Draws the examples.
        stopwatch: Told of the time that this takes.

    Attributes:
        broken: The first error of a hook; those after it do nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: Sequence[Trained],
        optimizer: torch.optim.Optimizer,
        *,
        way: Way,
        check: bool,
        examples: int,
        sums: bool,
        loss_scale: Callable[[], float],
        generator: torch.Generator,
        stopwatch: Stopwatch,
    ) -> None:
        self.way = way
        self.check = check
        self._model = model
        self._trained = trained
        self._optimizer = optimizer
        self._most = examples
        self._sums = sums
        self._loss_scale = loss_scale
        self._generator = generator
        self._stopwatch = stopwatch
        self.broken: str | None = None
        self._scale: float | None = None
        self._backwards: list[_Backward] = []
        self._arrivals: dict[int, int] = {}
        self._totals: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._left: list[Tensor] = []
        self._after: tuple[Tensor, ...] = ()
        self._queued = -1
        self._adaptive = True
        self._uncovered: str | None = None
        self._batch_size: int | None = None
        self._chosen: Tensor | None = None
        self._capture: Capture | None = None
        self._probe: Probe | None = None
        self._probing = False
        self._output_seen = False
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, always_call=True),
        ]
        self._handles += [hook(t.parameter, functools.partial(self._arrived, t)) for t in trained]

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._leave()
        self._capture = self._probe = None

    # The forward pass

    @_harmless
    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        began = self._stopwatch.now()
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
        self._batch_size = len(tensors[0]) if tensors else None
        self._leave()
        self._capture, self._probe, self._output_seen = None, None, False
        if self.way in ("single", "halves") and self._batch_size is not None and self._batch_size >= 2:
            half = self._batch_size // 2
            # Where the others are to be told from those chosen there have to be some.
            most = half if self.way == "halves" else min(self._most, half) if self.check else self._most
            order = torch.randperm(self._batch_size, generator=self._generator)[:most]
            self._chosen = order.sort().values.to(self._trained[0].parameter.device)
            if self.way == "single" or self.check:
                parameters = [t.parameter for t in self._trained]
                self._capture = Capture(parameters, self._batch_size, self._chosen, self._stopwatch)
                self._capture.__enter__()
        self._stopwatch.add_since(began)

    def _leave(self) -> None:
        if self._capture is not None and self._capture.entered:
            self._capture.leave()

    @_harmless
    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        began = self._stopwatch.now()
        self._leave()
        if torch.is_grad_enabled() and (self.way == "halves" or (self.way == "single" and self.check)):
            for leaf in tree_leaves(output):
                rows = isinstance(leaf, Tensor) and leaf.requires_grad and leaf.dim() > 0
                if rows and self._batch_size and len(leaf) % self._batch_size == 0:
                    hook(leaf, functools.partial(self._at_output, leaf))
        self._stopwatch.add_since(began)

    # The backward pass

    @_harmless
    def _at_output(self, output: Tensor, gradient: Tensor) -> None:
        """Before the backward pass goes below the output: the gradients of some of its rows, by one more pass."""
        if self._probing or self._output_seen or self._batch_size is None or self._chosen is None:
            return
        began = self._stopwatch.now()
        inside = self._stopwatch.take()
        self._output_seen = self._probing = True
        chosen = torch.zeros(self._batch_size, dtype=torch.bool, device=gradient.device)
        chosen[self._chosen] = True
        if self._capture is not None:
            self._capture.probing = True
        try:
            parameters = [t.parameter for t in self._trained]
            first = gradients_of_rows(output, gradient, chosen, parameters)
            if self._capture is not None:
                self._capture.probing = False
                self._capture.ignoring = True
            others = gradients_of_rows(output, gradient, ~chosen, parameters) if self.check else None
        finally:
            self._probing = False
            if self._capture is not None:
                self._capture.probing = self._capture.ignoring = False
        self._probe = Probe(first, others)
        self._stopwatch.take()  # what hooks took inside of these passes is part of them
        self._stopwatch.add(inside)
        self._stopwatch.add_since(began)

    @_harmless
    def _arrived(self, trained: Trained, gradient: Tensor) -> None:
        """A parameter's gradient of this backward pass, before it is added to ``.grad``, reduced or clipped."""
        if self._probing:
            return
        began = self._stopwatch.now()
        parameter = trained.parameter
        if self._scale is None:
            self._scale = self._loss_scale()
        index = self._arrivals.get(id(parameter), 0)
        self._arrivals[id(parameter)] = index + 1
        if index == len(self._backwards):
            self._backwards.append(_Backward(self._batch_size, self._capture, self._probe))
        backward = self._backwards[index]
        factor = preconditioner(self._optimizer, parameter, trained.group) if self._adaptive else None
        self._adaptive = factor is not None
        gradient = gradient.detach()
        backward.whole.add(*squares(gradient, factor))
        before = parameter.grad
        if before is not None and index == 0:
            self._left.append(torch.linalg.vector_norm(before.detach()))
        whole = gradient if before is None else before.detach() + gradient
        self._totals[id(parameter)] = (
            (backward.whole.plain[-1], backward.whole.scaled[-1] if factor is not None else None)
            if before is None
            else squares(whole, factor)
        )
        if self.way == "ranks":
            self._queue(index)
        if self.way == "single" and backward.capture is not None:
            self._take_single(backward, trained, backward.capture.uses.pop(id(parameter), []), factor)
        if backward.probe is not None:
            parts = backward.probe.split(parameter, gradient)
            if self.way == "halves":
                for norms, part in zip(backward.halves, parts, strict=True):
                    norms.add(*squares(part, factor))
        self._stopwatch.add_since(began)

    def _take_single(
        self, backward: _Backward, trained: Trained, uses: list[ParameterUse], factor: Tensor | None
    ) -> None:
        if not uses:
            self._uncovered = self._uncovered or trained.name
            return
        backward.single.add(*squared_norms(uses, trained.parameter.shape, factor))
        if backward.probe is not None:
            backward.probe.compare_rows(trained.name, trained.parameter, uses)

    def _queue(self, index: int) -> None:
        """After the ranks' gradients have been averaged, which is itself queued for the end of the pass, take those."""
        if self._queued >= index or not getattr(self._model, "require_backward_grad_sync", True):
            return
        self._queued = index
        engine = torch.autograd.Variable._execution_engine
        engine.queue_callback(lambda: engine.queue_callback(self._reduced))

    @_harmless
    def _reduced(self) -> None:
        began = self._stopwatch.now()
        norms = Norms()
        for trained in self._trained:
            if trained.parameter.grad is not None:
                factor = preconditioner(self._optimizer, trained.parameter, trained.group) if self._adaptive else None
                norms.add(*squares(trained.parameter.grad.detach(), factor))
        self._after = tuple(norms.means(self._adaptive))
        self._stopwatch.add_since(began)

    # The end of the step

    def result(self, shared: Sequence[float] = ()) -> tuple[Sample | Void, list[float]]:
        """What the step says.

        Args:
            shared: Numbers of this rank to be averaged over ranks along the way.

        Returns:
            The sample, or why there is none; and the mean over ranks of each number.
        """
        if self.way == "ranks":
            return self._of_ranks(list(shared))
        return self._of_one_process(), list(shared)

    @property
    def backwards(self) -> int:
        """Backward passes in the step."""
        return len(self._backwards)

    def _of_one_process(self) -> Sample | Void:
        if self.broken is None and self._backwards and self._backwards[0].capture is not None:
            self.broken = self._backwards[0].capture.error
        if self.broken is not None:
            return Void(f"measuring failed: {self.broken}", lasting=True)
        first = self._backwards[0] if self._backwards else None
        if first is None:
            return Void("no gradient of a trained parameter was seen")
        if first.batch_size is None:
            reason = "the model was called without a tensor, so that the number of examples cannot be told"
            return Void(reason, lasting=True)
        if any(float(norm) > 0 for norm in self._left):
            return Void("gradients were left from the step before, so that the batch's own cannot be told from them")
        count = len(self._backwards)
        if count > 1:
            if any(b.batch_size != first.batch_size for b in self._backwards):
                return Void("micro-batches of different sizes")
            norms = torch.stack([b.whole.means(self._adaptive) for b in self._backwards]).mean(0)
            # Of a loss that was divided by the number of micro-batches or not: in the units of what is in ``.grad``.
            weight = 1 / first.batch_size if self._sums else float(count)
            return self._sample(norms * weight**2, first.batch_size, first.batch_size * count)
        if self.way == "micro-batches":
            return Void("a step of a single backward pass after steps of several", next_way="single")
        if first.batch_size < 2:
            return Void("a batch of one example", lasting=True)
        wrong = self._wrong(first)
        if wrong is not None:
            return wrong
        batch = first.batch_size
        scale = 1.0 if self._sums else float(batch)
        if self.way == "single":
            return self._sample(first.single.means(self._adaptive) * scale**2, 1, batch)
        sizes = batch // 2, batch - batch // 2
        parts = [n.means(self._adaptive) * (scale / s) ** 2 for n, s in zip(first.halves, sizes, strict=True)]
        return self._sample(torch.stack(parts).mean(0), 2 / (1 / sizes[0] + 1 / sizes[1]), batch)

    def _wrong(self, backward: _Backward) -> Void | None:
        """What the comparison with autograd's own gradients found."""
        probe, capture = backward.probe, backward.capture
        if probe is None and (self.check or self.way == "halves"):
            reason = "the model's output holds no tensor with rows for each example that the loss depends on"
            return Void(reason, lasting=True)
        if self.check and probe is not None:
            if capture is not None and any(bool(leak) for leak in capture.leaks):
                return Void(TIED, lasting=True)
            length = length_of(backward.whole.plain)
            if not probe.all_comes_through_the_output(length):
                return Void(ELSEWHERE, lasting=True)
            if self.way == "single":
                self._uncovered = self._uncovered or probe.first_that_differs(length)
        if self.way == "single" and self._uncovered is not None:
            return Void(f"no rule gives single examples' gradients of {self._uncovered}", next_way="halves")
        return None

    def _of_ranks(self, shared: list[float]) -> tuple[Sample | Void, list[float]]:
        group: torch.distributed.ProcessGroup = self._model.process_group  # type: ignore[assignment]
        device = self._trained[0].parameter.device
        size = sum(b.batch_size or 0 for b in self._backwards)
        complete = bool(self._backwards) and len(self._after) > 0 and all(b.batch_size for b in self._backwards)
        complete = complete and self.broken is None and not any(float(norm) > 0 for norm in self._left)
        local = self._whole().tolist() if complete else []
        local += [math.nan] * (2 - len(local))
        message = torch.tensor([*local, float(size), float(size) ** 2, *shared], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(message, group=group)
        ranks = torch.distributed.get_world_size(group)
        plain, scaled, mean, square, *rest = (message / ranks).tolist()
        self._adaptive = self._adaptive and math.isfinite(scaled)
        if not complete or not math.isfinite(plain):
            return Void("gradients of the ranks that are missing or not finite"), rest
        if square - mean**2 > 1e-9 * square:
            return Void("ranks with batches of different sizes"), rest
        weight = 1 / size**2 if self._sums else 1.0
        small = torch.tensor([plain, scaled][: 1 + self._adaptive], dtype=torch.float64) * weight
        after = torch.stack(self._after)[: 1 + self._adaptive].cpu() * weight
        return self._sample(small, size, size * ranks, large=after), rest

    def _whole(self) -> Tensor:
        norms = Norms()
        for plain, scaled in self._totals.values():
            norms.add(plain, scaled)
        return norms.means(self._adaptive)

    def _sample(
        self, small: Tensor, group_size: float, batch_size: int, *, large: Tensor | None = None
    ) -> Sample | Void:
        """The sample of squared norms of groups and of the whole batch, each plain and scaled."""
        if large is None:
            large = self._whole() / (batch_size**2 if self._sums else 1.0)
        numbers = (torch.stack([small.to(large.device), large]) / (self._scale or 1.0) ** 2).tolist()
        if not all(math.isfinite(number) for row in numbers for number in row):
            return Void("gradients that are not finite")
        pairs = [
            from_two_sizes(s, q, group_size=group_size, batch_size=batch_size) for s, q in zip(*numbers, strict=True)
        ]
        return Sample(*pairs[0], pairs[1] if len(pairs) > 1 else None, group_size, batch_size)

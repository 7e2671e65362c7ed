"""Gradients of single examples, or of micro-batches, a chunk of rows at a time.

Per-example gradients come from ``torch.func``: the loss of one example as a function of the parameters, differentiated
and batched over examples. Attention uses its math kernel there, which has a batching rule. A model that cannot be
batched like this (data-dependent control flow, for example) falls back to one backward pass for each example; one with
batch norm in training mode, where an example has no gradient of its own, to micro-batches.

The products of every example's gradient with one vector need no gradients: they are the derivatives of the examples'
losses along it, which forward-mode differentiation gives at about the cost of two forward passes.

Where the loss of a batch is a mean over tokens, of which examples have unequal numbers, rows are weighted by theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchscope.measure.token_weights import TokenWeights
from batchscope.records.noise import NoiseSource
from batchscope.seeding import isolated
from batchscope.training.micro_batching import ties_examples
from batchscope.workload.batches import take, to_device
from batchscope.workload.workload import Batch, Workload

MICRO_BATCH = 16
# Rows of gradients in memory while a chunk is computed: about what stays in a CPU's cache, and keeps a GPU busy.
CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
MOST_ROWS = 256


class GradientRows:
    """Gradients at a model's present weights, as rows of a matrix.

    Args:
        workload: What is trained.
        model: The model, on its device, in the mode to measure in; its weights and buffers are left as they are.
        chunk_bytes: Memory that the rows of one chunk may fill; None: by the kind of device.

    Attributes:
        source: How the gradients are computed.
        note: Why not per example, where that is so.
        group_size: Examples behind each row.
        parameters: Length of a row.
        device: Where the rows are.
    """

    def __init__(self, workload: Workload, model: nn.Module, *, chunk_bytes: int | None = None) -> None:
        self.workload = workload
        self._loss = _Loss(workload, model)
        self._trained: dict[str, Tensor] = {n: p for n, p in self._loss.named_parameters() if p.requires_grad}
        # torch.func differentiates these; a graph of its own derivatives would be kept if they asked for gradients.
        self._values = {name: parameter.detach() for name, parameter in self._trained.items()}
        self._buffers = dict(self._loss.named_buffers())
        self.device = next(iter(self._trained.values())).device
        self.parameters = sum(parameter.numel() for parameter in self._trained.values())
        if chunk_bytes is None:
            chunk_bytes = CHUNK_BYTES["cpu" if self.device.type == "cpu" else "cuda"]
        rows = max(1, min(MOST_ROWS, chunk_bytes // (4 * self.parameters)))
        self._rows_at_once = 1 << (rows.bit_length() - 1)
        self.source: NoiseSource = "per-example gradients"
        self.note: str | None = None
        self.group_size = 1
        with isolated(0, self.device):
            self._weights = TokenWeights(workload, model)
        tied = [name for name, module in model.named_modules() if ties_examples(module)]
        if tied:
            self._use("micro-batches", f"{tied[0]} normalises over the batch, so an example has no gradient of its own")
        else:
            # Dropout draws in this trial, which no one is to notice.
            with isolated(0, self.device):
                self._try_torch_func()

    def chunks(self, indices: list[int]) -> Iterator[Tensor]:
        """Yield matrices of gradients, rows×parameters, in the order of the examples.

        Args:
            indices: Training examples; with micro-batches a rest that fills none is left out.
        """
        if self.source == "micro-batches":
            groups = [indices[i : i + self.group_size] for i in range(0, len(indices), self.group_size)]
            groups = [group for group in groups if len(group) == self.group_size]
            for start in range(0, len(groups), self._rows_at_once):
                part_of = groups[start : start + self._rows_at_once]
                yield self._weighted(torch.stack([self._single(self._batch(group)) for group in part_of]), part_of)
            return
        for start in range(0, len(indices), self._rows_at_once):
            part = indices[start : start + self._rows_at_once]
            if self.source == "per-example gradients":
                rows = self._per_example(self._batch(part))
            else:
                rows = torch.stack([self._single(self._batch([index])) for index in part])
            yield self._weighted(rows, [[index] for index in part])

    def along(self, indices: list[int], direction: Tensor) -> Iterator[Tensor]:
        """Yield the products of the same rows with a vector, a chunk at a time; random numbers are drawn alike.

        Args:
            indices: As for :meth:`chunks`.
            direction: A vector of as many numbers as a row has.
        """
        if self._has_forward_mode:
            sizes = [value.numel() for value in self._values.values()]
            parts = torch.split(direction.to(self.device), sizes)
            named = {n: part.view_as(v).to(v.dtype) for (n, v), part in zip(self._values.items(), parts, strict=True)}
            for start in range(0, len(indices), self._rows_at_once):
                part = indices[start : start + self._rows_at_once]
                yield self._weighted(self._along(self._batch(part), named), [[index] for index in part])
            return
        for chunk in self.chunks(indices):
            yield chunk @ direction.to(chunk)

    def _weighted(self, rows: Tensor, groups: list[list[int]]) -> Tensor:
        """The rows, or numbers, each by what its examples weigh in a batch."""
        if not self._weights.apply:
            return rows
        weights = self._weights.of(groups).to(rows)
        return rows * weights.view(-1, *[1] * (rows.dim() - 1))

    def _try_torch_func(self) -> None:
        try:
            self._per_example(self._batch([0, min(1, self.workload.training_examples - 1)]))
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self._use("single backward passes", f"torch.func cannot batch this model: {reason}")

    @functools.cached_property
    def _has_forward_mode(self) -> bool:
        """Whether the loss has a derivative along a vector: not where an operation lacks its forward formula."""
        if self.source != "per-example gradients":
            return False
        try:
            with isolated(0, self.device):
                self._along(self._batch([0]), self._values)
        except Exception:
            return False
        return True

    def _use(self, source: NoiseSource, note: str) -> None:
        self.source, self.note = source, note
        self.group_size = MICRO_BATCH if source == "micro-batches" else 1

    def _batch(self, indices: list[int]) -> Batch:
        return to_device(take(self.workload.train, indices, self.workload.collate), self.device)

    def _loss_of_one(self, parameters: dict[str, Tensor], example: Batch) -> Tensor:
        alone = torch.utils._pytree.tree_map(lambda leaf: leaf.unsqueeze(0), example)
        result: Tensor = torch.func.functional_call(self._loss, (parameters, self._buffers), (alone,))
        return result

    def _per_example(self, batch: Batch) -> Tensor:
        gradient = torch.func.vmap(torch.func.grad(self._loss_of_one), in_dims=(None, 0), randomness="different")
        with sdpa_kernel(SDPBackend.MATH):
            rows = gradient(self._values, batch)
        return torch.cat([rows[name].flatten(1) for name in self._values], dim=1)

    def _along(self, batch: Batch, direction: dict[str, Tensor]) -> Tensor:
        losses = torch.func.vmap(self._loss_of_one, in_dims=(None, 0), randomness="different")
        with sdpa_kernel(SDPBackend.MATH):
            along: Tensor = torch.func.jvp(lambda v: losses(v, batch), (self._values,), (direction,))[1]
        return along

    def _single(self, batch: Batch) -> Tensor:
        # Buffers that a training-mode forward pass updates in place are copies, so the model's own stay as they are.
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        with torch.enable_grad():
            loss = torch.func.functional_call(self._loss, (self._trained, buffers), (batch,))
            gradients = torch.autograd.grad(loss, list(self._trained.values()), allow_unused=True)
        parts = zip(gradients, self._trained.values(), strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parts]).detach()


class _Loss(nn.Module):
    """The loss of a batch as a module, so that ``functional_call`` can swap the parameters under any ``forward``."""

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._workload = workload

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss."""
        output, target = self._workload.output_and_target(self.model, batch)
        return self._workload.loss(output, target)

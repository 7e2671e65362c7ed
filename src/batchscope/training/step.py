"""One parameter update from one batch, in one piece or in micro-batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from batchscope.training.update import clip, scaler_for
from batchscope.workload.workload import Batch, Workload


class TrainingStep:
    """Forward, backward and update.

    The gradient of a batch of B examples cut into micro-batches of m₁, m₂, … is Σ (mᵢ/B)·∇Lᵢ: the same as that of
    the whole batch, since the loss is a mean over examples. (Batch norm sees each micro-batch by itself, so with it
    the two differ, as they do in any accumulation.)

    Args:
        workload: What is trained.
        model: Its model, on the device.
        optimizer: Its optimiser.
        micro_batch_size: Examples in every micro-batch but the last; None: batches are not cut.
        scaler: Scales the loss of a workload in half precision; None: a new one, where it needs one.

    Attributes:
        skipped: Whether the last update was skipped, since scaled gradients were not finite.
    """

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batch_size: int | None,
        scaler: GradScaler | None = None,
    ) -> None:
        self.workload = workload
        self.model = model
        self.optimizer = optimizer
        self.micro_batch_size = micro_batch_size
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.device = self.parameters[0].device
        self.scaler = scaler or scaler_for(workload, self.device)
        self.skipped = False
        self._clipped = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._spent: Tensor | None = None

    def __call__(self, micro_batches: list[Batch], examples: int) -> Tensor:
        """Make one update.

        Args:
            micro_batches: The batch, cut.
            examples: Examples in all of them.

        Returns:
            The batch's mean loss before the update, detached and on the device: reading it would wait for the GPU.
        """
        loss = self.gradient(micro_batches, self.sizes(examples))
        self.update()
        return loss

    def update(self, change: Callable[[], None] | None = None) -> None:
        """Unscale and clip the gradient that the parameters hold, and let the optimiser make its step.

        Args:
            change: Called in between, to add something to the gradient of the loss.
        """
        scaler = self.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if change is not None:
            change()
        clip(self.workload, self._clipped)
        if scaler is None:
            self.optimizer.step()
            return
        before = scaler.get_scale()
        scaler.step(self.optimizer)
        scaler.update()
        self.skipped = scaler.get_scale() < before

    @property
    def loss_scale(self) -> float:
        """What the gradients are multiplied by until they are unscaled."""
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def sizes(self, examples: int) -> list[int]:
        """Examples in each micro-batch of a batch."""
        size = self.micro_batch_size or examples
        full, rest = divmod(examples, size)
        return [size] * full + ([rest] if rest else [])

    def gradient(self, micro_batches: list[Batch], sizes: list[int]) -> Tensor:
        """Leave the batch's gradient in the parameters, and the weights as they are.

        Args:
            micro_batches: The batch, cut.
            sizes: Examples in each part.

        Returns:
            The batch's mean loss, as :meth:`__call__` returns it.
        """
        if len(micro_batches) == 1:
            return self._backward(micro_batches[0], 1.0, first=True)
        examples = sum(sizes)
        parts: list[Tensor] = []
        for micro_batch, size in zip(micro_batches, sizes, strict=True):
            parts.append(self._backward(micro_batch, size / examples, first=not parts))
        return torch.stack(parts).sum()

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of a micro-batch, in the workload's precision."""
        with self.workload.autocast(self.device):
            output, target = self.workload.output_and_target(self.model, batch)
            return self.workload.loss(output, target)

    def _backward(self, batch: Batch, weight: float, *, first: bool) -> Tensor:
        loss = self.loss(batch)
        if weight != 1.0:
            loss = loss * weight
        if first:
            # What zero_grad(set_to_none=True) does, without its profiling hook: some microseconds at batch size 1.
            for parameter in self.parameters:
                parameter.grad = None
        scaled: Tensor = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        # The spent graph lives until the next loss takes its place. Were everything freed at the end of a step, glibc
        # would hand the top of the heap back to the system and take it again, page by page, at the next one: some
        # per cent of the time of a convolutional network on a CPU.
        self._spent = scaled
        return loss.detach()

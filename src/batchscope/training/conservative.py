"""Conservative training: several small steps on each batch that stay near where it began."""

from __future__ import annotations

import torch
from torch import Tensor

from batchscope.training.micro_batching import MicroBatchingStep
from batchscope.workload.workload import Batch


class ConservativeStep(MicroBatchingStep):
    """An update that goes towards the least of L_k(w) + λ/2·‖w − w_k‖² by some steps of the optimiser.

    L_k is the batch's loss and w_k where the update begins (Li et al. 2014, Efficient mini-batch training for
    stochastic optimization; a remedy for large batches in Keskar et al. 2016, with λ = 1e-3 and three steps of Adam).
    Each step costs as much as an update.

    Attributes:
        inner_steps: Steps on each batch.
        proximity: λ.
    """

    inner_steps = 1
    proximity = 0.0

    def __call__(self, micro_batches: list[Batch], examples: int) -> Tensor:
        """Make one update.

        Args:
            micro_batches: The batch as it came.
            examples: Examples in all of them.

        Returns:
            The batch's mean loss before the first step.
        """
        began = [parameter.detach().clone() for parameter in self.parameters]

        @torch.no_grad()
        def hold_back() -> None:
            for parameter, anchor in zip(self.parameters, began, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - anchor, alpha=self.proximity)

        loss = super().__call__(micro_batches, examples)
        skipped = self.skipped
        for _ in range(self.inner_steps - 1):
            self.repeatable_gradient(micro_batches, examples)
            self.update(hold_back)
            skipped = skipped and self.skipped
        self.skipped = skipped
        return loss

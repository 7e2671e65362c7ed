"""What the candidates of a race are judged by: the validation set, or as much of it as the race can afford.

Candidates are compared on the same examples, so that what those owe to chance is common to all. What is left, a
constant between part of the set and all of it, is measured on a candidate that does well, and added to everything.
"""

from __future__ import annotations

import torch

from batchscope.training.evaluation import EvaluationData, evaluate
from batchscope.training.loop import Prepared

# Judging one candidate once takes about this long at most, on so many examples.
SECONDS, LEAST_EXAMPLES, MOST_EXAMPLES = 0.04, 512, 4096
# Evaluated at once: as much as training was seen to hold, up to this.
MOST_AT_ONCE = 512
# Evaluating takes a third of what training takes, and a large batch.
FASTER = 3.0


class Judge:
    """Validation examples, and by how much they are off.

    Args:
        prepared: The workload, with its data on the device.
        examples: How many to judge by; all, where there are no more.
        at_once: How many of them to evaluate at once; None: as the workload's evaluations do.

    Attributes:
        data: The examples.
        loss_offset: What to add to a loss on them.
        score_offset: What to add to a score on them.
    """

    def __init__(self, prepared: Prepared, examples: int, at_once: int | None = None) -> None:
        workload = prepared.workload
        self.prepared = prepared
        self.is_exact = examples >= workload.validation_examples
        self.data = (
            prepared.validation
            if self.is_exact and at_once in (None, prepared.validation.batch_size)
            else EvaluationData(workload, "validation", prepared.device, most=examples, batch_size=at_once)
        )
        self.loss_offset = self.score_offset = 0.0

    @classmethod
    def affordable(cls, prepared: Prepared, examples_per_second: float, trained_at_once: int | None = None) -> Judge:
        """As many examples as ``SECONDS`` allow.

        Args:
            prepared: The workload, with its data on the device.
            examples_per_second: The most that training makes.
            trained_at_once: Examples that training was seen to hold at once; None: not known.
        """
        affordable = round(SECONDS * FASTER * examples_per_second)
        at_once = None if trained_at_once is None else min(trained_at_once, MOST_AT_ONCE)
        return cls(prepared, min(max(LEAST_EXAMPLES, affordable), MOST_EXAMPLES), at_once)

    @property
    def examples(self) -> int:
        """How many are judged by."""
        return len(self.data.indices)

    def measure_offsets(self, model: torch.nn.Module) -> tuple[float, float]:
        """Evaluate a model on all and on these examples.

        Args:
            model: One that does well.

        Returns:
            By how much the offsets of the loss and of the score have changed.
        """
        if self.is_exact:
            return 0.0, 0.0
        whole, part = evaluate(model, self.prepared.validation), evaluate(model, self.data)
        before = self.loss_offset, self.score_offset
        self.loss_offset, self.score_offset = whole[0] - part[0], whole[1] - part[1]
        return self.loss_offset - before[0], self.score_offset - before[1]

"""Loss and score of every replica of a stack on a fixed set of examples, in one batched pass."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from batchscope.seeding import derive, isolated
from batchscope.training.evaluation import SCORE_SET_BYTES, EvaluationData, evaluate, in_full, scores_of_sets
from batchscope.training.memory import is_out_of_memory
from batchscope.training.modes import evaluating
from batchscope.training.stack import Stack
from batchscope.training.traced_step import Trace, batched, outputs, traced
from batchscope.workload.batches import nbytes
from batchscope.workload.workload import Batch


class StackedEvaluation:
    """Evaluates every replica of a stack, as :func:`evaluate` does one.

    Args:
        stack: Its models, weights and buffers are left as they are.
        data: What to evaluate on.
    """

    def __init__(self, stack: Stack, data: EvaluationData) -> None:
        self.stack, self.data = stack, data
        self._traces: dict[Any, Trace] = {}
        self._size = stack.size
        self._fails = False

    @torch.no_grad()
    def __call__(self) -> list[tuple[float, float]]:
        """Evaluate.

        Returns:
            Loss and score of each replica.

        Raises:
            RunError: The score raised or is no number.
        """
        if self._size != self.stack.size:
            self._traces.clear()
            self._size = self.stack.size
        if self.stack.is_batched and not self._fails:
            try:
                return self._together()
            except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                # An output that no batched pass can return, or an operation that none has: one by one it goes then.
                self._fails = True
        return [evaluate(model, self.data) for model in self.stack.models]

    def _together(self) -> list[tuple[float, float]]:
        stack, score_of = self.stack, self.stack.workload.score
        total, seen = torch.zeros(stack.size, dtype=torch.float64, device=stack.device), 0
        scored: list[list[tuple[float, int]]] = [[] for _ in stack.models]
        kept: list[list[tuple[Any, Any, int]]] = [[] for _ in stack.models]
        kept_bytes = 0

        def score() -> None:
            for k, sets in enumerate(kept):
                if sets and score_of is not None:
                    scored[k] += scores_of_sets(score_of, sets)
                    sets.clear()

        with evaluating(stack.models[0]), isolated(derive(0, "evaluation"), stack.device):
            for count, batch in self.data.batches():
                losses, *made = self._outputs(batch)
                total += losses.double() * count
                seen += count
                if score_of is None:
                    continue
                for k, sets in enumerate(kept):
                    output, target = (pytree.tree_map(itemgetter(k), part) for part in made)
                    output = in_full(output) if stack.workload.precision else output
                    sets.append((output, target, count))
                kept_bytes += nbytes(kept[0][-1][:2])
                if kept_bytes > SCORE_SET_BYTES:
                    score()
                    kept_bytes = 0
            score()
        losses_of: list[float] = (total / seen).tolist()
        if score_of is None:
            return [(loss, -loss) for loss in losses_of]
        return [(loss, _mean(scores)) for loss, scores in zip(losses_of, scored, strict=True)]

    def _outputs(self, batch: Batch) -> tuple[Tensor, Any, Any]:
        """Every replica's loss, output and target on one batch."""
        stack, names = self.stack, self.stack.names
        leaves, form = pytree.tree_flatten(batch)
        made: list[pytree.TreeSpec] = []
        inputs = [*stack.weights, *stack.others, *leaves]
        dimensions = (*[0] * len(names), *[None] * len(leaves))
        key = (str(form), leaves[0].shape)
        if key not in self._traces:
            function = batched(outputs(stack.workload, stack.models[0], names, form, made), dimensions)
            written = slice(len(names.trained), len(names))
            name = ("evaluation", str(form), names.trained)
            self._traces[key] = traced(stack.workload, function, inputs, (), key=name, written=written, form=made)
        trace = self._traces[key]
        if trace.flat is None or trace.form is None:
            results = batched(outputs(stack.workload, stack.models[0], names, form, made), dimensions)(*inputs)
            return pytree.tree_unflatten(results, made[0])  # type: ignore[no-any-return]
        return pytree.tree_unflatten(trace.flat(*inputs), trace.form)  # type: ignore[no-any-return]


def _mean(scores: list[tuple[float, int]]) -> float:
    return scores[0][0] if len(scores) == 1 else sum(s * n for s, n in scores) / sum(n for _, n in scores)

"""Loss and score on a fixed set of examples, leaving the model as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from batchscope.errors import RunError
from batchscope.seeding import derive, isolated
from batchscope.training.memory import is_out_of_memory
from batchscope.training.modes import evaluating
from batchscope.workload.batches import as_tensors, join, nbytes, take, to_device
from batchscope.workload.workload import Batch, Examples, Score, Workload, length

# Outputs are kept until the score is computed on all of them at once; past this many bytes it is computed set by set.
SCORE_SET_BYTES = 8 << 20
CACHE_BYTES = 256 << 20


class EvaluationData:
    """Examples to evaluate on, in batches whose size does not depend on the batch size trained with.

    Args:
        workload: Whose examples.
        which: "validation", or "training" for as many training examples as there are validation examples.
        device: Where to evaluate.
        seed: Chooses the examples, where they are not all.
        most: At most so many examples; None: no limit.
        batch_size: Examples at once; None: as many as the workload trains on, within 64 and 512.
    """

    def __init__(
        self,
        workload: Workload,
        which: str,
        device: torch.device,
        *,
        seed: int = 0,
        most: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.workload = workload
        self.device = device
        self.examples: Examples = workload.validation if which == "validation" else workload.train
        self.batch_size = batch_size or min(512, max(64, workload.batch_size))
        self.indices = torch.arange(length(self.examples))
        count = min(workload.validation_examples, workload.validation_examples if most is None else most)
        self._whole = which == "validation" and count == len(self.indices)
        if not self._whole:
            generator = torch.Generator().manual_seed(derive(seed, "training examples to evaluate"))
            self.indices = torch.randperm(length(self.examples), generator=generator)[:count].sort().values
        tensors = as_tensors(self.examples)
        self._tensors = None if tensors is None else tuple(t.to(device) for t in tensors) if self._whole else tensors
        self._cache: list[tuple[int, Batch]] | None = None

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield (number of examples, batch on the device); a Dataset is read once and kept where it is small."""
        if self._cache is not None:
            yield from self._cache
            return
        kept: list[tuple[int, Batch]] | None = [] if self._tensors is None else None
        kept_bytes = 0
        for indices in torch.split(self.indices, self.batch_size):
            batch = to_device(self._read(indices), self.device)
            if kept is not None:
                kept_bytes += nbytes(batch)
                kept.append((len(indices), batch))
                if kept_bytes > CACHE_BYTES:
                    kept = None
            yield len(indices), batch
        self._cache = kept

    def _read(self, indices: torch.Tensor) -> Batch:
        if self._tensors is not None and self._whole:
            return tuple(tensor[int(indices[0]) : int(indices[-1]) + 1] for tensor in self._tensors)
        if self._tensors is not None:
            return take(self._tensors, indices)  # type: ignore[arg-type]
        with isolated(derive(0, "evaluation", int(indices[0]))):
            return take(self.examples, indices.tolist(), self.workload.collate)


def evaluate(model: nn.Module, data: EvaluationData) -> tuple[float, float]:
    """Loss and score of a model.

    The loss is the mean over examples. The score is computed on all outputs at once, so that scores which are no
    mean over examples (R², AUC …) are right too; where outputs cannot be joined, or fill more than
    ``SCORE_SET_BYTES``, it is the mean of the scores of the sets, weighted by their examples.

    Args:
        model: The model; its modes, weights and buffers are as before afterwards, and so is the random state.
        data: What to evaluate on.

    Returns:
        Loss and score; the score is minus the loss where the workload has none. Either may be not finite.

    Raises:
        RunError: The score raised or is no number.
    """
    workload, score_of = data.workload, data.workload.score
    total_loss, seen = 0.0, 0
    scored: list[tuple[float, int]] = []
    kept: list[tuple[Any, Any, int]] = []
    kept_bytes = 0

    with evaluating(model), torch.no_grad(), isolated(derive(0, "evaluation"), data.device):
        for count, batch in data.batches():
            with workload.autocast(data.device):
                output, target = workload.output_and_target(model, batch)
                loss_of_batch = workload.loss(output, target)
            total_loss += float(loss_of_batch) * count
            seen += count
            if score_of is not None:
                output = in_full(output) if workload.precision else output
                kept.append((output, target, count))
                kept_bytes += nbytes((output, target))
                if kept_bytes > SCORE_SET_BYTES:
                    scored += scores_of_sets(score_of, kept)
                    kept, kept_bytes = [], 0
        if score_of is not None and kept:
            scored += scores_of_sets(score_of, kept)
    loss = total_loss / seen
    if len(scored) > 1:
        return loss, sum(score * count for score, count in scored) / seen
    return loss, scored[0][0] if scored else -loss


def in_full(output: Any) -> Any:
    """An output with its numbers of 16 bits in single precision, as scores take it that know no others.

    Examples:
        >>> in_full(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return pytree.tree_map(lambda v: v.float() if isinstance(v, torch.Tensor) and v.dtype in _HALF else v, output)


_HALF = (torch.bfloat16, torch.float16)


def scores_of_sets(score: Score, kept: list[tuple[Any, Any, int]]) -> list[tuple[float, int]]:
    """The score of all the sets joined, or of each where they cannot be, with the number of examples.

    Args:
        score: A workload's.
        kept: Output, target and number of examples of each set.

    Returns:
        Pairs of a score and the number of examples that it is of.

    Raises:
        RunError: The score raised or is no number.
    """
    try:
        if len(kept) > 1:
            # Sizes that differ between batches, or something else than tensors, cannot be joined.
            with contextlib.suppress(TypeError, RuntimeError, KeyError, ValueError):
                output, target = join([o for o, _, _ in kept]), join([t for _, t, _ in kept])
                kept = [(output, target, sum(count for _, _, count in kept))]
        return [(float(score(output, target)), count) for output, target, count in kept]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RunError("score(output, target) must return a number", got=f"{type(error).__name__}: {error}") from error

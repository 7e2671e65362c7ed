"""Plausibility of a target score, given the scores seen and the score of perfect predictions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from batchscope.errors import ArgumentError
from batchscope.seeding import current_device, isolated
from batchscope.workload.batches import take

if TYPE_CHECKING:
    from batchscope.workload.workload import Workload

# Validation examples for perfect predictions.
PERFECT_EXAMPLES = 8
# Accepted perfect scores: of a loss or an error, of a fraction, of a percentage. Any other value means that this score
# expects predictions in another form.
BOUNDS = (0.0, 1.0, 100.0)
# With a logit this far above the others, the cross-entropy of 10,000 classes is below 1e-17.
CERTAIN_LOGIT = 50.0
# If the perfect score is unknown, scores between this and 1 are taken for fractions. Percentages can be lower after a
# few updates: BLEU, for example, starts at 0.0 of 100.
LEAST_FRACTION = 0.05


def check_target(
    target: float,
    scores: Sequence[float],
    *,
    fresh: bool = True,
    perfect: float | None = None,
    minus_loss: bool = False,
) -> None:
    """Refuse an implausible target.

    That is a target at or below the score of fresh weights, above the score of perfect predictions, a percentage if
    scores are fractions or vice versa, or a loss if scores are minus the loss.

    Args:
        target: The validation score to reach, higher is better.
        scores: Scores seen, in the order of training.
        fresh: Whether the first score is that of fresh weights.
        perfect: Score of perfect predictions, from :func:`perfect_score`; None: unknown.
        minus_loss: Whether the score is minus the loss.

    Raises:
        ArgumentError: An implausible target.

    Examples:
        >>> check_target(0.97, [0.1])
        >>> check_target(97.0, [0.1, 0.4])
        Traceback (most recent call last):
        ...
        batchscope.errors.ArgumentError: target must be on the scale of the scores seen, which lie between 0 and 1; \
got 97, with 0.1 for fresh weights and 0.4 after a few updates. Did you mean 0.97?
    """
    seen = [score for score in scores if math.isfinite(score)]
    if not seen:
        return
    most = max(seen)
    if perfect is not None and perfect <= most:
        perfect = None
    got = f"{target:.6g}, with {_seen(seen, fresh=fresh)}"
    if minus_loss and target > 0 and (most < 0 or perfect == 0):
        as_loss = f"give {-target:.6g} for a loss of {target:.6g}" if target < -min(seen) else "give a negative number"
        raise ArgumentError(
            "target must be minus a loss for a workload without a score",
            got=got,
            mend=f"{as_loss}, or a workload with score=",
        )
    if fresh and math.isfinite(scores[0]) and target <= scores[0]:
        percent = perfect == 100 and scores[0] < 100 * target <= 100
        higher = "give a higher one" if perfect is None else f"give one above that, up to {perfect:.6g}"
        raise ArgumentError(
            "target must be above the score of fresh weights",
            got=got,
            mend=f"did you mean {100 * target:.6g}?" if percent else higher,
        )
    if perfect is not None and target > perfect * (1 + 1e-6) + 1e-6:
        percent = perfect == 1 and most < target / 100 <= 1
        raise ArgumentError(
            f"target must be at most {perfect:.6g}, the score of perfect predictions",
            got=got,
            mend=f"did you mean {target / 100:.6g}?" if percent else f"give at most {perfect:.6g}",
        )
    if perfect is None and 1 < target <= 100 and min(seen) >= 0 and LEAST_FRACTION <= most <= 1:
        raise ArgumentError(
            "target must be on the scale of the scores seen, which lie between 0 and 1",
            got=got,
            mend=f"did you mean {target / 100:.6g}?",
        )


def perfect_score(workload: Workload) -> float | None:
    """Compute the score of predictions that equal the targets of a few validation examples.

    For classes, the predictions are logits; for numbers of the output's shape, the targets themselves or logits.

    Returns:
        0, 1 or 100; None if such predictions cannot be made, or have another score.

    Examples:
        >>> from batchscope.workload.digits import digits
        >>> perfect_score(digits())
        1.0
    """
    score = workload.score or (lambda output, target: -workload.loss(output, target))
    found: list[float] = []
    # The user's functions may raise for predictions that do not come from a model.
    with contextlib.suppress(Exception), isolated(0, current_device()), torch.no_grad():
        count = min(PERFECT_EXAMPLES, workload.validation_examples)
        model = workload.model().eval()
        output, target = workload.output_and_target(model, take(workload.validation, range(count), workload.collate))
        for predictions in _perfect(output, target):
            with contextlib.suppress(Exception):
                found.append(float(score(predictions, target)))
    return next((bound for bound in BOUNDS if found and abs(max(found) - bound) <= 1e-6 * max(1.0, bound)), None)


def _perfect(output: Any, target: Any) -> list[Tensor]:
    """Predictions of the output's shape that equal their targets, in the forms that a score may expect."""
    if not (isinstance(output, Tensor) and isinstance(target, Tensor) and output.is_floating_point()):
        return []
    if output.shape == target.shape:
        numbers = target.to(output.dtype)
        between = bool(((numbers >= 0) & (numbers <= 1)).all())
        return [numbers, CERTAIN_LOGIT * (2 * numbers - 1)] if between else [numbers]
    if target.is_floating_point() or output.dim() != target.dim() + 1:
        return []
    for axis in (-1, 1):
        classes = output.shape[axis]
        if output.movedim(axis, -1).shape[:-1] == target.shape and int(target.max()) < classes:
            chosen = F.one_hot(target.long().clamp(min=0), classes).to(output.dtype)
            return [(CERTAIN_LOGIT * chosen).movedim(-1, axis)]
    return []


def _seen(seen: Sequence[float], *, fresh: bool) -> str:
    if not fresh or len(seen) == 1:
        least, most = f"{min(seen):.4g}", f"{max(seen):.4g}"
        lie = f"scores of {least}" + ("" if least == most else f" to {most}")
        return f"{least} for fresh weights" if fresh else f"{lie} seen"
    return f"{seen[0]:.4g} for fresh weights and {max(seen[1:]):.4g} after a few updates"

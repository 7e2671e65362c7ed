"""What a batch that grows on the way would save, by the laws of the race."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from batchscope.fit.learning_curve import LearningCurve
from batchscope.records.schedule import Phase, Schedule

# The way to the goal is cut into this many pieces, from this share of it on.
PIECES, FROM = 400, 1e-3


@dataclass(frozen=True)
class Growing:
    """The best batch size at every moment, never falling.

    Attributes:
        schedule: The sizes, the optimiser's settings following by its own rule; one phase where that gains nothing.
        saving: Share of the time of the best constant size that it saves.
    """

    schedule: Schedule
    saving: float


def growing_batch(
    law: LearningCurve, sizes: Sequence[int], seconds_per_update: Callable[[int], float], effective_examples: float
) -> Growing:
    """Work out the batch size of least time at every moment on the way.

    Where B_c is the critical batch size, an effective example takes (1 + B/B_c) examples, and so τ(B)/B·(1 + B/B_c)
    seconds; B_c grows along the way. The least of that over the sizes, summed along the way, is held against the same
    sum at every constant size.

    Args:
        law: Its medians are taken.
        sizes: Batch sizes that come into question, ascending.
        seconds_per_update: τ.
        effective_examples: Where the goal lies.

    Returns:
        The schedule, and what it saves.

    Examples:
        >>> import numpy as np
        >>> one = np.ones(1)
        >>> level = LearningCurve(1e4, one, one, one, 100 * one, 0 * one, 0.0, 0)  # B_c the same everywhere
        >>> growing_batch(level, [32, 64, 128], lambda size: 1e-3 + 1e-5 * size, 1e4).saving
        0.0
    """
    x = np.geomspace(FROM * effective_examples, effective_examples, PIECES)
    width = np.diff(x, prepend=0.0)
    critical = np.median(law.critical) * (x / law.reference_examples) ** np.median(law.growth)
    size = np.array(sizes, dtype=float)[:, None]
    per_example = np.array([seconds_per_update(s) / s for s in sizes])[:, None]
    examples = (1 + size / critical) * width
    seconds = per_example * examples
    best = np.maximum.accumulate(np.argmin(seconds, axis=0))
    pieces = np.arange(PIECES)
    total, constant = float(seconds[best, pieces].sum()), float(seconds.sum(axis=1).min())
    before = np.concatenate([[0.0], np.cumsum(examples[best, pieces])[:-1]])
    changes = [0, *(k for k in range(1, PIECES) if best[k] != best[k - 1])]
    phases = tuple(Phase(round(float(before[k])), sizes[int(best[k])]) for k in changes)
    return Growing(Schedule(phases, coupling="rule"), max(0.0, 1 - total / constant))

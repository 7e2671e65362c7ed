"""What the final losses of branched runs say about the critical batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchscope.fit.intervals import holm, mean_interval, paired_p_value
from batchscope.records import Interval


@dataclass(frozen=True)
class BranchVerdict:
    """What the losses of the branches say.

    Attributes:
        losses: The mean loss of each size.
        excesses: Its distance from the best size's, paired by repeat.
        recovered: Whether that is below the tolerance for sure (True), above it for sure (False), or neither.
        critical: The critical batch size, as :class:`batchscope.records.BranchedRuns` has it.
        verdict: The same in a sentence.
    """

    losses: tuple[Interval, ...]
    excesses: tuple[Interval, ...]
    recovered: tuple[bool | None, ...]
    critical: Interval
    verdict: str


def judge_branches(
    batch_sizes: Sequence[int], losses: NDArray[np.float64], tolerance: float, *, level: float = 0.95
) -> BranchVerdict:
    """Find up to which batch size branches come back to the best one's loss.

    Every size is compared with the one of least mean loss by the mean of their differences over repeats, which trained
    on the same examples in the same order, with Student's interval. A size has recovered when the interval's upper end
    is within the tolerance. It has not when the mean is above the tolerance by a one-sided t test, adjusted for the
    number of sizes (Holm): the least of several means is low by luck too, and without that noise alone would fail a
    size in every fifth measurement. One divergence makes a mean infinite.

    Args:
        batch_sizes: Ascending, K.
        losses: Final validation losses, K×R; infinite where a branch diverged, nan where it could not be run.
        tolerance: Loss above the best that counts as recovered.
        level: Of the intervals, each by itself.

    Returns:
        The verdict.

    Examples:
        >>> rows = np.array([[1.00, 1.01, 0.99], [1.01, 1.02, 1.02], [1.50, 1.55, 1.49]])
        >>> print(judge_branches([8, 16, 32], rows, 0.1).critical)
        16 (16 to 32)
    """
    means = losses.mean(1)
    if not np.isfinite(means).any():
        unresolved = (Interval.unresolved(level),) * len(means)
        text = "No branch could be trained to its end: the rate is too large at every batch size tried."
        return BranchVerdict(
            tuple(_mean(row, level) for row in losses), unresolved, (None,) * len(means), unresolved[0], text
        )
    best = int(np.nanargmin(means))
    excesses = tuple(_mean(row - losses[best], level) for row in losses)
    above = holm([None if i == best else _p_above(row - losses[best], tolerance) for i, row in enumerate(losses)])
    recovered = tuple(
        True if i == best or (excess.high is not None and excess.high <= tolerance) else False if failed else None
        for i, (excess, failed) in enumerate(
            zip(excesses, (p is not None and p < (1 - level) / 2 for p in above), strict=True)
        )
    )
    critical = _critical(batch_sizes, recovered, best, level)
    return BranchVerdict(
        tuple(_mean(row, level) for row in losses),
        excesses,
        recovered,
        critical,
        _verdict(batch_sizes, losses, recovered, critical, tolerance),
    )


def _mean(values: NDArray[np.float64], level: float) -> Interval:
    if np.isnan(values).any():
        return Interval.unresolved(level)
    if np.isinf(values).any():
        return Interval(math.inf, math.inf, math.inf, level)
    return mean_interval(values.tolist(), level)


def _p_above(excesses: NDArray[np.float64], tolerance: float) -> float | None:
    """How likely chance alone puts the mean this far above the tolerance; None where it can't be told."""
    if np.isnan(excesses).any():
        return None
    if np.isinf(excesses).any():
        return 0.0
    beyond = excesses - tolerance
    two_sided = paired_p_value(beyond.tolist())
    return None if two_sided is None else two_sided / 2 if beyond.mean() > 0 else 1.0


def _critical(batch_sizes: Sequence[int], recovered: Sequence[bool | None], best: int, level: float) -> Interval:
    # Sizes that for sure end worse than a larger one are too small for their rate, which is another matter.
    first = next(i for i, back in enumerate(recovered) if back is not False)
    end = first
    while end < len(recovered) and recovered[end]:
        end += 1
    failed = [size for size, back in zip(batch_sizes[end:], recovered[end:], strict=True) if back is False]
    high = float(failed[0]) if failed else math.inf
    # That the best is as good as the best says nothing, unless a smaller one was not.
    if not any(i != best or first > 0 for i in range(first, end)):
        return Interval.unresolved(level, high=high)
    return Interval(float(batch_sizes[end - 1]), float(batch_sizes[end - 1]), high, level)


def _verdict(
    batch_sizes: Sequence[int],
    losses: NDArray[np.float64],
    recovered: Sequence[bool | None],
    critical: Interval,
    tolerance: float,
) -> str:
    within = f"within {tolerance:.2g} of the best loss"
    sentences = []
    if critical.value is not None:
        value, high = int(critical.value), critical.high
        sentences.append(f"Up to a batch size of {value:,} the same examples end {within}")
        if high is not None and math.isfinite(high):
            sentences.append(f"; at {int(high):,} they do not.")
        elif value == batch_sizes[-1]:
            sentences.append(", and no larger one was tried: the critical batch size is at least that.")
        else:
            sentences.append("; beyond it the noise leaves open whether they do.")
    elif critical.high is not None and math.isfinite(critical.high):
        sentences.append(
            f"Already at a batch size of {int(critical.high):,} the same examples do not end {within}: "
            "the critical one is below that."
        )
    else:
        sentences.append(f"The noise leaves open which batch sizes end {within}; more repeats would tell.")
    small = [size for size, back in zip(batch_sizes, recovered, strict=True) if back is False]
    worse = [size for size in small if critical.value is not None and size < critical.value]
    if worse:
        sentences.append(
            f" At {', '.join(f'{size:,}' for size in worse)} they end worse too: its rescaled rate is too small."
        )
    diverged = [size for size, row in zip(batch_sizes, losses, strict=True) if np.isinf(row).any()]
    if diverged:
        sentences.append(f" Training diverged at {', '.join(f'{size:,}' for size in diverged)}.")
    return "".join(sentences)

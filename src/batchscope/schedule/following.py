"""Batch sizes that follow the measured gradient noise scale: arithmetic on what was measured."""

from __future__ import annotations

import math

from batchscope.records import Interval, MeasuredGrowth


def aim(growth: MeasuredGrowth, noise_scale: float) -> float:
    """The batch size that a noise scale calls for: √(knee × noise scale).

    Time to a goal is (c₀ + c₁B)·E_min(1 + B/B_crit)/B, with an update's time c₀ + c₁B and the trade-off law's examples
    (McCandlish et al. 2018, arXiv 1812.06162). It is least at B = √((c₀/c₁)·B_crit), here with the noise scale as
    B_crit.

    Args:
        growth: Its knee is c₀/c₁.
        noise_scale: tr Σ/‖G‖², in examples.

    Returns:
        The batch size, as a real number.

    Examples:
        >>> aim(MeasuredGrowth(knee=100), 400)
        200.0
    """
    return math.sqrt(growth.knee * noise_scale)


def decide(
    growth: MeasuredGrowth, noise_scale: Interval, *, batch_size: int, least: int, most: int, votes: int
) -> tuple[int, int]:
    """The batch size to go on with after a measurement, and how the votes stand.

    A measurement that calls for ``factor`` times the batch or more is a vote for a larger one; one that calls for a
    ``factor``-th or less, for a smaller one. Votes count as long as they agree and each is followed by another; at
    ``sustained`` of them the batch changes by one factor, within its bounds, and the count starts anew. What is not
    resolved is no vote, and changes nothing.

    Args:
        growth: The rule.
        noise_scale: What was measured.
        batch_size: The present one.
        least: The one that the run began with, which it never goes below.
        most: The largest one.
        votes: Votes in a row for larger batches, or below 0 for smaller ones.

    Returns:
        The batch size, and the votes.

    Examples:
        >>> growth = MeasuredGrowth(knee=100, sustained=2)
        >>> measured = Interval(1600.0, 1200.0, 2000.0)  # which calls for 400
        >>> decide(growth, measured, batch_size=64, least=64, most=4096, votes=0)
        (64, 1)
        >>> decide(growth, measured, batch_size=64, least=64, most=4096, votes=1)
        (128, 0)
    """
    if noise_scale.value is None or not math.isfinite(noise_scale.value) or noise_scale.value <= 0:
        return batch_size, votes
    wanted = aim(growth, noise_scale.value)
    if wanted >= batch_size * growth.factor and batch_size < most:
        votes = max(votes, 0) + 1
    elif wanted * growth.factor <= batch_size and batch_size > least:
        votes = min(votes, 0) - 1
    else:
        return batch_size, 0
    if abs(votes) < growth.sustained:
        return batch_size, votes
    changed = batch_size * growth.factor if votes > 0 else batch_size // growth.factor
    return min(max(changed, least), most), 0

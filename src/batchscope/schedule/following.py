"""Batch sizes that follow the measured gradient noise scale."""

from __future__ import annotations

import math

from batchscope.records import Interval, MeasuredGrowth


def aim(growth: MeasuredGrowth, noise_scale: float) -> float:
    """The time-optimal batch size at a noise scale: √(knee × noise scale).

    The time to a target is (c₀ + c₁B)·E_min(1 + B/B_crit)/B, with an update's time c₀ + c₁B and the trade-off law's
    examples (McCandlish et al. 2018, arXiv 1812.06162). Its minimum is at B = √((c₀/c₁)·B_crit), here with the noise
    scale as B_crit.

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
    """Decide the next batch size after a measurement.

    A measurement whose optimal batch size is at least ``factor`` times the present one is a vote for a larger batch;
    one whose optimum is at most the present one over ``factor``, for a smaller batch. After ``sustained`` equal votes
    in a row the batch size changes by one factor, within its bounds. An unresolved measurement changes nothing.

    Args:
        growth: The rule.
        noise_scale: The measurement.
        batch_size: The present batch size.
        least: The smallest batch size.
        most: The largest batch size.
        votes: Votes in a row for larger batches; negative for smaller ones.

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

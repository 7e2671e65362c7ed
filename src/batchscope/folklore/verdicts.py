"""Verdicts on claims from confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchscope.fit import mean_interval, ratio_interval
from batchscope.records import Interval
from batchscope.records.claims import Verdict

HOLDS: Verdict = "holds here"
FAILS: Verdict = "does not hold here"
INCONCLUSIVE: Verdict = "can't be told"


def of_effect(effect: Interval, least: float = 0.0) -> Verdict:
    """Verdict on the claim that an effect is positive.

    It holds if the interval lies above zero and its upper end exceeds ``least``. It does not hold if the upper end is
    at most ``least``.

    Args:
        effect: The effect.
        least: The smallest effect that matters.

    Examples:
        >>> of_effect(Interval(2.0, 1.0, 3.0), 0.5), of_effect(Interval(0.1, -0.2, 0.4), 0.5)
        ('holds here', 'does not hold here')
        >>> of_effect(Interval(1.0, -1.0, 3.0), 0.5), of_effect(Interval.unresolved(0.95))
        ("can't be told", "can't be told")
    """
    if effect.low is None or effect.high is None or math.isnan(effect.low) or math.isnan(effect.high):
        return INCONCLUSIVE
    if effect.high <= least:
        return FAILS
    return HOLDS if effect.low > 0 else INCONCLUSIVE


def of_equality(difference: Interval, most: float) -> Verdict:
    """Verdict on the claim that two quantities are equal, by an equivalence test.

    Args:
        difference: The difference of the two.
        most: The largest negligible difference.

    Examples:
        >>> of_equality(Interval(0.1, -0.2, 0.4), 0.5), of_equality(Interval(0.9, 0.6, 1.2), 0.5)
        ('holds here', 'does not hold here')
        >>> of_equality(Interval(0.4, -0.2, 1.0), 0.5)
        "can't be told"
    """
    if difference.low is None or difference.high is None:
        return INCONCLUSIVE
    if -most <= difference.low and difference.high <= most:
        return HOLDS
    return FAILS if difference.low > most or difference.high < -most else INCONCLUSIVE


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Verdict on a claim that holds if each of its parts holds.

    Examples:
        >>> all_of(["holds here", "can't be told"]), all_of(["does not hold here", "can't be told"])
        ("can't be told", 'does not hold here')
    """
    if FAILS in verdicts:
        return FAILS
    return INCONCLUSIVE if INCONCLUSIVE in verdicts else HOLDS


def paired(first: Sequence[float | None], second: Sequence[float | None]) -> Interval:
    """Mean difference of complete pairs, with its 95% interval.

    Examples:
        >>> print(paired([1.0, 2.0, 3.0], [0.5, 1.0, None]))
        0.75 (-2.427 to 3.927)
    """
    return mean_interval([a - b for a, b in _known(first, second)])


def paired_ratio(first: Sequence[float | None], second: Sequence[float | None]) -> Interval:
    """Geometric mean ratio of complete pairs of positive numbers, with its 95% interval.

    Examples:
        >>> print(paired_ratio([2.0, 4.0], [1.0, 2.0]))
        2 (2 to 2)
    """
    return ratio_interval([math.log(a / b) for a, b in _known(first, second) if a > 0 and b > 0])


def log_of(ratio: Interval) -> Interval:
    """Logarithm of a ratio: positive if the numerator is larger."""
    low, value, high = (
        None if end is None or end <= 0 else math.log(end) for end in (ratio.low, ratio.value, ratio.high)
    )
    return Interval(value, low, high, ratio.level, ratio.resolved)


def _known(first: Sequence[float | None], second: Sequence[float | None]) -> list[tuple[float, float]]:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]

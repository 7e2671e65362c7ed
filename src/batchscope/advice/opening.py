"""Which batch size a race opens next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from batchscope.advice.lane import Lane
from batchscope.advice.outlook import UNLIKELY
from batchscope.advice.pilot import PILOT_POINTS

LEAST_LANES, MOST_LANES = 3, 6
# Factors of two: least distance of a size from those raced, of a neighbour, and of the first few from each other.
APART, BESIDE, FAR_APART = 0.99, (0.9, 1.1), 1.9

# Whether a size can be opened, brought level with the others, and trained for so many seconds further.
IsAffordable = Callable[[int, float], bool]


def next_size(
    lanes: Mapping[int, Lane],
    sizes: Sequence[int],
    is_affordable: IsAffordable,
    near: Mapping[int, float] | None,
    *,
    pilot: int,
    by_examples: bool,
) -> int | None:
    """The size that is most likely to be the best among those not tried.

    Args:
        lanes: Those that are raced, the pilot's first.
        sizes: All that may be advised.
        is_affordable: Whether there is time for one.
        near: How likely each is to be as good as the best; None where nothing is known yet.
        pilot: The batch size that found the first rate.
        by_examples: Whether examples are given, so that the question is how large a batch may be.

    Returns:
        The size; None where none is worth it.
    """
    raced = list(lanes)
    fresh = [size for size in sizes if all(_octaves(size, other) > APART for other in raced)]
    if not fresh or len(raced) >= MOST_LANES:
        return None
    fresh = [size for size in fresh if is_affordable(size, 0.0)]
    far = [size for size in fresh if all(_octaves(size, other) > FAR_APART for other in raced)]
    if near is None:
        first = lanes[raced[0]]
        if first.reached is None and (len(raced) > 1 or first.points < PILOT_POINTS):
            return None
        near = dict.fromkeys([*fresh, *raced], 0.0)
    elif not by_examples:
        # One that is most unlikely to be the best is not worth its time for what it says about the law.
        far = [size for size in far if near[size] >= UNLIKELY]
    few = len(raced) < LEAST_LANES and bool(far)
    # Some distance away a lane says more about the law than next to one that is there already.
    among = far if few else fresh
    if not among:
        return None
    if by_examples:
        # Smaller batches never need more examples; the question is how large one may be.
        size = max(among, key=lambda s: (round(near[s], 1), s))
    else:
        # Of two as far from the pilot the larger one: its examples are never dearer.
        size = max(among, key=lambda s: (near[s], -round(_octaves(s, pilot), 3), s))
    return size if few or near[size] > max(near[other] for other in raced) else None


def size_beside_the_first(
    lanes: Mapping[int, Lane], sizes: Sequence[int], is_affordable: IsAffordable, near: Mapping[int, float]
) -> int | None:
    """A neighbour of the size that reached the target first, the likelier one.

    Args:
        lanes: Those that are raced.
        sizes: All that may be advised.
        is_affordable: Whether there is time for one.
        near: How likely each is to be as good as the best, as far as that is known.

    Returns:
        The size; None where there is none, or no time for it.
    """
    there = {size: lane.reached.points[-1].seconds for size, lane in lanes.items() if lane.reached is not None}
    if not there or len(lanes) >= MOST_LANES:
        return None
    first = min(there, key=lambda size: there[size])
    beside = [
        size
        for size in sizes
        if size not in lanes and BESIDE[0] < _octaves(size, first) < BESIDE[1] and is_affordable(size, there[first])
    ]
    return max(beside, key=lambda size: near.get(size, 0.0), default=None)


def _octaves(size: int, other: int) -> float:
    return abs(math.log2(size / other))

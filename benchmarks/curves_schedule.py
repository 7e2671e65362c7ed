"""Which setting of a network is recorded next, given the curves that are there: a function of them alone.

The default comes first. Its rate is followed by factors of 2 to both sides until clearly worse. Then come the other
batch sizes, the neighbours of the fastest first and every second one farther away, each from the rate that was best at
the nearest size. Then one rate far out on each side of every size, for advice that starts from a bad setting, and last
further seeds of the settings near the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# A rate this many times slower than the best of its batch size is clearly worse: the valley's wall has been seen.
CLEARLY_WORSE = 1.25
# Further seeds are for settings within this factor of the best: the ones that advice may have to choose between.
NEAR_BEST = 1.5
# A batch size this many times slower than the fastest gets only its best rate's neighbours.
FAR = 2.0
# Factors of 2 between the outermost rate of a valley and the one far out.
WING = 2
MAX_RATES = 5  # of one batch size, without the far ones
SEEDS = 3
ENOUGH = 44  # curves of a network, after which no third seed is recorded
# The coarse grid of beginnings: rates of a batch size, in factors of 2 from the middle, and how far sizes go.
EARLY_STEPS, EARLY_OCTAVES = (-4, -2, 0, 2, 4), 4.1


class Setting(NamedTuple):
    """A run to record; the rate is the default times 2 to the power of `step`."""

    batch_size: int
    step: int
    seed: int = 0


class Seen(NamedTuple):
    """A finished run: its CPU seconds to the target, or an estimate where it ended before; infinite if it diverged."""

    setting: Setting
    seconds: float
    reached: bool = True


def next_setting(default: int, sizes: Sequence[int], seen: Iterable[Seen]) -> Setting | None:
    """Name the run to record next.

    Args:
        default: The default batch size.
        sizes: Batch sizes that may be recorded, smallest first; the default is one of them.
        seen: The finished runs.

    Returns:
        The next setting, or None where all are there.

    Examples:
        >>> next_setting(32, (8, 32, 128), [])
        Setting(batch_size=32, step=0, seed=0)
        >>> next_setting(32, (8, 32, 128), [Seen(Setting(32, 0), 40.0)])
        Setting(batch_size=32, step=1, seed=0)
    """
    seen = list(seen)
    first = {s.setting: s.seconds for s in seen if s.setting.seed == 0}
    by_size = {size: {s.step: t for s, t in first.items() if s.batch_size == size} for size in sizes}
    step = _next_rate(by_size[default], 0, math.inf)
    if step is not None:
        return Setting(default, step)
    fastest = min(t for rates in by_size.values() for t in rates.values())
    size = _next_size(default, sizes, by_size, fastest)
    if size is not None:
        start = _start(size, sizes, {s: r for s, r in by_size.items() if s != size and r})
        step = _next_rate(by_size[size], start, fastest)
        if step is not None:
            return Setting(size, step)
    return _next_far(default, by_size) or _next_seed(seen, fastest)


def _next_size(default: int, sizes: Sequence[int], by_size: dict[int, dict[int, float]], fastest: float) -> int | None:
    begun = [size for size in sizes if by_size[size] and _next_rate(by_size[size], 0, fastest) is not None]
    if begun:
        return begun[0]
    best = min(sizes, key=lambda size: (min(by_size[size].values(), default=math.inf), size != default))
    place = sizes.index(best)
    order = [place + 1, place - 1]
    for far in range(3, len(sizes) + 1, 2):
        order += [place + far, place - far]
    order += [len(sizes) - 1, 0]
    for index in order:
        if 0 <= index < len(sizes) and not by_size[sizes[index]]:
            return sizes[index]
    return None


def _start(size: int, sizes: Sequence[int], others: dict[int, dict[int, float]]) -> int:
    """The best step of the nearest batch size, moved by half a factor of 2 for each factor of 2 in size."""
    nearest = min(others, key=lambda other: abs(math.log(other / size)))
    best = min(others[nearest], key=lambda step: (others[nearest][step], abs(step)))
    return best + round(0.5 * math.log2(size / nearest))


def _next_rate(rates: dict[int, float], start: int, fastest: float) -> int | None:
    """The next step of one batch size: the start, then outwards from the best until clearly worse on both sides."""
    if not rates:
        return start
    best = min(rates, key=lambda step: (rates[step], step))
    if math.isinf(rates[best]):  # all diverged: a smaller one
        return min(rates) - 2 if len(rates) < MAX_RATES else None
    for step in (best + 1, best - 1):
        if step not in rates:
            return step
    if len(rates) >= MAX_RATES or rates[best] > FAR * fastest:
        return None
    for direction in (1, -1):
        step = best + direction
        while step in rates and rates[step] < CLEARLY_WORSE * rates[best]:
            step += direction
        if step not in rates:
            return step
    return None


def _next_far(default: int, by_size: dict[int, dict[int, float]]) -> Setting | None:
    sizes = [size for size, rates in by_size.items() if rates]
    for size in (default, sizes[0], sizes[-1], *sizes):
        finite = [step for step, seconds in by_size[size].items() if math.isfinite(seconds)]
        if not finite:
            continue
        best = min(finite, key=lambda step: by_size[size][step])
        if min(finite) > best - WING - 1:
            return Setting(size, best - WING - 1)
        diverged = any(step > best and math.isinf(t) for step, t in by_size[size].items())
        if not diverged and max(finite) < best + WING + 1:
            return Setting(size, best + WING + 1)
    return None


def _next_seed(seen: Sequence[Seen], fastest: float) -> Setting | None:
    known = {s.setting for s in seen}
    near = sorted(
        (s for s in seen if s.setting.seed == 0 and s.reached and s.seconds <= NEAR_BEST * fastest),
        key=lambda s: s.seconds,
    )
    for seed in range(1, SEEDS):
        if seed > 1 and len(seen) >= ENOUGH:
            return None
        for one in near:
            setting = one.setting._replace(seed=seed)
            if setting not in known:
                return setting
    return None


def early_grid(sizes: Sequence[int], best: Setting) -> list[Setting]:
    """A coarse grid about the best setting: every other batch size, rates a factor of 4 apart along ε ∝ √B.

    Args:
        sizes: Batch sizes that may be recorded, ascending.
        best: The best setting so far.

    Returns:
        Settings of the best one's seed, the nearest first.

    Examples:
        >>> [tuple(setting) for setting in early_grid((8, 16, 32), Setting(16, 1, 0))][:3]
        [(16, 1, 0), (16, -1, 0), (16, 3, 0)]
    """
    place = min(range(len(sizes)), key=lambda k: abs(math.log(sizes[k] / best.batch_size)))
    found = []
    for size in sizes[place % 2 :: 2]:
        octaves = math.log2(size / best.batch_size)
        if abs(octaves) > EARLY_OCTAVES:
            continue
        middle = best.step + round(octaves / 2)
        found += [Setting(size, middle + step, best.seed) for step in EARLY_STEPS]
    return sorted(found, key=lambda s: (abs(math.log2(s.batch_size / best.batch_size)), abs(s.step - best.step)))

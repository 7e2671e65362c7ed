"""Successive halving alone: the plain search that ``make bench-policy`` sets beside the policy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from batchscope.search.candidates import Candidate, Setting
from batchscope.search.recorded import Curve, RecordedSource

# Batch sizes and rates of the grid are so many times apart; the rates reach so many steps to either side.
SPACING, RATE_STEPS = 4.0, 2


def grid_about(start: Setting, sizes: Sequence[int], *, spacing: float = SPACING) -> list[Setting]:
    """Batch sizes a factor apart over all that are allowed, and rates about the start's by the square-root rule.

    Args:
        start: Today's setting.
        sizes: Batch sizes that may be chosen.
        spacing: Factor between two batch sizes, and between two rates.

    Examples:
        >>> len(grid_about(Setting(32, 0.1), [8, 16, 32, 64, 128]))
        15
    """
    found = []
    reach = math.ceil(math.log(max(sizes) / min(sizes), spacing))
    near = {
        min(sizes, key=lambda s: abs(math.log(s / start.batch_size) - k * math.log(spacing)))
        for k in range(-reach, reach + 1)
    }
    for size in sorted(near):
        # Rates are the start's times powers of two, so that recorded ones are hit exactly.
        middle = round(0.5 * math.log2(size / start.batch_size))
        step = round(math.log2(spacing))
        for k in range(-RATE_STEPS, RATE_STEPS + 1):
            found.append(Setting(size, start.learning_rate * 2.0 ** (middle + step * k)))
    return found


def successive_halving(
    curves: Mapping[Setting, Curve], settings: Sequence[Setting], seconds: float, *, eta: float = 3.0
) -> tuple[Setting, float]:
    """Train all settings equally long, keep the best 1/η of them, and so on, each round at the same cost.

    Settings are judged by their training loss at equal seconds (Jamieson and Talwalkar 2016, arXiv 1502.07943).

    Args:
        curves: What was recorded.
        settings: Candidates.
        seconds: What all may cost.
        eta: One in so many is kept.

    Returns:
        The best at the end, and what was spent.
    """
    source = RecordedSource(curves)
    alive = [source.open(setting) for setting in settings]
    rounds = max(1, math.ceil(math.log(len(alive), eta) - 1e-9))
    horizon = 0.0
    for _ in range(rounds):
        horizon += seconds / rounds / len(alive)
        for candidate in alive:
            if candidate.ended is None and source.elapsed_seconds() < seconds:
                candidate.advance(horizon)
        alive.sort(key=lambda candidate: _rank(candidate, horizon))
        alive = alive[: max(1, math.ceil(len(alive) / eta - 1e-9))]
    return alive[0].setting, source.elapsed_seconds()


def _rank(candidate: Candidate, seconds: float) -> tuple[bool, float]:
    """Those that reached the goal first, by their time; the others by their loss at equal seconds."""
    if candidate.ended == "reached":
        return False, candidate.points[-1].seconds
    if candidate.ended == "diverged":
        return True, math.inf
    seen = list(itertools.takewhile(lambda point: point.seconds <= seconds * (1 + 1e-9), candidate.points))
    return True, seen[-1].loss if len(seen) > 1 else math.inf

"""The pilot: of what order of magnitude the learning rate is that training wants."""

from __future__ import annotations

from collections.abc import Callable

from batchscope.advice.lane import Lane

# Rates: this many factors of this size to either side of where the scaling rule puts the reference.
FACTOR, SIDE = 4.0, 3
EXTENSIONS = 3
# Evaluations after which a valley says something.
PILOT_POINTS = 3
# Rates further than this from the best, in factors of two, are given up after the first evaluation.
COARSE_OCTAVES = 4.5


def coarse_rates(centre: float) -> list[float]:
    """Rates about one that may be far off.

    Examples:
        >>> coarse_rates(0.64)
        [0.01, 0.04, 0.16, 0.64, 2.56, 10.24, 40.96]
    """
    return [centre * FACTOR**k for k in range(-SIDE, SIDE + 1)]


def find_order(
    lane: Lane, *, goes_on: Callable[[], bool], is_late: Callable[[], bool]
) -> tuple[float | None, str | None]:
    """Train the candidates until the bottom of their valley lies between them, and end them.

    Args:
        lane: Of coarse rates; more are added beyond an edge at which the best one lies.
        goes_on: Asked before every evaluation.
        is_late: Asked after one: whether there is no time for another.

    Returns:
        The bottom, and None; or None, and why there is none.
    """
    extensions = 0
    while goes_on():
        lane.advance()
        if not lane.live and lane.best is None:
            if extensions == EXTENSIONS:
                least = lane.entrants[0].learning_rate
                return None, f"training diverged at every learning rate from {least:.2g} on"
            extensions += 1
            lane.extend("lowest", FACTOR, SIDE)
            continue
        lane.drop_far_rates(COARSE_OCTAVES)
        found = lane.bottom()
        if lane.points >= PILOT_POINTS and found is not None and lane.is_level:
            if found[1] is None or extensions == EXTENSIONS:
                break
            extensions += 1
            lane.extend(found[1], FACTOR, 2)
        if not lane.live or is_late():
            break
    found = lane.bottom()
    if found is None:
        return None, "the budget ended before any learning rate could be judged"
    bottom = found[0].learning_rate
    # Coarse rates have done their work; finer ones begin where they ended.
    for heat in lane.heats:
        heat.drop(heat.live, f"a search in factors of {FACTOR:g}; the best lay near {bottom:.3g}")
    return bottom, None

"""Schedules in which the batch size grows linearly, exponentially or with the measured noise scale."""

from __future__ import annotations

import math

from batchscope.errors import PlanError
from batchscope.records.schedule import Coupling, MeasuredGrowth, Phase, Schedule, checked_count, checked_number

MOST_STEPS = 10_000


def linear_growth(
    batch_size: int, to: int, *, examples: int, increment: int | None = None, coupling: Coupling = "rule"
) -> Schedule:
    """Grow the batch size by equal increments at equal intervals.

    With n = ⌈(to − B)/increment⌉ steps over E examples the batch size is B + k·increment from kE/n on, and ``to`` from
    E on, as with Megatron's ``--rampup-batch-size B increment E``.

    Args:
        batch_size: The first batch size B.
        to: The last batch size, at least B.
        examples: Examples E over which it grows.
        increment: The increment; None: B.
        coupling: "rule": the optimiser's settings follow by its scaling rule; "stated": they stay.

    Returns:
        The schedule.

    Examples:
        >>> [(p.start_examples, p.batch_size) for p in linear_growth(32, 128, examples=9000).phases]
        [(0, 32), (3000, 64), (6000, 96), (9000, 128)]
    """
    _check_ends(batch_size, to, examples)
    increment = batch_size if increment is None else increment
    checked_count("increment", increment, 1)
    steps = -(-(to - batch_size) // increment)
    _check_steps(steps, f"increments of {increment}")
    sizes = [min(batch_size + k * increment, to) for k in range(steps + 1)]
    return _even(sizes, examples, coupling)


def exponential_growth(
    batch_size: int,
    to: int,
    *,
    examples: int,
    factor: float = 2.0,
    multiple_of: int = 1,
    coupling: Coupling = "rule",
) -> Schedule:
    """Multiply the batch size by a factor at equal intervals.

    With n = ⌈log(to/B)/log(factor)⌉ steps over E examples the batch size is B·factor**k, rounded to a multiple, from
    kE/n on, and ``to`` from E on.

    Args:
        batch_size: The first batch size B.
        to: The last batch size, at least B.
        examples: Examples E over which it grows.
        factor: The factor.
        multiple_of: Batch sizes between the first and the last are multiples of this.
        coupling: "rule": the optimiser's settings follow by its scaling rule; "stated": they stay.

    Returns:
        The schedule.

    Examples:
        >>> [(p.start_examples, p.batch_size) for p in exponential_growth(32, 256, examples=9000).phases]
        [(0, 32), (3000, 64), (6000, 128), (9000, 256)]
    """
    _check_ends(batch_size, to, examples)
    checked_number("factor", factor)
    checked_count("multiple_of", multiple_of, 1)
    if factor <= 1:
        raise PlanError("factor must be above 1", got=factor)
    _check_steps(math.log(to / batch_size) / math.log(factor), f"a factor of {factor}")
    sizes, size = [batch_size], batch_size * factor
    # Avoid a last step that is due to rounding.
    while size < to * (1 - 1e-9):
        sizes.append(max(sizes[-1], min(to, round(size / multiple_of) * multiple_of)))
        size *= factor
    return _even([*sizes, to] if to > batch_size else sizes, examples, coupling)


def measured(
    batch_size: int,
    *,
    knee: float,
    maximum: int | None = None,
    factor: int = 2,
    sustained: int = 3,
    every: int = 200,
) -> Schedule:
    """Let the batch size follow √(knee × noise scale), measured during training, and the optimiser follow it.

    Args:
        batch_size: The first and smallest batch size.
        knee: Batch size at which the fixed cost of an update equals that of its examples.
        maximum: The largest batch size; None: the number of training examples.
        factor: Factor of a change.
        sustained: Measurements in a row that have to agree.
        every: Updates between two measurements.

    Returns:
        The schedule.

    Examples:
        >>> measured(64, knee=200).measured.factor
        2
    """
    growth = MeasuredGrowth(knee, maximum, factor, sustained, every)
    return Schedule((Phase(0, batch_size),), growth)


def _check_steps(steps: float, by: str) -> None:
    if steps > MOST_STEPS:
        raise PlanError(f"a batch size must grow in at most {MOST_STEPS:,} steps", got=by, mend="make them larger")


def _check_ends(batch_size: int, to: int, examples: int) -> None:
    checked_count("batch_size", batch_size, 1)
    checked_count("to", to, batch_size, mend="it is the last batch size, and batch_size the first")
    checked_count("examples", examples, 1)


def _even(sizes: list[int], examples: int, coupling: Coupling) -> Schedule:
    """Batch sizes at equal intervals, without repetitions."""
    steps = max(1, len(sizes) - 1)
    starts = {round(k * examples / steps): size for k, size in enumerate(sizes)}
    phases: list[Phase] = []
    for start, size in starts.items():
        if not phases or size != phases[-1].batch_size:
            phases.append(Phase(start, size))
    return Schedule(tuple(phases), coupling=coupling)

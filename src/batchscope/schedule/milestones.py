"""Schedules with milestones at which the learning rate decays or the batch size grows."""

from __future__ import annotations

from collections.abc import Sequence

from batchscope.errors import PlanError
from batchscope.records.schedule import Phase, Schedule, checked_count, checked_number


def constant(batch_size: int) -> Schedule:
    """A constant batch size and learning rate.

    Args:
        batch_size: Examples per update.

    Returns:
        The schedule.

    Examples:
        >>> constant(64).updates(6400)
        100
    """
    return Schedule((Phase(0, batch_size),))


def stepped(batch_size: int, *, at: Sequence[int], factor: float) -> Schedule:
    """Divide the learning rate by a factor at milestones (step decay).

    Args:
        batch_size: Examples per update.
        at: Milestones in examples, ascending.
        factor: The factor α.

    Returns:
        The schedule.

    Examples:
        >>> [phase.learning_rate_factor for phase in stepped(128, at=(60, 120), factor=5).phases]
        [1.0, 0.2, 0.04]
    """
    return _at_milestones(batch_size, at=at, factor=factor, cap=batch_size, exponent=1.0)


def smith(
    batch_size: int,
    *,
    at: Sequence[int],
    factor: float,
    cap: int | None = None,
    growths: int | None = None,
    momentum: float | None = None,
) -> Schedule:
    """Grow the batch size at the milestones of step decay (Smith et al. 2017, arXiv 1711.00489).

    Multiplying the batch size by α has the same effect on the noise scale g ≈ εN/(B(1 − m)) as dividing the learning
    rate by α, in fewer updates. At the cap, and after ``growths`` milestones, the learning rate decays instead: after k
    milestones ε/B = (ε₀/B₀)/α**k. The paper's hybrid is ``growths=1``. A larger first batch needs a larger learning
    rate or momentum: see :func:`equal_noise_batch_size`.

    Args:
        batch_size: The first batch size B₀.
        at: Milestones in examples, ascending.
        factor: The factor α.
        cap: The largest batch size, in the paper a tenth of the training examples; None: no limit.
        growths: Number of milestones at which the batch size grows; None: all.
        momentum: Momentum throughout; None: the optimiser's own.

    Returns:
        The schedule.

    Examples:
        >>> N = 50_000  # CIFAR-10: 200 epochs, milestones at 60, 120 and 160
        >>> smith(128, at=(60 * N, 120 * N, 160 * N), factor=5, cap=5120).updates(200 * N)
        29141
        >>> stepped(128, at=(60 * N, 120 * N, 160 * N), factor=5).updates(200 * N)
        78125
    """
    if growths is not None:
        checked_count("growths", growths, 0)
    return _at_milestones(batch_size, at=at, factor=factor, cap=cap, exponent=1.0, growths=growths, momentum=momentum)


def seesaw(batch_size: int, *, at: Sequence[int], factor: float, cap: int | None = None) -> Schedule:
    """Divide the learning rate by √α and multiply the batch size by α (Seesaw: Meterez et al. 2025, 2510.14717).

    For updates normalised by gradient noise, as those of Adam, ε/√B matters: after k milestones it is (ε₀/√B₀)/α**k. At
    the cap, the learning rate is divided by α.

    Args:
        batch_size: The first batch size B₀.
        at: Milestones in examples, ascending.
        factor: The factor α.
        cap: The largest batch size; None: no limit.

    Returns:
        The schedule.

    Examples:
        >>> schedule = seesaw(64, at=(1000, 2000), factor=4)
        >>> [(phase.batch_size, phase.learning_rate_factor) for phase in schedule.phases]
        [(64, 1.0), (256, 0.5), (1024, 0.25)]
    """
    return _at_milestones(batch_size, at=at, factor=factor, cap=cap, exponent=0.5)


def _at_milestones(
    batch_size: int,
    *,
    at: Sequence[int],
    factor: float,
    cap: int | None,
    exponent: float,
    growths: int | None = None,
    momentum: float | None = None,
) -> Schedule:
    """Phases in which the rate is α**(−k)·(B_k/B₀)**exponent of the first, with B_k = B₀·α**k as far as it may grow."""
    checked_count("batch_size", batch_size, 1)
    checked_number("factor", factor)
    if factor <= 1:
        raise PlanError("factor must be above 1", got=factor, mend="it is what the rate would be divided by")
    if cap is not None:
        checked_count("cap", cap, batch_size, mend="it is the largest batch, and batch_size the first")
    phases = [Phase(0, batch_size, 1.0, momentum)]
    for k, milestone in enumerate(at, start=1):
        try:
            growth = factor ** (k if growths is None else min(k, growths))
        except OverflowError:
            got = f"{factor} at {k} milestones"
            raise PlanError("factor must leave a batch that can be counted", got=got) from None
        size = round(batch_size * growth if cap is None else min(batch_size * growth, cap))
        phases.append(Phase(milestone, size, factor**-k * (size / batch_size) ** exponent, momentum))
    return Schedule(tuple(phases))

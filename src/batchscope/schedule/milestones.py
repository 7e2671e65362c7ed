"""Schedules with milestones: where a learning rate would be cut, the batch may grow instead."""

from __future__ import annotations

from collections.abc import Sequence

from batchscope.errors import PlanError
from batchscope.records.schedule import Phase, Schedule, checked_count, checked_number


def constant(batch_size: int) -> Schedule:
    """One batch size and one rate throughout.

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
    """Cut the learning rate by a factor at milestones, the usual step decay.

    Args:
        batch_size: Examples per update.
        at: Milestones in examples, ascending.
        factor: α: what the rate is divided by at each.

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
    """Grow the batch wherever the learning rate would be cut (Smith et al. 2017, arXiv 1711.00489).

    At a milestone the batch is multiplied by α instead of the rate divided by it, which has the same effect on the
    noise scale g ≈ εN/(B(1 − m)) in fewer updates. At the cap, and after so many growths as are asked for, the rate
    falls instead, so that after k milestones ε/B = (ε₀/B₀)/α**k whatever was rounded or capped. Their hybrid, the batch
    once and then the rate, is ``growths=1``. A larger first batch goes with a larger rate or momentum:
    :func:`equal_noise_batch_size`.

    Args:
        batch_size: B₀, examples per update at first.
        at: Milestones in examples, ascending.
        factor: α: what the rate would be divided by at each.
        cap: The largest batch, about a tenth of the training examples in their work; None: there is none.
        growths: Milestones at which the batch grows, from the first; None: at all of them.
        momentum: Set from the start; None: the optimiser's own.

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
    """Where the rate would be cut by α, cut it by √α and grow the batch by α (Seesaw: Meterez et al. 2025, 2510.14717).

    What counts is ε/√B then, as for an update that is normalised by the gradient's own noise; Adam and its kin. At the
    cap the rate falls by all of α, so that after k milestones ε/√B = (ε₀/√B₀)/α**k whatever was rounded or capped.

    Args:
        batch_size: B₀, examples per update at first.
        at: Milestones in examples, ascending.
        factor: α: what the rate would be divided by at each.
        cap: The largest batch; None: there is none.

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

"""Arguments that studies have in common: seeds, and the rate that a search begins with."""

from __future__ import annotations

from collections.abc import Sequence

from batchscope.errors import ArgumentError, PlanError
from batchscope.records import Shape
from batchscope.schedule import learning_rate_exponent, rescale
from batchscope.seeding import current_device, isolated
from batchscope.training.train import checked_seed
from batchscope.workload.workload import Workload

# More are a mistake; and each is a run of everything.
MOST_SEEDS = 10_000


def checked_seeds(seeds: int | Sequence[int], seed: int) -> tuple[int, ...]:
    """The seeds of a study: as many as asked for from the first one on, or those that were named.

    Raises:
        ArgumentError: None, too many, or one twice.

    Examples:
        >>> checked_seeds(3, 10), checked_seeds([4, 2], 0)
        ((10, 11, 12), (4, 2))
    """
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if not 1 <= seeds <= MOST_SEEDS:
            mend = "5 give an interval worth reading"
            raise ArgumentError(f"seeds must be at least 1 and at most {MOST_SEEDS:,}", got=seeds, mend=mend)
        return tuple(range(seed, seed + seeds))
    if not isinstance(seeds, Sequence) or isinstance(seeds, str) or not seeds:
        raise ArgumentError("seeds must be a number, or different whole numbers", got=seeds)
    chosen = tuple(checked_seed(one) for one in seeds)
    if len(set(chosen)) < len(chosen):
        raise ArgumentError("seeds must differ from each other", got=seeds)
    return chosen


def falling_shape(workload: Workload) -> Shape:
    """The rate over a fixed budget: as the workload says, or linear to zero where it says constant.

    Examples:
        >>> import dataclasses
        >>> from batchscope.workload.digits import digits
        >>> falling_shape(digits()), falling_shape(dataclasses.replace(digits(), shape="cosine"))
        ('linear', 'cosine')
    """
    return "linear" if workload.shape == "constant" else workload.shape


def reference_rate(workload: Workload, batch_size: int, *, by_rule: bool = False) -> float:
    """The workload's learning rate, rescaled to another batch size by the optimiser's rule.

    Args:
        workload: Whose rate.
        batch_size: The size to rescale to.
        by_rule: Whether to insist on a rule. If not, the rate is left as it is where there is none: a place for a
            search to begin.

    Returns:
        The rate.

    Raises:
        PlanError: There is no rule, and one is insisted on.
    """
    with isolated(0, current_device()):
        optimizer = workload.optimizer_for(workload.model(), workload.learning_rate)
    if by_rule:
        rescale(optimizer, from_batch_size=workload.batch_size, to_batch_size=batch_size)
        return float(optimizer.param_groups[0]["lr"])
    try:
        exponent = learning_rate_exponent(optimizer)
    except PlanError:
        return workload.learning_rate
    return float(workload.learning_rate * (batch_size / workload.batch_size) ** exponent)

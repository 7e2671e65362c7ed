"""Which running trials of a batch size cannot be the best rate any more.

With a target, trials are ranked by what they need to reach it, and a trial that is still running needs more than it
has spent. So the rank of an unfinished rate has a lower bound, and a rate whose bound lies behind a rate that is
complete has lost: no assumption about curves enters. All trials of a batch size that train as one stack keep the same
pace, so the first rate to reach the target with all its seeds ends the others, at what itself has spent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from batchscope.study.tasks import Standing, Trial

# A rate that was tried with some of the seeds only is behind where it needs this many times the examples of the best
# over the same seeds: other seeds may order the two otherwise.
SLACK = 1.25

# Standings of one rate, by seed.
OfRate = Mapping[int, Standing]


class Rank(NamedTuple):
    """What one rate needs to the target, least first; of unfinished trials, the least that it can come to.

    Attributes:
        missed: Trials that did not reach it.
        diverged: Those of them that never would have.
        log_examples: Mean log examples, missed ones counted with their budget.
    """

    missed: int
    diverged: int
    log_examples: float


def prunable(
    standings: Sequence[Standing], *, target: float | None, budget_examples: int, slack: float = SLACK
) -> set[Trial]:
    """Running trials of one batch size whose rate cannot be the best any more.

    With a target a rate's rank is :class:`Rank`: fewer misses first, then the least mean log examples over its seeds.
    A trial that is running or was pruned counts with what it has spent, which it needs at least; a diverged one never
    arrives. A rate is out where this bound is no better than the rank of another rate that is complete over the same
    seeds: exactly so where all seeds of the batch size have begun, and by the factor ``slack`` where only some have,
    or where there is only one.

    Args:
        standings: All trials of the batch size that are known of, at their last evaluation. Failed trials count as
            if they were not there. Trials that wait may be given as running with no examples: they are pruned with
            their rate.
        target: Validation score to reach; None: scores at the budget decide, and see :func:`far_behind`.
        budget_examples: Most examples of a trial.
        slack: Factor of examples for rates of which only some seeds have begun, at least 1.

    Returns:
        Those that may be stopped.

    Examples:
        >>> def at(rate, ended, examples):
        ...     return Standing(Trial(32, rate, 0), ended, examples, None, None)
        >>> standings = [at(0.1, "reached", 1000), at(0.2, "running", 1300), at(0.05, "running", 1100)]
        >>> [trial.learning_rate for trial in prunable(standings, target=0.9, budget_examples=5000)]
        [0.2]
    """
    rates = by_rate(standings)
    seeds = {seed for own in rates.values() for seed in own}
    out: set[Trial] = set()
    for own in rates.values():
        running = {standing.trial for standing in own.values() if standing.ended == "running"}
        if not running:
            continue
        others = [other for other in rates.values() if other is not own]
        if target is None:
            behind = far_behind(own, others, budget_examples)
        else:
            behind = beaten(own, others, seeds=len(seeds), budget_examples=budget_examples, slack=slack)
        if behind:
            out |= running
    return out


def by_rate(standings: Iterable[Standing]) -> dict[float, dict[int, Standing]]:
    """Standings that say something, by rate and seed; failed ones do not."""
    rates: dict[float, dict[int, Standing]] = defaultdict(dict)
    for standing in standings:
        if standing.ended != "failed":
            rates[standing.trial.learning_rate][standing.trial.seed] = standing
    return dict(rates)


def complete(own: OfRate, seeds: Collection[int]) -> bool:
    """Whether a rate has a result of its own with every one of these seeds."""
    return all(seed in own and own[seed].ended in ("reached", "missed", "diverged") for seed in seeds)


def begun(own: OfRate) -> set[int]:
    """Seeds of which there is anything to be said."""
    return {
        seed for seed, standing in own.items() if standing.examples > 0 or standing.ended not in ("running", "pruned")
    }


def rank(own: OfRate, seeds: Collection[int], budget_examples: int) -> Rank:
    """The rank of a rate over some of its seeds; its lower bound where they are not all complete.

    Examples:
        >>> own = {s: Standing(Trial(8, 0.1, s), "reached", e, 0.9, None) for s, e in enumerate((100, 400))}
        >>> round(math.exp(rank(own, (0, 1), 1000).log_examples), 6)
        200.0
    """
    chosen = [own[seed] for seed in seeds]
    logs = [math.log(max(1, budget_examples if s.ended in ("missed", "diverged") else s.examples)) for s in chosen]
    return Rank(
        missed=sum(standing.ended in ("missed", "diverged") for standing in chosen),
        diverged=sum(standing.ended == "diverged" for standing in chosen),
        log_examples=math.fsum(logs) / len(logs),
    )


def beaten(own: OfRate, others: Iterable[OfRate], *, seeds: int, budget_examples: int, slack: float = SLACK) -> bool:
    """Whether a rate with unfinished trials is behind one of the others, over the seeds that it has begun.

    Args:
        own: Its standings.
        others: Those of the other rates.
        seeds: How many seeds there are.
        budget_examples: Most examples of a trial.
        slack: See :func:`prunable`.

    Returns:
        Whether. An unfinished trial needs more than it has spent, so equal ranks are enough.
    """
    common = begun(own)
    if not common:
        return False
    bound, some = rank(own, common, budget_examples), len(common) < seeds or seeds == 1
    for other in others:
        if not complete(other, common):
            continue
        theirs = rank(other, common, budget_examples)
        if not some and bound >= theirs:
            return True
        # A miss by a hair on some of the seeds says no more than a few examples too many.
        clearly = bound.diverged > theirs.diverged or bound.log_examples >= theirs.log_examples + math.log(slack)
        if some and bound.missed >= theirs.missed and clearly:
            return True
    return False


def far_behind(own: OfRate, others: Iterable[OfRate], budget_examples: int) -> bool:
    """Whether a rate has lost without a target: so far, where one of its trials has diverged and another rate is done.

    Args:
        own: Its standings.
        others: Those of the other rates.
        budget_examples: Most examples of a trial.

    Returns:
        Whether.
    """
    return any(s.ended == "diverged" for s in own.values()) and any(
        complete(other, begun(own)) and all(s.ended != "diverged" for s in other.values()) for other in others
    )

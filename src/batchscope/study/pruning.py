"""Which running trials of a batch size cannot be the best rate any more.

With a target, trials are ranked by what they need to reach it, and a trial that is still running needs more than it
has spent. So the rank of an unfinished rate has a lower bound, and a rate whose bound lies behind a rate that is
complete has lost: no assumption about curves enters.

Which trials of a wave are pruned, and where, must not depend on which of them ran first. So :func:`resolve` decides
it by their curves alone, as if all had been trained side by side: at each evaluation in turn, by how all of them stand
there. Meanwhile :func:`hopeless` says which may be stopped by what is known so far. It can err where little is known;
then ``resolve`` asks for the missing part of the curve.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from batchscope.records import CurvePoint
from batchscope.study.tasks import Conditions, Standing, Trial

# A rate that was tried with some of the seeds only is behind where it needs this many times the examples of the best
# over the same seeds: other seeds may order the two otherwise.
SLACK = 1.5
# Without a target, this many rates, and seeds of the leading one, have to be known before a rate is called hopeless.
LEAST_RATES, LEAST_SEEDS = 4, 3

# Standings of one rate, by seed.
OfRate = Mapping[int, Standing]


class Rank(NamedTuple):
    """How good a rate is over some seeds, the least being the best; of unfinished trials, the best it can come to.

    Attributes:
        missed: Trials that did not reach the target; 0 without one.
        diverged: Trials that diverged.
        log_examples: Mean log examples to the target, missed ones counted with their budget; 0 without a target.
        minus_score: Minus the mean score of those that did not diverge, where scores decide: without a target, and
            where none reached it; 0 elsewhere.
    """

    missed: int
    diverged: int
    log_examples: float
    minus_score: float


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
        >>> standings = [at(0.1, "reached", 1000), at(0.2, "running", 1600), at(0.05, "running", 1100)]
        >>> [trial.learning_rate for trial in prunable(standings, target=0.9, budget_examples=5000)]
        [0.2]
    """
    rates = by_rate(standing for standing in standings if standing.ended != "failed")
    seeds = {seed for own in rates.values() for seed in own}
    out: set[Trial] = set()
    measures = contenders(rates, seeds, budget_examples) if target is not None else []
    for own in rates.values():
        running = {standing.trial for standing in own.values() if standing.ended == "running"}
        if not running:
            continue
        if target is None:
            behind = far_behind(own, [other for other in rates.values() if other is not own], budget_examples)
        else:
            behind = beaten(own, measures, seeds, budget_examples, slack)
        if behind:
            out |= running
    return out


@dataclass
class Curve:
    """What is known of a trial: how it stood at each of its evaluations, and how it ended by itself.

    Attributes:
        trial: Which.
        standings: At its evaluations so far; those of one batch size lie at the same examples.
        end: How it ended; None where it runs, waits, or was stopped.
    """

    trial: Trial
    standings: list[Standing] = field(default_factory=list)
    end: Standing | None = None

    @classmethod
    def of(cls, trial: Trial, points: Iterable[CurvePoint], end: Standing | None = None) -> Curve:
        """A curve from evaluations."""
        curve = cls(trial, end=end)
        for point in points:
            curve.add(point)
        return curve

    def add(self, point: CurvePoint) -> None:
        """Take in another evaluation."""
        self.standings.append(self.latest.after(point))

    @property
    def latest(self) -> Standing:
        """How it stood at its last evaluation."""
        return self.standings[-1] if self.standings else Standing.at_start(self.trial)

    def at(self, evaluation: int) -> Standing | None:
        """How it stands when others are at an evaluation, counted from 0; None where that is not known."""
        # A trial that diverged ended between two evaluations.
        if self.end is not None and evaluation >= len(self.standings) - (self.latest.examples >= self.end.examples):
            return self.end
        return self.standings[evaluation] if evaluation < len(self.standings) else None


class Resolved(NamedTuple):
    """How the trials of a wave end.

    Attributes:
        standings: By trial; those that are still "running" wait for the missing ones.
        evaluations: How many evaluations each that was pruned had.
        missing: Trials of whose curve more has to be known.
    """

    standings: dict[Trial, Standing]
    evaluations: dict[Trial, int]
    missing: set[Trial]


def resolve(curves: Sequence[Curve], known: Sequence[Standing], conditions: Conditions) -> Resolved:
    """How the trials of a wave end if they are trained side by side: a function of their curves and nothing else.

    Args:
        curves: Those of all trials of the wave.
        known: Standings of the trials of earlier waves.
        conditions: Target, budget, and whether trials are pruned at all.

    Returns:
        The ends, as far as the curves go.

    Examples:
        >>> def curve(rate, *examples, ended=None):
        ...     trial = Trial(32, rate, 0)
        ...     points = [Standing(trial, "running", e, None, None) for e in examples]
        ...     return Curve(trial, points, ended and Standing(trial, ended, examples[-1], None, None))
        >>> conditions = Conditions(target=0.9, budget_examples=4000, evaluate_every=500)
        >>> curves = [curve(0.1, 0, 500, 1000, ended="reached"), curve(0.2, 0, 500, 1000, 1500, 2000, 2500)]
        >>> found = resolve(curves, [], conditions)
        >>> [standing.ended for standing in found.standings.values()], found.evaluations[Trial(32, 0.2, 0)]
        (['reached', 'pruned'], 4)
    """
    now = {curve.trial: Standing.at_start(curve.trial) for curve in curves}
    pruned: dict[Trial, int] = {}
    for curve in curves:
        if curve.end is not None and curve.end.ended == "failed":  # as if it were not there
            now[curve.trial] = curve.end
    for evaluation in itertools.count():
        live = [curve for curve in curves if now[curve.trial].ended == "running"]
        at = {curve.trial: curve.at(evaluation) for curve in live}
        missing = {trial for trial, standing in at.items() if standing is None}
        if missing or not live:
            return Resolved(now, pruned, missing)
        now.update((trial, standing) for trial, standing in at.items() if standing is not None)
        for trial in _out([*known, *now.values()], conditions):
            now[trial] = now[trial]._replace(ended="pruned")
            pruned[trial] = evaluation + 1
    raise AssertionError("every curve ends")


def hopeless(
    curves: Sequence[Curve], among: Iterable[Curve], known: Sequence[Standing], conditions: Conditions
) -> set[Trial]:
    """Trials under way that can be stopped, by what is known so far of the others at the same evaluation.

    Args:
        curves: Those of all trials of the wave.
        among: Those of the trials that are asked about.
        known: Standings of the trials of earlier waves.
        conditions: Target, budget, and whether trials are pruned at all.

    Returns:
        The trials.
    """
    out: set[Trial] = set()
    asked = defaultdict[int, list[Trial]](list)
    for curve in among:
        asked[len(curve.standings) - 1].append(curve.trial)
    for evaluation, trials in asked.items():
        if evaluation >= 0:
            now = [curve.at(evaluation) or curve.latest for curve in curves]
            out.update(_out([*known, *now], conditions).intersection(trials))
    return out


def _out(standings: Sequence[Standing], conditions: Conditions) -> set[Trial]:
    if not conditions.pruning:
        return set()
    return prunable(standings, target=conditions.target, budget_examples=conditions.budget_examples)


def contenders(rates: Mapping[float, OfRate], seeds: AbstractSet[int], budget_examples: int) -> list[OfRate]:
    """The rates that others are measured by: all but those that are behind the best over all seeds.

    Such a rate may have been lucky with some of the seeds, and must not put others out by those.
    """
    bounds = {rate: rank(own, seeds, budget_examples) for rate, own in rates.items() if seeds <= begun(own)}
    done = {rate for rate in bounds if seeds <= ended(rates[rate])}
    least = min((bounds[rate] for rate in done), default=None)
    # An unfinished one needs more than it has spent.
    behind = {rate for rate, bound in bounds.items() if least and (bound > least if rate in done else bound >= least)}
    return [own for rate, own in rates.items() if rate not in behind]


def by_rate(standings: Iterable[Standing]) -> dict[float, dict[int, Standing]]:
    """Standings by rate and seed."""
    rates: dict[float, dict[int, Standing]] = defaultdict(dict)
    for standing in standings:
        rates[standing.trial.learning_rate][standing.trial.seed] = standing
    return dict(rates)


def ended(own: OfRate) -> set[int]:
    """Seeds with which a rate has a result of its own."""
    return {seed for seed, standing in own.items() if standing.ended in ("reached", "missed", "diverged")}


def begun(own: OfRate) -> set[int]:
    """Seeds with which there is a result or a bound."""
    return ended(own) | {seed for seed, standing in own.items() if standing.ended != "failed" and standing.examples > 0}


def rank(own: OfRate, seeds: Collection[int], budget_examples: int | None) -> Rank:
    """The rank of a rate over some of the seeds that it has begun.

    Args:
        own: Its standings.
        seeds: Which of them.
        budget_examples: Most examples of a trial; None: there is no target, scores alone decide.

    Returns:
        The rank; where one of the trials is running or was pruned, a lower bound of what it can come to.

    Examples:
        >>> own = {seed: Standing(Trial(8, 0.1, seed), "reached", e, 0.9, None) for seed, e in enumerate((100, 400))}
        >>> round(math.exp(rank(own, (0, 1), 1000).log_examples), 6)
        200.0
    """
    chosen = [own[seed] for seed in seeds]
    diverged = sum(standing.ended == "diverged" for standing in chosen)
    missed = 0 if budget_examples is None else diverged + sum(standing.ended == "missed" for standing in chosen)
    minus_score = 0.0
    if budget_examples is None or missed == len(chosen):
        scores = [-math.inf if s.score is None else s.score for s in chosen if s.ended != "diverged"]
        minus_score = -math.fsum(scores) / len(scores) if scores else math.inf
    if budget_examples is None:
        return Rank(0, diverged, 0.0, minus_score)
    spent = [budget_examples if s.ended in ("missed", "diverged") else s.examples for s in chosen]
    return Rank(missed, diverged, math.fsum(math.log(max(1, e)) for e in spent) / len(spent), minus_score)


def beaten(
    own: OfRate, others: Iterable[OfRate], seeds: AbstractSet[int], budget_examples: int, slack: float = SLACK
) -> bool:
    """Whether a rate with unfinished trials is behind one of the others, over the seeds that it has begun.

    Args:
        own: Its standings.
        others: Those of rates that it is measured by.
        seeds: All seeds of the batch size.
        budget_examples: Most examples of a trial.
        slack: See :func:`prunable`.

    Returns:
        Whether. An unfinished trial needs more than it has spent, so equal ranks are enough.
    """
    common = begun(own)
    if not common:
        return False
    bound, some = rank(own, common, budget_examples), len(seeds) == 1 or bool(seeds - common)
    for other in others:
        if other is own or not common <= ended(other):
            continue
        theirs = rank(other, common, budget_examples)
        if not some and bound[:3] >= theirs[:3]:
            return True
        # Of the misses there can only be more.
        if seeds <= ended(other) and bound[:2] > rank(other, seeds, budget_examples)[:2]:
            return True
        # A miss by a hair with some of the seeds says no more than a few examples too many.
        far = bound.log_examples >= theirs.log_examples + math.log(slack)
        if some and bound.missed >= theirs.missed and far:
            return True
    return False


def far_behind(own: OfRate, others: Sequence[OfRate], budget_examples: int) -> bool:
    """Whether a rate is hopeless without a target: a rule of thumb, and a timid one.

    A rate that falls over the budget makes up for a lot at its end, and a large one the most. So nothing is said before
    half of the budget, among fewer than four rates, with fewer than three seeds, or by a rate that is further on. From
    then on a rate is out where its best trial is behind the worst of the leading rate by more than half of what lies
    between the leading rate and the last one, and by more than three times the range of the leader's own trials; and
    its least loss is above them too. A rate of which a trial has diverged is out where another is done and has none.

    Args:
        own: Its standings.
        others: Those of the other rates.
        budget_examples: Most examples of a trial.

    Returns:
        Whether.
    """
    seeds = begun(own)
    if not seeds:
        return False
    diverged = any(standing.ended == "diverged" for standing in own.values())
    if diverged and any(seeds <= ended(o) and all(s.ended != "diverged" for s in o.values()) for o in others):
        return True
    spent = min((own[seed].examples for seed in seeds if own[seed].ended != "diverged"), default=0)
    means = {id(o): _mean_score(o) for o in (own, *others)}
    known = [mean for mean in means.values() if mean is not None]
    if 2 * spent < budget_examples or len(known) < LEAST_RATES:
        return False
    level = [o for o in others if seeds <= begun(o) and all(_no_further(s, spent) for s in o.values())]
    leader = max((o for o in level if means[id(o)] is not None), key=lambda o: means[id(o)] or 0.0, default=None)
    if leader is None or len(leader) < LEAST_SEEDS:
        return False
    scores = [s.score for s in leader.values() if s.score is not None]
    losses = [s.loss for s in leader.values() if s.loss is not None]
    behind = min(scores) - max((s.score for s in own.values() if s.score is not None), default=-math.inf)
    above = min((s.loss for s in own.values() if s.loss is not None), default=math.inf) > max(losses, default=math.inf)
    between = (max(scores) + min(scores)) / 2 - min(known)
    return above and behind > max(between / 2, 3 * (max(scores) - min(scores)))


def _no_further(standing: Standing, examples: int) -> bool:
    return standing.ended in ("running", "missed") and standing.examples <= examples


def _mean_score(own: OfRate) -> float | None:
    scores = [s.score for s in own.values() if s.score is not None and math.isfinite(s.score)]
    return math.fsum(scores) / len(scores) if scores else None

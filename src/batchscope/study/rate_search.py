"""The search for the best learning rate of one batch size, over seeds, as a function of the standings alone.

Rates lie on a grid of √2 around a start, the reference rate scaled to the batch size. With the first seed, a few rates
a factor 2 apart are tried at once, and more of them outwards until the best has a worse one on either side; then its
neighbours on the grid. The other seeds go to the best and to its rivals, those that one seed does not tell from it; a
best that they change is searched around anew. Nothing is remembered: each wave is what the standings leave open, so
that a sweep that was killed goes on by asking again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from batchscope.errors import ArgumentError
from batchscope.fit.rate_law import Valley
from batchscope.records.sweep import Edge
from batchscope.study.pruning import SLACK, OfRate, Rank, beaten, begun, by_rate, contenders, ended, rank
from batchscope.study.tasks import Standing, Trial

# Powers of √2 that the start is multiplied by at first; then outwards in steps of STEP, AT_ONCE of them in a wave.
COARSE = (0, 2, -2, 4, -4)
STEP, AT_ONCE = 2, 2
MOST_WIDENINGS = 12
# Further than this from the best, a rate that has not reached the target with the first seed is not given another one.
NEAR = 4
# Log examples that count as a tie: differences of rounding.
TIE = 1e-9
# Costs told apart at least: a tenth in log examples, a tenth of what lies between the best score and the last one.
LEAST_MARGIN = 0.1

Rates = dict[float, dict[int, Standing]]


@dataclass(frozen=True)
class Choice:
    """The best learning rate of a batch size, as far as its trials say.

    Attributes:
        learning_rate: The best; None where no trial gives one.
        edge: Where the best lies at an end of what was tried: "lowest", "highest"; None where there are worse rates on
            both sides.
        rates: Rates tried, ascending.
        trials: Trials at the best rate that count, by seed.
        reached: How many of them reached the target.
    """

    learning_rate: float | None
    edge: Edge | None
    rates: tuple[float, ...]
    trials: tuple[Trial, ...]
    reached: int


@dataclass(frozen=True)
class RateSearch:
    """The search at one batch size: which trials to run next, and which rate is the best by those that have ended.

    Attributes:
        start: Rate to begin with: the reference, scaled to this batch size.
        seeds: Seeds; with the first one rates are found that the others are spent on.
        batch_size: Examples per update.
        target: Validation score to reach; None: the best scores at the budget decide.
        budget_examples: Most examples of a trial.
        given: Rates to try, each with all seeds; None: they are searched for.
        slack: Factor of examples by which a rate has to be behind with some of the seeds to be no rival any more; the
            same as in the pruning.
        at_once: Rates to try in a wave outwards; 1 where trials are made one after the other, so that none is made in
            vain.
        depth: Rates a factor 2 apart, from the best outwards, that must be worse on either side, or diverge. With two
            of them a dip beside a better valley is found out.
        refine: Whether rates a factor √2 from the best are tried too, and other seeds; False: a factor 2 is enough.

    Raises:
        ArgumentError: No seeds, or rates that are not above 0.

    Examples:
        >>> search = RateSearch(0.1, (0, 1), batch_size=32, target=0.9, budget_examples=10_000)
        >>> [round(trial.learning_rate, 3) for trial in search.next_wave([])]
        [0.1, 0.2, 0.05, 0.4, 0.025]
    """

    start: float
    seeds: tuple[int, ...]
    batch_size: int
    target: float | None
    budget_examples: int
    given: tuple[float, ...] | None = None
    slack: float = SLACK
    at_once: int = AT_ONCE
    depth: int = 1
    refine: bool = True

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ArgumentError("there must be at least one seed, and no seed twice", got=list(self.seeds))
        rates = [self.start, *(self.given or ())]
        if self.given == () or not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ArgumentError("learning rates must be finite numbers above 0", got=list(self.given or rates[:1]))

    def next_wave(self, standings: Iterable[Standing]) -> tuple[Trial, ...]:
        """The trials to run next, the most promising first.

        Args:
            standings: Of all trials of this batch size so far. Failed ones give no result and are not asked for again;
                one that was pruned is, where what has been found since does not put it out.

        Returns:
            The trials; none where the search is done, and none as long as something is running.
        """
        rates = self._rates(standings)
        if any(standing.ended == "running" for own in rates.values() for standing in own.values()):
            return ()
        if self.given is not None:
            nearest = sorted(set(self.given), key=lambda rate: (abs(math.log(rate / self.start)), rate))
            return self._new(rates, nearest, self.seeds) or self._again(rates)
        first = self.seeds[:1]
        wave = self._new(rates, [self._rate(k) for k in self._coarse], first)
        best = None if wave else self._best(rates)
        if best is None:
            return wave
        wave = self._new(rates, self._outwards(rates, best), first)
        if not self.refine:
            return wave
        if not wave:
            between = self._new(rates, self._between(rates, best), first)
            # The best of them may be next to this one: where it has reached the target its seeds are worth having.
            at_once = self.target is None or _reached(rates[best]) or not between
            wave = self._new(rates, [best] if at_once and not self._hopeless(rates[best]) else [], self.seeds) + between
        return wave or self._new(rates, self._rivals(rates, best), self.seeds) or self._again(rates)

    def choice(self, standings: Iterable[Standing]) -> Choice:
        """The best rate by the trials that have ended, at any time.

        With a target, the fewest misses, then the least geometric mean of examples over seeds; without one, and among
        rates that never reached it, the best mean score. The middle one of rates that tie. Rates with results of all
        seeds go before others: the search leaves none that might be better.

        Args:
            standings: Of all trials of this batch size so far.

        Returns:
            The choice.
        """
        rates = self._rates(standings)
        known = sorted(rate for rate, own in rates.items() if begun(own))
        tried = tuple(sorted(rates))
        best = self._best(rates)
        if best is None or self._hopeless(rates[best]):
            return Choice(None, None, tried, (), 0)
        edge: Edge | None = "highest" if best == known[-1] else "lowest" if best == known[0] else None
        counted = [rates[best][seed] for seed in sorted(ended(rates[best]))]
        reached = sum(standing.ended == "reached" for standing in counted)
        return Choice(best, edge, tried, tuple(standing.trial for standing in counted), reached)

    def valley(self, standings: Iterable[Standing]) -> Valley:
        """What each rate costs, comparable over rates that were tried with different seeds.

        The cost of the best rate, plus the mean difference from it over the seeds that a rate has in common with it: in
        log examples where the best has reached the target, and otherwise in scores.

        Args:
            standings: Of all trials of this batch size so far.

        Returns:
            The valley; empty where there is no best rate.
        """
        rates = self._rates(standings)
        best = self._best(rates)
        if best is None or self._hopeless(rates[best]):
            return Valley((), (), (), 0.0)
        by_examples = self.target is not None and _reached(rates[best])
        costs = {rate: _costs(own, by_examples) for rate, own in sorted(rates.items())}
        of_best = {seed: cost for seed, (cost, _) in costs[best].items() if math.isfinite(cost)}
        level = math.fsum(of_best.values()) / max(1, len(of_best))
        found, squares, freedom = [], 0.0, 0
        for rate, own in costs.items():
            gaps = [own[seed][0] - cost for seed, cost in of_best.items() if seed in own]
            if not gaps:
                continue
            mean = math.fsum(gaps) / len(gaps)
            bound = rate != best and any(own[seed][1] for seed in of_best if seed in own)
            found.append((rate, level + mean, bound))
            if not bound and math.isfinite(mean):
                squares, freedom = squares + math.fsum((gap - mean) ** 2 for gap in gaps), freedom + len(gaps) - 1
        finite = [cost for _, cost, _ in found if math.isfinite(cost)]
        least = LEAST_MARGIN * (1.0 if by_examples or not finite else max(finite) - min(finite))
        margin = 2 * math.sqrt(squares / freedom / len(self.seeds)) if squares else 0.0
        tried, of_rates, bounds = (tuple(column) for column in zip(*found, strict=True)) if found else ((), (), ())
        return Valley(tried, of_rates, bounds, max(least, margin, TIE))

    @property
    def _coarse(self) -> tuple[int, ...]:
        """Places of the first wave; of two rates the worse one says which way to go on."""
        return COARSE if self.at_once > 1 else COARSE[:2]

    def _rate(self, k: int) -> float:
        """A rate of the grid: the same float whenever it is asked for."""
        return float(self.start * 2.0 ** (k / 2))

    def _place(self, rate: float) -> int:
        return round(2 * math.log2(rate / self.start))

    def _rates(self, standings: Iterable[Standing]) -> Rates:
        """The standings of this search, by rate and seed: a store may hold others'."""
        own = by_rate(s for s in standings if s.trial.batch_size == self.batch_size and s.trial.seed in self.seeds)
        if self.given is not None:
            return {rate: own[rate] for rate in own if rate in self.given}
        return {rate: own[rate] for rate in own if rate == self._rate(self._place(rate))}

    def _rank(self, own: OfRate, seeds: Collection[int] | None = None) -> Rank:
        """A rate's rank over some of its results; None: over all."""
        budget = None if self.target is None else self.budget_examples
        return rank(own, ended(own) if seeds is None else seeds, budget)

    def _trial(self, rate: float, seed: int) -> Trial:
        return Trial(self.batch_size, rate, seed)

    def _new(self, rates: Rates, wanted: Iterable[float], seeds: Sequence[int]) -> tuple[Trial, ...]:
        """Trials of these rates that have not been run."""
        return tuple(self._trial(rate, seed) for rate in wanted for seed in seeds if seed not in rates.get(rate, {}))

    def _again(self, rates: Rates) -> tuple[Trial, ...]:
        """Trials that were pruned and had not even spent what the best needs: others looked better at the time."""
        if self.target is None:
            return ()
        others = contenders(rates, set(self.seeds), self.budget_examples)
        return tuple(
            own[seed].trial
            for rate, own in sorted(rates.items())
            for seed in self.seeds
            if seed in own
            and own[seed].ended == "pruned"
            and not beaten(own, others, set(self.seeds), self.budget_examples, slack=1.0)
        )

    def _best(self, rates: Rates) -> float | None:
        """The best rate: of those with all seeds, where there are any; the middle one of a tie."""
        tied = self._tied(rates)
        middle = math.fsum(map(math.log, tied)) / max(1, len(tied))
        return min(tied, key=lambda rate: (round(abs(math.log(rate) - middle), 6), rate), default=None)

    def _tied(self, rates: Rates) -> list[float]:
        """The best rates, which differ in nothing that counts."""
        with_result = {rate: own for rate, own in rates.items() if ended(own)}
        settled = {rate: own for rate, own in with_result.items() if all(seed in _over(own) for seed in self.seeds)}
        among = settled or with_result
        # Where trials have failed, two rates are compared by the seeds that they have in common.
        order = sorted(among, key=lambda rate: (-len(ended(among[rate])), abs(math.log(rate / self.start)), rate))
        best = order[:1]
        for rate in order[1:]:
            sign = self._compared(among[rate], among[best[0]])
            if sign <= 0:
                best = [rate] if sign < 0 else [*best, rate]
        return best

    def _compared(self, one: OfRate, other: OfRate) -> int:
        """−1 where the first rate is better by the seeds that both have, 1 where it is worse; 1 without any."""
        common = ended(one) & ended(other)
        if not common:
            return 1
        a, b = self._rank(one, common), self._rank(other, common)
        tied = a[:2] == b[:2] and abs(a.log_examples - b.log_examples) <= TIE and a.minus_score == b.minus_score
        return 0 if tied else -1 if a < b else 1

    def _outwards(self, rates: Rates, best: float) -> list[float]:
        """Rates beyond the ends of what was tried, where the best may lie there."""
        places, tied = [self._place(rate) for rate in rates], [self._place(rate) for rate in self._tied(rates)]
        low, high, least, most = min(places), max(places), min(self._coarse), max(self._coarse)
        if (least - low) // (STEP * self.at_once) + (high - most) // (STEP * self.at_once) >= MOST_WIDENINGS:
            return []
        down = [self._rate(low - STEP * (i + 1)) for i in range(self.at_once)]
        up = [self._rate(high + STEP * (i + 1)) for i in range(self.at_once)]
        if self._hopeless(rates[best]):
            return down
        at_low, at_high = min(tied) == low, max(tied) == high
        if at_low or at_high:  # where all rates tie, the middle is as good as any
            return [] if at_low and at_high else down if at_low else up
        # The neighbours on the grid may have become the best since: a step of √2 less will do.
        near = STEP * self.depth - 1 if self.depth > 1 else 0
        further = down if min(tied) - low < near and not self._hopeless(rates[self._rate(low)]) else []
        return further + (up if high - max(tied) < near and not self._hopeless(rates[self._rate(high)]) else [])

    def _between(self, rates: Rates, best: float) -> list[float]:
        """Rates halfway to the neighbours of the best, until those are next to it on the grid."""
        if self._hopeless(rates[best]):
            return []
        places, k = [self._place(rate) for rate in rates], self._place(best)
        above = min((p - k for p in places if p > k), default=1)
        below = min((k - p for p in places if p < k), default=1)
        return [self._rate(k + step) for step in (above // 2, -(below // 2)) if step]

    def _rivals(self, rates: Rates, best: float) -> list[float]:
        """Rates tried with some of the seeds that these do not tell from the best, the most promising first."""
        others = contenders(rates, set(self.seeds), self.budget_examples)
        noise = _score_noise(rates.values())
        reached = _reached(rates[best])
        rivals = []
        for rate, own in rates.items():
            common = ended(own) & ended(rates[best])
            if rate == best or not common:
                continue
            ranks = self._rank(own, common), self._rank(rates[best], common)
            if self.target is None:
                # The neighbours always: that the best has a worse one on either side must not be luck of one seed.
                near = abs(self._place(rate) - self._place(best)) <= 1
                behind = ranks[0].minus_score - ranks[1].minus_score
                rival = ranks[0].diverged <= ranks[1].diverged and (near or behind <= noise)
            elif beaten(own, others, set(self.seeds), self.budget_examples, self.slack):
                rival = False
            else:
                near = reached and abs(self._place(rate) - self._place(best)) <= NEAR
                rival = _reached(own) or near or ranks[0] < ranks[1]
            if rival:
                rivals.append((ranks[0], rate))
        return [rate for _, rate in sorted(rivals)]

    def _hopeless(self, own: OfRate) -> bool:
        """Whether a rate has no result that could be compared: all its trials diverged, or had no finite score."""
        return not _reached(own) and self._rank(own).minus_score == math.inf


def _costs(own: OfRate, by_examples: bool) -> dict[int, tuple[float, bool]]:
    """What a rate's trials cost by seed, and whether that is only a bound: log examples, or minus the score."""
    if by_examples:
        return {
            seed: (
                math.inf if own[seed].ended == "diverged" else math.log(max(1, own[seed].examples)),
                own[seed].ended != "reached",
            )
            for seed in begun(own)
        }
    return {
        seed: (math.inf if s.ended == "diverged" or s.score is None else -s.score, False)
        for seed, s in own.items()
        if seed in ended(own)
    }


def _over(own: OfRate) -> set[int]:
    """Seeds that are not to be run again."""
    return ended(own) | {seed for seed, standing in own.items() if standing.ended == "failed"}


def _reached(own: OfRate) -> bool:
    return any(standing.ended == "reached" for standing in own.values())


def _score_noise(rates: Iterable[OfRate]) -> float:
    """Twice the standard deviation of scores over seeds, pooled over rates; 0 where no rate has two."""
    squares, freedom = 0.0, 0
    for own in rates:
        scores = [own[seed].score for seed in ended(own) if own[seed].ended != "diverged"]
        known = [score for score in scores if score is not None and math.isfinite(score)]
        if len(known) > 1:
            mean = math.fsum(known) / len(known)
            squares += math.fsum((score - mean) ** 2 for score in known)
            freedom += len(known) - 1
    return 2 * math.sqrt(squares / freedom) if freedom else 0.0

"""What a search does next: a pure function of the candidates' points and costs.

The value of training a setting further is what it can save: of the run that is left, the share by which the setting may
turn out to be faster than the best one, times the chance of that. A policy takes the step that saves the most for each
second that it costs, and stops when no step saves what it costs (the knowledge gradient: Frazier et al. 2009, doi
10.1287/ijoc.1080.0314, with costs). It begins with the setting that is used today.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from batchscope.search.candidates import Observation, Setting
from batchscope.search.speed import CLEAR_FALL, SpeedPrior, Speeds
from batchscope.search.update_times import UpdateSeconds

Floats = NDArray[np.float64]

# A step takes a candidate to its first horizon, or a factor of 2 further, or as far as the farthest one has come.
GROWTH = 2.0
# A candidate is judged after so many updates at the earliest.
LEAST_UPDATES = 6
# Shortest first horizon, as a share of the budget. Shorter ones take the settings that are fast at first for the best:
# in 18 to 30 plays on noisy quadratics, 1/12 had less regret than 1/100, 1/40 and 1/20; 1/8 did about as well.
FIRST_SHARE = 1 / 12
# A candidate's first step goes so many times as far as the shortest one at most.
FIRST_STEPS = 2.0
# Before settings are compared, the loss of one must have fallen by so many of its standard errors, and by this share of
# the first loss: by less it may still stand on a plateau, where rates are told apart by chance. Until then rates are
# tried a factor apart, each for this share of the budget at most: larger ones, or smaller ones where training fails.
PILOT_FALL, LEAST_FALL, PILOT_FACTOR, PILOT_SHARE = 4.0, 0.05, 4.0, 1 / 20
# On a plateau a good rate may lift the loss a little, before it falls: one fails where it is lifted by this share.
HARMFUL_RISE = 0.1
# A step is worth it if it saves this many times its cost: at 1 the median regret on noisy quadratics was 1.22, at 0.3
# and at 0.1 1.12.
WORTHWHILE = 0.3
ENDED_BADLY = ("diverged", "out of memory", "failed")
# Finding a rate that trains may take this share of the budget, if any setting's loss has fallen at all by then.
PILOT_MOST = 0.15
# Where no loss has fallen by twice its scatter yet, it may take more: nothing can be compared before.
PLATEAU_MOST, PILOT_STEPS = 0.6, 3
# Posteriors that are remembered: the same one is asked for several times in a step, for two lengths of the run.
KEPT_POSTERIORS = 4
# Rates at the edge of the lattice about those that were tried, in factors of two.
RATE_REACH, SIZE_REACH = 4, 3


@dataclass(frozen=True)
class Advance:
    """Train a candidate until its clock shows so many seconds.

    Attributes:
        setting: Which.
        seconds: On its own clock, in all.
    """

    setting: Setting
    seconds: float


@dataclass(frozen=True)
class Stop:
    """End the search.

    Attributes:
        reason: Why, as a clause.
    """

    reason: str


@dataclass(frozen=True)
class Limits:
    """What a search may cost and try.

    Attributes:
        budget_seconds: Wall time that is left.
        total_seconds: Wall time in all.
        run_seconds: What a whole run at the best setting is expected to take.
        overhead: Wall time over training time.
    """

    budget_seconds: float
    total_seconds: float
    run_seconds: float
    overhead: float = 1.15


def lattice(observations: Sequence[Observation], start: Setting, sizes: Sequence[int]) -> list[Setting]:
    """Settings that may be tried next: batch sizes that are allowed, rates factors of two from today's.

    Args:
        observations: What was tried.
        start: Today's setting.
        sizes: Batch sizes that are allowed.

    Returns:
        Them, those tried among them.
    """
    # From settings that hardly train nothing farther away is looked for.
    behind = {o.setting for o in observations if o.ended in ("diverged", "failed")}
    tried = [o.setting for o in observations if o.setting not in behind] or [start]
    bases = sorted({s.batch_size for s in tried})
    found: set[Setting] = set(tried)
    for size in sizes:
        octaves = [abs(math.log2(size / base)) for base in bases]
        if min(octaves) > SIZE_REACH:
            continue
        # Rates in ε/√B about those tried: the exponents 0 and 1 are both within reach.
        near = [s for s in tried if abs(math.log2(size / s.batch_size)) <= SIZE_REACH]
        steps = [math.log2(s.learning_rate / start.learning_rate) for s in near]
        low, high = math.floor(min(steps)) - RATE_REACH, math.ceil(max(steps)) + RATE_REACH
        found |= {Setting(size, start.learning_rate * 2.0**k) for k in range(low, high + 1)}
    return sorted(found)


class Policy:
    """Chooses the next step of a search.

    Args:
        start: Today's setting, which is trained first.
        sizes: Batch sizes that may be advised, ascending.
        prior: What is expected of log speeds.
        trains_winner: Whether the winner's training goes on afterwards, so that what it trains is not spent.
        weight: What a second counts for at a batch size (:class:`batchscope.search.speed.Speeds`).
        is_allowed: Whether a setting may be trained; None: all may.
    """

    def __init__(
        self,
        start: Setting,
        sizes: Sequence[int],
        *,
        prior: SpeedPrior | None = None,
        trains_winner: bool = False,
        weight: Callable[[int], float] = lambda batch_size: 1.0,
        is_allowed: Callable[[Setting], bool] | None = None,
    ) -> None:
        self.start, self.sizes, self.weight, self.is_allowed = start, tuple(sizes), weight, is_allowed
        self.prior, self.trains_winner = prior or SpeedPrior(), trains_winner
        self._speeds: dict[tuple[object, ...], Speeds] = {}  # the last ones, since they are asked for several times

    def settings(self, observations: Sequence[Observation]) -> list[Setting]:
        """Settings that may be tried next, those that were tried among them."""
        found = lattice(observations, self.start, self.sizes)
        return found if self.is_allowed is None else [s for s in found if self.is_allowed(s)]

    def speeds(self, observations: Sequence[Observation], run_seconds: float) -> Speeds:
        """The posterior of log speeds at the horizon of the whole run."""
        state = (*((o.setting, len(o.points), o.seconds, o.ended) for o in observations), run_seconds)
        if state not in self._speeds:
            self._speeds = dict(list(self._speeds.items())[1 - KEPT_POSTERIORS :])
            self._speeds[state] = self._fitted(observations, run_seconds)
        return self._speeds[state]

    def _fitted(self, observations: Sequence[Observation], run_seconds: float) -> Speeds:
        farthest = max(observations, key=lambda o: o.seconds).setting.batch_size if observations else self.start[0]
        return Speeds(observations, math.log(run_seconds * self.weight(farthest)), self.prior, self.weight)

    def best(self, observations: Sequence[Observation], run_seconds: float) -> Observation | None:
        """The candidate with the greatest expected speed over the whole run; None where none has trained."""
        able = [o for o in observations if o.points and o.ended not in ENDED_BADLY]
        able = [o for o in able if math.isfinite(o.points[-1].loss)]
        fell = [o for o in able if _fell(o, share=LEAST_FALL)] or [o for o in able if _fell(o, CLEAR_FALL)]
        today = [o for o in able if o.setting == self.start and not _failed(o)]
        # What has not clearly begun to train is no better than what is used today.
        able = fell or today or [o for o in able if _improved(o)] or able
        if not able:
            return None
        mean = self.speeds(observations, run_seconds).expected([o.setting for o in able])
        return able[int(np.argmax(mean))]

    def next_step(self, observations: Sequence[Observation], limits: Limits) -> Advance | Stop:
        """What to do next.

        Args:
            observations: All candidates so far, in any order.
            limits: What may be spent.

        Returns:
            The step, or why there is none.
        """
        seconds_of = UpdateSeconds.of(observations)
        trained = [o for o in observations if o.points]
        if not trained:
            return Advance(self.start, FIRST_SHARE * limits.total_seconds)
        horizon = limits.run_seconds
        pilot = self._pilot(trained, seconds_of, limits)
        if pilot is not None:
            return pilot
        settings = self.settings(observations)
        steps = self._steps(settings, observations, seconds_of, limits)
        if not steps:
            return Stop("the budget allows no further step")
        best = self.best(observations, horizon)
        speeds = self.speeds(observations, horizon)
        gains = self._gains(speeds, steps, None if best is None else best.setting, settings)
        costs = np.array([self._cost(step, observations, best, limits) for step in steps])
        # Advice on a run of seconds is not asked for one run of it: what was allowed for looking may be spent.
        left = max(horizon, limits.total_seconds)
        if self.trains_winner:
            left = horizon - (0.0 if best is None else best.seconds)
        worth = gains * left / costs
        i = int(np.argmax(worth))
        if best is not None and worth[i] < WORTHWHILE:
            return Stop("no further step is expected to save what it costs")
        return steps[i]

    def _pilot(self, trained: Sequence[Observation], seconds_of: UpdateSeconds, limits: Limits) -> Advance | None:
        """A step towards a rate that trains at all; None where there is one, or where too much was spent on it.

        Larger rates are tried first, smaller ones where training fails; where no loss falls clearly at any of them,
        they are trained further, since some networks stand on a plateau at first.
        """
        spent = limits.total_seconds - limits.budget_seconds
        if any(_fell(o, share=LEAST_FALL) for o in trained):
            return None
        share = PILOT_MOST if any(_fell(o, CLEAR_FALL, LEAST_FALL) for o in trained) else PLATEAU_MOST
        if spent > share * limits.total_seconds and any(_improved(o) for o in trained):
            return None
        most = PILOT_SHARE * limits.total_seconds
        last = trained[-1]
        failed = _failed(last)
        if not failed and GROWTH * last.seconds <= most:
            return Advance(last.setting, GROWTH * last.seconds)
        fitting = [size for size in self.sizes if size < _too_large(trained)]
        if not fitting:
            return None
        quick = [size for size in fitting if LEAST_UPDATES * seconds_of(size) <= most] or [min(fitting)]
        size = min(quick, key=lambda size: abs(math.log(size / self.start.batch_size)))
        rates = {round(math.log2(self._at(o.setting, size) / self.start.learning_rate)): o for o in trained}
        step = round(math.log2(PILOT_FACTOR))
        trains = [place for place, o in rates.items() if not _failed(o)]
        if trains and (max(trains) < max(rates) or max(trains) >= PILOT_STEPS * step):
            able = [o for o in trained if not _failed(o) and o.is_held]
            least = min(able, key=lambda o: (o.seconds, -o.setting.learning_rate))
            return Advance(least.setting, GROWTH * least.seconds)
        place = max(rates) + step if trains else min(rates) - step
        if size != last.setting.batch_size and (not failed or last.ended == "out of memory"):
            place = round(math.log2(self._at(last.setting, size) / self.start.learning_rate))
        seconds = max(FIRST_SHARE * limits.total_seconds, LEAST_UPDATES * seconds_of(size))
        wanted = Setting(size, self.start.learning_rate * 2.0**place)
        if any(o.setting == wanted for o in trained) or (self.is_allowed is not None and not self.is_allowed(wanted)):
            return None
        return Advance(wanted, min(seconds, limits.budget_seconds))

    @staticmethod
    def _at(setting: Setting, batch_size: int) -> float:
        """The rate at another batch size by the square-root rule, which lies between those that are seen."""
        return setting.learning_rate * math.sqrt(batch_size / setting.batch_size)

    def _steps(
        self,
        settings: Sequence[Setting],
        observations: Sequence[Observation],
        seconds_of: UpdateSeconds,
        limits: Limits,
    ) -> list[Advance]:
        """Every step that the budget allows."""
        by_setting = {o.setting: o for o in observations}
        too_large = _too_large(observations)
        first = FIRST_SHARE * limits.total_seconds
        farthest = max((o.seconds for o in observations), default=first)
        found = []
        for setting in settings:
            own = by_setting.get(setting)
            if setting.batch_size >= too_large or (own is not None and (own.ended is not None or not own.is_held)):
                continue
            stands = own.seconds if own is not None else 0.0
            least = max(first, LEAST_UPDATES * seconds_of(setting.batch_size))
            place = least if stands == 0.0 else GROWTH * stands
            while True:
                if (place - stands) * limits.overhead > limits.budget_seconds:
                    break
                found.append(Advance(setting, place))
                if place >= farthest or (stands == 0.0 and place >= FIRST_STEPS * least):
                    break
                place *= GROWTH
        return found

    def _cost(
        self, step: Advance, observations: Sequence[Observation], best: Observation | None, limits: Limits
    ) -> float:
        own = next((o for o in observations if o.setting == step.setting), None)
        training = step.seconds - (own.seconds if own is not None else 0.0)
        if self.trains_winner and best is not None and own is not None and own.setting == best.setting:
            training *= 0.1  # it would be trained in any case, unless another one wins
        return max(1e-9, training * limits.overhead)

    def _gains(
        self, speeds: Speeds, steps: Sequence[Advance], best: Setting | None, settings: Sequence[Setting]
    ) -> Floats:
        """Expected log speed that each step adds to that of the best setting."""
        index = {setting: k for k, setting in enumerate(settings)}
        ends = speeds.at_horizon(settings)
        mean = speeds.means(ends)
        weights = [math.log(s.seconds * self.weight(s.setting.batch_size)) for s in steps]
        own = np.array([index[s.setting] for s in steps])
        places = np.column_stack([ends[own, :2], weights])
        variance = np.maximum(speeds.covariances(places, places), 0.0) + speeds.noise_variance(places[:, 2])
        with_own = speeds.covariances(ends[own], places)
        if best is None:
            return np.asarray(np.abs(with_own) / np.sqrt(variance))
        b = index[best]
        # For steps of the best itself, what counts is whether the second best takes its place.
        others = mean.copy()
        others[b] = -np.inf
        rival = np.where(own == b, int(np.argmax(others)), b)
        gap = -np.abs(mean[own] - mean[rival])
        known = np.abs(with_own - speeds.covariances(ends[rival], places)) / np.sqrt(variance)
        known = np.maximum(known, 1e-9)
        return np.asarray(known * norm.pdf(gap / known) + gap * norm.cdf(gap / known))


def _error(observation: Observation, times: float = PILOT_FALL) -> float:
    return times * max(observation.points[0].error, observation.points[-1].error)


def _fell(observation: Observation, times: float = PILOT_FALL, share: float = 0.0) -> bool:
    """Whether a candidate's loss has fallen by clearly more than it scatters, and by a share of the first one."""
    first, last = observation.points[0], observation.points[-1]
    least = max(_error(observation, times), share * abs(first.loss))
    return observation.ended not in ENDED_BADLY and first.loss - last.loss > least


def _too_large(observations: Sequence[Observation]) -> float:
    """The least batch size that ran out of memory; infinite where none has."""
    return min((o.setting.batch_size for o in observations if o.ended == "out of memory"), default=math.inf)


def _failed(observation: Observation) -> bool:
    """Whether training does harm: it diverged, or its loss has risen by clearly more than it scatters."""
    first, last = observation.points[0], observation.points[-1]
    least = max(_error(observation), HARMFUL_RISE * abs(first.loss))
    return observation.ended in ENDED_BADLY or last.loss > first.loss + least


def _improved(observation: Observation) -> bool:
    return observation.ended not in ENDED_BADLY and observation.points[-1].loss < observation.points[0].loss

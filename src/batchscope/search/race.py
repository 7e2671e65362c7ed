"""A search for the setting that is the fastest to a goal: candidates of a source, advanced as a policy says."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from batchscope.records import Goal
from batchscope.search.candidates import Candidate, Observation, Setting, Source
from batchscope.search.forecast import CurveForecast, fit_curve
from batchscope.search.policy import ENDED_BADLY, Advance, Limits, Policy

Floats = NDArray[np.float64]

# What a search may cost where nothing is said: this share of the run that it forecasts, and so many seconds at least.
BUDGET_SHARE, LEAST_SECONDS = 0.25, 10.0
# A step is interrupted where the search has taken so many times its budget.
OVERRUN = 1.1
# Until a forecast exists, a run is taken to be this many times as long as the farthest candidate has trained, and the
# budget follows from so many updates at today's setting: the fastest runs of seven networks take 275 to 2,500.
UNSEEN, FEW_UPDATES = 16.0, 1000
# A forecast from a curve's first moments may be far too long: a budget is no more than so many times the least, or so
# many times the least and what the best candidate has trained.
FIRST_BUDGET, SEEN_BUDGET = 2.0, 4.0
# Of the draws of a run's length: a budget follows the median; settings are compared for the longer ones, and for no
# less than so many times the budget until one reaches the goal. Forecasts from a curve's first moments are far too
# short on real networks, and short runs favour small batches and large rates. In 180 to 270 plays on noisy quadratics
# the mean log regret fell from 0.37 to 0.31.
USUAL, LONG, LEAST_BUDGETS = 0.5, 0.85, 2.0
# A forecast from fewer scores than this says nothing yet: those of the other candidates are taken as well.
LEAST_SCORES = 5
# Fits that are remembered: a step asks for the same curve's several times, for its budget, horizon and progress.
KEPT_FORECASTS = 64

_fitted = functools.lru_cache(maxsize=KEPT_FORECASTS)(fit_curve)


@dataclass
class Budget:
    """What a search may cost.

    Attributes:
        seconds: What was asked for; None: a share of the run that is forecast.
    """

    seconds: float | None

    def limit(self, run_seconds: float, seen_seconds: float = math.inf) -> float:
        """What it may cost in all, as far as is known.

        Args:
            run_seconds: What the whole run is expected to take.
            seen_seconds: What the best candidate has trained, if the run is forecast from that.
        """
        if self.seconds is not None:
            return self.seconds
        most = max(FIRST_BUDGET * LEAST_SECONDS, LEAST_SECONDS + SEEN_BUDGET * seen_seconds)
        return min(max(LEAST_SECONDS, BUDGET_SHARE * run_seconds), most)


@dataclass
class Race:
    """One search.

    Args:
        source: Where candidates come from.
        policy: What to do next.
        goal: What is asked for.
        budget: What it may cost.
        tell: Told of each step before it is made, with the seconds left.
        stopped: Asked between two steps whether to end.
        most_score: What no score exceeds; infinite where that is not known.
        keep_bytes: Memory that candidates may hold between their steps: beyond it the slowest ones are let go of.

    Attributes:
        candidates: All, by setting.
        stop_reason: Why it ended.
        limit_seconds: What it might cost when its last step began.
    """

    source: Source
    policy: Policy
    goal: Goal
    budget: Budget
    tell: Callable[[str, float], None] = lambda label, left: None
    stopped: Callable[[], bool] = lambda: False
    most_score: float = math.inf
    keep_bytes: float = math.inf
    candidates: dict[Setting, Candidate] = field(default_factory=dict)
    stop_reason: str = ""
    limit_seconds: float = 0.0
    steps: int = 0

    def run(self) -> None:
        """Search until the budget is spent, or until looking costs more than it can save."""
        while True:
            if self.stopped():
                self.stop_reason = "it was interrupted"
                return
            total = self.budget_seconds()
            left = total - self.source.elapsed_seconds()
            observations = self.observations()
            if left <= 0 and any(o.points for o in observations):
                self.stop_reason = "the budget was spent"
                return
            guess = self.horizon_seconds(observations)
            step = self.policy.next_step(observations, Limits(left, total, guess, self._overhead(observations)))
            if not isinstance(step, Advance):
                self.stop_reason = step.reason
                return
            self.tell(str(step.setting), left)
            self.limit_seconds = total
            self.source.limit(OVERRUN * total)
            self.advance(step)
            self._let_go()

    def advance(self, step: Advance) -> None:
        """Make one step."""
        candidate = self.candidates.get(step.setting)
        if candidate is None:
            candidate = self.candidates[step.setting] = self.source.open(step.setting)
        candidate.advance(step.seconds)
        self.steps += 1

    def _let_go(self) -> None:
        """Release the slowest candidates while all together hold more memory than they may."""
        held = [c for c in self.candidates.values() if c.memory_bytes]
        spare = sum(c.memory_bytes for c in held) - self.keep_bytes
        if spare <= 0 or len(held) < 2:
            return
        observations = self.observations()
        speeds = self.policy.speeds(observations, self.horizon_seconds(observations))
        mean = speeds.expected([c.setting for c in held])
        for i in np.argsort(mean)[:-1]:
            if spare <= 0:
                return
            spare -= held[i].memory_bytes
            held[i].release()

    def observations(self) -> list[Observation]:
        """All candidates as the policy sees them."""
        return [
            Observation(c.setting, tuple(c.points), c.ended, c.ended is None, c.cost_seconds)
            for c in self.candidates.values()
        ]

    def budget_seconds(self) -> float:
        """What the search may cost in all, as far as is known."""
        return self._budget_for(*self.run_seconds())

    def _budget_for(self, run_seconds: float | None, draws: Floats | None) -> float:
        """The same, for a run that was forecast."""
        best = self._best()
        seen = 0.0 if best is None else best.seconds
        if run_seconds is not None:
            return self.budget.limit(run_seconds, math.inf if draws is None else seen)
        today = next((o for o in self.observations() if o.setting == self.policy.start and o.seconds), None)
        return self.budget.limit(0.0 if today is None else FEW_UPDATES * today.seconds_per_update, seen)

    def _best(self) -> Observation | None:
        observations = self.observations()
        return self.policy.best(observations, self._unseen(observations)) if observations else None

    def run_seconds(self) -> tuple[float | None, Floats | None]:
        """Length of the whole run at the best setting, and draws of it; None before its curve says anything."""
        if self.goal.kind == "seconds":
            return self.goal.value, None
        best = self._best()
        if best is None:
            return None, None
        if self.goal.kind == "examples":
            last = best.points[-1]
            return last.seconds / last.examples * self.goal.value, None
        if best.reached is not None:
            return best.reached.seconds, None
        law = self.forecast(best, self._unseen(self.observations()))
        if law is None:
            return None, None
        draws = law.seconds_to(self.goal.value)
        if not law.in_sight:
            return None, None
        return max(float(np.quantile(draws, USUAL)), best.seconds), draws

    def forecast(self, candidate: Observation, run_seconds: float) -> CurveForecast | None:
        """The law of a candidate's scores; None where too few were seen, or where they do not rise.

        Where it has too few of its own, those of all candidates count, each at the time when this one is where that one
        was: two curves of one network are one curve at two speeds.

        Args:
            candidate: Whose.
            run_seconds: Length of the run that speeds are compared for.
        """
        own = _scored(candidate)
        if len(own) < LEAST_SCORES and not candidate.reached:
            own = self.pooled_scores(candidate, run_seconds)
            if len(own) < LEAST_SCORES:
                return None
        law = _fitted(tuple(seconds for seconds, _ in own), tuple(score for _, score in own), most=self.most_score)
        if law is None or self.goal.kind != "target":
            return law
        return law.reaching(self.goal.value, candidate.seconds_per_update)

    def pooled_scores(self, candidate: Observation, run_seconds: float) -> list[tuple[float, float]]:
        """Seconds and scores of all candidates, at the speed of one of them.

        Args:
            candidate: That one.
            run_seconds: Length of the run that speeds are compared for.
        """
        observations = self.observations()
        able = [o for o in observations if o.ended not in ENDED_BADLY]
        mean = self.policy.speeds(observations, run_seconds).expected([o.setting for o in able])
        speed = dict(zip([o.setting for o in able], mean, strict=True))
        own = speed[candidate.setting] + math.log(self.policy.weight(candidate.setting.batch_size))
        found = []
        for o in able:
            ratio = math.exp(speed[o.setting] - own) * self.policy.weight(o.setting.batch_size)
            found += [(seconds * ratio, score) for seconds, score in _scored(o)]
        return sorted(found)

    def horizon_seconds(self, observations: Sequence[Observation]) -> float:
        """How long the run is that settings are compared for: as forecast, and no shorter than that is sure."""
        run_seconds, draws = self.run_seconds()
        if run_seconds is None:
            return self.guessed_seconds(observations)
        if draws is None or any(o.reached for o in observations):
            return run_seconds
        long = max(float(np.quantile(draws, LONG)), LEAST_BUDGETS * self._budget_for(run_seconds, draws))
        return min(max(long, run_seconds), max(self.guessed_seconds(observations), run_seconds))

    def guessed_seconds(self, observations: Sequence[Observation]) -> float:
        """What a whole run is taken to last until a forecast says more: what the budget is meant for, or longer."""
        return max(self._unseen(observations), self.budget.limit(0.0) / BUDGET_SHARE)

    def _unseen(self, observations: Sequence[Observation]) -> float:
        return UNSEEN * max((o.seconds for o in observations), default=1.0)

    def _overhead(self, observations: Sequence[Observation]) -> float:
        training = sum(o.seconds for o in observations)
        if training <= 0:
            return 1.0
        return min(max(self.source.elapsed_seconds() / training, 1.0), 4.0)


def _scored(observation: Observation) -> list[tuple[float, float]]:
    """Seconds and scores of a candidate, where it was evaluated."""
    points = [p for p in observation.points if p.score is not None and math.isfinite(p.score) and p.seconds > 0]
    return [(p.seconds, p.score or 0.0) for p in points]

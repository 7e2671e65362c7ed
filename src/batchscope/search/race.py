"""A search for the setting that is the fastest to a goal: candidates of a source, advanced as a policy says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from batchscope.records import Goal
from batchscope.search.candidates import Candidate, Observation, Setting, Source
from batchscope.search.forecast import CurveForecast, fit_curve
from batchscope.search.policy import Advance, Limits, Policy

# What a search may cost where nothing is said: this share of the run that it forecasts, and so many seconds at least.
BUDGET_SHARE, LEAST_SECONDS = 0.25, 10.0
# A step is interrupted where the search has taken so many times its budget.
OVERRUN = 1.1
# Until a forecast exists, a run is taken to be this many times as long as the farthest candidate has trained.
UNSEEN = 16.0
# Of the draws of a run's length: a budget follows the shorter ones, so that a long tail is not paid for; what a search
# can save is worked out for the longer ones, so that it does not end for a forecast from a curve's first moments.
SHORT, LONG = 0.35, 0.65
# A forecast from fewer scores than this says nothing yet.
LEAST_SCORES = 5


@dataclass
class Budget:
    """What a search may cost.

    Attributes:
        seconds: What was asked for; None: a share of the run that is forecast.
    """

    seconds: float | None

    def limit(self, run_seconds: float | None) -> float:
        """What it may cost in all, as far as is known.

        Args:
            run_seconds: Forecast of the whole run; None: there is none yet.
        """
        if self.seconds is not None:
            return self.seconds
        return LEAST_SECONDS if run_seconds is None else max(LEAST_SECONDS, BUDGET_SHARE * run_seconds)


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
    steps: int = 0

    def run(self) -> None:
        """Search until the budget is spent, or until looking costs more than it can save."""
        while True:
            if self.stopped():
                self.stop_reason = "it was interrupted"
                return
            run_seconds, _ = self.run_seconds()
            total = self.budget.limit(run_seconds)
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
        mean, _ = self.policy.speeds(observations, self.horizon_seconds(observations)).posterior(
            [c.setting for c in held]
        )
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

    def run_seconds(self) -> tuple[float | None, CurveForecast | None]:
        """Forecast of the whole run at the best setting; None before its curve says anything."""
        if self.goal.kind == "seconds":
            return self.goal.value, None
        observations = self.observations()
        best = self.policy.best(observations, self._unseen(observations)) if observations else None
        if best is None:
            return None, None
        if self.goal.kind == "examples":
            last = best.points[-1]
            return last.seconds / last.examples * self.goal.value, None
        if best.reached is not None:
            return best.reached.seconds, None
        law = forecast_of(best, self.most_score)
        if law is None:
            return None, None
        draws = law.seconds_to(self.goal.value)
        finite = draws[np.isfinite(draws)]
        if not len(finite):
            return None, law
        return max(float(np.quantile(finite, SHORT)), best.seconds), law

    def horizon_seconds(self, observations: Sequence[Observation]) -> float:
        """How long the run is that settings are compared for: as forecast, and no shorter than that is sure."""
        run_seconds, law = self.run_seconds()
        if run_seconds is None:
            return self.guessed_seconds(observations)
        if law is None:
            return run_seconds
        draws = law.seconds_to(self.goal.value)
        long = float(np.quantile(draws, LONG, method="nearest"))
        return min(max(long, run_seconds), max(self.guessed_seconds(observations), run_seconds))

    def guessed_seconds(self, observations: Sequence[Observation]) -> float:
        """What a whole run is taken to last until a forecast says more: what the budget is meant for, or longer."""
        return max(self._unseen(observations), self.budget.limit(None) / BUDGET_SHARE)

    def _unseen(self, observations: Sequence[Observation]) -> float:
        return UNSEEN * max((o.seconds for o in observations), default=1.0)

    def _overhead(self, observations: Sequence[Observation]) -> float:
        training = sum(o.seconds for o in observations)
        if training <= 0:
            return 1.0
        return min(max(self.source.elapsed_seconds() / training, 1.0), 4.0)


def forecast_of(observation: Observation, most: float = math.inf, *, least: int = LEAST_SCORES) -> CurveForecast | None:
    """The law of a candidate's scores.

    Args:
        observation: The candidate.
        most: What no score exceeds.
        least: Scores that there must be.

    Returns:
        The law; None where there are fewer scores, or where they do not rise.
    """
    scored = [p for p in observation.points if p.score is not None and math.isfinite(p.score) and p.seconds > 0]
    if len(scored) < least:
        return None
    return fit_curve([p.seconds for p in scored], [p.score or 0.0 for p in scored], most=most)

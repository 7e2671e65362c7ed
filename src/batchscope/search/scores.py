"""What a setting scores after some seconds: the curve of the best one, at the setting's own speed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from batchscope.records import ForecastPoint, Interval
from batchscope.search.answer import LEVEL, Answer, SizeAnswer, interval
from batchscope.search.forecast import CurveForecast
from batchscope.search.study import Study

Floats = NDArray[np.float64]

# The forecast of each batch size reaches from this share of the time to the goal to this many times as long.
FORECAST_FROM, FORECAST_TO, FORECAST_POINTS = 1 / 16, 4.0, 13
# How well a speed is known enters a score by these quantiles of it.
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)


class Scores:
    """Scores of every setting at any time.

    Args:
        study: A search that was run.
        answer: What it found.
    """

    def __init__(self, study: Study, answer: Answer) -> None:
        self._answer, self._weight = answer, study.race.policy.weight
        self._own = answer.of(answer.best.batch_size)
        self._most = study.race.most_score
        best = next(o for o in study.race.observations() if o.setting == answer.best)
        own = [(p.seconds, p.score) for p in best.points if p.score is not None and p.seconds > 0]
        self._highest = max((score for _, score in own), default=None)
        self._law = answer.law

    def _draws(self, law: CurveForecast, seconds: float) -> Floats:
        return np.minimum(self._most, law.score_at(max(seconds, 1e-9)))

    def at(self, each: SizeAnswer, seconds: float) -> Interval:
        """The score after some seconds of training.

        Args:
            each: The setting.
            seconds: Of training in all.

        Returns:
            The score; unresolved, with the best one that was seen as its lower bound, where too few were seen.
        """
        if self._law is None or not math.isfinite(seconds):
            return Interval.unresolved(LEVEL, low=self._highest)
        weight = self._weight(each.setting.batch_size) / self._weight(self._answer.best.batch_size)
        speeds = np.exp(np.quantile(each.log_speed - self._own.log_speed, QUANTILES))
        return interval(np.concatenate([self._draws(self._law, seconds * float(speed) * weight) for speed in speeds]))

    def forecast(self, each: SizeAnswer, goal_seconds: float) -> tuple[ForecastPoint, ...]:
        """Scores about the time to the goal; none where they are not known.

        Args:
            each: The setting.
            goal_seconds: The time.
        """
        if self._law is None or not math.isfinite(goal_seconds):
            return ()
        places = np.geomspace(FORECAST_FROM * goal_seconds, FORECAST_TO * goal_seconds, FORECAST_POINTS)
        per_second = each.setting.batch_size / each.step_seconds
        return tuple(
            ForecastPoint(max(1, round(place * per_second)), float(place), self.at(each, float(place)))
            for place in places
        )

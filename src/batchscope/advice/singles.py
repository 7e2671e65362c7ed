"""Runs side by side that cannot be stacked: each makes its way to the next evaluation, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from batchscope.records import CurvePoint, Outcome, Plan, TrainResult
from batchscope.training.evaluation import EvaluationData
from batchscope.training.loop import Prepared, Run


class Singles:
    """Does what :class:`batchscope.training.replicas.Replicas` does, with single runs.

    Args:
        prepared: The workload, with its data on the device.
        plans: One for each.
        seeds: One for each.
        next_place: Examples at which the next evaluation is due, after so many.
        validation: What to evaluate on; None: the workload's validation set.
        on_evaluation: Called after each evaluation with the run's position and the point.

    Attributes:
        live: Positions of those that have not ended.
        results: Of those that have.
    """

    def __init__(
        self,
        prepared: Prepared,
        plans: Sequence[Plan],
        seeds: Sequence[int],
        *,
        next_place: Callable[[int], int],
        validation: EvaluationData | None,
        on_evaluation: Callable[[int, CurvePoint], None],
    ) -> None:
        def told(k: int, point: CurvePoint, seconds_left: float | None) -> None:
            on_evaluation(k, point)

        self._runs = [
            Run(
                prepared,
                plan,
                seed=seed,
                next_place=next_place,
                validation=validation,
                keep_best_weights=False,
                evaluate_training=False,
                measure_memory=False,
                on_evaluation=partial(told, k),
            )
            for k, (plan, seed) in enumerate(zip(plans, seeds, strict=True))
        ]
        self.live = set(range(len(plans)))
        self.results: list[TrainResult | None] = [None] * len(plans)

    def advance(self) -> bool:
        """Train all until the next evaluation.

        Returns:
            Whether any has not ended yet.
        """
        for k in sorted(self.live):
            result = self._runs[k].advance()
            if result is not None:
                self.results[k] = replace(result, state=self.state_of(k, averaged=True))
                self.live.discard(k)
        return bool(self.live)

    def as_they_stand(self) -> dict[int, tuple[float, float]]:
        """Loss and score of the live runs' weights themselves, by position."""
        return {k: self._runs[k].as_it_stands() for k in sorted(self.live)}

    def judge_anew(self, validation: EvaluationData, target: float | None) -> None:
        """Go on by other examples and to another target, beginning with an evaluation of where the runs stand."""
        for k in sorted(self.live):
            result = self._runs[k].judge_anew(validation, target)
            if result is not None:
                self.results[k] = replace(result, state=self.state_of(k, averaged=True))
                self.live.discard(k)

    def multiply_rates(self, factor: float) -> None:
        """From now on the learning rates of the live runs are so many times what they were."""
        for k in self.live:
            self._runs[k].multiply_rates(factor)

    def stop(self, runs: Collection[int], outcome: Outcome) -> None:
        """End some."""
        for k in self.live.intersection(runs):
            self.results[k] = self._runs[k].stopped(outcome)
            self.live.discard(k)

    def state_of(self, run: int, *, averaged: bool = False) -> dict[str, Any] | None:
        """A copy of a run's weights, as they are evaluated or as they stand."""
        return self._runs[run].state(averaged=averaged)

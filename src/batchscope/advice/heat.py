"""The candidates of one batch size, trained side by side and judged at the same places."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from batchscope.advice.anytime import AnytimeRate
from batchscope.advice.judge import FASTER, Judge
from batchscope.advice.singles import Singles
from batchscope.errors import RunError
from batchscope.records import CurvePoint, Plan, RacePoint, TrainResult
from batchscope.seeding import derive, isolated
from batchscope.training.averaging import POWER
from batchscope.training.loop import Prepared
from batchscope.training.replicas import Replicas

# Evaluations lie this far apart on the way, as a share of what was trained before.
PLACE_RATIO = 1.3
# The first one comes after so many updates, and no sooner than this share of the validation set, whose evaluation
# costs about a third of training on it.
FIRST_UPDATES, FIRST_SHARE = 6, 0.75
# Two evaluations lie no nearer than this share of the examples that one of them takes, in each way of judging.
LEAST_SHARE = 0.5
# For a target that is reached sooner than that.
EARLY_RATIO, EARLY_SHARE = 1.15, 0.02
# Of the candidate that is trained to the end.
FINAL_RATIO, FINAL_SHARE = 1.05, 0.5
# One batched pass for all candidates up to so many operations of an update; above, one after the other is as fast.
BATCHED_FLOPS = 60e6


@dataclass
class Entrant:
    """One learning rate in a heat.

    Attributes:
        learning_rate: The rate.
        points: How it stood at each evaluation, as it is judged.
        planned: How it would have stood there as a plan ends, with averaged weights; the same list where those are what
            it is judged by.
        ended: What ended it, in words; None while it runs.
    """

    learning_rate: float
    points: list[RacePoint] = field(default_factory=list)
    planned: list[RacePoint] = field(default_factory=list)
    ended: str | None = None

    @property
    def last(self) -> RacePoint | None:
        """How it stands."""
        return self.points[-1] if self.points else None


class Heat:
    """Candidates of one batch size and seed.

    Args:
        prepared: The workload, with its data on the device.
        batch_size: Examples per update.
        learning_rates: The candidates, ascending.
        seed: Of all of them: the same weights to begin with, and the same order of the data.
        seconds_per_update: On the virtual clock: measured, of a run trained alone.
        budget_examples: Where every run ends.
        judge: What they are judged by.
        target: The score that is to be reached; None: none is.
        to_train: Whether candidates that have reached it are not ended, since one may be trained on.
        averaging: Whether to average weights, and to judge by the average.
        as_they_stand: Whether to judge by the weights as they stand all the same.
        stacked: Whether the workload can be trained in a stack.
        early: Whether to look from the first updates on, and more often.
        first_updates: Updates before the first evaluation, at least.

    Raises:
        WorkloadError: No stack can be made of this workload.
        MemoryError: The stack does not fit into memory.
    """

    def __init__(
        self,
        prepared: Prepared,
        batch_size: int,
        learning_rates: Sequence[float],
        *,
        seed: int,
        seconds_per_update: float,
        budget_examples: int,
        judge: Judge,
        target: float | None = None,
        to_train: bool = False,
        averaging: bool = True,
        as_they_stand: bool = False,
        stacked: bool = True,
        early: bool = False,
        first_updates: int = FIRST_UPDATES,
    ) -> None:
        self.judge, self.target, self.to_train = judge, target, to_train
        self.batch_size, self.seed, self.seconds_per_update = batch_size, seed, seconds_per_update
        self.entrants = [Entrant(rate) for rate in learning_rates]
        self.judges_both_ways = averaging and as_they_stand
        if not self.judges_both_ways:
            for entrant in self.entrants:
                entrant.planned = entrant.points
        self._offsets: tuple[float, float] | None = None  # the judge's own
        self._final = False  # whether one is trained to the end
        self.seconds_spent = 0.0
        self.examples_spent = 0
        began = time.perf_counter()
        flops = prepared.flops_per_example
        self._gap = 0 if early else round(LEAST_SHARE * judge.examples * (2 if self.judges_both_ways else 1))
        self._ratio = EARLY_RATIO if early else PLACE_RATIO
        usual = max(first_updates * batch_size, round(FIRST_SHARE * judge.examples))
        self._first = max(batch_size, round(EARLY_SHARE * judge.examples)) if early else usual
        plans = [
            Plan(
                batch_size=batch_size,
                learning_rate=rate,
                examples=budget_examples,
                shape="constant",
                averaging=POWER if averaging else None,
            )
            for rate in learning_rates
        ]
        seeds = [derive(seed, "race") % 2**31] * len(plans)
        together: dict[str, Any] = {
            "next_place": self._next_place,
            "validation": judge.data,
            "on_evaluation": self._evaluated,
        }
        self._runs: Replicas | Singles
        if stacked:
            self.in_turn = prepared.device.type == "cpu" and flops is not None and flops * batch_size > BATCHED_FLOPS
            self._runs = Replicas(prepared, plans, seeds, in_turn=self.in_turn, keep_weights=True, **together)
        else:
            self.in_turn = True
            self._runs = Singles(prepared, plans, seeds, **together)
        self.seconds_spent += time.perf_counter() - began

    @property
    def live(self) -> list[Entrant]:
        """Candidates that have not ended."""
        return [self.entrants[k] for k in sorted(self._runs.live) if self.entrants[k].ended is None]

    @property
    def examples(self) -> int:
        """Examples that the farthest has been trained on."""
        return max((e.last.examples for e in self.entrants if e.last), default=0)

    @property
    def virtual_seconds(self) -> float:
        """Where it stands on the virtual clock."""
        return self.examples / self.batch_size * self.seconds_per_update

    @property
    def best(self) -> Entrant | None:
        """The candidate of least loss among those that got farthest, diverged ones apart."""
        there = [
            e for e in self.entrants if e.last is not None and e.ended != "diverged" and math.isfinite(e.last.loss)
        ]
        if not there:
            return None
        reached = [e for e in there if e.ended == "reached"]
        if reached:
            return min(reached, key=lambda e: e.points[-1].examples)
        farthest = max(e.points[-1].examples for e in there)
        return min((e for e in there if e.points[-1].examples == farthest), key=lambda e: e.points[-1].loss)

    def advance(self) -> None:
        """Train all that have not ended until the next evaluation."""
        began, before = time.perf_counter(), self.examples
        alive = len(self._runs.live)
        self._runs.advance()
        if self.judges_both_ways:
            self._judge_as_they_stand()
        self.examples_spent += alive * (self.examples - before)
        self.seconds_spent += time.perf_counter() - began
        for entrant, result in zip(self.entrants, self._runs.results, strict=True):
            if result is not None and entrant.ended is None:
                entrant.ended = result.outcome
        self._end_those_there()

    def _end_those_there(self) -> None:
        """Candidates that have reached the target are at their goal."""
        there = [e for e in self.live if self.target is not None and e.last and e.last.score >= self.target]
        for entrant in there:
            entrant.ended = "reached"
        if there and not self.to_train:
            self._runs.stop([self.entrants.index(e) for e in there], "reached")

    def state_of(self, entrant: Entrant) -> dict[str, Any] | None:
        """A candidate's weights as they stand; None where they were let go of."""
        return self._runs.state_of(self.entrants.index(entrant))

    def finish(
        self,
        entrant: Entrant,
        stopped: Callable[[], bool],
        *,
        learning_rate: float | None = None,
        rate: AnytimeRate | None = None,
        most_examples: float = math.inf,
    ) -> TrainResult:
        """Train a candidate to its end, the others given up.

        Args:
            entrant: Which.
            stopped: Asked between two evaluations whether to end.
            learning_rate: What it goes on with; None: with its own.
            rate: What that is multiplied by as it goes on; None: by one.
            most_examples: Where it ends, at the first evaluation from there on, if it has not got to its goal.

        Returns:
            Its result, with the weights that were evaluated last.
        """
        k = self.entrants.index(entrant)
        self.drop([other for other in self.entrants if other is not entrant], "another one was trained to the end")
        # From here on by all of the validation set, and to the goal itself.
        self._final = True
        self._offsets = (0.0, 0.0)
        already = len(entrant.planned)
        self._runs.judge_anew(self.judge.prepared.validation, self.target)
        present = entrant.learning_rate
        full = learning_rate or present
        while k in self._runs.live and not stopped() and entrant.planned[-1].examples < most_examples:
            wanted = full if rate is None else full * rate.after(entrant.planned[already:])
            if wanted != present:
                self._runs.multiply_rates(wanted / present)
                present = wanted
            self._runs.advance()
        self._runs.stop([k], "interrupted" if stopped() else "finished")
        result = self._runs.results[k]
        if result is None:
            raise RunError(
                "a candidate that has ended must have a result", got=f"learning rate {entrant.learning_rate:g}"
            )
        return result if result.state is not None else replace(result, state=self._runs.state_of(k, averaged=True))

    def model_of(self, entrant: Entrant) -> nn.Module | None:
        """A candidate as it is judged; None where its weights were let go of."""
        state = self._runs.state_of(self.entrants.index(entrant), averaged=True)
        if state is None:
            return None
        prepared = self.judge.prepared
        with isolated(0, prepared.device):
            model = prepared.workload.model().to(prepared.device)
        model.load_state_dict(state)
        return model

    def shift(self, loss: float, score: float) -> None:
        """Move all that was judged so far, where the judge was found to be off."""
        for entrant in self.entrants:
            for points in (entrant.points, entrant.planned) if self.judges_both_ways else (entrant.points,):
                points[:] = [replace(p, loss=p.loss + loss, score=p.score + score) for p in points]

    def drop(self, entrants: Sequence[Entrant], reason: str) -> None:
        """End some candidates.

        Args:
            entrants: Which.
            reason: Why, in words.
        """
        self._runs.stop([self.entrants.index(e) for e in entrants], "pruned")
        for entrant in entrants:
            if entrant.ended is None:
                entrant.ended = reason

    def valley(self, examples: int) -> tuple[list[float], list[float]]:
        """Rates and their losses at one place, those that diverged before it infinite.

        Args:
            examples: The place.
        """
        pairs = []
        for entrant in self.entrants:
            losses = [point.loss for point in entrant.points if point.examples == examples]
            if losses:
                pairs.append((entrant.learning_rate, losses[0] if math.isfinite(losses[0]) else math.inf))
            elif entrant.ended == "diverged":
                pairs.append((entrant.learning_rate, math.inf))
        pairs.sort()
        return [rate for rate, _ in pairs], [loss for _, loss in pairs]

    def _next_place(self, examples: int) -> int:
        if self._final:
            # As many examples are overshot as evaluations cost, about, if the goal lies as far ahead as the way so far.
            whole = self.judge.prepared.workload.validation_examples
            gap = max(FINAL_SHARE * whole, math.sqrt(2 * whole / FASTER * examples))
            return max(math.ceil(examples * FINAL_RATIO), examples + math.ceil(gap))
        return max(self._first, math.ceil(examples * self._ratio), examples + self._gap)

    def _evaluated(self, k: int, point: CurvePoint) -> None:
        self.entrants[k].planned.append(self._seen(point, point.validation_loss, point.score))

    def _judge_as_they_stand(self) -> None:
        """Take in how the live ones stand themselves, beside their averages."""
        found = self._runs.as_they_stand()
        for k, entrant in enumerate(self.entrants):
            for point in entrant.planned[len(entrant.points) :]:
                if point.examples == 0:  # there is no average yet
                    entrant.points.append(point)
                elif k in found:
                    entrant.points.append(self._seen(point, *found[k]))

    def _seen(self, point: CurvePoint | RacePoint, loss: float, score: float) -> RacePoint:
        offsets = self._offsets or (self.judge.loss_offset, self.judge.score_offset)
        return RacePoint(
            examples=point.examples,
            iterations=point.iterations,
            seconds=point.iterations * self.seconds_per_update,
            loss=loss + offsets[0],
            score=score + offsets[1],
        )

"""What the curves so far say about every batch size and the goal: time, examples, score, and which is best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchscope.fit.learning_curve import CriticalPrior, Curve, LearningCurve, fit_learning_curve
from batchscope.records import Goal

Floats = NDArray[np.float64]

# Batch sizes whose time is within this share of the least are as good as the best, for all that a person would notice.
NEAR = 0.03
LEAST_POINTS = 4
# A batch size is most unlikely to be as good as the best below this share of the draws.
UNLIKELY = 0.03
# A target that most draws do not reach is out of reach.
LIKELY = 0.5
# Learning curves bend beyond what was seen of them. So far as a goal lies ahead, in e-folds of effective examples, the
# examples that it takes are known to this share of that: in recordings of three networks, cut off at a quarter to all
# of the way, intervals of 90% hold the truth in 83% of cases with this and INDEPENDENCE, and in 76% with neither.
BENDING = 0.5
# Where a goal is out of reach, sizes are told apart at so many times the effective examples that were seen.
SOME_WAY = 4.0
# Of the scatter of single runs about the law, the part that a difference must exceed to be noticed.
HIDDEN = 0.5


@dataclass(frozen=True)
class Beyond:
    """How many times as many examples a goal may take as the law says, in each draw.

    Attributes:
        law: The law of minus the scores.
        seen: The most effective examples that a curve has, in each draw.
        bent: To the power of this goes how many times as many lie ahead: the same for all sizes, which share the curve.
    """

    law: LearningCurve
    seen: Floats
    bent: Floats

    def __call__(self, size: int, examples: Floats) -> Floats:
        """The factor, after so many examples in each draw; 1 where no more than was seen, or where there is no end."""
        known = np.isfinite(examples)
        effective = self.law.effective(size, np.where(known, examples, 1.0))
        return np.asarray(np.where(known, np.maximum(effective / self.seen, 1.0), 1.0) ** self.bent)


@dataclass(frozen=True)
class Outlook:
    """Draws of what each batch size costs, for the goal.

    Attributes:
        goal: What is asked for.
        loss: The law of the losses.
        score: The law of minus the scores.
        sizes: Batch sizes, ascending.
        examples: Examples to the goal: a row for each size, a column for each draw.
        seconds: Seconds of training to the goal, likewise.
        scores: Scores at the goal, likewise.
        beyond: What the curves make of examples beyond those that were seen of them.
        pace: Seconds to the same effective examples at each size, some way beyond those that were seen, likewise: what
            tells sizes apart where the goal is reached by none.
        weights: What a second counts for at each size, where time is not all that counts.
    """

    goal: Goal
    loss: LearningCurve
    score: LearningCurve
    sizes: tuple[int, ...]
    examples: Floats
    seconds: Floats
    scores: Floats
    beyond: Beyond
    pace: Floats
    weights: Floats

    def scores_after(self, size: int, examples: Floats | float) -> Floats:
        """Scores that a batch size reaches, in each draw.

        Args:
            size: Any batch size.
            examples: One number, or one for each draw.
        """
        counted = np.broadcast_to(np.asarray(examples, dtype=float), (self.score.draws,))
        return np.asarray(-self.score.values(size, counted * self.beyond(size, counted)))

    @property
    def costs(self) -> Floats:
        """What is to be least: weighted seconds to the target, or minus the score, a row for each size."""
        return self.seconds * self.weights if self.goal.kind == "target" else -self.scores

    @property
    def regrets(self) -> Floats:
        """By how much each size costs more than the best one, in each draw: a share of its time, or a score."""
        costs = self.costs
        least = costs.min(axis=0)
        if self.goal.kind != "target":
            return np.asarray(costs - least)
        pace = self.pace * self.weights
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(np.isfinite(least), costs / least, pace / pace.min(axis=0)) - 1)

    @property
    def tolerance(self) -> float:
        """A regret that nobody would notice: a share of the time, or of what the last doubling gained in score."""
        if self.goal.kind == "target":
            return NEAR
        law = self.score
        # What one run differs from the next by hides what lies below it.
        scatter = HIDDEN * law.relative_error * float(np.median(law.gap))
        return max(NEAR * float(np.median(law.gap * (2.0**law.exponent - 1))), scatter)

    @property
    def is_in_reach(self) -> bool:
        """Whether some size is likelier than not to get to the goal."""
        return bool((np.isfinite(self.costs).mean(axis=1) >= LIKELY).any())

    def near_best(self) -> dict[int, float]:
        """How likely each size is to be as good as the best."""
        return dict(zip(self.sizes, (self.regrets <= self.tolerance).mean(axis=1).tolist(), strict=True))

    def best(self) -> int:
        """The size of least regret, on the average of the draws, very large regrets cut off."""
        return self.sizes[int(np.argmin(self._mean_regrets()))]

    def rate_examples(self, size: int) -> float:
        """The length of training that a size's learning rate is chosen for: the geometric mean of the draws.

        Where it is not given, no draw counts for more than some times what was seen: laws foretell far too much as
        easily as far too little, and a rate that is too small loses what one that is too large does.
        """
        examples = self.examples[self.sizes.index(size)]
        if self.goal.kind == "target":
            examples = np.minimum(examples, self.score.examples_for(size, SOME_WAY * self.beyond.seen))
        return float(np.exp(np.log(np.maximum(examples, 1.0)).mean()))

    def mean_regret(self, size: int) -> float:
        """The expected regret of a size, very large ones cut off."""
        return float(self._mean_regrets()[self.sizes.index(size)])

    def as_good(self, among: Sequence[int]) -> list[int]:
        """Sizes whose mean regret is within the tolerance of the least one's.

        Args:
            among: Those that come into question, at least one.
        """
        means = dict(zip(self.sizes, self._mean_regrets(), strict=True))
        least = min(means[size] for size in among)
        return [size for size in among if means[size] <= least + self.tolerance]

    def _mean_regrets(self) -> Floats:
        return np.asarray(np.minimum(self.regrets, 100 * self.tolerance).mean(axis=1))


def quantiles(draws: Floats, *shares: float) -> list[float]:
    """The draws at some shares of them, in order; infinities come last, which numpy's own would turn into nan.

    Args:
        draws: At least one.
        shares: From 0 to 1.

    Examples:
        >>> quantiles(np.array([3.0, np.inf, 1.0]), 0.0, 0.5, 1.0)
        [1.0, 3.0, inf]
    """
    ordered = np.sort(draws)
    return [float(ordered[round(share * (len(ordered) - 1))]) for share in shares]


def find_outlook(
    goal: Goal,
    losses: Sequence[Curve],
    scores: Sequence[Curve],
    sizes: Sequence[int],
    seconds_per_update: Callable[[int], float],
    *,
    relative_error: Callable[[int], float] = lambda batch_size: 0.0,
    critical: CriticalPrior | None = None,
    weight: Callable[[int], float] = lambda batch_size: 1.0,
    seed: int = 0,
) -> Outlook | None:
    """Fit the laws to what the race has seen, and work out every batch size.

    Args:
        goal: What is asked for.
        losses: Curves of the losses.
        scores: Curves of minus the scores of the same runs.
        sizes: Batch sizes to work out, ascending.
        seconds_per_update: Time of an update of a batch size.
        relative_error: How well that is known, as a share of it.
        critical: What is known of the critical batch size beside the curves.
        weight: What a second counts for at a batch size, where time is not all that counts.
        seed: Of the draws.

    Returns:
        The outlook; None where there are too few points, or nothing was gained between them.
    """
    if sum(len(curve.examples) for curve in losses) < LEAST_POINTS:
        return None
    if any(_flat(curves) for curves in (losses, scores)):
        return None
    loss = fit_learning_curve(losses, critical=critical, seed=seed)
    score = fit_learning_curve(scores, shared=loss, seed=seed + 1)
    rows: list[tuple[Floats, ...]] = []
    generator = np.random.default_rng(seed)
    seen = np.max([score.effective(curve.batch_size, curve.examples[-1]) for curve in scores], axis=0)
    beyond = Beyond(score, seen, BENDING * generator.standard_normal(score.draws))
    for size in sizes:
        errors = np.exp(relative_error(size) * generator.standard_normal(score.draws))
        per_example = seconds_per_update(size) / size * errors
        if goal.kind == "target":
            examples = score.examples_to(size, -goal.value)
            examples = examples * beyond(size, examples)
            reached = np.full(score.draws, goal.value)
        else:
            examples = np.full(score.draws, goal.value) if goal.kind == "examples" else goal.value / per_example
            reached = -score.values(size, examples * beyond(size, examples))
        rows.append(
            (examples, examples * per_example, reached, score.examples_for(size, SOME_WAY * seen) * per_example)
        )
    examples, seconds, reached, pace = (np.stack([row[i] for row in rows]) for i in range(4))
    weights = np.array([[weight(size)] for size in sizes], dtype=float)
    return Outlook(goal, loss, score, tuple(sizes), examples, seconds, reached, beyond, pace, weights)


def _flat(curves: Sequence[Curve]) -> bool:
    values = [value for curve in curves for value in curve.values]
    return max(values) <= min(values)

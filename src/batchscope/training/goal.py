"""Checking a target before it is trained for: what fresh weights score, and a few updates later."""

from __future__ import annotations

import torch

from batchscope.records import CurvePoint, Plan
from batchscope.seeding import derive, isolated
from batchscope.training.evaluation import EvaluationData, evaluate
from batchscope.training.loop import Prepared, Run
from batchscope.training.threads import compute_threads
from batchscope.workload.goal import check_target, perfect_score
from batchscope.workload.workload import Workload

# A score within 2% of a fraction's is enough to see its scale: √(¼/1024) is 1.6%.
EXAMPLES = 1024
# Updates that move a score off its first value, where that alone does not decide.
UPDATES = 8
# Evaluations of a run that are looked at: later ones say nothing about fresh weights.
LOOKS = 3


def check_goal(prepared: Prepared, target: float, *, seed: int = 0) -> None:
    """Refuse a target that cannot be meant, before anything is trained for it.

    Fresh weights are evaluated on up to 1,024 validation examples, and on all of them before a target is called
    reached. Eight updates at the workload's own setting follow only where a target above 1 and fresh weights leave it
    open. All of it takes one thread, so that processes can be forked afterwards.

    Args:
        prepared: The workload, with its data on the device.
        target: The validation score to reach.
        seed: Of the fresh weights.

    Raises:
        ArgumentError: Such a target (:func:`batchscope.workload.goal.check_target`).

    Examples:
        >>> from batchscope.workload.digits import digits
        >>> check_goal(Prepared(digits(), torch.device("cpu")), 0.97)
    """
    workload, device = prepared.workload, prepared.device
    with compute_threads(0.0, torch.device("cpu")):
        with isolated(derive(seed, "weights"), device):
            model = workload.model().to(device)
        some = EvaluationData(workload, "validation", device, most=EXAMPLES)
        whole = workload.validation_examples <= EXAMPLES
        score = evaluate(model, some)[1]
        if target <= score and not whole:
            score = evaluate(model, prepared.validation)[1]
        scores, perfect = [score], perfect_score(workload)
        if target > 1 and perfect is None and score >= 0:
            plan = Plan(batch_size=workload.batch_size, learning_rate=workload.learning_rate, iterations=UPDATES)
            run = Run(
                prepared,
                plan,
                seed=seed,
                evaluate_every=plan.budget_examples,
                validation=some,
                keep_best_weights=False,
                evaluate_training=False,
                measure_memory=False,
            )
            scores = [score, *(point.score for point in run().curve[1:])]
    check_target(target, scores, perfect=perfect, minus_loss=workload.score is None)


class GoalWatch:
    """The same check by the first evaluations of a run under way, at no cost beside it.

    Args:
        workload: What is trained.
        target: The score to reach; None: nothing is checked.
        fresh: Whether the run begins with fresh weights.
    """

    def __init__(self, workload: Workload, target: float | None, *, fresh: bool) -> None:
        self.workload, self.target, self.fresh = workload, target, fresh
        self._scores: list[float] = []
        self._perfect: float | None = None

    def point(self, point: CurvePoint) -> None:
        """Look at an evaluation.

        Args:
            point: The run's latest; the first one is of its initial weights unless it was resumed.

        Raises:
            ArgumentError: A target that cannot be meant.
        """
        if self.target is None or len(self._scores) >= LOOKS:
            return
        if not self._scores:
            self.fresh = self.fresh and point.examples == 0
            self._perfect = perfect_score(self.workload)
        self._scores.append(point.score)
        if point.score >= self.target and point.examples:  # it is reached: nothing is wrong with it
            return
        check_target(
            self.target,
            self._scores,
            fresh=self.fresh,
            perfect=self._perfect,
            minus_loss=self.workload.score is None,
        )

"""Train a workload with a plan, and watch the noise of its gradients on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from batchscope.measure import GradientNoise
from batchscope.measure.shared_noise import EVERY as SHARED_EVERY
from batchscope.measure.shared_noise import SharedNoise
from batchscope.progress import Reporter
from batchscope.records import CurvePoint, Plan, TrainResult
from batchscope.seeding import derive
from batchscope.training.goal import GoalWatch
from batchscope.training.observer import MakeObserver
from batchscope.training.ranks import places_here, rank_here
from batchscope.training.tracking import Tracker, tracked
from batchscope.training.train import checked_seed
from batchscope.training.train import train as train_observed
from batchscope.workload.workload import Workload

# Measurements that count for half, of those that a measured schedule decides by.
HALF_LIFE = 10


def train(
    workload: Workload,
    plan: Plan,
    *,
    noise: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    evaluate_every: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every_seconds: float = 60.0,
    workers: int | None = None,
    progress: bool | Reporter = False,
    start: Mapping[str, Any] | None = None,
    tracker: Tracker | None = None,
) -> TrainResult:
    """Train a workload with a plan.

    Args:
        workload: What to train.
        plan: Batch size, learning rate, budget, shape and schedule.
        noise: Measure the gradient noise scale on the way, as :class:`batchscope.GradientNoise` does, in at most 3% of
            the time; it stands in the curve where it is resolved. A measured schedule has it measured all the same, at
            fixed updates. Ranks measure it by what their shares of a batch differ in.
        seed: Initial weights, data order and everything else random derive from it.
        device: "cpu", "cuda", "cuda:1" …; None: CUDA where there is one.
        evaluate_every: Examples between two evaluations; None: a fortieth of the budget, or more where that would
            cost more than half of the training.
        checkpoint: A file to save to now and then, at the end and when interrupted, and to resume from where it
            exists. On a CPU the resumed run equals the unbroken one bit for bit, inside any schedule.
        checkpoint_every_seconds: Least time between two saves.
        workers: Processes that read a Dataset; None: as many as pay. Results do not depend on it.
        progress: True shows progress on stderr; or a function that is told of every step.
        start: Weights to begin with, a state dict of the model, as those that a small batch ended with; None: fresh
            ones. A checkpoint goes before it.
        tracker: Told of the curve at every evaluation, by examples seen, and of the result as a file; off the clock,
            and closed at the end. See :mod:`batchscope.integrations.tracker`; anything with ``log(values, step)``,
            ``artifact(path)`` and ``end()`` will do. One that raises is warned of once and left alone. Under torchrun
            that of rank 0 alone.

    Returns:
        The result; its ``state`` holds the weights at the best validation score.

    Raises:
        PlanError: A plan that this workload or its optimiser cannot follow.
        ArgumentError: A target that cannot be meant by the scores of the first evaluations: at or below that of fresh
            weights, above that of perfect predictions, a percentage where scores are fractions, a loss where they are
            minus the loss.
        StorageError: A checkpoint that cannot be written, or that belongs to another run.
        WorkloadError: A measured schedule, and a workload whose noise scale cannot be measured.

    Examples:
        >>> import batchscope as bs
        >>> from batchscope.schedule import smith
        >>> from batchscope.workload.digits import digits
        >>> schedule = smith(32, at=(6400, 9600), factor=2)
        >>> plan = bs.Plan(batch_size=32, learning_rate=0.05, examples=12_800, schedule=schedule)
        >>> result = bs.train(digits(), plan)
        >>> result.best_score > 0.9, result.iterations, result.curve[-1].batch_size
        (True, 275, 128)
    """
    seed = checked_seed(seed)
    goal = GoalWatch(workload, plan.target, fresh=start is None)
    with tracked(tracker if rank_here() == 0 else None) as watched:

        def told(point: CurvePoint) -> None:
            goal.point(point)
            watched.point(point)

        result = train_observed(
            workload,
            plan,
            seed=seed,
            device=device,
            evaluate_every=evaluate_every,
            checkpoint=checkpoint,
            checkpoint_every_seconds=checkpoint_every_seconds,
            workers=workers,
            progress=progress,
            observer=noise_observer(plan, noise=noise, seed=seed),
            start=start,
            told=told,
        )
        watched.record(result)
    return result


def noise_observer(plan: Plan, *, noise: bool, seed: int) -> MakeObserver | None:
    """What a run's plan wants measured on the way.

    Args:
        plan: With a measured schedule, its gradients' noise is measured at fixed updates, so that a resumed run decides
            as the unbroken one would.
        noise: Whether to measure it without one too, as often as 3% of the time allow.
        seed: Draws the examples that are measured.

    Returns:
        What makes the observer; None where nothing is to be measured.
    """
    growth, seed = plan.batch_sizes.measured, derive(seed, "noise")
    if places_here()[1] > 1:
        if growth is not None:
            return partial(SharedNoise, every=min(SHARED_EVERY, growth.every), half_life=HALF_LIFE * growth.every)
        return SharedNoise if noise else None
    if growth is not None:
        # A measured step is the one after it was decided on, so that their distance is one more.
        return partial(GradientNoise, every=max(1, growth.every - 1), half_life=HALF_LIFE * growth.every, seed=seed)
    return partial(GradientNoise, seed=seed) if noise else None

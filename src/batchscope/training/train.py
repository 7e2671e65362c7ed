"""Train a workload with a plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from batchscope.errors import ArgumentError
from batchscope.progress import Reporter, reporter
from batchscope.records import CurvePoint, Plan, TrainResult
from batchscope.training.data_parallel import DataParallelRun
from batchscope.training.loop import Prepared, Run
from batchscope.training.observer import MakeObserver
from batchscope.training.ranks import rank_here, together
from batchscope.training.start import Start
from batchscope.workload.workload import Workload


def train(
    workload: Workload,
    plan: Plan,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    evaluate_every: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every_seconds: float = 60.0,
    workers: int | None = None,
    progress: bool | Reporter = False,
    observer: MakeObserver | None = None,
    start: Mapping[str, Any] | None = None,
    told: Callable[[CurvePoint], None] | None = None,
) -> TrainResult:
    """Train a workload with a plan; :func:`batchscope.train` is this, and can measure the noise scale besides.

    In a program that torchrun started, all ranks call it alike and share every batch: the result is that of one process
    (:class:`batchscope.training.data_parallel.DataParallelRun`).

    Args:
        workload: What to train.
        plan: Batch size, learning rate, budget, shape and schedule.
        seed: Initial weights, data order and everything else random derive from it.
        device: "cpu", "cuda", "cuda:1" …; None: CUDA where there is one.
        evaluate_every: Examples between two evaluations; None: a fortieth of the budget, or more where that would
            cost more than half of the training.
        checkpoint: A file to save to now and then, at the end and when interrupted, and to resume from where it
            exists. On a CPU the resumed run equals the unbroken one bit for bit.
        checkpoint_every_seconds: Least time between two saves.
        workers: Processes that read a Dataset; None: as many as pay. Results do not depend on it.
        progress: True shows progress on stderr; or a function that is told of every step.
        observer: Makes what watches the updates, and measures the noise scale that a measured schedule follows.
        start: Weights to begin with, a state dict of the model; None: fresh ones. A checkpoint goes before it.
        told: Called with each evaluation, off the clock; under torchrun by rank 0 alone.

    Returns:
        The result; its ``state`` holds the weights at the best validation score.

    Raises:
        PlanError: A plan that this workload cannot follow, or not on several ranks.
        RankLost: One of several ranks has gone; what was complete is saved.
        StorageError: A checkpoint that cannot be written, or that belongs to another run.

    Examples:
        >>> import batchscope as bs
        >>> from batchscope.workload.digits import digits
        >>> bs.train(digits(), bs.Plan(batch_size=64, learning_rate=0.05, iterations=200)).best_score > 0.9
        True
    """
    seed = checked_seed(seed)
    evaluate_every = checked_evaluate_every(evaluate_every)
    with together() as ranks, reporter(progress if rank_here() == 0 else False, "training") as report:
        if ranks is None:
            prepared = Prepared(workload, chosen_device(device), workers=workers)
        else:

            def prepare() -> Prepared:
                own = ranks.device() if device in (None, "cuda") else device
                return Prepared(workload, chosen_device(own), workers=workers)

            prepared = ranks.alike(prepare)
        budget = plan.budget_examples

        def on_evaluation(point: CurvePoint, seconds_left: float | None) -> None:
            report.update(
                done=point.examples,
                total=budget,
                label=f"batch {point.batch_size}",
                score=point.score,
                learning_rate=point.learning_rate,
                seconds_left=seconds_left if budget else None,
            )
            if told is not None and rank_here() == 0:
                told(point)

        options: dict[str, Any] = {
            "seed": seed,
            "evaluate_every": evaluate_every,
            "checkpoint": None if checkpoint is None else Path(checkpoint),
            "checkpoint_every_seconds": checkpoint_every_seconds,
            "on_evaluation": on_evaluation,
            "observer": observer,
            "start": None if start is None else Start(dict(start), {}),
        }
        if ranks is None:
            return Run(prepared, plan, **options)()
        ranks.use(prepared.device)
        return DataParallelRun(ranks, prepared, plan, **options)()


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for, checked to be there; CUDA, where there is one, when none was.

    Raises:
        ArgumentError: No such device.
    """
    if device is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        raise ArgumentError(
            "device must be one that torch can use here", got=str(device), mend="leave it out, or give cpu"
        ) from error
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", torch.cuda.current_device())
    return chosen


def checked_evaluate_every(evaluate_every: int | None) -> int | None:
    """The distance of the evaluations, if it is a whole number of examples, or None.

    Raises:
        ArgumentError: It is neither.
    """
    if evaluate_every is not None and (type(evaluate_every) is not int or evaluate_every < 1):
        raise ArgumentError("evaluate_every must be a whole number of examples, at least 1", got=evaluate_every)
    return evaluate_every


def checked_seed(seed: int) -> int:
    """The seed, if it is a whole number of at least 0.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ArgumentError("seed must be a whole number of at least 0", got=seed)
    return seed

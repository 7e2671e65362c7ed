"""Solutions to analyse if no weights are given: the ends of training with small and large batches, or a run's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from batchscope.errors import ArgumentError
from batchscope.folklore.runner import ExperimentRunner
from batchscope.progress import Reporter, reporter
from batchscope.records import LandscapeKind
from batchscope.training.interruption import stop_requests
from batchscope.training.loop import Prepared
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

# States of a run's path.
PATH_PARTS = 16
BUDGET_SECONDS = 120.0


def solutions(
    workload: Workload,
    batch_sizes: Sequence[int] | None = None,
    *,
    shape: LandscapeKind = "line",
    budget_seconds: float = BUDGET_SECONDS,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: bool | Reporter = False,
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Train a workload at its best learning rates, to compute a landscape or a sharpness of the solutions.

    Args:
        workload: The workload to train.
        batch_sizes: Batch sizes of the runs, which have the same number of examples; None: 32 and a tenth of the
            training examples for a line, 32 otherwise.
        shape: "line": two batch sizes; "direction", "plane": one; "path": one, at 16 points of the run.
        budget_seconds: The number of examples is the same as with :func:`claims` and this budget.
        seed: Seed of weights and data order, the same for all runs.
        device: "cpu", "cuda" …; None: CUDA if it is available.
        workers: Processes that read a Dataset.
        progress: True shows progress on stderr; a function is called with every event.

    Returns:
        State dicts and their labels.

    Raises:
        ArgumentError: The number of batch sizes does not suit the shape.

    Examples:
        >>> import batchscope as bs
        >>> states, names = solutions(bs.load_workload("digits"), [32, 256], budget_seconds=5)
        >>> names
        ['batch 32', 'batch 256']
    """
    wanted = 2 if shape == "line" else 1
    if batch_sizes is not None and len(batch_sizes) != wanted:
        raise ArgumentError(f"a {shape} needs {wanted} batch size{'s' * (wanted > 1)}", got=len(batch_sizes))
    with stop_requests() as stop, reporter(progress, "training") as report:
        runner = ExperimentRunner(
            Prepared(workload, chosen_device(device), workers=workers),
            seeds=(checked_seed(seed),),
            budget_seconds=budget_seconds,
            seed=seed,
            workers=workers,
            notify=lambda label: report.update(label=label, done=0, total=None),
            should_stop=lambda: stop.requested,
        )
        sizes = list(batch_sizes or ([runner.small, runner.large] if shape == "line" else [runner.small]))
        if shape == "path":
            states = runner.states_along(runner.plan(sizes[0]), PATH_PARTS)
            return list(states), [str(k + 1) for k in range(len(states))]
        return [runner.train(runner.plan(size))[0].state for size in sizes], [f"batch {size:,}" for size in sizes]

"""Weights to look at, where none were given: what small and large batches end with, and what a run comes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from batchscope.errors import ArgumentError
from batchscope.folklore.lab import Lab
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
    """Train a workload at its best learning rates, for states that a landscape or a sharpness is taken at.

    Args:
        workload: What to train.
        batch_sizes: Of the runs, each for as many examples; None: 32 and a tenth of the training examples for a line,
            32 otherwise.
        shape: "line": two batch sizes; "direction", "plane": one; "path": one, at 16 places on its way.
        budget_seconds: About what training would take were there as many runs as all claims need.
        seed: Of the weights and the data's order, the same for both.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        workers: Processes that read a Dataset.
        progress: True shows progress on stderr; or a function that is told of every step.

    Returns:
        State dicts, and what to call them.

    Raises:
        ArgumentError: Not as many batch sizes as the shape has states.

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
        lab = Lab(
            Prepared(workload, chosen_device(device), workers=workers),
            seeds=(checked_seed(seed),),
            budget_seconds=budget_seconds,
            seed=seed,
            workers=workers,
            tell=lambda label: report.update(label=label, done=0, total=None),
            stopped=lambda: stop.requested,
        )
        sizes = list(batch_sizes or ([lab.small, lab.large] if shape == "line" else [lab.small]))
        if shape == "path":
            states = lab.states_along(lab.plan(sizes[0]), PATH_PARTS)
            return list(states), [str(k + 1) for k in range(len(states))]
        return [lab.train(lab.plan(size))[0].state for size in sizes], [f"batch {size:,}" for size in sizes]

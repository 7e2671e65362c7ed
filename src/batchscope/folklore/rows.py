"""Per-example gradients as the rows of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batchscope.folklore.runner import ExperimentRunner
from batchscope.measure.arguments import drawn_examples, loaded
from batchscope.measure.per_example import GradientRows
from batchscope.seeding import derive, isolated

# Long gradients are represented by this many random coordinates, which preserves the ratios of distances.
MOST_COORDINATES = 1024


def gradient_rows(
    runner: ExperimentRunner, state: Mapping[str, Any], examples: int, stream: str
) -> NDArray[np.float64]:
    """Per-example gradients of randomly drawn training examples.

    Args:
        runner: The runner with the workload.
        state: The weights.
        examples: The most examples; with batch norm, gradients are of micro-batches, and fewer.
        stream: Name of the random stream.

    Returns:
        A matrix with one row per example and at most ``MOST_COORDINATES`` columns.
    """
    runner.notify("per-example gradients")
    device = runner.prepared.device
    drawn = drawn_examples(runner.workload, examples, derive(runner.seed, "claims", stream))
    with isolated(derive(runner.seed, "claims", stream, "random"), device):
        model = loaded(runner.workload.model(), state).to(device).eval()
        rows = GradientRows(runner.workload, model)
        chosen = torch.randperm(rows.parameters, generator=torch.Generator().manual_seed(runner.seed))[
            :MOST_COORDINATES
        ]
        found = [chunk[:, chosen.to(chunk.device)].double().cpu() for chunk in rows.chunks(drawn)]
    array: NDArray[np.float64] = torch.cat(found).numpy()
    return array

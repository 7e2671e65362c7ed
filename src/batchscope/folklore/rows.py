"""Gradients of single examples, as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batchscope.folklore.lab import Lab
from batchscope.measure.arguments import drawn_examples, loaded
from batchscope.measure.per_example import GradientRows
from batchscope.seeding import derive, isolated

# Of long gradients, so many random coordinates stand for all: distances of means keep their proportions.
MOST_COORDINATES = 1024


def gradient_rows(lab: Lab, state: Mapping[str, Any], examples: int, stream: str) -> NDArray[np.float64]:
    """Gradients of drawn training examples at some weights, a row for each.

    Args:
        lab: Whose workload.
        state: The weights.
        examples: How many at most; with batch norm they are of micro-batches, and fewer.
        stream: What they are drawn for.

    Returns:
        A matrix of at most ``MOST_COORDINATES`` columns.
    """
    lab.tell("gradients of single examples")
    device = lab.prepared.device
    drawn = drawn_examples(lab.workload, examples, derive(lab.seed, "claims", stream))
    with isolated(derive(lab.seed, "claims", stream, "random"), device):
        model = loaded(lab.workload.model(), state).to(device).eval()
        rows = GradientRows(lab.workload, model)
        chosen = torch.randperm(rows.parameters, generator=torch.Generator().manual_seed(lab.seed))[:MOST_COORDINATES]
        found = [chunk[:, chosen.to(chunk.device)].double().cpu() for chunk in rows.chunks(drawn)]
    array: NDArray[np.float64] = torch.cat(found).numpy()
    return array

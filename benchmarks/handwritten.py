"""The loop that an expert would write by hand: what batchscope's own loop is held against."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from batchscope.workload import Workload


def train_by_hand(workload: Workload, batch_size: int, iterations: int, *, seed: int = 0) -> float:
    """Train without evaluating, logging or checking anything.

    Args:
        workload: Its training examples must be tensors.
        batch_size: Examples per update.
        iterations: Updates.
        seed: Seed of weights and order.

    Returns:
        Seconds in the loop, set-up left out.
    """
    torch.manual_seed(seed)
    model = workload.model()
    optimizer = workload.optimizer(model.parameters(), workload.learning_rate)
    x, y = workload.train  # type: ignore[misc]
    loss_of = workload.loss
    began = time.perf_counter()
    for indices in _batches(len(x), batch_size, iterations):
        loss = loss_of(model(x[indices]), y[indices])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.perf_counter() - began


def _batches(examples: int, batch_size: int, iterations: int) -> Iterator[Tensor]:
    done = 0
    while True:
        order = torch.randperm(examples)
        for start in range(0, examples - batch_size + 1, batch_size):
            if done == iterations:
                return
            yield order[start : start + batch_size]
            done += 1

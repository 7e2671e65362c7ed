"""One trial of a grid, as an expert would write it: what every tool but batchscope is given to run."""

from __future__ import annotations

import dataclasses
import functools
import time

import torch

from batchscope.workload import Workload
from cases import case

VALIDATION_EXAMPLES = 200


@functools.cache
def workload_of(name: str) -> Workload:
    """A workload, loaded once in a process, with few enough validation examples for short trials."""
    workload = case(name)
    if not isinstance(workload.validation, tuple):
        raise TypeError(f"{name} does not hold tensors")
    return dataclasses.replace(workload, validation=tuple(part[:VALIDATION_EXAMPLES] for part in workload.validation))


def train_trial(
    name: str, batch_size: int, learning_rate: float, seed: int, *, examples: int, evaluate_every: int
) -> tuple[float, float]:
    """Train with one thread, evaluating before, in between and at the end.

    Args:
        name: A workload whose examples are tensors, and whose batches are (x, y).
        batch_size: Examples per update.
        learning_rate: The rate, held constant.
        seed: Seed of weights and order.
        examples: How many to train on; the last update takes what is left.
        evaluate_every: Examples between two evaluations.

    Returns:
        The best score, and the seconds that the updates took.
    """
    workload = workload_of(name)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = workload.model()
    optimizer = workload.optimizer(model.parameters(), learning_rate)
    x, y = workload.train  # type: ignore[misc]
    best, done, next_evaluation, seconds = _evaluate(workload, model)[0], 0, evaluate_every, 0.0
    began = time.perf_counter()
    while done < examples:
        for indices in torch.split(torch.randperm(len(x)), batch_size):
            if len(indices) < batch_size:
                break
            taken = indices[: examples - done]
            loss = workload.loss(model(x[taken]), y[taken])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += len(taken)
            if done >= min(next_evaluation, examples):
                seconds += time.perf_counter() - began
                best = max(best, _evaluate(workload, model)[0])
                next_evaluation = (done // evaluate_every + 1) * evaluate_every
                began = time.perf_counter()
            if done >= examples:
                break
    return best, seconds


@torch.no_grad()
def _evaluate(workload: Workload, model: torch.nn.Module) -> tuple[float, float]:
    """Score and loss, both of which a curve has."""
    x, y = workload.validation  # type: ignore[misc]
    if workload.score is None:
        raise TypeError("the benchmark's workloads have a score")
    model.eval()
    output = model(x)
    model.train()
    return float(workload.score(output, y)), float(workload.loss(output, y))

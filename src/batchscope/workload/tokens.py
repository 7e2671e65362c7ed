"""Counts of tokens, for workloads with ``tokens_per_example``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from batchscope.errors import WorkloadError
from batchscope.seeding import current_device, derive, isolated
from batchscope.workload.batches import take
from batchscope.workload.workload import Batch, length

if TYPE_CHECKING:
    from batchscope.workload.workload import Workload

# Number of examples in a mean, and in a batch.
EXAMPLES, AT_ONCE = 1024, 32


def tokens_in(workload: Workload, batch: Batch, examples: int) -> float:
    """Count the tokens in a batch; without ``tokens_per_example``, its examples.

    Raises:
        WorkloadError: ``tokens_per_example`` did not return a count.
    """
    per_example = workload.tokens_per_example
    if per_example is None:
        return float(examples)
    if not callable(per_example):
        return float(per_example * examples)
    found = per_example(batch)
    try:
        count = float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WorkloadError(
            "tokens_per_example(batch) must return the number of tokens in the batch",
            got=type(found).__name__,
            mend="return a whole number, as in int(batch['attention_mask'].sum())",
        ) from error
    if not (math.isfinite(count) and count > 0):
        raise WorkloadError("a batch must have at least one token", got=f"{count:g}")
    return count


def tokens_of(workload: Workload, index: int) -> float:
    """Count the tokens of one training example, without changing the random state."""
    with isolated(index):
        batch = take(workload.train, [index], workload.collate)
    return tokens_in(workload, batch, 1)


def mean_tokens(workload: Workload, seed: int = 0) -> float | None:
    """Mean number of tokens over 1,024 random training examples; None without ``tokens_per_example``.

    Examples:
        >>> import batchscope as bs
        >>> mean_tokens(bs.load_workload("text")), mean_tokens(bs.load_workload("digits"))
        (64.0, None)
    """
    per_example = workload.tokens_per_example
    if per_example is None or not callable(per_example):
        return None if per_example is None else float(per_example)
    n = length(workload.train)
    drawn = np.random.default_rng(derive(seed, "tokens")).permutation(n)[:EXAMPLES].tolist()
    total = 0.0
    with isolated(seed, current_device()):
        for first in range(0, len(drawn), AT_ONCE):
            some = drawn[first : first + AT_ONCE]
            total += tokens_in(workload, take(workload.train, some, workload.collate), len(some))
    return total / len(drawn)

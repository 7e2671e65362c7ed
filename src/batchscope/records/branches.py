"""The critical batch size, measured by branching training at a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchscope.records.base import Record
from batchscope.records.interval import Interval
from batchscope.records.provenance import Provenance


@dataclass(frozen=True)
class Branch:
    """Training continued from the branching point at another batch size.

    Attributes:
        factor: k, its batch size over the base's; below 1 where it is smaller.
        batch_size: Examples per update.
        learning_rate: Scaled with k by the optimiser's rule.
        updates: Updates made.
        examples: Examples trained on, about the same for all branches.
        loss: Validation loss at the end, over the repeats.
        excess: Its loss minus that of the best branch, paired by repeat.
        recovered: Whether the excess is within the tolerance for sure (True), above it for sure even among as many
            sizes (False), or neither.
    """

    factor: float
    batch_size: int
    learning_rate: float
    updates: int
    examples: int
    loss: Interval
    excess: Interval
    recovered: bool | None


@dataclass(frozen=True)
class BranchedRuns(Record):
    """The local critical batch size by branched runs (Merrill et al. 2025, arXiv 2505.23971).

    From one point, training continues at k times the batch size with the learning rate scaled along, for the same
    number of examples, while the rate falls linearly to zero; the largest k whose loss comes back to within a tolerance
    of the best branch's is critical.

    Attributes:
        workload: The workload's name.
        base_batch_size: Of the run that is branched.
        base_learning_rate: Its rate.
        examples_before: Examples trained on before the branching point.
        loss_before: Validation loss there.
        tolerance: Loss above the best branch that counts as recovered.
        repeats: Branches of each size, each with a data order of its own.
        branches: A line per size, ascending.
        critical_batch_size: Value and low: the largest size up to which all recovered, of those from the first that is
            not for sure worse than the best; high: the least above it that did not for sure, infinite where none
            failed. Unresolved where no size can be told, with high alone where all but the smallest failed.
        verdict: What this says, in a sentence.
        seconds: What the measurement took.
        provenance: Software, machine and seed.
    """

    kind: ClassVar[str] = "branched runs"

    workload: str
    base_batch_size: int
    base_learning_rate: float
    examples_before: int
    loss_before: float
    tolerance: float
    repeats: int
    branches: tuple[Branch, ...]
    critical_batch_size: Interval
    verdict: str
    seconds: float
    provenance: Provenance

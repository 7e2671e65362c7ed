"""What a learning-rate range test says, and the bound that curvature puts on the rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchscope.records.base import Record
from batchscope.records.interval import Interval
from batchscope.records.provenance import Provenance


@dataclass(frozen=True)
class RangePoint:
    """The training loss at one learning rate of a range test.

    Attributes:
        learning_rate: The rate.
        loss: Smoothed training loss, mean over the repeats.
        low: Least of the repeats.
        high: Largest of the repeats; infinite where one had diverged.
        diverged: Repeats that had diverged by then.
    """

    learning_rate: float
    loss: float
    low: float
    high: float
    diverged: int


@dataclass(frozen=True)
class RangeTest(Record):
    """A learning-rate range test: the rate grows geometrically from update to update, several times over.

    Attributes:
        workload: The workload's name.
        batch_size: Examples per update.
        updates: Updates of each repeat.
        repeats: Repeats, each with a data order of its own.
        points: The mean loss against the rate.
        steepest: Rate at which the loss falls fastest per step in log rate; unresolved where it never falls for sure.
        largest_stable: Largest rate before the loss turns up for good; unresolved where it never does.
        suggested: A rate to start from; None where the curve is flat.
        verdict: What the test says, in a sentence.
        largest_eigenvalue: λ_max of the Hessian of the training loss where the test starts; None where not measured.
        curvature_bound: The rate from which on gradient descent on that quadratic is unstable: 2(1 + m)/λ_max with
            momentum m; None where λ_max is unknown, or the optimiser scales its steps by itself.
        seconds: What the measurement took.
        provenance: Software, machine and seed.
    """

    kind: ClassVar[str] = "learning rate range"

    workload: str
    batch_size: int
    updates: int
    repeats: int
    points: tuple[RangePoint, ...]
    steepest: Interval
    largest_stable: Interval
    suggested: float | None
    verdict: str
    largest_eigenvalue: float | None
    curvature_bound: float | None
    seconds: float
    provenance: Provenance

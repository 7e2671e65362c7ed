"""How much the training loss can rise close by: Keskar's sharpness, and forms of it that rescaling cannot change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.interval import Interval
from batchscope.records.provenance import Provenance

SharpnessBox = Literal["keskar", "filters"]


@dataclass(frozen=True)
class SharpnessRun:
    """One search for the largest loss in the box.

    Attributes:
        loss: The largest loss found.
        value: 100·(loss − f(x))/(1 + f(x)), in per cent.
        evaluations: Of the loss and its gradient.
        at_bounds: Share of the coordinates that ended at a side of the box.
    """

    loss: float
    value: float
    evaluations: int
    at_bounds: float


@dataclass(frozen=True)
class Sharpness(Record):
    """How far the mean training loss rises in a small box about the weights.

    Attributes:
        workload: The workload's name.
        box: "keskar": |z_i| ≤ ε(|(A⁺x)_i| + 1); "filters": each weight by at most ε times the root mean square of its
            filter, biases and norms held still.
        epsilon: ε.
        subspace: Dimension of the random subspace; None: all of weight space.
        iterations: Of L-BFGS-B in each search, at most.
        parameters: Dimension of weight space.
        examples: Training examples that the loss is the mean over.
        loss: f(x), where the box has its centre.
        value: φ, in per cent: of all of weight space the largest that was found, over subspaces the mean.
        over_runs: That mean with its 95% interval over subspaces; without one in all of weight space.
        runs: The searches: one for every subspace, or from every starting point.
        seconds: What the measurement took.
        provenance: Software, machine and seed.
    """

    kind: ClassVar[str] = "sharpness"

    workload: str
    box: SharpnessBox
    epsilon: float
    subspace: int | None
    iterations: int
    parameters: int
    examples: int
    loss: float
    value: float
    over_runs: Interval
    runs: tuple[SharpnessRun, ...]
    seconds: float
    provenance: Provenance

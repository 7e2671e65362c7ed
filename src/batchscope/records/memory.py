"""What an update costs in memory, against micro-batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.interval import Interval
from batchscope.records.provenance import Provenance

MemoryMeter = Literal["CUDA allocator", "resident memory of a child process", "resident memory of this process"]
LimitSource = Literal["given", "CUDA device", "control group", "process limit", "free memory", "unknown"]


@dataclass(frozen=True)
class MemoryPoint:
    """Peak memory of training with one micro-batch size.

    Attributes:
        micro_batch_size: Examples that pass through the model at once.
        peak_bytes: The peak of a few updates and an evaluation, model and optimiser included; data excluded.
        predicted_bytes: What the fitted law gives.
    """

    micro_batch_size: int
    peak_bytes: int
    predicted_bytes: float


@dataclass(frozen=True)
class MemoryLaw:
    """Peak bytes = state + micro-batch size × per example, or a floor where that is more, fitted to measured peaks.

    Attributes:
        state_bytes: What does not depend on the micro-batch: weights, gradients, the optimiser's state, work space.
        bytes_per_example: Activations and what else each example adds.
        relative_error: Root mean square of the law's relative residuals.
        floor_bytes: What even the smallest micro-batches cost, where an allocator's blocks or a library's work space
            hide the line: the law is the larger of the two. 0 where no floor shows.
    """

    state_bytes: Interval
    bytes_per_example: Interval
    relative_error: float
    floor_bytes: float = 0.0


@dataclass(frozen=True)
class MemoryUse(Record):
    """Peak memory over micro-batch sizes, the memory there is, and the largest micro-batch that it holds.

    Attributes:
        workload: The workload's name.
        meter: How peaks were read.
        points: A line per micro-batch size, ascending.
        law: Fitted to them; None where fewer than two sizes ran.
        parameter_bytes: Weights alone.
        optimizer_bytes: The optimiser's state after an update.
        limit_bytes: Memory that training may take; None where that is not known.
        limit_source: Where the limit comes from.
        margin: Share of the limit that is left free.
        largest_executed: The largest micro-batch size that ran here, with optimiser step and evaluation.
        largest_predicted: The largest size that the law fits into the limit less its margin, at most the training
            set; None where limit or law are unknown.
        holds_all: Whether even the full training set as one batch would fit.
        seconds: What the measurement took.
        provenance: Software, machine and seed.
    """

    kind: ClassVar[str] = "memory"

    workload: str
    meter: MemoryMeter
    points: tuple[MemoryPoint, ...]
    law: MemoryLaw | None
    parameter_bytes: int
    optimizer_bytes: int
    limit_bytes: int | None
    limit_source: LimitSource
    margin: float
    largest_executed: int | None
    largest_predicted: int | None
    holds_all: bool
    seconds: float
    provenance: Provenance

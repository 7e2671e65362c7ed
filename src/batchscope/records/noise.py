"""What the gradients at one point say about batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.interval import Interval
from batchscope.records.provenance import Provenance

NoiseSource = Literal[
    "per-example gradients",
    "single backward passes",
    "half batches",
    "micro-batches",
    "accumulated micro-batches",
    "data-parallel ranks",
    "replicas",
]


@dataclass(frozen=True)
class GradientError:
    """How far a batch's gradient lies from the gradient of all the examples measured.

    Attributes:
        batch_size: Examples in the batch.
        batches: Batches of that size, without a common example.
        error: Root mean square of ‖g_B − G‖, corrected for the examples that the two share.
        predicted: √(tr Σ/B).
    """

    batch_size: int
    batches: int
    error: float
    predicted: float


@dataclass(frozen=True)
class NoiseMeasurement(Record):
    """Gradient noise at one point in weight space.

    Attributes:
        workload: The workload's name.
        examples: Training examples whose gradients were taken.
        group_size: Examples in each gradient: 1, or the size of the micro-batches where batch norm ties examples.
        source: Where the gradients come from.
        note: Why that source, where it is not per-example gradients; None otherwise.
        parameters: Numbers in the gradient.
        trace_covariance: tr Σ, the summed variance of single examples' gradients.
        gradient_norm_squared: ‖G‖², squared length of the true gradient.
        noise_scale: tr Σ/‖G‖², the simple noise scale, in examples.
        preconditioned_noise_scale: The same after the optimiser's own scaling of every coordinate; None where it has
            none.
        examples_needed: Examples from which on the noise scale would be resolved; None where it is.
        gradient_error: Measured error of a batch's gradient against batch size, beside the law √(tr Σ/B).
        seconds: What the measurement took.
        provenance: Software, machine and seed.
    """

    kind: ClassVar[str] = "gradient noise"

    workload: str
    examples: int
    group_size: int
    source: NoiseSource
    note: str | None
    parameters: int
    trace_covariance: Interval
    gradient_norm_squared: Interval
    noise_scale: Interval
    preconditioned_noise_scale: Interval | None
    examples_needed: int | None
    gradient_error: tuple[GradientError, ...]
    seconds: float
    provenance: Provenance


@dataclass(frozen=True)
class MonitoredNoise(Record):
    """Gradient noise of a training run, measured from inside of a person's own loop.

    Attributes:
        steps: Updates of the optimiser so far.
        steps_measured: Those of them that gave a measurement.
        examples: Examples in the measured steps.
        batch_size: Examples in the last measured step; None before the first.
        group_size: Examples in each of the gradients that the batch's is compared with, at the last measured step.
        half_life: Steps after which a measurement counts for half; None where all count alike.
        source: Where the gradients of fewer examples come from.
        note: Why that source; None where there is nothing to say.
        parameters: Numbers in the gradient.
        trace_covariance: tr Σ, the summed variance of single examples' gradients.
        gradient_norm_squared: ‖G‖², squared length of the true gradient.
        noise_scale: tr Σ/‖G‖², the simple noise scale, in examples: means over the window, divided.
        preconditioned_noise_scale: The same after the optimiser's own scaling of every coordinate; None where it has
            none.
        examples_needed: Examples in measured steps from which on the noise scale would be resolved; None where it is.
        overhead: The share of the time that measuring took.
        overhead_allowed: The largest share that it was allowed.
        seconds: The time of training, measuring included.
        device: Where the model trained.
        batchscope: Version of this package.
        torch: Version of torch.
    """

    kind: ClassVar[str] = "monitored gradient noise"

    steps: int
    steps_measured: int
    examples: int
    batch_size: int | None
    group_size: float
    half_life: float | None
    source: NoiseSource
    note: str | None
    parameters: int
    trace_covariance: Interval
    gradient_norm_squared: Interval
    noise_scale: Interval
    preconditioned_noise_scale: Interval | None
    examples_needed: int | None
    overhead: float
    overhead_allowed: float
    seconds: float
    device: str
    batchscope: str
    torch: str

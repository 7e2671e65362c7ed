"""What this machine and these gradients say about batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from batchscope.records.base import Record
from batchscope.records.branches import BranchedRuns
from batchscope.records.comparison import WorkloadSummary
from batchscope.records.interval import Interval
from batchscope.records.learning_rate import RangeTest
from batchscope.records.memory import MemoryUse
from batchscope.records.noise import NoiseMeasurement
from batchscope.records.provenance import Provenance
from batchscope.records.step_time import StepTimes


@dataclass(frozen=True)
class NoisePoint:
    """Gradient noise at one point of a training run.

    Attributes:
        examples: Examples trained on before.
        iterations: Updates made before.
        validation_loss: Mean loss on the validation set.
        score: Validation score.
        measured_on: Training examples whose gradients were taken.
        trace_covariance: tr Σ.
        gradient_norm_squared: ‖G‖².
        noise_scale: tr Σ/‖G‖², in examples.
        preconditioned_noise_scale: After the optimiser's own scaling; None where it has none.
        examples_needed: Examples from which on the noise scale would be resolved; None where it is.
    """

    examples: int
    iterations: int
    validation_loss: float
    score: float
    measured_on: int
    trace_covariance: Interval
    gradient_norm_squared: Interval
    noise_scale: Interval
    preconditioned_noise_scale: Interval | None
    examples_needed: int | None


@dataclass(frozen=True)
class Limits:
    """The three limits, and the batch size between them.

    Attributes:
        memory: Largest micro-batch that fits; None where that is not known.
        memory_sentence: What follows from it.
        knee: Throughput knee.
        knee_sentence: What follows from it.
        critical: Critical batch size as far as gradients tell: the noise scale where training spends its time.
        critical_sentence: What follows from it.
        worth_having: √(knee × critical), the batch size of least time to a target by the two laws; unresolved where
            one of them is.
        conclusion: All of it in two or three sentences.
    """

    memory: int | None
    memory_sentence: str
    knee: Interval
    knee_sentence: str
    critical: Interval
    critical_sentence: str
    worth_having: Interval
    conclusion: str


@dataclass(frozen=True)
class Replanned:
    """For what other machine a probe was re-planned, without measuring again.

    Attributes:
        memory_bytes: The memory limit that was put in; None: as measured.
        speed: Factor by which computing is faster per example than measured.
        fixed_speed: Factor by which the fixed cost of an update is smaller.
    """

    memory_bytes: int | None
    speed: float
    fixed_speed: float


@dataclass(frozen=True)
class Probe(Record):
    """Step time, memory and gradient noise of one workload on one machine, and what follows.

    Attributes:
        workload: What was measured.
        limits: The three limits in numbers and words.
        step_time: Time per update and throughput.
        memory: Peak memory and the limit; None where it could not be measured.
        noise: Gradient noise along a short training run, ascending.
        gradient_noise: The last of these in full, with the gradient's error against batch size.
        branched: Critical batch size measured by branched runs from the end of that run; None where left out.
        learning_rate: Range test from the start of training; None where left out.
        warnings: What to know before trusting the numbers.
        replanned: What other machine this was re-planned for; None: as measured.
        seconds: What the whole probe took.
        provenance: Software, machine and seed.
    """

    kind: ClassVar[str] = "probe"

    workload: WorkloadSummary
    limits: Limits
    step_time: StepTimes
    memory: MemoryUse | None
    noise: tuple[NoisePoint, ...]
    gradient_noise: NoiseMeasurement
    branched: BranchedRuns | None
    learning_rate: RangeTest | None
    warnings: tuple[str, ...]
    replanned: Replanned | None
    seconds: float
    provenance: Provenance

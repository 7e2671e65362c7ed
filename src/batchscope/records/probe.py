"""What this machine and these gradients say about batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.branches import BranchedRuns
from batchscope.records.comparison import WorkloadSummary
from batchscope.records.interval import Interval
from batchscope.records.learning_rate import RangeTest
from batchscope.records.memory import MemoryUse
from batchscope.records.noise import NoiseMeasurement
from batchscope.records.provenance import Provenance
from batchscope.records.step_time import StepTimes

CriticalSource = Literal["branched runs", "noise scale", "preconditioned noise scale"]


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

    By the two laws, the time to a given loss at batch size B is in proportion to τ(B)·(1 + B_crit/B), with τ the time
    of an update and what it waits for its data.

    Attributes:
        memory: Largest micro-batch that fits; None where that is not known.
        memory_sentence: What follows from it.
        knee: Throughput knee.
        knee_sentence: What follows from it.
        critical: Critical batch size: by branched runs, the geometric mean of the largest size that recovered and the
            least that did not; or else the noise scale at the last point.
        critical_source: Which of the two, and for the noise scale whether after the optimiser's own scaling.
        critical_sentence: What follows from it.
        worth_having: The batch size of least time to a given loss: √(knee × critical) where τ is one line; unresolved
            where one of the two is.
        worth_from: The least batch size that takes at most a tenth more time; None where it is not resolved.
        worth_to: The largest one.
        today_excess: Share by which the person's own batch size takes more time than the best; None likewise.
        conclusion: All of it in a few sentences.
    """

    memory: int | None
    memory_sentence: str
    knee: Interval
    knee_sentence: str
    critical: Interval
    critical_sentence: str
    worth_having: Interval
    conclusion: str
    critical_source: CriticalSource | None = None
    worth_from: int | None = None
    worth_to: int | None = None
    today_excess: float | None = None


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

"""What an update costs in time, against batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.interval import Interval
from batchscope.records.provenance import Provenance

Reading = Literal["between updates", "beside them"]


@dataclass(frozen=True)
class StepTimePoint:
    """The time of an update at one batch size.

    Attributes:
        batch_size: Examples per update.
        compute_seconds: Forward, backward and optimiser: median over rounds.
        data_seconds: Getting the batch, median over rounds; beside the updates where workers read ahead.
        step_seconds: Both as an update has to wait for them: their sum, or the longer one where workers read ahead.
        examples_per_second: ``batch_size`` over ``step_seconds``.
        predicted_seconds: What the fitted law gives for ``compute_seconds``.
        rounds: Rounds, each with all batch sizes in an order of its own.
        updates: Updates timed in all of them.
    """

    batch_size: int
    compute_seconds: Interval
    data_seconds: Interval
    step_seconds: Interval
    examples_per_second: Interval
    predicted_seconds: float
    rounds: int
    updates: int


@dataclass(frozen=True)
class StepTimeLaw:
    """Time of an update τ(B) = c₀ + c₁·B, and past a bend c₀ + c₁·B + c₂·(B − bend), fitted to measured times.

    Attributes:
        fixed_seconds: c₀, what an update costs whatever its size.
        seconds_per_example: c₁, or c₁ + c₂ where there is a bend: what one more example costs in a large batch.
        bend: Batch size where the second regime begins; None where one line does.
        seconds_per_example_below: c₁ where there is a bend; None otherwise.
        knee: Batch size at which examples/s reach half of the most that the law allows; c₀/c₁ without a bend.
        relative_error: Root mean square of the law's relative residuals.
        bends_at: Whether ``bend`` is where more examples cost more each, or less; None without one.
    """

    fixed_seconds: Interval
    seconds_per_example: Interval
    bend: int | None
    seconds_per_example_below: float | None
    knee: Interval
    relative_error: float
    bends_at: Literal["dearer", "cheaper"] | None = None

    def seconds(self, batch_size: float) -> float | None:
        """τ at a batch size; None where the law is not resolved."""
        if self.fixed_seconds.value is None or self.seconds_per_example.value is None:
            return None
        if self.bend is None or self.seconds_per_example_below is None:
            return self.fixed_seconds.value + self.seconds_per_example.value * batch_size
        below = self.fixed_seconds.value + self.seconds_per_example_below * min(batch_size, self.bend)
        return below + self.seconds_per_example.value * max(0.0, batch_size - self.bend)


@dataclass(frozen=True)
class StepTimes(Record):
    """Step time and throughput over a grid of batch sizes.

    Attributes:
        workload: The workload's name.
        points: A line per batch size, ascending.
        law: Fitted to the computing alone.
        reading: Whether batches are read between the updates, or beside them by worker processes.
        workers: Processes that read.
        loader_bound_from: The least batch size at which getting a batch takes longer than computing with it; None:
            none of them.
        most_examples_per_second: The highest measured throughput.
        fastest_batch_size: Where it was measured.
        seconds: What the measurement took.
        provenance: Software, machine and seed.
        tokens_per_example: Of training examples, in the mean; None where the workload does not say.
        flops_per_example: Floating-point operations of forward and backward, as torch counts them; None where it
            can't. Backward is taken as twice forward.
        compile_seconds: Time that torch.compile took, which is in none of the times but ``seconds``; None: nothing was
            compiled.
        peak_flops_per_second: Of the device at the model's precision, as its maker publishes it; None where not known.
        contention: Share of the processor time that updates needed and other programs took, in the rounds that count,
            at the batch size where it is largest; None where unknown.
        warnings: What to know before trusting the times, such as that the machine was busy.
    """

    kind: ClassVar[str] = "step time"

    workload: str
    points: tuple[StepTimePoint, ...]
    law: StepTimeLaw
    reading: Reading
    workers: int
    loader_bound_from: int | None
    most_examples_per_second: float
    fastest_batch_size: int
    seconds: float
    provenance: Provenance
    tokens_per_example: float | None = None
    flops_per_example: float | None = None
    peak_flops_per_second: float | None = None
    compile_seconds: float | None = None
    contention: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def most_tokens_per_second(self) -> float | None:
        """The highest measured throughput in tokens; None where an example has no number of them."""
        return None if self.tokens_per_example is None else self.tokens_per_example * self.most_examples_per_second

    @property
    def most_flops_per_second(self) -> float | None:
        """Floating-point operations of the model a second at that throughput; None where they can't be counted."""
        return None if self.flops_per_example is None else self.flops_per_example * self.most_examples_per_second

    @property
    def model_flops_utilisation(self) -> float | None:
        """Their share of the device's peak (Chowdhery et al. 2022, arXiv 2204.02311, appendix B)."""
        if self.most_flops_per_second is None or not self.peak_flops_per_second:
            return None
        return self.most_flops_per_second / self.peak_flops_per_second

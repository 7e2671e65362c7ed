"""What a probe of one device says of many: time, efficiency, memory and cost against their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.communication import AllReduceLaw
from batchscope.records.comparison import WorkloadSummary
from batchscope.records.interval import Interval
from batchscope.records.provenance import Provenance

AllReduceAlgorithm = Literal["ring", "tree", "fastest"]
UpdatesSource = Literal["trade-off law", "branched runs", "noise scale", "preconditioned noise scale"]


@dataclass(frozen=True)
class ShardedMemory:
    """Peak memory of a device with the training state kept whole, or divided among the devices (ZeRO).

    Attributes:
        replicated_bytes: Every device holds all of it.
        stage_1_bytes: The optimiser's state is divided.
        stage_2_bytes: The gradients too.
        stage_3_bytes: The weights too.
    """

    replicated_bytes: int
    stage_1_bytes: int
    stage_2_bytes: int
    stage_3_bytes: int

    def at(self, stage: int) -> int:
        """The bytes at a ZeRO stage, 0 for a state that every device holds whole."""
        return (self.replicated_bytes, self.stage_1_bytes, self.stage_2_bytes, self.stage_3_bytes)[stage]


@dataclass(frozen=True)
class DeviceRow:
    """The fastest setting for a number of devices, and what it takes.

    Attributes:
        devices: How many.
        asked: Whether it was asked for; the others stand between them, for the chart.
        batch_size: Examples per update on all devices together, of least time; None where there is none.
        best_batch_size: The same with what is known about it.
        examples_per_device: Its share on each device, the largest one.
        micro_batch_size: Examples that pass through the model at once on each.
        accumulation_steps: Micro-batches of an update on each.
        step_seconds: Time of an update.
        communication_seconds: The part of it in which devices wait for each other's gradients.
        examples_ratio: Examples to the target over what a very small batch needs.
        examples: Examples to the target; unresolved where only ratios are known.
        updates: Updates to the target, likewise.
        seconds: Time to the target, likewise.
        relative_time: Time to the target over that of the fewest devices asked for.
        speed_up: Its inverse.
        efficiency: Speed-up over the factor of devices.
        device_hours: Devices × hours, as ``seconds``.
        cost: Devices × hours × price; None without a price.
        joules: Devices × seconds × power; None where no power is known.
        memory: Peak memory of each device; None where the probe did not measure memory.
        measured_sizes: Whether the micro-batch lies within the sizes that were timed.
        reason: Why there is no setting; None where there is one.
    """

    devices: int
    asked: bool
    batch_size: int | None
    best_batch_size: Interval
    examples_per_device: int | None
    micro_batch_size: int | None
    accumulation_steps: int | None
    step_seconds: Interval
    communication_seconds: Interval
    examples_ratio: Interval
    examples: Interval
    updates: Interval
    seconds: Interval
    relative_time: Interval
    speed_up: Interval
    efficiency: Interval
    device_hours: Interval
    cost: Interval | None = None
    joules: Interval | None = None
    memory: ShardedMemory | None = None
    measured_sizes: bool = True
    reason: str | None = None


@dataclass(frozen=True)
class DevicePlan(Record):
    """How far more devices pay, worked out from a probe of one, a network and the trade-off law.

    Attributes:
        workload: What was probed.
        conclusion: The answer in plain sentences.
        rows: A row per number of devices, ascending.
        network: The law of an all-reduce between the devices.
        algorithm: How gradients are summed: round a ring, up and down a tree, or by the faster of both.
        overlap: Share of the last backward pass during which gradients are summed already.
        zero_stage: How much of the training state is divided among devices: 0 none, to 3, all of it.
        gradient_bytes: Bytes that are summed at every update.
        updates_from: Where the law of examples against batch size comes from.
        critical_batch_size: B_crit of that law.
        relative: Whether only ratios of times are known, as no number of examples to a target was given.
        price_per_hour: Price of a device for an hour; None without.
        power_watts: Power of a device; None without.
        least_gain: A doubling of the devices pays where the time falls by more than a factor of one plus this.
        least_efficiency: And where the efficiency is at least this.
        worth_devices: The largest number that a doubling still pays for; infinite where they pay to the end.
        warnings: What to know before trusting the numbers.
        provenance: Of the probe.
    """

    kind: ClassVar[str] = "device plan"

    workload: WorkloadSummary
    conclusion: str
    rows: tuple[DeviceRow, ...]
    network: AllReduceLaw
    algorithm: AllReduceAlgorithm
    overlap: float
    zero_stage: int
    gradient_bytes: int
    updates_from: UpdatesSource
    critical_batch_size: Interval
    relative: bool
    price_per_hour: float | None
    power_watts: float | None
    least_gain: float
    least_efficiency: float
    worth_devices: Interval
    warnings: tuple[str, ...]
    provenance: Provenance

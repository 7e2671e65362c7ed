"""Joules that a machine counts itself: a GPU's by NVML, a processor's by RAPL; read, never set.

Counters are cumulative. RAPL's begin again at ``max_energy_range_uj``: a meter adds up differences, so it has to be
read at least once in each round of the counter (minutes). Neither knows of fans, disks and power supplies, and RAPL
counts everything that the processor does, other programs and idling included.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from batchscope.errors import ArgumentError
from batchscope.fit.intervals import median_interval
from batchscope.measure.step_time import Timer
from batchscope.progress import Reporter, reporter
from batchscope.records import Interval, PowerPoint, PowerUse
from batchscope.records.power import PowerSource
from batchscope.seeding import derive, isolated
from batchscope.training.loop import Prepared
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

POWERCAP = Path("/sys/class/powercap")
# Where nothing can be read: a core of a server's processor under load, and an accelerator with no limit to be read.
ASSUMED_WATTS_PER_CORE = 10.0
ASSUMED_ACCELERATOR_WATTS = 400.0
ROUNDS, MOST_SIZES = 3, 4


class PowerMeter(Protocol):
    """A cumulative counter of joules."""

    @property
    def source(self) -> PowerSource:
        """Where the joules come from."""

    @property
    def block_seconds(self) -> float:
        """How long updates must go on for the counter's own steps to be short beside that."""

    @property
    def max_watts(self) -> float | None:
        """The most power that the device may draw; None where that is not known."""

    @property
    def note(self) -> str:
        """What is and is not in them."""

    def joules(self) -> float:
        """Joules since the meter was made."""


@dataclass
class _Counter:
    """One domain of RAPL."""

    path: Path
    round_microjoules: int
    last: int
    microjoules: int = 0

    def read(self) -> None:
        now = _whole(self.path)
        step = now - self.last
        self.microjoules += step if step >= 0 else step + self.round_microjoules
        self.last = now


class RaplMeter:
    """The processor's packages and their memory, by Linux' powercap files.

    Args:
        root: The folder of powercap.

    Raises:
        OSError: There are no packages, or they may not be read.
    """

    source: PowerSource = "RAPL"
    block_seconds = 0.1  # its counters move on every millisecond
    note = "All of the processor's packages and their memory, other programs and idling included."

    def __init__(self, root: Path = POWERCAP) -> None:
        self._counters: list[_Counter] = []
        watts: list[float] = []
        for zone in sorted(root.glob("intel-rapl:*")):  # AMD's packages have the same names
            name = (zone / "name").read_text(encoding="ascii").strip()
            package = name.startswith("package")
            if not package and name != "dram":  # cores are in their package, and psys holds all of it
                continue
            counter = zone / "energy_uj"
            self._counters.append(_Counter(counter, _whole(zone / "max_energy_range_uj"), _whole(counter)))
            limit = zone / "constraint_0_power_limit_uw"
            if package and limit.exists():
                watts.append(_whole(limit) / 1e6)
        if not self._counters:
            raise FileNotFoundError(f"no packages in {root}")
        self.max_watts = sum(watts) or None

    def joules(self) -> float:
        """Joules since the meter was made; to be read at least once in each round of the counters."""
        for counter in self._counters:
            counter.read()
        return sum(counter.microjoules for counter in self._counters) / 1e6


class NvmlMeter:
    """One GPU, by NVIDIA's management library (pynvml): its counter, or its power readings added up where it has none.

    Args:
        nvml: The module ``pynvml``, begun.
        handle: Of the GPU.
        now: A clock.
    """

    source: PowerSource = "NVML"
    block_seconds = 0.4  # its counters move on every 20 to 100 ms
    note = "The GPU's board alone: processor, fans and power supply are not in it."

    def __init__(self, nvml: Any, handle: Any, now: Callable[[], float] = time.perf_counter) -> None:
        self._nvml, self._handle, self._now = nvml, handle, now
        self.max_watts = self._limit()
        self._added, self._last = 0.0, now()
        try:
            self._began: int | None = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError:
            self._began = None
            self._watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000

    def joules(self) -> float:
        """Joules since the meter was made; without a counter, power readings × the time between two calls."""
        if self._began is not None:
            return (int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) - self._began) / 1000
        watts, now = self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000, self._now()
        self._added += (now - self._last) * (watts + self._watts) / 2
        self._last, self._watts = now, watts
        return self._added

    def _limit(self) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle)) / 1000
        except self._nvml.NVMLError:
            return None


@dataclass(frozen=True)
class Found:
    """A meter, or why there is none.

    Attributes:
        meter: The meter; None where there is none.
        why: Why; empty where there is one.
    """

    meter: PowerMeter | None
    why: str = field(default="")


def find_power_meter(device: torch.device, *, powercap: Path = POWERCAP) -> Found:
    """The counter of a device's joules, where this machine has one that may be read.

    Args:
        device: A CUDA device, or the processor.
        powercap: The folder of Linux' powercap.
    """
    if device.type == "cuda":
        return _nvml_meter(device)
    if device.type != "cpu":
        return Found(None, f"there is no meter for {device.type} devices")
    try:
        return Found(RaplMeter(powercap))
    except PermissionError:
        return Found(None, f"{powercap}/intel-rapl:*/energy_uj may be read by root alone here")
    except (OSError, ValueError):
        return Found(None, f"there are no energy counters in {powercap}")


def _nvml_meter(device: torch.device) -> Found:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return Found(None, 'pynvml is not installed (pip install "batchscope[power]")')
    try:
        nvml.nvmlInit()
        number = torch.cuda.current_device() if device.index is None else device.index
        uuid = getattr(torch.cuda.get_device_properties(number), "uuid", None)
        # By its identity, since CUDA_VISIBLE_DEVICES renumbers what torch sees.
        handle = (
            nvml.nvmlDeviceGetHandleByIndex(number)
            if uuid is None
            else nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
        )
        return Found(NvmlMeter(nvml, handle))
    except nvml.NVMLError as error:
        return Found(None, f"NVML says: {error}")


def given_power(watts: float, *, assumed: str = "") -> PowerUse:
    """The same power whatever the batch size.

    Args:
        watts: Of a device.
        assumed: Why it is a default; empty where the person gave it.
    """
    source: PowerSource = "assumed" if assumed else "given"
    points = (PowerPoint(1, Interval(watts, None, None)),)
    return PowerUse(source, points, watts, assumed or "As given, the same at every batch size.")


def assumed_power(device: torch.device, why: str) -> PowerUse:
    """A default where nothing can be read: 400 W for an accelerator, 10 W for each core in use of a processor.

    Args:
        device: What trains.
        why: Why nothing could be read.
    """
    cores = torch.get_num_threads()
    watts = ASSUMED_WATTS_PER_CORE * cores if device.type == "cpu" else ASSUMED_ACCELERATOR_WATTS
    return given_power(watts, assumed=f"Assumed, the same at every batch size: {why}.")


def power_use(
    workload: Workload,
    *,
    batch_sizes: Sequence[int],
    meter: PowerMeter,
    block_seconds: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> PowerUse:
    """Measure the power of updates at some batch sizes, by a counter of joules.

    Updates are made at a learning rate of zero, as :func:`batchscope.measure.step_times` makes them, in blocks that
    take turns; a size's power is the median of joules over seconds.

    Args:
        workload: What is trained.
        batch_sizes: Which; up to four are measured, the first and the last among them.
        meter: The counter.
        block_seconds: How long a block lasts at least; None: what the meter asks for.
        seed: Of the weights and the examples.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function called with every step.

    Returns:
        The power against batch size.

    Raises:
        ArgumentError: No batch sizes.
    """
    wanted = sorted(set(batch_sizes))
    if not wanted:
        raise ArgumentError("power must be measured at one batch size at least", got="none")
    picked = sorted({wanted[round(i)] for i in np.linspace(0, len(wanted) - 1, MOST_SIZES)})
    lasting = meter.block_seconds if block_seconds is None else block_seconds
    seed, chosen = checked_seed(seed), chosen_device(device)
    timer = Timer(Prepared(workload, chosen, workers=0), seed)
    found: dict[int, list[float]] = {}
    with reporter(progress, "measuring power") as report, isolated(derive(seed, "power"), chosen):
        sizes = timer.grid(picked, math.inf, None)
        for done in range(ROUNDS):
            for size in sizes:
                report.update(label=f"batch size {size.batch_size:,}", done=done, total=ROUNDS)
                began, before = time.perf_counter(), meter.joules()
                while time.perf_counter() - began < lasting:
                    timer.block(size)
                    meter.joules()
                joules, seconds = meter.joules() - before, time.perf_counter() - began
                found.setdefault(size.batch_size, []).append(joules / seconds)
    points = tuple(PowerPoint(size, median_interval(watts)) for size, watts in found.items())
    most = max(point.watts.value or 0.0 for point in points)
    return PowerUse(meter.source, points, max(meter.max_watts or most, most), meter.note)


def _whole(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))

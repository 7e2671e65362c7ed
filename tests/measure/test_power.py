"""Meters of joules on made-up counters, and the power of real updates by a counter that is known."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import batchscope as bs
from batchscope.measure import power
from batchscope.measure.power import NvmlMeter, RaplMeter, assumed_power, find_power_meter, given_power, power_use

ROUND = 262_143_328_850  # what a counter of a real processor counts to, in microjoules


def zone(root: Path, name: str, called: str, microjoules: int, *, watts: float | None = None) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{called}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{ROUND}\n")
    if watts is not None:
        (folder / "constraint_0_power_limit_uw").write_text(f"{round(1e6 * watts)}\n")
    return folder / "energy_uj"


def count(path: Path, microjoules: int) -> None:
    path.write_text(f"{microjoules}\n")


def test_packages_and_their_memory_are_added_up_and_nothing_twice(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000, watts=125.0)
    cores = zone(tmp_path, "intel-rapl:0:0", "core", 7)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 9_000_000, watts=125.0)
    whole = zone(tmp_path, "intel-rapl:2", "psys", 3)
    twin = zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    meter = RaplMeter(tmp_path)
    assert meter.joules() == 0.0
    count(first, 5_000_000 + 2_000_000)
    count(memory, 1_000_000 + 300_000)
    count(second, 9_000_000 + 4_000_000)
    for other in (cores, whole, twin):
        count(other, 10**9)
    assert meter.joules() == pytest.approx(2.0 + 0.3 + 4.0)
    assert meter.max_watts == 250.0
    assert meter.source == "RAPL"


def test_a_counter_that_begins_again_loses_nothing(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", ROUND - 1_000_000)
    meter = RaplMeter(tmp_path)
    count(counter, 500_000)
    assert meter.joules() == pytest.approx(1.5)
    count(counter, ROUND - 1)
    before = meter.joules()
    count(counter, 250_000)
    assert meter.joules() - before == pytest.approx(0.25, abs=2e-6)
    assert meter.max_watts is None


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    empty = find_power_meter(cpu, powercap=tmp_path)
    assert empty.meter is None
    assert "no energy counters" in empty.why
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    assert isinstance(find_power_meter(cpu, powercap=tmp_path).meter, RaplMeter)

    def refuse(path: Path) -> int:
        raise PermissionError(path)

    monkeypatch.setattr(power, "_whole", refuse)
    locked = find_power_meter(cpu, powercap=tmp_path)
    assert locked.meter is None
    assert "root alone" in locked.why
    monkeypatch.undo()
    counter.write_text("nonsense")
    assert find_power_meter(cpu, powercap=tmp_path).meter is None
    assert "meta" in find_power_meter(torch.device("meta")).why


class Nvml(SimpleNamespace):
    """A made-up management library: one board, whose counter and power are set by the test."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, counts: bool = True, limited: bool = True) -> None:
        super().__init__(counts=counts, limited=limited, millijoules=1_000, milliwatts=200_000, asked=[])

    def nvmlInit(self) -> None:
        self.asked.append("init")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.asked.append(index)
        return "board"

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        self.asked.append(uuid)
        return "board"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise self.NVMLError("not supported")
        return int(self.millijoules)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return int(self.milliwatts)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        if not self.limited:
            raise self.NVMLError("not supported")
        return 700_000


def test_a_board_with_a_counter() -> None:
    nvml = Nvml()
    meter = NvmlMeter(nvml, "board")
    nvml.millijoules += 2_500
    assert meter.joules() == 2.5
    assert meter.max_watts == 700.0


def test_a_board_without_one_has_its_readings_added_up() -> None:
    nvml, seconds = Nvml(counts=False, limited=False), [10.0]
    meter = NvmlMeter(nvml, "board", now=lambda: seconds[0])
    seconds[0], nvml.milliwatts = 12.0, 400_000
    assert meter.joules() == pytest.approx(2.0 * (200 + 400) / 2)
    seconds[0] = 13.0
    assert meter.joules() == pytest.approx(600 + 400)
    assert meter.max_watts is None


@pytest.mark.parametrize(("uuid", "asked"), [(None, 1), ("ab-12", b"GPU-ab-12")])
def test_a_board_is_found_by_its_identity(uuid: Any, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=uuid))
    found = find_power_meter(torch.device("cuda", 1))
    assert isinstance(found.meter, NvmlMeter)
    assert nvml.asked == ["init", asked]


def test_without_the_library_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = find_power_meter(torch.device("cuda", 0))
    assert found.meter is None
    assert 'pip install "batchscope[power]"' in found.why


class Known:
    """A counter that goes on at so many watts, whatever is done."""

    source = "RAPL"
    max_watts = None
    note = "made up"
    block_seconds = 0.03

    def __init__(self, watts: float) -> None:
        self.watts, self.began = watts, time.perf_counter()

    def joules(self) -> float:
        return self.watts * (time.perf_counter() - self.began)


def test_power_is_joules_over_seconds_at_each_size_and_nothing_else_changes() -> None:
    workload = bs.load_workload("digits")
    before = torch.random.get_rng_state()
    found = power_use(workload, batch_sizes=(8, 16, 32, 64, 128, 256), meter=Known(80.0))  # type: ignore[arg-type]
    assert torch.equal(before, torch.random.get_rng_state())
    sizes = [point.batch_size for point in found.points]
    assert sizes[0] == 8
    assert sizes[-1] == 256
    assert len(sizes) == 4
    for point in found.points:
        assert point.watts.value == pytest.approx(80.0, rel=0.02)
    assert found.max_watts == pytest.approx(80.0, rel=0.02)
    with pytest.raises(bs.ArgumentError, match="one batch size"):
        power_use(workload, batch_sizes=(), meter=Known(80.0))  # type: ignore[arg-type]


def test_defaults_are_called_assumed() -> None:
    use = assumed_power(torch.device("cpu"), "there is no meter")
    assert use.source == "assumed"
    assert use.max_watts == power.ASSUMED_WATTS_PER_CORE * torch.get_num_threads()
    assert "there is no meter" in use.note
    assert not use.varies
    assert assumed_power(torch.device("cuda"), "no").max_watts == power.ASSUMED_ACCELERATOR_WATTS
    assert given_power(300.0).source == "given"
    assert given_power(300.0).watts(1024).value == 300.0

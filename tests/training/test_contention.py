"""Reading how busy the machine is: with simulated clocks, and with a process that really takes the processor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import batchscope as bs
from batchscope.measure.step_time import step_times
from batchscope.provenance import available_cores
from batchscope.training import contention
from batchscope.training.contention import Contention, Moment, now

STAT = Path("/proc/stat")


class Clocks:
    """A machine of two cores on which others keep so many busy, by this process's real clocks."""

    def __init__(self, others: float | None) -> None:
        self.others = others

    def __call__(self) -> Moment:
        wall, own = time.perf_counter(), time.process_time()
        return Moment(wall, own, None if self.others is None else own + self.others * wall)


def test_what_others_take_is_what_is_left_of_all_that_was_taken() -> None:
    moments = iter([Moment(0, 0, 10), Moment(1, 1.5, 11.9), Moment(1.2, 1.5, 11.9), Moment(2, 1.5, 14.0)])
    watch = Contention(lambda: next(moments), cores=2)
    assert watch.others() == pytest.approx(0.4)
    assert watch.others(at_least=0.5) is None  # too short: the time goes on
    assert watch.share(1) == pytest.approx(1.0)  # two cores for others, and one would have been wanted


def test_where_the_system_does_not_say_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([Moment(0, 0, None), Moment(1, 0.5, None)])
    assert Contention(lambda: next(moments), cores=2).share(1) is None
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS and Windows
    assert now().machine is None
    assert Contention().cores >= 1


def test_the_kernels_table_is_read_for_the_cores_that_are_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "stat"
    monkeypatch.setattr(contention, "STAT", table)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 10}, raising=False)
    rows = ["cpu 9 9 9 9 9 9 9 9 9 9", "cpu0 9 9 9 9 9 9 9 9 9 9"]
    rows += ["cpu1 100 200 300 7777 7777 40 50 60 7 7", "cpu10 1 0 0 7777 7777 0 0 0 0 0", "intr 1 2 3"]
    table.write_text("\n".join(rows))
    ticks = os.sysconf("SC_CLK_TCK")
    assert contention._machine_seconds() == pytest.approx(751 / ticks)
    table.write_text(rows[0])
    assert contention._machine_seconds() is None
    table.write_text("cpu1 a b\n\ncpu10")
    assert contention._machine_seconds() is None
    table.unlink()
    assert contention._machine_seconds() is None


@pytest.fixture
def spinning() -> Iterator[None]:
    """Processes that take every core that there is."""
    code = "import time\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2 * available_cores())]
    time.sleep(0.3)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.skipif(not STAT.exists(), reason="the system does not say what others take")
def test_real_processes_are_noticed_by_the_timing_of_updates_and_by_training(
    spinning: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contention, "STAT", STAT)
    workload = bs.load_workload("digits")
    times = step_times(workload, batch_sizes=[8, 512], seconds=1.5)
    assert times.contention is not None
    assert times.contention > 0.2
    (said,) = times.warnings
    assert "The machine was busy: other programs took" in said
    for point in times.points:
        low, high = point.step_seconds.low, point.step_seconds.high
        assert low is not None and high is not None  # noqa: PT018
        assert high / low > 1.15
    run = bs.train(workload, bs.Plan(batch_size=8, learning_rate=0.05, iterations=8000))
    assert run.contention is not None
    assert run.contention > 0.2


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All updates on two threads, so that none knows by itself what it was kept from."""
    before = torch.get_num_threads()
    monkeypatch.setattr("batchscope.training.threads.SMALL_UPDATE_FLOPS", 0.0)
    monkeypatch.setattr("batchscope.training.contention.available_cores", lambda: 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("others", "expected"), [(0.0, 0.0), (1.0, 0.5), (None, None)])
def test_step_times_take_the_clocks_word(others: float | None, expected: float | None, two_threads: None) -> None:
    times = step_times(bs.load_workload("digits"), batch_sizes=[8, 512], seconds=1.2, clocks=Clocks(others))
    assert times.contention == (expected if expected is None else pytest.approx(expected, abs=0.02))
    said = any("other programs took 50%" in warning for warning in times.warnings)
    assert said == (expected == 0.5)
    if said:
        assert times.law.knee.value is None or (times.law.knee.high or 0) >= 4 * 0.99 * (times.law.knee.low or 0)
        for point in times.points:
            assert (point.compute_seconds.high or 0) >= 2 * 0.99 * (point.compute_seconds.low or 0)

"""Candidates that train in this process: the same run in pieces or at once, and what may befall one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import batchscope as bs
from batchscope import Workload
from batchscope.search.candidates import Setting
from batchscope.search.in_process import InProcess
from batchscope.search.shared import Shared
from batchscope.search.trained import Trained
from batchscope.search.update_times import UpdateTimes
from batchscope.training.loop import Run

Make = Callable[..., Workload]
SETTING = Setting(16, 0.05)


@pytest.fixture(scope="module")
def digits() -> Workload:
    return bs.load_workload("digits")


def source_of(workload: Workload, **changes: Any) -> InProcess:
    return InProcess(workload, torch.device("cpu"), seed=0, **changes)


def opened(source: Shared, setting: Setting = SETTING) -> Trained:
    return Trained(source, setting)


def test_in_pieces_it_is_the_same_run_as_at_once(digits: Workload) -> None:
    whole, parts = opened(source_of(digits)), opened(source_of(digits))
    while whole.updates < 60:
        whole.advance(1.0)
    other = opened(parts.source, Setting(8, 0.05))
    while parts.updates < 60:
        parts.advance(0.0)  # an update at least
        if parts.updates in (10, 20):
            parts.evaluate()
            other.advance(0.0)
    by_updates = [{p.updates: p.loss for p in each.points[1:] if p.examples <= 1000} for each in (whole, parts)]
    common = by_updates[0].keys() & by_updates[1].keys()
    assert len(common) >= 5
    assert all(by_updates[0][k] == by_updates[1][k] for k in common)


def test_it_goes_on_until_its_own_clock_shows_the_time(digits: Workload) -> None:
    candidate = opened(source_of(digits))
    candidate.advance(0.05)
    first = candidate.points[-1]
    candidate.advance(0.1)
    last = candidate.points[-1]
    assert last.updates > first.updates
    assert last.examples == 16 * last.updates
    times = [p.seconds for p in candidate.points]
    assert times == sorted(times)
    assert candidate.cost_seconds >= 0.5 * times[-1]
    assert candidate.points[0].updates == 0
    assert candidate.points[0].score is not None
    assert last.loss < candidate.points[0].loss


def test_the_random_state_of_the_caller_is_left_alone(digits: Workload) -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global one is what must not change
    random.seed(3)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    candidate = opened(source_of(digits))
    candidate.advance(0.02)
    candidate.evaluate()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())  # noqa: NPY002
    assert before[2] == random.getstate()


def test_a_rate_that_diverges_is_an_outcome(digits: Workload) -> None:
    source = source_of(digits)
    wild, calm = opened(source, Setting(16, 1e6)), opened(source)
    wild.advance(10.0)
    assert wild.ended == "diverged"
    assert np.isinf(wild.points[-1].loss)
    assert wild.memory_bytes == 0
    calm.advance(0.05)
    assert calm.ended is None
    assert all(np.isfinite(p.loss) and np.isfinite(p.error) for p in calm.points)
    wild.advance(20.0)  # nothing happens
    assert wild.ended == "diverged"


@pytest.mark.parametrize("fitting", [0, 5])
def test_running_out_of_memory_is_an_outcome(digits: Workload, monkeypatch: pytest.MonkeyPatch, fitting: int) -> None:
    """At once, or in the middle of training."""
    advance_updates = Run.advance_updates

    def tight(run: Run, updates: int) -> Any:
        late = run.plan.batch_size >= 64 and run.progress.iterations >= fitting
        return run.stopped("out of memory") if late else advance_updates(run, min(updates, 5))

    monkeypatch.setattr(Run, "advance_updates", tight)
    source = source_of(digits)
    large, small = opened(source, Setting(64, 0.05)), opened(source)
    large.advance(1.0)
    assert large.ended == "out of memory"
    assert large.memory_bytes == 0
    small.advance(0.05)
    assert small.ended is None
    assert not np.isnan([(p.seconds, p.loss, p.error) for p in large.points]).any()
    assert np.isfinite([(p.seconds, p.loss, p.error) for p in small.points]).all()


def test_a_deadline_pauses_what_trains(digits: Workload) -> None:
    source = source_of(digits)
    candidate = opened(source)
    candidate.advance(0.01)
    source.limit(source.elapsed_seconds() + 0.5)
    began = time.perf_counter()
    candidate.advance(1e6)
    assert time.perf_counter() - began < 1.5
    assert candidate.ended is None
    updates = candidate.updates
    candidate.advance(0.0)  # one piece more, even so
    assert updates < candidate.updates


def test_somebody_who_stops_it_waits_for_a_piece_alone(digits: Workload) -> None:
    asked: list[bool] = []
    candidate = opened(source_of(digits, stopped=lambda: bool(asked)))
    candidate.advance(0.01)
    asked.append(True)
    began = time.perf_counter()
    candidate.advance(1e6)
    assert time.perf_counter() - began < 1.0


class Slow(Dataset[Any]):
    """Counts what is read, and takes its time."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 6, generator=generator)
        self.y = (self.x.sum(1) > 0).long()
        self.reads = [0] * count

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, index: int) -> Any:
        self.reads[index] += 1
        time.sleep(1e-3)
        return self.x[index], self.y[index]


def test_what_one_candidate_has_read_is_there_for_the_others(make: Make) -> None:
    slow = Slow(400)
    workload = make(examples=400, train=slow)
    source = source_of(workload, workers=0)
    slow.reads = [0] * len(slow)  # getting ready looks at an example or two
    first, second = opened(source), opened(source, Setting(8, 0.05))
    while first.updates < 20:
        first.advance(0.0)
    assert sum(slow.reads) == 20 * 16
    while second.updates < 40:
        second.advance(0.0)
    assert sum(slow.reads) == 20 * 16  # the same examples in the same order
    assert max(slow.reads) == 1
    # On a candidate's own clock it reads for itself, as it would in a run of its own.
    assert source.update_seconds(16) > source.times.seconds(16) + 16 * 0.9e-3
    assert source.spent.reading > 20 * 16 * 0.9e-3
    assert source.spent.training < source.spent.reading


def test_what_is_released_keeps_its_points_alone(digits: Workload) -> None:
    source = source_of(digits)
    candidate: Any = source.open(SETTING)
    candidate.advance(0.02)
    parameters = sum(p.numel() * p.element_size() for p in digits.model().parameters())
    assert candidate.memory_bytes >= 3 * parameters
    points = list(candidate.points)
    source.close()
    assert candidate.memory_bytes == 0
    assert candidate.ended == "finished"
    assert [p.loss for p in candidate.points] == [p.loss for p in points]


def test_the_target_ends_a_candidate(digits: Workload) -> None:
    candidate = opened(source_of(digits, target=0.8))
    for _ in range(200):
        candidate.advance(candidate.points[-1].seconds + 0.05 if candidate.points else 0.05)
        if candidate.ended:
            break
    assert candidate.ended == "reached"
    assert candidate.points[-1].score is not None
    assert candidate.points[-1].score >= 0.8


def test_disturbed_pieces_do_not_count() -> None:
    times = UpdateTimes()
    assert np.isnan(times.seconds(8))
    for seconds in (5.0, 1.0, 1.1, 9.0, 0.9, 1.0):
        times.add(8, 10, seconds)
    assert times.seconds(8) == pytest.approx(0.1)
    assert times.spread(8) < 0.1
    times.add(16, 1, 3.0)  # the first one counts where it is the only one
    assert times.seconds(16) == 3.0
    assert np.isnan(times.spread(16))


def test_pieces_from_busy_moments_do_not_count_where_there_are_others() -> None:
    times = UpdateTimes()
    for seconds, contention in ((9.0, 0.0), (1.4, 0.5), (1.4, 0.5), (1.0, 0.0), (1.0, 0.02)):
        times.add(8, 10, seconds)
        times.mark(contention)
    assert times.seconds(8) == pytest.approx(0.1)
    assert times.contention(8) == pytest.approx(0.01)
    for _ in range(3):
        times.add(16, 10, 1.4)
    times.mark(0.5)
    assert times.seconds(16) == pytest.approx(0.14)
    assert times.contention(16) == 0.5
    assert times.contention(32) == 0.0


def test_a_mark_says_nothing_of_pieces_that_were_marked_before() -> None:
    times = UpdateTimes()
    times.add(8, 1, 1.0)
    times.mark(0.5)
    times.add(16, 1, 1.0)
    times.mark(0.0)
    assert (times.contention(8), times.contention(16)) == (0.5, 0.0)


def test_evaluating_keeps_to_a_tenth_of_all_training(digits: Workload) -> None:
    source = source_of(digits)
    candidates = [opened(source, Setting(size, 0.05)) for size in (8, 16, 32)]
    for seconds in (0.1, 0.2, 0.4):
        for candidate in candidates:
            candidate.advance(seconds)
    seen = [c for c in candidates if c.updates * c.setting.batch_size <= digits.training_examples]
    assert source.evaluated_seconds > 0
    assert source.evaluated_seconds <= 0.1 * source.spent.training or not seen

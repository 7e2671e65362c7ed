"""The batch sampler that follows a schedule: every batch, every setting, exactly, however it is read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope import ArgumentError, BatchSizeScheduler, Interval, Phase, Plan, PlanError, Schedule, Workload
from batchscope.records import MeasuredGrowth
from batchscope.schedule import linear_growth, measured, smith
from batchscope.seeding import derive, isolated
from batchscope.training.order import ExampleOrder

N = 37


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    starts = [0, *itertools.accumulate(draw(st.lists(st.integers(1, 60), max_size=4)))]
    return Schedule(tuple(Phase(start, draw(st.integers(1, N)), draw(st.floats(0.1, 2))) for start in starts))


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)


def passes(scheduler: BatchSizeScheduler, most: int = 10**9) -> list[tuple[list[int], float]]:
    """Each batch with the rate that it is trained at, over as many passes as it takes."""
    assert scheduler._settings is not None
    group = scheduler._settings.optimizer.param_groups[0]
    made: list[tuple[list[int], float]] = []
    while not scheduler.finished and len(made) < most:
        expected, before = len(scheduler), len(made)
        for batch in scheduler:
            made.append((batch, group["lr"]))
            scheduler.step()
            if len(made) == most:
                break
        else:
            assert len(made) - before == expected
    return made


@given(schedule=schedules(), examples=st.integers(1, 300))
def test_batches_are_the_stream_cut_by_the_schedule(schedule: Schedule, examples: int) -> None:
    made = passes(BatchSizeScheduler(schedule, N, sgd(), examples=examples, seed=4))
    order = ExampleOrder("shuffled", N, seed=derive(4, "data"))
    assert [i for batch, _ in made for i in batch] == order.indices(0, examples).tolist()
    assert len(made) == schedule.updates(examples)
    for update, (batch, rate) in enumerate(made):
        phase = schedule.segment_at(update).phase
        assert len(batch) == min(phase.batch_size, examples - schedule.examples(update))
        assert rate == pytest.approx(0.1 * phase.learning_rate_factor)


@given(schedule=schedules(), examples=st.integers(1, 300), data=st.data())
def test_it_goes_on_exactly_from_anywhere(schedule: Schedule, examples: int, data: st.DataObject) -> None:
    options: dict[str, Any] = {"examples": examples, "shape": "linear", "warmup_examples": 50, "seed": 1}
    whole = passes(BatchSizeScheduler(schedule, N, sgd(), **options))
    at = data.draw(st.integers(0, len(whole)))
    first, optimizer = BatchSizeScheduler(schedule, N, sgd(), **options), sgd()
    passes(first, at)
    state = json.loads(json.dumps(first.state_dict()))
    optimizer.param_groups[0]["lr"] = 7.0  # as after an optimiser's own state was loaded first
    second = BatchSizeScheduler(schedule, N, optimizer, **options)
    second.load_state_dict(state)
    assert second.examples == first.examples
    assert passes(second) == whole[at:]


def test_a_pass_is_an_epoch() -> None:
    scheduler = BatchSizeScheduler(Schedule((Phase(0, 10),)), N)
    epochs = []
    for _ in range(4):
        epochs.append(0)
        for _ in scheduler:
            epochs[-1] += 1
            scheduler.step()
    assert epochs == [4, 4, 4, 3]  # 148 examples: the last batch of an epoch ends in the next one
    assert not scheduler.finished


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_s_workers_read_ahead_and_change_nothing(workers: int) -> None:
    x = torch.arange(N)
    schedule = linear_growth(2, 12, examples=60)
    scheduler = BatchSizeScheduler(schedule, N, sgd(), examples=150)
    loader = DataLoader(TensorDataset(x), batch_sampler=scheduler, num_workers=workers)
    seen: list[list[int]] = []
    while not scheduler.finished:
        assert len(loader) == len(scheduler)
        for (batch,) in loader:
            seen.append(batch.tolist())
            scheduler.step()
            if len(seen) == 5:
                break  # what was read ahead is read again
    assert seen == [batch for batch, _ in passes(BatchSizeScheduler(schedule, N, sgd(), examples=150))]


def test_a_plain_loop_over_it_is_train(make: Callable[..., Workload]) -> None:
    workload = make()
    schedule = smith(4, at=(60, 120), factor=2)
    plan = Plan(4, 0.05, examples=210, schedule=schedule, shape="cooldown")
    result = bs.train(workload, plan, seed=3, evaluate_every=210)
    with isolated(derive(3, "weights"), torch.device("cpu")):
        model = workload.model()
        optimizer = workload.optimizer(model.parameters(), 0.05)
    scheduler = BatchSizeScheduler(
        schedule, workload.training_examples, optimizer, examples=210, shape="cooldown", seed=3
    )
    examples: Any = workload.train
    loader = DataLoader(TensorDataset(*examples), batch_sampler=scheduler)
    while not scheduler.finished:
        for x, y in loader:
            optimizer.zero_grad()
            torch.autograd.backward(workload.loss(model(x), y))
            optimizer.step()
            scheduler.step()
    loss = workload.loss(model(workload.validation[0]), workload.validation[1])
    assert float(loss.detach()) == pytest.approx(result.curve[-1].validation_loss, rel=1e-5)


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_measured_batch_grows_after_what_was_read_ahead(ahead: int) -> None:
    growth = MeasuredGrowth(knee=100, maximum=30, sustained=2, every=4)
    optimizer = sgd()
    scheduler = BatchSizeScheduler(Schedule((Phase(0, 4),), growth), 10**4, optimizer, examples=1000)
    noise, made = Interval(100.0, 80.0, 120.0), []
    batches = iter(scheduler)
    queue: list[list[int]] = []
    while not scheduler.finished:
        while len(queue) <= ahead and (batch := next(batches, None)) is not None:
            queue.append(batch)
        made.append((len(queue.pop(0)), optimizer.param_groups[0]["lr"]))
        scheduler.step(noise)
    # Two votes in a row, at updates 4 and 8, and what had been handed out by then keeps its size.
    first = 8 + ahead
    assert [size for size, _ in made[: first + 1]] == [4] * first + [8]
    assert all(rate == pytest.approx(0.1 * size / 4) for size, rate in made[:-1])
    assert max(size for size, _ in made) == 30
    assert sum(size for size, _ in made) == 1000
    assert scheduler.schedule.largest_batch_size == 30


def test_a_measured_schedule_goes_on_as_it_has_come_out() -> None:
    schedule = measured(4, knee=100, sustained=1, every=2)
    first = BatchSizeScheduler(schedule, 1000, sgd(), examples=400)
    for _ in itertools.islice(first, 5):
        first.step(Interval(100.0, 80.0, 120.0))
    second = BatchSizeScheduler(schedule, 1000, sgd(), examples=400)
    second.load_state_dict(first.state_dict())
    assert second.schedule == first.schedule != schedule
    assert passes(second) == passes(first)


def test_an_optimiser_is_left_alone_where_none_is_given_and_labels_are_used() -> None:
    labels = torch.tensor([0, 1] * 10)
    scheduler = BatchSizeScheduler(Schedule((Phase(0, 4),)), 20, order="stratified", labels=labels)
    for batch in scheduler:
        assert sum(labels[batch].tolist()) in (1, 2, 3)
        scheduler.step()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: BatchSizeScheduler(Schedule((Phase(0, 8), Phase(9, 40))), N),
            "at least 40; got 37. A batch is larger",
        ),
        (lambda: BatchSizeScheduler(Schedule((Phase(0, 8),)), N, shape="linear"), "needs to know where it ends"),
        (lambda: BatchSizeScheduler(Schedule((Phase(0, 8),)), N, examples=0), "examples must be a whole number"),
        (lambda: BatchSizeScheduler(Schedule((Phase(0, 8),)), N, order="stratified"), "needs labels"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], BatchSizeScheduler], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        make()
    assert said in str(caught.value)


def test_a_state_of_another_order_is_refused() -> None:
    schedule = Schedule((Phase(0, 8),))
    state = BatchSizeScheduler(schedule, N).state_dict()
    with pytest.raises(ArgumentError, match="with the seed that it was made with"):
        BatchSizeScheduler(schedule, N, seed=1).load_state_dict(state)
    with pytest.raises(ArgumentError, match="with the training_examples"):
        BatchSizeScheduler(schedule, N + 1).load_state_dict(state)

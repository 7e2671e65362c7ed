"""Runs that follow a schedule: what each update is made of, and exact resumption inside of any."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import batchscope as bs
from batchscope import Interval, Phase, Plan, PlanError, Schedule, TrainResult, Workload, WorkloadError
from batchscope.records import MeasuredGrowth
from batchscope.schedule import linear_growth, measured, seesaw, smith
from batchscope.seeding import derive, isolated
from batchscope.study.watched_training import noise_observer
from batchscope.training import Prepared, Run
from batchscope.training.order import ExampleOrder
from batchscope.training.replicas import Replicas
from batchscope.workload.batches import take

CPU = torch.device("cpu")
Make = Callable[..., Workload]


def adam(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate)


def nesterov(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True)


def run_of(workload: Workload, plan: Plan, **options: Any) -> tuple[Run, TrainResult]:
    run = Run(Prepared(workload, CPU), plan, seed=2, **({"evaluate_every": 50} | options))
    return run, run()


def by_hand(workload: Workload, plan: Plan, rates: list[float], sizes: list[int]) -> dict[str, Any]:
    """The same run as a plain loop over given batch sizes and rates."""
    with isolated(derive(2, "weights"), CPU):
        model = workload.model()
        optimizer = workload.optimizer(model.parameters(), plan.learning_rate)
    order = ExampleOrder("shuffled", workload.training_examples, seed=derive(2, "data"))
    seen = 0
    for rate, size in zip(rates, sizes, strict=True):
        x, y = take(workload.train, order.indices(seen, seen + size).tolist(), workload.collate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        torch.autograd.backward(workload.loss(model(x), y))
        optimizer.step()
        seen += size
    return model.state_dict()


def same(one: dict[str, Any], other: dict[str, Any], *, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", ["mlp", "tensor dataset"])
@pytest.mark.parametrize("optimizer", [nesterov, adam])
def test_a_run_makes_the_updates_that_its_schedule_says(make: Make, kind: str, optimizer: Any) -> None:
    workload = make(kind, optimizer=optimizer)
    schedule = Schedule((Phase(0, 4), Phase(41, 10, 0.5), Phase(90, 7, 0.25)))
    plan = Plan(4, 0.05, examples=130, schedule=schedule)
    run, result = run_of(workload, plan)
    sizes = [4] * 10 + [10] * 5 + [7] * 5 + [5]
    assert (result.iterations, result.examples) == (21, 130)
    assert run.iterations == plan.batch_sizes.updates(130) == 21
    expected = by_hand(workload, plan, [0.05] * 10 + [0.025] * 5 + [0.0125] * 6, sizes)
    same(run.model.state_dict(), expected, rtol=1e-5, atol=1e-6)
    # Evaluated at the first update at or after each 50 examples, with the batch that led there.
    assert [(p.examples, p.batch_size) for p in result.curve] == [(0, 4), (50, 10), (104, 7), (130, 7)]
    assert [p.learning_rate for p in result.curve] == pytest.approx([0.05, 0.025, 0.0125, 0.0125])


def test_shape_warm_up_and_phases_multiply(make: Make) -> None:
    workload = make()
    schedule = Schedule((Phase(0, 4), Phase(40, 10, 0.5)))
    plan = Plan(4, 0.05, examples=100, schedule=schedule, shape="cooldown", cooldown=0.5, warmup_examples=20)
    run, _ = run_of(workload, plan)
    begins = [*range(0, 40, 4), *range(40, 100, 10)]
    sizes = [4] * 10 + [10] * 6
    factors = [
        min(1.0, (100 - e) / 50) * min(1.0, (e + b) / 20) * (1.0 if e < 40 else 0.5)
        for e, b in zip(begins, sizes, strict=True)
    ]
    expected = by_hand(workload, plan, [0.05 * factor for factor in factors], sizes)
    same(run.model.state_dict(), expected, rtol=1e-5, atol=1e-6)


def test_a_schedule_of_one_phase_is_the_plan_without(make: Make) -> None:
    plan = Plan(8, 0.05, examples=203, shape="linear")
    one, _ = run_of(make(), plan)
    other, _ = run_of(make(), Plan(8, 0.05, examples=203, shape="linear", schedule=Schedule((Phase(0, 8),))))
    same(one.model.state_dict(), other.model.state_dict())


def test_iterations_are_of_whatever_size(make: Make) -> None:
    result = run_of(make(), Plan(4, 0.05, iterations=15, schedule=Schedule((Phase(0, 4), Phase(40, 8)))))[1]
    assert (result.iterations, result.examples) == (15, 80)


def test_an_evaluation_at_a_border_is_of_the_batch_before(make: Make) -> None:
    schedule = Schedule((Phase(0, 4), Phase(40, 8, 0.5)))
    result = run_of(make(), Plan(4, 0.05, examples=80, schedule=schedule), evaluate_every=40)[1]
    assert [(p.examples, p.batch_size, p.learning_rate) for p in result.curve] == [
        (0, 4, 0.05),
        (40, 4, 0.05),
        (80, 8, 0.025),
    ]


def test_a_grown_batch_goes_through_in_micro_batches(make: Make) -> None:
    seen: list[int] = []

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append(len(target))
        return F.cross_entropy(output, target)

    schedule = Schedule((Phase(0, 4), Phase(8, 20)))
    plan = Plan(4, 0.05, examples=48, schedule=schedule, micro_batch_size=8)
    workload = make(loss=loss)
    seen.clear()  # of the workload's check
    cut, result = run_of(workload, plan)
    assert seen == [4, 4, 8, 8, 4, 8, 8, 4]
    assert result.micro_batch_size == 8
    whole, _ = run_of(make(), Plan(4, 0.05, examples=48, schedule=schedule))
    same(cut.model.state_dict(), whole.model.state_dict(), rtol=1e-5, atol=1e-6)


def test_momentum_and_adam_s_settings_follow(make: Make) -> None:
    run, _ = run_of(make(), Plan(4, 0.05, examples=80, schedule=Schedule((Phase(0, 4), Phase(40, 8, 1.0, 0.5)))))
    assert run.optimizer.param_groups[0]["momentum"] == 0.5
    run, _ = run_of(make(optimizer=adam), Plan(4, 0.05, examples=200, schedule=linear_growth(4, 16, examples=100)))
    group = run.optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.1)
    assert group["betas"] == pytest.approx((0.9**4, 0.999**4))


def test_what_cannot_be_followed_is_refused(make: Make) -> None:
    prepared = Prepared(make(), CPU)
    for plan, said in (
        (Plan(4, 0.05, examples=90, schedule=smith(4, at=(8, 16), factor=5)), "number of training examples"),
        (Plan(4, 0.05, examples=90, schedule=measured(4, knee=9)), "something that measures"),
    ):
        with pytest.raises(PlanError, match=said):
            Run(prepared, plan, seed=0)
    with pytest.raises(PlanError, match="a stack keeps its batch size"):
        Replicas(prepared, [Plan(4, 0.05, examples=90, schedule=smith(4, at=(8,), factor=2))], [0])


def test_a_stack_warms_up_and_cools_down_as_a_single_run_does(make: Make) -> None:
    prepared = Prepared(make(), CPU)
    plan = Plan(8, 0.1, examples=300, shape="cooldown", warmup_examples=60)
    alone = Run(prepared, plan, seed=2, evaluate_every=50)()
    stacked = Replicas(prepared, [plan], [2], evaluate_every=50)()[0]
    assert [p.learning_rate for p in stacked.curve[1:]] == pytest.approx([p.learning_rate for p in alone.curve[1:]])
    assert [p.validation_loss for p in stacked.curve] == pytest.approx(
        [p.validation_loss for p in alone.curve], rel=1e-3
    )


# Interrupted and resumed


class Pressing:
    """A loss during which Ctrl-C is pressed once, at a given update.

    What changes is kept in a list, which is no part of a workload's fingerprint.
    """

    def __init__(self, *at: int) -> None:
        self.at = list(at)
        self.calls = [-1]  # the check of the workload is the first

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if output.requires_grad:
            self.calls[0] += 1
            if self.calls[0] in self.at:
                signal.raise_signal(signal.SIGINT)
        return F.cross_entropy(output, target)


PLANS = {
    "smith": Plan(4, 0.05, examples=400, schedule=smith(4, at=(90, 201, 300), factor=2.5, cap=20)),
    "seesaw, cut, cooling": Plan(
        5, 0.05, examples=333, shape="cooldown", schedule=seesaw(5, at=(100, 205), factor=2), micro_batch_size=4
    ),
    "linear growth": Plan(3, 0.02, examples=300, warmup_examples=50, schedule=linear_growth(3, 12, examples=200)),
    "measured": Plan(
        8, 0.002, examples=1200, schedule=Schedule((Phase(0, 8),), MeasuredGrowth(1e4, 30, sustained=2, every=5))
    ),
}


def start(workload: Workload, plan: Plan, path: Path | None) -> tuple[Run, TrainResult]:
    return run_of(workload, plan, checkpoint=path, observer=noise_observer(plan, noise=False, seed=2))


def told(result: TrainResult) -> list[Any]:
    return [(p.examples, p.iterations, p.validation_loss, p.training_loss, p.batch_size) for p in result.curve]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("kind", ["dropout", "augmented"])
def test_a_run_broken_off_anywhere_equals_the_unbroken_one(make: Make, tmp_path: Path, name: str, kind: str) -> None:
    plan = PLANS[name]
    whole, result = start(make(kind, loss=Pressing()), plan, None)
    assert result.outcome == "finished"
    calls = getattr(whole.workload.loss, "calls")[0]  # noqa: B009 — mypy knows it as a plain function
    for at in range(1, calls, 1 + calls // 9):
        path = tmp_path / f"c{at}"
        assert start(make(kind, loss=Pressing(at)), plan, path)[1].outcome in ("interrupted", "finished")
        again, resumed = start(make(kind, loss=Pressing()), plan, path)
        same(whole.model.state_dict(), again.model.state_dict())
        assert told(resumed) == told(result)
        settings = [{**r.optimizer.param_groups[0], "params": None} for r in (again, whole)]
        assert settings[0] == settings[1]
    if kind == "augmented":  # with dropout the noise scale of so few updates is not resolved
        assert len({point.batch_size for point in result.curve}) > 1


def test_a_measured_batch_grows_within_its_bounds(make: Make) -> None:
    plan = PLANS["measured"]
    run, result = start(make("mlp"), plan, None)
    segments = run.course.schedule.segments
    assert [segment.phase.batch_size for segment in segments] == [8, 16, 30]  # the knee calls for far more
    assert all(segment.first_update % 5 == 0 for segment in segments)
    assert result.examples == 1200
    assert result.iterations == run.iterations == run.course.schedule.updates(1200)
    # By the optimiser's own rule: SGD's rate as the batch.
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.002 * 30 / 8)
    assert run.optimizer._optimizer_step_pre_hooks == {}  # the observer is gone


def test_a_measured_batch_stays_where_nothing_calls_for_more(make: Make) -> None:
    plan = Plan(8, 0.05, examples=600, schedule=Schedule((Phase(0, 8),), MeasuredGrowth(1e-3, every=5)))
    watched, _ = start(make(), plan, None)
    plain, _ = run_of(make(), Plan(8, 0.05, examples=600))
    assert len(watched.course.schedule.phases) == 1
    same(watched.model.state_dict(), plain.model.state_dict())  # measuring changes nothing


def test_a_workload_that_cannot_be_measured_is_said_so(make: Make) -> None:
    plan = Plan(8, 0.05, examples=600, schedule=measured(8, knee=100, every=3))
    with pytest.raises(WorkloadError, match="cannot be measured"):
        start(make("batch norm"), plan, None)


class Told:
    """An observer that says what it is told to."""

    def __init__(self, *_: object, value: float) -> None:
        self.value, self.closed = value, False

    @property
    def noise_scale(self) -> Interval:
        return Interval(self.value, self.value, self.value)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def test_the_curve_says_the_noise_scale(make: Make) -> None:
    _, result = run_of(make(), Plan(8, 0.05, examples=100), observer=partial(Told, value=12.5))
    assert [p.noise_scale for p in result.curve] == [12.5] * 3
    _, result = run_of(make(), Plan(8, 0.05, examples=100))
    assert [p.noise_scale for p in result.curve] == [None] * 3


def test_noise_is_measured_where_it_is_asked_for(make: Make) -> None:
    plan = Plan(8, 0.05, examples=8 * 400)
    watched = bs.train(make(examples=200), plan, noise=True, evaluate_every=800)
    plain = bs.train(make(examples=200), plan, evaluate_every=800)
    assert watched.curve[-1].noise_scale is None or watched.curve[-1].noise_scale > 0
    assert [p.validation_loss for p in watched.curve] == [p.validation_loss for p in plain.curve]
    # One that cannot be measured is trained all the same.
    assert bs.train(make("batch norm"), Plan(8, 0.05, examples=1200), noise=True).outcome == "finished"

"""The loop: what it trains, what it records, how it ends, and what it leaves alone."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import batchscope as bs
from batchscope import ArgumentError, Plan, PlanError, TrainResult, Workload
from batchscope.records import CurvePoint
from batchscope.seeding import derive, isolated
from batchscope.training import Prepared, Run
from batchscope.training import train as train_unchecked
from batchscope.training.order import ExampleOrder
from batchscope.workload.quadratic import quadratic

CPU = torch.device("cpu")
Make = Callable[..., Workload]
TIMES = {
    "data_seconds",
    "compute_seconds",
    "step_seconds",
    "evaluation_seconds",
    "total_seconds",
    "peak_memory_bytes",
} | {"contention"}


def plan_of(batch_size: int = 8, **changes: Any) -> Plan:
    return Plan(**({"batch_size": batch_size, "learning_rate": 0.05, "iterations": 20} | changes))


def train(workload: Workload, plan: Plan | None = None, **options: Any) -> TrainResult:
    return bs.train(workload, plan or plan_of(), **({"evaluate_every": 40} | options))


def unchecked(workload: Workload, plan: Plan) -> TrainResult:
    """As bs.train, for targets that it would refuse."""
    return train_unchecked(workload, plan, evaluate_every=40)


def run_of(workload: Workload, plan: Plan, **options: Any) -> tuple[Run, TrainResult]:
    run = Run(Prepared(workload, CPU, workers=0), plan, **({"seed": 0, "evaluate_every": 40} | options))
    return run, run()


def untimed(result: TrainResult) -> dict[str, Any]:
    """Everything in a result but times, memory and the moment it was made."""
    plain = {key: value for key, value in vars(result).items() if key not in TIMES | {"provenance", "state", "curve"}}
    plain["curve"] = [vars(point) | {"seconds": None} for point in result.curve]
    plain["state"] = {key: value.tolist() for key, value in (result.state or {}).items()}
    return plain


def weights(run: Run) -> dict[str, Tensor]:
    return dict(run.model.state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# The reference: a loop as anyone would write it


def reference(workload: Workload, plan: Plan, seed: int = 0) -> tuple[dict[str, Tensor], list[float]]:
    """The final weights and every update's loss of a hand-written loop."""
    assert isinstance(workload.train, tuple)
    assert plan.budget_examples is not None
    x, y = workload.train
    with isolated(derive(seed, "weights")):
        model = workload.model()
        optimizer = workload.optimizer(model.parameters(), plan.learning_rate)
    order = ExampleOrder(plan.order, len(x), seed=derive(seed, "data"), labels=lambda: y)
    indices = order.indices(0, plan.budget_examples)
    losses = []
    # Gathered at once: the last bits of a matrix product can depend on where in memory a batch begins.
    inputs, targets = torch.split(x[indices], plan.batch_size), torch.split(y[indices], plan.batch_size)
    with isolated(derive(seed, "training")):
        for i, (input_, target) in enumerate(zip(inputs, targets, strict=True)):
            if plan.shape == "linear":
                optimizer.param_groups[0]["lr"] = plan.learning_rate * (1 - i / len(inputs))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(input_), target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    return model.state_dict(), losses


@pytest.mark.parametrize("kind", ["mlp", "dropout", "batch norm", "cnn", "transformer", "tied"])
@pytest.mark.parametrize(
    "plan",
    [
        plan_of(8),
        plan_of(8, shape="linear"),
        plan_of(7, examples=101, iterations=None, order="replacement"),
        plan_of(45, iterations=5, order="stratified"),
        plan_of(2, iterations=150),
    ],
    ids=["constant", "linear", "ragged", "full batch", "across pauses"],
)
def test_it_equals_a_hand_written_loop_bit_for_bit(make: Make, kind: str, plan: Plan) -> None:
    workload = make(kind)
    expected, losses = reference(workload, plan)
    run, result = run_of(workload, plan)
    assert equal(weights(run), expected)
    assert result.outcome == "finished"
    assert result.iterations == len(losses)
    means = [point.training_loss for point in result.curve]
    edges = [point.iterations for point in result.curve]
    assert means[0] is None
    assert means[1:] == [math.fsum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_it_equals_a_hand_written_loop_with_any_optimiser(make: Make, optimizer: Any) -> None:
    workload = make(optimizer=lambda parameters, rate: optimizer(parameters, lr=rate))
    plan = plan_of(shape="linear", learning_rate=0.01)
    assert equal(weights(run_of(workload, plan)[0]), reference(workload, plan)[0])


def test_the_expected_loss_of_plain_sgd_on_a_quadratic_is_met() -> None:
    from batchscope.workload.quadratic import expected_loss, true_loss

    workload = quadratic(dimensions=8, examples=4096, noise=2.0, condition=10.0, dtype=torch.float64)
    plan = Plan(batch_size=16, learning_rate=0.2, iterations=60, order="replacement")
    prepared = Prepared(workload, CPU)
    found, expected = [], []
    for seed in range(40):
        run = Run(prepared, plan, seed=seed, evaluate_every=960)
        start = run.model.state_dict()["theta"].clone()
        expected.append(expected_loss(workload, start, learning_rate=0.2, batch_size=16, iterations=60))
        run()
        found.append(true_loss(workload, run.model.state_dict()["theta"]))
    difference = np.array(found) - np.array(expected)
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / math.sqrt(40)
    assert abs(difference.mean()) < 0.1 * np.mean(expected)


# The grid of evaluations


@pytest.mark.parametrize("batch_size", [1, 3, 8, 20, 45])
def test_evaluations_lie_on_one_grid_of_examples(make: Make, batch_size: int) -> None:
    plan = plan_of(batch_size, examples=200, iterations=None)
    result = train(make(), plan, evaluate_every=40)
    examples = [point.examples for point in result.curve]
    # At the first update at or after every multiple; two multiples within one update share an evaluation.
    expected = sorted({min(200, -(-multiple // batch_size) * batch_size) for multiple in range(0, 201, 40)})
    assert examples == expected
    assert [point.iterations for point in result.curve] == [-(-e // batch_size) for e in expected]
    assert all(0 <= e - m < batch_size for e, m in zip(examples, range(0, 200, 40), strict=False))


def test_a_ragged_budget_is_met_exactly(make: Make) -> None:
    result = train(make(), plan_of(8, examples=101, iterations=None))
    assert (result.examples, result.iterations) == (101, 13)
    assert result.curve[-1].examples == 101
    assert [point.examples for point in result.curve] == [0, 40, 80, 101]


def test_the_last_update_is_always_evaluated(make: Make) -> None:
    result = train(make(), evaluate_every=10**9)
    assert [point.iterations for point in result.curve] == [0, 20]
    assert result.final_score == result.curve[-1].score
    assert result.final_loss == result.curve[-1].validation_loss


@pytest.mark.parametrize("value", [0, -5, 2.5, True, "40"])
def test_an_evaluation_distance_that_makes_no_sense_is_refused(make: Make, value: Any) -> None:
    with pytest.raises(ArgumentError, match="evaluate_every"):
        train(make(), evaluate_every=value)


def test_training_does_not_depend_on_how_often_it_is_evaluated(make: Make) -> None:
    for kind in ("dropout", "noisy", "augmented"):
        workload = make(kind)
        runs = [run_of(workload, plan_of(), evaluate_every=every)[0] for every in (8, 24, 10**6)]
        assert equal(weights(runs[0]), weights(runs[1]))
        assert equal(weights(runs[0]), weights(runs[2]))


def test_listeners_are_told_of_every_evaluation(make: Make) -> None:
    points: list[tuple[CurvePoint, float | None]] = []
    _, result = run_of(make(), plan_of(), on_evaluation=lambda point, left: points.append((point, left)))
    assert tuple(point for point, _ in points) == result.curve
    assert points[0][1] is None
    assert points[-1][1] == 0.0
    assert all(left is not None and left >= 0 for _, left in points[1:])


# The clock


class SlowClock:
    """A clock that moves when it is told to: by a millisecond for a reading, by an hour for an evaluation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", self.read)

    def read(self) -> float:
        self.now += 0.001
        return self.now


def test_evaluation_is_off_the_clock(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SlowClock(monkeypatch)

    def slow_score(output: Tensor, target: Tensor) -> float:
        clock.now += 3600
        return 0.5

    def told(event: object) -> None:
        clock.now += 3600

    result = train(make(score=slow_score), progress=told)
    evaluations = len(result.curve)
    assert result.step_seconds < 1
    assert [point.seconds < 1 for point in result.curve] == [True] * evaluations
    assert result.evaluation_seconds == pytest.approx(3600 * evaluations, abs=1)
    assert result.total_seconds > 3600 * 2 * evaluations


def test_the_time_of_steps_and_data_is_on_the_clock(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SlowClock(monkeypatch)

    def slow_loss(output: Tensor, target: Tensor) -> Tensor:
        if output.requires_grad:
            clock.now += 10
        return F.cross_entropy(output, target)

    class SlowData(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __init__(self, tensors: Any) -> None:
            self.tensors = tensors

        def __len__(self) -> int:
            return 45

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            clock.now += 1
            return self.tensors[0][index], self.tensors[1][index]

    result = train(make(train=SlowData(make().train), loss=slow_loss), workers=0)
    assert result.compute_seconds == pytest.approx(20 * 10, abs=1)
    assert result.data_seconds == pytest.approx(20 * 8, abs=1)
    assert result.step_seconds == pytest.approx(result.compute_seconds + result.data_seconds)
    seconds = [point.seconds for point in result.curve]
    assert seconds == pytest.approx([0, 90, 180, 270, 360], abs=1)


# Divergence


class Sabotaged:
    """A loss that goes wrong at one update."""

    def __init__(self, at: int, to: float) -> None:
        self.at, self.to, self.calls = at, to, 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output, target)
        if not output.requires_grad:
            return loss
        self.calls += 1
        return loss * 0 + self.to if self.calls == self.at + 1 else loss  # the check of the workload is the first call


@pytest.mark.parametrize("to", [math.nan, math.inf, -math.inf, 2e3, -2e3])
@pytest.mark.parametrize("at", [1, 7, 8, 99, 128])
def test_divergence_is_a_result_with_its_update(make: Make, to: float, at: int) -> None:
    run, result = run_of(make(loss=Sabotaged(at, to)), plan_of(iterations=200), evaluate_every=800)
    assert (result.outcome, result.diverged_at_iteration) == ("diverged", at)
    assert result.message == f"the loss of update {at} is {to:.4g}"
    assert at <= result.iterations <= at + 64
    assert (result.final_score, result.final_loss, result.training_score, result.generalisation_gap) == (None,) * 4
    assert result.best_score == max(point.score for point in result.curve)
    assert result.state is not None
    assert run.clock.seconds == result.step_seconds


def test_a_large_loss_is_no_divergence_where_losses_are_large(make: Make) -> None:
    def large(output: Tensor, target: Tensor) -> Tensor:
        return 1000 * F.cross_entropy(output, target)

    assert train(make(loss=large), plan_of(learning_rate=1e-5)).outcome == "finished"
    loss = Sabotaged(3, 900.0)  # below a thousand times the first validation loss, or one
    assert train(make(loss=loss)).outcome == "finished"


def test_a_rate_beyond_stability_diverges_for_real() -> None:
    result = train(quadratic(), Plan(batch_size=32, learning_rate=50.0, iterations=300))
    assert result.outcome == "diverged"
    assert result.diverged_at_iteration is not None
    assert result.diverged_at_iteration < 20


def test_a_validation_loss_that_is_not_finite_is_divergence(make: Make) -> None:
    evaluations = itertools.count(-2)  # the check of the workload evaluates twice

    def loss(output: Tensor, target: Tensor) -> Tensor:
        found = F.cross_entropy(output, target)
        return found if output.requires_grad or next(evaluations) < 2 else found * math.nan

    result = train(make(loss=loss))
    assert (result.outcome, result.diverged_at_iteration, result.iterations) == ("diverged", 10, 10)
    assert result.message == "the validation loss after update 10 is nan"
    assert math.isnan(result.curve[-1].validation_loss)
    assert result.best_loss == min(point.validation_loss for point in result.curve[:-1])


def test_a_score_that_is_not_a_number_ends_nothing(make: Make) -> None:
    answers = itertools.chain([0.1, 0.2, math.nan, 0.4], itertools.repeat(0.3))
    result = train(make(score=lambda output, target: next(answers)))
    assert result.outcome == "finished"
    assert [point.score for point in result.curve] == pytest.approx([0.2, math.nan, 0.4, 0.3, 0.3], nan_ok=True)
    assert result.best_score == 0.4


# Modes and what is left alone


def test_a_frozen_batch_norm_stays_frozen(make: Make) -> None:
    run, _ = run_of(make("frozen norm"), plan_of())
    state = weights(run)
    assert torch.equal(state["norm.running_mean"], torch.zeros(8))
    assert int(state["norm.num_batches_tracked"]) == 0
    assert int(state["live.num_batches_tracked"]) == 20
    assert not run.model.get_submodule("norm").training
    assert run.model.get_submodule("live").training


def test_batch_norm_learns_its_statistics_from_training_alone(make: Make) -> None:
    run, _ = run_of(make("batch norm"), plan_of(), evaluate_every=8)
    assert int(weights(run)["1.num_batches_tracked"]) == 20


def test_dropout_is_at_work_in_training(make: Make) -> None:
    assert not equal(
        weights(run_of(make("dropout"), plan_of())[0]),
        weights(run_of(make("dropout", model=lambda: no_dropout(make)), plan_of())[0]),
    )


def no_dropout(make: Make) -> nn.Module:
    model = make("dropout").model()
    model.get_submodule("2").p = 0.0  # type: ignore[assignment]
    return model


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())  # noqa: NPY002


@pytest.mark.parametrize("kind", ["dropout", "augmented", "noisy"])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_person_s_random_state_goes_on_as_if_nothing_had_happened(make: Make, kind: str, workers: int) -> None:
    def seed() -> None:
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002

    workload = make(kind)
    seed()
    expected = [draws(), draws()]
    seed()
    found = [draws()]
    first = train(workload, workers=workers)
    found.append(draws())
    assert found == expected
    assert untimed(train(workload, workers=workers)) == untimed(first)  # and nothing depends on that state


def test_making_a_workload_leaves_the_random_state_alone(make: Make) -> None:
    torch.manual_seed(7)
    expected = draws()[0]
    torch.manual_seed(7)
    make("dropout")
    assert draws()[0] == expected


def test_the_data_and_earlier_models_are_left_alone(make: Make) -> None:
    workload = make()
    assert isinstance(workload.train, tuple)
    before = [tensor.clone() for tensor in workload.train]
    mine = workload.model()
    optimizer = workload.optimizer(mine.parameters(), 0.05)
    weights_before = {key: value.clone() for key, value in mine.state_dict().items()}
    train(workload)
    assert all(map(torch.equal, workload.train, before))
    assert equal(dict(mine.state_dict()), weights_before)
    assert optimizer.state_dict()["state"] == {}
    assert all(parameter.grad is None for parameter in mine.parameters())


def test_signal_handlers_and_threads_are_put_back(make: Make) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = torch.get_num_threads()
    train(make())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.get_num_threads() == threads


# Seeds


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(make: Make) -> None:
    for kind in ("dropout", "augmented"):
        workload = make(kind)
        assert untimed(train(workload, seed=3)) == untimed(train(workload, seed=3))
        assert untimed(train(workload, seed=3))["curve"] != untimed(train(workload, seed=4))["curve"]


def test_runs_that_share_their_data_do_not_depend_on_their_order(make: Make) -> None:
    workload = make("augmented")
    plans = [plan_of(5), plan_of(9, order="stratified")]
    alone = [untimed(run_of(workload, plan)[1]) for plan in plans]
    prepared = Prepared(workload, CPU, workers=0)
    for order in ((0, 1, 0), (1, 0, 1)):
        for i in order:
            assert untimed(Run(prepared, plans[i], seed=0, evaluate_every=40)()) == alone[i]


def test_initial_weights_are_the_same_for_every_batch_size_and_rate(make: Make) -> None:
    workload = make()
    prepared = Prepared(workload, CPU)
    plans = [plan_of(1), plan_of(45), plan_of(8, learning_rate=3.0, shape="linear"), plan_of(4, micro_batch_size=2)]
    runs = [Run(prepared, plan, seed=5) for plan in plans]
    assert all(equal(weights(run), weights(runs[0])) for run in runs)
    assert not equal(weights(Run(prepared, plans[0], seed=6)), weights(runs[0]))
    assert len({run().curve[0].validation_loss for run in runs}) == 1


# The learning rate


def test_the_linear_shape_spends_the_whole_rate_first_and_a_last_part_of_it_last(make: Make) -> None:
    rates: list[list[float]] = []

    class Noting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def two_groups(parameters: Any, rate: float) -> torch.optim.Optimizer:
        first, *others = parameters
        return Noting([{"params": [first], "lr": rate / 10}, {"params": others}], lr=rate)

    result = train(make(optimizer=two_groups), plan_of(shape="linear", learning_rate=0.2))
    expected = [[0.02 * (1 - k / 20), 0.2 * (1 - k / 20)] for k in range(20)]
    assert np.allclose(rates, expected, rtol=1e-14)
    assert result.curve[0].learning_rate == 0.02  # the first group's; of the first update to come
    assert result.curve[-1].learning_rate == pytest.approx(0.02 / 20)

    rates.clear()
    train(make(optimizer=two_groups), plan_of(learning_rate=0.2))
    assert rates == [[0.02, 0.2]] * 20


def test_a_rate_that_is_a_tensor_is_set_in_place(make: Make) -> None:
    rates: list[float] = []
    tensors: set[int] = set()

    class Noting(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            lr = self.param_groups[0]["lr"]
            tensors.add(id(lr))
            rates.append(float(lr))
            return super().step(closure)

    def captured(parameters: Any, rate: float) -> torch.optim.Optimizer:
        return Noting(parameters, lr=torch.tensor(rate, dtype=torch.float64))

    train(make(optimizer=captured), plan_of(shape="linear"))
    assert rates == pytest.approx([0.05 * (1 - k / 20) for k in range(20)])
    assert len(tensors) == 1


def test_settings_are_rescaled_from_the_reference(make: Make) -> None:
    run = Run(Prepared(make(), CPU), plan_of(32, rescaled_from=8, learning_rate=0.1), seed=0)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.4)
    result = run()
    assert result.curve[-1].learning_rate == pytest.approx(0.4)


# How runs end


def test_a_target_that_is_reached(make: Make) -> None:
    whole = train(make(), plan_of(iterations=60))
    target = whole.curve[-1].score
    first = next(point for point in whole.curve if point.score >= target)
    result = train(make(), plan_of(iterations=60, target=target))
    assert (result.outcome, result.reached) == ("reached", True)
    assert (result.examples, result.iterations) == (first.examples, first.iterations)
    assert result.final_score == first.score
    assert result.training_score is not None
    assert result.generalisation_gap == result.training_score - first.score


def test_a_target_that_is_not_reached(make: Make) -> None:
    result = unchecked(make(), plan_of(target=1.5))
    assert (result.outcome, result.reached, result.iterations) == ("finished", False, 20)


def test_a_target_that_holds_at_the_start(make: Make) -> None:
    result = unchecked(make(), plan_of(target=-1.0))
    assert (result.outcome, result.reached, result.examples, result.iterations) == ("reached", True, 0, 0)
    assert result.step_seconds == 0
    assert result.final_score == result.curve[0].score


def test_a_target_without_a_budget_is_given_up_in_the_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscope.training.loop.MOST_EPOCHS", 3)
    result = unchecked(make(), Plan(batch_size=8, learning_rate=0.05, target=1.5))
    assert (result.outcome, result.examples) == ("finished", 3 * 45)


def test_a_batch_larger_than_the_data_is_refused(make: Make) -> None:
    with pytest.raises(PlanError, match=r"at most the number of training examples; got 46 > 45"):
        train(make(), plan_of(46))


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0", None])
def test_a_seed_that_makes_no_sense_is_refused(make: Make, seed: Any) -> None:
    with pytest.raises(ArgumentError, match="seed must be a whole number"):
        train(make(), seed=seed)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_a_device_that_is_not_there_is_refused(make: Make, device: str) -> None:
    with pytest.raises(ArgumentError, match="device must be one that torch can use here"):
        train(make(), device=device)


class Interrupting:
    """A loss that presses Ctrl-C at one update, in whatever way it is given."""

    def __init__(self, at: int, press: Callable[[], None]) -> None:
        self.at, self.press, self.calls = at, press, 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if output.requires_grad:
            self.calls += 1
            if self.calls == self.at + 1:
                self.press()
        return F.cross_entropy(output, target)


def from_a_thread() -> None:
    thread = threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGINT))
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "press", [from_a_thread, lambda: signal.raise_signal(signal.SIGINT), lambda: os.kill(os.getpid(), signal.SIGTERM)]
)
def test_ctrl_c_keeps_what_is_finished(make: Make, press: Callable[[], None]) -> None:
    whole = train(make())
    result = train(make(loss=Interrupting(13, press)))
    assert result.outcome == "interrupted"
    assert (result.iterations, result.examples) == (13, 104)
    assert [vars(p) | {"seconds": 0} for p in result.curve] == [vars(p) | {"seconds": 0} for p in whole.curve[:3]]
    assert result.state is not None
    assert result.final_score is None
    assert result.training_score is None
    assert result.step_seconds > 0


def test_ctrl_c_from_a_score_ends_the_run_there(make: Make) -> None:
    calls = itertools.count(-1)

    def score(output: Tensor, target: Tensor) -> float:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return 0.5

    result = train(make(score=score))
    assert (result.outcome, result.iterations, len(result.curve)) == ("interrupted", 10, 3)


def test_ctrl_c_at_the_last_update_comes_too_late_to_lose_anything(make: Make) -> None:
    result = train(make(loss=Interrupting(20, lambda: signal.raise_signal(signal.SIGINT))))
    assert result.outcome == "finished"


def test_a_second_ctrl_c_interrupts_at_once(make: Make) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make(loss=Interrupting(3, twice)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_trains_outside_the_main_thread(make: Make) -> None:
    workload, results = make(), []
    thread = threading.Thread(target=lambda: results.append(train(workload)))
    thread.start()
    thread.join()
    assert untimed(results[0]) == untimed(train(workload))


class Exhausting(Interrupting):
    """A loss that raises from one update on, however few examples are in it."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if output.requires_grad and self.calls >= self.at:
            self.press()
        return super().__call__(output, target)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError("no room"),
    ],
)
@pytest.mark.parametrize("at", [1, 14])
def test_running_out_of_memory_is_a_result(make: Make, error: Exception, at: int) -> None:
    def press() -> None:
        raise error

    result = train(make(loss=Exhausting(at, press)))
    assert result.outcome == "out of memory"
    assert result.message == str(error).splitlines()[0]
    assert result.iterations == at - 1
    assert len(result.curve) == 1 + (at - 1) // 5
    assert result.final_score is None


def test_running_out_of_memory_without_a_word_is_a_result_too(make: Make) -> None:
    def press() -> None:
        raise MemoryError

    result = train(make(loss=Exhausting(2, press)))
    assert result.outcome == "out of memory"
    assert result.message


def test_running_out_of_memory_at_the_first_evaluation_is_a_result(make: Make) -> None:
    calls = itertools.count(-1)

    def score(output: Tensor, target: Tensor) -> float:
        if next(calls) >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.0

    result = train(make(score=score))
    assert (result.outcome, result.iterations, result.curve, result.state) == ("out of memory", 0, (), None)


def test_other_errors_of_the_model_come_through(make: Make) -> None:
    def press() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        train(make(loss=Interrupting(3, press)))


# The result


def test_times_and_parts_of_a_result_fit_together(make: Make) -> None:
    result = train(make(), plan_of(iterations=50))
    assert result.step_seconds == pytest.approx(result.data_seconds + result.compute_seconds)
    assert result.total_seconds > result.step_seconds + result.evaluation_seconds
    seconds = [point.seconds for point in result.curve]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0
    assert seconds[-1] == result.step_seconds
    assert result.best_score == max(point.score for point in result.curve)
    assert result.best_loss == min(point.validation_loss for point in result.curve)
    assert result.training_score is not None
    assert result.final_score is not None
    assert result.generalisation_gap == result.training_score - result.final_score


def test_the_state_is_that_of_the_best_score(make: Make) -> None:
    workload = make("batch norm")
    result = train(workload, plan_of(iterations=60, learning_rate=1.0))
    assert result.state is not None
    assert isinstance(workload.validation, tuple)
    model = workload.model()
    model.load_state_dict(result.state)
    model.eval()
    assert workload.score is not None
    with torch.no_grad():
        assert float(workload.score(model(workload.validation[0]), workload.validation[1])) == result.best_score
    assert result.best_examples == next(p.examples for p in result.curve if p.score == result.best_score)


def test_weights_can_be_left_uncopied(make: Make) -> None:
    assert run_of(make(), plan_of(), keep_best_weights=False)[1].state is None

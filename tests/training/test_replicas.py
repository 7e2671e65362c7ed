"""Replicas: each is what a single run is, and the stack leaves everything else alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from batchscope import Plan, PlanError, TrainResult, Workload, WorkloadError
from batchscope.records import CurvePoint
from batchscope.training import Prepared, Run
from batchscope.training.memory import is_out_of_memory
from batchscope.training.replicas import Replicas

CPU = torch.device("cpu")
Make = Callable[..., Workload]
RATES = (0.02, 0.05, 0.1)

OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "SGD": lambda p, r: torch.optim.SGD(p, lr=r, weight_decay=1e-2),
    "momentum": lambda p, r: torch.optim.SGD(p, lr=r, momentum=0.9, dampening=0.1),
    "Nesterov": lambda p, r: torch.optim.SGD(p, lr=r, momentum=0.9, nesterov=True),
    "Adam": lambda p, r: torch.optim.Adam(p, lr=r / 10),
    "AdamW": lambda p, r: torch.optim.AdamW(p, lr=r / 10),
    "RMSprop": lambda p, r: torch.optim.RMSprop(p, lr=r / 10, momentum=0.5),
    "Adagrad": lambda p, r: torch.optim.Adagrad(p, lr=r),
    "NAdam": lambda p, r: torch.optim.NAdam(p, lr=r / 10),
}


def plans_of(rates: Sequence[float] = RATES, **changes: Any) -> list[Plan]:
    return [Plan(**({"batch_size": 8, "learning_rate": rate, "iterations": 200} | changes)) for rate in rates]


def prepared_of(workload: Workload) -> Prepared:
    return Prepared(workload, CPU, workers=0)


def single(prepared: Prepared, plan: Plan, seed: int, **options: Any) -> tuple[Run, TrainResult]:
    options = {"evaluate_every": 400, "measure_memory": False, "evaluate_training": False} | options
    run = Run(prepared, plan, seed=seed, **options)
    return run, run()


def double(workload: Workload) -> dict[str, Any]:
    """Changes that make a workload of the catalogue compute in float64."""
    assert isinstance(workload.train, tuple)
    assert isinstance(workload.validation, tuple)
    model = workload.model

    def made() -> nn.Module:
        return model().double()

    def wide(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(t.double() if t.is_floating_point() else t for t in tensors)

    return {"model": made, "train": wide(workload.train), "validation": wide(workload.validation)}


def assert_same(found: TrainResult, expected: TrainResult, tolerance: float) -> None:
    """The same run, but for its times and the last bits."""

    def near(value: float | None) -> Any:
        return pytest.approx(value, rel=tolerance, abs=tolerance / 10, nan_ok=True)

    for name in ("plan", "seed", "outcome", "reached", "examples", "iterations", "best_examples", "micro_batch_size"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.diverged_at_iteration == expected.diverged_at_iteration
    assert len(found.curve) == len(expected.curve)
    for here, there in zip(found.curve, expected.curve, strict=True):
        assert (here.examples, here.iterations) == (there.examples, there.iterations)
        assert here.learning_rate == pytest.approx(there.learning_rate, rel=1e-12)
        assert here.validation_loss == near(there.validation_loss)
        assert here.score == near(there.score)
        assert (here.training_loss is None) == (there.training_loss is None)
        if there.training_loss is not None:
            assert here.training_loss == near(there.training_loss)
    for name in ("best_score", "best_loss", "final_score", "final_loss"):
        assert getattr(found, name) == near(getattr(expected, name)), name


# Equal to single runs


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
def test_each_replica_is_a_single_run_with_any_optimiser(make: Make, kind: str) -> None:
    chosen = ["SGD"]
    # One workload for all of them, whose step is then traced once.

    def optimizer(parameters: Any, rate: float) -> torch.optim.Optimizer:
        return OPTIMIZERS[chosen[0]](parameters, rate)

    workload = make(kind, optimizer=optimizer, **double(make(kind)))
    prepared, plans, seeds = prepared_of(workload), plans_of((0.05, 0.1), shape="linear"), [1, 0]
    for name in list(OPTIMIZERS)[: None if kind == "mlp" else 5]:
        chosen[0] = name
        singles = [single(prepared, plan, seed) for plan, seed in zip(plans, seeds, strict=True)]
        for in_turn in (False, True)[: 1 + (name in ("momentum", "AdamW"))]:
            stack = Replicas(prepared, plans, seeds, evaluate_every=400, in_turn=in_turn)
            assert stack.stack.optimizer.is_flat
            for k, result in enumerate(stack()):
                run, expected = singles[k]
                assert_same(result, expected, 1e-9)
                if kind == "transformer":
                    continue  # its key's bias has no gradient but rounding, which Adam blows up
                for parameter, tensor in stack.stack.models[k].state_dict().items():
                    assert torch.allclose(tensor, run.model.state_dict()[parameter], rtol=1e-9, atol=1e-12), parameter


@pytest.mark.parametrize("kind", ["cnn", "batch norm", "frozen norm", "tied"])
def test_each_replica_is_a_single_run_in_single_precision(make: Make, kind: str) -> None:
    prepared, plans, seeds = prepared_of(make(kind)), plans_of((0.01, 0.02, 0.05), iterations=60), [3, 3, 4]
    singles = [single(prepared, plan, seed)[1] for plan, seed in zip(plans, seeds, strict=True)]
    for in_turn in (False, True):
        results = Replicas(prepared, plans, seeds, evaluate_every=400, in_turn=in_turn)()
        for result, expected in zip(results, singles, strict=True):
            assert_same(result, expected, 2e-3)


@pytest.mark.parametrize("kind", ["tensor dataset", "augmented"])
@pytest.mark.parametrize("order", ["shuffled", "stratified"])
def test_a_dataset_is_read_as_a_single_run_reads_it(make: Make, kind: str, order: Any) -> None:
    prepared, plans, seeds = prepared_of(make(kind)), plans_of(order=order, iterations=20), [0, 1, 0]
    for result, plan, seed in zip(Replicas(prepared, plans, seeds)(), plans, seeds, strict=True):
        assert_same(result, single(prepared, plan, seed, evaluate_every=None)[1], 1e-4)


@pytest.mark.parametrize("changes", [{"examples": 101}, {"order": "replacement"}, {"order": "stratified"}])
def test_the_short_last_batch_and_other_orders_too(make: Make, changes: dict[str, Any]) -> None:
    prepared, seeds = prepared_of(make("batch norm")), [0, 1, 2]
    plans = plans_of(**({"iterations": None} if "examples" in changes else {}) | changes)
    results = Replicas(prepared, plans, seeds, evaluate_every=40)()
    for result, plan, seed in zip(results, plans, seeds, strict=True):
        assert_same(result, single(prepared, plan, seed, evaluate_every=40)[1], 1e-4)


def test_settings_rescaled_from_a_reference_are_rescaled_for_each(make: Make) -> None:
    workload = make(optimizer=OPTIMIZERS["Adam"])
    prepared, plans = prepared_of(workload), plans_of(rescaled_from=2, iterations=50)
    for result, plan in zip(Replicas(prepared, plans, [0, 0, 0])(), plans, strict=True):
        assert_same(result, single(prepared, plan, 0, evaluate_every=None)[1], 1e-4)


def test_groups_of_parameters_keep_their_own_settings(make: Make) -> None:
    def groups(parameters: Any, rate: float) -> torch.optim.Optimizer:
        weights: list[Any] = list(parameters)
        decayed: Any = [p for p in weights if p.dim() > 1]
        plain: Any = [p for p in weights if p.dim() <= 1]
        # Not a multiple of the rate, and in another order than the model's.
        own: Any = [{"params": plain, "lr": 0.01, "weight_decay": 0.0}, {"params": decayed}]
        return torch.optim.AdamW(own, lr=rate / 5)

    workload = make(optimizer=groups, **double(make()))
    prepared, plans = prepared_of(workload), plans_of(shape="linear")
    for result, plan in zip(Replicas(prepared, plans, [0, 1, 2])(), plans, strict=True):
        assert_same(result, single(prepared, plan, plans.index(plan), evaluate_every=None)[1], 1e-9)


class ClippedSGD(torch.optim.SGD):
    """Scales each tensor's gradient to length one, as no elementwise optimiser does."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad /= parameter.grad.norm()
        return super().step(closure)


def test_an_optimiser_that_is_not_elementwise_sees_parameters_of_their_own_shapes(make: Make) -> None:
    workload = make(optimizer=lambda p, r: ClippedSGD(p, lr=r, momentum=0.9), **double(make()))
    prepared, plans = prepared_of(workload), plans_of(iterations=40)
    stack = Replicas(prepared, plans, [0, 1, 2])
    assert not stack.stack.optimizer.is_flat
    for result, plan in zip(stack(), plans, strict=True):
        assert_same(result, single(prepared, plan, plans.index(plan), evaluate_every=None)[1], 1e-9)


class PartlyUsed(nn.Module):
    """One layer is frozen and one is never used; a single run's optimiser touches neither, nor does weight decay."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.unused, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.frozen(x)))
        return out


def test_frozen_and_unused_weights_are_left_alone(make: Make) -> None:
    prepared, plans = prepared_of(make(model=PartlyUsed, optimizer=OPTIMIZERS["AdamW"])), plans_of()
    stack = Replicas(prepared, plans, [0, 1, 2])
    results = stack()
    for k, plan in enumerate(plans):
        run, expected = single(prepared, plan, k, evaluate_every=None)
        assert_same(results[k], expected, 1e-4)
        for name in ("frozen.weight", "unused.weight", "unused.bias"):
            assert torch.equal(stack.stack.models[k].state_dict()[name], run.model.state_dict()[name])


# Dropout


def test_dropout_draws_a_mask_for_each_replica(make: Make) -> None:
    prepared, plans = prepared_of(make("dropout")), plans_of((0.05,) * 3, iterations=40)
    for in_turn in (False, True):
        results = Replicas(prepared, plans, [0, 0, 0], in_turn=in_turn)()
        assert len({result.final_loss for result in results}) == 3
        again = Replicas(prepared, plans, [0, 0, 0], in_turn=in_turn)()
        assert [result.final_loss for result in again] == [result.final_loss for result in results]


def test_dropout_drops_what_it_should_on_average(make: Make) -> None:
    # One linear layer behind dropout: the expected gradient of its output's sum is the input's, whatever is dropped.
    def summed(output: Tensor, target: Tensor) -> Tensor:
        return output.sum(1).mean()

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2, bias=False)
            nn.init.zeros_(self.linear.weight)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(F.dropout(x, 0.4, self.training))
            return out

    workload = make(model=Dropped, loss=summed, score=None, optimizer=OPTIMIZERS["SGD"])
    assert isinstance(workload.train, tuple)
    plan = Plan(batch_size=45, learning_rate=1.0, iterations=1)
    stack = Replicas(prepared_of(workload), [plan] * 400, [0] * 400)
    stack()
    moved = -torch.stack([model.state_dict()["linear.weight"][0] for model in stack.stack.models])
    expected = workload.train[0].mean(0)
    spread = moved.std(0) / math.sqrt(400)
    assert bool((spread > 0).all())
    assert bool(((moved.mean(0) - expected).abs() < 4 * spread).all())
    # Var of a mean over 45 of x·m/(1 − p) with masks m is p/(1 − p)·mean(x²)/45.
    predicted = (0.4 / 0.6 * workload.train[0].square().mean(0) / 45).sqrt()
    assert torch.allclose(moved.std(0), predicted, rtol=0.15)


# How they end, and what becomes of the others


def test_each_ends_as_its_single_run_does(make: Make) -> None:
    workload = make()
    prepared = prepared_of(workload)
    rates, seeds = (0.001, 0.02, 0.1, 0.2), [0, 0, 1, 2]
    for changes in (
        {"target": 0.9},
        {"patience": 2, "tolerance": 0.02},
        {"target": -1.0},
        {"target": 0.9, "examples": 333},
    ):
        plans = plans_of(rates, **({"iterations": None} if "examples" in changes else {}) | changes)
        singles = [single(prepared, p, s, evaluate_every=40)[1] for p, s in zip(plans, seeds, strict=True)]
        told: list[int] = []
        stack = Replicas(prepared, plans, seeds, evaluate_every=40)
        stack.on_finished = lambda k, result, told=told: told.append(k)
        found = stack()
        for result, expected in zip(found, singles, strict=True):
            assert_same(result, expected, 1e-3)
            assert result.stack_size == 4
            assert result.training_score is None
        assert sorted(told) == [0, 1, 2, 3]
        assert [found[k].examples for k in told] == sorted(result.examples for result in found)
    assert len({result.outcome for result in found}) == 2


def test_one_that_diverges_leaves_the_others_alone(make: Make) -> None:
    def explosive(p: Any, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(p, lr=rate)

    workload = make(optimizer=explosive, loss=lambda o, y: (o - torch.eye(3)[y]).square().mean(), score=None)
    prepared, plans, seeds = prepared_of(workload), plans_of((0.05, 50.0, 0.1, 80.0)), [0, 1, 2, 3]
    alone = Replicas(prepared, [plans[0], plans[2]], [0, 2], evaluate_every=400)()
    for in_turn in (False, True):
        found = Replicas(prepared, plans, seeds, evaluate_every=400, in_turn=in_turn)()
        assert [result.outcome for result in found] == ["finished", "diverged", "finished", "diverged"]
        for k in (1, 3):
            expected = single(prepared, plans[k], seeds[k])[1]
            assert found[k].diverged_at_iteration == expected.diverged_at_iteration
            assert found[k].iterations == expected.iterations
            assert found[k].final_score is None
        for k, expected in zip((0, 2), alone, strict=True):
            assert found[k].final_loss == pytest.approx(expected.final_loss, rel=1e-5)
            assert [p.training_loss for p in found[k].curve[1:]] == pytest.approx(
                [p.training_loss for p in expected.curve[1:]], rel=1e-4
            )


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "batch norm"])
def test_pruned_ones_are_dropped_without_disturbing_the_others(make: Make, kind: str, in_turn: bool) -> None:
    workload = make(kind, optimizer=OPTIMIZERS["Adam"], **double(make(kind)))
    prepared, plans, seeds = prepared_of(workload), plans_of((0.02, 0.05, 0.1, 0.2, 0.3)), [0, 1, 2, 0, 1]
    at = {400: [1], 800: [0, 3], 1200: [4]}
    points: list[tuple[int, CurvePoint]] = []

    def prune() -> list[int]:
        return at.get(points[-1][1].examples, [])

    stack = Replicas(
        prepared,
        plans,
        seeds,
        evaluate_every=400,
        in_turn=in_turn,
        prune=prune,
        on_evaluation=lambda k, point: points.append((k, point)),
    )
    found = stack()
    assert [result.outcome for result in found] == ["pruned", "pruned", "finished", "pruned", "pruned"]
    assert [result.examples for result in found] == [800, 400, 1600, 800, 1200]
    assert stack.stack.size == 1  # of five, to those that were left when it paid, to one
    for k, result in enumerate(found):
        assert tuple(point for j, point in points if j == k) == result.curve
        expected = single(prepared, plans[k], seeds[k])[1]
        for here, there in zip(result.curve, expected.curve, strict=False):
            assert here.validation_loss == pytest.approx(there.validation_loss, rel=1e-9)
        assert result.final_score is None or result.final_score == expected.final_score


def test_replicas_that_have_ended_are_neither_evaluated_nor_pruned_again(make: Make) -> None:
    told: list[tuple[int, str]] = []
    points: list[int] = []
    found = Replicas(
        prepared_of(make()),
        plans_of((0.02, 0.05, 0.1)),
        [0, 0, 0],
        evaluate_every=400,
        prune=lambda: [0, 1],
        on_evaluation=lambda k, point: points.append(k),
        on_finished=lambda k, result: told.append((k, result.outcome)),
    )()
    assert told == [(0, "pruned"), (1, "pruned"), (2, "finished")]
    assert points == [0, 1, 2, 2, 2, 2, 2]
    assert [result.iterations for result in found] == [0, 0, 200]


def test_their_seconds_are_shares_of_the_stack_s(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Replicas(prepared_of(make()), plans_of(iterations=64), [0, 1, 2], evaluate_every=64)
    found = stack()
    assert sum(result.step_seconds for result in found) == pytest.approx(stack.clock.seconds)
    assert sum(result.data_seconds for result in found) == pytest.approx(stack.feed.seconds)
    for result in found:
        assert result.step_seconds == pytest.approx(result.data_seconds + result.compute_seconds)
        assert result.total_seconds >= result.step_seconds + result.evaluation_seconds
        seconds = [point.seconds for point in result.curve]
        assert seconds == sorted(seconds)


def test_memory_that_runs_out_is_the_caller_s_to_act_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Replicas(prepared_of(make()), plans_of(), [0, 1, 2])

    def step() -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(stack.stack.optimizer, "step", step)
    with pytest.raises(RuntimeError) as caught:
        stack()
    assert is_out_of_memory(caught.value)


# What is left alone, and what is refused


def test_the_person_s_random_state_goes_on_as_if_nothing_had_happened(make: Make) -> None:
    workload = make("dropout")
    torch.manual_seed(7)
    expected = torch.rand(2).tolist()
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    Replicas(prepared_of(workload), plans_of(iterations=5), [0, 1, 2])()
    assert torch.rand(2).tolist() == expected
    assert torch.get_num_threads() == threads
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    "changes", [{"batch_size": 4}, {"iterations": 7}, {"target": 0.5}, {"shape": "linear"}, {"order": "replacement"}]
)
def test_plans_that_differ_in_more_than_the_rate_are_refused(make: Make, changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(PlanError, match=f"differ in the learning rate alone; got {name}"):
        Replicas(prepared_of(make()), [*plans_of((0.1,)), *plans_of((0.1,), **changes)], [0, 1])


def test_stacks_that_make_no_sense_are_refused(make: Make) -> None:
    prepared = prepared_of(make())
    with pytest.raises(PlanError, match="a plan and a seed for each run; got 0 plans, 0 seeds"):
        Replicas(prepared, [], [])
    with pytest.raises(PlanError, match="got 3 plans, 2 seeds"):
        Replicas(prepared, plans_of(), [0, 1])
    with pytest.raises(PlanError, match="does not cut its batches; got micro_batch_size=2"):
        Replicas(prepared, plans_of(micro_batch_size=2), [0, 1, 2])
    with pytest.raises(PlanError, match="at most the number of training examples"):
        Replicas(prepared, plans_of(batch_size=46), [0, 1, 2])


class TensorTuples(Dataset[Any]):
    """A Dataset that nobody knows the tensors of."""

    def __init__(self, tensors: Any) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Any:
        return tuple(tensor[index] for tensor in self.tensors)


def test_a_batch_of_something_else_than_tensors_is_refused(make: Make) -> None:
    def named(examples: list[Any]) -> dict[str, Any]:
        x, y = zip(*examples, strict=True)
        return {"x": torch.stack(x), "y": torch.stack(y), "names": ["a"] * len(x)}

    data = {"train": TensorTuples(make().train), "validation": TensorTuples(make().validation)}
    workload = make(collate=named, forward=lambda model, batch: (model(batch["x"]), batch["y"]), **data)
    with pytest.raises(WorkloadError, match="made of tensors alone; got str"):
        Replicas(prepared_of(workload), plans_of(), [0, 1, 2])

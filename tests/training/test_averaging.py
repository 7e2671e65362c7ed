"""The average of weights over a run: its closed form, its sampling, and that it leaves what it averages alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from batchscope import Plan, TrainResult, Workload
from batchscope.records import CurvePoint
from batchscope.training.averaging import SPACING, WeightAverage
from batchscope.training.evaluation import evaluate
from batchscope.training.loop import Prepared, Run
from batchscope.training.replicas import Replicas

Make = Callable[..., Workload]


@pytest.mark.parametrize("power", [0.0, 1.0, 8.0])
def test_weights_that_grow_evenly_average_to_the_closed_form(power: float) -> None:
    weight = torch.zeros(3, dtype=torch.float64)
    average = WeightAverage([weight], power)
    for examples in range(1, 20_001):
        weight.fill_(examples)
        average.see(examples)
    with average.in_place():
        # (n + 1)/s^(n + 1) · ∫ tⁿ·t dt = s·(n + 1)/(n + 2), sampled at distances of a two-hundredth
        found = float(weight[0]) / 20_000
    assert found == pytest.approx((power + 1) / (power + 2), rel=2 * SPACING)


def test_noise_about_a_point_averages_out() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(500, dtype=torch.float64)
    average = WeightAverage([weight])
    for step in range(1, 5001):
        weight.copy_(torch.randn(500, generator=generator, dtype=torch.float64))
        average.see(32 * step)
    with average.in_place():
        # of about 2·200/9 independent samples; their weights fall off as the ninth power
        assert 0.05 < float(weight.std()) < 0.25


def test_whole_numbers_are_taken_as_they_stand() -> None:
    norm = nn.BatchNorm1d(2)
    tensors = [*norm.parameters(), *norm.buffers()]
    average = WeightAverage(tensors)
    for step in range(1, 11):
        norm(torch.full((4, 2), float(step)) + torch.arange(4.0)[:, None])
        average.see(step)
    with average.in_place():
        buffers = dict(norm.named_buffers())
        assert int(buffers["num_batches_tracked"]) == 10
        in_between = float(buffers["running_mean"][0])
    assert in_between < float(buffers["running_mean"][0])


def test_before_the_first_update_there_is_no_average() -> None:
    weight = torch.ones(2)
    with WeightAverage([weight]).in_place():
        assert weight.tolist() == [1.0, 1.0]


def test_weights_come_back_bit_for_bit_even_from_an_error() -> None:
    weight = torch.randn(7)
    average = WeightAverage([weight])
    average.see(1)
    weight.normal_()
    before = weight.clone()
    with contextlib.suppress(KeyError), average.in_place():
        assert not torch.equal(weight, before)
        raise KeyError
    assert torch.equal(weight, before)


def test_a_saved_average_goes_on_as_if_nothing_had_happened() -> None:
    def walk(average: WeightAverage, weight: torch.Tensor, start: int, stop: int) -> None:
        for step in range(start, stop):
            weight.fill_(step % 7)
            average.see(10 * step)

    weight, other = torch.zeros(2), torch.zeros(2)
    unbroken = WeightAverage([weight])
    walk(unbroken, weight, 1, 400)
    first = WeightAverage([other])
    walk(first, other, 1, 200)
    state = first.state_dict()
    second = WeightAverage([other])
    second.load_state_dict(state)
    walk(second, other, 200, 400)
    with unbroken.in_place(), second.in_place():
        assert torch.equal(weight, other)


def test_rows_that_are_dropped_take_their_average_along() -> None:
    block = torch.tensor([[1.0], [2.0], [3.0]])
    average = WeightAverage([block])
    average.see(1)
    kept = torch.zeros(2, 1)
    average.keep([0, 2], [kept])
    with average.in_place():
        assert kept.flatten().tolist() == [1.0, 3.0]


def test_a_run_evaluates_its_averaged_weights_and_keeps_them(make: Make) -> None:
    plan = Plan(batch_size=5, learning_rate=0.1, iterations=40, averaging=8.0)
    prepared = Prepared(make(), torch.device("cpu"))
    raw = Run(prepared, replace(plan, averaging=None), seed=0, evaluate_every=25)()
    run = Run(prepared, plan, seed=0, evaluate_every=25)
    averaged = run()
    assert averaged.curve[0] == replace(raw.curve[0], seconds=averaged.curve[0].seconds)
    assert [p.training_loss for p in averaged.curve[1:]] == [p.training_loss for p in raw.curve[1:]]
    assert all(a.validation_loss != b.validation_loss for a, b in zip(averaged.curve[1:], raw.curve[1:], strict=True))
    # the best weights are the average at the best evaluation, and the model went on from its own
    model = prepared.workload.model()
    assert averaged.state is not None
    model.load_state_dict(averaged.state)
    assert evaluate(model, prepared.validation)[1] == averaged.best_score
    assert any(not torch.equal(averaged.state[key], value) for key, value in run.model.state_dict().items())


@pytest.mark.parametrize("norm", [False, True])
def test_replicas_average_as_single_runs_do(make: Make, norm: bool) -> None:
    workload = make(model=normalised) if norm else make()
    prepared = Prepared(workload, torch.device("cpu"))
    plans = [Plan(batch_size=6, learning_rate=rate, iterations=120, averaging=8.0) for rate in (0.02, 0.05, 0.1)]
    found = Replicas(prepared, plans, [0, 1, 2], evaluate_every=60)()
    for plan, seed, result in zip(plans, range(3), found, strict=True):
        alone = Run(prepared, plan, seed=seed, evaluate_every=60)()
        for a, b in zip(result.curve, alone.curve, strict=True):
            assert a.examples == b.examples
            assert a.validation_loss == pytest.approx(b.validation_loss, rel=2e-4)


def test_replicas_that_are_dropped_leave_the_averages_of_the_others_alone(make: Make) -> None:
    prepared = Prepared(make(), torch.device("cpu"))
    plans = [Plan(batch_size=6, learning_rate=rate, iterations=100, averaging=8.0) for rate in (0.02, 1e9, 1e9, 0.05)]
    found = Replicas(prepared, plans, [0] * 4, evaluate_every=60)()
    assert [result.outcome for result in found] == ["finished", "diverged", "diverged", "finished"]
    for k in (0, 3):
        alone = Run(prepared, plans[k], seed=0, evaluate_every=60)()
        assert found[k].curve[-1].validation_loss == pytest.approx(alone.curve[-1].validation_loss, rel=2e-4)


def test_a_resumed_run_with_an_average_equals_an_unbroken_one(make: Make, tmp_path: Path) -> None:
    plan = Plan(batch_size=5, learning_rate=0.1, iterations=30, averaging=8.0)
    prepared = Prepared(make(), torch.device("cpu"))
    unbroken = Run(prepared, plan, seed=0, evaluate_every=25)()
    file = tmp_path / "checkpoint"

    def stop(point: CurvePoint, seconds_left: float | None) -> None:
        if point.examples >= 75:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(
            prepared, plan, seed=0, evaluate_every=25, checkpoint=file, checkpoint_every_seconds=0, on_evaluation=stop
        )()
    resumed = Run(prepared, plan, seed=0, evaluate_every=25, checkpoint=file)()
    assert [p.validation_loss for p in resumed.curve] == [p.validation_loss for p in unbroken.curve]
    assert resumed.state is not None
    assert unbroken.state is not None
    assert all(torch.equal(resumed.state[key], value) for key, value in unbroken.state.items())


@pytest.mark.parametrize("stacked", [False, True])
def test_training_from_evaluation_to_evaluation_is_training(make: Make, stacked: bool) -> None:
    """With others in between, and dropout: the random stream goes on where it was left."""
    workload = make(model=dropping)
    prepared = Prepared(workload, torch.device("cpu"))
    plan = Plan(batch_size=5, learning_rate=0.1, iterations=30)

    def advanced() -> list[float]:
        if stacked:
            two = [Replicas(prepared, [plan] * 2, [seed, seed + 1], evaluate_every=25) for seed in (0, 5)]
            while two[0].advance():
                torch.rand(3)
                two[1].advance()
            return [p.validation_loss for result in two[0].results if result for p in result.curve]
        runs = [Run(prepared, plan, seed=seed, evaluate_every=25) for seed in (0, 5)]
        results: list[TrainResult | None] = [None, None]
        while None in results:
            results = [result or run.advance() for run, result in zip(runs, results, strict=True)]
            torch.rand(3)
        return [p.validation_loss for p in results[0].curve] if results[0] else []

    before = torch.get_rng_state()
    if stacked:
        whole = [
            p.validation_loss for r in Replicas(prepared, [plan] * 2, [0, 1], evaluate_every=25)() for p in r.curve
        ]
    else:
        whole = [p.validation_loss for p in Run(prepared, plan, seed=0, evaluate_every=25)().curve]
    assert torch.equal(torch.get_rng_state(), before)
    assert advanced() == whole


def test_replicas_keep_what_was_evaluated_last_where_that_is_wanted(make: Make) -> None:
    prepared = Prepared(make(), torch.device("cpu"))
    plans = [Plan(batch_size=6, learning_rate=rate, iterations=60, averaging=8.0) for rate in (0.05, 1e9, 0.1)]
    found = Replicas(prepared, plans, [0, 0, 0], evaluate_every=60, keep_weights=True)()
    assert found[1].state is None
    for result in (found[0], found[2]):
        model = prepared.workload.model()
        assert result.state is not None
        model.load_state_dict(result.state)
        assert evaluate(model, prepared.validation)[0] == pytest.approx(result.curve[-1].validation_loss, rel=1e-5)


def test_evaluations_may_lie_where_they_are_wanted(make: Make) -> None:
    prepared = Prepared(make(), torch.device("cpu"))
    plan = Plan(batch_size=5, learning_rate=0.1, examples=200)
    found = Run(prepared, plan, seed=0, next_place=lambda examples: max(12, 2 * examples))()
    assert [p.examples for p in found.curve] == [0, 15, 30, 60, 120, 200]
    stacked = Replicas(prepared, [plan], [0], next_place=lambda examples: max(12, 2 * examples))()
    assert [p.examples for p in stacked[0].curve] == [0, 15, 30, 60, 120, 200]


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

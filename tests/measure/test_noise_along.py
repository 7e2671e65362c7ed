"""Noise at several points of a run: the points lie where they should, and measuring leaves the run as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

import batchscope as bs
from batchscope import Workload
from batchscope.measure.noise_along import noise_along_training
from batchscope.training.loop import Prepared, Run
from batchscope.workload.quadratic import quadratic

Make = Callable[..., Workload]


def test_measuring_on_the_way_leaves_the_training_as_it_is(make: Make) -> None:
    workload = make("dropout", examples=80)
    along = noise_along_training(workload, examples=16 * 16, measured_on=32, seed=3)
    assert [point.examples for point in along.points] == [0, 16, 32, 64, 128, 256]
    assert [point.iterations for point in along.points] == [0, 2, 4, 8, 16, 32]
    plan = bs.Plan(batch_size=8, learning_rate=0.05, examples=256)
    alone = Run(Prepared(workload, torch.device("cpu")), plan, seed=3, evaluate_every=16)
    result = alone()
    for name, value in alone.model.state_dict().items():
        assert torch.equal(along.end.model[name], value)
    assert [point.validation_loss for point in along.points][-1] == result.final_loss


def test_each_point_is_what_gradient_noise_measures_there(make: Make) -> None:
    workload = make(examples=80)
    along = noise_along_training(workload, examples=128, measured_on=48)
    assert along.last.noise_scale == along.points[-1].noise_scale
    assert along.outcome == "finished"
    assert along.points[0].measured_on == 48
    # The same point by hand: untrained weights of the same seed.
    start = Run(Prepared(workload, torch.device("cpu")), bs.Plan(batch_size=8, learning_rate=0.05, examples=8), seed=0)
    seed = bs.gradient_noise(workload, start.model.state_dict(), examples=48).provenance.seed
    assert seed == 0
    exact = bs.gradient_noise(workload, start.model.state_dict(), examples=80)
    assert along.points[0].trace_covariance.low <= exact.trace_covariance.value  # type: ignore[operator]
    assert along.points[0].trace_covariance.high >= exact.trace_covariance.value  # type: ignore[operator]


def test_on_the_quadratic_the_noise_scale_grows_as_the_loss_falls() -> None:
    along = noise_along_training(quadratic(), examples=2048)
    resolved = [p for p in along.points if p.noise_scale.resolved]
    assert len(resolved) >= 3
    assert resolved[-1].validation_loss < resolved[0].validation_loss
    assert resolved[-1].noise_scale.low > resolved[0].noise_scale.high  # type: ignore[operator]


def test_an_adaptive_optimiser_has_a_noise_scale_of_its_own_after_its_first_update(make: Make) -> None:
    workload = make(optimizer=lambda params, lr: torch.optim.Adam(params, lr=lr), learning_rate=1e-3)
    along = noise_along_training(workload, examples=128, measured_on=40)
    assert along.points[0].preconditioned_noise_scale is None
    assert all(point.preconditioned_noise_scale is not None for point in along.points[1:])
    assert noise_along_training(make(), examples=128, measured_on=40).points[-1].preconditioned_noise_scale is None


def test_divergence_ends_the_points_and_is_no_error(make: Make) -> None:
    along = noise_along_training(make(learning_rate=1e12, loss=_squared), examples=256, measured_on=32)
    assert along.outcome == "diverged"
    assert 1 <= len(along.points) < 6


def _squared(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((output - target.unsqueeze(1)) ** 2).mean()


def test_a_large_validation_set_is_sampled(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscope.measure.noise_along.VALIDATED_ON", 10)
    for workload in (make(held_out=40), make("augmented", held_out=40)):
        seen: list[int] = []

        def score(output: torch.Tensor, target: torch.Tensor, seen: list[int] = seen) -> float:
            seen.append(len(target))
            return 0.0

        noise_along_training(dataclasses.replace(workload, score=score), examples=128, measured_on=16)
        assert max(seen) == 10  # a new workload is tried on fewer


def test_too_few_examples_are_refused(make: Make) -> None:
    with pytest.raises(bs.ArgumentError, match="enough for sixteen updates"):
        noise_along_training(make(), examples=127)

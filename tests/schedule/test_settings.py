"""What a phase does to an optimiser, and when a measured batch grows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from batchscope import Interval, PlanError, rescale
from batchscope.records import MeasuredGrowth, Phase, Schedule
from batchscope.schedule import OptimizerSettings, aim, decide, measured

MAKERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.99)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), capturable=False, foreach=False),
}


def made(kind: str) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = MAKERS[kind]([nn.Parameter(torch.zeros(2))])
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.3})
    return optimizer


def told(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {key: pytest.approx(float(value)) if key == "lr" else value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("kind", MAKERS)
def test_stated_phases_change_the_rate_and_the_momentum_alone(kind: str) -> None:
    optimizer, untouched = made(kind), made(kind)
    settings = OptimizerSettings(optimizer, 8)
    settings.enter(Phase(10, 32, 0.5))
    assert settings.full_rates == pytest.approx([0.05, 0.15])
    for group, before in zip(optimizer.param_groups, untouched.param_groups, strict=True):
        changed = {key for key in group if key not in ("params", "lr") and group[key] != before[key]}
        assert changed == set()
    settings.enter(Phase(20, 32, momentum=0.7))
    for group, before in zip(optimizer.param_groups, untouched.param_groups, strict=True):
        if "betas" in group:
            assert group["betas"] == (0.7, before["betas"][1])
        else:
            assert group["momentum"] == 0.7


@pytest.mark.parametrize("kind", MAKERS)
def test_by_rule_a_phase_is_the_optimiser_rescaled(kind: str) -> None:
    optimizer, rescaled = made(kind), made(kind)
    settings = OptimizerSettings(optimizer, 8)
    settings.enter(Phase(10, 64), coupling="rule")
    rescale(rescaled, from_batch_size=8, to_batch_size=64)
    assert told(rescaled) == told(optimizer)


@pytest.mark.parametrize("kind", MAKERS)
def test_where_a_phase_is_entered_from_does_not_matter(kind: str) -> None:
    one, other = made(kind), made(kind)
    settings = OptimizerSettings(one, 8)
    for phase in (Phase(10, 64, 0.5, 0.6), Phase(20, 16), Phase(30, 24, 2.0)):
        settings.enter(phase, coupling="rule")
        settings.scale(0.3)
    settings.scale(1.0)
    OptimizerSettings(other, 8).enter(Phase(30, 24, 2.0), coupling="rule")
    assert [{**g, "params": 0} for g in one.param_groups] == [{**g, "params": 0} for g in other.param_groups]


def test_half_lives_of_adam_s_averages_stay_in_examples() -> None:
    optimizer = made("adamw")
    OptimizerSettings(optimizer, 8).enter(Phase(10, 32), coupling="rule")
    for beta, before in zip(optimizer.param_groups[0]["betas"], (0.8, 0.99), strict=True):
        assert 32 * math.log(0.5) / math.log(beta) == pytest.approx(8 * math.log(0.5) / math.log(before))


def test_what_an_optimiser_has_not_is_refused() -> None:
    adagrad = torch.optim.Adagrad([nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(PlanError, match="needs an optimiser with momentum"):
        OptimizerSettings(adagrad, 8).check(Schedule((Phase(0, 8, 1.0, 0.9),)))
    lbfgs = torch.optim.LBFGS([nn.Parameter(torch.zeros(2))], lr=0.1)
    OptimizerSettings(lbfgs, 8).check(Schedule((Phase(0, 8), Phase(10, 16))))
    with pytest.raises(PlanError, match="published scaling rule"):
        OptimizerSettings(lbfgs, 8).check(measured(8, knee=10))


# The measured batch


@given(knee=st.floats(1, 1e5), noise=st.floats(1, 1e6))
def test_the_batch_that_is_aimed_at_takes_the_least_time(knee: float, noise: float) -> None:
    def seconds(batch: float) -> float:
        return (knee + batch) * (1 + noise / batch)

    best = aim(MeasuredGrowth(knee), noise)
    assert seconds(best) <= min(seconds(best * 1.01), seconds(best / 1.01))


def run(growth: MeasuredGrowth, readings: list[float | None], *, size: int = 8, most: int = 1000) -> list[int]:
    sizes, votes, least = [], 0, size
    for value in readings:
        reading = Interval.unresolved() if value is None else Interval(value, value, value)
        size, votes = decide(growth, reading, batch_size=size, least=least, most=most, votes=votes)
        sizes.append(size)
    return sizes


def test_growth_waits_until_it_is_sustained() -> None:
    growth = MeasuredGrowth(knee=100, sustained=2)  # a noise scale of 2.56 calls for 16, of 10.24 for 32
    assert run(growth, [2.56, 2.56, 2.56]) == [8, 16, 16]
    assert run(growth, [2.56, 1.0, 2.56]) == [8, 8, 8]
    assert run(growth, [2.56, None, 2.56]) == [8, 8, 16]  # what is not resolved is no vote
    assert run(growth, [10.24] * 6) == [8, 16, 16, 32, 32, 32]
    assert run(growth, [2.55] * 6) == [8] * 6
    # A vote for a smaller batch and one for a larger do not cancel: the last ones count.
    assert run(growth, [2.56, 2.56, 0.01, 10.24, 10.24]) == [8, 16, 16, 16, 32]


def test_a_batch_shrinks_again_but_never_below_its_start() -> None:
    growth = MeasuredGrowth(knee=100, sustained=1)
    assert run(growth, [1e4, 1e4, 1e4, 0.01, 0.01, 0.01, 0.01]) == [16, 32, 64, 32, 16, 8, 8]


@given(
    readings=st.lists(st.none() | st.floats(1e-3, 1e8) | st.just(-5.0), max_size=50),
    most=st.integers(8, 300),
    factor=st.integers(2, 5),
)
def test_a_measured_batch_stays_within_its_bounds(readings: list[float | None], most: int, factor: int) -> None:
    sizes = run(MeasuredGrowth(knee=50, sustained=1, factor=factor), readings, most=most)
    assert all(8 <= size <= most for size in sizes)

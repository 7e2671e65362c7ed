"""The rules that tie an optimiser's settings to the batch size, each against its formula."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from batchscope import PlanError, rescale
from batchscope.schedule import learning_rate_exponent, set_rate

sizes = st.integers(1, 10**6)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2))


def settings_of(optimizer: torch.optim.Optimizer, group: int = 0) -> dict[str, Any]:
    return {key: value for key, value in optimizer.param_groups[group].items() if key != "params"}


@given(start=sizes, to=sizes, momentum=st.sampled_from([0.0, 0.9]), nesterov=st.booleans())
def test_sgd_s_rate_grows_as_the_batch_and_nothing_else_changes(
    start: int, to: int, momentum: float, nesterov: bool
) -> None:
    optimizer = torch.optim.SGD(
        [parameter()], lr=0.1, momentum=momentum, nesterov=nesterov and momentum > 0, weight_decay=1e-4
    )
    before = settings_of(optimizer)
    rescale(optimizer, from_batch_size=start, to_batch_size=to)
    after = settings_of(optimizer)
    assert after.pop("lr") == pytest.approx(0.1 * to / start, rel=1e-12)
    before.pop("lr")
    assert after == before


ADAMS: list[Callable[..., torch.optim.Optimizer]] = [
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
]


@pytest.mark.parametrize("kind", ADAMS)
@pytest.mark.parametrize("kappa", [2, 8, 0.25])
def test_adam_s_settings_follow_the_square_root_rule(kind: Callable[..., torch.optim.Optimizer], kappa: float) -> None:
    optimizer = kind([parameter()], lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    before = settings_of(optimizer)
    rescale(optimizer, from_batch_size=64, to_batch_size=int(64 * kappa))
    after = settings_of(optimizer)
    assert after.pop("lr") == pytest.approx(0.01 * math.sqrt(kappa))
    assert after.pop("eps") == pytest.approx(1e-8 / math.sqrt(kappa))
    # An average's half-life in examples, B·ln ½/ln β, is kept.
    assert isinstance(after["betas"], tuple)
    for old, new in zip(before["betas"], after.pop("betas"), strict=True):
        assert 64 * kappa * math.log(0.5) / math.log(new) == pytest.approx(64 * math.log(0.5) / math.log(old))
    for key in ("lr", "eps", "betas"):
        del before[key]
    assert after == before


def test_the_rule_for_betas_is_malladi_s_to_first_order() -> None:
    optimizer = torch.optim.Adam([parameter()], lr=0.01, betas=(0.999, 0.9999))
    rescale(optimizer, from_batch_size=100, to_batch_size=200)
    for old, new in zip((0.999, 0.9999), optimizer.param_groups[0]["betas"], strict=True):
        assert 1 - new == pytest.approx(2 * (1 - old), rel=1e-3)


@given(start=sizes, to=sizes)
def test_betas_never_leave_their_range(start: int, to: int) -> None:
    optimizer = torch.optim.Adam([parameter()], lr=0.01, betas=(0.0, 0.999))
    rescale(optimizer, from_batch_size=start, to_batch_size=to)
    first, second = optimizer.param_groups[0]["betas"]
    assert first == 0
    assert 0 <= second < 1


def test_rmsprop_and_adagrad() -> None:
    rmsprop = torch.optim.RMSprop([parameter()], lr=0.01, alpha=0.99, eps=1e-6, momentum=0.5)
    rescale(rmsprop, from_batch_size=32, to_batch_size=128)
    group = rmsprop.param_groups[0]
    assert group["lr"] == pytest.approx(0.02)
    assert group["alpha"] == pytest.approx(0.99**4)
    assert group["eps"] == pytest.approx(5e-7)
    assert group["momentum"] == 0.5
    adagrad = torch.optim.Adagrad([parameter()], lr=0.01, eps=1e-6)
    rescale(adagrad, from_batch_size=32, to_batch_size=128)
    assert adagrad.param_groups[0]["lr"] == pytest.approx(0.02)
    assert adagrad.param_groups[0]["eps"] == 1e-6


@pytest.mark.parametrize("kind", [torch.optim.SGD, *ADAMS, torch.optim.RMSprop, torch.optim.Adagrad])
@given(start=st.integers(1, 4096), to=st.integers(1, 4096), between=st.integers(1, 4096))
def test_two_rescalings_are_one_and_back_is_where_it_was(
    kind: Callable[..., torch.optim.Optimizer], start: int, to: int, between: int
) -> None:
    def after(*path: int) -> list[float]:
        optimizer = kind([parameter()], lr=0.01)
        for a, b in itertools.pairwise(path):
            rescale(optimizer, from_batch_size=a, to_batch_size=b)
        group = optimizer.param_groups[0]
        # The averages' rates themselves may end up at 0, whence no way leads back: a factor 4,096 between them.
        return [group["lr"], group.get("eps", 0.0)]

    assert after(start, between, to) == pytest.approx(after(start, to), rel=1e-9)
    assert after(start, to, start) == pytest.approx(after(start), rel=1e-9)
    assert after(start, start) == after(start)


def test_every_group_is_rescaled_from_its_own_settings() -> None:
    first: dict[str, Any] = {"params": [parameter()], "lr": 0.1, "betas": (0.5, 0.9)}
    optimizer = torch.optim.Adam([first, {"params": [parameter()]}], lr=0.01)
    rescale(optimizer, from_batch_size=1, to_batch_size=4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02])
    assert optimizer.param_groups[0]["betas"] == pytest.approx((0.5**4, 0.9**4))


def test_a_rate_that_is_a_tensor_is_changed_in_place_and_once() -> None:
    lr = torch.tensor(0.1, dtype=torch.float64)
    optimizer = torch.optim.Adam([{"params": [parameter()]}, {"params": [parameter()]}], lr=lr)
    held = [group["lr"] for group in optimizer.param_groups]
    rescale(optimizer, from_batch_size=16, to_batch_size=64)
    for group, tensor in zip(optimizer.param_groups, held, strict=True):
        assert group["lr"] is tensor
        assert float(tensor) == pytest.approx(0.2)


def test_groups_that_share_one_tensor_as_their_rate_are_rescaled_once() -> None:
    shared = torch.tensor(0.1, dtype=torch.float64)
    optimizer = torch.optim.Adam([{"params": [parameter()]}, {"params": [parameter()]}], lr=0.5)
    for group in optimizer.param_groups:
        group["lr"] = shared
    rescale(optimizer, from_batch_size=16, to_batch_size=64)
    assert float(shared) == pytest.approx(0.2)


def test_state_and_parameters_are_left_alone() -> None:
    weight = parameter()
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    value = weight.detach().clone()
    rescale(optimizer, from_batch_size=16, to_batch_size=64)
    assert all(torch.equal(before[key], optimizer.state[weight][key]) for key in before)
    assert torch.equal(weight, value)


def test_a_scheduler_made_afterwards_starts_from_the_rescaled_rate() -> None:
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    rescale(optimizer, from_batch_size=1, to_batch_size=2)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.2)
    again = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0, last_epoch=0)
    assert again.get_last_lr() == pytest.approx([0.2])


class Own(torch.optim.Optimizer):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})


class OwnSGD(torch.optim.SGD):
    pass


REFUSED: list[Callable[[], torch.optim.Optimizer]] = [
    lambda: Own([parameter()]),
    lambda: torch.optim.LBFGS([parameter()]),
    lambda: torch.optim.Rprop([parameter()]),
    lambda: torch.optim.Adadelta([parameter()]),
    lambda: torch.optim.Adamax([parameter()]),
]


@pytest.mark.parametrize("make", REFUSED)
def test_an_optimiser_without_a_published_rule_is_refused(make: Callable[[], torch.optim.Optimizer]) -> None:
    optimizer = make()
    before = settings_of(optimizer)
    with pytest.raises(PlanError, match=f"published scaling rule .*; got {type(optimizer).__name__}.*Search"):
        rescale(optimizer, from_batch_size=1, to_batch_size=2)
    assert settings_of(optimizer) == before


def test_a_subclass_follows_the_rule_of_its_class() -> None:
    assert learning_rate_exponent(OwnSGD([parameter()], lr=0.1)) == 1.0
    assert learning_rate_exponent(torch.optim.AdamW([parameter()])) == 0.5


@pytest.mark.parametrize("value", [0, -4, 2.0, True, "8"])
def test_batch_sizes_that_make_no_sense_are_refused(value: Any) -> None:
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    with pytest.raises(PlanError, match=r"^from_batch_size must be a whole number of at least 1; got"):
        rescale(optimizer, from_batch_size=value, to_batch_size=8)
    with pytest.raises(PlanError, match=r"^to_batch_size must be a whole number of at least 1; got"):
        rescale(optimizer, from_batch_size=8, to_batch_size=value)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_setting_a_rate() -> None:
    number, tensor = {"lr": 0.1}, {"lr": torch.tensor(0.1)}
    held = tensor["lr"]
    set_rate(number, 0.3)
    set_rate(tensor, 0.3)
    assert number["lr"] == 0.3
    assert tensor["lr"] is held
    assert float(held) == pytest.approx(0.3)

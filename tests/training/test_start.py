"""A run that goes on from where another stood, with its weights, its optimiser's state and its own settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from batchscope.records import Plan
from batchscope.training import Prepared, Run
from batchscope.training.start import Start
from batchscope.workload import Workload

CPU = torch.device("cpu")
OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "two groups": lambda p, lr: torch.optim.Adam([{"params": [q]} for q in p], lr=lr),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_going_on_makes_the_same_updates_as_never_stopping(make: Callable[..., Workload], kind: str) -> None:
    # One epoch in a single batch: the two halves draw the same examples in every order.
    workload = make("mlp", optimizer=OPTIMIZERS[kind], batch_size=45)
    whole, half = Plan(batch_size=45, learning_rate=0.01, iterations=6), Plan(45, 0.01, iterations=3)
    prepared = Prepared(workload, CPU)
    unbroken, first = Run(prepared, whole, seed=0), Run(prepared, half, seed=0)
    unbroken()
    first()
    second = Run(prepared, half, seed=0, start=Start.of(first.model, first.optimizer))
    second()
    for name, value in unbroken.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_a_copy_shares_nothing_with_what_it_was_taken_from_nor_with_what_goes_on(make: Callable[..., Workload]) -> None:
    prepared = Prepared(make("batch norm"), CPU)
    plan = Plan(batch_size=8, learning_rate=0.05, iterations=5)
    run = Run(prepared, plan, seed=0)
    run()
    start = Start.of(run.model, run.optimizer)
    once, again = (Run(prepared, plan, seed=1, start=start) for _ in range(2))
    once()
    again()
    for name, value in once.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, start.model[name]), name


def test_settings_are_those_of_the_run_that_goes_on(make: Callable[..., Workload]) -> None:
    prepared = Prepared(make("mlp", optimizer=OPTIMIZERS["adam"]), CPU)
    run = Run(prepared, Plan(batch_size=8, learning_rate=0.01, iterations=3), seed=0)
    run()
    start = Start.of(run.model, run.optimizer)
    wider = Run(prepared, Plan(32, 0.01, iterations=3, rescaled_from=8), seed=0, start=start)
    [group] = wider.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.02)
    assert group["betas"][0] == pytest.approx(0.9**4)
    assert len(wider.optimizer.state) == len(list(wider.model.parameters()))


def test_a_fresh_optimiser_has_nothing_to_copy() -> None:
    model = nn.Linear(2, 1)
    start = Start.of(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    assert start.optimizer == {}

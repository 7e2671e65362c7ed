"""Replicas on a GPU: recorded updates, and the same numbers as single runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from batchscope import Plan, Workload
from batchscope.training import Prepared, Run
from batchscope.training.replicas import Replicas
from batchscope.training.ways import refusal

Make = Callable[..., Workload]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer", "batch norm", "dropout"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("in_turn", [False, True])
def test_each_replica_is_a_single_run_on_a_gpu(make: Make, kind: str, optimizer: Any, in_turn: bool) -> None:
    workload = make(kind, optimizer=lambda p, r: optimizer(p, lr=r / 10))
    prepared = Prepared(workload, torch.device("cuda", 0))
    assert refusal(prepared, Plan(8, 0.05, iterations=9, shape="linear")) is None
    plans = [Plan(8, rate, examples=803, shape="linear") for rate in (0.02, 0.05, 0.1)]
    stack = Replicas(prepared, plans, [0, 1, 0], evaluate_every=200, in_turn=in_turn)
    found = stack()
    assert (stack.stack._captured is not None) == stack.stack.optimizer.is_capturable
    if kind == "dropout":
        assert len({result.final_loss for result in found}) == 3
        return
    for result, plan in zip(found, plans, strict=True):
        expected = Run(prepared, plan, seed=result.seed, evaluate_every=200)()
        for here, there in zip(result.curve, expected.curve, strict=True):
            assert here.validation_loss == pytest.approx(there.validation_loss, rel=1e-3)
            assert here.learning_rate == pytest.approx(there.learning_rate)


def test_recorded_updates_go_on_after_some_have_been_dropped(make: Make) -> None:
    prepared = Prepared(make(), torch.device("cuda", 0))
    plans = [Plan(8, rate, iterations=300) for rate in (0.02, 0.05, 0.1, 0.2)]
    asked: list[int] = []

    def prune() -> list[int]:
        asked.append(0)
        return [1, 2, 3] if len(asked) == 3 else []

    found = Replicas(prepared, plans, [0, 1, 2, 3], evaluate_every=400, prune=prune)()
    assert [result.outcome for result in found] == ["finished", "pruned", "pruned", "pruned"]
    expected = Run(prepared, plans[0], seed=0, evaluate_every=400)()
    assert found[0].final_loss == pytest.approx(expected.final_loss, rel=1e-3)

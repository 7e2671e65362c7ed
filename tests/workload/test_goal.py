"""Targets that cannot be meant: which are refused by which evidence, and which are left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import batchscope as bs
from batchscope.errors import ArgumentError
from batchscope.training import Prepared
from batchscope.training.goal import UPDATES, GoalWatch, check_goal
from batchscope.workload import Workload
from batchscope.workload.goal import check_target, perfect_score

CPU = torch.device("cpu")


def accuracy(output: Tensor, target: Tensor) -> float:
    return (output.argmax(1) == target).double().mean().item()


def percent(output: Tensor, target: Tensor) -> float:
    return 100 * accuracy(output, target)


def fraction_that_is_never_perfect(output: Tensor, target: Tensor) -> float:
    """As of a metric that predictions made up from targets do not get right: 0.93 at most."""
    return 0.93 * accuracy(output, target)


def r2(output: Tensor, target: Tensor) -> float:
    return float(1 - (output - target).square().sum() / (target - target.mean()).square().sum())


def make(
    score: Callable[[Any, Any], Any] | None = accuracy,
    *,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    target: str = "classes",
    outputs: int = 3,
) -> Workload:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator)
    classes = (x @ torch.randn(5, 3, generator=generator)).argmax(1)
    numbers = x[:, :1] - x[:, 1:2] ** 2
    binary = (x[:, :1] > 0).float()
    y = {"classes": classes, "numbers": numbers, "binary": binary}[target]
    return Workload(
        model=lambda: nn.Linear(5, outputs),
        train=(x[:300], y[:300]),
        validation=(x[300:], y[300:]),
        loss=loss,
        score=score,
        optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr),
        learning_rate=0.1,
        batch_size=16,
    )


@pytest.mark.parametrize(
    ("target", "scores", "options", "said"),
    [
        # A percentage of fractions: by what perfect predictions score, or by the scores seen.
        (97, [0.1], {"perfect": 1.0}, "at most 1, the score of perfect predictions; got 97, with 0.1 for fresh"),
        (97, [0.1], {"perfect": 1.0}, "Did you mean 0.97?"),
        (97, [-0.2], {"perfect": 1.0}, "Did you mean 0.97?"),
        (
            97,
            [0.1, 0.4],
            {},
            "which lie between 0 and 1; got 97, with 0.1 for fresh weights and 0.4 after a few updates.",
        ),
        (97, [0.1, 0.4], {}, "Did you mean 0.97?"),
        (97, [0.3], {"fresh": False}, "scores of 0.3 seen"),
        (97, [0.3, 0.4], {"fresh": False}, "scores of 0.3 to 0.4 seen"),
        (1.1, [0.1], {"perfect": 1.0}, "Give at most 1"),
        (970, [0.1], {"perfect": 1.0}, "Give at most 1"),
        (0.5, [-3.0], {"perfect": 0.0}, "at most 0"),
        # The reverse.
        (0.97, [10.0], {"perfect": 100.0}, "Did you mean 97?"),
        # Below what fresh weights score.
        (0.05, [0.1], {}, "above the score of fresh weights; got 0.05, with 0.1 for"),
        (0.1, [0.1], {"perfect": 1.0}, "Give one above that, up to 1"),
        (-5.0, [-2.3], {"minus_loss": True}, "above the score of fresh weights"),
        # A loss in place of a score.
        (0.3, [-2.3], {"minus_loss": True}, "must be minus a loss"),
        (0.3, [-2.3], {"minus_loss": True}, "Give -0.3 for a loss of 0.3, or a workload with score="),
        (97, [-2.3], {"minus_loss": True}, "Give a negative number"),
        (0.3, [-2.3, -1.0], {"minus_loss": True, "perfect": 0.0}, "got 0.3, with -2.3 for fresh weights and -1 after"),
    ],
)
def test_targets_that_are_refused(target: float, scores: list[float], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as error:
        check_target(target, scores, **options)
    assert said in str(error.value)
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    ("target", "scores", "options"),
    [
        (0.97, [0.1], {}),
        (1.0, [0.1, 0.4], {"perfect": 1.0}),
        (97, [9.8], {}),  # per cent
        (97, [9.8], {"perfect": 100.0}),
        (76, [0.1, 0.3], {"perfect": 100.0}),  # per cent of a thousand classes
        (30, [0.0, 0.01], {}),  # BLEU of 100, hardly trained
        (970, [0.3], {}),  # no percentage
        (30, [0.3, 1.7], {}),  # a score that has left the unit interval
        (97, [-0.1, 0.3], {}),  # or never was in it
        (0.3, [-2.3], {}),  # a score of the person's own may rise above 0
        (0.3, [-2.3, 0.1], {"minus_loss": True}),  # a loss that falls below 0, as of a density
        (-0.3, [-2.3], {"minus_loss": True, "perfect": 0.0}),
        (0.9, [0.0], {"perfect": 0.0}),  # predictions made up that were not perfect
        (0.05, [0.1], {"fresh": False}),
        (0.9, [float("nan")], {}),
        (0.9, [], {}),
    ],
)
def test_targets_that_may_be_meant(target: float, scores: list[float], options: dict[str, Any]) -> None:
    check_target(target, scores, **options)


def balanced(output: Tensor, target: Tensor) -> float:
    return ((output[:, 0] > 0).float() == target[:, 0]).double().mean().item()


@pytest.mark.parametrize(
    ("workload", "perfect"),
    [
        (make(), 1.0),
        (make(percent), 100.0),
        (make(None), 0.0),
        (make(fraction_that_is_never_perfect), None),
        (make(r2, loss=F.mse_loss, target="numbers", outputs=1), 1.0),
        (make(None, loss=F.mse_loss, target="numbers", outputs=1), 0.0),
        (make(balanced, loss=F.binary_cross_entropy_with_logits, target="binary", outputs=1), 1.0),
        (make(None, loss=F.binary_cross_entropy_with_logits, target="binary", outputs=1), 0.0),
        (bs.load_workload("digits"), 1.0),
    ],
)
def test_what_perfect_predictions_score(workload: Workload, perfect: float | None) -> None:
    before = torch.get_rng_state()
    assert perfect_score(workload) == perfect
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("axis", [-1, 1])
def test_predictions_at_every_place_of_a_sequence_or_an_image(axis: int) -> None:
    def places(output: Tensor, target: Tensor) -> float:
        return (output.argmax(axis) == target).double().mean().item()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(1, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x.unsqueeze(-1).float())
            return out if axis == -1 else out.movedim(-1, 1)

    x = torch.randint(4, (32, 6), generator=torch.Generator().manual_seed(0))
    workload = Workload(
        model=Model,
        train=(x, x),
        validation=(x, x),
        loss=lambda output, target: F.cross_entropy(output.movedim(axis, 1), target),
        score=places,
        optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr),
        learning_rate=0.1,
        batch_size=8,
    )
    assert perfect_score(workload) == 1.0


def test_outputs_that_nothing_can_be_made_up_for() -> None:
    inner = make()
    workload = dataclasses.replace(
        inner,
        forward=lambda model, batch: ({"logits": model(batch[0])}, batch[1]),
        loss=lambda output, target: F.cross_entropy(output["logits"], target),
        score=lambda output, target: accuracy(output["logits"], target),
    )
    assert perfect_score(workload) is None
    # A few updates are made then, and the scores seen decide.
    with pytest.raises(ArgumentError, match=r"after a few updates\. Did you mean 0\.97\?"):
        check_goal(Prepared(workload, CPU), 97)


def test_a_target_is_checked_before_anything_is_trained() -> None:
    prepared = Prepared(make(), CPU)
    check_goal(prepared, 0.97)
    with pytest.raises(ArgumentError, match=r"Did you mean 0\.97\?"):
        check_goal(prepared, 97)
    with pytest.raises(ArgumentError, match="above the score of fresh weights"):
        check_goal(prepared, 0.01)
    check_goal(Prepared(make(percent), CPU), 97)
    with pytest.raises(ArgumentError, match=r"Give -0\.3 for a loss of 0\.3"):
        check_goal(Prepared(make(None), CPU), 0.3)
    assert UPDATES < 10


def test_a_target_is_called_reached_by_the_whole_validation_set_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchscope.training.goal.EXAMPLES", 10)
    seen: list[int] = []

    def counted(output: Tensor, target: Tensor) -> float:
        seen.append(len(target))
        return 0.5 if len(target) == 10 else 0.4 if len(target) == 100 else 1.0

    check_goal(Prepared(make(counted), CPU), 0.45)
    assert {10, 100} <= set(seen)


@pytest.mark.parametrize(
    ("score", "target", "said"),
    [(accuracy, 97.0, "Did you mean 0.97?"), (accuracy, 0.01, "fresh weights"), (None, 0.3, "Give -0.3 for a loss")],
)
def test_train_and_sweep_say_so_at_once(score: Any, target: float, said: str) -> None:
    workload = make(score)
    calls = 0

    def optimizer(params: Any, lr: float) -> torch.optim.Optimizer:
        class Counting(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                nonlocal calls
                calls += 1
                return super().step(closure)

        return Counting(params, lr=lr)

    workload = dataclasses.replace(workload, optimizer=optimizer)
    calls = 0
    with pytest.raises(ArgumentError) as error:
        bs.train(workload, bs.Plan(batch_size=16, learning_rate=0.1, iterations=50, target=target))
    assert said in str(error.value)
    with pytest.raises(ArgumentError) as error:
        bs.sweep(workload, [16], target=target, seeds=1)
    assert said in str(error.value)
    assert calls == 0


def test_weights_to_begin_with_may_have_reached_the_target_already() -> None:
    workload = make()
    plan = bs.Plan(batch_size=16, learning_rate=0.1, iterations=50, target=0.6)
    first = bs.train(workload, plan)
    assert first.reached
    again = bs.train(workload, plan, start=first.state)
    assert (again.outcome, again.examples) == ("reached", 0)


def test_a_resumed_run_is_not_told_that_its_weights_are_fresh() -> None:
    watch = GoalWatch(make(), 0.5, fresh=True)
    point = bs.train(make(), bs.Plan(batch_size=16, learning_rate=0.1, iterations=50)).curve[-1]
    assert point.score > 0.5
    watch.point(point)
    watch.point(dataclasses.replace(point, score=0.4))

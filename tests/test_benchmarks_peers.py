"""How the benchmark of other people's tools trains, times and judges what they pick."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

import batchscope as bs

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from advice_pickers import Question, scores_of
from curves_table import Curves
from ground_truth_table import Setting
from real import RealTask
from real_peers import PICKERS, asked, figures, judged, ours, seconds_of_training


def curve(rate: float, seconds: float, score: float = 0.9) -> dict[str, Any]:
    """A run of 1,000 examples at batch 10 that ends at a score."""
    points = {"examples": [500, 1000], "seconds": [seconds / 2, seconds], "score": [0.1, score]}
    return {"batch_size": 10, "learning_rate": rate, "step": 0, "seed": 0, "outcome": "reached", "points": points}


CURVES = Curves(
    network="made",
    target=0.9,
    batch_size=10,
    learning_rate=0.1,
    clip_norm=None,
    timing={"training_examples": 5000, "batch_sizes": [1, 10, 100], "seconds": [0.1, 0.1, 0.1]},
    curves=(
        curve(0.1, 10.0),
        {**curve(0.2, 10.0), "outcome": "diverged"} | {"points": curve(0.2, 10.0, 0.2)["points"]},
    ),
)


def row(**changes: Any) -> dict[str, Any]:
    made = {
        "network": "made",
        "reference_name": "default",
        "reference": (10, 0.1),
        "seed": 0,
        "peer": "somebody",
        "setting": (10, 0.1),
        "search_seconds": 5.0,
        "trained": None,
        "failure": None,
    }
    return made | changes


def test_search_and_run_are_counted_together() -> None:
    found = judged(row(), CURVES)
    assert found["run_seconds"] == pytest.approx(10.0)
    assert found["regret"] == pytest.approx(1.0)
    assert found["everything_over_best"] == found["everything_over_today"] == pytest.approx(1.5)
    assert found["failure"] is None


def test_what_was_trained_is_not_looked_up() -> None:
    found = judged(row(trained=(30.0, True)), CURVES)
    assert (found["run_seconds"], found["run_at_least"]) == (30.0, True)
    assert figures([found])["never"] == 1.0


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"setting": (10, 0.2)}, "diverged"),
        ({"setting": None, "failure": "no setting"}, "no setting"),
        ({"trained": (None, False)}, "diverged"),
    ],
)
def test_a_failure_is_counted_and_takes_for_ever(changes: dict[str, Any], failure: str) -> None:
    found = judged(row(**changes), CURVES)
    assert found["failure"] == failure
    assert found["run_seconds"] is found["regret"] is found["everything_over_today"] is None
    of = figures([judged(row(), CURVES), found])
    assert of["median_regret"] == of["worst_regret"] == (math.inf, False)
    assert (of["never"], of["failed"]) == (0.5, 1)


def test_the_advice_is_judged_as_its_peers_are() -> None:
    asked = {name: row()[name] for name in ("network", "reference_name", "reference", "seed")}
    made = ours([asked | {"advised": [10, 0.1], "cost_seconds": 5.0, "trained_seconds": 7.0}])
    setting, plan = (judged(one, CURVES) for one in made)
    assert setting["everything_over_best"] == pytest.approx(1.5)
    assert plan["everything_over_best"] == pytest.approx(1.2)


class Run:
    """A run whose score rises by 0.01 a second."""

    def __init__(self, loss: float = 0.5) -> None:
        self.seconds, self.examples, self.loss = 0.0, 0, loss

    def update(self) -> float:
        self.seconds += 0.1
        self.examples += 10
        return self.loss

    def evaluate(self) -> tuple[float, float]:
        return 0.5, 0.01 * self.seconds


def test_a_training_ends_at_its_target_or_at_twice_the_best() -> None:
    run: Any = Run()
    seconds = seconds_of_training(run, 0.5, 40.0)
    assert seconds.value == pytest.approx(50.0, rel=0.01)
    assert not seconds.at_least
    late: Any = Run()
    assert seconds_of_training(late, 0.5, 10.0) == (20.0, True)
    broken: Any = Run(math.nan)
    assert seconds_of_training(broken, 0.5, 10.0) == (math.inf, False)


class OneByOne(Dataset[tuple[Tensor, Tensor]]):
    """A line, example by example."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.tensor([index / 64])
        return x, 2 * x


def workload() -> bs.Workload:
    return bs.Workload(
        model=lambda: torch.nn.Linear(1, 1),
        train=OneByOne(),
        validation=OneByOne(),
        loss=torch.nn.functional.mse_loss,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        learning_rate=20.0,
        batch_size=8,
        clip_norm=1e-6,
    )


def test_trials_train_on_datasets_and_clip() -> None:
    parts = [(0.0, 64)] * 50  # one update each
    free = list(scores_of(dataclasses.replace(workload(), clip_norm=None), Setting(8, 0.1), parts, seed=0))
    assert len(free) == 50
    assert free[-1] > 0.5 * free[0]  # half the loss, or less
    clipped = list(scores_of(workload(), Setting(8, 0.1), parts, seed=0))
    assert clipped[-1] == pytest.approx(clipped[0], rel=1e-3)  # updates as short as these leave the model where it was


def test_a_peer_that_fails_does_not_end_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(question: Question) -> Setting | None:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(PICKERS, "fails", fails)
    monkeypatch.setitem(PICKERS, "has none", lambda question: None)
    task = RealTask(
        name="made",
        make=workload,
        target=0.9,
        batch_size=8,
        learning_rate=20.0,
        batch_sizes=(8, 64),
        expected_examples=100,
        expected_seconds=1.0,
    )
    question = Question(workload(), {8: 0.1, 64: 0.2}, 10.0, 0)
    rows = [asked(task, question, name="default", peer=peer, best_seconds=10.0) for peer in ("fails", "has none")]
    assert [made["failure"] for made in rows] == ["RuntimeError: out of memory", "no setting"]
    assert all(judged(made, CURVES)["run_seconds"] is None for made in rows)


def test_rates_that_are_searched_hold_todays() -> None:
    question = Question(workload(), {8: 0.1, 64: 0.2}, 10.0, 0)
    assert question.largest == 64
    assert question.rates == (1e-5, 200.0)

"""The sweep from end to end on small workloads: what it refuses, finds, keeps, and goes on from."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from batchscope.errors import ArgumentError, PlanError, StorageError
from batchscope.fit.contention import busy_warning, quiet_time
from batchscope.fit.time_to_target import time_to_target
from batchscope.progress import ProgressEvent
from batchscope.records import Plan, Sweep, load
from batchscope.report.views import sweep as sweep_view
from batchscope.study import sweep
from batchscope.study.store import Store
from batchscope.study.sweep import checked_batch_sizes
from batchscope.study.tasks import key_of
from batchscope.training import train
from batchscope.workload import Workload

Make = Callable[..., Workload]
RATES = (0.02, 0.08, 0.32)


@pytest.fixture(scope="module")
def small(make: Make) -> Workload:
    return make(examples=400, held_out=120)


@pytest.fixture(scope="module")
def found(small: Workload) -> Sweep:
    return sweep(small, [4, 16, 64], learning_rates=RATES, seeds=2, target=0.9, examples=20_000, processes=2)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs a score to reach or a budget"),
        ({"target": math.nan}, "target must be a finite number"),
        ({"target": "high"}, "target must be a number"),
        ({"examples": 0}, "examples must be a whole number of at least 1"),
        ({"target": 0.9, "batch_sizes": []}, "batch sizes must be different whole numbers"),
        ({"target": 0.9, "batch_sizes": [8, 8]}, "batch sizes must be different whole numbers"),
        ({"target": 0.9, "batch_sizes": [True]}, "batch sizes must be different whole numbers"),
        ({"target": 0.9, "learning_rates": []}, "learning_rates must be 'search' or different numbers above 0"),
        ({"target": 0.9, "learning_rates": "sarch"}, "learning_rates must be 'search'"),
        ({"target": 0.9, "learning_rates": [0.1, -0.1]}, "learning_rates must be"),
        ({"target": 0.9, "learning_rates": [0.1, 0.1]}, "learning_rates must be"),
        ({"target": 0.9, "seeds": 0}, "seeds must be at least 1"),
        ({"target": 0.9, "engine": "cloud"}, "engine must be one of local, ray"),
        ({"target": 0.9, "address": "auto"}, "an address is for a Ray cluster"),
        ({"target": 0.9, "processes": 0}, "processes must be a number above 0"),
        ({"target": 0.9, "shape": "sine"}, "shape must be one of"),
        ({"target": 0.9, "evaluate_every": 0}, "evaluate_every must be a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(small: Workload, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        sweep(small, **{"batch_sizes": [8], **given})


def test_a_batch_larger_than_the_data_is_refused(small: Workload) -> None:
    with pytest.raises(PlanError, match="at most the number of training examples; got 401 > 400"):
        sweep(small, [401], target=0.9)


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_every_trial_is_one_that_train_would_make(small: Workload, found: Sweep) -> None:
    assert len(found.trials) == 3 * 3 * 2
    whole = [trial for trial in found.trials if trial.outcome in ("reached", "finished")]
    assert len(whole) >= 6
    for trial in whole[::3]:
        plan = Plan(batch_size=trial.batch_size, learning_rate=trial.learning_rate, examples=20_000, target=0.9)
        alone = train(small, plan, seed=trial.seed, evaluate_every=found.evaluate_every_examples)
        assert trial.outcome == alone.outcome
        assert trial.examples_to_target == (alone.examples if alone.reached else None)
        assert trial.best_loss == pytest.approx(alone.best_loss, rel=1e-3)


def test_the_best_of_each_batch_size_is_the_least_mean(found: Sweep) -> None:
    for line in found.best:
        own = [trial for trial in found.trials if trial.batch_size == line.batch_size]
        means = {
            rate: math.fsum(math.log(t.examples_to_target) for t in own if t.learning_rate == rate) / 2  # type: ignore[arg-type]
            for rate in RATES
            if all(t.examples_to_target for t in own if t.learning_rate == rate)
        }
        assert line.learning_rate is not None
        assert means[line.learning_rate] == pytest.approx(min(means.values()))
        assert line.examples_to_target.value == pytest.approx(math.exp(min(means.values())))
        assert line.updates_to_target.value == pytest.approx(math.exp(min(means.values())) / line.batch_size)
        assert (line.runs, line.reached, line.rates) == (2, 2, RATES)
        assert line.trials == 6
        assert line.trained_as


def test_the_record_carries_the_laws_and_says_them(found: Sweep, tmp_path: Path) -> None:
    assert found.law is not None
    assert [point.batch_size for point in found.law.points] == [4, 16, 64]
    assert found.rate_law is not None
    assert found.step_times is not None
    assert {point.batch_size for point in found.step_times.points} == {4, 16, 64}
    assert found.time is not None
    assert found.law.verdict in found.conclusion
    assert "with the fewest examples" in found.conclusion
    assert not found.interrupted
    assert found.error is None
    assert found.examples_spent == sum(trial.examples for trial in found.trials)
    assert all(trial.step_seconds is not None for trial in found.trials)
    assert all((trial.step_seconds or 0) > 0 for trial in found.trials if trial.iterations)
    assert load(found.to_json(tmp_path / "s.json")) == found


def test_a_busy_machine_is_said_and_leaves_the_fastest_batch_size_open(
    small: Workload, found: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found.law is not None
    quiet = found.step_times
    assert quiet is not None
    warning = busy_warning(0.6)
    assert warning is not None

    # Every time is 2.5 times as long as on the quiet machine, and nobody knows that better than to a factor.
    points = tuple(
        replace(p, step_seconds=quiet_time([2.5 * (p.step_seconds.value or 0)] * 6, [0.6] * 6).seconds)
        for p in quiet.points
    )
    contended = replace(quiet, points=points, contention=0.6, warnings=(warning,))
    monkeypatch.setattr(sys.modules["batchscope.study.sweep"], "step_times", lambda *_, **__: contended)
    busy = sweep(small, [4, 16, 64], learning_rates=RATES, seeds=2, target=0.9, examples=20_000, processes=2)
    assert busy.warnings == (warning,)
    assert warning in busy.conclusion
    assert warning in sweep_view.warnings(busy)
    for line, before in zip(busy.best, found.best, strict=True):
        assert line.examples_to_target == before.examples_to_target
    assert busy.time is not None
    for point, at_rest in zip(busy.time.points, time_to_target(found.law, quiet).points, strict=True):
        low, high = point.seconds.low, point.seconds.high
        assert low is not None and high is not None  # noqa: PT018
        assert low <= (at_rest.seconds.value or 0) <= high


def test_without_a_target_scores_at_the_budget_are_compared(small: Workload) -> None:
    found = sweep(small, [8, 32], learning_rates=RATES, seeds=2, examples=2000, time_updates=False)
    assert found.shape == "linear"
    assert found.law is None
    assert found.time is None
    assert {trial.outcome for trial in found.trials} <= {"finished", "diverged"}
    for line in found.best:
        own = [trial for trial in found.trials if trial.batch_size == line.batch_size]
        means = {rate: sum(t.best_score or 0 for t in own if t.learning_rate == rate) / 2 for rate in RATES}
        assert line.learning_rate is not None
        assert means[line.learning_rate] == pytest.approx(max(means.values()))
        assert line.examples_to_target.value is None
    assert "has the highest score" in found.conclusion


def test_a_target_out_of_reach_is_said(small: Workload) -> None:
    found = sweep(small, [16], learning_rates=[1e-6], seeds=1, target=1.0, examples=800, time_updates=False)
    assert [trial.outcome for trial in found.trials] == ["finished"]
    assert found.law is None
    assert "No trial reached a score of 1 within 800 examples" in found.conclusion


def test_rates_are_searched_and_pruning_saves(small: Workload) -> None:
    found = sweep(small, [8, 32], seeds=2, target=0.9, examples=20_000, time_updates=False)
    assert found.searched
    for line in found.best:
        assert line.reached == line.runs == 2
        assert line.edge is None
    assert any(trial.outcome == "pruned" for trial in found.trials)


def test_progress_is_told_and_random_state_is_kept(small: Workload) -> None:
    events: list[ProgressEvent] = []
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sweep(small, [16], learning_rates=[0.1], seeds=1, target=0.9, time_updates=False, progress=events.append)
    assert bool((torch.get_rng_state() == before).all())
    assert events[-1].sweep is not None
    assert events[-1].sweep.done == 1


# --- what is kept, and gone on from -----------------------------------------------------------------------------------


def test_a_store_is_gone_on_from_and_repeats_nothing(small: Workload, tmp_path: Path) -> None:
    given: dict[str, Any] = {"seeds": 1, "target": 0.9, "store": tmp_path / "s.db", "time_updates": False}
    sweep(small, [16], learning_rates=RATES[:2], **given)
    with Store.read(tmp_path / "s.db") as opened:
        before = {key_of(trial): trial for trial in opened.trials()}
    again = sweep(small, [16, 32], learning_rates=RATES, **given)
    with Store.read(tmp_path / "s.db") as opened:
        after = {key_of(trial): trial for trial in opened.trials()}
    assert len(before) == 2
    assert len(after) == len(again.trials) == 6
    assert all(after[key] == trial for key, trial in before.items() if trial.outcome != "pruned")
    with pytest.raises(StorageError, match="target"):
        sweep(small, [16], learning_rates=RATES, **given | {"target": 0.8})


def test_runs_seen_at_the_same_evaluation_are_not_certain(small: Workload) -> None:
    found = sweep(small, [16], learning_rates=[0.1], seeds=2, target=0.5, evaluate_every=400, time_updates=False)
    (line,) = found.best
    assert [trial.examples_to_target for trial in found.trials] == [400, 400]
    low, high = line.examples_to_target.low, line.examples_to_target.high
    assert low is not None
    assert high is not None
    # t with one degree of freedom, times the spread of something anywhere in 400 examples, as the mean of two
    assert math.log(high / low) == pytest.approx(2 * 12.706 * math.sqrt(1 / 12 / 2), rel=1e-3)


@pytest.mark.parametrize(("examples", "sizes"), [(5, (5,)), (40, (8, 32)), (600, (8, 32, 128, 512))])
def test_batch_sizes_go_as_far_as_the_data(make: Make, examples: int, sizes: tuple[int, ...]) -> None:
    assert checked_batch_sizes(None, make(examples=examples)) == sizes


def test_the_law_knows_how_far_evaluations_are_apart(found: Sweep) -> None:
    assert found.law is not None
    for point, line in zip(found.law.points, found.best, strict=True):
        own = [t for t in found.trials if (t.batch_size, t.learning_rate) == (line.batch_size, line.learning_rate)]
        seen = [trial.examples_to_target or 0 for trial in own]
        half = min(max(found.evaluate_every_examples, line.batch_size), *seen) / 2
        mean = math.exp(math.fsum(math.log(examples - half) for examples in seen) / len(seen))
        assert point.examples == pytest.approx(mean)

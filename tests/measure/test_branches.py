"""Branched runs find the size at which the quadratic's known loss leaves its best, and nothing else is touched."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import batchscope as bs
from batchscope.errors import ArgumentError, PlanError, RunError
from batchscope.measure.branches import TOLERANCE, _Budget, _paced
from batchscope.progress import ProgressEvent
from batchscope.records import Plan, TrainResult
from batchscope.training import Prepared, Run
from batchscope.training.start import Start
from batchscope.workload import Workload, quadratic

Make = Callable[..., Workload]
CPU = torch.device("cpu")
EXAMPLES = 4096
FACTORS = (0.5, 1, 2, 4, 8, 16, 32)


def known(workload: Workload, theta: Tensor, batch_size: int) -> float:
    """The expected loss of a branch: the recursion behind ``expected_loss``, with the rate falling linearly."""
    h, covariance = quadratic.eigenvalues(workload), quadratic.true_covariance(workload)
    square = theta.double().square()
    updates = EXAMPLES // batch_size
    for update in range(updates):
        rate = workload.learning_rate * batch_size / workload.batch_size * (1 - update / updates)
        square = (1 - rate * h).square() * square + rate**2 * covariance / batch_size
    return float(0.5 * (h * square).sum()) + quadratic.lowest_loss(workload)


@pytest.fixture(scope="module")
def point() -> tuple[Workload, Start, Tensor]:
    """A quadratic whose rate is a quarter of the stable one at B = 16, judged on its training examples, and a point."""
    made = quadratic.quadratic(noise=0.5, examples=4096, start=2.0)
    workload = dataclasses.replace(made, validation=made.train, batch_size=16, learning_rate=0.2)
    run = Run(Prepared(workload, CPU), Plan(16, 0.2, examples=160), seed=0)
    run()
    return workload, Start.of(run.model, run.optimizer), run.model.state_dict()["theta"].clone()


@pytest.fixture(scope="module")
def found(point: tuple[Workload, Start, Tensor]) -> bs.BranchedRuns:
    workload, start, _ = point
    result: bs.BranchedRuns = bs.branched_runs(
        workload, start=start, examples_before=160, factors=FACTORS, branch_examples=EXAMPLES, repeats=4, tolerance=0.05
    )
    return result


def test_the_verdict_is_that_of_the_known_losses(point: tuple[Workload, Start, Tensor], found: bs.BranchedRuns) -> None:
    workload, _, theta = point
    truth = {branch.batch_size: known(workload, theta, branch.batch_size) for branch in found.branches}
    least = min(truth.values())
    back = {size: loss - least <= 0.05 for size, loss in truth.items()}
    assert True in back.values()
    assert False in back.values()
    for branch in found.branches:
        assert branch.recovered is back[branch.batch_size], branch
    critical = found.critical_batch_size
    assert critical.value == max(size for size, yes in back.items() if yes)
    assert critical.high == min(size for size, yes in back.items() if not yes)


def test_losses_are_the_known_ones(point: tuple[Workload, Start, Tensor], found: bs.BranchedRuns) -> None:
    workload, _, theta = point
    for branch in found.branches:
        if branch.loss.value is not None and branch.loss.value < 10:
            assert branch.loss.value == pytest.approx(known(workload, theta, branch.batch_size), abs=0.02)
    assert found.loss_before == pytest.approx(quadratic.true_loss(workload, theta), rel=1e-4)


def test_rates_sizes_and_counts(found: bs.BranchedRuns) -> None:
    assert [branch.factor for branch in found.branches] == list(FACTORS)
    assert [branch.batch_size for branch in found.branches] == [8, 16, 32, 64, 128, 256, 512]
    for branch in found.branches:
        assert branch.learning_rate == pytest.approx(0.2 * branch.factor)
        assert branch.updates == EXAMPLES // branch.batch_size
        assert branch.examples == EXAMPLES
    assert (found.examples_before, found.repeats, found.tolerance) == (160, 4, 0.05)
    best = [branch for branch in found.branches if branch.excess.value == 0]
    assert len(best) == 1


def test_a_branch_that_diverges_is_data() -> None:
    workload = dataclasses.replace(quadratic.quadratic(), learning_rate=1.5)
    found = bs.branched_runs(workload, factors=(0.25, 1, 16), branch_examples=32 * 256, repeats=2)
    last = found.branches[-1]
    assert last.loss.value == math.inf
    assert last.recovered is False
    assert found.critical_batch_size.high is not None
    assert found.critical_batch_size.high <= last.batch_size
    assert "diverged at 512" in found.verdict


def test_a_branch_that_runs_out_of_memory_is_data(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Run.__call__

    def killed(run: Run) -> TrainResult:
        result = train(run)
        if run.plan.batch_size == 16:
            return dataclasses.replace(result, outcome="out of memory", final_loss=None)
        return result

    monkeypatch.setattr(Run, "__call__", killed)
    found = bs.branched_runs(make("mlp"), factors=(0.5, 1, 2), branch_examples=256, repeats=2)
    assert found.branches[-1].recovered is None
    assert not found.branches[-1].loss.resolved


def test_an_interruption_keeps_the_repeats_that_were_finished(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    train, calls = Run.__call__, []

    def interrupted(run: Run) -> TrainResult:
        calls.append(run.plan.batch_size)
        result = train(run)
        return dataclasses.replace(result, outcome="interrupted") if len(calls) == last else result

    monkeypatch.setattr(Run, "__call__", interrupted)
    last = 1 + 2 * 2 + 1  # in the third repeat
    found = bs.branched_runs(make("mlp"), factors=(1, 2), branch_examples=256, repeats=5)
    assert found.repeats == 2
    assert len(calls) == last
    calls.clear()
    last = 2
    with pytest.raises(KeyboardInterrupt):
        bs.branched_runs(make("mlp"), factors=(1, 2), branch_examples=256, repeats=5)


def test_all_branches_of_a_repeat_see_the_same_examples(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: dict[int, list[int]] = {}
    train = Run.__call__

    def watched(run: Run) -> TrainResult:
        seeds.setdefault(run.plan.batch_size, []).append(run.seed)
        return train(run)

    monkeypatch.setattr(Run, "__call__", watched)
    bs.branched_runs(make("mlp"), factors=(0.5, 2), branch_examples=256, repeats=3, seed=1)
    assert seeds[4] == seeds[16]
    assert len(set(seeds[4])) == 3


def test_adams_count_of_steps_is_worth_as_many_examples() -> None:
    """With β**k and t/k the correction 1 − β**t stays; the state of the point itself is left alone."""
    parameter = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    for _ in range(6):
        parameter.grad = torch.ones(3)
        optimizer.step()
    start = Start({}, {0: dict(optimizer.state[parameter])})
    paced = _paced(start, 4)
    assert float(paced.optimizer[0]["step"]) == pytest.approx(1.5)
    assert float(start.optimizer[0]["step"]) == 6
    assert (0.9**4) ** float(paced.optimizer[0]["step"]) == pytest.approx(0.9**6)
    assert torch.equal(paced.optimizer[0]["exp_avg"], start.optimizer[0]["exp_avg"])


def test_a_branch_at_the_bases_own_size_goes_on_as_the_base_would(make: Make) -> None:
    workload = make("mlp", optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr), learning_rate=0.01)
    found = bs.branched_runs(workload, factors=(1, 2), branch_examples=512, examples_before=400, repeats=2)
    assert found.branches[0].learning_rate == pytest.approx(0.01)
    assert found.branches[1].learning_rate == pytest.approx(0.01 * 2**0.5)
    assert found.branches[0].loss.value is not None
    assert found.branches[0].loss.value < found.loss_before


def test_the_tolerance_is_a_share_of_the_fall_whatever_the_losss_units(make: Make) -> None:
    def scaled(output: Tensor, target: Tensor) -> Tensor:
        return 1000 + 7 * torch.nn.functional.cross_entropy(output, target)

    arguments: dict[str, Any] = {"factors": (1, 2), "branch_examples": 256, "repeats": 2}
    plain = bs.branched_runs(make("mlp"), **arguments)
    other = bs.branched_runs(make("mlp", loss=scaled, learning_rate=0.05 / 7), **arguments)
    assert 0 < plain.tolerance < TOLERANCE * 2
    assert other.tolerance == pytest.approx(7 * plain.tolerance, rel=1e-2)


def test_the_budget_chooses_lengths_and_repeats(make: Make) -> None:
    workload = make("mlp", examples=10_000)
    pilot = Run(Prepared(workload, CPU), Plan(8, 0.05, examples=8), seed=0)
    poor, rich = _Budget(pilot, 1e-6, [4, 8, 16]), _Budget(pilot, 1e6, [4, 8, 16])
    assert poor.branch_examples(4) == 64 * 8
    assert rich.branch_examples(4) == 1024 * 8
    assert poor.repeats(512) == 4
    assert rich.repeats(512) == 12


def test_the_seed_settles_it_and_nothing_of_the_persons_is_changed(make: Make, tmp_path: Path) -> None:
    workload = make("augmented", model=make("dropout").model)
    torch.manual_seed(7)
    random.seed(7)
    states = torch.get_rng_state(), random.getstate()
    arguments: dict[str, Any] = {"factors": (0.5, 1), "branch_examples": 128, "repeats": 2, "seed": 3}
    once, again = (bs.branched_runs(workload, **arguments) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert once.branches == again.branches
    assert bs.load(once.to_json(tmp_path / "branches.json")) == once


def test_a_given_point_is_left_as_it_was(make: Make) -> None:
    workload = make("batch norm", optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr))
    run = Run(Prepared(workload, CPU), Plan(8, 0.01, examples=80), seed=0)
    run()
    start = Start.of(run.model, run.optimizer)
    before = Start.of(run.model, run.optimizer)
    bs.branched_runs(workload, start=start, factors=(1, 2), branch_examples=128, repeats=2)
    for name, value in before.model.items():
        assert torch.equal(start.model[name], value), name
    for i, state in before.optimizer.items():
        assert all(torch.equal(start.optimizer[i][key], value) for key, value in state.items())


def test_it_tells_of_its_progress(make: Make) -> None:
    events: list[ProgressEvent] = []
    bs.branched_runs(make("mlp"), factors=(1, 2), branch_examples=128, repeats=2, progress=events.append)
    assert [event.done for event in events] == [0, 0, 1, 2, 3]
    assert {event.total for event in events} == {4}


def test_refusals_say_what_to_do(make: Make) -> None:
    workload = make("mlp")
    for words, arguments in (
        ("factors", {"factors": (0, 1)}),
        ("factors", {"factors": ()}),
        ("repeats", {"repeats": 1}),
        ("tolerance", {"tolerance": 0.0}),
        ("branch_examples", {"branch_examples": 0}),
        ("seconds", {"seconds": -1}),
        ("at least two batch sizes", {"factors": (1, 2), "branch_examples": 64}),
        ("at least two batch sizes", {"factors": (1, 100)}),
    ):
        with pytest.raises(ArgumentError, match=words):
            bs.branched_runs(workload, **arguments)
    with pytest.raises(PlanError, match="published scaling rule"):
        bs.branched_runs(make("mlp", optimizer=lambda p, lr: torch.optim.Rprop(p, lr=lr)))
    with pytest.raises(RunError, match="branching point"):
        bs.branched_runs(make("mlp", learning_rate=1e30), factors=(1, 2), branch_examples=128)

"""The pure parts of playing the search policy: quadratics, windows of losses, successive halving, references."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from batchscope.search import policy, race
from batchscope.search.candidates import Point, Setting
from batchscope.search.recorded import Curve
from curves_table import Curves
from halving import grid_about, successive_halving
from noisy_quadratic import BLOCK_FACTOR, FLOOR_SHARE, SIZES, NoisyQuadratic, draw, window_mean
from policy import AS_IT_IS, WORST_REGRET, Play, Variant, changed, plays_of, summary
from policy_cases import LEAST_SETTINGS, curve_of, quadratic_case, recorded_cases


def test_expected_loss_is_the_recursion() -> None:
    spectrum, counts = np.array([1.0, 0.3, 0.01]), np.array([1.0, 2.0, 40.0])
    problem = NoisyQuadratic(spectrum, counts, 3.0, 1e-3, 1e-4, 0.1)
    size, rate = setting = Setting(8, 0.7)
    squares = np.ones(3)
    for _ in range(57):
        squares = ((1 - rate * spectrum) ** 2 + (rate * spectrum) ** 2 / size) * squares
        squares += rate**2 * 3.0 * spectrum / size
    assert problem.loss(setting, [57])[0] == pytest.approx(0.5 * float(counts @ (spectrum * squares)))
    assert problem.loss(setting, [1e9])[0] == pytest.approx(problem.floor(setting))
    assert math.isinf(problem.floor(Setting(8, 2.5)))


def test_expected_loss_is_the_mean_of_training() -> None:
    h, noise = 0.5, 2.0
    size, rate = setting = Setting(4, 0.8)
    generator = np.random.default_rng(0)
    weights = np.ones(40_000)
    for _ in range(6):
        deviation = np.sqrt((h**2 * weights**2 + noise * h) / size)
        weights = weights - rate * (h * weights + deviation * generator.standard_normal(len(weights)))
    problem = NoisyQuadratic(np.array([h]), np.ones(1), noise, 1e-3, 1e-4, 0.1)
    assert 0.5 * h * float(np.mean(weights**2)) == pytest.approx(problem.loss(setting, [6])[0], rel=0.03)


def test_drawn_problems_are_reached_with_room() -> None:
    problem, seconds = draw(3)
    best = min(seconds, key=lambda s: seconds[s])
    assert seconds[best] == pytest.approx(60.0)
    assert problem.floor(best) <= FLOOR_SHARE * problem.target
    assert {s.batch_size for s in seconds} == set(SIZES)
    updates = problem.updates_to_target(best)
    assert problem.loss(best, [updates - 1])[0] > problem.target >= problem.loss(best, [updates])[0]
    curve = problem.curve(best, 120.0, seed=1)
    assert curve.ended == "reached"
    assert 60.0 <= curve.points[-1].seconds <= 60.0 * BLOCK_FACTOR
    assert problem.curve(best, 120.0, seed=1) == curve != problem.curve(best, 120.0, seed=2)
    assert problem.curve(Setting(8, 8.0), 120.0, seed=1).ended == "diverged"


def test_window_mean_knows_its_error() -> None:
    generator = np.random.default_rng(0)
    examples = np.cumsum(np.full(60, 25.0))
    found = [window_mean(examples, 5 - examples / 1000 + generator.standard_normal(60) / 5) for _ in range(300)]
    means, errors = np.array(found).T
    assert means.mean() == pytest.approx(5 - 1.26, abs=0.02)
    assert float(np.mean(errors**2)) == pytest.approx(float(means.var()), rel=0.25)


def run(size: int, rate: float, seconds: float, outcome: str = "reached", seed: int = 0) -> dict[str, Any]:
    examples = [size * k for k in range(1, 11)]
    losses = [2.0 - 0.1 * k for k in range(1, 11)]
    return {
        "batch_size": size,
        "learning_rate": rate,
        "seed": seed,
        "outcome": outcome,
        "initial": {"loss": 2.0, "score": 0.1},
        "points": {
            "examples": examples,
            "seconds": [seconds * k / 10 for k in range(1, 11)],
            "score": [(0.1 if outcome == "reached" else 0.05) * k for k in range(1, 11)],
        },
        "blocks": {"examples": examples, "training_loss": losses},
    }


def recorded(runs: list[dict[str, Any]]) -> Curves:
    return Curves("net", 0.95, 32, 0.1, None, {}, tuple(runs))


def test_recorded_runs_become_curves() -> None:
    curve = curve_of(run(8, 0.1, 10.0))
    assert curve.points[0] == Point(0, 0, 0.0, 2.0, 0.0, 0.1)
    assert (curve.points[-1].examples, curve.points[-1].updates, curve.points[-1].seconds) == (80, 10, 10.0)
    assert curve.points[-1].loss == pytest.approx(np.mean([1.0, 1.1, 1.2]), abs=0.06)
    assert curve_of(run(8, 0.1, 10.0, "diverged")).points[-1].loss == math.inf


def test_sparse_grids_are_left_out() -> None:
    rates = [0.1 * 2.0**k for k in range(-3, 4)]
    runs = [run(size, rate, 10 + 5 * abs(math.log2(rate / 0.1))) for size in (8, 32) for rate in rates]
    assert not recorded_cases(recorded(runs[: LEAST_SETTINGS - 1]))
    (case,) = recorded_cases(recorded(runs))
    assert case.references == {
        "small batch, rate / 8": Setting(8, 0.0125),
        "good default": Setting(32, 0.1),
        "largest batch, rate x 8": Setting(32, 0.8),
    }
    assert case.regret(Setting(32, 0.8)) == 2.5


def test_a_reference_that_was_not_recorded_is_the_nearest_one_that_was() -> None:
    rates = [0.1 * 2.0**k for k in range(-3, 4)]
    runs = [run(size, rate, 10 + 5 * abs(math.log2(rate / 0.1))) for size in (8, 32) for rate in rates]
    (case,) = recorded_cases(recorded([r for r in runs if r["learning_rate"] != 0.8]))
    assert case.references["largest batch, rate x 8"] == Setting(32, 0.4)


def test_halving_keeps_the_fastest_within_its_seconds() -> None:
    def curve(setting: Setting, pace: float) -> Curve:
        return Curve(setting, tuple(Point(k, k, 0.1 * k, 5 - pace * k) for k in range(100)))

    settings = [Setting(8, 2.0**k) for k in range(9)]
    curves = {s: curve(s, 0.01 * (1 + i)) for i, s in enumerate(settings)}
    best, spent = successive_halving(curves, settings, 30.0)
    assert best == settings[-1]
    assert 25.0 < spent < 31.0


def test_grid_of_halving_holds_the_start() -> None:
    start = Setting(32, 0.3)
    grid = grid_about(start, SIZES)
    assert start in grid
    assert {s.batch_size for s in grid} <= set(SIZES)
    assert all(math.log2(s.learning_rate / 0.3).is_integer() for s in grid)


def test_variants_change_the_policy_only_while_they_last() -> None:
    before = policy.WORTHWHILE, race.UNSEEN
    with changed(Variant("other", constants={"WORTHWHILE": 9.0, "UNSEEN": 2.0}, off=("_pilot",))):
        assert (policy.WORTHWHILE, race.UNSEEN) == (9.0, 2.0)
    assert before == (policy.WORTHWHILE, race.UNSEEN)


def test_plays_have_each_method_from_each_reference() -> None:
    case = quadratic_case(1)
    plays = plays_of(case, [AS_IT_IS])
    methods = {play.method for play in plays}
    assert {(play.reference, play.method) for play in plays} == {(r, m) for r in case.references for m in methods}
    assert (len(plays), len(methods)) == (12, 4)
    assert all(1 - 1e-9 <= p.regret <= WORST_REGRET and p.cost >= 0 for p in plays)


def test_summary_has_quantiles_by_group() -> None:
    plays = [Play("a", "f", "r", "m", regret, 0.5) for regret in (1.0, 2.0, 3.0)]
    (row,) = summary(plays, lambda p: (p.variant, p.family, p.reference, p.method))
    assert (row["plays"], row["regret"][1], row["total"][-1]) == (3, 2.0, 3.5)

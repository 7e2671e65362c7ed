"""The comparison: what it refuses, how its runs are paired, and its arithmetic against scipy's."""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from batchscope.errors import ArgumentError, PlanError
from batchscope.fit import holm
from batchscope.progress import ProgressEvent
from batchscope.records import Comparison, Interval, TrainResult, load
from batchscope.report.views import comparison
from batchscope.study import compare
from batchscope.study.compare import EXPECTED_TRIALS, checked_pairs, search_seeds
from batchscope.study.conclusion import conclude
from batchscope.study.statistics import common_score, differences
from batchscope.study.statistics import row as summarise_row
from batchscope.workload import Workload

MakeWorkload = Callable[..., Workload]
MakeRun = Callable[..., TrainResult]


@pytest.fixture(scope="module")
def answered() -> dict[str, Comparison]:
    """Where one comparison serves several tests."""
    return {}


@pytest.fixture
def answer(workload: Workload, answered: dict[str, Comparison]) -> Comparison:
    if "fixed" not in answered:
        answered["fixed"] = compare(
            workload, [(4, 96), (16, 24), (64, 6)], seeds=4, learning_rate="fixed", shape="constant", evaluate_every=48
        )
    return answered["fixed"]


# What is refused, and what is suggested instead


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "at least one pair"),
        ([(16, 0)], "number of iterations must be a whole number of at least 1; got 0"),
        ([(0, 16)], "batch size must be a whole number of at least 1; got 0"),
        ([(-16, 16)], "got -16"),
        ([(16, 2.0)], "got 2.0"),
        ([(True, 16)], "got True"),
        ([("16", 16)], "got '16'"),
        ([(16, 16, 16)], "a pair is"),
        ([16], "a pair is"),
        (16, "list of"),
        ([(16, 16), (16, 16)], "16x16 twice"),
        ([(257, 1)], "257 > 256 examples of three classes. The full batch is 256"),
        ([(16, 20), (32, 11)], "16×20 = 320, 32×11 = 352. Try 16x22 32x11, or allow it with --allow-unequal"),
    ],
)
def test_pairs_are_checked(workload: Workload, pairs: Any, said: str) -> None:
    with pytest.raises(PlanError) as error:
        compare(workload, pairs, seeds=1, learning_rate="fixed")
    assert said in str(error.value)


@given(pairs=st.lists(st.tuples(st.integers(1, 256), st.integers(1, 300)), min_size=2, max_size=5, unique=True))
def test_the_pairs_suggested_are_accepted(some_workload: Workload, pairs: list[tuple[int, int]]) -> None:
    try:
        checked_pairs(pairs, some_workload)
    except PlanError as error:
        suggested = [tuple(map(int, pair.split("x"))) for pair in error.mend.split(",")[0].split()[1:]]
        assert {a for a, _ in suggested} == {a for a, _ in pairs}
        assert checked_pairs([(a, b) for a, b in suggested], some_workload)
    else:
        assert len({a * b for a, b in pairs}) == 1
    assert checked_pairs(pairs, some_workload, allow_unequal=True) == tuple(pairs)


@pytest.fixture(scope="module")
def some_workload() -> Workload:
    x = torch.zeros(256, 2)
    return Workload(
        model=lambda: nn.Linear(2, 2),
        train=(x, x),
        validation=(x, x),
        loss=nn.functional.mse_loss,
        optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr),
        learning_rate=0.1,
        batch_size=8,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": 10**12}, "at most 10,000"),
        ({"seeds": []}, "different whole numbers"),
        ({"seeds": "12"}, "different whole numbers"),
        ({"seeds": [1, 1]}, "differ from each other"),
        ({"seeds": [0, -1]}, "seed must be"),
        ({"seeds": [[1]]}, "seed must be"),
        ({"seeds": True}, "different whole numbers"),
        ({"seed": -1}, "seed must be"),
        ({"learning_rate": "guess"}, "search, rescaled, fixed"),
        ({"shape": "sawtooth"}, "constant, linear"),
        ({"order": "sorted"}, "order must be one of shuffled, replacement, stratified, bucketed"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"evaluate_every": True}, "evaluate_every"),
        ({"micro_batch_size": 0}, "micro_batch_size"),
        ({"workers": -1}, "workers"),
        ({"device": "abacus"}, "device must be"),
        ({"device": "meta"}, "device must be"),
    ],
)
def test_other_arguments_are_checked(workload: Workload, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as error:
        compare(workload, [(16, 16)], **arguments)
    assert said in str(error.value)
    assert error.value.exit_status == 2


def test_nothing_is_trained_before_every_plan_is_checked(make_workload: MakeWorkload) -> None:
    y = torch.rand(256, 3)
    workload = make_workload(train=(torch.rand(256, 5), y), validation=(torch.rand(8, 5), y[:8]), score=None)
    events: list[ProgressEvent] = []
    with pytest.raises(PlanError, match="as its class"):
        compare(workload, [(16, 16)], order="stratified", progress=events.append)
    assert events == []


def test_unequal_budgets_can_be_allowed(workload: Workload) -> None:
    pairs = [(16, 4), (16, 8), (32, 4)]
    answer = compare(workload, pairs, seeds=2, learning_rate="search", allow_unequal=True)
    assert [(row.batch_size, row.iterations) for row in answer.rows] == pairs
    assert [len(answer.runs_of(row)) for row in answer.rows] == [2, 2, 2]
    # Each row's rate is chosen at its own budget.
    assert [(search.batch_size, search.horizon_examples) for search in answer.searches] == [
        (16, 64),
        (16, 128),
        (32, 128),
    ]
    assert [row.learning_rate for row in answer.rows] == [search.learning_rate for search in answer.searches]
    assert [answer.search_of(row) for row in answer.rows] == list(answer.searches)
    assert answer.conclusion.startswith("Of budgets that differ")


# Pairing


def test_rows_of_one_seed_begin_at_the_same_weights(answer: Comparison) -> None:
    assert answer.seeds == (0, 1, 2, 3)
    starts = [[run.curve[0].validation_loss for run in answer.runs_of(row)] for row in answer.rows]
    assert starts[0] == starts[1] == starts[2]
    assert len(set(starts[0])) == 4
    assert [[run.seed for run in answer.runs_of(row)] for row in answer.rows] == [[0, 1, 2, 3]] * 3


def test_every_run_sees_its_whole_budget_on_one_grid_of_evaluations(answer: Comparison) -> None:
    assert all(run.examples == 384 and run.outcome == "finished" for run in answer.runs)
    assert [[run.iterations for run in answer.runs_of(row)] for row in answer.rows] == [[96] * 4, [24] * 4, [6] * 4]
    for run in answer.runs:
        wanted = [min(384, -(-k // run.plan.batch_size) * run.plan.batch_size) for k in range(0, 385, 48)]
        assert [point.examples for point in run.curve] == sorted(set(wanted))


def test_seeds_can_be_named(workload: Workload) -> None:
    answer = compare(workload, [(32, 2)], seeds=[7, 3], learning_rate="fixed")
    assert answer.seeds == (7, 3)
    assert [run.seed for run in answer.runs] == [7, 3]
    shifted = compare(workload, [(32, 2)], seeds=2, seed=7, learning_rate="fixed")
    assert shifted.seeds == (7, 8)
    assert shifted.runs[0].curve[-1].validation_loss == answer.runs[0].curve[-1].validation_loss


def test_the_same_again(workload: Workload, make_workload: MakeWorkload, without_times: Any) -> None:
    arguments: dict[str, Any] = {"seeds": 2, "seed": 5, "learning_rate": "search", "order": "stratified"}
    first = compare(workload, [(16, 16), (64, 4)], **arguments)
    again = compare(make_workload(), [(16, 16), (64, 4)], **arguments)
    assert without_times(first) == without_times(again)
    other = compare(workload, [(16, 16), (64, 4)], **(arguments | {"seed": 6}))
    assert without_times(first)["searches"] != without_times(other)["searches"]
    assert without_times(first)["runs"] != without_times(other)["runs"]


def test_the_persons_own_random_state_is_left_alone(workload: Workload) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    compare(workload, [(32, 2)], seeds=1)
    assert torch.equal(before, torch.get_rng_state())


# The learning rate


def test_a_fixed_rate_is_the_reference(answer: Comparison) -> None:
    assert [row.learning_rate for row in answer.rows] == [0.1, 0.1, 0.1]
    assert {point.learning_rate for run in answer.runs for point in run.curve} == {0.1}
    assert answer.searches == ()
    assert all(row.search_seconds == 0 and row.search_examples == 0 for row in answer.rows)


def test_a_linear_rate_falls_to_the_last_update(workload: Workload) -> None:
    answer = compare(workload, [(16, 8)], seeds=1, learning_rate="fixed", evaluate_every=16)
    assert [point.learning_rate for point in answer.runs[0].curve] == pytest.approx(
        [0.1, *(0.1 * (1 - k / 8) for k in range(8))]
    )
    assert answer.rows[0].learning_rate == 0.1


def test_sgd_is_rescaled_in_proportion(workload: Workload) -> None:
    answer = compare(workload, [(4, 16), (16, 4), (64, 1)], seeds=1, learning_rate="rescaled", shape="constant")
    assert [row.learning_rate for row in answer.rows] == pytest.approx([0.025, 0.1, 0.4])
    used = [{point.learning_rate for point in answer.runs_of(row)[0].curve} for row in answer.rows]
    assert used == [{row.learning_rate} for row in answer.rows]


def test_adam_is_rescaled_by_the_root_and_its_betas_by_the_power(make_workload: MakeWorkload) -> None:
    made: list[torch.optim.Adam] = []

    def adam(params: Any, lr: float) -> torch.optim.Adam:
        made.append(torch.optim.Adam(params, lr=lr, betas=(0.9, 0.99), eps=1e-6))
        return made[-1]

    answer = compare(
        make_workload(optimizer=adam, learning_rate=0.01),
        [(4, 16), (64, 1)],
        seeds=1,
        learning_rate="rescaled",
        shape="constant",
    )
    assert [row.learning_rate for row in answer.rows] == pytest.approx([0.005, 0.02])
    used = sorted(
        (opt.param_groups[0]["lr"], *opt.param_groups[0]["betas"], opt.param_groups[0]["eps"])
        for opt in made
        if opt.state  # it has made a step
    )
    assert used == [
        pytest.approx((0.005, 0.9**0.25, 0.99**0.25, 2e-6)),
        pytest.approx((0.02, 0.9**4, 0.99**4, 5e-7)),
    ]


def test_an_optimiser_without_a_rule_can_be_searched_but_not_rescaled(make_workload: MakeWorkload) -> None:
    workload = make_workload(optimizer=lambda params, lr: torch.optim.Rprop(params, lr=lr), learning_rate=0.01)
    with pytest.raises(PlanError, match=r"got Rprop\. Search for the learning rate"):
        compare(workload, [(16, 4)], learning_rate="rescaled")
    answer = compare(workload, [(64, 4)], seeds=1, learning_rate="search")
    assert 0.01 in [trial.learning_rate for trial in answer.searches[0].trials]


def test_a_search_is_made_at_the_whole_budget_of_its_row_and_its_cost_is_counted(workload: Workload) -> None:
    answer = compare(workload, [(64, 4), (4, 64)], seeds=2, learning_rate="search")
    assert [search.batch_size for search in answer.searches] == [64, 4]
    for search, row in zip(answer.searches, answer.rows, strict=True):
        assert {trial.examples for trial in search.trials} == {search.horizon_examples} == {256}
        assert row.learning_rate == search.learning_rate
        assert row.search_examples == search.examples == len(search.trials) * 256
        assert row.search_seconds == search.seconds > 0
        assert all(run.plan.learning_rate == search.learning_rate for run in answer.runs_of(row))
    # The smallest batch size begins at the reference rescaled, the other at what that one has found.
    assert 0.025 in [trial.learning_rate for trial in answer.searches[1].trials]
    begun = 16 * answer.searches[1].learning_rate
    assert begun in [pytest.approx(trial.learning_rate) for trial in answer.searches[0].trials]
    spent = sum(search.seconds for search in answer.searches) + sum(run.total_seconds for run in answer.runs)
    assert answer.total_seconds >= spent


def test_the_search_has_seeds_of_its_own_and_the_best_and_its_neighbours_are_paired(workload: Workload) -> None:
    answer = compare(workload, [(4, 64), (64, 4)], seeds=2, learning_rate="search")
    for search in answer.searches:
        assert len(search.seeds) == 2
        assert not set(search.seeds) & set(answer.seeds)
        whole = [trial for trial in search.trials if trial.examples == search.horizon_examples]
        assert {trial.seed for trial in whole} == set(search.seeds)
        losses: dict[float, list[float]] = {}
        for trial in whole:
            losses.setdefault(trial.learning_rate, []).append(trial.loss)
        complete = sorted(rate for rate, own in losses.items() if len(own) == 2)
        best = min(complete, key=lambda rate: sum(losses[rate]))
        assert not search.at_edge
        for factor in (0.5**0.5, 2**0.5):  # a worse one on either side, over the same seeds
            neighbour = next(rate for rate in complete if abs(math.log(rate / best / factor)) < 1e-6)
            assert sum(losses[neighbour]) >= sum(losses[best])
        assert abs(math.log2(search.learning_rate / best)) <= 0.25 + 1e-6


def test_seeds_of_the_search_avoid_those_of_the_rows() -> None:
    free = search_seeds(0, ())
    assert search_seeds(0, (free[0],))[0] == free[1]
    assert search_seeds(1, ()) != free


def test_a_searched_rate_is_better_than_a_bad_reference(make_workload: MakeWorkload) -> None:
    workload = make_workload(learning_rate=1e-5)
    searched = compare(workload, [(16, 32)], seeds=2, learning_rate="search")
    fixed = compare(workload, [(16, 32)], seeds=2, learning_rate="fixed")
    assert (searched.rows[0].loss.value or 9) < (fixed.rows[0].loss.value or 0) - 0.1


# Arithmetic


def close(interval: Interval, values: list[float]) -> None:
    assert interval.value == pytest.approx(np.mean(values), rel=1e-9, abs=1e-12)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert interval.low == pytest.approx(low, rel=1e-9, abs=1e-12)
    assert interval.high == pytest.approx(high, rel=1e-9, abs=1e-12)


def test_rows_are_means_and_medians_of_their_runs(answer: Comparison) -> None:
    lowest_of_the_best = min(max(point.score for point in run.curve) for run in answer.runs)
    assert answer.common_score == lowest_of_the_best
    for row in answer.rows:
        runs = answer.runs_of(row)
        assert (row.finished, row.diverged, row.failed) == (4, 0, 0)
        assert row.examples == 384
        close(row.score, [run.curve[-1].score for run in runs])
        close(row.best_score, [max(point.score for point in run.curve) for run in runs])
        close(row.loss, [run.curve[-1].validation_loss for run in runs])
        close(row.best_loss, [min(point.validation_loss for point in run.curve) for run in runs])
        close(row.generalisation_gap, [(run.training_score or 0) - run.curve[-1].score for run in runs])
        seconds = [run.curve[-1].seconds for run in runs]
        assert row.step_seconds == statistics.median(seconds)
        assert (row.step_seconds_low, row.step_seconds_high) == (min(seconds), max(seconds))
        assert row.examples_per_second == pytest.approx(384 / statistics.median(seconds))
        assert row.data_seconds is not None
        assert row.data_seconds < statistics.median(seconds)
        firsts = [next(p for p in run.curve if p.score >= lowest_of_the_best) for run in runs]
        assert row.common_score_reached == 4
        assert row.examples_to_common_score == statistics.median(p.examples for p in firsts)
        assert row.seconds_to_common_score == statistics.median(p.seconds for p in firsts)


def test_differences_are_paired_t_tests_with_holms_adjustment(answer: Comparison) -> None:
    assert [(d.first, d.second) for d in answer.differences] == [(0, 1), (0, 2), (1, 2)]
    raw_scores, raw_times = [], []
    for difference in answer.differences:
        a, b = (answer.runs_of(answer.rows[i]) for i in (difference.first, difference.second))
        assert difference.seeds == 4
        close(difference.score, [x.curve[-1].score - y.curve[-1].score for x, y in zip(a, b, strict=True)])
        close(
            difference.loss,
            [x.curve[-1].validation_loss - y.curve[-1].validation_loss for x, y in zip(a, b, strict=True)],
        )
        logs = [[math.log(run.step_seconds) for run in side] for side in (a, b)]
        ratio = difference.seconds_ratio
        assert ratio.value == pytest.approx(stats.gmean(np.exp(np.array(logs[0]) - np.array(logs[1]))))
        test = stats.ttest_rel(*logs)
        ends = test.confidence_interval(0.95)
        assert (ratio.low, ratio.high) == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
        raw_times.append(test.pvalue)
        raw_scores.append(stats.ttest_rel([r.curve[-1].score for r in a], [r.curve[-1].score for r in b]).pvalue)
    for raw, found in ((raw_scores, "score"), (raw_times, "seconds")):
        order = np.argsort(raw)
        adjusted, largest = np.empty(3), 0.0
        for rank, i in enumerate(order):
            largest = max(largest, min(1.0, (3 - rank) * raw[i]))
            adjusted[i] = largest
        for difference, p in zip(answer.differences, adjusted, strict=True):
            assert getattr(difference, f"{found}_p_value") == pytest.approx(p)
            assert getattr(difference, f"{found}_told_apart") == (p < 0.05)


def test_holm_by_hand(make_run: MakeRun) -> None:
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.06, 0.02, 0.02]) == pytest.approx([0.06, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    # Three rows a hair apart: each pair alone would be told apart at 5%, the three together are not.
    noise = [[0.0, 0.0, 0.0, 0.0, 0.0], [0.1, 0.3, 0.2, 0.5, 0.05], [0.0, 0.2, -0.2, 0.1, 0.0]]
    rows = [[make_run(2**i, 64, s, score=n) for s, n in enumerate(row)] for i, row in enumerate(noise)]
    raw = stats.ttest_rel(noise[0], noise[1]).pvalue
    assert 0.04 < raw < 0.05
    alone, together = differences(rows[:2])[0], differences(rows)[0]
    assert alone.score_p_value == pytest.approx(raw)
    assert alone.score_told_apart
    assert together.score_p_value is not None
    assert together.score_p_value > 0.05
    assert not together.score_told_apart
    assert together.score == alone.score  # the interval is each pair's own


def test_diverged_runs_are_counted_and_enter_no_interval(make_run: MakeRun) -> None:
    runs = [
        [
            make_run(8, 64, s, score=0.1 * s, seconds=1 + s, outcome="diverged" if s == 1 else "finished")
            for s in range(4)
        ],
        [
            make_run(16, 32, s, score=0.05 * s, seconds=9.0, outcome="diverged" if s == 3 else "finished")
            for s in range(4)
        ],
    ]
    found = summarise_row(8, 64, 0.1, runs[0], target=0.2, search=None)
    assert (found.finished, found.diverged, found.failed) == (3, 1, 0)
    close(found.score, [0.0, 0.2, 0.3])
    assert (found.step_seconds, found.step_seconds_low, found.step_seconds_high) == (3, 1, 4)
    assert found.common_score_reached == 2
    (difference,) = differences(runs)
    assert difference.seeds == 2  # 0 and 2
    close(difference.score, [0.0, 0.1])
    assert common_score([run for side in runs for run in side]) == 0.0


def busy(run: TrainResult, contention: float) -> TrainResult:
    return replace(run, contention=contention, step_seconds=run.step_seconds / (1 - contention))


def test_times_are_taken_from_the_runs_that_found_the_machine_quiet(make_run: MakeRun) -> None:
    quiet = [[make_run(size, 64, s, seconds=size + 0.1 * s) for s in range(5)] for size in (8, 16)]
    runs = [[busy(run, 0.5) if s in (1, 2) else busy(run, 0.0) for s, run in enumerate(side)] for side in quiet]
    alone = [[run for s, run in enumerate(side) if s not in (1, 2)] for side in quiet]
    found, wanted = (summarise_row(8, 64, 0.1, side[0], target=None, search=None) for side in (runs, alone))
    assert found.finished == 5
    assert (found.step_seconds, found.step_seconds_low, found.step_seconds_high) == (8.3, 8.0, 8.4)
    assert (wanted.step_seconds, wanted.step_seconds_low, wanted.step_seconds_high) == (8.3, 8.0, 8.4)
    ((difference,), (other,)) = differences(runs), differences(alone)
    assert difference.seeds == 5
    assert difference.seconds_ratio == other.seconds_ratio


def test_where_no_run_was_quiet_times_are_as_uncertain_as_that(make_run: MakeRun) -> None:
    quiet = [[make_run(size, 64, s, seconds=size + 0.01 * s) for s in range(5)] for size in (8, 10)]
    (at_rest,) = differences(quiet)
    assert at_rest.seconds_told_apart
    # Runs that are too short to know take the whole comparison's word.
    for runs, whole in (([[busy(run, 0.5) for run in side] for side in quiet], None), (quiet, 0.5)):
        (difference,) = differences(runs, contention=whole)
        assert difference.seconds_ratio.value == pytest.approx(at_rest.seconds_ratio.value)
        assert difference.seconds_ratio.low == pytest.approx((at_rest.seconds_ratio.low or 0) / 2)
        assert difference.seconds_ratio.high == pytest.approx((at_rest.seconds_ratio.high or 0) * 2)
        assert not difference.seconds_told_apart
        row = summarise_row(8, 64, 0.1, runs[0], target=None, search=None, contention=whole)
        assert row.step_seconds_low == pytest.approx(0.5 * min(run.step_seconds for run in runs[0]))
    (slight,) = differences(quiet, contention=0.06)
    assert slight.seconds_told_apart


def test_a_busy_machine_is_said(make_run: MakeRun, make_comparison: Callable[..., Comparison]) -> None:
    record = make_comparison([[make_run(size, 64, s, seconds=size + s) for s in range(3)] for size in (8, 16)])
    assert "busy" not in record.conclusion
    record = replace(record, contention=0.4)
    assert "other programs took 40% of the processor time that training needed" in conclude(record)
    assert any("took 40%" in said for said in comparison.warnings(record))


@pytest.mark.parametrize("worthless", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_spoils_no_other(make_run: MakeRun, worthless: float) -> None:
    rng = np.random.default_rng(0)
    rows = [[make_run(2**i, 64, s, score=i + 0.01 * rng.normal()) for s in range(4)] for i in range(3)]
    spoilt = [rows[0], rows[1], [make_run(4, 64, 0, score=worthless, loss=1.0), *rows[2][1:]]]
    for whole, part in zip(differences(rows), differences(spoilt), strict=True):
        assert part.score_p_value is not None
        assert math.isfinite(part.score.value or 0)
        if 2 not in (part.first, part.second):
            assert part.score == whole.score
            assert part.score_told_apart


def test_one_seed_has_values_without_ends(workload: Workload) -> None:
    answer = compare(workload, [(16, 4), (32, 2)], seeds=1, learning_rate="fixed")
    for row in answer.rows:
        assert row.score.value is not None
        assert (row.score.low, row.score.high) == (None, None)
    (difference,) = answer.differences
    assert difference.score_p_value is None
    assert not difference.score_told_apart
    assert not difference.seconds_told_apart
    assert "with one seed" in answer.conclusion


def test_one_rowhas_no_differences(workload: Workload) -> None:
    answer = compare(workload, [(16, 4)], seeds=2, learning_rate="fixed")
    assert answer.differences == ()
    assert "nothing to compare" in answer.conclusion


# What does not end in order


def test_where_all_diverge(make_workload: MakeWorkload, tmp_path: Path) -> None:
    answer = compare(make_workload(learning_rate=1e12), [(8, 128), (16, 64)], seeds=2, learning_rate="fixed")
    assert all(run.outcome == "diverged" and run.final_score is None for run in answer.runs)
    assert [(row.finished, row.diverged) for row in answer.rows] == [(0, 2), (0, 2)]
    assert answer.common_score is None
    assert not answer.rows[0].score.resolved
    assert answer.rows[0].step_seconds is None
    assert answer.differences[0].seeds == 0
    assert answer.conclusion.startswith("No run finished in order")
    assert not answer.interrupted
    assert load(answer.to_json(tmp_path / "diverged.json")) == answer


def test_where_one_batch_size_diverges_the_others_are_answered(make_workload: MakeWorkload) -> None:
    def squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(output, nn.functional.one_hot(target, 3).float())

    workload = make_workload(loss=squares, learning_rate=0.8)
    answer = compare(workload, [(2, 1024), (16, 128), (128, 16)], seeds=2, learning_rate="rescaled")
    assert [(row.finished, row.diverged) for row in answer.rows] == [(2, 0), (2, 0), (0, 2)]
    assert [d.seeds for d in answer.differences] == [2, 0, 0]
    assert answer.differences[0].score.resolved
    assert not answer.differences[1].score.resolved
    assert answer.common_score is not None
    assert "At batch 128, 2 of 2 runs diverged at a learning rate of 6.4" in answer.conclusion
    steps = [run.diverged_at_iteration for run in answer.runs_of(answer.rows[2])]
    assert all(step is not None and 1 < step <= 16 for step in steps)


def test_a_run_that_runs_out_of_memory_is_a_result(memory_for_32: Workload) -> None:
    answer = compare(memory_for_32, [(16, 8), (64, 2)], seeds=2, learning_rate="search")
    assert [(row.finished, row.failed) for row in answer.rows] == [(2, 0), (0, 2)]
    assert "At batch 64, 2 runs ran out of memory." in answer.conclusion
    assert "Only batch 16 × 8 updates has runs that finished" in answer.conclusion
    assert [trial.outcome for trial in answer.searches[1].trials] == ["out of memory"]
    smaller = compare(memory_for_32, [(64, 2)], seeds=1, learning_rate="fixed", micro_batch_size=32)
    assert smaller.rows[0].finished == 1


def test_an_error_of_the_workloads_own_is_raised(make_workload: MakeWorkload) -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and len(x) > 32:
                raise RuntimeError("shapes do not fit")
            return super().forward(x)

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        compare(make_workload(model=lambda: Broken(5, 3)), [(64, 2)], seeds=1, learning_rate="fixed")


def test_an_error_in_the_middle_keeps_what_was_finished(make_workload: MakeWorkload, tmp_path: Path) -> None:
    class BreaksAtLarge(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and len(x) > 32:
                raise RuntimeError("shapes do not fit")
            return super().forward(x)

    workload = make_workload(model=lambda: BreaksAtLarge(5, 3))
    answer = compare(workload, [(16, 8), (64, 2)], seeds=2, learning_rate="fixed")
    assert [row.finished for row in answer.rows] == [1, 0]
    assert answer.interrupted
    assert answer.error == "RuntimeError: shapes do not fit (batch 64 × 2, seed 1/2)"
    assert "shapes do not fit" in answer.conclusion
    assert load(answer.to_json(tmp_path / "answer.json")) == answer
    assert "shapes do not fit" in answer.report(tmp_path / "answer.html").read_text(encoding="utf-8")


def test_a_run_without_memory_is_tried_again_from_a_store(memory_for_32: Workload, tmp_path: Path) -> None:
    compare(memory_for_32, [(16, 8), (64, 2)], seeds=1, learning_rate="fixed", store=tmp_path)
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        [(key, result)] = connection.execute("SELECT key, result FROM runs").fetchall()
    connection.close()
    assert (key[:4], json.loads(result)["outcome"]) == ("b16-", "finished")


# Progress


def follow(workload: Workload, pairs: list[tuple[int, int]], **arguments: Any) -> list[ProgressEvent]:
    events: list[ProgressEvent] = []
    compare(workload, pairs, progress=events.append, **arguments)
    assert events
    for before, after in itertools.pairwise(events):
        assert before.done <= after.done
    for event in events:
        assert event.total is not None
        assert event.done <= event.total
        assert event.seconds_left is None or event.seconds_left >= 0
        assert event.task == "comparing"
    assert events[-1].done == events[-1].total
    assert sum(event.done == event.total for event in events) == 1
    return events


def test_progress_goes_forward_to_the_end(workload: Workload) -> None:
    events = follow(workload, [(16, 16), (64, 4)], seeds=2, learning_rate="fixed")
    assert {event.total for event in events} == {4 * 256}
    assert next(event.label for event in events if event.done % 256 == 0 and event.done) == "batch 16 × 16, seed 1/2"
    assert all(event.score is not None for event in events)
    assert events[0].seconds_left is None
    assert events[-1].seconds_left == 0


def test_progress_of_a_search(workload: Workload) -> None:
    events = follow(workload, [(16, 16), (64, 4)], seeds=2, learning_rate="search")
    assert events[0].label == "searching, batch 16"
    second = next(event for event in events if event.label == "searching, batch 64")
    assert second.total is not None
    assert second.total - second.done == (EXPECTED_TRIALS + 4) * 256  # nothing is left over from the first search


def test_progress_of_a_search_that_takes_longer_than_reckoned(make_workload: MakeWorkload) -> None:
    follow(make_workload(learning_rate=1e-6), [(16, 2), (32, 1)], seeds=1, learning_rate="search")


def test_progress_where_all_diverge(make_workload: MakeWorkload) -> None:
    follow(make_workload(learning_rate=1e12), [(16, 128), (32, 64)], seeds=2, learning_rate="fixed")


def test_progress_of_what_is_restored(workload: Workload, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"seeds": 2, "learning_rate": "fixed", "store": tmp_path}
    first = follow(workload, [(16, 8), (32, 4)], **arguments)
    again = follow(workload, [(16, 8), (32, 4)], **arguments)
    assert [event.done for event in again] == [128, 256, 384, 512]
    assert again[-1].score == first[-1].score


# The record


def test_the_record_survives_json(answer: Comparison, tmp_path: Path) -> None:
    back = load(answer.to_json(tmp_path / "deep" / "answer.json"))
    assert back == answer
    assert isinstance(back, Comparison)
    assert back.runs_of(back.rows[1]) == answer.runs_of(answer.rows[1])


def test_a_record_from_before_the_search_said_so_much_is_read_and_shown(workload: Workload, tmp_path: Path) -> None:
    answer = compare(workload, [(16, 8), (64, 2)], seeds=2)
    data = json.loads(answer.to_json(tmp_path / "new.json").read_text())
    for search in data["searches"]:
        search["horizon_examples"] = 64  # shorter than the row's budget
        for added in ("seeds", "interpolated", "curve"):
            del search[added]
        for trial in search["trials"]:
            del trial["seed"], trial["examples"]
    for part in (data, *data["runs"]):
        del part["contention"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    old = load(tmp_path / "old.json")
    assert isinstance(old, Comparison)
    assert [old.search_of(row) for row in old.rows] == list(old.searches)
    assert old.runs[0].contention is None
    assert [line[0] for line in comparison.searches(old).lines] == ["16 × 8", "64 × 2"]
    assert "searched for each row" in comparison.search_cost(old)
    assert old.report(tmp_path / "old.html").stat().st_size > 10_000


def test_the_record_says_what_was_compared(answer: Comparison) -> None:
    assert answer.workload.name == "three classes"
    assert answer.workload.parameters == 18
    assert (answer.workload.training_examples, answer.workload.validation_examples) == (256, 128)
    assert answer.workload.optimizer == "SGD"
    assert answer.workload.loss == "cross_entropy"
    assert (answer.shape, answer.order, answer.learning_rate) == ("constant", "shuffled", "fixed")
    assert answer.evaluate_every_examples == 48
    assert not answer.interrupted
    assert answer.provenance.seed == 0
    assert all(run.state is None for run in answer.runs)

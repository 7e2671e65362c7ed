"""The trade-off law against laws that are known, published curves, and what no data can tell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.errors import ArgumentError
from batchscope.fit.tradeoff import fit_tradeoff

SIZES = [4 * 2**i for i in range(9)]

# Examples to the reference quality, from MLPerf's reference convergence points (mlcommons/logging).
RESNET_EPOCHS = {
    1632: 35,
    3264: 35.2,
    4096: 40,
    8192: 42,
    13056: 45.4,
    32768: 56,
    49152: 68,
    58880: 79.9,
    65536: 84.5,
    67840: 85.9,
}
BERT_MILLIONS = {
    256: 2.553,
    448: 2.411,
    1536: 2.778,
    3072: 2.768,
    4096: 2.843,
    4608: 2.795,
    6144: 3.321,
    6912: 3.596,
    8192: 4.191,
    8704: 4.278,
    12288: 4.470,
    13056: 4.633,
    16384: 5.504,
}


def table(
    critical: float, seed: int, *, within: float = 0.05, between: float = 0.05, runs: int = 3
) -> list[list[float]]:
    """Runs scatter about their size's own level, which is off the law as its learning rate suits it more or less."""
    generator = np.random.default_rng(seed)
    return [
        (1e4 * (1 + b / critical) * np.exp(generator.normal(0, between) + generator.normal(0, within, runs))).tolist()
        for b in SIZES
    ]


@settings(max_examples=25)
@given(critical=st.floats(8.0, 600.0), least=st.floats(1.0, 1e9))
def test_exact_tables_give_the_law_back(critical: float, least: float) -> None:
    law = fit_tradeoff(SIZES, [least * (1 + b / critical) for b in SIZES])
    assert law.form == "hyperbola"
    assert law.critical_batch_size.value == pytest.approx(critical, rel=1e-3)
    assert law.minimum_examples.value == pytest.approx(least, rel=1e-3)
    assert law.minimum_updates.value == pytest.approx(least / critical, rel=2e-3)
    assert law.examples(critical) == pytest.approx(2 * least, rel=1e-3)
    assert law.updates(1e9) == pytest.approx(least / critical, rel=3e-3)
    assert law.determined
    assert law.follows


@pytest.mark.parametrize(("published", "critical"), [(RESNET_EPOCHS, 47_000), (BERT_MILLIONS, 12_800)])
def test_published_curves_give_their_critical_batch_size(published: dict[int, float], critical: float) -> None:
    law = fit_tradeoff(list(published), list(published.values()))
    assert law.critical_batch_size.value == pytest.approx(critical, rel=0.1)
    assert law.critical_batch_size.low < critical < law.critical_batch_size.high  # type: ignore[operator]
    assert law.form == "hyperbola"
    assert law.leave_one_out_error < 0.1  # type: ignore[operator]


@pytest.mark.parametrize(("critical", "within", "between"), [(30.0, 0.1, 0.0), (200.0, 0.05, 0.05)])
def test_intervals_hold_the_truth_as_often_as_they_say(critical: float, within: float, between: float) -> None:
    held = []
    for seed in range(80):
        law = fit_tradeoff(SIZES, table(critical, seed, within=within, between=between))
        if law.form != "hyperbola":
            continue
        truths = (critical, 1e4, 1e4 / critical)
        found = (law.critical_batch_size, law.minimum_examples, law.minimum_updates)
        held.append([i.low <= truth <= i.high for i, truth in zip(found, truths, strict=True)])  # type: ignore[operator]
    assert len(held) >= 72
    # More than 72 draws of 0.95: below 0.88 or at 1 about once in fifty.
    assert (np.mean(held, axis=0) > 0.88).all()
    assert (np.mean(held, axis=0) < 1).all()


def test_the_order_of_the_table_and_the_unit_of_examples_do_not_matter() -> None:
    examples = table(100, 0)
    law = fit_tradeoff(SIZES, examples)
    turned = fit_tradeoff(SIZES[::-1], [[1000 * e for e in runs] for runs in examples[::-1]])
    assert turned.critical_batch_size.value == pytest.approx(law.critical_batch_size.value, rel=1e-6)
    assert turned.minimum_examples.value == pytest.approx(1000 * law.minimum_examples.value, rel=1e-6)  # type: ignore[operator]
    assert [p.batch_size for p in turned.points] == SIZES


def test_all_sizes_on_one_branch_determine_nothing_and_say_on_which() -> None:
    small = fit_tradeoff(SIZES, table(1e6, 0))
    assert not small.critical_batch_size.resolved
    assert small.critical_batch_size.low > 1024  # type: ignore[operator]
    assert small.critical_batch_size.high == math.inf
    assert "branch of perfect scaling" in small.verdict
    large = fit_tradeoff(SIZES, table(0.01, 0))
    assert not large.critical_batch_size.resolved
    assert large.critical_batch_size.high < 4  # type: ignore[operator]
    assert "beyond the critical one" in large.verdict


def test_too_few_sizes_are_told() -> None:
    two = fit_tradeoff([8, 64], [1000.0, 2000.0])
    assert not two.critical_batch_size.resolved
    assert "Only 2 batch sizes" in two.verdict
    one = fit_tradeoff([8, 64], [1000.0, math.inf])
    assert "1 of 2 batch sizes reached the target" in one.verdict
    assert one.points[1].missed == 1
    assert one.examples(8) is None


def test_runs_that_missed_count_as_needing_more_than_they_were_given() -> None:
    truth = [[1000 * (1 + b / 100) * f for f in (0.9, 1.0, 1.1)] for b in SIZES]
    given_up = 6000.0
    seen = [[e if e <= given_up else math.inf for e in runs] for runs in truth]
    assert sum(math.isinf(e) for runs in seen for e in runs) == 5
    law = fit_tradeoff(SIZES, seen, spent=given_up)
    assert law.critical_batch_size.value == pytest.approx(100, rel=0.1)
    # Left out as if they had never been, or taken as finished when they were given up, they would pull the law down.
    forgotten = fit_tradeoff(SIZES, [[min(e, given_up) for e in runs] for runs in truth])
    assert forgotten.critical_batch_size.value > 1.15 * law.critical_batch_size.value  # type: ignore[operator]
    assert [p.missed for p in law.points] == [0, 0, 0, 0, 0, 0, 0, 2, 3]
    assert law.points[-1].examples is None
    assert law.points[-1].at_least == pytest.approx(given_up)


def test_a_bound_that_the_law_exceeds_anyway_changes_nothing() -> None:
    examples: list[Any] = table(100, 1)
    alone = fit_tradeoff(SIZES[:-1], examples[:-1])
    bounded = fit_tradeoff(SIZES, [*examples[:-1], [math.inf] * 3], spent=2e4)
    assert bounded.critical_batch_size.value == pytest.approx(alone.critical_batch_size.value, rel=0.02)


def test_another_exponent_is_found_where_the_data_call_for_it_and_not_otherwise() -> None:
    steep = [1000 * (1 + (b / 60) ** 2.0) for b in SIZES]
    law = fit_tradeoff(SIZES, steep)
    assert law.form == "general exponent"
    assert law.exponent.value == pytest.approx(2.0, rel=0.05)
    assert law.examples(300) == pytest.approx(1000 * (1 + 25), rel=0.05)
    assert not law.minimum_updates.resolved  # updates vanish or grow without end for p other than 1
    forms = [fit_tradeoff(SIZES, table(100, seed)).form for seed in range(20)]
    assert forms.count("hyperbola") >= 17


def test_tables_that_follow_no_such_law_are_told() -> None:
    law = fit_tradeoff(SIZES, [1000.0 if i % 2 else 9000.0 for i in range(9)])
    assert not law.follows
    assert "do not follow the law" in law.verdict


def test_regimes_lie_around_the_critical_batch_size() -> None:
    law = fit_tradeoff(SIZES, [1000 * (1 + b / 64) for b in SIZES])
    assert [p.regime for p in law.points] == [
        *["perfect scaling"] * 3,
        *["diminishing returns"] * 3,
        *["flat"] * 3,
    ]


def test_a_target_is_reached_half_way_between_two_evaluations() -> None:
    every = 300.0
    seen = [[math.ceil(f * 1000 * (1 + b / 64) / every) * every for f in np.linspace(0.8, 1.25, 20)] for b in SIZES]
    exact = [[f * 1000 * (1 + b / 64) for f in np.linspace(0.8, 1.25, 20)] for b in SIZES]
    law, told = fit_tradeoff(SIZES, seen), fit_tradeoff(SIZES, seen, evaluated_every=every)
    truth = fit_tradeoff(SIZES, exact)
    assert told.minimum_examples.value == pytest.approx(truth.minimum_examples.value, rel=0.02)
    assert told.critical_batch_size.value == pytest.approx(truth.critical_batch_size.value, rel=0.02)
    assert told == fit_tradeoff(SIZES, seen, evaluated_every=[every] * len(SIZES))
    assert law.minimum_examples.value > 1.1 * truth.minimum_examples.value  # type: ignore[operator]


def test_left_out_sizes_are_predicted_from_the_others() -> None:
    examples = [1000 * (1 + b / 64) for b in SIZES]
    examples[4] *= 2
    law = fit_tradeoff(SIZES, examples)
    without = fit_tradeoff(SIZES[:4] + SIZES[5:], examples[:4] + examples[5:])
    assert law.points[4].left_out == pytest.approx(without.examples(64), rel=1e-6)


@pytest.mark.parametrize(
    ("sizes", "examples", "spent", "said"),
    [
        ([8], [1.0, 2.0], None, "for every batch size"),
        ([], [], None, "for every batch size"),
        ([8, 8], [1.0, 2.0], None, "must differ"),
        ([0, 8], [1.0, 2.0], None, "whole numbers of at least 1"),
        ([8, 16], [1.0, -2.0], None, "above 0"),
        ([8, 16], [1.0, math.nan], None, "above 0"),
        ([8, 16], [1.0, []], None, "above 0"),
        ([8, 16], [1.0, 2.0], 0.0, "spent must be finite"),
    ],
)
def test_tables_that_make_no_sense(sizes: Any, examples: Any, spent: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        fit_tradeoff(sizes, examples, spent=spent)


@pytest.mark.parametrize("every", [-1.0, 1001.0, math.nan, [1500.0, 1500.0]])
def test_evaluations_further_apart_than_the_examples(every: Any) -> None:
    with pytest.raises(ArgumentError, match="evaluated_every"):
        fit_tradeoff([8, 16], [1000.0, 2000.0], evaluated_every=every)

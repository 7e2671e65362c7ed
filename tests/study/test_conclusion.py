"""The answer in words, held to the numbers that it is made from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchscope.records import Comparison, RateSearch, RateTrial, TrainResult
from batchscope.study.conclusion import conclude

PAIRS = [(8, 512), (32, 128), (128, 32)]

MakeRun = Callable[..., TrainResult]
MakeComparison = Callable[..., Comparison]
Make = Callable[..., Comparison]


@pytest.fixture
def make(make_run: MakeRun, make_comparison: MakeComparison) -> Make:
    """A comparison from a list of scores and one of seconds for each row; a score of None is a run that diverged."""

    def compare(
        scores: Sequence[Sequence[float | None]],
        seconds: Sequence[Sequence[float]] | None = None,
        pairs: Sequence[tuple[int, int]] = PAIRS,
        **more: object,
    ) -> Comparison:
        seconds = seconds or [[1.0 + 0.01 * s for s in range(len(row))] for row in scores]
        runs = [
            [
                make_run(*pair, seed, score=score, seconds=time, outcome="diverged" if score is None else "finished")
                for seed, (score, time) in enumerate(zip(row, times, strict=True))
            ]
            for pair, row, times in zip(pairs, scores, seconds, strict=False)
        ]
        return make_comparison(runs, pairs=pairs[: len(scores)], **more)

    return compare


def told(record: Comparison) -> str:
    return record.conclusion


def test_a_clear_winner_is_said_to_win_by_how_much(make: Make) -> None:
    record = make(
        [[0.95, 0.94, 0.96, 0.95, 0.95], [0.90, 0.88, 0.91, 0.91, 0.89]],
        [[3.0, 3.1, 2.9, 3.0, 3.0], [1.0, 1.1, 1.0, 0.9, 1.0]],
    )
    lead = record.differences[0].score
    assert f"batch 8 × 512 updates has the highest mean final score, 0.9500 ({record.rows[0].score.low:.4f}" in told(
        record
    )
    assert f"more than batch 32 by {lead.value:.4f} ({lead.low:.4f} to {lead.high:.4f})." in told(record)
    ratio = record.differences[0].seconds_ratio
    assert f"Batch 32 × 128 updates takes the least time, 1 s a run; batch 8 takes {ratio.value:.3g} times" in told(
        record
    )
    assert "So batch 8 is the better choice for score and batch 32 for time: it saves 2 s a run" in told(record)
    assert f"gives up {lead.value:.4f}" in told(record)


def test_the_same_is_said_whichever_row_comes_first(make: Make) -> None:
    scores = [[0.95, 0.94, 0.96, 0.95, 0.95], [0.90, 0.88, 0.91, 0.91, 0.89]]
    seconds = [[3.0, 3.1, 2.9, 3.0, 3.0], [1.0, 1.1, 1.0, 0.9, 1.0]]
    assert told(make(scores, seconds)) == told(make(scores[::-1], seconds[::-1], PAIRS[1::-1]))


def test_better_in_both_is_said_only_where_both_are_told_apart(make: Make) -> None:
    scores = [[0.95, 0.94, 0.96, 0.95, 0.95], [0.90, 0.88, 0.91, 0.91, 0.89]]
    fast, slow, blurred = [1.0, 1.1, 1.0, 0.9, 1.0], [3.0, 3.1, 2.9, 3.0, 3.0], [0.5, 4.0, 1.1, 0.6, 3.0]
    assert "Batch 8 is the better choice for both." in told(make(scores, [fast, slow]))
    unclear = told(make(scores, [fast, blurred]))
    assert "better choice" not in unclear
    assert "takes the least time, 1 s a run, which can't be told apart from the time of batch 32." in unclear


def test_scores_that_are_not_told_apart_are_not_ranked(make: Make) -> None:
    record = make([[0.95, 0.80, 0.91, 0.99], [0.90, 0.88, 0.91, 0.85]], [[3, 3.1, 3, 2.9], [1, 1.1, 1, 0.9]])
    assert not record.differences[0].score_told_apart
    said = told(record)
    assert "more than" not in said
    assert "no other row's score can be told apart from it with 4 seeds: batch 32 is behind by 0.0275 (" in said
    assert "batch 32 is the fastest: the better choice unless more seeds show a difference." in said


def test_a_tie_is_shared(make: Make) -> None:
    record = make([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]], [[1, 2, 3], [3, 2, 1]])
    said = told(record)
    assert "batch 8 × 512 updates and batch 32 × 128 updates share the highest mean final score, 0.8000" in said
    assert "more than" not in said
    assert "better" not in said


def test_one_seed_tells_nothing_apart(make: Make) -> None:
    said = told(make([[0.95], [0.10]], [[1.0], [50.0]]))
    assert "with one seed a difference can't be told from luck: run it with --seeds 5 or more." in said
    assert "which can't be told apart from the time of batch 32" in said
    assert "more than" not in said
    assert "better" not in said
    assert "times" not in said


def test_rows_without_a_common_seed_are_not_compared(make: Make) -> None:
    said = told(make([[0.95, 0.95, None, None], [None, None, 0.5, 0.5]]))
    assert "with no seed that both finished" in said
    assert "more than" not in said
    assert "better" not in said


def test_seeds_are_counted_as_finished_and_not_as_planned(make: Make) -> None:
    said = told(make([[0.95, 0.91, 0.92], [0.94, 0.93]], [[1, 1, 1], [1, 1]], seeds=5, interrupted=True))
    assert "with 2 seeds" in said
    assert "5 seeds" not in said
    assert "The comparison was interrupted: this is what was finished." in said


def test_a_lead_that_turns_round_over_the_common_seeds_is_no_win(make: Make) -> None:
    """Batch 8 has the highest mean only because it diverged wherever it would have done badly."""
    record = make(
        [[0.70, 0.71, 0.69, 0.70, None, None], [0.74, 0.75, 0.73, 0.75, 0.1, 0.2]],
        [[1, 1.1, 1, 0.9, 1, 1], [3, 3.1, 3, 2.9, 3, 3]],
    )
    assert record.differences[0].score_told_apart
    assert (record.differences[0].score.value or 0) < 0
    said = told(record)
    assert "batch 8 × 512 updates has the highest mean" in said
    assert "more than" not in said
    assert "But over the seeds that both finished, batch 32 is ahead of it by 0.0425 (" in said
    assert "better" not in said
    assert "At batch 8, 2 of 6 runs diverged" in said


def test_a_lead_from_a_seed_of_its_own_is_no_win(make: Make) -> None:
    """Interrupted after batch 8 had one seed more, a lucky one."""
    record = make(
        [[0.70, 0.71, 0.69, 0.70, 0.99], [0.74, 0.75, 0.73, 0.75]],
        [[1, 1.1, 1, 0.9, 1], [3, 3.1, 3, 2.9]],
        seeds=5,
        interrupted=True,
    )
    said = told(record)
    assert "batch 8 × 512 updates has the highest mean" in said
    assert "But over the seeds that both finished, batch 32 is ahead of it" in said
    assert "more than" not in said
    assert "better" not in said


def test_a_row_that_diverges_is_nobodys_choice(make: Make) -> None:
    scores: list[list[float | None]] = [[0.95, 0.94, 0.96, 0.95, None], [0.90, 0.88, 0.91, 0.91, 0.9]]
    said = told(make(scores, [[1, 1.1, 1, 0.9, 1], [3, 3.1, 3, 2.9, 3]]))
    assert "more than batch 32" in said
    assert "better choice" not in said
    assert "At batch 8, 1 of 5 runs diverged at a learning rate of 0.1; it counts in no score." in said


def test_where_only_one_row_finished_there_is_nothing_to_compare(make: Make) -> None:
    said = told(make([[0.9, 0.8], [None, None]]))
    assert "Only batch 8 × 512 updates has runs that finished" in said
    assert "2 of 2 runs diverged" in said
    assert "they count in no score" in said
    assert "highest" not in said


def test_where_nothing_finished_nothing_is_said(make: Make) -> None:
    said = told(make([[None, None], [None, None]]))
    assert said.startswith("No run finished in order, so nothing can be said of scores or times.")
    assert "takes" not in said


def test_one_row_is_described(make: Make) -> None:
    said = told(make([[0.9, 0.8]], [[61.0, 61.0]]))
    assert said.startswith("Batch 8 × 512 updates ends at a score of 0.8500 (")
    assert "in 61 s; with one row there is nothing to compare it with." in said


def test_rows_of_one_batch_size_are_told_by_their_updates(make: Make) -> None:
    pairs = [(16, 100), (16, 200), (32, 100)]
    said = told(
        make([[0.5, 0.51, 0.52], [0.9, 0.91, 0.95], [0.1, 0.12, 0.13]], [[1, 1, 1.1], [2, 2, 2.1], [2, 2, 2.1]], pairs)
    )
    assert said.startswith("Of budgets that differ, batch 16 × 200 updates has the highest")
    assert "more than batch 16 × 100 by" in said
    assert "batch 32 by" in said


def test_a_run_out_of_memory_is_counted_apart(make_run: MakeRun, make_comparison: MakeComparison) -> None:
    runs = [
        [make_run(8, 16, s, score=0.5 + s / 10) for s in range(2)],
        [make_run(16, 8, s, outcome="out of memory") for s in range(2)],
    ]
    said = make_comparison(runs).conclusion
    assert "At batch 16, 2 runs ran out of memory." in said
    assert "diverged" not in said


@pytest.mark.parametrize("handling", ["fixed", "rescaled", "search"])
def test_a_fixed_rate_has_its_caveat(make: Make, handling: str) -> None:
    caveat = "All rows used the learning rate 0.1, which was chosen for batch 16"
    assert (caveat in told(make([[0.9, 0.8], [0.7, 0.8]], learning_rate=handling))) == (handling == "fixed")
    assert caveat not in told(make([[0.9, 0.8]], learning_rate=handling))  # one row: nothing is compared


def test_a_rate_at_the_edge_has_its_caveat_where_a_row_used_it(make: Make) -> None:
    trial = RateTrial(0.1, 1.0, -1.0, "finished")
    searches = [RateSearch(size, 100, (trial,), 0.1, at_edge=size != 8, examples=1, seconds=1.0) for size, _ in PAIRS]
    said = told(make([[0.9, 0.8], [0.7, 0.8], [None, None]], searches=searches))
    assert "At batch 32 the best learning rate lies at the edge" in said
    assert "At batch 8 " not in said


def test_a_score_of_zero_or_below_is_a_score(make: Make) -> None:
    said = told(make([[0.0, 0.0, 0.0], [-0.5, -0.51, -0.52]], [[1, 1.1, 1.2], [5, 5, 5.1]]))
    assert "batch 8 × 512 updates has the highest mean final score, 0 (0 to 0): more than batch 32 by 0.5100" in said


SIZES = re.compile(r"batch (\d[\d,]*)")


def named(text: str) -> set[int]:
    return {int(size.replace(",", "")) for size in SIZES.findall(text)}


@st.composite
def numbers(draw: st.DrawFn) -> tuple[list[list[float | None]], list[list[float]]]:
    rows, seeds = draw(st.integers(2, 4)), draw(st.integers(1, 6))
    centres = draw(st.lists(st.sampled_from([0.5, 0.52, 0.6, 0.9]), min_size=rows, max_size=rows))
    times = draw(st.lists(st.sampled_from([1.0, 1.05, 3.0]), min_size=rows, max_size=rows))
    noise = draw(st.sampled_from([0.0, 0.001, 0.02, 0.2]))
    offset = st.floats(-1, 1)
    score = st.one_of(offset, offset, offset, st.none()) if draw(st.booleans()) else offset
    scores = [[None if (n := draw(score)) is None else c + noise * n for _ in range(seeds)] for c in centres]
    seconds = [[t * (1 + 0.5 * noise * draw(offset)) for _ in range(seeds)] for t in times]
    return scores, seconds


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=numbers())
def test_no_claim_without_its_number(make: Make, data: tuple[list[list[float | None]], list[list[float]]]) -> None:
    """Every sentence is taken apart again, and each claim in it looked up in the record."""
    pairs = [(8, 512), (32, 128), (128, 32), (512, 8)]
    record = make(*data, pairs)
    said = told(record)
    index = {row.batch_size: i for i, row in enumerate(record.rows)}

    def difference(a: int, b: int) -> tuple[float, bool, float, bool]:
        """Of two batch sizes: lead in score, told apart, ratio of times, told apart."""
        i, j = index[a], index[b]
        found = next(d for d in record.differences if {d.first, d.second} == {i, j})
        sign = 1 if found.first == i else -1
        lead, ratio = (found.score.value or 0.0) * sign, (found.seconds_ratio.value or 1.0) ** sign
        return lead, found.score_told_apart, ratio, found.seconds_told_apart

    finished = {row.batch_size for row in record.rows if row.finished}
    best = re.search(r"batch ([\d,]+) × [\d,]+ updates (?:has|share|and|, )", said)
    if len(finished) < 2:
        assert "highest" not in said
        return
    assert best
    first = named(best.group())
    (winner,) = first
    assert record.rows[index[winner]].score.value == max(
        row.score.value for row in record.rows if row.score.value is not None
    )

    beaten: set[int] = set()
    if match := re.search(r": more than (.*?)\. (?=[A-Z])", said):
        beaten = named(match[1])
        for size in beaten:
            lead, apart, _, _ = difference(winner, size)
            assert apart
            assert lead > 0
    if match := re.search(r"It can't be told apart from (.*?)\.", said):
        assert not any(difference(winner, size)[1] for size in named(match[1]))
    if match := re.search(r"no other row's score can be told apart from it with (.*?)\. (?=[A-Z])", said):
        assert not any(difference(winner, size)[1] for size in finished - {winner})
    for size in finished - {winner}:  # whoever is told apart and behind is named
        lead, apart, _, _ = difference(winner, size)
        assert (size in beaten) == (apart and lead > 0)

    least = re.search(r"Batch ([\d,]+) × [\d,]+ updates takes the least time, (.*?)\. ?(?=[A-Z]|$)", said)
    assert least
    quickest = int(least[1].replace(",", ""))
    unclear = re.search(r"can't be told apart from the time of (.*?)(?:;|$)", least[2])
    doubtful = named(unclear[1]) if unclear else set()
    for size in finished - {quickest}:
        _, _, ratio, apart = difference(quickest, size)
        assert (size in doubtful) == (not (apart and ratio < 1))
    if match := re.search(r"; batch ([\d,]+) takes ([\d.e+]+) times", least[2]):
        _, _, ratio, apart = difference(int(match[1].replace(",", "")), quickest)
        assert apart
        assert float(match[2]) == pytest.approx(ratio, rel=0.01)
        assert ratio > 1

    whole = {row.batch_size for row in record.rows if row.finished == len(record.seeds)}
    if match := re.search(r"Batch ([\d,]+) is the better choice for both", said):
        assert named("batch " + match[1]) == {winner}
        assert beaten == finished - {winner}
        assert all(difference(winner, size)[2] < 1 and difference(winner, size)[3] for size in beaten)
        assert winner in whole
    if match := re.search(r"told apart from the highest, batch ([\d,]+) is the fastest", said):
        (choice,) = named("batch " + match[1])
        level = {size for size in finished - {winner} if not difference(winner, size)[1]}
        assert choice in level & whole
        assert all(
            difference(choice, size)[2] < 1 and difference(choice, size)[3] for size in (level | {winner}) - {choice}
        )
    if match := re.search(r"Batch ([\d,]+) is faster than batch ([\d,]+), and their scores", said):
        fast, slow = (int(m.replace(",", "")) for m in match.groups())
        assert slow == winner
        assert fast in whole
        assert not difference(slow, fast)[1]
        assert difference(fast, slow)[2] < 1
        assert difference(fast, slow)[3]
    if match := re.search(r"So batch ([\d,]+) is the better choice for score and batch ([\d,]+) for time", said):
        good, fast = (int(m.replace(",", "")) for m in match.groups())
        assert good == winner
        assert fast in beaten
        assert difference(fast, good)[2] < 1
        assert difference(fast, good)[3]


def test_the_conclusion_does_not_look_at_an_older_one(make: Make) -> None:
    record = make([[0.9, 0.8], [0.7, 0.8]])
    assert conclude(replace(record, conclusion="Batch 1 is best.")) == record.conclusion

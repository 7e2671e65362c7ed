"""Growing the batch equals decaying the learning rate, in fewer updates."""

from __future__ import annotations

from batchscope.fit import mean_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab
from batchscope.folklore.verdicts import FAILS, HOLDS, of_equality, paired
from batchscope.records.claims import Finding, Picture, Series
from batchscope.schedule import smith, stepped

FACTOR, MILESTONES = 4.0, (0.5, 0.75)


def test(lab: Lab) -> Outcome:
    """Train with steps of the rate and with as large steps of the batch, at the same places."""
    first = lab.small
    at = tuple(round(share * lab.examples / first) * first for share in MILESTONES)
    base = lab.plan(first, shape="constant")
    plans = {
        "the rate falls": lab.plan(first, shape="constant", schedule=stepped(first, at=at, factor=FACTOR)),
        "the batch grows": lab.plan(
            first, shape="constant", schedule=smith(first, at=at, factor=FACTOR, cap=lab.workload.training_examples)
        ),
        "neither": base,
    }
    runs = {name: lab.train(plan) for name, plan in plans.items()}
    scores = {name: lab.scores(plan) for name, plan in plans.items()}
    difference = paired(scores["the batch grows"], scores["the rate falls"])
    least = lab.noticeable_score()
    verdict = of_equality(difference, least)
    updates = {name: own[0].result.iterations for name, own in runs.items()}
    saved = f"{updates['the batch grows']:,} updates against {updates['the rate falls']:,}"
    explanation = {
        HOLDS: f"Scores differ by less than {least:.2g}, with {saved}.",
        FAILS: f"Scores differ, with {saved}.",
    }.get(verdict, f"Scores differ by less than seeds do, but might by more than {least:.2g}; {saved}.")
    gained = paired(scores["the rate falls"], scores["neither"])
    series = tuple(
        Series(
            name,
            tuple(float(point.examples) for point in own[0].result.curve[1:]),
            tuple(
                mean_interval([run.result.curve[i].score for run in own])
                for i in range(1, min(len(run.result.curve) for run in own))
            ),
        )
        for name, own in runs.items()
    )
    return Outcome(
        f"Batch {first} at its best rate. At {at[0]:,} and {at[1]:,} of {lab.examples:,} examples the rate is divided "
        f"by {FACTOR:g}, or the batch multiplied by it.",
        verdict,
        explanation,
        (
            Finding("score with the batch growing minus with the rate falling", difference),
            Finding("what the falling rate gains over a constant one", gained),
        ),
        Picture("examples", "validation score", _cut(series), log_across=False),
    )


def _cut(series: tuple[Series, ...]) -> tuple[Series, ...]:
    """As many places as there are heights."""
    return tuple(Series(s.name, s.across[: len(s.values)], s.values, s.line) for s in series)


CLAIM = Claim(
    "growing-the-batch-equals-decaying-the-rate",
    "Growing the batch equals decaying the learning rate, in fewer updates.",
    "Smith et al. 2017",
    test,
)

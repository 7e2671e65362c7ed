"""Batch 4 against batch 4,096: many times fewer updates, and a worse optimum."""

from __future__ import annotations

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import LARGEST, Lab, Rates
from batchscope.folklore.verdicts import FAILS, HOLDS, of_effect, paired
from batchscope.records.claims import Finding, Picture

TUNED_AND_FIXED: tuple[Rates, Rates] = ("tuned", "fixed")


def test(lab: Lab) -> Outcome:
    """Train both for the same number of examples, at the workload's rate and each at its best one."""
    few, many = lab.smallest, min(LARGEST, lab.workload.training_examples)
    least = lab.noticeable_score()
    tuned, fixed = (
        paired(lab.scores(lab.plan(few, rates)), lab.scores(lab.plan(many, rates))) for rates in TUNED_AND_FIXED
    )
    verdict = of_effect(tuned, least)
    updates = [lab.train(lab.plan(size))[0].result.iterations for size in (few, many)]
    counts = f"{updates[0]:,} updates against {updates[1]:,}"
    explanation = {
        HOLDS: f"Batch {few} scores higher, with {counts}.",
        FAILS: f"With {counts}, batch {few} scores no higher by more than {least:.2g}.",
    }.get(verdict, f"Seeds differ by more than the two sizes do, with {counts}.")
    series = tuple(
        lab.score_series(name, (few, many), rates)
        for rates, name in zip(
            TUNED_AND_FIXED, ("each at its best rate", f"both at {lab.workload.learning_rate:.3g}"), strict=True
        )
    )
    return Outcome(
        f"Batch {few} against {many:,} for {lab.examples:,} examples each, {len(lab.seeds)} seeds in pairs.",
        verdict,
        explanation,
        (
            Finding(f"score of {few} minus that of {many:,}, each at its best rate", tuned),
            Finding("the same at one rate for both", fixed),
        ),
        Picture("batch size", "final score", series),
    )


CLAIM = Claim(
    "four-beats-four-thousand",
    "Batch 4,096 makes 1,024 times fewer updates than batch 4 and ends in a worse optimum.",
    "the last answer to the question",
    test,
)

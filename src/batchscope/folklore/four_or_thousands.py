"""Batch size 4 against 4,096: many times fewer updates, and a worse optimum."""

from __future__ import annotations

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import LARGEST, ExperimentRunner
from batchscope.folklore.verdicts import FAILS, HOLDS, of_effect
from batchscope.records.claims import Finding, Picture


def test(runner: ExperimentRunner) -> Outcome:
    """Train both for the same number of examples, each at its best learning rate and both at the same one."""
    few, many = runner.smallest, min(LARGEST, runner.workload.training_examples)
    least = runner.noticeable_score()
    gaps = runner.gaps(few, many)
    verdict = of_effect(gaps["tuned"], least)
    updates = [runner.train(runner.plan(size))[0].result.iterations for size in (few, many)]
    counts = f"{updates[0]:,} updates against {updates[1]:,}"
    explanation = {
        HOLDS: f"Batch size {few} scores higher, with {counts}.",
        FAILS: f"Batch size {few} scores at most {least:.2g} higher, with {counts}.",
    }.get(verdict, f"The two batch sizes differ by less than the seeds do, with {counts}.")
    return Outcome(
        f"Batch sizes {few} and {many:,} for {runner.examples:,} examples each, with {len(runner.seeds)} paired seeds.",
        verdict,
        explanation,
        (
            Finding(f"score of {few} minus {many:,}, best learning rate of each", gaps["tuned"]),
            Finding(f"score of {few} minus {many:,}, one learning rate for both", gaps["fixed"]),
        ),
        Picture("batch size", "final score", runner.gap_series((few, many))),
    )


CLAIM = Claim(
    "four-beats-four-thousand",
    "Batch 4,096 makes 1,024 times fewer updates than batch 4 and ends in a worse optimum.",
    "the last answer to the question",
    test,
)

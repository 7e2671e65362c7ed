"""For the same number of examples, smaller batches reach better validation scores."""

from __future__ import annotations

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import ExperimentRunner
from batchscope.folklore.verdicts import FAILS, HOLDS, of_effect
from batchscope.records.claims import Finding, Picture


def test(runner: ExperimentRunner) -> Outcome:
    """Compare a small and a large batch size, each at its best learning rate and both at the same one."""
    small, large = runner.small, runner.large
    least = runner.noticeable_score()
    gaps = runner.gaps(small, large)
    verdict = of_effect(gaps["tuned"], least)
    explanation = {
        HOLDS: f"Batch size {small} scores higher even if both have their best learning rate.",
        FAILS: f"With the best learning rate of each, batch size {small} scores at most {least:.2g} higher.",
    }.get(verdict, "With the best learning rate of each, the batch sizes differ by less than the seeds do.")
    if verdict != HOLDS and of_effect(gaps["fixed"], least) == HOLDS:
        explanation += " It scores higher only at one learning rate for both, which suits the small batch size better."
    return Outcome(
        f"Batch sizes {small} and {large:,} for {runner.examples:,} examples each, with linear learning-rate decay and "
        f"{len(runner.seeds)} paired seeds: at the best learning rate of each, and at the workload's own for both.",
        verdict,
        explanation,
        (
            Finding(f"score of {small} minus {large:,}, best learning rate of each", gaps["tuned"]),
            Finding(f"score of {small} minus {large:,}, one learning rate for both", gaps["fixed"]),
        ),
        Picture("batch size", "final score", runner.gap_series(sorted({small, 128, large}))),
    )


CLAIM = Claim(
    "smaller-batches-score-better",
    "For the same number of examples, smaller batches reach better validation scores.",
    "Keskar et al. 2016; Mishkin et al. 2016, figure 8",
    test,
)

"""For the same number of examples, smaller batches reach better validation scores."""

from __future__ import annotations

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab, Rates
from batchscope.folklore.verdicts import FAILS, HOLDS, of_effect, paired
from batchscope.records.claims import Finding, Picture

TUNED_AND_FIXED: tuple[Rates, Rates] = ("tuned", "fixed")


def test(lab: Lab) -> Outcome:
    """Train a small and a large batch, each at its own best rate and at the same rate."""
    small, large = lab.small, lab.large
    sizes = sorted({small, 128, large})
    least = lab.noticeable_score()
    gaps = {
        rates: paired(lab.scores(lab.plan(small, rates)), lab.scores(lab.plan(large, rates)))
        for rates in TUNED_AND_FIXED
    }
    verdict = of_effect(gaps["tuned"], least)
    same_rate = of_effect(gaps["fixed"], least)
    explanation = {
        HOLDS: f"Batch {small} scores higher even when both have the rate that suits them.",
        FAILS: f"With the rate that suits each, batch {small} scores no better than {large} by more than {least:.2g}.",
    }.get(verdict, "With the rate that suits each, seeds differ by more than the batch sizes do.")
    if verdict != HOLDS and same_rate == HOLDS:
        explanation += " At one rate for both it does: that is the rate's doing."
    series = tuple(
        lab.score_series(name, sizes, rates)
        for rates, name in zip(
            TUNED_AND_FIXED, ("each at its best rate", f"all at {lab.workload.learning_rate:.3g}"), strict=True
        )
    )
    return Outcome(
        f"Batch {small} against {large:,} for {lab.examples:,} examples each, the rate falling to zero, "
        f"{len(lab.seeds)} seeds in pairs; rates searched for at each size, and once the workload's own for all.",
        verdict,
        explanation,
        (
            Finding(f"score of {small} minus that of {large:,}, each at its best rate", gaps["tuned"]),
            Finding("the same at one rate for both", gaps["fixed"]),
        ),
        Picture("batch size", "final score", series),
    )


CLAIM = Claim(
    "smaller-batches-score-better",
    "For the same number of examples, smaller batches reach better validation scores.",
    "Keskar et al. 2016; Mishkin et al. 2016, figure 8",
    test,
)

"""With the learning rate rescaled, the gap between small and large batches shrinks or goes."""

from __future__ import annotations

from batchscope.errors import PlanError
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab, Rates
from batchscope.folklore.verdicts import FAILS, HOLDS, UNTOLD, of_effect, paired
from batchscope.records.claims import Finding, Picture

FIXED_AND_RESCALED: tuple[Rates, Rates] = ("fixed", "rescaled")


def test(lab: Lab) -> Outcome:
    """Compare the large batch at the workload's rate and at the rescaled one."""
    small, large = lab.small, lab.large
    least = lab.noticeable_score()
    experiment = (
        f"Batch {large:,} at the workload's rate and at that rate rescaled from its batch size, "
        f"{lab.workload.batch_size}, by the optimiser's rule (∝ B for SGD, ∝ √B for Adam), beside batch {small}."
    )
    fixed = lab.scores(lab.plan(large, "fixed"))
    gap = paired(lab.scores(lab.plan(small, "fixed")), fixed)
    try:
        rescaled = lab.scores(lab.plan(large, "rescaled"))
    except PlanError as error:
        return Outcome(experiment, UNTOLD, f"This optimiser has no rule to rescale by: {error}", ())
    gained = paired(rescaled, fixed)
    left = paired(lab.scores(lab.plan(small, "rescaled")), rescaled)
    findings = (
        Finding(f"what rescaling gains at batch {large:,}", gained),
        Finding(f"gap between {small} and {large:,} at one rate", gap),
        Finding("gap with rescaled rates", left),
    )
    if of_effect(gap, least) == FAILS:
        return Outcome(experiment, UNTOLD, "At one rate there is no gap that rescaling could close.", findings)
    verdict = of_effect(gained, least)
    explanation = {
        HOLDS: "Rescaled, the large batch scores higher than at the rate of the small one.",
        FAILS: "Rescaled, the large batch scores no higher than at the rate of the small one.",
    }.get(verdict, "Seeds differ by more than rescaling changes.")
    sizes = sorted({small, 128, large})
    series = tuple(
        lab.score_series(name, sizes, rates)
        for rates, name in zip(FIXED_AND_RESCALED, ("one rate for all", "rescaled"), strict=True)
    )
    return Outcome(experiment, verdict, explanation, findings, Picture("batch size", "final score", series))


CLAIM = Claim(
    "rescaled-rates-close-the-gap",
    "With the learning rate rescaled, the gap between small and large batches shrinks or goes.",
    "Mishkin et al. 2016; Hoffer et al. 2017; Goyal et al. 2017",
    test,
)

"""With rescaled learning rates, the gap between small and large batches shrinks or disappears."""

from __future__ import annotations

from batchscope.errors import PlanError
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import ExperimentRunner, Rates
from batchscope.folklore.verdicts import FAILS, HOLDS, INCONCLUSIVE, of_effect, paired
from batchscope.records.claims import Finding, Picture

FIXED_AND_RESCALED: tuple[Rates, Rates] = ("fixed", "rescaled")


def test(runner: ExperimentRunner) -> Outcome:
    """Compare the large batch size at the workload's learning rate and at the rescaled one."""
    small, large = runner.small, runner.large
    least = runner.noticeable_score()
    experiment = (
        f"Batch sizes {small} and {large:,} at the workload's learning rate, and at this rate rescaled from batch size "
        f"{runner.workload.batch_size} by the optimiser's rule (∝ B for SGD, ∝ √B for Adam)."
    )
    fixed = runner.scores(runner.plan(large, "fixed"))
    gap = paired(runner.scores(runner.plan(small, "fixed")), fixed)
    try:
        rescaled = runner.scores(runner.plan(large, "rescaled"))
    except PlanError as error:
        return Outcome(experiment, INCONCLUSIVE, f"This optimiser has no scaling rule: {error}", ())
    gained = paired(rescaled, fixed)
    left = paired(runner.scores(runner.plan(small, "rescaled")), rescaled)
    findings = (
        Finding(f"gain from rescaling at batch size {large:,}", gained),
        Finding(f"score of {small} minus {large:,}, one learning rate for both", gap),
        Finding(f"score of {small} minus {large:,}, rescaled learning rates", left),
    )
    if of_effect(gap, least) == FAILS:
        return Outcome(experiment, INCONCLUSIVE, "At one learning rate for both there is no gap to close.", findings)
    verdict = of_effect(gained, least)
    explanation = {
        HOLDS: "The large batch size scores higher at the rescaled learning rate.",
        FAILS: "The large batch size does not score higher at the rescaled learning rate.",
    }.get(verdict, "The effect of rescaling is smaller than the differences between seeds.")
    sizes = sorted({small, 128, large})
    series = tuple(
        runner.score_series(name, sizes, rates)
        for rates, name in zip(FIXED_AND_RESCALED, ("one learning rate for all", "rescaled"), strict=True)
    )
    return Outcome(experiment, verdict, explanation, findings, Picture("batch size", "final score", series))


CLAIM = Claim(
    "rescaled-rates-close-the-gap",
    "With the learning rate rescaled, the gap between small and large batches shrinks or goes.",
    "Mishkin et al. 2016; Hoffer et al. 2017; Goyal et al. 2017",
    test,
)

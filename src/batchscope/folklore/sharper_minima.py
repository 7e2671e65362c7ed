"""Large batches end in sharper minima."""

from __future__ import annotations

from batchscope.fit import mean_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import ExperimentRunner, Trained
from batchscope.folklore.verdicts import FAILS, HOLDS, all_of, log_of, of_effect, paired_ratio
from batchscope.measure.curvature import hessian_eigenvalues
from batchscope.measure.sharpness import sharpness
from batchscope.records import Plan
from batchscope.records.claims import Finding, Picture, Series

EXAMPLES, EPSILON, FILTER_EPSILON = 1024, 1e-3, 0.05


def test(runner: ExperimentRunner) -> Outcome:
    """Compare the largest eigenvalue and Keskar's φ at the ends of training with small and large batches."""
    small, large = runner.small, runner.large
    plans = {size: runner.plan(size) for size in sorted({small, 128, large})}
    eigenvalues = {size: [_eigenvalue(runner, run) for run in runner.train(plan)] for size, plan in plans.items()}
    keskar, filters = (
        {size: _phi(runner, plans[size], box) for size in (small, large)} for box in ("keskar", "filters")
    )
    curvature = paired_ratio(eigenvalues[large], eigenvalues[small])
    plain = paired_ratio(keskar[large], keskar[small])
    robust = paired_ratio(filters[large], filters[small])
    verdict = all_of([of_effect(log_of(curvature)), of_effect(log_of(plain))])
    explanation = {
        HOLDS: "The largest eigenvalue and φ are both larger at the end of training with the large batch size.",
        FAILS: "The largest eigenvalue or φ is not larger at the end of training with the large batch size.",
    }.get(verdict, "The difference in the largest eigenvalue or φ is smaller than the differences between seeds.")
    if (of_effect(log_of(robust)) == HOLDS) != (of_effect(log_of(plain)) == HOLDS):
        explanation += " φ in units of the filters, which is invariant to rescaled layers, gives another result."
    intervals = tuple(mean_interval([v for v in eigenvalues[size] if v is not None]) for size in plans)
    series = (Series("largest eigenvalue", tuple(map(float, plans)), intervals),)
    return Outcome(
        f"Batch sizes {small} and {large:,}, each at its best learning rate, for {runner.examples:,} examples with "
        f"{len(runner.seeds)} seeds. At the final weights: the largest eigenvalue of the Hessian over {EXAMPLES:,} "
        f"training examples, and φ in all of weight space with ε = {EPSILON:g}, or {FILTER_EPSILON:g} in units of the "
        f"filters.",
        verdict,
        explanation,
        (
            Finding(f"largest eigenvalue, {large:,} over {small}", curvature),
            Finding(f"Keskar's φ, {large:,} over {small}", plain),
            Finding(f"φ in units of the filters, {large:,} over {small}", robust),
        ),
        Picture("batch size", "largest eigenvalue of the Hessian", series, log_upward=True),
    )


def _eigenvalue(runner: ExperimentRunner, run: Trained) -> float | None:
    runner.notify(f"eigenvalues after batch size {run.result.plan.batch_size:,}")
    found = hessian_eigenvalues(
        runner.workload,
        run.state,
        1,
        examples=EXAMPLES,
        tolerance=1e-2,
        seed=runner.seed,
        device=runner.prepared.device,
    )
    return found.values[0] if found.values and found.values[0] > 0 else None


def _phi(runner: ExperimentRunner, plan: Plan, box: str) -> list[float | None]:
    found: list[float | None] = []
    for run in runner.train(plan):
        runner.notify(f"sharpness after batch size {plan.batch_size:,}")
        measured = sharpness(
            runner.workload,
            run.state,
            EPSILON if box == "keskar" else FILTER_EPSILON,
            box="keskar" if box == "keskar" else "filters",
            repeats=1,
            examples=EXAMPLES,
            seed=runner.seed,
            device=runner.prepared.device,
        )
        found.append(measured.value if measured.value > 0 else None)
    return found


CLAIM = Claim(
    "sharper-minima",
    "Large batches end in sharper minima.",
    "Keskar et al. 2016",
    test,
)

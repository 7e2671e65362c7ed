"""Large batches end in sharper minima."""

from __future__ import annotations

from batchscope.fit import mean_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab, Trained
from batchscope.folklore.verdicts import FAILS, HOLDS, all_of, log_of, of_effect, paired_ratio
from batchscope.measure.curvature import hessian_eigenvalues
from batchscope.measure.sharpness import sharpness
from batchscope.records import Plan
from batchscope.records.claims import Finding, Picture, Series

EXAMPLES, EPSILON, FILTER_EPSILON = 1024, 1e-3, 0.05


def test(lab: Lab) -> Outcome:
    """Measure the largest eigenvalue and both forms of φ where small and large batches end."""
    small, large = lab.small, lab.large
    plans = {size: lab.plan(size) for size in sorted({small, 128, large})}
    eigenvalues = {size: [_eigenvalue(lab, run) for run in lab.train(plan)] for size, plan in plans.items()}
    keskar, filters = ({size: _phi(lab, plans[size], box) for size in (small, large)} for box in ("keskar", "filters"))
    curvature = paired_ratio(eigenvalues[large], eigenvalues[small])
    plain = paired_ratio(keskar[large], keskar[small])
    robust = paired_ratio(filters[large], filters[small])
    verdict = all_of([of_effect(log_of(curvature)), of_effect(log_of(plain))])
    explanation = {
        HOLDS: "Both the largest eigenvalue and φ are larger where the large batch ends.",
        FAILS: "The largest eigenvalue or φ is no larger where the large batch ends.",
    }.get(verdict, "One of the two does not differ by more than seeds do.")
    if (of_effect(log_of(robust)) == HOLDS) != (of_effect(log_of(plain)) == HOLDS):
        explanation += " The form of φ that rescaled layers cannot change says otherwise than the plain one."
    intervals = tuple(mean_interval([v for v in eigenvalues[size] if v is not None]) for size in plans)
    series = (Series("largest eigenvalue", tuple(map(float, plans)), intervals),)
    return Outcome(
        f"Batch {small} against {large:,}, each at its best rate, trained for {lab.examples:,} examples with "
        f"{len(lab.seeds)} seeds. At the final weights the largest eigenvalue of the Hessian over {EXAMPLES:,} "
        f"training examples, and φ in all of weight space with ε = {EPSILON:g} (plain) and {FILTER_EPSILON:g} of each "
        f"filter.",
        verdict,
        explanation,
        (
            Finding(f"largest eigenvalue, {large:,} over {small}", curvature),
            Finding(f"Keskar's φ, {large:,} over {small}", plain),
            Finding(f"φ in units of the filters, {large:,} over {small}", robust),
        ),
        Picture("batch size", "largest eigenvalue of the Hessian", series, log_upward=True),
    )


def _eigenvalue(lab: Lab, run: Trained) -> float | None:
    lab.tell(f"eigenvalues where batch {run.result.plan.batch_size:,} ends")
    found = hessian_eigenvalues(
        lab.workload, run.state, 1, examples=EXAMPLES, tolerance=1e-2, seed=lab.seed, device=lab.prepared.device
    )
    return found.values[0] if found.values and found.values[0] > 0 else None


def _phi(lab: Lab, plan: Plan, box: str) -> list[float | None]:
    found: list[float | None] = []
    for run in lab.train(plan):
        lab.tell(f"sharpness where batch {plan.batch_size:,} ends")
        measured = sharpness(
            lab.workload,
            run.state,
            EPSILON if box == "keskar" else FILTER_EPSILON,
            box="keskar" if box == "keskar" else "filters",
            repeats=1,
            examples=EXAMPLES,
            seed=lab.seed,
            device=lab.prepared.device,
        )
        found.append(measured.value if measured.value > 0 else None)
    return found


CLAIM = Claim(
    "sharper-minima",
    "Large batches end in sharper minima.",
    "Keskar et al. 2016",
    test,
)

"""The folklore about batch size, as experiments on a person's own workload."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from batchscope.errors import ArgumentError, BatchscopeError
from batchscope.folklore import (
    as_many_updates,
    central_limit,
    four_or_thousands,
    full_gradient,
    gradient_error,
    growing_batch,
    rescaled_rates,
    sharper_minima,
    smaller_batches,
    start_at_32,
    stopping,
    stratified,
    throughput,
    time_to_score,
)
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab, StoppedError
from batchscope.folklore.verdicts import FAILS, HOLDS, UNTOLD
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records import Claims, TestedClaim
from batchscope.study.arguments import checked_seeds
from batchscope.training.interruption import stop_requests
from batchscope.training.loop import Prepared
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.summary import summarise
from batchscope.workload.workload import Workload

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        smaller_batches.CLAIM,
        rescaled_rates.CLAIM,
        as_many_updates.CLAIM,
        sharper_minima.CLAIM,
        gradient_error.CLAIM,
        full_gradient.CLAIM,
        central_limit.CLAIM,
        throughput.CLAIM,
        time_to_score.CLAIM,
        growing_batch.CLAIM,
        start_at_32.CLAIM,
        stratified.CLAIM,
        four_or_thousands.CLAIM,
        stopping.CLAIM,
    )
}
"""Every claim by name, in the order of the page."""

BUDGET_SECONDS, LEAST_BUDGET = 300.0, 5.0


def claims(
    workload: Workload,
    *,
    only: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 5,
    budget_seconds: float = BUDGET_SECONDS,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: bool | Reporter = False,
) -> Claims:
    """Test what people say about batch size on one workload.

    Every claim is an experiment with seeds in pairs and an interval at 95%: it holds where the interval lies on the
    side that is claimed and reaches what would be noticed, it does not where the interval lies below that, and it can't
    be told otherwise. Experiments share their runs, all of the same number of examples, which the budget decides:
    between a quarter of a pass over the data and 20 passes.

    Args:
        workload: What to train.
        only: Names of claims; None: all of them.
        seeds: How many, or which: at least two.
        budget_seconds: What all experiments together may take, about.
        seed: The first seed, where ``seeds`` is a number; whatever is drawn derives from it.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        workers: Processes that read a Dataset; None: as many as pay.
        progress: True shows progress on stderr; or a function that is told of every step.

    Returns:
        The verdicts. When interrupted, those that were finished.

    Raises:
        ArgumentError: There is no such claim, or a setting that makes no sense.
        WorkloadError: The workload cannot be trained.

    Examples:
        >>> import batchscope as bs
        >>> found = bs.claims(bs.load_workload("digits"), only=["throughput-saturates"], seeds=2, budget_seconds=10)
        >>> [claim.name for claim in found.claims]
        ['throughput-saturates']
    """
    began = time.perf_counter()
    wanted = checked_names(only)
    chosen_seeds = checked_seeds(seeds, checked_seed(seed))
    if len(chosen_seeds) < 2:
        raise ArgumentError("an interval needs at least two seeds", got=len(chosen_seeds), mend="five are usual")
    if not isinstance(budget_seconds, (int, float)) or not budget_seconds >= LEAST_BUDGET:
        raise ArgumentError(f"a budget must be at least {LEAST_BUDGET:g} seconds", got=budget_seconds)
    chosen = chosen_device(device)
    tested: list[TestedClaim] = []
    interrupted = False
    with stop_requests() as stop, reporter(progress, "testing claims") as report:

        def tell(label: str) -> None:
            spent = time.perf_counter() - began
            share = min(99, round(100 * len(tested) / len(wanted)))
            name = wanted[len(tested)].name if len(tested) < len(wanted) else "done"
            report.update(
                label=f"{name}: {label}", done=share, total=100, seconds_left=max(0.0, budget_seconds - spent)
            )

        lab = Lab(
            Prepared(workload, chosen, workers=workers),
            seeds=chosen_seeds,
            budget_seconds=float(budget_seconds),
            seed=seed,
            workers=workers,
            tell=tell,
            stopped=lambda: stop.requested,
        )
        try:
            for claim in wanted:
                tested.append(_tested(claim, lab))
        except StoppedError:
            interrupted = True
        return Claims(
            workload=summarise(workload),
            conclusion=conclude(tested, workload.name or "this workload"),
            claims=tuple(tested),
            seeds=chosen_seeds,
            examples=lab.examples,
            batch_sizes=(lab.smallest, lab.small, lab.large),
            runs=lab.runs,
            budget_seconds=float(budget_seconds),
            seconds=time.perf_counter() - began,
            interrupted=interrupted,
            provenance=provenance(workload, device=chosen, seed=seed),
        )


def checked_names(only: Sequence[str] | None) -> list[Claim]:
    """The claims of these names, in the order of the page.

    Raises:
        ArgumentError: There is no such claim.
    """
    if only is None:
        return list(CLAIMS.values())
    unknown = [name for name in only if name not in CLAIMS]
    if unknown or not only:
        raise ArgumentError(f"a claim is one of {', '.join(CLAIMS)}", got=", ".join(unknown) or "none")
    return [claim for name, claim in CLAIMS.items() if name in only]


def conclude(tested: Sequence[TestedClaim], workload: str) -> str:
    """How many hold, in a sentence or two."""
    counts = {verdict: sum(claim.verdict == verdict for claim in tested) for verdict in (HOLDS, FAILS, UNTOLD)}
    if not tested:
        return "Nothing was tested yet."
    if len(tested) == 1:
        return f"{tested[0].said} On {workload}: {tested[0].verdict}. {tested[0].explanation}"
    said = f"Of {len(tested)} things that people say about batch size, {counts[HOLDS]} hold on {workload}, "
    return said + f"{counts[FAILS]} do not, and of {counts[UNTOLD]} this budget can't tell."


def _tested(claim: Claim, lab: Lab) -> TestedClaim:
    began = time.perf_counter()
    try:
        outcome = claim.test(lab)
    except StoppedError:
        raise
    except BatchscopeError as error:
        # What one experiment cannot do is no reason to lose the others.
        outcome = Outcome("The experiment could not be made.", UNTOLD, str(error), ())
    return TestedClaim(
        name=claim.name,
        said=claim.said,
        source=claim.source,
        experiment=outcome.experiment,
        verdict=outcome.verdict,
        explanation=outcome.explanation,
        findings=outcome.findings,
        picture=outcome.picture,
        seconds=time.perf_counter() - began,
    )

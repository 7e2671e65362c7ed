"""Common claims about batch size, tested by experiments on a workload."""

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
from batchscope.folklore.runner import ExperimentRunner, StoppedError, checked_design
from batchscope.folklore.verdicts import FAILS, HOLDS, INCONCLUSIVE
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records import Claims, TestedClaim
from batchscope.training.interruption import stop_requests
from batchscope.training.loop import Prepared
from batchscope.training.train import chosen_device
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
"""Every claim by name, in the order of the report."""

BUDGET_SECONDS = 300.0


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
    """Test common claims about batch size on one workload.

    Every claim is an experiment with paired seeds, and its verdict follows from a 95% confidence interval of the
    effect. A claim holds if the interval lies above zero and its upper end exceeds the smallest effect that matters. It
    does not hold if the whole interval lies below that effect. Otherwise the experiment is inconclusive ("can't be
    told"). Experiments share their runs. All runs have the same number of examples, between 0.25 and 20 epochs
    depending on the budget.

    Args:
        workload: The workload to train.
        only: Names of claims; None: all of them.
        seeds: The number of seeds, or the seeds; at least two.
        budget_seconds: Approximate time for all experiments.
        seed: The first seed if ``seeds`` is a number; also the seed of random draws.
        device: "cpu", "cuda" …; None: CUDA if it is available.
        workers: Processes that read a Dataset; None: as many as are worth their cost.
        progress: True shows progress on stderr; a function is called with every event.

    Returns:
        The verdicts; after an interruption, those of finished experiments.

    Raises:
        ArgumentError: An unknown claim, or an invalid setting.
        WorkloadError: The workload cannot be trained.

    Examples:
        >>> import batchscope as bs
        >>> found = bs.claims(bs.load_workload("digits"), only=["throughput-saturates"], seeds=2, budget_seconds=10)
        >>> [claim.name for claim in found.claims]
        ['throughput-saturates']
    """
    began = time.perf_counter()
    wanted = checked_names(only)
    chosen_seeds = checked_design(seeds, seed, budget_seconds)
    chosen = chosen_device(device)
    tested: list[TestedClaim] = []
    interrupted = False
    with stop_requests() as stop, reporter(progress, "testing claims") as report:

        def notify(label: str) -> None:
            spent = time.perf_counter() - began
            share = min(99, round(100 * len(tested) / len(wanted)))
            name = wanted[len(tested)].name if len(tested) < len(wanted) else "done"
            report.update(
                label=f"{name}: {label}", done=share, total=100, seconds_left=max(0.0, budget_seconds - spent)
            )

        runner = ExperimentRunner(
            Prepared(workload, chosen, workers=workers),
            seeds=chosen_seeds,
            budget_seconds=float(budget_seconds),
            seed=seed,
            workers=workers,
            notify=notify,
            should_stop=lambda: stop.requested,
        )
        try:
            for claim in wanted:
                tested.append(_tested(claim, runner))
        except StoppedError:
            interrupted = True
        return Claims(
            workload=summarise(workload),
            conclusion=conclude(tested, workload.name or "this workload"),
            claims=tuple(tested),
            seeds=chosen_seeds,
            examples=runner.examples,
            batch_sizes=(runner.smallest, runner.small, runner.large),
            runs=runner.runs,
            budget_seconds=float(budget_seconds),
            seconds=time.perf_counter() - began,
            interrupted=interrupted,
            provenance=provenance(workload, device=chosen, seed=seed),
        )


def checked_names(only: Sequence[str] | None) -> list[Claim]:
    """The claims of these names, in the order of the report.

    Raises:
        ArgumentError: An unknown name.
    """
    if only is None:
        return list(CLAIMS.values())
    unknown = [name for name in only if name not in CLAIMS]
    if unknown or not only:
        raise ArgumentError(f"a claim is one of {', '.join(CLAIMS)}", got=", ".join(unknown) or "none")
    return [claim for name, claim in CLAIMS.items() if name in only]


def conclude(tested: Sequence[TestedClaim], workload: str) -> str:
    """Count the verdicts in a sentence."""
    counts = {verdict: sum(claim.verdict == verdict for claim in tested) for verdict in (HOLDS, FAILS, INCONCLUSIVE)}
    if not tested:
        return "No claim was tested."
    if len(tested) == 1:
        return f"{tested[0].said} On {workload}: {tested[0].verdict}. {tested[0].explanation}"
    return (
        f"Of {len(tested)} common claims about batch size, {counts[HOLDS]} hold on {workload}, {counts[FAILS]} do not "
        f"hold, and {counts[INCONCLUSIVE]} cannot be decided with this budget."
    )


def _tested(claim: Claim, runner: ExperimentRunner) -> TestedClaim:
    began = time.perf_counter()
    try:
        outcome = claim.test(runner)
    except StoppedError:
        raise
    except BatchscopeError as error:
        # The other experiments are not affected.
        outcome = Outcome("The experiment could not be run.", INCONCLUSIVE, str(error), ())
    return TestedClaim(
        name=claim.name,
        said=claim.statement,
        source=claim.source,
        experiment=outcome.experiment,
        verdict=outcome.verdict,
        explanation=outcome.explanation,
        findings=outcome.findings,
        picture=outcome.picture,
        seconds=time.perf_counter() - began,
    )

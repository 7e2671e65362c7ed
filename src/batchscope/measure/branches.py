"""The critical batch size, measured by branching training at a point (Merrill et al. 2025, arXiv 2505.23971)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from batchscope.errors import ArgumentError, RunError
from batchscope.fit.branches import judge_branches
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records import CurvePoint, Plan, TrainResult
from batchscope.records.branches import Branch, BranchedRuns
from batchscope.schedule import learning_rate_exponent
from batchscope.seeding import derive, isolated
from batchscope.training import Prepared, Run
from batchscope.training.evaluation import evaluate
from batchscope.training.interruption import stop_requests
from batchscope.training.start import Start
from batchscope.training.step import TrainingStep
from batchscope.training.threads import compute_threads
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

FACTORS = (0.25, 0.5, 1, 2, 4, 8, 16, 32)
# Of the fall of the loss from fresh weights to the best branch. In Merrill's runs, from 11.5 nats to about 3, the 0.01
# that they use is 0.1% of it; branches as short as these need more room, and of ten classes' 2.3 this is 0.01.
TOLERANCE = 0.005
# With fewer updates than this a branch says more about their number than about its batch size.
LEAST_UPDATES = 8
# A branch's length in updates of the base: the largest power of two in this range that the budget allows.
SHORTEST, LONGEST = 64, 1024
MOST_EPOCHS = 4
REPEATS = (4, 12)
TIMED_UPDATES = 4


def branched_runs(
    workload: Workload,
    *,
    start: Start | None = None,
    examples_before: int | None = None,
    factors: Sequence[float] = FACTORS,
    branch_examples: int | None = None,
    repeats: int | None = None,
    tolerance: float | None = None,
    seconds: float = 20.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> BranchedRuns:
    """Measure the critical batch size at a point of training by continuing from it at several batch sizes.

    From one point, with its weights and its optimiser's state, training goes on at k times the batch size, the
    learning rate and its like rescaled by the optimiser's own rule (:func:`batchscope.rescale`; Adam's count of steps
    is divided by k, so that its averages are corrected for as many *examples* as before), for the same number of
    examples. In each repeat all sizes train on the same examples in the same order. The rate falls linearly to zero
    over the branch: at a constant rate each would end on a noise floor of its own, and what its weights have learnt
    would not be seen (Wu et al. 2018, arXiv 1803.02021).

    Args:
        workload: What is trained.
        start: The point; None: train to one with the workload's own batch size and rate.
        examples_before: Examples trained on before it; None: half as many as a branch has. With ``start`` for the
            record only.
        factors: The k to try. Sizes below 1 or above the training set are left out, and so are those that make fewer
            than 8 updates of ``branch_examples``.
        branch_examples: Examples in each branch; None: 64 to 1,024 updates of the workload's batch size and at most
            four passes over the data (but 64 updates in any case), as ``seconds`` allow. Give it and ``repeats`` for
            numbers that are the same on every machine.
        repeats: Branches of each size, at least 2; None: 4 to 12, as ``seconds`` allow.
        tolerance: Loss above the best branch's that counts as recovered; None: 0.5% of how far the loss has fallen
            from fresh weights to the best branch, which neither the loss's units nor its lowest possible value changes.
        seconds: What all this may take, as far as 64 updates allow.
        seed: Weights, data orders and everything else random derive from it.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function called with every step.

    Returns:
        The branches and what they say. A branch that diverges has an infinite loss; one that runs out of memory an
        unresolved one. When interrupted, the repeats that were finished.

    Raises:
        ArgumentError: Arguments that make no sense, or leave fewer than two batch sizes.
        PlanError: An optimiser without a published rule.
        RunError: Training to the point failed.

    Examples:
        >>> import batchscope as bs
        >>> quadratic = bs.load_workload("quadratic")
        >>> found = bs.branched_runs(quadratic, factors=(1, 4, 32), branch_examples=8192, repeats=2)
        >>> [branch.batch_size for branch in found.branches]
        [32, 128, 1024]
    """
    began = time.perf_counter()
    seed = checked_seed(seed)
    _check(
        factors=factors,
        branch_examples=branch_examples,
        examples_before=examples_before,
        repeats=repeats,
        tolerance=tolerance,
        seconds=seconds,
    )
    chosen = chosen_device(device)
    prepared = Prepared(workload, chosen)
    pilot = Run(prepared, _base(workload, workload.batch_size), seed=seed, start=start, measure_memory=False)
    learning_rate_exponent(pilot.optimizer)  # refused now rather than after training
    fresh_loss = _fresh_loss(prepared, seed)
    sizes = _sizes(workload, factors)
    budget = _Budget(pilot, seconds, sizes)
    if branch_examples is None:
        branch_examples = budget.branch_examples(repeats or REPEATS[0])
    if repeats is None:
        repeats = budget.repeats(branch_examples)
    sizes = [size for size in sizes if branch_examples >= LEAST_UPDATES * size]
    if len(sizes) < 2:
        raise ArgumentError(
            "branched runs need at least two batch sizes",
            got=f"{sizes} with {branch_examples:,} examples, {LEAST_UPDATES} updates at least, in each branch",
            mend="give more factors or branch_examples",
        )
    with stop_requests(), reporter(progress, "branched runs") as report:
        total = repeats * len(sizes)
        if start is None:
            report.update(label="to the branching point", done=0, total=total)
            examples_before = examples_before or max(workload.batch_size, branch_examples // 2)
            start, loss_before = _train_to_point(prepared, examples_before, seed)
        else:
            examples_before = examples_before or 0
            loss_before = evaluate(_branch(prepared, start, workload.batch_size, 1, seed).model, prepared.validation)[0]
        point = CurvePoint(
            examples=0,
            iterations=0,
            seconds=0.0,
            learning_rate=float(workload.learning_rate),
            training_loss=None,
            validation_loss=loss_before,
            score=-loss_before,
        )
        rows: list[list[float]] = []
        for repeat in range(repeats):
            row: list[float] = []
            for size in sizes:
                report.update(label=f"batch {size}", done=len(rows) * len(sizes) + len(row), total=total)
                run = _branch(prepared, start, size, branch_examples, derive(seed, "branch", repeat))
                run.progress.curve.append(point)  # known, so that it is not evaluated again
                result = run()
                if result.outcome == "interrupted":
                    break
                row.append(_loss(result))
            if len(row) < len(sizes):
                break
            rows.append(row)
        if not rows:
            raise KeyboardInterrupt
    losses = np.array(rows).T
    best = min([fresh_loss, *(mean for mean in losses.mean(1).tolist() if math.isfinite(mean))])
    within = TOLERANCE * (fresh_loss - best) if tolerance is None else tolerance
    judged = judge_branches(sizes, losses, within)
    return BranchedRuns(
        workload=workload.title,
        base_batch_size=workload.batch_size,
        base_learning_rate=float(workload.learning_rate),
        examples_before=examples_before,
        loss_before=loss_before,
        tolerance=within,
        repeats=len(rows),
        branches=tuple(
            Branch(
                factor=size / workload.batch_size,
                batch_size=size,
                learning_rate=_branch(prepared, start, size, branch_examples, seed).settings.full_rates[0],
                updates=-(-branch_examples // size),
                examples=branch_examples,
                loss=judged.losses[i],
                excess=judged.excesses[i],
                recovered=judged.recovered[i],
            )
            for i, size in enumerate(sizes)
        ),
        critical_batch_size=judged.critical,
        verdict=judged.verdict,
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=chosen, seed=seed),
    )


def _base(workload: Workload, examples: int) -> Plan:
    return Plan(workload.batch_size, float(workload.learning_rate), examples=examples, shape="constant")


def _sizes(workload: Workload, factors: Sequence[float]) -> list[int]:
    """Batch sizes that there are examples for, ascending."""
    sizes = {round(factor * workload.batch_size) for factor in factors}
    return sorted(size for size in sizes if 1 <= size <= workload.training_examples)


def _train_to_point(prepared: Prepared, examples: int, seed: int) -> tuple[Start, float]:
    run = Run(
        prepared,
        _base(prepared.workload, examples),
        seed=seed,
        evaluate_every=examples,
        keep_best_weights=False,
        evaluate_training=False,
        measure_memory=False,
    )
    result = run()
    if result.outcome == "interrupted":
        raise KeyboardInterrupt
    if result.final_loss is None:
        raise RunError(
            "training must reach the branching point",
            got=f"{result.outcome}: {result.message}",
            mend="use a smaller learning rate",
        )
    return Start.of(run.model, run.optimizer), result.final_loss


def _branch(prepared: Prepared, start: Start, batch_size: int, examples: int, seed: int) -> Run:
    base = prepared.workload.batch_size
    plan = replace(
        _base(prepared.workload, examples),
        batch_size=batch_size,
        shape="linear",
        warmup_examples=0,  # it goes on from trained weights
        rescaled_from=base,
    )
    return Run(
        prepared,
        plan,
        seed=seed,
        start=_paced(start, batch_size / base),
        evaluate_every=examples,
        keep_best_weights=False,
        evaluate_training=False,
        measure_memory=False,
    )


def _paced(start: Start, factor: float) -> Start:
    """The same point for batches that many times as large: Adam's count of steps is worth as many examples.

    Its averages are corrected by 1 − β**t. With β**k in the place of β, that is the same at t/k.
    """
    return Start(
        start.model,
        {
            i: {key: value / factor if key == "step" else value for key, value in state.items()}
            for i, state in start.optimizer.items()
        },
    )


def _loss(result: TrainResult) -> float:
    """The final loss: infinite for a divergence, nan where it is not known."""
    if result.outcome == "diverged":
        return math.inf
    return math.nan if result.final_loss is None else result.final_loss


def _fresh_loss(prepared: Prepared, seed: int) -> float:
    with isolated(derive(seed, "weights"), prepared.device):
        model = prepared.workload.model().to(prepared.device)
    return evaluate(model, prepared.validation)[0]


class _Budget:
    """How long branches are and how many, from a few timed updates and an evaluation.

    An update of a larger batch is taken to cost its examples, one of a smaller batch as much as the base's: neither
    costs more.
    """

    def __init__(self, pilot: Run, seconds: float, sizes: Sequence[int]) -> None:
        self._workload, self._seconds = pilot.workload, seconds
        began = time.perf_counter()
        evaluate(pilot.model, pilot.prepared.validation)
        self._evaluations = (time.perf_counter() - began) * len(sizes)
        # Updates at all the sizes, for each update that the base makes in as many examples.
        self._updates = _seconds_per_update(pilot) * sum(max(1.0, pilot.workload.batch_size / size) for size in sizes)

    def branch_examples(self, repeats: int) -> int:
        """Examples in a branch."""
        base = self._workload.batch_size
        epochs = max(SHORTEST, MOST_EPOCHS * self._workload.training_examples // base)
        affordable = (self._seconds / repeats - self._evaluations) / self._updates
        return int(base * 2 ** int(math.log2(max(SHORTEST, min(LONGEST, epochs, affordable)))))

    def repeats(self, branch_examples: int) -> int:
        """Repeats of branches that long."""
        each = self._evaluations + self._updates * branch_examples / self._workload.batch_size
        return max(REPEATS[0], min(REPEATS[1], int(self._seconds / each)))


def _seconds_per_update(pilot: Run) -> float:
    """Time of one update at the workload's batch size, on the pilot's own model."""
    step = TrainingStep(pilot.workload, pilot.model, pilot.optimizer, micro_batch_size=None)
    size = pilot.plan.batch_size
    feed = pilot.prepared.training.feed(pilot.plan, (1 + TIMED_UPDATES) * size, seed=0)
    began = time.perf_counter()
    flops = pilot.prepared.flops_per_example
    work = None if flops is None else flops * size
    with isolated(derive(pilot.seed, "timing"), pilot.device), compute_threads(work, pilot.device):
        for i, batches in enumerate(feed):
            float(step(batches, size))
            if i == 0:
                began = time.perf_counter()
    return (time.perf_counter() - began) / TIMED_UPDATES


def _check(
    *,
    factors: Sequence[float],
    branch_examples: int | None,
    examples_before: int | None,
    repeats: int | None,
    tolerance: float | None,
    seconds: float,
) -> None:
    if not factors or not all(isinstance(k, (int, float)) and math.isfinite(k) and k > 0 for k in factors):
        raise ArgumentError("factors must be numbers above 0", got=tuple(factors))
    for name, value in (("branch_examples", branch_examples), ("examples_before", examples_before)):
        if value is not None and (type(value) is not int or value < 1):
            raise ArgumentError(f"{name} must be a whole number of at least 1", got=value)
    if repeats is not None and (type(repeats) is not int or repeats < 2):
        raise ArgumentError("repeats must be a whole number of at least 2", got=repeats, mend="one has no interval")
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and 0 < tolerance < math.inf):
        raise ArgumentError("tolerance must be a loss above 0", got=tolerance)
    if not (isinstance(seconds, (int, float)) and seconds > 0):
        raise ArgumentError("seconds must be above 0", got=seconds)

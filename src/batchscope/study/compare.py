"""The question: batch size a for b iterations, or batch size c for d, with a·b = c·d?"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from batchscope.errors import ArgumentError, PlanError, StorageError
from batchscope.progress import Report, Reporter, reporter
from batchscope.provenance import data_fingerprint, fingerprint, provenance, version
from batchscope.records import (
    Comparison,
    CurvePoint,
    Order,
    Plan,
    RateHandling,
    RateSearch,
    Shape,
    TrainResult,
)
from batchscope.seeding import derive
from batchscope.study import statistics
from batchscope.study.arguments import checked_seeds, falling_shape, reference_rate
from batchscope.study.conclusion import conclude
from batchscope.study.search import search_learning_rate
from batchscope.study.store import Store, run_key
from batchscope.training import Prepared, Run
from batchscope.training.contention import Contention
from batchscope.training.interruption import StopRequest, stop_requests
from batchscope.training.loop import evaluation_distance
from batchscope.training.threads import compute_threads
from batchscope.training.train import checked_evaluate_every, checked_seed, chosen_device
from batchscope.workload.summary import summarise
from batchscope.workload.workload import Workload

# Trials of a search are not known beforehand; this many of the whole budget are reckoned with for the time left: five
# at a factor 2, two at √2, and the best of them and its neighbours with the other seed.
EXPECTED_TRIALS = 10
# Paired over two seeds at least, a best rate is not that of one lucky run.
SEARCH_SEEDS = 2


def compare(
    workload: Workload,
    pairs: Sequence[tuple[int, int]],
    *,
    seeds: int | Sequence[int] = 5,
    learning_rate: RateHandling = "search",
    shape: Shape | None = None,
    order: Order = "shuffled",
    micro_batch_size: int | None = None,
    evaluate_every: int | None = None,
    allow_unequal: bool = False,
    store: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: bool | Reporter = False,
) -> Comparison:
    """Train several ways to spend the same number of examples, and say what differs.

    For each seed, every pair is trained from the same initial weights, one pair after the other, so that a drift of
    the machine's speed falls on all of them alike.

    Args:
        workload: What to train.
        pairs: (batch size, iterations), with the same product in all.
        seeds: How many, or which; one run for each pair and seed.
        learning_rate: "search": a search for every row among runs of its whole budget, its cost counted and shown.
            "rescaled": the workload's rate, and the optimiser's other settings, rescaled by the optimiser's rule.
            "fixed": the workload's rate for all, which answers another question: what happens if nothing else is
            changed.
        shape: The rate over the budget: "linear" or "cosine" to zero, as a fixed budget is trained in practice, or
            "constant". None: the workload's own, and linear where that is constant.
        order: How batches are drawn: "shuffled", "replacement", "stratified" or "bucketed".
        micro_batch_size: Examples that pass through the model at once, where less than the batch size.
        evaluate_every: Examples between two evaluations; None: a fortieth of the budget, or more where that would
            cost more than half of the training.
        allow_unequal: Whether to compare pairs whose products differ.
        store: A folder for finished runs: a comparison that was killed goes on where it was.
        seed: The first seed, where ``seeds`` is a number; the searches' seeds derive from it, and differ from the
            rows': a rate that was lucky with the search's seeds gains nothing by it.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        workers: Processes that read a Dataset; None: as many as pay.
        progress: True shows progress on stderr; or a function that is told of every step.

    Returns:
        The comparison. When interrupted, or stopped by an error once a run has finished, with the runs finished until
        then.

    Raises:
        PlanError: Unequal products, a batch larger than the data, no rule to rescale by.
        ArgumentError: Another argument makes no sense.
        StorageError: The store cannot be written, or belongs to something else.

    Examples:
        >>> import batchscope as bs
        >>> answer = bs.compare(bs.load_workload("digits"), [(32, 64), (128, 16)], seeds=2, learning_rate="fixed")
        >>> [(row.batch_size, row.iterations, row.examples) for row in answer.rows]
        [(32, 64, 2048), (128, 16, 2048)]
    """
    pairs = checked_pairs(pairs, workload, allow_unequal=allow_unequal)
    chosen_seeds = checked_seeds(seeds, checked_seed(seed))
    for name, value, kinds in (("learning_rate", learning_rate, RateHandling), ("shape", shape or "linear", Shape)):
        if value not in get_args(kinds):
            raise ArgumentError(f"{name} must be one of {', '.join(get_args(kinds))}", got=value)
    evaluate_every = checked_evaluate_every(evaluate_every)
    study = _Study(
        workload,
        Prepared(workload, chosen_device(device), workers=workers),
        pairs=pairs,
        seeds=chosen_seeds,
        seed=seed,
        evaluate_every=evaluate_every or evaluation_distance(workload, max(a * b for a, b in pairs)),
        plan=lambda batch_size, iterations: Plan(
            batch_size=batch_size,
            iterations=iterations,
            learning_rate=workload.learning_rate,
            shape=shape or falling_shape(workload),
            order=order,
            micro_batch_size=None if micro_batch_size is None else min(micro_batch_size, batch_size),
            rescaled_from=workload.batch_size if learning_rate == "rescaled" else None,
        ),
        store=store,
    )
    with study.store or contextlib.nullcontext(), stop_requests() as stop, reporter(progress, "comparing") as report:
        return study(learning_rate, stop, report)


class _Study:
    """One comparison under way."""

    def __init__(
        self,
        workload: Workload,
        prepared: Prepared,
        *,
        pairs: Sequence[tuple[int, int]],
        seeds: tuple[int, ...],
        seed: int,
        evaluate_every: int,
        plan: Callable[[int, int], Plan],
        store: str | os.PathLike[str] | None,
    ) -> None:
        self.workload, self.prepared = workload, prepared
        self.seeds, self.seed = seeds, seed
        self.evaluate_every = evaluate_every
        self._rescaled_rates: dict[int, float] = {}
        self.plans = [plan(*pair) for pair in pairs]
        for one in self.plans:  # every plan is checked before the first one is trained
            prepared.training.feed(one, one.batch_size, seed=0)
            if one.rescaled_from is not None:
                self._rescaled_rate(one)
        self.folder = None if store is None else Path(store)
        self.store = None if self.folder is None else _opened(self.folder, workload, prepared.device)
        self.contention = Contention()
        self.done_examples = 0
        self.spent_seconds = 0.0
        self.restored_seconds = 0.0

    def __call__(self, handling: RateHandling, stop: StopRequest, report: Report) -> Comparison:
        began = time.perf_counter()
        plans = self.plans
        searches: tuple[RateSearch, ...] = ()
        ahead = len(self.seeds) * sum(plan.budget_examples or 0 for plan in plans)
        if handling == "search":
            searches = self._searches(stop, report, ahead)
            found = {(search.batch_size, search.horizon_examples): search.learning_rate for search in searches}
            plans = [replace(p, learning_rate=found.get(_place(p), p.learning_rate)) for p in plans]

        runs: list[list[TrainResult]] = [[] for _ in plans]
        interrupted, failure = stop.requested, None
        for number, seed in enumerate(self.seeds):
            for plan, into in zip(plans, runs, strict=True):
                if interrupted:
                    break
                label = f"batch {plan.batch_size} × {plan.iterations}, seed {number + 1}/{len(self.seeds)}"
                ahead -= plan.budget_examples or 0
                try:
                    result = self._train(plan, seed, self.evaluate_every, report=report, label=label, ahead=ahead)
                except Exception as error:
                    if not any(runs):
                        raise
                    # What is finished is worth more than the traceback, which --debug shows at the next try.
                    interrupted, failure = True, f"{type(error).__name__}: {error} ({label})"
                    continue
                if result.outcome == "interrupted":
                    interrupted = True
                else:
                    into.append(result)
                    interrupted = stop.requested and not (number == len(self.seeds) - 1 and plan is plans[-1])
        return self._record(
            handling,
            plans,
            runs,
            searches,
            interrupted=interrupted,
            failure=failure,
            seconds=time.perf_counter() - began + self.restored_seconds,
        )

    def _rescaled_rate(self, plan: Plan) -> float:
        """The reference rate at a plan's batch size, found once: a model is built for it."""
        if plan.batch_size not in self._rescaled_rates:
            self._rescaled_rates[plan.batch_size] = reference_rate(
                self.workload, plan.batch_size, by_rule=plan.rescaled_from is not None
            )
        return self._rescaled_rates[plan.batch_size]

    def _threads(self, plan: Plan) -> int:
        """Threads that a plan's updates are computed with."""
        per_example = self.prepared.flops_per_example
        work = None if per_example is None else per_example * (plan.micro_batch_size or plan.batch_size)
        with compute_threads(work, self.prepared.device):
            return torch.get_num_threads()

    def _searches(self, stop: StopRequest, report: Report, runs_ahead: int) -> tuple[RateSearch, ...]:
        """A search for every row, in order of the batch size; each begins at what the one before has found."""
        seeds = search_seeds(self.seed, self.seeds)
        searches: dict[tuple[int, int], RateSearch] = {}
        expected = {place: [place[1]] * EXPECTED_TRIALS for place in map(_place, self.plans)}
        start, reference = 1.0, 1.0
        for plan in sorted(self.plans, key=_place):
            if stop.requested:
                break
            place = _place(plan)

            def train(trial: Plan, seed: int, place: tuple[int, int] = place) -> TrainResult:
                label = f"searching, batch {trial.batch_size}"
                if trial.examples == place[1]:
                    del expected[place][:1]
                ahead = runs_ahead + sum(map(sum, expected.values()))
                # Only its end is looked at.
                return self._train(trial, seed, trial.examples or 1, report=report, label=label, ahead=ahead)

            rescaled = self._rescaled_rate(plan)
            start = start * rescaled / reference if searches else rescaled
            found, _ = search_learning_rate(train, plan, start, seeds, screen=not searches)
            searches[place] = found
            start, reference = found.learning_rate, rescaled
            expected[place].clear()
        return tuple(searches[place] for place in map(_place, self.plans) if place in searches)

    def _train(
        self, plan: Plan, seed: int, evaluate_every: int, *, report: Report, label: str, ahead: int
    ) -> TrainResult:
        """One run, or what the store has of it; ``ahead`` is how many examples are still to come after it."""
        key = run_key(plan, seed, evaluate_every)
        found = None if self.store is None else self.store.run(key)
        checkpoint = None if self.folder is None else self.folder / f"run-{key}.safetensors"
        before = self.done_examples
        total = before + (plan.budget_examples or 0) + ahead

        def tell(done: int, score: float | None, rate: float) -> None:
            left = self.spent_seconds / self.done_examples * (total - done) if self.done_examples else None
            report.update(label=label, done=done, total=total, score=score, learning_rate=rate, seconds_left=left)

        restored = found is not None
        if found is None:

            def on_evaluation(point: CurvePoint, seconds_left: float | None) -> None:
                tell(before + point.examples, point.score, point.learning_rate)

            found = Run(
                self.prepared,
                plan,
                seed=seed,
                evaluate_every=evaluate_every,
                checkpoint=checkpoint,
                keep_best_weights=False,
                # Once for each row, so that the median of the times is one of runs that find the heap warm.
                measure_memory=seed == self.seeds[0],
                on_evaluation=on_evaluation,
            )()
            if self.store is not None and found.outcome not in ("interrupted", "out of memory"):
                self.store.put_run(key, found)
        else:
            self.restored_seconds += found.total_seconds
        if checkpoint is not None and found.outcome not in ("interrupted", "out of memory"):
            checkpoint.unlink(missing_ok=True)  # also what a run that was killed right after its record left behind
        self.spent_seconds += found.total_seconds
        self.done_examples += plan.budget_examples or 0
        if restored or found.outcome in ("diverged", "out of memory"):  # which no evaluation at the end has told of
            tell(self.done_examples, found.final_score, plan.learning_rate)
        return found

    def _record(
        self,
        handling: RateHandling,
        plans: Sequence[Plan],
        runs: Sequence[Sequence[TrainResult]],
        searches: tuple[RateSearch, ...],
        *,
        interrupted: bool,
        failure: str | None,
        seconds: float,
    ) -> Comparison:
        everything = [run for row_runs in runs for run in row_runs]
        target = statistics.common_score(everything)
        contention = self.contention.share(max(map(self._threads, plans)))
        by_place = {(search.batch_size, search.horizon_examples): search for search in searches}
        first = plans[0]
        record = Comparison(
            workload=summarise(self.workload),
            learning_rate=handling,
            shape=first.shape or "constant",
            order=first.order,
            seeds=self.seeds,
            evaluate_every_examples=self.evaluate_every,
            rows=tuple(
                statistics.row(
                    plan.batch_size,
                    plan.iterations or 0,
                    self._rescaled_rate(plan) if handling == "rescaled" else plan.learning_rate,
                    row_runs,
                    target=target,
                    search=by_place.get(_place(plan)),
                    contention=contention,
                )
                for plan, row_runs in zip(plans, runs, strict=True)
            ),
            differences=statistics.differences(runs, contention=contention),
            common_score=target,
            conclusion="",
            searches=searches,
            runs=tuple(replace(run, state=None) for run in everything),
            total_seconds=seconds,
            interrupted=interrupted,
            error=failure,
            contention=contention,
            provenance=provenance(self.workload, device=self.prepared.device, seed=self.seed),
        )
        return replace(record, conclusion=conclude(record))


def _opened(folder: Path, workload: Workload, device: torch.device) -> Store:
    """The store in a folder."""
    mend = "name another folder for this comparison"
    if folder.exists() and not folder.is_dir():
        raise StorageError("a comparison's store is a folder", got=f"{folder}, which is a file", mend="name another")
    if (folder / "store.json").exists():
        raise StorageError(
            "this release keeps a comparison's runs in runs.db",
            got=f"{folder} with the runs of an older release, which knows their data by a sample only",
            mend=f"{mend}; `bs.load` reads the old runs all the same",
        )
    identity = {
        "workload": fingerprint(workload),
        "data": data_fingerprint(workload),
        "batchscope": version(),
        "torch": torch.__version__,
        "device": str(device),
    }
    return Store.open(folder / "runs.db", identity)


def search_seeds(seed: int, taken: Sequence[int]) -> tuple[int, ...]:
    """Seeds of the searches: derived from a seed, and none of those that the rows are trained with.

    Examples:
        >>> seeds = search_seeds(0, range(5))
        >>> len(set(seeds)), set(seeds) & set(range(5))
        (2, set())
    """
    drawn = (derive(seed, "search", i) % 2**31 for i in itertools.count())
    return tuple(itertools.islice((one for one in drawn if one not in taken), SEARCH_SEEDS))


def _place(plan: Plan) -> tuple[int, int]:
    """What a search is for: a batch size and a budget."""
    return plan.batch_size, plan.budget_examples or 0


def checked_pairs(
    pairs: Sequence[tuple[int, int]], workload: Workload, *, allow_unequal: bool = False
) -> tuple[tuple[int, int], ...]:
    """The pairs of batch size and iterations, if they can be compared.

    Raises:
        PlanError: None at all, one twice, no whole numbers, unequal products, or a batch larger than the data.
    """
    checked: list[tuple[int, int]] = []
    try:
        given = list(pairs)
    except TypeError as error:
        raise PlanError("pairs must be a list of (batch size, iterations)", got=pairs) from error
    for pair in given:
        try:
            batch_size, iterations = pair
        except (TypeError, ValueError) as error:
            raise PlanError("a pair is (batch size, iterations)", got=pair) from error
        for name, number in (("batch size", batch_size), ("number of iterations", iterations)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise PlanError(f"a {name} must be a whole number of at least 1", got=repr(number))
        if batch_size > workload.training_examples:
            raise PlanError(
                "a batch must not be larger than the training data",
                got=f"{batch_size} > {workload.training_examples} examples of {workload.title}",
                mend=f"the full batch is {workload.training_examples}",
            )
        if (batch_size, iterations) in checked:
            raise PlanError("each pair may be given once", got=f"{batch_size}x{iterations} twice")
        checked.append((batch_size, iterations))
    if not checked:
        raise PlanError("a comparison needs at least one pair", got="none", mend="give 16x2000 256x125")
    products = {a * b for a, b in checked}
    if len(products) > 1 and not allow_unequal:
        raise PlanError(
            "every pair must see the same number of examples, batch size × iterations",
            got=", ".join(f"{a}×{b} = {a * b:,}" for a, b in checked),
            mend=_equal_pairs(checked),
        )
    return tuple(checked)


def _equal_pairs(pairs: Sequence[tuple[int, int]]) -> str:
    """The budget nearest to the largest one that every batch size divides."""
    multiple = math.lcm(*(a for a, _ in pairs))
    examples = max(1, round(max(a * b for a, b in pairs) / multiple)) * multiple
    suggestion = dict.fromkeys(f"{a}x{examples // a}" for a, _ in pairs)
    return f"try {' '.join(suggestion)}, or allow it with --allow-unequal"

"""The exhaustive answer: batch size × learning rate × seed, searched, pruned, stored, and the laws through it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch

from batchscope.errors import ArgumentError, BatchscopeError, PlanError, first_line
from batchscope.measure import step_times
from batchscope.progress import Report, Reporter, reporter
from batchscope.provenance import data_fingerprint, fingerprint, provenance, version
from batchscope.records import Engine as EngineName
from batchscope.records import Order, Shape, StepTimes, Sweep, SweepTrial
from batchscope.study.arguments import checked_seeds, falling_shape, reference_rate
from batchscope.study.local_engine import local_engine
from batchscope.study.rate_search import RateSearch
from batchscope.study.store import LARGEST_SEED, Store
from batchscope.study.sweep_conclusion import conclude_sweep
from batchscope.study.sweep_driver import Driver
from batchscope.study.sweep_record import best_of, law_of, rate_law_of, time_of, with_step_seconds
from batchscope.study.tasks import Conditions, Engine, standing_of
from batchscope.training.goal import check_goal
from batchscope.training.interruption import stop_requests
from batchscope.training.loop import MOST_EPOCHS, Prepared, evaluation_distance
from batchscope.training.train import checked_evaluate_every, checked_seed, chosen_device
from batchscope.workload.summary import summarise
from batchscope.workload.workload import Workload

# Four times as large each: enough for the law and its error at sizes left out. One of 2,048 can take as long as these.
USUAL = (8, 32, 128, 512)
# Evaluations to a target are this many to a pass over the data, as far as they cost no more than a third of it.
EVALUATIONS_PER_EPOCH = 16
# A batch size's update is timed this long, all sizes in turn.
TIMING_SECONDS = 1.5


def sweep(
    workload: Workload,
    batch_sizes: Sequence[int] | None = None,
    *,
    learning_rates: Sequence[float] | Literal["search"] = "search",
    seeds: int | Sequence[int] = 3,
    target: float | None = None,
    examples: int | None = None,
    shape: Shape | None = None,
    order: Order = "shuffled",
    prune: bool = True,
    evaluate_every: int | None = None,
    store: str | os.PathLike[str] | None = None,
    engine: EngineName = "local",
    address: str | None = None,
    processes: int | None = None,
    timeout_seconds: float | None = None,
    time_updates: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> Sweep:
    """Train a workload over batch sizes, learning rates and seeds, and fit the laws that the results follow.

    Runs of one batch size are trained together as replicas where that is faster; trials that cannot be the best of
    their batch size any more are stopped; every trial that ends is in the store at once.

    Args:
        workload: What to train.
        batch_sizes: Which; None: 8, 32, 128, 512 and 2,048, as far as the training set goes.
        learning_rates: Which, for every batch size; or "search": from the reference, rescaled to the batch size, as far
            up and down as it takes until the best has a worse neighbour on either side.
        seeds: How many, or which.
        target: Validation score to reach: what is looked for is the examples that takes.
        examples: Budget of a trial. With a target, where it is given up, by default after 200 passes over the data;
            without one, where scores are compared. One of the two is needed.
        shape: The rate over the budget; None: the workload's ``shape``, and where that is constant, linear to zero for
            a budget; constant on the way to a target.
        order: How batches are drawn.
        prune: Whether to stop trials that cannot win.
        evaluate_every: Examples between two evaluations; examples to the target are as coarse as that. None: a
            sixteenth of the training set, or more where evaluating would cost more than half of training; for a budget,
            a fortieth of it.
        store: SQLite file of finished trials: a sweep that was killed goes on where it was, and ends as an unbroken one
            would. One sweep writes it at a time. None: nothing is kept.
        engine: "local": processes on this machine, each on a core of its own. "ray": a Ray cluster.
        address: Of an existing Ray cluster; None: a local one.
        processes: How many trials or stacks of trials run at once; None: one a core.
        timeout_seconds: A worker that is silent for longer is given up; None: 300, or twenty times its longest silence.
        time_updates: Whether to time an update alone at every batch size in the end, for seconds to the target.
        seed: The first seed, where ``seeds`` is a number.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows a live view on stderr; or a function that is told of every step.

    Returns:
        The sweep. When interrupted, or stopped by an error once trials have finished, with what was finished.

    Raises:
        ArgumentError: An argument makes no sense, such as a target that fresh weights reach, or a percentage where
            scores are fractions.
        PlanError: A batch larger than the data.
        StorageError: The store cannot be written, or belongs to something else.

    Examples:
        >>> import batchscope as bs
        >>> digits = bs.load_workload("digits")
        >>> found = bs.sweep(digits, [32, 128], learning_rates=[0.1, 0.4], seeds=1, target=0.9, time_updates=False)
        >>> [(line.batch_size, line.reached) for line in found.best]
        [(32, 1), (128, 1)]
    """
    sizes = checked_batch_sizes(batch_sizes, workload)
    rates = _checked_rates(learning_rates)
    chosen_seeds = checked_seeds(seeds, checked_seed(seed))
    chosen = chosen_device(device)
    conditions = _conditions(
        workload,
        target=target,
        examples=examples,
        shape=shape,
        order=order,
        prune=prune,
        evaluate_every=evaluate_every,
    )
    if engine not in get_args(EngineName):
        raise ArgumentError(f"engine must be one of {', '.join(get_args(EngineName))}", got=engine)
    if address is not None and engine != "ray":
        raise ArgumentError("an address is for a Ray cluster", got=address, mend="give engine='ray' as well")
    for name, number in (("processes", processes), ("timeout_seconds", timeout_seconds)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, float)) or number <= 0):
            raise ArgumentError(f"{name} must be a number above 0", got=number)
    if target is not None:
        check_goal(Prepared(workload, chosen, workers=0), target, seed=chosen_seeds[0])
    searches = {
        size: RateSearch(
            reference_rate(workload, size),
            chosen_seeds,
            batch_size=size,
            target=target,
            budget_examples=conditions.budget_examples,
            given=rates,
        )
        for size in sizes
    }
    if max(chosen_seeds) > LARGEST_SEED:
        raise ArgumentError("a sweep's seeds must be below 2**63", got=max(chosen_seeds))
    with (
        stop_requests() as stop,
        Store.open(store, {} if store is None else _identity(workload, conditions, chosen)) as kept,
        reporter(progress, "sweep") as report,
    ):
        chosen_engine = _engine(
            engine,
            workload,
            conditions,
            address=address,
            processes=processes,
            timeout_seconds=timeout_seconds,
            device=chosen,
        )
        driver = Driver(searches, conditions, kept, chosen_engine, report=report)
        complete, failure = False, None
        try:
            with chosen_engine:
                complete = driver(stop)
        except Exception as error:
            if not driver.results():
                raise
            # What is finished is worth more than the traceback, which --debug shows at the next try.
            failure = str(error) if isinstance(error, BatchscopeError) else first_line(error)
        times = None
        if time_updates and complete and not stop.requested:
            times = _timed(workload, sizes, seed, chosen, report)
        return _record(
            workload,
            conditions,
            searches,
            driver.results(),
            seeds=chosen_seeds,
            given=rates,
            times=times,
            ways={size: driver.trained_as(size) for size in sizes},
            engine=engine,
            processes=chosen_engine.workers,
            total_seconds=kept.total_seconds(),
            interrupted=not complete,
            failure=failure,
            device=chosen,
            seed=seed,
        )


def checked_batch_sizes(batch_sizes: Sequence[int] | None, workload: Workload) -> tuple[int, ...]:
    """The batch sizes of a sweep, ascending.

    Raises:
        ArgumentError: None, one twice, or no whole numbers.
        PlanError: One larger than the training set.
    """
    most = workload.training_examples
    if batch_sizes is None:
        return tuple(size for size in USUAL if size <= most) or (most,)
    rule = "batch sizes must be different whole numbers of at least 1"
    if isinstance(batch_sizes, (str, int)) or not list(batch_sizes):
        raise ArgumentError(rule, got=batch_sizes, mend="give them as in [8, 32, 128]")
    sizes = list(batch_sizes)
    if any(type(size) is not int or size < 1 for size in sizes) or len(set(sizes)) < len(sizes):
        raise ArgumentError(rule, got=sizes)
    if max(sizes) > most:
        raise PlanError(
            "batch_size must be at most the number of training examples",
            got=f"{max(sizes)} > {most}",
            mend=f"the full batch is {most}",
        )
    return tuple(sorted(sizes))


def _checked_rates(rates: Sequence[float] | str) -> tuple[float, ...] | None:
    if rates == "search":
        return None
    rule = "learning_rates must be 'search' or different numbers above 0"
    if isinstance(rates, (str, int, float)) or not list(rates):
        raise ArgumentError(rule, got=rates)
    numbers = list(rates)
    if any(isinstance(r, bool) or not isinstance(r, (int, float)) or not 0 < r < math.inf for r in numbers):
        raise ArgumentError(rule, got=numbers)
    if len(set(numbers)) < len(numbers):
        raise ArgumentError(rule, got=numbers, mend="leave out the one that is there twice")
    return tuple(sorted(float(rate) for rate in numbers))


def _conditions(
    workload: Workload,
    *,
    target: float | None,
    examples: int | None,
    shape: Shape | None,
    order: Order,
    prune: bool,
    evaluate_every: int | None,
) -> Conditions:
    for name, value, kinds in (("shape", shape, Shape), ("order", order, Order)):
        if value is not None and value not in get_args(kinds):
            raise ArgumentError(f"{name} must be one of {', '.join(get_args(kinds))}", got=value)
    if target is None and examples is None:
        raise ArgumentError(
            "a sweep needs a score to reach or a budget to compare scores at",
            got="neither target nor examples",
            mend="give target=0.9, or examples=100_000",
        )
    if target is not None and (isinstance(target, bool) or not isinstance(target, (int, float))):
        raise ArgumentError("target must be a number", got=target)
    if target is not None and not math.isfinite(target):
        raise ArgumentError("target must be a finite number", got=target)
    if examples is not None and (type(examples) is not int or examples < 1):
        raise ArgumentError("examples must be a whole number of at least 1", got=examples)
    every = checked_evaluate_every(evaluate_every)
    if every is None and target is None:
        every = evaluation_distance(workload, examples)
    elif every is None:
        affordable = round(workload.validation_examples / 1.5)
        every = max(1, workload.training_examples // EVALUATIONS_PER_EPOCH, affordable)
    return Conditions(
        target=None if target is None else float(target),
        budget_examples=MOST_EPOCHS * workload.training_examples if examples is None else examples,
        evaluate_every=every,
        shape=shape or ("constant" if target is not None else falling_shape(workload)),
        order=order,
        pruning=prune,
    )


def _identity(workload: Workload, conditions: Conditions, device: torch.device) -> dict[str, str]:
    """What the trials of a store have in common; not the pruning, which changes no trial that ends by itself."""
    fields = dataclasses.asdict(conditions)
    del fields["pruning"]
    return {
        "workload": fingerprint(workload),
        "data": data_fingerprint(workload),
        "batchscope": version(),
        "torch": torch.__version__,
        "device": device.type,
    } | {name: json.dumps(value) for name, value in fields.items()}


def _engine(
    name: EngineName,
    workload: Workload,
    conditions: Conditions,
    *,
    address: str | None,
    processes: int | None,
    timeout_seconds: float | None,
    device: torch.device,
) -> Engine:
    if name == "ray":
        from batchscope.study.ray_engine import RayEngine

        return RayEngine(
            workload,
            conditions,
            address=address,
            workers=processes,
            device=device,
            timeout_seconds=timeout_seconds,
        )
    return local_engine(
        workload,
        conditions,
        processes=processes,
        timeout_seconds=timeout_seconds,
        device=device,
    )


def _timed(
    workload: Workload, sizes: tuple[int, ...], seed: int, device: torch.device, report: Report
) -> StepTimes | None:
    """The time of an update alone at every batch size; None where that cannot be measured."""
    if len(sizes) < 2:  # the law of an update's time needs two
        sizes = tuple(sorted({*sizes, max(1, sizes[0] // 2), min(workload.training_examples, 2 * sizes[0])}))
    report.update(label="timing updates", done=0, total=None)
    try:
        return step_times(workload, batch_sizes=sizes, seconds=TIMING_SECONDS * len(sizes), seed=seed, device=device)
    except BatchscopeError:
        return None


def _record(
    workload: Workload,
    conditions: Conditions,
    searches: dict[int, RateSearch],
    results: Sequence[SweepTrial],
    *,
    seeds: tuple[int, ...],
    given: tuple[float, ...] | None,
    times: StepTimes | None,
    ways: dict[int, str],
    engine: EngineName,
    processes: int,
    total_seconds: float,
    interrupted: bool,
    failure: str | None,
    device: torch.device,
    seed: int,
) -> Sweep:
    trials = with_step_seconds(results, times)
    standings = {size: [standing_of(t) for t in trials if t.batch_size == size] for size in searches}
    best = tuple(
        best_of(
            size,
            [trial for trial in trials if trial.batch_size == size],
            standings[size],
            search,
            target=conditions.target,
            evaluate_every=conditions.evaluate_every,
            step_times=times,
            trained_as=ways.get(size, ""),
        )
        for size, search in searches.items()
    )
    law = law_of(best, trials, conditions.evaluate_every) if conditions.target is not None else None
    record = Sweep(
        workload=summarise(workload),
        target=conditions.target,
        budget_examples=conditions.budget_examples,
        shape=conditions.shape,
        order=conditions.order,
        seeds=seeds,
        evaluate_every_examples=conditions.evaluate_every,
        searched=given is None,
        pruning=conditions.pruning,
        engine=engine,
        processes=processes,
        trials=trials,
        best=best,
        law=law,
        rate_law=rate_law_of(best, standings, searches),
        time=time_of(law, times),
        step_times=times,
        examples_spent=sum(trial.examples for trial in trials),
        total_seconds=total_seconds,
        conclusion="",
        interrupted=interrupted,
        error=failure,
        provenance=provenance(workload, device=device, seed=seed),
        warnings=() if times is None else times.warnings,
    )
    return replace(record, conclusion=conclude_sweep(record))

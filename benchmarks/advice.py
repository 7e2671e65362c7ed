"""The advice against ground truth and against what people use instead, from references that are bad.

For each workload and each of three references, (8, good/8), (32, good) and (4,096, good × 8) with "good" the best rate
of that batch size and 4,096 cut to what there is, ``bs.advise`` is asked for the least time to the target. Then

- regret: seconds to the target at the advised batch size and rate, held constant, over the least there are, both by the
  ground truth's examples (``ground_truth.py``) and the time of an update measured here;
- regret as trained: the advised plan is trained, schedule and all, in turns with the best constant setting; seconds of
  updates until the target over that one's, with the standard error that their scatter over seeds leaves;
- cost: wall-clock seconds of the advice over the best setting's seconds to the target;
- held: whether the predicted interval holds what training the plan took;
- cold start: ``train --auto`` from nothing to the target, everything counted, over the best setting's seconds.

Beside it, by the first of these, stand batch 32 at the reference's rate, Lightning's BatchSizeFinder and learning rate
finder, the batch size of most examples a second, Optuna with TPE and Hyperband for as long as the advice took, and the
noise scale as the batch size. "≥" marks a setting beyond what the ground truth tried: it is at least that bad.

    python benchmarks/advice.py [--workloads digits …] [--references 3] [--seeds 2] [--rounds 1] [--resume]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import batchscope as bs
from advice_pickers import PICKERS, Question, at_reference
from batchscope.provenance import fingerprint
from cases import RowByRow, finite, keep, known, machine
from ground_truth_table import TABLES, Bounded, GroundTruth, Setting
from workloads import TASKS, Task

TIMING_SECONDS = 1.5
# Of what is trained for comparison: none of these seeds is one that the advice or the ground truth has trained with.
FIRST_SEED, MOST_SEEDS, TRAINING_SECONDS = 1000, 24, 10.0
LARGEST = 4096
# What the project has promised. An advice may cost ten seconds whatever training takes, and a cold start as much more.
MEDIAN_REGRET, WORST_REGRET = 1.05, 1.15
MEDIAN_COST, COLD_START, ALLOWED_SECONDS = 0.5, 1.5, 10.0
HELD = 0.8
OURS = "batchscope"

Row = dict[str, Any]


def references(truth: GroundTruth) -> tuple[Setting, ...]:
    """What the person of each case is supposed to use today."""
    largest = min(LARGEST, truth.batch_sizes[-1])
    return (
        Setting(8, truth.good_rate(8) / 8),
        Setting(32, truth.good_rate(32)),
        Setting(largest, truth.good_rate(largest) * 8),
    )


def step_seconds_of(times: bs.StepTimes) -> Callable[[int], float]:
    """Time of an update at any batch size, on straight lines in logs between those measured."""
    points = [point for point in times.points if point.step_seconds.value]
    sizes = np.log([point.batch_size for point in points])
    seconds = np.log([point.step_seconds.value or math.nan for point in points])
    return lambda batch_size: float(np.exp(np.interp(math.log(batch_size), sizes, seconds)))


def seconds_to(target: float, run: bs.TrainResult) -> float:
    """Seconds of updates until the first evaluation at the target or above it; infinite where there is none."""
    return next((point.seconds for point in run.curve if point.score >= target), math.inf)


def trained_in_turns(
    workload: bs.Workload, plans: Sequence[bs.Plan | None], *, task: Task, seeds: int
) -> list[list[float]]:
    """Seconds to the target of each plan, by seed; infinite where there is no plan, or where it does not get there.

    Seeds are added to those asked for as long as all of it has taken less than ``TRAINING_SECONDS``, since the shortest
    trainings scatter the most.
    """
    taken: list[list[float]] = [[] for _ in plans]
    began = time.perf_counter()
    for seed in range(max(seeds, MOST_SEEDS)):
        if seed >= seeds and time.perf_counter() - began > TRAINING_SECONDS:
            break
        for number in range(len(plans)) if seed % 2 == 0 else reversed(range(len(plans))):
            taken[number].append(_trained(workload, plans[number], task, FIRST_SEED + seed))
    return taken


def _trained(workload: bs.Workload, plan: bs.Plan | None, task: Task, seed: int) -> float:
    if plan is None:
        return math.inf
    return seconds_to(task.target, bs.train(workload, plan, seed=seed, evaluate_every=task.evaluate_every))


def over(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The ratio of two geometric means, and its relative standard error; infinite where one of ours never gets there.

    Examples:
        >>> over([2.0, 8.0], [2.0, 2.0])
        (2.0, 0.6931471805599453)
        >>> over([2.0, math.inf], [2.0, 2.0])
        (inf, nan)
    """
    if not all(map(math.isfinite, ours)):
        return math.inf, math.nan
    logs = [[math.log(seconds) for seconds in taken] for taken in (ours, theirs)]
    error = math.sqrt(sum(statistics.variance(own) / len(own) if len(own) > 1 else math.nan for own in logs))
    return math.exp(statistics.fmean(logs[0]) - statistics.fmean(logs[1])), error


def cold_start(workload: bs.Workload, target: float, seed: int) -> float | None:
    """Seconds of ``train --auto`` to the target, infinite where it does not get there; None where there is no such."""
    try:
        from batchscope.search import train_from_nothing
    except ImportError:
        return None
    began = time.perf_counter()
    result = train_from_nothing(workload, target=target, seed=seed)
    return time.perf_counter() - began if seconds_to(target, result) < math.inf else math.inf


def asked(workload: bs.Workload, target: float, seed: int) -> tuple[bs.Advice | None, float, str]:
    """The advice, the wall-clock seconds that it took, and its answer in words, or why there is none."""
    began = time.perf_counter()
    try:
        advice = bs.advise(workload, target=target, seed=seed)
    except bs.BatchscopeError as error:
        return None, time.perf_counter() - began, str(error)
    if advice.interrupted:
        raise SystemExit(130)
    return advice, time.perf_counter() - began, advice.conclusion


def measured(task: Task, truth: GroundTruth, times: bs.StepTimes, reference: Setting, *, seed: int, seeds: int) -> Row:
    """One reference of one workload: the advice, what its plan takes, and what the others pick."""
    workload, step_seconds = at_reference(task.make(), reference), step_seconds_of(times)
    best = truth.best(step_seconds)
    advice, cost, words = asked(workload, task.target, seed)
    plan = None if advice is None else advice.plan
    constant = bs.Plan(best.batch_size, best.learning_rate, target=task.target)
    as_advised, at_best = trained_in_turns(workload, [plan, constant], task=task, seeds=seeds)
    best_seconds = statistics.median(at_best)
    as_trained, error = over(as_advised, at_best)
    started = cold_start(workload, task.target, seed)
    predicted = None if advice is None else advice.predicted_seconds
    picks = {OURS: judged(truth, step_seconds, _advised(advice), cost)}
    timed = {point.batch_size: point.step_seconds.value for point in times.points if point.step_seconds.value}
    question = Question(workload, timed, seconds=cost, seed=seed)
    for name, picker in PICKERS.items():
        began = time.perf_counter()
        pick = picker(question)
        picks[name] = judged(truth, step_seconds, pick, time.perf_counter() - began)
    return {
        "workload": task.name,
        "target": task.target,
        "seed": seed,
        "reference": reference,
        "best": best,
        "ground_truth_error": truth.error(best.batch_size),
        "conclusion": words,
        "step_seconds": {point.batch_size: point.step_seconds.value for point in times.points},
        "best_seconds": at_best,
        "advised_seconds": [finite(seconds) for seconds in as_advised],
        "predicted_seconds": None if predicted is None else dataclasses.asdict(predicted),
        "held": [predicted is not None and holds(predicted, seconds) for seconds in as_advised],
        "regret_as_trained": finite(as_trained),
        "regret_as_trained_error": finite(error),
        "cost_seconds": cost,
        "cost_as_told": None if advice is None else advice.cost_seconds,
        "cost": cost / best_seconds,
        "cold_start": None
        if started is None
        else {"seconds": finite(started), "over_best": finite(started / best_seconds)},
        "picks": picks,
    }


def _advised(advice: bs.Advice | None) -> Setting | None:
    if advice is None or advice.batch_size is None or advice.learning_rate is None:
        return None
    return Setting(advice.batch_size, advice.learning_rate)


def judged(truth: GroundTruth, step_seconds: Callable[[int], float], pick: Setting | None, seconds: float) -> Row:
    """A pick with its regret by the ground truth: none where nothing was picked, or where training diverges."""
    regret = Bounded(math.inf) if pick is None else truth.regret(pick, step_seconds)
    return {"setting": pick, "seconds": seconds, "regret": finite(regret.value), "at_least": regret.at_least}


def holds(predicted: bs.Interval, seconds: float) -> bool:
    """Whether an interval that has both of its ends holds a finite number.

    Examples:
        >>> holds(bs.Interval(40.0, 35.0, 49.0, 0.9), 36.0), holds(bs.Interval(40.0, 35.0, None, 0.9), 36.0)
        (True, False)
    """
    if predicted.low is None or predicted.high is None:
        return False
    return math.isfinite(seconds) and predicted.low <= seconds <= predicted.high


def missed(rows: Sequence[Row]) -> list[str]:
    """Which of the promises these rows do not keep, each with the number that they come to."""
    regrets = [known(row["picks"][OURS]["regret"]) for row in rows]
    trained = [known(row["regret_as_trained"]) for row in rows]
    costs = [row["cost"] if row["cost_seconds"] > ALLOWED_SECONDS else 0.0 for row in rows]
    outside = [1 - statistics.fmean(row["held"]) for row in rows]
    late = [
        known(row["cold_start"]["over_best"]) / (COLD_START + ALLOWED_SECONDS / statistics.median(row["best_seconds"]))
        for row in rows
        if row["cold_start"] is not None
    ]
    promises = (
        (f"median regret at most {MEDIAN_REGRET}", statistics.median(regrets), MEDIAN_REGRET),
        (f"worst regret at most {WORST_REGRET}", max(regrets), WORST_REGRET),
        (f"median regret as trained at most {MEDIAN_REGRET}", statistics.median(trained), MEDIAN_REGRET),
        (f"worst regret as trained at most {WORST_REGRET}", max(trained), WORST_REGRET),
        (f"median cost at most {MEDIAN_COST} or {ALLOWED_SECONDS:g} s", statistics.median(costs), MEDIAN_COST),
        (f"predictions held in at least {HELD:.0%}: missed", statistics.fmean(outside), 1 - HELD + 1e-9),
        (f"worst cold start at most {COLD_START} and {ALLOWED_SECONDS:g} s: over it", max(late, default=0.0), 1.0),
    )
    return [f"{promise} ({value:.3g})" for promise, value, most in promises if not value <= most]


def _said(setting: Sequence[float] | None) -> str:
    return "none" if setting is None else f"{setting[0]:,.0f} @ {setting[1]:.3g}"


def _ratio(value: float | None, *, at_least: bool = False, error: float | None = None) -> str:
    if value is None:
        return "never"
    return f"{'≥ ' if at_least else ''}{value:.2f}{'' if error is None else f' ± {value * error:.2f}'}"


def _span(seconds: Sequence[float]) -> str:
    low, high = min(seconds), max(seconds)
    return "never" if math.isinf(low) else f"{low:.3g}–{'never' if math.isinf(high) else f'{high:.3g} s'}"


def shown(rows: Sequence[Row]) -> Table:
    """A row for every question asked."""
    table = Table(title="The advice: regret over the best constant setting, cost over one training run at it")
    left = ("workload", "reference", "advised", "best")
    for column in (*left, "regret", "as trained", "cost", "", "predicted", "took", "held", "cold start"):
        table.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        ours, predicted = row["picks"][OURS], row["predicted_seconds"] or {"low": None, "high": None}
        ends = ("?" if end is None else f"{end:.3g}" for end in (predicted["low"], predicted["high"]))
        table.add_row(
            row["workload"],
            _said(row["reference"]),
            _said(ours["setting"]),
            _said(row["best"]),
            _ratio(ours["regret"], at_least=ours["at_least"]),
            _ratio(row["regret_as_trained"], error=row["regret_as_trained_error"]),
            f"{row['cost']:.2f}",
            f"{row['cost_seconds']:.1f} s",
            f"{'–'.join(ends)} s",
            _span([known(took) for took in row["advised_seconds"]]),
            f"{sum(row['held'])}/{len(row['held'])}",
            "" if row["cold_start"] is None else _ratio(row["cold_start"]["over_best"]),
        )
    return table


def shown_beside(rows: Sequence[Row]) -> Table:
    """A row for every way of picking, over all questions."""
    table = Table(title="Regret of what is picked, by the ground truth (≥: beyond what that has tried)")
    for column in ("picked by", "median", "worst", "within 5%", "seconds spent"):
        table.add_column(column, justify="left" if column == "picked by" else "right")
    for name in rows[0]["picks"]:
        picks = [row["picks"][name] for row in rows]
        regrets = sorted((known(pick["regret"]), pick["at_least"]) for pick in picks)
        middle, worst = regrets[len(regrets) // 2], regrets[-1]
        table.add_row(
            name,
            *(_ratio(finite(value), at_least=at_least) for value, at_least in (middle, worst)),
            f"{sum(value <= MEDIAN_REGRET and not at_least for value, at_least in regrets)}/{len(regrets)}",
            f"{statistics.median(pick['seconds'] for pick in picks):.1f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=TASKS, default=list(TASKS), metavar="WORKLOAD")
    parser.add_argument("--references", type=int, default=3, help="how many of the three")
    parser.add_argument("--seeds", type=int, default=2, help="of trainings with each plan; more where they are short")
    parser.add_argument("--rounds", type=int, default=1, help="of all of it, each with another seed")
    parser.add_argument("--resume", action="store_true", help="keep the rows of a run that was stopped, and go on")
    arguments = parser.parse_args()
    console = Console(width=150)
    kept = RowByRow("advice", resume=arguments.resume)
    rows = kept.rows
    done = {(row["workload"], row["seed"], row["number"]) for row in rows}
    names = [name for name in arguments.workloads if (TABLES / f"{name}.json").exists()]
    for name in set(arguments.workloads) - set(names):
        console.print(f"{name} is left out: it has no ground truth yet; make ground-truth")
    for seed in range(arguments.rounds):
        for name in names:
            missing = [number for number in range(arguments.references) if (name, seed, number) not in done]
            if not missing:
                continue
            task, truth = TASKS[name], GroundTruth.load(name)
            workload = task.make()
            if fingerprint(workload) != truth.provenance["workload_fingerprint"]:
                console.print(
                    f"{name} is not quite what its ground truth was made of: torch, Python or its data differ"
                )
            sizes = truth.batch_sizes
            times = bs.step_times(workload, batch_sizes=sizes, seconds=TIMING_SECONDS * len(sizes), seed=seed)
            for number in missing:
                row = measured(task, truth, times, references(truth)[number], seed=seed, seeds=arguments.seeds)
                kept.add({"number": number, **row})
                console.print(f"{name} from {_said(rows[-1]['reference'])}: {rows[-1]['conclusion']}")
    if not rows:
        return
    console.print(shown(rows), shown_beside(rows))
    errors = {row["workload"]: f"{row['ground_truth_error']:.0%}" for row in rows}
    console.print(f"Standard error of the ground truth's examples at the best setting: {errors}")
    console.print(f"Promises not kept: {'; '.join(missed(rows)) or 'none'}")
    console.print(machine())
    if set(arguments.workloads) == set(TASKS) and arguments.references == 3:
        console.print(f"Kept in {keep('advice', rows)}")


if __name__ == "__main__":
    main()

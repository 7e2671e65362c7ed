"""The advice on networks of the make and size of public examples: does it come, what does it cost, what does it save.

For each network, reference and seed the advice is asked for at its default budget, its plan is trained, and training
from nothing is tried; everything on one thread, since the recorded curves that it is judged by are (``make
ground-truth-real``). It is judged by the curves that are there when it ends: ``--resume`` goes on with a benchmark that
was stopped, and judges again. The recorder takes the settings that were advised first.

    python benchmarks/advice_real.py [--networks conv gpt …] [--references 0 1 2] [--seeds 2] [--resume]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

import batchscope as bs
from batchscope.search.race import Race
from cases import RowByRow, finite, keep, known, machine
from curves_table import CURVES, Curves
from ground_truth_table import Bounded, Setting
from real import TASKS, RealTask

# What the project has promised, each with the rows that it is about.
BUDGET_KEPT = 1.2
MEDIAN_REGRET, WORST_REGRET, MEDIAN_AS_TRAINED = 1.10, 1.30, 1.0
COST_OF_LONG, COST_OF_SHORT, LONG_SECONDS = 0.35, 1.0, 60.0
EVERYTHING_FROM_BAD, EVERYTHING_FROM_GOOD = 0.5, 1.3
HELD = (0.80, 0.97)
COLD_START = 1.4
TRAINING_SHARE = 0.75
# The plan is evaluated this many times in as many examples as the best run takes.
EVALUATIONS = 40
# A training that takes so many times the wall time of the best run is interrupted, and counts as one that never ends.
LATE = 6.0

# Batch sizes of the bad references; a larger one that was recorded takes the second's place.
SMALL, LARGE = 8, 512

Row = dict[str, Any]


def references(task: RealTask, curves: Curves) -> dict[str, Setting]:
    """What the person of each case uses today: two bad settings, and the public default of a good rate."""
    large = max(LARGE, *curves.truth.batch_sizes)
    good = curves.truth.good_rate
    return {
        "small": Setting(SMALL, good(SMALL) / 8),
        "default": Setting(task.batch_size, good(task.batch_size)),
        "large": Setting(large, good(large) * 8),
    }


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Ask what runs in the block to stop, as Ctrl-C does, after so many seconds of wall time."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def measured(task: RealTask, reference: Setting, curves: Curves, *, seed: int, name: str) -> Row:
    """One question: the advice, the plan trained, and training from nothing.

    Args:
        task: The network.
        reference: What is used today.
        curves: What was recorded of it.
        seed: Of the search; the plan is trained with another one.
        name: The reference's.
    """
    today = dataclasses.replace(task.make(), batch_size=reference.batch_size, learning_rate=reference.learning_rate)
    races: list[Race] = []
    run = Race.run

    def noted(race: Race) -> None:
        races.append(race)
        run(race)

    with mock.patch.object(Race, "run", noted):
        began = time.perf_counter()
        advice = bs.advise(today, target=task.target, seed=seed, workers=0)
        cost = time.perf_counter() - began
    chosen = None
    if advice.batch_size is not None and advice.learning_rate is not None:
        chosen = Setting(advice.batch_size, advice.learning_rate)
    trained, reached, best = math.inf, False, curves.best
    late = LATE * curves.seconds(best).value
    examples = curves.seconds(best).value / curves.step_seconds(best.batch_size) * best.batch_size
    if advice.plan is not None:
        with interrupted_after(late):
            made = bs.train(
                today,
                advice.plan,
                seed=1000 + seed,
                evaluate_every=max(advice.plan.batch_size, round(examples / EVALUATIONS)),
                workers=0,
            )
        reached = made.reached
        trained = next((p.seconds for p in made.curve if p.score >= task.target), math.inf)
    began = time.perf_counter()
    with interrupted_after(late):
        automatic = bs.train_from_nothing(today, target=task.target, seed=seed, workers=0)
    cold = time.perf_counter() - began if automatic.reached else math.inf
    training = sum(part.seconds for part in advice.spending if part.name in ("training candidates", "reading data"))
    return {
        "network": task.name,
        "reference_name": name,
        "reference": reference,
        "seed": seed,
        "advised": chosen,
        "cost_seconds": cost,
        "budget_seconds": races[0].limit_seconds,
        "trained_seconds": finite(trained),
        "reached": reached,
        "predicted": dataclasses.asdict(advice.predicted_seconds),
        "cold_start_seconds": finite(cold),
        "training_share": training / max(advice.cost_seconds, 1e-9),
        "conclusion": advice.conclusion,
    }


def judged(row: Row, curves: Curves) -> Row:
    """A row with what the recorded curves say of its settings."""
    chosen, best = row["advised"], curves.best
    return {
        **row,
        "answered": chosen is not None,
        "best": best,
        "best_seconds": curves.seconds(best).value,
        "regret": _bounded(Bounded(math.inf) if chosen is None else curves.regret(Setting(*chosen))),
        "today": _bounded(curves.seconds(Setting(*row["reference"]))),
    }


def _bounded(value: Bounded) -> list[Any]:
    return [finite(value.value), value.at_least]


def figures(rows: Sequence[Row]) -> dict[str, tuple[float, float, bool]]:
    """Each promise: its figure over these rows, what was promised, and whether it is kept."""
    regrets = [known(row["regret"][0]) for row in rows]
    as_trained = [known(row["trained_seconds"]) / row["best_seconds"] for row in rows]
    costs = {row["best_seconds"] >= LONG_SECONDS: [] for row in rows}  # type: dict[bool, list[float]]
    for row in rows:
        costs[row["best_seconds"] >= LONG_SECONDS].append(row["cost_seconds"] / row["best_seconds"])
    everything = [(row["cost_seconds"] + known(row["trained_seconds"])) / known(row["today"][0]) for row in rows]
    bad = [value for value, row in zip(everything, rows, strict=True) if row["reference_name"] != "default"]
    good = [value for value, row in zip(everything, rows, strict=True) if row["reference_name"] == "default"]
    cold = [
        known(row["cold_start_seconds"]) / row["best_seconds"] for row in rows if row["best_seconds"] >= LONG_SECONDS
    ]
    held = [_holds(row) for row in rows]
    kept = [row["cost_seconds"] / row["budget_seconds"] for row in rows]
    found: dict[str, tuple[float, float, bool]] = {}

    def add(name: str, values: Sequence[float], most: float, of: Callable[[Sequence[float]], float]) -> None:
        if values:
            found[name] = (of(values), most, of(values) <= most)

    answered = statistics.fmean(row["answered"] for row in rows)
    found["answered, share"] = (answered, 1.0, answered == 1.0)
    add("cost over the budget, worst", kept, BUDGET_KEPT, max)
    add("regret in a plain loop, median", regrets, MEDIAN_REGRET, statistics.median)
    add("regret in a plain loop, worst", regrets, WORST_REGRET, max)
    add("as trained over the best, median", as_trained, MEDIAN_AS_TRAINED, statistics.median)
    add("cost over a best run of a minute or more, median", costs.get(True, []), COST_OF_LONG, statistics.median)
    add("cost over a shorter best run, median", costs.get(False, []), COST_OF_SHORT, statistics.median)
    add("everything over today's, bad references, median", bad, EVERYTHING_FROM_BAD, statistics.median)
    add("everything over today's, good reference, worst", good, EVERYTHING_FROM_GOOD, max)
    add("train --auto over a best run of a minute or more, median", cold, COLD_START, statistics.median)
    share = statistics.fmean(held)
    found["predicted interval held, share"] = (share, HELD[0], HELD[0] <= share <= HELD[1])
    training = statistics.median(row["training_share"] for row in rows)
    found["share of training in the advice, median"] = (training, TRAINING_SHARE, training >= TRAINING_SHARE)
    return found


def _holds(row: Row) -> bool:
    taken = row["trained_seconds"]
    if taken is None:
        return False
    low, high = (row["predicted"][end] for end in ("low", "high"))
    return float(low or 0.0) <= float(taken) <= float(math.inf if high is None else high)


def shown(rows: Sequence[Row]) -> Table:
    """A row for every question asked."""
    table = Table(title="Advice on real networks: seconds on one thread")
    columns = (
        "network",
        "today",
        "takes",
        "advised",
        "regret",
        "advice",
        "plan",
        "predicted",
        "--auto",
        "best",
        "takes",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("network", "today", "advised", "best") else "right")
    for row in rows:
        ends = ["?" if row["predicted"][end] is None else f"{row['predicted'][end]:.3g}" for end in ("low", "high")]
        table.add_row(
            row["network"],
            _setting(row["reference"]),
            _number(row["today"]),
            _setting(row["advised"]),
            _number(row["regret"], 2),
            f"{row['cost_seconds']:.0f}",
            "never" if row["trained_seconds"] is None else f"{row['trained_seconds']:.0f}",
            "–".join(ends) + ("" if _holds(row) else " !"),
            "never" if row["cold_start_seconds"] is None else f"{row['cold_start_seconds']:.0f}",
            _setting(row["best"]),
            f"{row['best_seconds']:.0f}",
        )
    return table


def _setting(setting: Sequence[float] | None) -> str:
    return "none" if setting is None else f"{setting[0]:,.0f} @ {setting[1]:.3g}"


def _number(value: Sequence[Any], digits: int = 0) -> str:
    return "never" if value[0] is None else f"{'≥ ' if value[1] else ''}{value[0]:.{digits}f}"


def shown_figures(rows: Sequence[Row]) -> Table:
    """A row for every promise."""
    table = Table(title=f"What was promised, over {len(rows)} questions")
    for column in ("figure", "measured", "promised", "kept"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, (value, most, kept) in figures(rows).items():
        table.add_row(name, f"{value:.2f}", f"{most:.2f}", "yes" if kept else "no")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NETWORK")
    parser.add_argument("--references", nargs="+", choices=("small", "default", "large"), default=None)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="keep the rows of a run that was stopped, and go on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=160)
    kept = RowByRow("advice-real", resume=arguments.resume)
    done = {(row["network"], row["reference_name"], row["seed"]) for row in kept.rows}
    for seed in range(arguments.seeds):
        for network in arguments.networks:
            if not (CURVES / f"{network}.json.gz").exists():
                console.print(f"{network} is left out: it has no recorded curves yet; make ground-truth-real")
                continue
            task, curves = TASKS[network], Curves.load(network)
            for name, reference in references(task, curves).items():
                if (network, name, seed) in done or (arguments.references and name not in arguments.references):
                    continue
                row = measured(task, reference, curves, seed=seed, name=name)
                kept.add(row)
                console.print(f"{network} from {_setting(reference)}: {row['conclusion']}")
    if kept.rows:
        rows = [judged(row, Curves.load(row["network"])) for row in kept.rows]
        console.print(shown(rows), shown_figures(rows), machine())
        console.print(f"Kept in {keep('advice-real', rows)}")


if __name__ == "__main__":
    main()

"""Whether the race's law foretells learning curves: recorded to the end, cut off on the way, and forecast from there.

For each workload three learning rates a factor 2 apart are trained at three batch sizes far beyond the targets, and
evaluated where a race would, with averaged weights ("planned") and as the weights stand ("raw"). Then each curve is cut
off at 1/16 … 1 of what the middle batch size needs for a target. From what is left, with the rate that is best there,
the law is fitted as in the race, and asked for the examples that each batch size needs. Held against what they did
need: the median's error in e-folds, and whether the interval of 90% of one more run holds it.

    python benchmarks/forecasts.py [--workloads digits …]
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from batchscope import Plan
from batchscope.advice.forecast import predicted
from batchscope.advice.heat import FIRST_UPDATES, PLACE_RATIO
from batchscope.advice.judge import Judge
from batchscope.advice.outlook import find_outlook
from batchscope.fit.learning_curve import Curve
from batchscope.records import CurvePoint, Goal
from batchscope.schedule import learning_rate_exponent
from batchscope.training import Prepared
from batchscope.training.replicas import Replicas
from cases import keep, machine
from workloads import TASKS

HORIZONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
LEAST_POINTS = 3
FACTORS = (0.5, 1.0, 2.0)
JUDGED_BY = 2048


class Case(NamedTuple):
    """What is recorded of a workload, and which targets are asked for."""

    batch_sizes: tuple[int, ...]
    examples: int
    targets: tuple[float, ...]
    # Best about here at the middle batch size.
    learning_rate: float


CASES = {
    "digits": Case((16, 64, 256), 30_000, (0.93, 0.95, 0.97), 0.15),
    "regression": Case((32, 128, 512), 400_000, (0.97, 0.98, 0.985, 0.987), 8e-3),
    "fashion-mlp": Case((16, 64, 256), 250_000, (0.85, 0.86, 0.87, 0.88), 1.4e-3),
    "fashion": Case((16, 64, 256), 120_000, (0.86, 0.88, 0.895), 0.025),
}


class Recorded(NamedTuple):
    """One run: (examples, loss, score) at every evaluation, both ways."""

    batch_size: int
    planned: list[tuple[int, float, float]]
    raw: list[tuple[int, float, float]]


def _next_place(batch_size: int, examples: int) -> int:
    return max(FIRST_UPDATES * batch_size, JUDGED_BY // 2, math.ceil(PLACE_RATIO * examples))


def _note(runs: Sequence[Recorded], k: int, point: CurvePoint) -> None:
    runs[k].planned.append((point.examples, point.validation_loss, point.score))


def record(name: str) -> list[Recorded]:
    """Train all runs of a case."""
    case, prepared = CASES[name], Prepared(TASKS[name].make(), torch.device("cpu"))
    workload, judge = prepared.workload, Judge(prepared, JUDGED_BY)
    exponent = learning_rate_exponent(workload.optimizer(workload.model().parameters(), 1.0))
    found = []
    for size in case.batch_sizes:
        rates = [case.learning_rate * (size / case.batch_sizes[1]) ** exponent * factor for factor in FACTORS]
        runs = [Recorded(size, [], []) for _ in rates]
        stack = Replicas(
            prepared,
            [Plan(batch_size=size, learning_rate=rate, examples=case.examples, averaging=8.0) for rate in rates],
            [0] * len(rates),
            next_place=partial(_next_place, size),
            validation=judge.data,
            on_evaluation=partial(_note, runs),
        )
        going = True
        while going:
            going = stack.advance()
            for k, (loss, score) in stack.as_they_stand().items():
                runs[k].raw.append((runs[k].planned[-1][0], loss, score))
        found += [Recorded(size, [p for p in run.planned if p[0]], run.raw) for run in runs]
        print(f"{name} at batch size {size}: recorded", flush=True)
    return found


def needed(points: Sequence[tuple[int, float, float]], target: float) -> float:
    """Examples at which a curve crosses a target, between evaluations on a straight line over log examples."""
    for number, (examples, _, score) in enumerate(points):
        if score >= target:
            if number == 0:
                return float(examples)
            before, _, low = points[number - 1]
            share = (target - low) / (score - low)
            return math.exp((1 - share) * math.log(before) + share * math.log(examples))
    return math.inf


def forecasts(name: str, runs: Sequence[Recorded], way: str, target: float) -> list[dict[str, Any]]:
    """What is foretold from every horizon, and what came."""
    sizes = CASES[name].batch_sizes
    truth = {b: min(needed(getattr(run, way), target) for run in runs if run.batch_size == b) for b in sizes}
    rows: list[dict[str, Any]] = []
    if not math.isfinite(truth[sizes[1]]):
        return rows
    for horizon in HORIZONS:
        cut = []
        for size in sizes:
            seen = [
                [point for point in getattr(run, way) if point[0] <= 1.01 * horizon * truth[sizes[1]]]
                for run in runs
                if run.batch_size == size
            ]
            known = [points for points in seen if len(points) >= LEAST_POINTS]
            if known:
                cut.append((size, min(known, key=lambda points: points[-1][1])))
        losses, scores = (
            [Curve(size, tuple(float(p[0]) for p in own), tuple(sign * p[i] for p in own)) for size, own in cut]
            for i, sign in ((1, 1.0), (2, -1.0))
        )
        outlook = find_outlook(Goal("target", target), losses, scores, sizes, float) if len(cut) > 1 else None
        for size in sizes:
            if outlook is None or not math.isfinite(truth[size]):
                continue
            # A "second" an example: the time of an update is its batch size.
            interval, _ = predicted(outlook, size, 0.0)
            value = math.inf if interval.value is None else interval.value
            low, high = interval.low or 0.0, math.inf if interval.high is None else interval.high
            rows.append(
                {
                    "workload": name,
                    "way": way,
                    "target": target,
                    "horizon": horizon,
                    "batch_size": size,
                    "needed": truth[size],
                    "error": math.log(value / truth[size]) if math.isfinite(value) else None,
                    "held": low <= truth[size] <= high,
                    "width": math.log(high / low) if low and math.isfinite(high) else None,
                }
            )
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for every horizon, and for every workload and way."""
    table = Table(title="Forecasts of the examples to a target, in e-folds; intervals of 90%")
    for column in ("", "forecasts", "median error", "its size", "held", "width", "without an upper end"):
        table.add_column(column, justify="right" if column else "left")
    lines = [(f"from {h:g} of the way", [r for r in rows if r["horizon"] == h]) for h in HORIZONS]
    lines += [
        (f"{name}, {way}", [r for r in rows if r["workload"] == name and r["way"] == way])
        for name in CASES
        for way in ("planned", "raw")
    ]
    lines.append(("from a quarter of the way on, planned", late(rows)))
    for label, own in lines:
        if not own:
            continue
        errors = [math.inf if r["error"] is None else r["error"] for r in own]
        widths = [math.inf if r["width"] is None else r["width"] for r in own]
        table.add_row(
            label,
            str(len(own)),
            f"{statistics.median(errors):+.2f}",
            f"{statistics.median(map(abs, errors)):.2f}",
            f"{statistics.fmean(r['held'] for r in own):.0%}",
            f"{statistics.median(widths):.2f}",
            f"{np.mean(np.isinf(widths)):.0%}",
        )
    return table


def late(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that an advice is made of: plans, after a quarter of a training run."""
    return [row for row in rows if row["way"] == "planned" and row["horizon"] >= 0.25]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=CASES, default=list(CASES), metavar="WORKLOAD")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in arguments.workloads:
        runs = record(name)
        for way in ("planned", "raw"):
            for target in CASES[name].targets:
                rows += forecasts(name, runs, way, target)
    console = Console(width=130)
    console.print(shown(rows))
    console.print(machine())
    if set(arguments.workloads) == set(CASES):
        console.print(f"Kept in {keep('forecasts', rows)}")


if __name__ == "__main__":
    main()

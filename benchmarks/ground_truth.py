"""The ground truth that the advice is judged by: examples to the target over batch sizes, learning rates and seeds.

With one seed, a sweep searches the learning rates of every batch size, from the workload's own outwards until the best
has a worse one on either side. Then the five rates a factor √2 apart about that one are trained with all seeds and
without pruning, and further ones until those at both ends need a good deal more examples than the best. In the end the
batch sizes half and twice as large as the one that takes the least time here are added. All of it at constant rates.
Examples to a target depend on no clock, so other work may go on beside it; what is finished is kept in
``build/ground-truth``, and a build that was stopped goes on from there.

    python benchmarks/ground_truth.py [--workloads digits regression …] [--processes 1]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import batchscope as bs
from batchscope.records import Sweep, SweepTrial
from ground_truth_table import GroundTruth, RateRow, SizeRow
from workloads import TASKS, Task

STORES = Path(__file__).parents[1] / "build" / "ground-truth"
# Rates about the one that the search with one seed has found; and further ones until an end needs so much more.
STEP, BESIDE, MOST_WIDENINGS = math.sqrt(2), 2, 8
CLEARLY_WORSE = 1.15
# A run is given up at so many times what the search needed: its rate is far from the best then.
GIVEN_UP = 4.0
# Batch sizes are timed this long each: enough to see which is about the fastest.
TIMING_SECONDS = 1.0


def build(task: Task, processes: int | None) -> GroundTruth:
    """The table of one workload, made or gone on with.

    Raises:
        SystemExit: It was interrupted, or the target is reached nowhere.
    """
    workload = task.make()
    rows = {size: _row(task, workload, size, processes) for size in task.batch_sizes}
    reached = [size for size, row in rows.items() if row is not None]
    if len(reached) < 2:
        raise SystemExit(f"{task.name}: {task.target} was reached at {len(reached)} batch sizes; choose another target")
    times = bs.step_times(workload, batch_sizes=reached, seconds=TIMING_SECONDS * len(reached), device="cpu")
    seconds = {
        point.batch_size: row.examples / point.batch_size * point.step_seconds.value
        for point in times.points
        if (row := rows[point.batch_size]) is not None and point.step_seconds.value is not None
    }
    best = min(seconds, key=lambda size: seconds[size])
    for size in (best // 2, 2 * best):
        if size not in rows and 1 <= size <= workload.training_examples:
            rows[size] = _row(task, workload, size, processes)
    return GroundTruth(
        workload=task.name,
        target=task.target,
        evaluate_every_examples=task.evaluate_every,
        training_examples=workload.training_examples,
        sizes=tuple(row for _, row in sorted(rows.items()) if row is not None),
        provenance=_provenance(task, times.provenance),
    )


def _row(task: Task, workload: bs.Workload, batch_size: int, processes: int | None) -> SizeRow | None:
    """One batch size; None where the target is not reached."""
    searched = _swept(task, workload, batch_size, processes, seeds=1, examples=task.budget_examples)
    line = searched.best[0]
    if line.learning_rate is None or not line.reached or line.examples_to_target.value is None:
        return None
    budget = round(GIVEN_UP * line.examples_to_target.value)
    low, high = -BESIDE, BESIDE
    for _ in range(MOST_WIDENINGS):
        found = _swept(
            task,
            workload,
            batch_size,
            processes,
            seeds=task.seeds,
            examples=budget,
            prune=False,
            learning_rates=[line.learning_rate * STEP**k for k in range(low, high + 1)],
        )
        row = SizeRow(batch_size, _rates(found.trials))
        near = [end.ended != "missed" and end.mean.value < CLEARLY_WORSE * row.examples for end in row.ends]
        if not any(near):
            return row
        low, high = low - near[0], high + near[1]
    raise SystemExit(f"{task.name}: at batch size {batch_size} no best rate was found")


def _swept(task: Task, workload: bs.Workload, batch_size: int, processes: int | None, **keywords: Any) -> Sweep:
    kind = "search" if "learning_rates" not in keywords else "grid"
    print(f"{task.name} at batch size {batch_size}: {kind}", file=sys.stderr, flush=True)
    STORES.mkdir(parents=True, exist_ok=True)
    found = bs.sweep(
        workload,
        [batch_size],
        target=task.target,
        evaluate_every=task.evaluate_every,
        store=STORES / f"{task.name}-{batch_size}-{kind}.db",
        processes=processes,
        time_updates=False,
        device="cpu",
        **keywords,
    )
    if found.interrupted:
        raise SystemExit(f"{task.name}: {found.error or 'stopped'}; the next call goes on from here")
    return found


def _rates(trials: Sequence[SweepTrial]) -> tuple[RateRow, ...]:
    rates = sorted({trial.learning_rate for trial in trials})
    return tuple(_rate(rate, [trial for trial in trials if trial.learning_rate == rate]) for rate in rates)


def _rate(rate: float, trials: Sequence[SweepTrial]) -> RateRow:
    """Raises SystemExit where a trial failed: its examples would be missing from the mean."""
    failed = [trial for trial in trials if trial.outcome not in ("reached", "finished", "diverged")]
    if failed:
        raise SystemExit(f"a trial ended {failed[0].outcome}: {failed[0].message}")
    outcomes = {trial.outcome for trial in trials}
    ended = "diverged" if "diverged" in outcomes else "missed" if "finished" in outcomes else "reached"
    return RateRow(rate, ended, tuple(trial.examples_to_target or trial.examples for trial in trials))


def _provenance(task: Task, of_times: Any) -> dict[str, Any]:
    return {
        **dataclasses.asdict(of_times),
        "command": f"python benchmarks/ground_truth.py --workloads {task.name}",
        "seeds": task.seeds,
        "budget_examples": task.budget_examples,
    }


def shown(truth: GroundTruth) -> Table:
    """A row for every batch size."""
    table = Table(title=f"{truth.workload}: examples to {truth.target:g} ({truth.training_examples:,} to train on)")
    for column in ("batch", "best rate", "examples", "updates", "half the rate", "twice", "a run's spread", "misfit"):
        table.add_column(column, justify="right")
    for row in truth.sizes:
        beside = [row.at(factor) for factor in (0.5, 2.0)]
        table.add_row(
            f"{row.batch_size:,}",
            f"{row.best_rate:.3g}",
            f"{row.examples:,.0f}",
            f"{row.examples / row.batch_size:,.0f}",
            *(f"{'≥ ' if value.at_least else ''}{value.value / row.examples:.2f}" for value in beside),
            f"{row.spread:.1%}",
            f"{row.misfit:.1%}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=TASKS, default=list(TASKS), metavar="WORKLOAD")
    parser.add_argument("--processes", type=int, default=None, help="trials at once; one a core unless said")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110)
    for name in arguments.workloads:
        truth = build(TASKS[name], arguments.processes)
        console.print(shown(truth))
        console.print(f"Kept in {truth.save()}")


if __name__ == "__main__":
    main()

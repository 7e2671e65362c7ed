"""Whether every row of a comparison has the rate that it deserves: half and twice its rate, with the row's own seeds.

``bs.compare`` chooses a rate for each row. Here every row is trained at half and at twice that rate too, from the same
seeds, so that the runs are paired. A row passes if neither brings its mean final loss down by more than the half-width
of the row's own 95% interval. The paired gain with its interval stands beside it, and what the search cost: runs, as
many budgets as they add up to, and seconds.

    python benchmarks/fair_compare.py [--quick] [--workloads digits …] [--seeds 5]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import batchscope as bs
from batchscope.fit import mean_interval
from batchscope.records import Comparison, ComparisonRow, Interval
from batchscope.training import Prepared, Run
from cases import keep
from workloads import TASKS

PAIRS = {
    "digits": ((8, 4096), (32, 1024), (128, 256), (512, 64)),
    "regression": ((16, 5120), (128, 640), (1024, 80)),
}
FACTORS = (0.5, 2.0)
QUICK_SHARE = 8


def gains(prepared: Prepared, record: Comparison, row: ComparisonRow, factor: float) -> Interval:
    """What a row's final loss comes down by at another rate, paired over seeds; minus infinity where one diverged."""
    differences = []
    for run in record.runs_of(row):
        plan = replace(run.plan, learning_rate=factor * row.learning_rate)
        other = Run(
            prepared,
            plan,
            seed=run.seed,
            evaluate_every=row.examples,
            keep_best_weights=False,
            evaluate_training=False,
            measure_memory=False,
        )()
        if run.final_loss is None:
            continue
        if other.final_loss is None:
            return Interval(-float("inf"), None, None)
        differences.append(run.final_loss - other.final_loss)
    return mean_interval(differences)


def checked(prepared: Prepared, name: str, record: Comparison) -> list[dict[str, Any]]:
    """A line for each row of a comparison."""
    lines = []
    for row in record.rows:
        search, loss = record.search_of(row), row.loss
        if search is None or loss.value is None or loss.high is None:
            raise RuntimeError(f"{name}, batch {row.batch_size}: no search, or fewer than two runs that finished")
        width = loss.high - loss.value
        found = {factor: gains(prepared, record, row, factor) for factor in FACTORS}
        lines.append(
            {
                "workload": name,
                "batch_size": row.batch_size,
                "iterations": row.iterations,
                "learning_rate": row.learning_rate,
                "interpolated": search.interpolated,
                "loss": loss.value,
                "half_width": width,
                "gains": {str(factor): [gain.value, gain.low, gain.high] for factor, gain in found.items()},
                "fair": all(gain.value is not None and gain.value <= width for gain in found.values()),
                "search_runs": len(search.trials),
                "search_budgets": search.examples / row.examples,
                "search_seconds": search.seconds,
            }
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=PAIRS, default=list(PAIRS), metavar="WORKLOAD")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="an eighth of the budgets, nothing kept: a dry run")
    arguments = parser.parse_args()
    console = Console(width=130)
    rows: list[dict[str, Any]] = []
    for name in arguments.workloads:
        workload = TASKS[name].make()
        pairs = [(size, updates // QUICK_SHARE if arguments.quick else updates) for size, updates in PAIRS[name]]
        record = bs.compare(workload, pairs, seeds=arguments.seeds, device="cpu")
        rows += checked(Prepared(workload, torch.device("cpu")), name, record)
    table = Table(title="Final loss of each row, and what it comes down by at half and at twice its rate")
    for column in ("workload", "batch × updates", "rate", "loss", "half the rate", "twice the rate", "search", "fair"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for row in rows:
        table.add_row(
            row["workload"],
            f"{row['batch_size']} × {row['iterations']}",
            f"{row['learning_rate']:.3g}" + ("°" if row["interpolated"] else ""),
            f"{row['loss']:.4f} ± {row['half_width']:.4f}",
            *(_gain(*row["gains"][str(factor)]) for factor in FACTORS),
            f"{row['search_runs']} runs, {row['search_budgets']:.1f} budgets, {row['search_seconds']:.1f} s",
            "yes" if row["fair"] else "NO",
        )
    console.print(table)
    console.print("° interpolated between rates that the search trained. A gain above the ± of the loss is not fair.")
    if not arguments.quick:
        console.print(f"Kept in {keep('fair_compare', rows)}")
    return 0 if all(row["fair"] for row in rows) else 1


def _gain(value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "diverges" if value == -float("inf") else f"{value:+.4f}"
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    sys.exit(main())

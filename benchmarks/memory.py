"""Peak resident memory of a run with batchscope over that of a hand-written loop, each in a process of its own.

python benchmarks/memory.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cases import case, keep, machine, median_and_spread

CASES = (("digits", 32, 2000), ("digits", 2048, 200), ("fashion", 64, 200), ("fashion", 1024, 20), ("text", 32, 60))


def run_one(kind: str, name: str, batch_size: int, iterations: int) -> int:
    """Train in this process; its peak resident memory in bytes."""
    workload = case(name)
    if kind == "hand":
        from handwritten import train_by_hand

        train_by_hand(workload, batch_size, iterations)
    else:
        import batchscope as bs

        plan = bs.Plan(batch_size=batch_size, learning_rate=workload.learning_rate, iterations=iterations)
        # One evaluation at the start and one at the end, which the hand-written loop does not make.
        bs.train(workload, plan, evaluate_every=batch_size * iterations)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=4, metavar=("KIND", "WORKLOAD", "BATCH", "ITERATIONS"))
    arguments = parser.parse_args()
    if arguments.one:
        kind, name, batch_size, iterations = arguments.one
        print(run_one(kind, name, int(batch_size), int(iterations)))
        return
    table = Table(title="Memory: peak resident memory of a process that trains, over a hand-written loop's")
    for column in ("workload", "batch", "hand, MiB", "batchscope, MiB", "ratio (least–most)"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    rows: list[dict[str, Any]] = []
    for name, batch_size, iterations in CASES:
        peaks: dict[str, list[int]] = {"hand": [], "batchscope": []}
        for _ in range(arguments.rounds):
            for kind, into in peaks.items():
                command = [sys.executable, __file__, "--one", kind, name, str(batch_size), str(iterations)]
                done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
                into.append(int(done.stdout.split()[-1]))
        ratios = [ours / hand for ours, hand in zip(peaks["batchscope"], peaks["hand"], strict=True)]
        rows.append({"workload": name, "batch_size": batch_size, "iterations": iterations, "ratios": ratios, **peaks})
        table.add_row(
            name,
            str(batch_size),
            *(f"{statistics.median(peaks[kind]) / 2**20:,.0f}" for kind in ("hand", "batchscope")),
            median_and_spread(ratios),
        )
    console = Console(width=120)
    console.print(table)
    console.print(machine())
    console.print(f"Kept in {keep('memory', rows)}")


if __name__ == "__main__":
    main()

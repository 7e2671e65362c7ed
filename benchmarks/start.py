"""Seconds that starting takes: imports and the command's help, each in a process of its own, beside torch alone.

The cases take turns within a round, and the ratio over ``import torch`` is taken within the round, so that a drift of
the machine falls on all of them. A round before the first is not counted: it fills the page cache. Processor seconds
stand beside those of the clock, since other programs on the machine lengthen the latter.

    python benchmarks/start.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cases import keep, machine, median_and_spread

SOURCES = Path(__file__).parents[1] / "src"
TORCH = "import torch"
CASES: dict[str, list[str]] = {
    "python alone": ["-c", "pass"],
    TORCH: ["-c", TORCH],
    "import batchscope": ["-c", "import batchscope"],
    "import batchscope, and bs.train": ["-c", "import batchscope as bs; bs.Workload, bs.Plan, bs.train"],
    "import batchscope, and bs.GradientNoise": ["-c", "import batchscope as bs; bs.GradientNoise"],
    "import batchscope, and bs.advise": ["-c", "import batchscope as bs; bs.Workload, bs.advise"],
    "batchscope --help": ["-m", "batchscope", "--help"],
    "batchscope advise --help": ["-m", "batchscope", "advise", "--help"],
    "batchscope report --help": ["-m", "batchscope", "report", "--help"],
}


def seconds_of(arguments: list[str]) -> tuple[float, float]:
    """Seconds of one Python process by the clock, from its start to its end, and of the processor."""
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    taken, after = time.perf_counter() - began, os.times()
    return taken, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for i in range(rounds + 1):
        for name, arguments in CASES.items():
            taken = seconds_of(arguments)
            if i:
                found[name].append(taken)
    table = Table(title=f"Starting, {rounds} rounds: median (least–most)")
    for column in ("what", "seconds", "over import torch", "processor seconds", "over import torch"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = []
    for name in CASES:
        row: dict[str, Any] = {"what": name}
        for place, quantity in enumerate(("seconds", "processor_seconds")):
            row[quantity] = [run[place] for run in found[name]]
            row[f"{quantity}_ratios"] = [
                run[place] / torch[place] for run, torch in zip(found[name], found[TORCH], strict=True)
            ]
        rows.append(row)
        table.add_row(name, *(median_and_spread(values) for key, values in row.items() if key != "what"))
    console = Console(width=150)
    console.print(table)
    console.print(machine())
    console.print(f"Kept in {keep('start', rows)}")


if __name__ == "__main__":
    main()

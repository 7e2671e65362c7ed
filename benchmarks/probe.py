"""Probing twice: whether the knee and the cost per example come out alike, and how long a probe takes.

python benchmarks/probe.py [--workloads digits,fashion,text] [--rounds 2]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import batchscope as bs
from batchscope.records import Probe
from cases import keep, machine

CLOSE = 1.1


def probed(name: str, folder: Path, number: int) -> Probe:
    """One probe in a process of its own, with the command that a person would use."""
    path = folder / f"{name}-{number}.json"
    command = [sys.executable, "-m", "batchscope", "probe", name, "--seed", str(number), "--json", str(path), "--quiet"]
    subprocess.run(command, check=True)
    record = bs.load(path)
    if not isinstance(record, Probe):
        raise TypeError(f"{path} holds no probe")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="digits,fashion,text")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    table = Table(title=f"{arguments.rounds} probes of the same workload, each in a process of its own")
    for column in ("workload", "probe, s", "knee", "ratio", "µs an example", "ratio", "worth having"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.workloads.split(","):
            found = [probed(name, Path(folder), number) for number in range(arguments.rounds)]
            knees = [probe.step_time.law.knee.value for probe in found]
            each = [probe.step_time.law.seconds_per_example.value for probe in found]
            row = {
                "workload": name,
                "seconds": [probe.seconds for probe in found],
                "knee": knees,
                "seconds_per_example": each,
                "worth_having": [probe.limits.worth_having.value for probe in found],
                "knee_ratio": most_ratio(knees),
                "seconds_per_example_ratio": most_ratio(each),
                "conclusions": [probe.limits.conclusion for probe in found],
            }
            rows.append(row)
            table.add_row(
                name,
                f"{statistics.median(row['seconds']):.1f}",
                ", ".join("–" if knee is None else f"{knee:.3g}" for knee in knees),
                shown(row["knee_ratio"]),
                ", ".join("–" if seconds is None else f"{1e6 * seconds:.3g}" for seconds in each),
                shown(row["seconds_per_example_ratio"]),
                ", ".join("–" if size is None else f"{size:.3g}" for size in row["worth_having"]),
            )
    console = Console(width=120)
    console.print(table)
    console.print(f"Aimed at: ratios of at most {CLOSE}, and a probe of fashion in at most 60 s.")
    console.print(machine())
    console.print(f"Kept in {keep('probe', rows)}")


def most_ratio(values: list[float | None]) -> float | None:
    """The largest ratio of two of them; None where one is unknown."""
    known = [value for value in values if value]
    if len(known) < len(values) or len(known) < 2:
        return None
    return max(max(a / b, b / a) for a, b in itertools.combinations(known, 2))


def shown(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3f}"


if __name__ == "__main__":
    main()

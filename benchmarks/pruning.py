"""What pruning saves, and whether it finds the same learning rates: bs.sweep with it and without, on the same trials.

python benchmarks/pruning.py [--cases digits ...] [--rates given search] [--quick]

"given": eight learning rates a factor 2 apart about the rescaled reference, all with three seeds. "search": the rates
that the search asks for, which goes on from what it sees and may look elsewhere without pruning. A best rate is as good
as another where its examples to the target are within 2% of the other's; both are taken from the sweep without pruning
where that has tried it with as many seeds.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import batchscope as bs
from batchscope.records import Sweep, SweepBest
from batchscope.study.arguments import reference_rate
from batchscope.workload.fashion import fashion
from cases import keep, machine

SEEDS = 3
FACTORS = tuple(2.0**k for k in range(-4, 4))
AS_GOOD = 1.02

# Batch sizes, target and budget; evaluations are so frequent that a tenth of what the best rates need is told apart.
CASES: dict[str, tuple[tuple[int, ...], float, int, int]] = {
    "digits": ((8, 32, 128, 512), 0.95, 60_000, 360),
    "fashion-mlp": ((32, 128, 512), 0.85, 300_000, 6_000),
}


def workload_of(name: str) -> bs.Workload:
    return fashion(model="mlp") if name == "fashion-mlp" else bs.load_workload(name)


def swept(name: str, rates: str, *, prune: bool, quick: bool) -> list[Sweep]:
    """One sweep of all batch sizes; with given rates one for each, as references differ."""
    workload = workload_of(name)
    sizes, target, budget, every = CASES[name]
    sizes = sizes[1:3] if quick else sizes

    def sweep(sizes: tuple[int, ...], learning_rates: Any) -> Sweep:
        found = bs.sweep(
            workload,
            sizes,
            learning_rates=learning_rates,
            seeds=1 if quick else SEEDS,
            target=target,
            examples=budget // 4 if quick else budget,
            evaluate_every=every,
            prune=prune,
            time_updates=False,
            progress=True,
        )
        if found.interrupted:
            raise SystemExit(130)  # half a sweep is nothing to compare with
        return found

    if rates == "search":
        return [sweep(sizes, "search")]
    return [sweep((size,), [reference_rate(workload, size) * factor for factor in FACTORS]) for size in sizes]


def needed(sweep: Sweep, batch_size: int, rate: float | None) -> float:
    """Examples to the target at a rate, geometric mean over seeds; infinite where one of them missed or was pruned."""
    runs = [t for t in sweep.trials if t.batch_size == batch_size and t.learning_rate == rate]
    if len(runs) < len(sweep.seeds) or any(run.examples_to_target is None for run in runs):
        return math.inf
    return math.exp(math.fsum(math.log(max(1, run.examples_to_target or 1)) for run in runs) / len(runs))


def row(case: str, rates: str, pruned: Sweep, whole: Sweep, lines: tuple[SweepBest, SweepBest]) -> dict[str, Any]:
    """A batch size's row."""
    mine, theirs = lines
    size = mine.batch_size
    own = min(needed(whole, size, mine.learning_rate), needed(pruned, size, mine.learning_rate))
    best = needed(whole, size, theirs.learning_rate)
    return {
        "case": case,
        "rates": rates,
        "batch_size": size,
        "examples_pruned": mine.examples_spent,
        "examples_unpruned": theirs.examples_spent,
        "trials_pruned": mine.trials,
        "trials_unpruned": theirs.trials,
        "best_pruned": mine.learning_rate,
        "best_unpruned": theirs.learning_rate,
        "examples_to_target_ratio": own / best if math.isfinite(own) and math.isfinite(best) else None,
    }


def shown(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="Sweeps with pruning and without")
    for column in ("case", "rates", "batch", "examples", "without", "share", "best rate", "without", "its examples"):
        table.add_column(column, justify="left" if column in ("case", "rates") else "right")
    for entry in rows:
        share = entry["examples_pruned"] / entry["examples_unpruned"]
        ratio = entry["examples_to_target_ratio"]
        same = entry["best_pruned"] == entry["best_unpruned"] or (ratio is not None and ratio <= AS_GOOD)
        said = "" if ratio is None else f"{ratio:.3f}"
        table.add_row(
            entry["case"],
            entry["rates"],
            f"{entry['batch_size']:,}",
            f"{entry['examples_pruned']:,}",
            f"{entry['examples_unpruned']:,}",
            f"{share:.0%}",
            *("none" if entry[key] is None else f"{entry[key]:.3g}" for key in ("best_pruned", "best_unpruned")),
            said if same else f"[red]{said or 'differs'}[/red]",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--rates", nargs="+", choices=("given", "search"), default=["given", "search"])
    parser.add_argument("--quick", action="store_true", help="two batch sizes, one seed, a short budget: a dry run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=130)
    rows: list[dict[str, Any]] = []
    for case in arguments.cases:
        for rates in arguments.rates:
            pruned, whole = (swept(case, rates, prune=prune, quick=arguments.quick) for prune in (True, False))
            of_case = [
                row(case, rates, mine, theirs, pair)
                for mine, theirs in zip(pruned, whole, strict=True)
                for pair in zip(mine.best, theirs.best, strict=True)
            ]
            share = sum(r["examples_pruned"] for r in of_case) / sum(r["examples_unpruned"] for r in of_case)
            console.print(
                f"{case}, {rates}: {share:.0%} of the examples, "
                f"{sum(s.total_seconds for s in pruned):.0f} s against {sum(s.total_seconds for s in whole):.0f} s"
            )
            rows += of_case
    shown(rows, console)
    console.print(machine())
    complete = set(arguments.cases) == set(CASES) and len(set(arguments.rates)) == 2
    if complete and not arguments.quick:
        console.print(f"Kept in {keep('pruning', rows)}")


if __name__ == "__main__":
    main()

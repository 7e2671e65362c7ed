"""What the average of the weights reaches, beside cooldowns and the raw weights, at horizons that double.

python benchmarks/averaging.py [--workloads digits ...] [--quick]

One run at a constant rate with plan.averaging gives all horizons at once; every cooldown over the last fifth and every
linear decay is a run of its own, from the beginning. Rates of one workload and batch size are a factor 2 apart. Losses
are means over seeds.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

import batchscope as bs
from batchscope.training.averaging import POWER
from batchscope.training.loop import Prepared, Run
from cases import keep

# Batch size, rates, and the longest horizon in examples.
CASES: dict[str, list[tuple[int, tuple[float, ...], int]]] = {
    "digits": [(16, (0.05, 0.1, 0.2), 16_384), (128, (0.1, 0.2, 0.4), 16_384)],
    "fashion-mlp": [(32, (0.0005, 0.001, 0.002), 131_072), (256, (0.002, 0.004, 0.008), 131_072)],
    "text": [(16, (0.002, 0.004, 0.008), 16_384)],
}
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
SEEDS = {"digits": 4, "fashion-mlp": 2, "text": 1}
COLUMNS = ("raw", "averaged", "cooldown", "linear")


def losses(prepared: Prepared, plan: bs.Plan, horizons: list[int], seed: int) -> list[float]:
    """Validation loss at each horizon, of one run evaluated there."""

    def next_place(examples: int) -> int:
        return next((horizon for horizon in horizons if horizon > examples), horizons[-1])

    run = Run(
        prepared,
        plan,
        seed=seed,
        next_place=next_place,
        keep_best_weights=False,
        evaluate_training=False,
        measure_memory=False,
    )
    return [point.validation_loss for point in run().curve[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=CASES, default=list(CASES), metavar="WORKLOAD")
    parser.add_argument("--quick", action="store_true", help="one seed, an eighth of the horizon: a dry run")
    arguments = parser.parse_args()
    console = Console(width=130)
    rows = []
    table = Table(title="Validation loss: raw weights, their average, a cooldown over the last fifth, a linear decay")
    for column in ("workload", "batch", "rate", "examples", *COLUMNS, "averaged / cooldown"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for name in arguments.workloads:
        prepared = Prepared(bs.load_workload(name), torch.device("cpu"))
        for size, rates, longest in CASES[name]:
            most = longest // 8 if arguments.quick else longest
            horizons = [round(share * most / size) * size for share in SHARES]
            seeds = range(1 if arguments.quick else SEEDS[name])
            for rate in rates:
                plan = bs.Plan(batch_size=size, learning_rate=rate, examples=most)
                found: dict[str, list[list[float]]] = {
                    "raw": [losses(prepared, plan, horizons, seed) for seed in seeds],
                    "averaged": [losses(prepared, replace(plan, averaging=POWER), horizons, seed) for seed in seeds],
                }
                for shape in ("cooldown", "linear"):
                    found[shape] = [
                        [losses(prepared, replace(plan, examples=h, shape=shape), [h], seed)[-1] for h in horizons]
                        for seed in seeds
                    ]
                for i, horizon in enumerate(horizons):
                    means = {key: statistics.fmean(run[i] for run in runs) for key, runs in found.items()}
                    rows.append(
                        {"workload": name, "batch_size": size, "learning_rate": rate, "examples": horizon, **means}
                    )
                    table.add_row(
                        name,
                        str(size),
                        f"{rate:g}",
                        f"{horizon:,}",
                        *(f"{means[key]:.4f}" for key in COLUMNS),
                        f"{means['averaged'] / means['cooldown']:.3f}",
                    )
    console.print(table)
    ratios = [row["averaged"] / row["cooldown"] for row in rows]
    spread = f"{statistics.median(ratios):.3f} in the median, {min(ratios):.3f} to {max(ratios):.3f}"
    console.print(f"Averaged over cooldown: {spread}.")
    if not arguments.quick:
        console.print(f"Kept in {keep('averaging', rows)}")


if __name__ == "__main__":
    main()

"""Updates of trials per second, trained together as replicas over one after the other, on one core or a GPU.

For each workload and batch size the way that batchscope measures to be the fastest for 24 trials (6 learning rates × 4
seeds) is held against separate runs of the same trials, in alternating rounds in one process; the ratio is taken within
the round. On a CPU processor time of one thread counts, since other programs may want the machine too. Evaluation is
left out, and so is the tracing of the step, which is done once for all stacks of a size: what the measurement of the
fastest way takes, tracing included, is given beside it.

    python benchmarks/replicas.py [--device cuda] [--rounds 7] [--workloads digits,…] [--batch-sizes 8,32,128,512]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from batchscope import Plan
from batchscope.training import Prepared, Run
from batchscope.training.meters import Stopwatch
from batchscope.training.replicas import Replicas
from batchscope.training.ways import FastestWay, fastest_way, refusal
from cases import case, keep, machine, median_and_spread

RATES, SEEDS = 6, 4
# Updates of a trial for which the fastest way is chosen: with fewer, less time is spent on finding it out.
CHOSEN_FOR = 1_000


def trials(workload_rate: float, batch_size: int, iterations: int) -> list[tuple[Plan, int]]:
    """The grid: rates below the workload's own by factors of two, so that none diverges, and seeds."""
    rates = [workload_rate / 2**k for k in range(1, RATES + 1)]
    return [
        (Plan(batch_size=batch_size, learning_rate=r, iterations=iterations), s) for s in range(SEEDS) for r in rates
    ]


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        began = time.thread_time()
        action()
        return time.thread_time() - began
    clock = Stopwatch(device)
    clock.start()
    action()
    clock.stop()
    return clock.seconds


def separately(prepared: Prepared, grid: list[tuple[Plan, int]]) -> float:
    """Seconds per update of a trial."""
    spent = 0.0
    for plan, seed in grid:
        run = Run(
            prepared,
            plan,
            seed=seed,
            evaluate_every=plan.budget_examples,
            keep_best_weights=False,
            evaluate_training=False,
            measure_memory=False,
        )
        spent += seconds_of(run, prepared.device)
    return spent / sum(plan.iterations or 0 for plan, _ in grid)


def together(prepared: Prepared, grid: list[tuple[Plan, int]], way: FastestWay) -> float:
    """Seconds per update of a trial."""
    plans, seeds = [plan for plan, _ in grid], [seed for _, seed in grid]
    stack = Replicas(prepared, plans, seeds, evaluate_every=plans[0].budget_examples, in_turn=way.in_turn)
    return seconds_of(stack, prepared.device) / sum(plan.iterations or 0 for plan in plans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="aimed at for each side of a round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workloads", default="digits,fashion-mlp,fashion,text")
    parser.add_argument("--batch-sizes", default="8,32,128,512")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    where = "one core" if device.type == "cpu" else torch.cuda.get_device_name(device)
    table = Table(title=f"Replicas over separate runs, {where} (median of rounds, least–most)")
    for column in ("workload", "batch", "separate, updates/s", "replicas, updates/s", "ratio", "choice", "how"):
        table.add_column(column, justify="left" if column in ("workload", "how") else "right")
    rows = []
    for name in arguments.workloads.split(","):
        prepared = Prepared(case(name), device)
        prepared.validation.indices = prepared.validation.indices[:8]
        for batch_size in map(int, arguments.batch_sizes.split(",")):
            row = _measure(name, prepared, batch_size, arguments)
            rows.append(row)
            table.add_row(
                name,
                str(batch_size),
                f"{row['separate_updates_per_second']:,.0f}",
                f"{row['replicas_updates_per_second']:,.0f}",
                median_and_spread(row["ratios"]),
                f"{row['choice_seconds']:.1f} s",
                row["how"],
            )
    console = Console(width=180)
    console.print(table)
    console.print(machine())
    console.print(f"Kept in {keep('replicas' if device.type == 'cpu' else f'replicas_{device.type}', rows)}")


def _measure(name: str, prepared: Prepared, batch_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    workload = prepared.workload
    reason = refusal(prepared, Plan(batch_size=batch_size, learning_rate=workload.learning_rate / 2, iterations=1))
    if reason is not None:
        raise RuntimeError(f"{name} cannot be stacked: {reason}")
    began = time.perf_counter()
    plan = Plan(batch_size=batch_size, learning_rate=workload.learning_rate / 2, iterations=CHOSEN_FOR)
    way = fastest_way(prepared, plan, RATES * SEEDS)
    choice_seconds = time.perf_counter() - began
    # In turn, a stack of few does what a stack of many does; separate runs are all alike.
    size = min(way.stack_size, 4) if way.in_turn else way.stack_size
    alone = trials(workload.learning_rate, batch_size, _updates(arguments.seconds, way.separate_seconds))[:2]
    stacked = trials(workload.learning_rate, batch_size, _updates(arguments.seconds, way.update_seconds * size))[:size]
    separate: list[float] = []
    replicas: list[float] = []
    if way.replicas:
        together(prepared, stacked, way)  # traces the evaluation
    for number in range(arguments.rounds):
        separate.append(separately(prepared, alone))
        replicas.append(together(prepared, stacked, way) if way.replicas else separate[-1])
        print(f"{name} batch {batch_size} round {number + 1}: {separate[-1] / replicas[-1]:.2f}", flush=True)
    return {
        "workload": name,
        "batch_size": batch_size,
        "replicas": way.replicas,
        "stack_size": way.stack_size,
        "in_turn": way.in_turn,
        "how": way.reason,
        "choice_seconds": choice_seconds,
        "separate_updates_per_second": 1 / statistics.median(separate),
        "replicas_updates_per_second": 1 / statistics.median(replicas),
        "ratios": [one / other for one, other in zip(separate, replicas, strict=True)],
    }


def _updates(seconds: float, per_update: float) -> int:
    return max(3, min(5000, round(seconds / per_update)))


if __name__ == "__main__":
    main()

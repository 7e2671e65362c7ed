"""Whether a batch that grows on the way gets to the target sooner than the best constant one.

From the ground truth's best batch size B with its examples E: constant batches of B/2, B and 2B, against batches that
begin at B/2 or B/4 and double until 2B is reached at E/2, the learning rate following by the optimiser's rule ("rule")
or staying, so that growth replaces its decay ("stated", Smith et al. 2018, arXiv 1711.00489). Each at the best rate of
its first batch size and at √2 times that, with the weights as they stand and with averaged ones. Seconds are updates
times the measured time of an update, so that nothing else on the machine enters; geometric means over seeds.

    python benchmarks/growing.py [--workloads digits …]
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import batchscope as bs
from advice import FIRST_SEED, step_seconds_of
from batchscope.records.schedule import Coupling, Phase, Schedule
from batchscope.training.averaging import POWER
from cases import keep, machine
from ground_truth_table import GroundTruth, Setting
from workloads import TASKS, Task

SEEDS = {"digits": 16, "regression": 8, "fashion-mlp": 3}
RATES = (1.0, math.sqrt(2))
# A run that took so many times the best setting's examples is given up.
GIVEN_UP = 6.0


class Contender(NamedTuple):
    """A way to train."""

    kind: str
    schedule: Schedule
    learning_rate: float


def contenders(truth: GroundTruth, best: Setting) -> list[Contender]:
    """Constant batches and growing ones."""
    size, examples = best.batch_size, next(r.examples for r in truth.sizes if r.batch_size == best.batch_size)
    found = []
    for factor in RATES:
        found += [
            Contender("constant", Schedule((Phase(0, own),)), factor * truth.good_rate(own))
            for own in (size // 2, size, 2 * size)
        ]
        for first in (size // 2, size // 4):
            doublings = round(math.log2(2 * size / first))
            starts = [0, *(round(examples / 2 ** (doublings - k)) for k in range(doublings))]
            phases = tuple(Phase(start, first << k) for k, start in enumerate(starts))
            couplings: tuple[Coupling, ...] = ("rule", "stated")
            found += [
                Contender(f"growing, {coupling}", Schedule(phases, coupling=coupling), factor * truth.good_rate(first))
                for coupling in couplings
            ]
    return found


def seconds_of(schedule: Schedule, examples: float, step_seconds: Callable[[int], float]) -> float:
    """Seconds of updates over so many examples.

    Examples:
        >>> seconds_of(Schedule((Phase(0, 10), Phase(100, 50))), 300, lambda size: 1.0 if size == 10 else 2.0)
        18.0
    """
    ends = [*(phase.start_examples for phase in schedule.phases[1:]), math.inf]
    total = 0.0
    for phase, end in zip(schedule.phases, ends, strict=True):
        total += max(0.0, min(end, examples) - phase.start_examples) / phase.batch_size * step_seconds(phase.batch_size)
    return total


def examples_to_target(
    task: Task, workload: bs.Workload, contender: Contender, most: int, *, averaging: float | None, seed: int
) -> float:
    """Examples until the first evaluation at the target; infinite where there is none."""
    plan = bs.Plan(
        batch_size=contender.schedule.phases[0].batch_size,
        learning_rate=contender.learning_rate,
        examples=most,
        target=task.target,
        schedule=contender.schedule,
        averaging=averaging,
    )
    run = bs.train(workload, plan, seed=seed, evaluate_every=task.evaluate_every)
    return next((point.examples for point in run.curve if point.score >= task.target), math.inf)


def measured(task: Task) -> list[dict[str, Any]]:
    """All contenders of a workload."""
    truth, workload = GroundTruth.load(task.name), task.make()
    sizes = sorted(
        {*truth.batch_sizes, *(2 * size for size in truth.batch_sizes if 2 * size <= workload.training_examples)}
    )
    times = bs.step_times(workload, batch_sizes=sizes, seconds=1.0 * len(sizes), device="cpu")
    step_seconds = step_seconds_of(times)
    best = truth.best(step_seconds)
    most = round(GIVEN_UP * next(row.examples for row in truth.sizes if row.batch_size == best.batch_size))
    rows = []
    for averaging in (None, POWER):
        for contender in contenders(truth, best):
            taken = []
            for seed in range(SEEDS[task.name]):
                found = examples_to_target(task, workload, contender, most, averaging=averaging, seed=FIRST_SEED + seed)
                taken.append(seconds_of(contender.schedule, found, step_seconds))
            reached = all(map(math.isfinite, taken))
            logs = [math.log(seconds) for seconds in taken] if reached else []
            rows.append(
                {
                    "workload": task.name,
                    "averaged": averaging is not None,
                    "kind": contender.kind,
                    "phases": [(phase.start_examples, phase.batch_size) for phase in contender.schedule.phases],
                    "learning_rate": contender.learning_rate,
                    "reached": sum(map(math.isfinite, taken)),
                    "seeds": len(taken),
                    "seconds": math.exp(statistics.fmean(logs)) if reached else None,
                    "error": statistics.stdev(logs) / math.sqrt(len(logs)) if reached else None,
                }
            )
            print(rows[-1], flush=True)
    return rows


def shown(rows: list[dict[str, Any]]) -> Table:
    """The best of each kind, beside the best constant one."""
    table = Table(title="Seconds to the target over the best constant batch's, the best of each kind")
    for column in ("workload", "weights", "kind", "batch sizes", "rate", "seconds", "over constant"):
        table.add_column(column, justify="right" if column in ("rate", "seconds", "over constant") else "left")
    for name in dict.fromkeys(row["workload"] for row in rows):
        for averaged in (False, True):
            own = [r for r in rows if (r["workload"], r["averaged"]) == (name, averaged) and r["seconds"] is not None]
            least = {
                kind: min((r for r in own if r["kind"] == kind), key=lambda r: r["seconds"])
                for kind in dict.fromkeys(r["kind"] for r in own)
            }
            for kind, row in least.items():
                base = least["constant"]
                error = math.hypot(row["error"], base["error"])
                ratio = row["seconds"] / base["seconds"]
                table.add_row(
                    name,
                    "averaged" if averaged else "as they stand",
                    kind,
                    " ".join(f"{size:,}" for _, size in row["phases"]),
                    f"{row['learning_rate']:.3g}",
                    f"{row['seconds']:.3g}",
                    "" if kind == "constant" else f"{ratio:.2f} ± {ratio * error:.2f}",
                )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=SEEDS, default=list(SEEDS), metavar="WORKLOAD")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in arguments.workloads for row in measured(TASKS[name])]
    console = Console(width=130)
    console.print(shown(rows))
    console.print(machine())
    if set(arguments.workloads) == set(SEEDS):
        console.print(f"Kept in {keep('growing', rows)}")


if __name__ == "__main__":
    main()

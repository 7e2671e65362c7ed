"""Record full grids of real runs, learning rate × seed at several batch sizes, for tests/data.

python benchmarks/record_grids.py [--cases digits ...]

Every run goes through its whole budget, so that a sweep with any target, with pruning or without, or a search for the
rate, can be replayed on the file in milliseconds. Rates are the scaled reference times powers of √2. A run is kept as
the examples of its evaluations, its scores as numbers of right answers, its losses in thousandths.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import track
from torch import Tensor

from batchscope.records import Plan, TrainResult
from batchscope.schedule.scaling import learning_rate_exponent
from batchscope.training.loop import Prepared, Run
from batchscope.workload import Workload, load_workload
from batchscope.workload.fashion import fashion

FOLDER = Path(__file__).parent.parent / "tests" / "data"
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is recorded into one file.

    Attributes:
        workload: Name of the workload.
        budget: Examples of every run.
        shape: The rate over the budget.
        evaluations: How many there are of each.
        rates: For every batch size, the least and the largest power of √2 that the scaled reference is multiplied by.
    """

    workload: str
    budget: int
    shape: Literal["constant", "linear"]
    evaluations: int
    rates: dict[int, tuple[int, int]]


CASES = {
    "digits": Case("digits", 28_740, "constant", 60, {4: (-8, 8), 16: (-8, 8), 64: (-8, 8), 256: (-9, 7)}),
    "digits_1024": Case("digits", 57_480, "constant", 56, {1024: (-14, 3)}),
    "digits_linear": Case("digits", 28_740, "linear", 40, {16: (-8, 8), 256: (-10, 6)}),
    "fashion_mlp": Case("fashion-mlp", 61_440, "constant", 40, {16: (-8, 8), 64: (-8, 8), 256: (-8, 8)}),
    "fashion_mlp_linear": Case("fashion-mlp", 30_720, "linear", 40, {64: (-8, 8)}),
}


def workload_of(name: str) -> Workload:
    """The workload; Fashion-MNIST with its first 4,096 examples to train on and 1,000 to validate."""
    if name != "fashion-mlp":
        return load_workload(name)
    workload = fashion(model="mlp")

    def first(tensors: Any, count: int) -> tuple[Tensor, ...]:
        return tuple(tensor[:count].clone() for tensor in tensors)

    return dataclasses.replace(workload, train=first(workload.train, 4096), validation=first(workload.validation, 1000))


def thousandths(loss: float) -> int:
    """A loss as the file holds it: whole thousandths, to three digits, at most a million of them."""
    return round(float(f"{1000 * min(loss, 1000.0):.3g}")) if math.isfinite(loss) else 1_000_000


def kept(result: TrainResult, validation_examples: int) -> dict[str, Any]:
    """A run as the file holds it."""
    return {
        "outcome": result.outcome,
        "examples": result.examples,
        "right": [round(point.score * validation_examples) for point in result.curve],
        "loss": [thousandths(point.validation_loss) for point in result.curve],
    }


def record(name: str) -> Path:
    case = CASES[name]
    workload = workload_of(case.workload)
    prepared = Prepared(workload, torch.device("cpu"))
    every = case.budget // case.evaluations
    exponent = learning_rate_exponent(workload.optimizer([torch.nn.Parameter(torch.zeros(1))], 1.0))
    grids = []
    for batch_size, (low, high) in case.rates.items():
        start = workload.learning_rate * (batch_size / workload.batch_size) ** exponent
        runs: dict[str, list[dict[str, Any]]] = {}
        places: list[int] = []
        for k in track(range(low, high + 1), description=f"{name}, batch {batch_size}"):
            plan = Plan(
                batch_size=batch_size, learning_rate=start * 2 ** (k / 2), examples=case.budget, shape=case.shape
            )
            results = [
                Run(
                    prepared,
                    plan,
                    seed=seed,
                    evaluate_every=every,
                    keep_best_weights=False,
                    evaluate_training=False,
                    measure_memory=False,
                )()
                for seed in SEEDS
            ]
            runs[str(k)] = [kept(result, workload.validation_examples) for result in results]
            places = max([places, *([point.examples for point in r.curve] for r in results)], key=len)
        grids.append({"batch_size": batch_size, "start": start, "examples": places, "runs": runs})
    path = FOLDER / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    whole = {
        "workload": case.workload,
        "shape": case.shape,
        "budget": case.budget,
        "seeds": SEEDS,
        "validation_examples": workload.validation_examples,
        "grids": grids,
    }
    path.write_text(json.dumps(whole, separators=(",", ":")) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases:
        path = record(name)
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

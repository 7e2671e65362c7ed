"""The five largest eigenvalues of a Hessian: time and error beside curvlinops with SciPy's eigsh, and PyHessian.

Each way is given the same weights, of the workload trained for a while with its own settings, and the same training
examples, in batches of 256 of which the last is smaller. Ours and eigsh stop at a relative tolerance of 1e-4, and
PyHessian's power iteration where an eigenvalue changes by less than that between two steps. Errors are against the same
Hessian in double precision. Ways take turns in every round; ratios are of medians.

    pip install --no-deps pyhessian curvlinops-for-pytorch backpack-for-pytorch einops einconv linear_operator jaxtyping
    python benchmarks/curvature.py [--workloads fashion …] [--rounds 3]

(Without ``--no-deps`` these bring another torch along.)
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

import batchscope as bs
from batchscope.measure.curvature_operators import BATCH_SIZE, Hessian
from batchscope.measure.eigenvalues import top_eigenpairs
from cases import keep, machine

# Examples of the loss, examples that the weights were trained on, and whether it is double precision that is compared.
CASES = {"digits": (1_000, 20_000), "fashion": (1_000, 20_000), "fashion-mlp": (2_000, 40_000)}
COUNT, TOLERANCE = 5, 1e-4
# PyHessian's power iteration would go on for long where eigenvalues are close.
MOST_POWER_STEPS = 1000


@dataclasses.dataclass
class Case:
    """What every way is given."""

    workload: bs.Workload
    model: nn.Module
    indices: list[int]

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The examples in batches, the last one smaller."""
        x, y = (part[: len(self.indices)] for part in self.workload.train)  # type: ignore[union-attr]
        return list(zip(x.split(BATCH_SIZE), y.split(BATCH_SIZE), strict=True))


def ours(case: Case) -> list[float]:
    operator = Hessian(case.workload, case.model, case.indices, seed=0)
    found = top_eigenpairs(operator, COUNT, tolerance=TOLERANCE, generator=np.random.default_rng(0))
    return [float(value) for value in found.values]


def by_curvlinops(case: Case) -> list[float]:
    from curvlinops import HessianLinearOperator

    parameters = [p for p in case.model.parameters() if p.requires_grad]
    case.model.eval()
    operator = HessianLinearOperator(
        case.model, nn.CrossEntropyLoss(), parameters, case.batches, check_deterministic=False
    ).to_scipy()
    start = np.random.default_rng(0).standard_normal(operator.shape[0])
    values = eigsh(operator, k=COUNT, which="LA", tol=TOLERANCE, v0=start.astype(operator.dtype))[0]
    return sorted(values.tolist(), reverse=True)


def by_pyhessian(case: Case) -> list[float]:
    import pyhessian

    torch.manual_seed(0)
    found = pyhessian.hessian(case.model, case.workload.loss, dataloader=case.batches, cuda=False)
    values, _ = found.eigenvalues(maxIter=MOST_POWER_STEPS, tol=TOLERANCE, top_n=COUNT)
    return [float(value) for value in values]


WAYS: dict[str, Callable[[Case], list[float]]] = {
    "batchscope": ours,
    "curvlinops + eigsh": by_curvlinops,
    "PyHessian": by_pyhessian,
}


def made(name: str) -> Case:
    """Weights after some training."""
    examples, trained = CASES[name]
    workload = bs.load_workload(name)
    plan = bs.Plan(batch_size=workload.batch_size, learning_rate=workload.learning_rate, examples=trained)
    model = workload.model()
    model.load_state_dict(bs.train(workload, plan).state or {})
    return Case(workload, model, list(range(examples)))


def truth(case: Case) -> list[float]:
    """In double precision, to far more digits."""
    (x, y), (vx, vy) = case.workload.train, case.workload.validation  # type: ignore[misc]
    workload = dataclasses.replace(
        case.workload,
        model=lambda: case.workload.model().double(),
        train=(x.double(), y),
        validation=(vx.double(), vy),
    )
    operator = Hessian(workload, case.model.double(), case.indices, seed=0)
    found = top_eigenpairs(operator, COUNT, tolerance=1e-9, generator=np.random.default_rng(1))
    case.model.float()
    return [float(value) for value in found.values]


def measured(name: str, rounds: int) -> list[dict[str, Any]]:
    """Every way on one workload."""
    case = made(name)
    expected = np.array(truth(case))
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        for way, run in WAYS.items():
            began = time.perf_counter()
            found = np.array(run(case))
            taken[way].append(time.perf_counter() - began)
            errors[way] = float(np.max(np.abs(found - expected) / np.abs(expected)))
    return [
        {"workload": name, "way": way, "seconds": own, "error": errors[way], "eigenvalues": expected.tolist()}
        for way, own in taken.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=CASES, default=list(CASES), metavar="WORKLOAD")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows = [row for name in arguments.workloads for row in measured(name, arguments.rounds)]
    table = Table(title=f"The {COUNT} largest eigenvalues of the Hessian at a tolerance of {TOLERANCE:g}")
    for column in ("workload", "way", "seconds", "spread", "over ours", "largest relative error"):
        table.add_column(column, justify="left" if column in ("workload", "way") else "right")
    for row in rows:
        own = next(r for r in rows if r["workload"] == row["workload"])
        middle = statistics.median(row["seconds"])
        table.add_row(
            row["workload"],
            row["way"],
            f"{middle:.2f}",
            f"{min(row['seconds']):.2f}–{max(row['seconds']):.2f}",
            f"{middle / statistics.median(own['seconds']):.2f}",
            f"{row['error']:.1e}",
        )
    console = Console(width=110)
    console.print(table)
    console.print(machine())
    if set(arguments.workloads) == set(CASES):
        console.print(f"Kept in {keep('curvature', rows)}")


if __name__ == "__main__":
    main()

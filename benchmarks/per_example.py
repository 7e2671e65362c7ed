"""Time and memory of the moments of 1,024 examples' gradients: batchscope, a loop of backward passes, and BackPACK.

python benchmarks/per_example.py [--rounds 3] [--workloads digits fashion text]

Each in a process of its own and on one thread, after a warm-up with 512 examples. ``bs.gradient_noise`` is timed whole.
The other two fill a matrix of all gradients, one row after the other or, with BackPACK's BatchGrad, a batch after the
other, and take tr Σ, ‖G‖², every ‖gᵢ − ḡ‖² and gᵢ·ḡ and the products of the first 128 gradients from it. tr Σ must
agree. BackPACK has no rule for layer norm, and none for a bare parameter such as the text model's positions.
Memory is the growth of the resident high-water mark over that of a process that imports the same and loads the data.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import batchscope as bs
from batchscope.fit.noise import estimate_noise, moments_from_parts, paired_rows
from batchscope.seeding import derive, isolated
from cases import case, keep, machine, median_and_spread

EXAMPLES, WARM_UP = 1_024, 512
WORKLOADS, METHODS = ("digits", "fashion", "text"), ("batchscope", "loop", "backpack")
BATCH = 64


def indices_of(workload: bs.Workload, examples: int) -> list[int]:
    """The examples that ``bs.gradient_noise`` draws."""
    generator = torch.Generator().manual_seed(derive(0, "noise examples"))
    chosen: list[int] = torch.randperm(workload.training_examples, generator=generator)[:examples].tolist()
    return chosen


def batch_of(workload: bs.Workload, indices: list[int]) -> tuple[Tensor, ...]:
    tensors = workload.train
    if not isinstance(tensors, tuple):
        raise TypeError("the benchmark's workloads hold tensors")
    return tuple(tensor[indices] for tensor in tensors)


def rows_of_loop(workload: bs.Workload, model: nn.Module, indices: list[int]) -> Iterator[Tensor]:
    """One backward pass for each example."""
    parameters = list(model.parameters())
    for index in indices:
        output, target = workload.output_and_target(model, batch_of(workload, [index]))
        gradients = torch.autograd.grad(workload.loss(output, target), parameters)
        yield torch.cat([gradient.flatten() for gradient in gradients])[None]


def rows_of_backpack(workload: bs.Workload, model: nn.Module, indices: list[int]) -> Iterator[Tensor]:
    """One backward pass for each batch, by hooks in every layer."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    for layer in model.modules():
        if next(layer.children(), None) is None:  # it names an attribute "output", as the models name a layer
            extend(layer)
    for start in range(0, len(indices), BATCH):
        part = indices[start : start + BATCH]
        output, target = workload.output_and_target(model, batch_of(workload, part))
        model.zero_grad()
        with backpack(BatchGrad()):
            # The loss is a mean over the batch; a single example's gradient is that of its own loss.
            (len(part) * workload.loss(output, target)).backward()  # type: ignore[no-untyped-call]
        yield torch.cat([p.grad_batch.flatten(1) for p in model.parameters()], dim=1)  # type: ignore[attr-defined]
        for p in model.parameters():
            del p.grad_batch  # type: ignore[attr-defined]


def trace_by_hand(method: str, workload: bs.Workload, indices: list[int]) -> float:
    """The moments from a matrix of all gradients, and tr Σ of them."""
    with isolated(derive(0, "weights")):
        model = workload.model()
    parameters = sum(p.numel() for p in model.parameters())
    gradients, filled = torch.empty(len(indices), parameters), 0
    for rows in (rows_of_loop if method == "loop" else rows_of_backpack)(workload, model, indices):
        gradients[filled : filled + len(rows)] = rows
        filled += len(rows)
    mean = gradients.mean(0)
    gradients -= mean
    first = gradients[: paired_rows(len(indices))]
    moments = moments_from_parts(
        groups=len(indices),
        group_size=1,
        mean_norm_squared=float(mean.double().square().sum()),
        deviations=torch.linalg.vector_norm(gradients, dim=1).double().square().numpy(),
        gram=(first @ first.T).double().numpy(),
        along_mean=(gradients @ (mean / mean.norm())).double().numpy(),
    )
    return estimate_noise(moments).trace_covariance.value or 0.0


def run_one(method: str, name: str) -> dict[str, Any]:
    """Time, peak and result of one method in this process."""
    torch.set_num_threads(1)
    workload = case(name)
    if method == "backpack":
        import backpack  # noqa: F401  # loaded before the mark, as batchscope is
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def once(examples: int) -> float:
        if method == "batchscope":
            return bs.gradient_noise(workload, examples=examples, device="cpu").trace_covariance.value or 0.0
        return trace_by_hand(method, workload, indices_of(workload, examples))

    try:
        once(WARM_UP)
    except (NotImplementedError, AttributeError) as error:
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    began = time.perf_counter()
    trace = once(EXAMPLES)
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"seconds": seconds, "bytes": grown, "trace": trace}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "WORKLOAD"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(*arguments.one)))
        return
    console = Console(width=150)
    table = Table(title=f"Moments of {EXAMPLES:,} examples' gradients; ratios over batchscope, median (least–most)")
    for column in ("workload", "method", "seconds", "MiB", "time, ratio", "memory, ratio"):
        table.add_column(column, justify="left" if column in ("workload", "method") else "right")
    rows: list[dict[str, Any]] = []
    for name in arguments.workloads:
        runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
        for _ in range(arguments.rounds):
            for method, into in runs.items():
                command = [sys.executable, __file__, "--one", method, name]
                done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
                into.append(json.loads(done.stdout.splitlines()[-1]))
        ours = runs["batchscope"]
        for method, found in runs.items():
            failed = next((run["failed"] for run in found if "failed" in run), None)
            if failed is not None:
                rows.append({"workload": name, "method": method, "failed": failed})
                table.add_row(name, method, "cannot")
                console.print(f"{method} cannot measure {name}: {failed}")
                continue
            if any(abs(run["trace"] / ours[0]["trace"] - 1) > 1e-4 for run in found):
                raise AssertionError(f"{method} and batchscope differ on {name}: {found} and {ours}")
            row: dict[str, Any] = {"workload": name, "method": method}
            for quantity in ("seconds", "bytes"):
                row[quantity] = [run[quantity] for run in found]
                row[f"{quantity}_ratios"] = [a[quantity] / b[quantity] for a, b in zip(found, ours, strict=True)]
            rows.append(row)
            table.add_row(
                name,
                method,
                f"{statistics.median(row['seconds']):.2f}",
                f"{statistics.median(row['bytes']) / 2**20:,.0f}",
                *(
                    [""] * 2
                    if method == "batchscope"
                    else map(median_and_spread, (row["seconds_ratios"], row["bytes_ratios"]))
                ),
            )
    console.print(table)
    console.print(machine())
    if set(arguments.workloads) == set(WORKLOADS):
        console.print(f"Kept in {keep('per_example', rows)}")


if __name__ == "__main__":
    main()

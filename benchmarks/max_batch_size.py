"""The largest batch size under an imposed limit of memory: what each tool finds, what it costs, and whether it holds.

Every search runs in a process of its own, with one thread, under RLIMIT_DATA at what the process holds with its data
loaded plus 2 GiB. Then, in a fresh process under the same limit, the size found trains for 200 steps, or for as long as
``--soak-seconds`` allows, which the table says; and one 10% larger for as many steps as the search made. Lightning's
BatchSizeFinder looks in its two modes, accelerate's find_executable_batch_size from 65,536 or the training set
downwards, with six training steps for each size.

    python benchmarks/max_batch_size.py [--limit-mib 2048] [--models fashion,text,wide] [--soak-seconds 30]
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope.measure.max_batch_size import BatchSizeTrial
from batchscope.measure.memory_meter import ResidentPeak
from batchscope.measure.memory_trial import FreshTraining, LongestExamples
from batchscope.training.memory import is_out_of_memory
from batchscope.training.meters import status_bytes
from batchscope.workload import Workload
from cases import case, keep, machine

MARGIN = 0.05
STEPS = 6
SOAK_STEPS = 200


def workload_of(name: str) -> Workload:
    """Fashion's convolutional network, the text transformer, or a wide perceptron on noise."""
    if name != "wide":
        return case(name)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40_000, 64, generator=generator), torch.randint(10, (40_000,), generator=generator)
    return Workload(
        model=lambda: nn.Sequential(nn.Linear(64, 16_384), nn.ReLU(), nn.Linear(16_384, 10)),
        train=(x, y),
        validation=(x[:64], y[:64]),
        loss=F.cross_entropy,
        optimizer=lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
        learning_rate=0.001,
        batch_size=64,
        name="wide",
    )


def with_batchscope(workload: Workload) -> tuple[int, int]:
    trials: list[BatchSizeTrial] = []
    found = bs.find_max_batch_size(workload, start=64, margin=MARGIN, report=trials.append, device="cpu")
    return found, len(trials)


def with_lightning(workload: Workload, mode: str) -> tuple[int, int]:
    import lightning
    from lightning.pytorch.callbacks import BatchSizeFinder

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tensors = workload.train
    if not isinstance(tensors, tuple):
        raise TypeError("a workload that does not hold tensors")
    examples, tried = TensorDataset(*tensors), list[int]()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.batch_size = workload.model(), 2

        def training_step(self, batch: Any, index: int) -> Any:
            output, target = workload.output_and_target(self.model, batch)
            return workload.loss(output, target)

        def configure_optimizers(self) -> Any:
            return workload.optimizer(self.model.parameters(), workload.learning_rate)

        def train_dataloader(self) -> Any:
            tried.append(self.batch_size)
            return DataLoader(examples, batch_size=self.batch_size, shuffle=True)

    module = Module()
    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.mkdtemp(),  # where a search that runs out leaves its checkpoint
        callbacks=[BatchSizeFinder(mode=mode, init_val=64, max_val=workload.training_examples)],
    )
    try:
        trainer.fit(module)
    except (RuntimeError, MemoryError) as error:  # the fit that follows the search runs out with the size that it found
        if not is_out_of_memory(error):
            raise
    return module.batch_size, len(set(tried))


def with_accelerate(workload: Workload) -> tuple[int, int]:
    from accelerate.utils import find_executable_batch_size

    tried: list[int] = []

    @find_executable_batch_size(starting_batch_size=min(65_536, workload.training_examples))  # type: ignore[untyped-decorator]
    def train(batch_size: int) -> int:
        tried.append(batch_size)
        train_steps(workload, batch_size, STEPS)
        return batch_size

    return int(train()), len(tried)


SEARCHES: dict[str, Callable[[Workload], tuple[int, int]]] = {
    "batchscope": with_batchscope,
    "Lightning, power": lambda workload: with_lightning(workload, "power"),
    "Lightning, binsearch": lambda workload: with_lightning(workload, "binsearch"),
    "accelerate": with_accelerate,
}


def train_steps(workload: Workload, size: int, steps: int, seconds: float = float("inf")) -> int:
    """Full steps of one size from a fresh model, as many as the time allows."""
    training = FreshTraining(workload, LongestExamples(workload, seed=0), torch.device("cpu"))
    until = time.perf_counter() + seconds
    for made in range(1, steps + 1):
        training.step(size)
        if time.perf_counter() > until:
            return made
    return steps


def one(kind: str, name: str, limit: int, size: int, seconds: float) -> dict[str, Any]:
    """A search or a trial of one size, in this process, under the limit."""
    torch.set_num_threads(1)
    workload = workload_of(name)
    resource.setrlimit(resource.RLIMIT_DATA, ((status_bytes("VmData") or 0) + limit, resource.RLIM_INFINITY))
    began = time.perf_counter()
    if kind in SEARCHES:
        found, trials = SEARCHES[kind](workload)
        return {"size": found, "trials": trials, "seconds": time.perf_counter() - began}
    peak = ResidentPeak()
    try:
        made = train_steps(workload, size, SOAK_STEPS if kind == "soak" else STEPS, seconds)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {"steps": 0, "peak": None}
    return {"steps": made, "peak": peak.peak_bytes()}


def in_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(tool: str, name: str, limit: int, soak_seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {"workload": name, "tool": tool, "limit": limit, **in_process(tool, name, limit, 0, 0)}
    if "size" not in row:
        return row
    row["soak"] = in_process("soak", name, limit, row["size"], soak_seconds)
    above = max(row["size"] + 1, int(row["size"] * 1.1))
    peak = in_process("above", name, limit, above, float("inf")).get("peak")
    row["above"] = "fails" if peak is None else ("in the margin" if peak > (1 - MARGIN) * limit else "fits")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-mib", type=int, default=2048)
    parser.add_argument("--models", default="fashion,text,wide")
    parser.add_argument("--soak-seconds", type=float, default=30.0)
    parser.add_argument("--one", nargs=5, metavar=("KIND", "MODEL", "LIMIT", "SIZE", "SECONDS"))
    arguments = parser.parse_args()
    if arguments.one:
        kind, name, limit, size, seconds = arguments.one
        print(json.dumps(one(kind, name, int(limit), int(size), float(seconds))))
        return
    table = Table(title=f"Largest batch size within {arguments.limit_mib:,} MiB")
    for column in ("workload", "tool", "size", "trials", "seconds", "trains on", "10% more"):
        table.add_column(column, justify="left" if column in ("workload", "tool", "10% more") else "right")
    rows = []
    for name in arguments.models.split(","):
        for tool in SEARCHES:
            row = measure(tool, name, arguments.limit_mib << 20, arguments.soak_seconds)
            rows.append(row)
            if "size" not in row:
                table.add_row(name, tool, "–", "–", "–", row["failed"][:40], "–")
                continue
            steps = row["soak"].get("steps")
            held = f"{steps} steps" if steps else "runs out"
            table.add_row(
                name, tool, f"{row['size']:,}", str(row["trials"]), f"{row['seconds']:.0f}", held, row["above"]
            )
    console = Console(width=120)
    console.print(table)
    console.print(machine())
    console.print(f"Kept in {keep('max_batch_size', rows)}")


if __name__ == "__main__":
    main()

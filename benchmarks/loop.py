"""Examples per second of batchscope's loop over a hand-written one, in alternating runs in one process.

Each round trains by hand, with batchscope, and by hand again with the threads that batchscope chose, on the same
workload, batch size and number of updates; the ratio is taken within the round, so that a drift of the machine falls
on both. Lightning's Trainer (bare flags) and skorch do the same work in the last rounds.

    python benchmarks/loop.py [--rounds 7] [--workloads digits,fashion,text] [--batch-sizes 1,8,…]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope.training import Prepared, Run
from batchscope.workload import Workload
from cases import case, keep, machine, median_and_spread
from handwritten import train_by_hand

BATCH_SIZES = (1, 8, 32, 128, 512, 2048)


def with_batchscope(prepared: Prepared, batch_size: int, iterations: int) -> tuple[float, int]:
    """Seconds in the loop, and the threads it computed with."""
    plan = bs.Plan(batch_size=batch_size, learning_rate=prepared.workload.learning_rate, iterations=iterations)
    result = Run(
        prepared,
        plan,
        seed=0,
        evaluate_every=batch_size * iterations,
        keep_best_weights=False,
        measure_memory=False,  # which empties the heap once before a run
    )()
    return result.step_seconds, result.provenance.threads


def with_lightning(workload: Workload, batch_size: int, iterations: int) -> float:
    """Seconds between the start and the end of training, set-up left out."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = workload.model()

        def training_step(self, batch: Any, index: int) -> Any:
            return workload.loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return workload.optimizer(self.model.parameters(), workload.learning_rate)

        def on_train_start(self) -> None:
            self.began = time.perf_counter()

        def on_train_end(self) -> None:
            self.seconds = time.perf_counter() - self.began

    module = Module()
    trainer = lightning.Trainer(
        max_steps=iterations,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        barebones=False,
    )
    loader = DataLoader(TensorDataset(*_tensors(workload)), batch_size=batch_size, shuffle=True, drop_last=True)
    trainer.fit(module, loader)
    return float(module.seconds)


def with_skorch(workload: Workload, batch_size: int, iterations: int) -> float:
    """Seconds in ``partial_fit`` on as many examples as the updates need."""
    import skorch

    tensors = _tensors(workload)
    wanted = batch_size * iterations
    x, y = (torch.cat([t] * -(-wanted // len(t)))[:wanted] if wanted > len(t) else t[:wanted] for t in tensors)
    criterion = type(
        "Criterion", (torch.nn.Module,), {"forward": lambda self, output, target: workload.loss(output, target)}
    )

    def optimizer(parameters: Any, lr: float) -> torch.optim.Optimizer:
        # skorch hands over (name, parameter) groups.
        plain = [p for group in parameters for p in (group["params"] if isinstance(group, dict) else [group])]
        return workload.optimizer(plain, lr)

    net = skorch.NeuralNet(
        workload.model,
        criterion=criterion,
        optimizer=optimizer,
        lr=workload.learning_rate,
        batch_size=batch_size,
        max_epochs=1,
        train_split=None,
        iterator_train__shuffle=True,
        iterator_train__drop_last=True,
        callbacks=None,
        callbacks__print_log=None,
        verbose=0,
    )
    net.initialize()
    began = time.perf_counter()
    net.partial_fit(x, y)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--others", type=int, default=2, help="rounds that Lightning and skorch take part in")
    parser.add_argument("--seconds", type=float, default=1.0, help="aimed at for each run")
    parser.add_argument("--workloads", default="digits,fashion,text")
    parser.add_argument("--batch-sizes", default=",".join(map(str, BATCH_SIZES)))
    arguments = parser.parse_args()

    table = Table(title="Loop: examples/s over a hand-written loop's (median of rounds, least–most)")
    for column in ("workload", "batch", "updates", "threads", "hand, ex/s", "batchscope", "over default threads"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    table.add_column("Lightning", justify="right")
    table.add_column("skorch", justify="right")
    rows = []
    for name in arguments.workloads.split(","):
        workload = case(name)
        prepared = Prepared(workload, torch.device("cpu"))
        for batch_size in map(int, arguments.batch_sizes.split(",")):
            row = _measure(name, prepared, batch_size, arguments)
            rows.append(row)
            table.add_row(
                name,
                str(batch_size),
                str(row["iterations"]),
                str(row["threads"]),
                f"{row['hand_examples_per_second']:,.0f}",
                median_and_spread(row["batchscope"]),
                median_and_spread(row["over_default_threads"]),
                median_and_spread(row["lightning"]) if row["lightning"] else "–",
                median_and_spread(row["skorch"]) if row["skorch"] else "–",
            )
    console = Console(width=140)
    console.print(table)
    console.print(machine())
    console.print(f"Kept in {keep('loop', rows)}")


def _measure(name: str, prepared: Prepared, batch_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    workload = prepared.workload
    once = train_by_hand(workload, batch_size, 3) / 3  # warms up too
    iterations = max(4, min(6000, round(arguments.seconds / once)))
    _, threads = with_batchscope(prepared, batch_size, 3)
    ours, over_default, lightning, skorch = [], [], [], []
    by_hand = []
    for number in range(arguments.rounds):
        default = train_by_hand(workload, batch_size, iterations)
        seconds, _ = with_batchscope(prepared, batch_size, iterations)
        with _threads(threads):
            same = train_by_hand(workload, batch_size, iterations)
        by_hand.append(same)
        ours.append(same / seconds)
        over_default.append(default / seconds)
        if number < arguments.others:
            with _threads(threads), _silence():
                lightning.append(same / with_lightning(workload, batch_size, iterations))
                skorch.append(same / with_skorch(workload, batch_size, iterations))
        print(f"{name} batch {batch_size} round {number + 1}: {ours[-1]:.3f}", flush=True)
    return {
        "workload": name,
        "batch_size": batch_size,
        "iterations": iterations,
        "threads": threads,
        "hand_examples_per_second": batch_size * iterations / sorted(by_hand)[len(by_hand) // 2],
        "batchscope": ours,
        "over_default_threads": over_default,
        "lightning": lightning,
        "skorch": skorch,
    }


def _tensors(workload: Workload) -> tuple[torch.Tensor, ...]:
    if not isinstance(workload.train, tuple):
        raise TypeError("the benchmark's workloads hold tensors")
    return workload.train


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    for logger in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()

"""Training several ways to spend the same number of examples."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from batchscope.cli.ending import INTERRUPTED
from batchscope.cli.options import (
    Data,
    Debug,
    Device,
    EvaluateEvery,
    Json,
    LoadTimeout,
    MicroBatchSize,
    Order,
    Quiet,
    Report,
    Seed,
    Workers,
    WorkloadName,
)
from batchscope.cli.parsing import check_writable, load_named, parse_pair
from batchscope.cli.showing import show


def compare(
    workload: WorkloadName,
    pairs: Annotated[
        list[str],
        typer.Argument(metavar="BATCHxITERATIONS...", help="As in 16x2000 256x125.", show_default=False),
    ],
    seeds: Annotated[int, typer.Option(help="Runs of each pair.")] = 5,
    learning_rate: Annotated[
        Literal["search", "rescaled", "fixed"],
        typer.Option(help="Searched at every batch size, rescaled by the optimiser's rule, or the reference for all."),
    ] = "search",
    shape: Annotated[
        Literal["linear", "cosine", "constant"] | None,
        typer.Option(help="The rate over the budget; the workload's own, or linear, if left out."),
    ] = None,
    order: Order = "shuffled",
    micro_batch_size: MicroBatchSize = None,
    evaluate_every: EvaluateEvery = None,
    allow_unequal: Annotated[bool, typer.Option("--allow-unequal", help="Compare budgets that differ.")] = False,
    store: Annotated[Path | None, typer.Option(help="Folder for finished runs, to go on from when killed.")] = None,
    data: Data = None,
    load_timeout: LoadTimeout = 30.0,
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Train several ways to spend the same number of examples, and say what differs."""
    from batchscope.study import compare as run

    parsed = [parse_pair(pair) for pair in pairs]
    check_writable(json, report)
    record = run(
        load_named(workload, data, load_timeout),
        parsed,
        seeds=seeds,
        learning_rate=learning_rate,
        shape=shape,
        order=order,
        micro_batch_size=micro_batch_size,
        evaluate_every=evaluate_every,
        allow_unequal=allow_unequal,
        store=store,
        seed=seed,
        device=device,
        workers=workers,
        progress=not quiet,
    )
    show(record, json, report, quiet=quiet)
    if record.error is not None:
        print(f"batchscope: Stopped by an error; what was finished is kept. {record.error}", file=sys.stderr)
        return 1
    if record.interrupted:
        print("batchscope: Interrupted; what was finished is kept.", file=sys.stderr)
        return INTERRUPTED
    return 0 if any(row.finished for row in record.rows) else 1

"""Training over batch sizes, learning rates and seeds."""

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
    Order,
    Quiet,
    Report,
    Seed,
    WorkloadName,
)
from batchscope.cli.parsing import check_writable, load_named, parse_numbers
from batchscope.cli.showing import show


def sweep(
    workload: WorkloadName,
    batch_sizes: Annotated[str | None, typer.Option(help="As in 4,8,16; 8,32,128,512, if left out.")] = None,
    learning_rates: Annotated[str, typer.Option(help="As in 0.01,0.1; or search.")] = "search",
    seeds: Annotated[int, typer.Option(help="Runs at the best learning rates.")] = 3,
    target: Annotated[float | None, typer.Option(help="A validation score to reach.")] = None,
    examples: Annotated[int | None, typer.Option(help="Budget of a trial; with --target: given up there.")] = None,
    shape: Annotated[
        Literal["constant", "linear", "cosine"] | None,
        typer.Option(help="The rate over the budget: constant with --target, falling to zero without, if left out."),
    ] = None,
    order: Order = "shuffled",
    prune: Annotated[bool, typer.Option(help="Stop trials that cannot win.")] = True,
    evaluate_every: EvaluateEvery = None,
    store: Annotated[
        Path | None, typer.Option(help="SQLite file of finished trials, to go on from when killed.")
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Where trials run.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; a local one is started, if left out.")] = None,
    processes: Annotated[int | None, typer.Option(help="Trials, or stacks of them, that run at once.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds of silence after which a trial is given up.")] = None,
    data: Data = None,
    load_timeout: LoadTimeout = 30.0,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Train over batch sizes, learning rates and seeds, and fit the laws that come out."""
    from batchscope.study import sweep as run

    sizes = None if batch_sizes is None else parse_numbers("--batch-sizes", batch_sizes, int)
    rates: list[float] | Literal["search"] = (
        "search" if learning_rates == "search" else parse_numbers("--learning-rates", learning_rates, float)
    )
    check_writable(json, report)
    record = run(
        load_named(workload, data, load_timeout),
        sizes,
        learning_rates=rates,
        seeds=seeds,
        target=target,
        examples=examples,
        shape=shape,
        order=order,
        prune=prune,
        evaluate_every=evaluate_every,
        store=store,
        engine=engine,
        address=address,
        processes=processes,
        timeout_seconds=timeout,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    show(record, json, report, quiet=quiet)
    if record.error is not None:
        print(f"batchscope: Stopped by an error; what was finished is kept. {record.error}", file=sys.stderr)
        return 1
    if record.interrupted:
        kept = "what was finished is kept" if store else "give --store to go on from here the next time"
        print(f"batchscope: Interrupted; {kept}.", file=sys.stderr)
        return INTERRUPTED
    return 0 if any(line.runs for line in record.best) else 1

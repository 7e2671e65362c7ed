"""Trials over batch sizes, learning rates and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from batchscope.cli.options import EvaluateEvery, Order, WorkloadName, WorkloadOptions
from batchscope.cli.parsing import parse_numbers


def sweep(
    workload: WorkloadName,
    batch_sizes: Annotated[str | None, typer.Option(help="For example 4,8,16; by default 8,32,128,512.")] = None,
    learning_rates: Annotated[str, typer.Option(help="For example 0.01,0.1; or search.")] = "search",
    seeds: Annotated[int, typer.Option(help="Seeds at the best learning rates.")] = 3,
    target: Annotated[float | None, typer.Option(help="Validation score to reach.")] = None,
    examples: Annotated[
        int | None, typer.Option(help="Training examples of a trial; with --target, the most of them.")
    ] = None,
    shape: Annotated[
        Literal["constant", "linear", "cosine"] | None,
        typer.Option(help="Learning-rate schedule; by default constant with --target, linear without."),
    ] = None,
    order: Order = "shuffled",
    prune: Annotated[bool, typer.Option(help="Stop trials that cannot become the best.")] = True,
    evaluate_every: EvaluateEvery = None,
    store: Annotated[
        Path | None, typer.Option(help="SQLite file for finished trials, from which an interrupted sweep resumes.")
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Where trials run.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster; by default a local one is started.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Trials, or stacks of trials, that run at once.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds without progress after which a trial is abandoned.")
    ] = None,
    *,
    common: WorkloadOptions,
) -> int:
    """Train over batch sizes, learning rates and seeds, and fit the trade-off law to the results."""
    from batchscope.study import sweep as run

    sizes = None if batch_sizes is None else parse_numbers("--batch-sizes", batch_sizes, int)
    rates: list[float] | Literal["search"] = (
        "search" if learning_rates == "search" else parse_numbers("--learning-rates", learning_rates, float)
    )
    record = run(
        common.load(workload),
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
        **common.arguments,
    )
    return common.end(
        record,
        succeeded=any(line.runs for line in record.best),
        kept="finished results are kept" if store else "give --store to be able to resume a sweep",
    )

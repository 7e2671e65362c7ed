"""One training run."""

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
from batchscope.cli.parsing import check_writable, load_named
from batchscope.cli.showing import show


def train(
    workload: WorkloadName,
    batch_size: Annotated[int | None, typer.Option(help="Examples per update; the workload's, if left out.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The workload's, if left out.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Updates to make.")] = None,
    examples: Annotated[int | None, typer.Option(help="Examples to train on, instead of --iterations.")] = None,
    target: Annotated[float | None, typer.Option(help="A validation score to stop at.")] = None,
    shape: Annotated[Literal["linear", "constant"], typer.Option(help="The rate over the budget.")] = "constant",
    order: Order = "shuffled",
    patience: Annotated[int | None, typer.Option(help="Stop after this many evaluations without improvement.")] = None,
    tolerance: Annotated[float, typer.Option(help="Improvements up to this do not count for --patience.")] = 0.0,
    micro_batch_size: MicroBatchSize = None,
    evaluate_every: EvaluateEvery = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to save to, and to resume from where it exists.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Write the best weights to this safetensors file.")] = None,
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
    """Train a workload once, stop in time, and keep the best weights."""
    from batchscope.records import Plan
    from batchscope.training import train as run
    from batchscope.training.checkpoint import save_weights

    check_writable(json, report, weights, checkpoint)
    chosen = load_named(workload, data, load_timeout)
    plan = Plan(
        batch_size=chosen.batch_size if batch_size is None else batch_size,
        learning_rate=chosen.learning_rate if learning_rate is None else learning_rate,
        iterations=iterations,
        examples=examples,
        target=target,
        shape=shape,
        order=order,
        micro_batch_size=micro_batch_size,
        patience=patience,
        tolerance=tolerance,
    )
    result = run(
        chosen,
        plan,
        seed=seed,
        device=device,
        evaluate_every=evaluate_every,
        checkpoint=checkpoint,
        workers=workers,
        progress=not quiet,
    )
    show(result, json, report, quiet=quiet)
    if weights is not None and result.state is not None:
        save_weights(weights, result.state)
    if result.outcome == "interrupted":
        print("batchscope: Interrupted; what was finished is kept.", file=sys.stderr)
        return INTERRUPTED
    return 0 if result.ended_in_order else 1

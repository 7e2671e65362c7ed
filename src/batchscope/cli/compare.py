"""Several ways to spend the same number of examples, trained and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from batchscope.cli.options import EvaluateEvery, MicroBatchSize, Order, TrainingOptions, WorkloadName
from batchscope.cli.parsing import parse_pair


def compare(
    workload: WorkloadName,
    pairs: Annotated[
        list[str],
        typer.Argument(
            metavar="BATCHxITERATIONS...",
            help="Batch sizes and numbers of updates, for example 16x2000 256x125.",
            show_default=False,
        ),
    ],
    seeds: Annotated[int, typer.Option(help="Seeds of each pair.")] = 5,
    learning_rate: Annotated[
        Literal["search", "rescaled", "fixed"],
        typer.Option(
            help="Search for it at every batch size, rescale it by the optimiser's rule, or use the workload's own."
        ),
    ] = "search",
    shape: Annotated[
        Literal["linear", "cosine", "constant"] | None,
        typer.Option(help="Learning-rate schedule; by default the workload's own, or linear."),
    ] = None,
    order: Order = "shuffled",
    micro_batch_size: MicroBatchSize = None,
    evaluate_every: EvaluateEvery = None,
    allow_unequal: Annotated[
        bool, typer.Option("--allow-unequal", help="Compare pairs with different numbers of examples.")
    ] = False,
    store: Annotated[
        Path | None, typer.Option(help="Folder for finished runs, from which an interrupted comparison resumes.")
    ] = None,
    *,
    common: TrainingOptions,
) -> int:
    """Train several ways to spend the same number of examples, and report the differences."""
    from batchscope.study import compare as run

    parsed = [parse_pair(pair) for pair in pairs]
    record = run(
        common.load(workload),
        parsed,
        seeds=seeds,
        learning_rate=learning_rate,
        shape=shape,
        order=order,
        micro_batch_size=micro_batch_size,
        evaluate_every=evaluate_every,
        allow_unequal=allow_unequal,
        store=store,
        **common.arguments,
    )
    return common.end(record, succeeded=any(row.finished for row in record.rows))

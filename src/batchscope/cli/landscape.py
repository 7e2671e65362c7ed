"""The loss along lines and planes through weight space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from batchscope.cli.options import Data, Debug, Device, Json, LoadTimeout, Quiet, Report, Seed, Workers, WorkloadName
from batchscope.cli.parsing import check_writable, load_named, parse_numbers
from batchscope.cli.showing import show
from batchscope.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchscope.records import LandscapeKind


def landscape(
    workload: WorkloadName,
    weights: Annotated[
        list[Path] | None,
        typer.Option(help="A safetensors file; given twice the line between them. Trained first, if left out."),
    ] = None,
    shape: Annotated[
        Literal["line", "direction", "plane", "path"] | None,
        typer.Option(help="Between two states, along a random direction, over a plane of two, or over a run's path."),
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="What to train with where no weights are given: two for a line, else one.")
    ] = None,
    points: Annotated[int | None, typer.Option(help="Places along each coordinate.")] = None,
    examples: Annotated[int, typer.Option(help="Most examples of either set at every place.")] = 2048,
    data: Data = None,
    load_timeout: LoadTimeout = 30.0,
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw loss and score between a small-batch and a large-batch solution, about one, or along a run's path."""
    from batchscope.folklore import solutions
    from batchscope.measure import landscape as run
    from batchscope.training.checkpoint import load_weights

    check_writable(json, report)
    if weights and batch_sizes is not None:
        raise ArgumentError(
            "batch sizes are for training, and weights are trained already",
            got="both",
            mend="leave one of --weights and --batch-sizes out",
        )
    trained = load_named(workload, data, load_timeout)
    states: list[Mapping[str, Any]]
    kind: LandscapeKind | None = shape
    if weights:
        states, labels = [load_weights(file) for file in weights], [file.stem for file in weights]
    else:
        kind = shape or "line"
        states, labels = solutions(
            trained,
            None if batch_sizes is None else parse_numbers("--batch-sizes", batch_sizes, int),
            shape=kind,
            seed=seed,
            device=device,
            workers=workers,
            progress=not quiet,
        )
    record = run(
        trained,
        states,
        shape=kind,
        points=points,
        labels=labels,
        examples=examples,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    show(record, json, report, quiet=quiet)

"""The loss along lines and planes through weight space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from batchscope.cli.options import TrainingOptions, WorkloadName
from batchscope.cli.parsing import parse_numbers
from batchscope.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchscope.records import LandscapeKind


def landscape(
    workload: WorkloadName,
    weights: Annotated[
        list[Path] | None,
        typer.Option(help="A safetensors file; given twice, the ends of a line. By default the model is trained."),
    ] = None,
    shape: Annotated[
        Literal["line", "direction", "plane", "path"] | None,
        typer.Option(
            help="The line between two states, a random direction, a plane of two, or the path of a training run."
        ),
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Batch sizes to train with if no weights are given: two for a line, else one.")
    ] = None,
    points: Annotated[int | None, typer.Option(help="Points along each coordinate.")] = None,
    examples: Annotated[int, typer.Option(help="Most training and validation examples at each point.")] = 2048,
    *,
    common: TrainingOptions,
) -> None:
    """Compute the loss and the score between two solutions, around one, or along the path of a training run."""
    from batchscope.folklore import solutions
    from batchscope.measure import landscape as run
    from batchscope.training.checkpoint import load_weights

    if weights and batch_sizes is not None:
        raise ArgumentError(
            "--batch-sizes trains the model, and --weights loads trained weights",
            got="both",
            mend="leave one of them out",
        )
    trained = common.load(workload)
    states: list[Mapping[str, Any]]
    kind: LandscapeKind | None = shape
    if weights:
        states, labels = [load_weights(file) for file in weights], [file.stem for file in weights]
    else:
        kind = shape or "line"
        sizes = None if batch_sizes is None else parse_numbers("--batch-sizes", batch_sizes, int)
        states, labels = solutions(trained, sizes, shape=kind, **common.arguments)
    arguments = common.arguments
    del arguments["workers"]
    common.show(run(trained, states, shape=kind, points=points, labels=labels, examples=examples, **arguments))

"""How far the loss rises near a solution."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from batchscope.cli.options import TrainingOptions, WorkloadName


def sharpness(
    workload: WorkloadName,
    weights: Annotated[
        Path | None, typer.Option(help="A safetensors file; by default the model is trained with batch size 32.")
    ] = None,
    epsilon: Annotated[float, typer.Option(help="Size ε of the box around the weights.")] = 1e-3,
    subspace: Annotated[
        int | None, typer.Option(help="Number of random directions; by default all of weight space.")
    ] = None,
    box: Annotated[
        Literal["keskar", "filters"],
        typer.Option(help="Scale of the box: as in the paper, or relative to each filter."),
    ] = "keskar",
    iterations: Annotated[int, typer.Option(help="Most iterations of L-BFGS-B.")] = 10,
    repeats: Annotated[int | None, typer.Option(help="Number of random subspaces, or of starting points.")] = None,
    examples: Annotated[int | None, typer.Option(help="Training examples of the loss.")] = None,
    *,
    common: TrainingOptions,
) -> None:
    """Measure Keskar's sharpness at given weights, or at the end of training."""
    from batchscope.folklore import solutions
    from batchscope.measure import sharpness as run
    from batchscope.training.checkpoint import load_weights

    common.check(reads=weights)
    trained, arguments = common.load(workload), common.arguments
    state = load_weights(weights) if weights is not None else dict(solutions(trained, shape="plane", **arguments)[0][0])
    del arguments["workers"]
    common.show(
        run(
            trained,
            state,
            epsilon,
            subspace,
            box=box,
            iterations=iterations,
            repeats=repeats,
            examples=examples,
            **arguments,
        )
    )

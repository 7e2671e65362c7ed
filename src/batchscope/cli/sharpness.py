"""How far the loss rises close by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from batchscope.cli.options import Data, Debug, Device, Json, LoadTimeout, Quiet, Report, Seed, Workers, WorkloadName
from batchscope.cli.parsing import check_writable, load_named
from batchscope.cli.showing import show


def sharpness(
    workload: WorkloadName,
    weights: Annotated[
        Path | None, typer.Option(help="A safetensors file of the weights; trained first with batch 32, if left out.")
    ] = None,
    epsilon: Annotated[float, typer.Option(help="Size of the box.")] = 1e-3,
    subspace: Annotated[int | None, typer.Option(help="Random directions; all of weight space, if left out.")] = None,
    box: Annotated[
        Literal["keskar", "filters"], typer.Option(help="As in the paper, or in units of the filters.")
    ] = "keskar",
    iterations: Annotated[int, typer.Option(help="Of L-BFGS-B, at most.")] = 10,
    repeats: Annotated[int | None, typer.Option(help="Subspaces, or starting points.")] = None,
    examples: Annotated[int | None, typer.Option(help="Training examples of the loss.")] = None,
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
    """Measure Keskar's sharpness at given weights, or where training ends."""
    from batchscope.folklore import solutions
    from batchscope.measure import sharpness as run
    from batchscope.training.checkpoint import load_weights

    check_writable(json, report, reads=weights)
    trained = load_named(workload, data, load_timeout)
    if weights is not None:
        state = load_weights(weights)
    else:
        states, _ = solutions(trained, shape="plane", seed=seed, device=device, workers=workers, progress=not quiet)
        state = dict(states[0])
    record = run(
        trained,
        state,
        epsilon,
        subspace,
        box=box,
        iterations=iterations,
        repeats=repeats,
        examples=examples,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    show(record, json, report, quiet=quiet)

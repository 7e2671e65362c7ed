"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from batchscope.cli.completion import workloads

WorkloadName = Annotated[
    str,
    typer.Argument(
        metavar="WORKLOAD",
        help="A built-in's name, path/to/file.py:name or package.module:name.",
        show_default=False,
        autocompletion=workloads,
    ),
]
Data = Annotated[str | None, typer.Option(help="Folder or file that a built-in workload reads.")]
LoadTimeout = Annotated[float, typer.Option(help="Seconds that loading the workload may take.")]
Seed = Annotated[int, typer.Option(help="Everything random derives from it.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda …; CUDA where there is one, if left out.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the record to this file.")]
Report = Annotated[Path | None, typer.Option("--report", help="Write the page to this file.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Workers = Annotated[int | None, typer.Option(help="Processes that read a Dataset; as many as pay, if left out.")]
Order = Annotated[
    Literal["shuffled", "replacement", "stratified", "bucketed"], typer.Option(help="How batches are drawn.")
]
MicroBatchSize = Annotated[int | None, typer.Option(help="Examples that pass through the model at once.")]
EvaluateEvery = Annotated[int | None, typer.Option(help="Examples between two evaluations.")]

"""Measuring a workload, and planning anew from what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchscope.cli.completion import workloads
from batchscope.cli.options import Data, Debug, Device, Json, LoadTimeout, Quiet, Report, Seed, Workers
from batchscope.cli.parsing import check_writable, load_named, parse_bytes
from batchscope.cli.showing import show
from batchscope.errors import ArgumentError

if TYPE_CHECKING:
    from batchscope.records import Record


def probe(
    workload: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD",
            autocompletion=workloads,
            help="A built-in's name, path/to/file.py:name or package.module:name; or a probe's JSON, to re-plan it.",
            show_default=False,
        ),
    ],
    seconds: Annotated[float, typer.Option(help="About how long it may take.")] = 45.0,
    memory: Annotated[str | None, typer.Option(help="Memory that training may take, as in 8GiB.")] = None,
    speed: Annotated[
        float | None, typer.Option(help="With a probe's JSON: how many times faster an example is computed there.")
    ] = None,
    fixed_speed: Annotated[
        float | None,
        typer.Option(help="The same for an update's fixed cost; --speed, if left out."),
    ] = None,
    branches: Annotated[bool, typer.Option(help="Measure the critical batch size by branched runs too.")] = True,
    range_test: Annotated[bool, typer.Option(help="Make a learning-rate range test.")] = True,
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
    """Measure what the choice of a batch size hangs on: memory, throughput, gradient noise."""
    memory_bytes = None if memory is None else parse_bytes(memory)
    saved = Path(workload) if workload.endswith(".json") else None
    if saved is not None:
        check_writable(json, report, reads=saved)
        show(_replanned(saved, memory_bytes, speed, fixed_speed), json, report, quiet=quiet)
        return
    if speed is not None or fixed_speed is not None:
        raise ArgumentError(
            "another speed needs a saved probe",
            got=workload,
            mend="probe with --json first, then give that file in the workload's place",
        )
    check_writable(json, report)
    from batchscope.measure import probe as run

    record = run(
        load_named(workload, data, load_timeout),
        seconds=seconds,
        memory_bytes=memory_bytes,
        branches=branches,
        learning_rate=range_test,
        seed=seed,
        device=device,
        workers=workers,
        progress=not quiet,
    )
    show(record, json, report, quiet=quiet)


def _replanned(saved: Path, memory_bytes: int | None, speed: float | None, fixed_speed: float | None) -> Record:
    from batchscope.fit import replan
    from batchscope.records import Probe, load

    record = load(saved)
    if not isinstance(record, Probe):
        raise ArgumentError("a record to re-plan must be a probe", got=f"{saved}, a {record.kind} record")
    return replan(record, memory_bytes=memory_bytes, speed=1.0 if speed is None else speed, fixed_speed=fixed_speed)

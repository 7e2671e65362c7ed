"""The folklore about batch size, tested on a workload."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from batchscope.cli.ending import INTERRUPTED
from batchscope.cli.options import Data, Debug, Device, Json, LoadTimeout, Quiet, Report, Seed, Workers, WorkloadName
from batchscope.cli.parsing import check_writable, load_named
from batchscope.cli.showing import show


def claims(
    workload: WorkloadName,
    only: Annotated[
        list[str] | None, typer.Option(help="A claim's name, as the table shows it; may be given several times.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each setting, in pairs.")] = 5,
    budget: Annotated[float, typer.Option(help="Seconds that all experiments together may take, about.")] = 300.0,
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
    """Test what people say about batch size: each claim an experiment, with the verdict that its interval allows."""
    from batchscope.folklore import claims as run

    check_writable(json, report)
    record = run(
        load_named(workload, data, load_timeout),
        only=only or None,
        seeds=seeds,
        budget_seconds=budget,
        seed=seed,
        device=device,
        workers=workers,
        progress=not quiet,
    )
    show(record, json, report, quiet=quiet)
    if record.interrupted:
        print("batchscope: Interrupted; what was tested is kept.", file=sys.stderr)
        return INTERRUPTED
    return 0

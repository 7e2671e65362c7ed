"""The folklore about batch size, tested on a workload."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from batchscope.cli.completion import workloads
from batchscope.cli.ending import INTERRUPTED
from batchscope.cli.options import Data, Debug, Device, Json, LoadTimeout, Quiet, Report, Seed, Workers
from batchscope.cli.parsing import check_writable, load_named
from batchscope.cli.showing import show
from batchscope.errors import ArgumentError

if TYPE_CHECKING:
    from batchscope.records import Claims, PaperStudy


def claims(
    workload: Annotated[
        str | None,
        typer.Argument(
            metavar="WORKLOAD",
            autocompletion=workloads,
            help="A built-in's name, path/to/file.py:name or package.module:name; none with --paper.",
            show_default=False,
        ),
    ] = None,
    paper: Annotated[
        Literal["keskar2016", "smith2017", "mishkin2016", "shallue2019", "mccandlish2018"] | None,
        typer.Option(help="Measure a paper's table at a size that this machine can run, instead."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A claim's name, as the table shows it; may be given several times.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each setting, in pairs.")] = 5,
    budget: Annotated[
        float | None, typer.Option(help="Seconds that all of it may take, about: 300, or 600 for a paper.")
    ] = None,
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
    from batchscope.folklore.claims import BUDGET_SECONDS
    from batchscope.folklore.papers import paper as measured
    from batchscope.folklore.papers.study import BUDGET_SECONDS as FOR_A_PAPER

    if (workload is None) == (paper is None):
        raise ArgumentError(
            "claims are tested on a workload, or a paper is measured",
            got="neither" if paper is None else "both",
            mend="give a workload, or --paper",
        )
    if paper is not None and only:
        raise ArgumentError("a paper has no claims to choose from", got="--only", mend="leave it out")
    check_writable(json, report)
    record: Claims | PaperStudy
    if workload is None:
        record = measured(
            str(paper),
            seeds=seeds,
            budget_seconds=FOR_A_PAPER if budget is None else budget,
            data=data,
            seed=seed,
            device=device,
            progress=not quiet,
        )
    else:
        record = run(
            load_named(workload, data, load_timeout),
            only=only or None,
            seeds=seeds,
            budget_seconds=BUDGET_SECONDS if budget is None else budget,
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

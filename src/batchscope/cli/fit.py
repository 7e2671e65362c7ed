"""The trade-off law of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchscope.cli.options import Debug, Json, Quiet, Report
from batchscope.cli.parsing import check_writable
from batchscope.cli.showing import show


def fit(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE.csv",
            help="A line per run: batch_size, examples_to_target or updates; maybe learning_rate, outcome, spent.",
            show_default=False,
        ),
    ],
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit the trade-off law to a table of batch sizes and what the target took."""
    from batchscope.study.table_file import read_table

    check_writable(json, report, reads=table)
    show(read_table(table).fit(), json, report, quiet=quiet)

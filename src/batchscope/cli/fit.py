"""The trade-off law of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchscope.cli.options import Output


def fit(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE.csv",
            help="One row per run: batch_size, and examples_to_target or updates; optional learning_rate, outcome, "
            "spent.",
            show_default=False,
        ),
    ],
    *,
    common: Output,
) -> None:
    """Fit the trade-off law to a table of batch sizes and the examples or updates to a target."""
    from batchscope.study.table_file import read_table

    common.check(reads=table)
    common.show(read_table(table).fit())

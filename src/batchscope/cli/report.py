"""A saved record, shown again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchscope.cli.options import Debug, Quiet
from batchscope.cli.parsing import check_writable
from batchscope.cli.showing import show


def report(
    record: Annotated[Path, typer.Argument(help="A JSON file written by --json.", show_default=False)],
    report: Annotated[
        Path | None, typer.Option("--report", help="File of the HTML report; by default next to the record.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show a saved record again, as a table and as an HTML report, without training."""
    from batchscope.records import load

    loaded = load(record)
    page = record.with_suffix(".html") if report is None else report
    check_writable(page, reads=record)
    show(loaded, None, page, quiet=quiet)

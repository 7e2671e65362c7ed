"""The trials of a sweep as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchscope.cli.options import Debug, Quiet
from batchscope.cli.parsing import check_writable


def export(
    store: Annotated[Path, typer.Argument(help="The store of a sweep, which may be running.", show_default=False)],
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the trials to this file.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="Write the trials to this file.")] = None,
    curves: Annotated[
        Path | None, typer.Option("--curves", help="Write the trials' evaluations to this .csv or .parquet file.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the trials in a sweep's store as CSV or Parquet."""
    from batchscope.study.export import export as run

    check_writable(csv, parquet, curves, reads=store)
    for path in run(store, csv=csv, parquet=parquet, curves=curves):
        if not quiet:
            print(f"Wrote {path}")

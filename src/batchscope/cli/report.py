"""A saved record, shown again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchscope.cli.options import Debug, Quiet
from batchscope.cli.parsing import check_writable
from batchscope.cli.showing import show
from batchscope.errors import ArgumentError


def report(
    record: Annotated[Path, typer.Argument(help="A JSON file written by --json.", show_default=False)],
    report: Annotated[
        Path | None, typer.Option("--report", help="File of the HTML report; by default next to the record.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file beside the record that batchscope did not make.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show a saved record again, as a table and as an HTML report, without training."""
    from batchscope.records import load

    loaded = load(record)
    page = record.with_suffix(".html") if report is None else report
    check_writable(page, reads=record)
    if report is None and not force:
        _check_ours(page)
    show(loaded, None, page, quiet=quiet)


def _check_ours(page: Path) -> None:
    """Refuse to replace a file that nobody named, unless it is a page that batchscope made."""
    from batchscope.report.page import is_made_here

    if page.exists() and not is_made_here(page.read_text(encoding="utf-8", errors="replace")):
        raise ArgumentError(
            "a page replaces no file that batchscope did not make",
            got=f"{page}, which exists",
            mend="name another with --report, or replace it with --force",
        )

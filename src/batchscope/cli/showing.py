"""Writing and printing records."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from batchscope.cli.ending import ignore_closed_pipe
from batchscope.errors import BatchscopeError, StorageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from batchscope.records import Record


def show_table(shown: RenderableType) -> None:
    """Print it on standard output; a reader such as ``head`` may close the pipe."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            ignore_closed_pipe()

    Terminal().print(shown)


def show(record: Record, json: Path | None, report: Path | None, *, quiet: bool) -> None:
    """Write and print a record; one that cannot be written is kept in a temporary folder, or at least printed."""
    failures: list[BatchscopeError] = []
    kept = True
    if json is not None:
        try:
            record.to_json(json)
        except StorageError as error:
            failures.append(error)
            kept = _kept_elsewhere(record, json)
    if not quiet or not kept:
        show_table(record.table())
    if report is not None:
        try:
            record.report(report)
        except StorageError as error:
            failures.append(error)
    if failures:
        for further in failures[1:]:
            print(f"batchscope: {further}", file=sys.stderr)
        raise failures[0]
    if not quiet:
        for path in (json, report):
            if path is not None:
                print(f"Wrote {path}")


def _kept_elsewhere(record: Record, wanted: Path) -> bool:
    folder: str | None = None
    try:
        folder = tempfile.mkdtemp(prefix="batchscope-")
        kept = record.to_json(Path(folder) / wanted.name)
    except (StorageError, OSError):
        if folder is not None:
            os.rmdir(folder)
        return False
    print(f"batchscope: The record could not be written to {wanted}; it was saved to {kept} instead.", file=sys.stderr)
    return True

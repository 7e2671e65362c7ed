"""What there is on this machine."""

from __future__ import annotations

from batchscope.cli.options import Debug, Json, Quiet, Report
from batchscope.cli.parsing import check_writable
from batchscope.cli.showing import show


def doctor(json: Json = None, report: Report = None, quiet: Quiet = False, debug: Debug = False) -> None:
    """Show versions, devices, free memory, data, and whether forks, CUDA and charts work here."""
    check_writable(json, report)
    from batchscope.measure.doctor import diagnose

    show(diagnose(), json, report, quiet=quiet)

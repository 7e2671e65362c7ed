"""The list of the built-ins."""

from __future__ import annotations

from batchscope.cli.options import Debug
from batchscope.cli.showing import show_table


def workloads(debug: Debug = False) -> None:
    """List the built-in workloads, their sizes, and where their data come from."""
    from batchscope.report.listing import workloads_table
    from batchscope.workload.catalogue import describe

    show_table(workloads_table(describe()))

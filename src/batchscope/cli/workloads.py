"""The list of the built-in workloads."""

from __future__ import annotations

from batchscope.cli.options import Debug
from batchscope.cli.showing import show_table


def workloads(debug: Debug = False) -> None:
    """List the built-in workloads with their sizes and the sources of their data."""
    from batchscope.report.listing import workloads_table
    from batchscope.workload.catalogue import describe

    show_table(workloads_table(describe()))

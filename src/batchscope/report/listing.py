"""The built-in workloads as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from batchscope.workload.catalogue import Description


def workloads_table(descriptions: Iterable[Description]) -> Table:
    """What ``batchscope workloads`` prints.

    Args:
        descriptions: One for each built-in.

    Returns:
        A table: name, what it is, sizes, optimiser, and where its data are.
    """
    table = Table(title="Built-in workloads", title_justify="left", title_style="bold", show_lines=True, expand=False)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("what it is", ratio=3)
    table.add_column("examples", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("data", ratio=3)
    for item in descriptions:
        sizes = [
            "read to know" if size is None else f"{size:,}"
            for size in (item.training_examples, item.validation_examples)
        ]
        examples = sizes[0] if sizes[0] == sizes[1] else "\n+ ".join(sizes)
        where = Text(item.source + "\n").append(
            f"here: {item.location}" if item.available else f"not here; {item.location}",
            style="green" if item.available else "yellow",
        )
        table.add_row(item.name, Text(f"{item.description}\n{item.optimizer}"), examples, f"{item.parameters:,}", where)
    return table

"""The command-line interface: one file per verb, which parses, calls one library function and shows the record.

Exit status: 0 done, 1 the run failed, 2 the arguments were wrong, 130 interrupted.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from batchscope.cli.advise import advise
from batchscope.cli.by_ranks import by_ranks
from batchscope.cli.claims import claims
from batchscope.cli.compare import compare
from batchscope.cli.doctor import doctor
from batchscope.cli.ending import with_exit_status
from batchscope.cli.export import export
from batchscope.cli.fit import fit
from batchscope.cli.landscape import landscape
from batchscope.cli.options import with_options
from batchscope.cli.plan import plan
from batchscope.cli.probe import probe
from batchscope.cli.report import report
from batchscope.cli.sharpness import sharpness
from batchscope.cli.sweep import sweep
from batchscope.cli.train import train
from batchscope.cli.workloads import workloads

app = typer.Typer(
    name="batchscope",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Measure which batch size, learning rate and number of updates suit your model, data and machine.",
)

VERBS: tuple[Callable[..., int | None], ...] = (
    advise, compare, train, probe, plan, sweep, sharpness, landscape, claims, fit, export, workloads, report, doctor,
)  # fmt: skip
for verb in VERBS:
    expanded = with_options(verb)
    app.command()(with_exit_status(by_ranks(expanded) if verb is train else expanded))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        import importlib.metadata

        print(importlib.metadata.version("batchscope"))
        raise typer.Exit(0)


def main() -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # print ? for characters that the terminal does not have
            stream.reconfigure(errors="replace")
    app(prog_name="batchscope")  # the name that shell completion needs, with python -m too

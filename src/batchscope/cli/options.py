"""The arguments and options that several verbs share, and what is done with them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from batchscope.cli.ending import INTERRUPTED
from batchscope.cli.parsing import check_writable
from batchscope.cli.showing import show

if TYPE_CHECKING:
    from batchscope.records import Record
    from batchscope.workload import Workload

# The same names as in workload/catalogue.py, which imports torch: too slow for shell completion.
WORKLOADS = ("digits", "fashion", "fashion-mlp", "cifar10", "text", "quadratic")


def complete_workload(incomplete: str) -> list[str]:
    """Complete the name of a built-in workload; where none matches, shells offer files.

    Examples:
        >>> complete_workload("fash"), complete_workload("my/file.py")
        (['fashion', 'fashion-mlp'], [])
    """
    return [name for name in WORKLOADS if name.startswith(incomplete)]


def workload_argument(also: str = "") -> Any:
    """Describe the argument that names a workload.

    Args:
        also: What else the argument may be.
    """
    return typer.Argument(
        metavar="WORKLOAD",
        help=f"Name of a built-in workload, path/to/file.py:name or package.module:name{also}.",
        show_default=False,
        autocompletion=complete_workload,
    )


WorkloadName = Annotated[str, workload_argument()]
Data = Annotated[str | None, typer.Option(help="Folder or file that a built-in workload reads.")]
LoadTimeout = Annotated[float, typer.Option(help="Seconds that loading the workload may take.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda …; by default CUDA if it is available.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the record to this file.")]
Report = Annotated[Path | None, typer.Option("--report", help="Write an HTML report to this file.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Workers = Annotated[
    int | None, typer.Option(help="Processes that read a Dataset; by default as many as are worth their cost.")
]
Order = Annotated[
    Literal["shuffled", "replacement", "stratified", "bucketed"], typer.Option(help="How batches are drawn.")
]
MicroBatchSize = Annotated[int | None, typer.Option(help="Examples in one forward and backward pass.")]
EvaluateEvery = Annotated[int | None, typer.Option(help="Examples between two evaluations.")]


@dataclass(frozen=True)
class Output:
    """Options of every verb that makes a record."""

    json: Json = None
    report: Report = None
    quiet: Quiet = False
    debug: Debug = False

    def check(self, *others: Path | None, reads: Path | None = None) -> None:
        """Refuse output files that cannot be written.

        Args:
            others: Other files that will be written.
            reads: A file that is read and must not be overwritten.

        Raises:
            ArgumentError: A file that cannot be written, or one named twice.
        """
        check_writable(self.json, self.report, *others, reads=reads)

    def show(self, record: Record) -> None:
        """Write the record and its report, and print its table."""
        show(record, self.json, self.report, quiet=self.quiet)

    def end(self, record: Any, *, succeeded: bool = True, kept: str = "finished results are kept") -> int:
        """Show a record and return the exit status.

        Args:
            record: A record with ``interrupted``, and ``error`` where a run can fail.
            succeeded: Whether the record holds a result.
            kept: What to print about partial results after an interruption.
        """
        self.show(record)
        if (error := getattr(record, "error", None)) is not None:
            print(f"batchscope: Stopped by an error; finished results are kept. {error}", file=sys.stderr)
            return 1
        if record.interrupted:
            print(f"batchscope: Interrupted; {kept}.", file=sys.stderr)
            return INTERRUPTED
        return 0 if succeeded else 1


@dataclass(frozen=True)
class WorkloadOptions(Output):
    """Options of every verb that runs a workload."""

    data: Data = None
    load_timeout: LoadTimeout = 30.0
    seed: Seed = 0
    device: Device = None

    def load(self, name: str) -> Workload:
        """Check the output files, then load the workload of that name."""
        from batchscope.workload import load_workload

        self.check()
        return load_workload(name, data=self.data, timeout_seconds=self.load_timeout)

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that the library's functions share."""
        return {"seed": self.seed, "device": self.device, "progress": not self.quiet}


@dataclass(frozen=True)
class TrainingOptions(WorkloadOptions):
    """Options of every verb that reads a Dataset in worker processes."""

    workers: Workers = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that the library's functions share."""
        return super().arguments | {"workers": self.workers}


def with_options(verb: Callable[..., int | None]) -> Callable[..., int | None]:
    """Spread the options class of a verb's parameter ``common`` into single parameters, as typer expects them."""
    hints = typing.get_type_hints(verb, include_extras=True)
    kind = hints.get("common")
    if kind is None:
        return verb
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(verb).parameters.values()]
    shared = typing.get_type_hints(kind, include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    # The options of a derived class come first, --quiet and --debug last.
    names = [name for base in kind.__mro__[:-1] for name in inspect.get_annotations(base)]

    @functools.wraps(verb)
    def run(**given: Any) -> int | None:
        common = kind(**{name: given.pop(name) for name in names})
        return verb(**given, common=common)

    parameters = [p for p in own if p.name != "common"] + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=shared[name])
        for name in names
    ]
    del run.__wrapped__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run

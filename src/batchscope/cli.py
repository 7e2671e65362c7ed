"""The command: parse, call one library function, render.

Exit status: 0 done, 1 the run failed, 2 the arguments were wrong, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer

from batchscope.errors import ArgumentError, BatchscopeError, StorageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from batchscope.records import Record
    from batchscope.workload import Workload

INTERRUPTED = 130
Number = TypeVar("Number", int, float)

app = typer.Typer(
    name="batchscope",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which batch size, how many iterations, which learning rate, at what cost: measured on your own case.",
)

WorkloadName = Annotated[
    str,
    typer.Argument(
        metavar="WORKLOAD", help="A built-in's name, path/to/file.py:name or package.module:name.", show_default=False
    ),
]
Data = Annotated[str | None, typer.Option(help="Folder or file that a built-in workload reads.")]
LoadTimeout = Annotated[float, typer.Option(help="Seconds that loading the workload may take.")]
Seed = Annotated[int, typer.Option(help="Everything random derives from it.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda …; CUDA where there is one, if left out.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the record to this file.")]
Report = Annotated[Path | None, typer.Option("--report", help="Write the page to this file.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Workers = Annotated[int | None, typer.Option(help="Processes that read a Dataset; as many as pay, if left out.")]
Order = Annotated[Literal["shuffled", "replacement", "stratified"], typer.Option(help="How batches are drawn.")]
MicroBatchSize = Annotated[int | None, typer.Option(help="Examples that pass through the model at once.")]
EvaluateEvery = Annotated[int | None, typer.Option(help="Examples between two evaluations.")]


def _command(function: Callable[..., int | None]) -> Callable[..., None]:
    """Register a verb; turn its errors into one clear message and an exit status."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **options: Any) -> None:
        try:
            status = function(*arguments, **options)
        except BatchscopeError as error:
            _fail(str(error), error.exit_status, debug=options["debug"])
        except KeyboardInterrupt:
            _fail("Interrupted.", INTERRUPTED, debug=False)
        except BrokenPipeError:
            _reader_went_away()
            raise typer.Exit(0) from None
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            _fail(f"The run failed: {said}. Run it with --debug to see where.", 1, debug=options["debug"])
        raise typer.Exit(status or 0)

    app.command()(guarded)
    return guarded


def _reader_went_away() -> None:
    """Let the rest of our output go nowhere: whoever read it, as head does, has enough, which is no failure."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(shown: RenderableType) -> None:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            _reader_went_away()

    Terminal().print(shown)


def _fail(message: str, status: int, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    print(f"batchscope: {message}", file=sys.stderr)
    raise typer.Exit(status) from None


@_command
def compare(
    workload: WorkloadName,
    pairs: Annotated[
        list[str],
        typer.Argument(metavar="BATCHxITERATIONS...", help="As in 16x2000 256x125.", show_default=False),
    ],
    seeds: Annotated[int, typer.Option(help="Runs of each pair.")] = 5,
    learning_rate: Annotated[
        Literal["search", "rescaled", "fixed"],
        typer.Option(help="Searched at every batch size, rescaled by the optimiser's rule, or the reference for all."),
    ] = "search",
    shape: Annotated[Literal["linear", "constant"], typer.Option(help="The rate over the budget.")] = "linear",
    order: Order = "shuffled",
    micro_batch_size: MicroBatchSize = None,
    evaluate_every: EvaluateEvery = None,
    allow_unequal: Annotated[bool, typer.Option("--allow-unequal", help="Compare budgets that differ.")] = False,
    store: Annotated[Path | None, typer.Option(help="Folder for finished runs, to go on from when killed.")] = None,
    data: Data = None,
    load_timeout: LoadTimeout = 30.0,
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Train several ways to spend the same number of examples, and say what differs."""
    from batchscope.study import compare as run

    parsed = [_pair(pair) for pair in pairs]
    _writable(json, report)
    record = run(
        _load(workload, data, load_timeout),
        parsed,
        seeds=seeds,
        learning_rate=learning_rate,
        shape=shape,
        order=order,
        micro_batch_size=micro_batch_size,
        evaluate_every=evaluate_every,
        allow_unequal=allow_unequal,
        store=store,
        seed=seed,
        device=device,
        workers=workers,
        progress=not quiet,
    )
    _show(record, json, report, quiet=quiet)
    if record.error is not None:
        print(f"batchscope: Stopped by an error; what was finished is kept. {record.error}", file=sys.stderr)
        return 1
    if record.interrupted:
        print("batchscope: Interrupted; what was finished is kept.", file=sys.stderr)
        return INTERRUPTED
    return 0 if any(row.finished for row in record.rows) else 1


@_command
def train(
    workload: WorkloadName,
    batch_size: Annotated[int | None, typer.Option(help="Examples per update; the workload's, if left out.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The workload's, if left out.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Updates to make.")] = None,
    examples: Annotated[int | None, typer.Option(help="Examples to train on, instead of --iterations.")] = None,
    target: Annotated[float | None, typer.Option(help="A validation score to stop at.")] = None,
    shape: Annotated[Literal["linear", "constant"], typer.Option(help="The rate over the budget.")] = "constant",
    order: Order = "shuffled",
    patience: Annotated[int | None, typer.Option(help="Stop after this many evaluations without improvement.")] = None,
    tolerance: Annotated[float, typer.Option(help="Improvements up to this do not count for --patience.")] = 0.0,
    micro_batch_size: MicroBatchSize = None,
    evaluate_every: EvaluateEvery = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to save to, and to resume from where it exists.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Write the best weights to this safetensors file.")] = None,
    data: Data = None,
    load_timeout: LoadTimeout = 30.0,
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Train a workload once, stop in time, and keep the best weights."""
    from batchscope.records import Plan
    from batchscope.training import train as run
    from batchscope.training.checkpoint import save_weights

    _writable(json, report, weights, checkpoint)
    chosen = _load(workload, data, load_timeout)
    plan = Plan(
        batch_size=chosen.batch_size if batch_size is None else batch_size,
        learning_rate=chosen.learning_rate if learning_rate is None else learning_rate,
        iterations=iterations,
        examples=examples,
        target=target,
        shape=shape,
        order=order,
        micro_batch_size=micro_batch_size,
        patience=patience,
        tolerance=tolerance,
    )
    result = run(
        chosen,
        plan,
        seed=seed,
        device=device,
        evaluate_every=evaluate_every,
        checkpoint=checkpoint,
        workers=workers,
        progress=not quiet,
    )
    _show(result, json, report, quiet=quiet)
    if weights is not None and result.state is not None:
        save_weights(weights, result.state)
    if result.outcome == "interrupted":
        print("batchscope: Interrupted; what was finished is kept.", file=sys.stderr)
        return INTERRUPTED
    return 0 if result.ended_in_order else 1


@_command
def probe(
    workload: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD",
            help="A built-in's name, path/to/file.py:name or package.module:name; or a probe's JSON, to re-plan it.",
            show_default=False,
        ),
    ],
    seconds: Annotated[float, typer.Option(help="About how long it may take.")] = 45.0,
    memory: Annotated[str | None, typer.Option(help="Memory that training may take, as in 8GiB.")] = None,
    speed: Annotated[
        float | None, typer.Option(help="With a probe's JSON: how many times faster an example is computed there.")
    ] = None,
    fixed_speed: Annotated[
        float | None,
        typer.Option(help="The same for an update's fixed cost; --speed, if left out."),
    ] = None,
    branches: Annotated[bool, typer.Option(help="Measure the critical batch size by branched runs too.")] = True,
    range_test: Annotated[bool, typer.Option(help="Make a learning-rate range test.")] = True,
    data: Data = None,
    load_timeout: LoadTimeout = 30.0,
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure what the choice of a batch size hangs on: memory, throughput, gradient noise."""
    memory_bytes = None if memory is None else _bytes(memory)
    saved = Path(workload) if workload.endswith(".json") else None
    if saved is not None:
        _writable(json, report, reads=saved)
        _show(_replanned(saved, memory_bytes, speed, fixed_speed), json, report, quiet=quiet)
        return
    if speed is not None or fixed_speed is not None:
        raise ArgumentError(
            "another speed needs a saved probe",
            got=workload,
            mend="probe with --json first, then give that file in the workload's place",
        )
    _writable(json, report)
    from batchscope.measure import probe as run

    record = run(
        _load(workload, data, load_timeout),
        seconds=seconds,
        memory_bytes=memory_bytes,
        branches=branches,
        learning_rate=range_test,
        seed=seed,
        device=device,
        workers=workers,
        progress=not quiet,
    )
    _show(record, json, report, quiet=quiet)


@_command
def sweep(
    workload: WorkloadName,
    batch_sizes: Annotated[str | None, typer.Option(help="As in 4,8,16; 8,32,128,512,2048, if left out.")] = None,
    learning_rates: Annotated[str, typer.Option(help="As in 0.01,0.1; or search.")] = "search",
    seeds: Annotated[int, typer.Option(help="Runs at the best learning rates.")] = 3,
    target: Annotated[float | None, typer.Option(help="A validation score to reach.")] = None,
    examples: Annotated[int | None, typer.Option(help="Budget of a trial; with --target: given up there.")] = None,
    shape: Annotated[
        Literal["linear", "constant"] | None,
        typer.Option(help="The rate over the budget: constant with --target, linear without, if left out."),
    ] = None,
    order: Order = "shuffled",
    prune: Annotated[bool, typer.Option(help="Stop trials that cannot win.")] = True,
    evaluate_every: EvaluateEvery = None,
    store: Annotated[
        Path | None, typer.Option(help="SQLite file of finished trials, to go on from when killed.")
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Where trials run.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; a local one is started, if left out.")] = None,
    processes: Annotated[int | None, typer.Option(help="Trials, or stacks of them, that run at once.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds of silence after which a trial is given up.")] = None,
    data: Data = None,
    load_timeout: LoadTimeout = 30.0,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Train over batch sizes, learning rates and seeds, and fit the laws that come out."""
    from batchscope.study import sweep as run

    sizes = None if batch_sizes is None else _numbers("--batch-sizes", batch_sizes, int)
    rates: list[float] | Literal["search"] = (
        "search" if learning_rates == "search" else _numbers("--learning-rates", learning_rates, float)
    )
    _writable(json, report)
    record = run(
        _load(workload, data, load_timeout),
        sizes,
        learning_rates=rates,
        seeds=seeds,
        target=target,
        examples=examples,
        shape=shape,
        order=order,
        prune=prune,
        evaluate_every=evaluate_every,
        store=store,
        engine=engine,
        address=address,
        processes=processes,
        timeout_seconds=timeout,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    _show(record, json, report, quiet=quiet)
    if record.error is not None:
        print(f"batchscope: Stopped by an error; what was finished is kept. {record.error}", file=sys.stderr)
        return 1
    if record.interrupted:
        kept = "what was finished is kept" if store else "give --store to go on from here the next time"
        print(f"batchscope: Interrupted; {kept}.", file=sys.stderr)
        return INTERRUPTED
    return 0 if any(line.runs for line in record.best) else 1


@_command
def fit(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE.csv",
            help="A line per run: batch_size, examples_to_target or updates; maybe learning_rate, outcome, spent.",
            show_default=False,
        ),
    ],
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit the trade-off law to a table of batch sizes and what the target took."""
    from batchscope.study.table_file import read_table

    _writable(json, report, reads=table)
    _show(read_table(table).fit(), json, report, quiet=quiet)


@_command
def export(
    store: Annotated[Path, typer.Argument(help="The store of a sweep, which may be running.", show_default=False)],
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the trials to this file.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="Write the trials to this file.")] = None,
    curves: Annotated[
        Path | None, typer.Option("--curves", help="Write their evaluations to this file, .csv or .parquet.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the trials in a sweep's store as CSV or Parquet."""
    from batchscope.study.export import export as run

    _writable(csv, parquet, curves, reads=store)
    for path in run(store, csv=csv, parquet=parquet, curves=curves):
        if not quiet:
            print(f"Wrote {path}")


@_command
def workloads(debug: Debug = False) -> None:
    """List the built-in workloads, their sizes, and where their data come from."""
    from batchscope.report.listing import workloads_table
    from batchscope.workload.catalogue import describe

    _print(workloads_table(describe()))


@_command
def report(
    record: Annotated[Path, typer.Argument(help="A JSON file that --json wrote.", show_default=False)],
    report: Annotated[
        Path | None, typer.Option("--report", help="The page to write; beside the record, if left out.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show a saved record again, as a table and as a page, without training."""
    from batchscope.records import load

    loaded = load(record)
    page = record.with_suffix(".html") if report is None else report
    _writable(page, reads=record)
    _show(loaded, None, page, quiet=quiet)


def _load(name: str, data: str | None, timeout_seconds: float) -> Workload:
    from batchscope.workload import load_workload

    return load_workload(name, data=data, timeout_seconds=timeout_seconds)


def _pair(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*([0-9]{1,15})\s*[xX×*]\s*([0-9]{1,15})\s*", text)
    if match is None:
        raise ArgumentError("a pair is BATCHxITERATIONS", got=text, mend="write it as in 16x2000")
    return int(match[1]), int(match[2])


def _numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        example = "8,32,128" if kind is int else "0.01,0.1"
        raise ArgumentError(f"{name} must be numbers separated by commas", got=text, mend=f"as in {example}") from error


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ArgumentError("memory is a number with a unit", got=text, mend="write it as in 8GiB or 800MB")
    power = " KMGT".index(match[2].upper() or " ")
    size: int = round(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if size < 1:
        raise ArgumentError("memory must be at least one byte", got=text)
    return size


def _replanned(saved: Path, memory_bytes: int | None, speed: float | None, fixed_speed: float | None) -> Record:
    from batchscope.fit import replan
    from batchscope.records import Probe, load

    record = load(saved)
    if not isinstance(record, Probe):
        raise ArgumentError("a record to re-plan must be a probe", got=f"{saved}, a {record.kind} record")
    return replan(record, memory_bytes=memory_bytes, speed=1.0 if speed is None else speed, fixed_speed=fixed_speed)


def _writable(*paths: Path | None, reads: Path | None = None) -> None:
    """Refuse a place that cannot be written before anything is trained, rather than after."""
    wanted = [path for path in paths if path is not None]
    for path in wanted:
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            with contextlib.suppress(FileNotFoundError):
                path.stat()
            folder = path.absolute().parent
            while not folder.exists():
                folder = folder.parent
            # Tried with the name that the file has while it is written, since permissions alone do not tell.
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
                pass
        except (OSError, ValueError) as error:
            raise ArgumentError(
                "a result must go to a file that this user may write",
                got=f"{path} ({getattr(error, 'strerror', None) or error})",
                mend="name a file in a folder of your own",
            ) from error
    places = [os.path.realpath(path) for path in (*wanted, reads) if path is not None]
    for path, place in zip(wanted, places, strict=False):
        if places.count(place) > 1:
            raise ArgumentError("each result must go to a file of its own", got=f"{path} twice", mend="name another")


def _show(record: Record, json: Path | None, report: Path | None, *, quiet: bool) -> None:
    """Write and print a record; what cannot be written where it was wanted is kept elsewhere, or printed at least."""
    failures: list[BatchscopeError] = []
    kept = True
    if json is not None:
        try:
            record.to_json(json)
        except StorageError as error:
            failures.append(error)
            kept = _kept_elsewhere(record, json)
    if not quiet or not kept:
        _print(record.table())
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
    print(f"batchscope: The record could not be written to {wanted}; it is kept in {kept}.", file=sys.stderr)
    return True


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        import importlib.metadata

        print(importlib.metadata.version("batchscope"))
        raise typer.Exit(0)


def main() -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without × or − shows ? for them, rather than nothing
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()

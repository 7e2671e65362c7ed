"""A workload measured, or a saved probe adapted to another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchscope.cli.options import TrainingOptions, workload_argument
from batchscope.cli.parsing import load_record, parse_bytes
from batchscope.errors import ArgumentError


def probe(
    workload: Annotated[str, workload_argument("; or the JSON file of a probe, to adapt it to another machine")],
    seconds: Annotated[float, typer.Option(help="Approximate seconds that it may take.")] = 45.0,
    memory: Annotated[str | None, typer.Option(help="Memory that training may take, for example 8GiB.")] = None,
    speed: Annotated[
        float | None,
        typer.Option(help="With a saved probe: how many times faster the other machine computes an example."),
    ] = None,
    fixed_speed: Annotated[
        float | None,
        typer.Option(help="The same for the fixed cost of an update; by default --speed."),
    ] = None,
    branches: Annotated[
        bool, typer.Option(help="Measure the critical batch size by branched training runs too.")
    ] = True,
    range_test: Annotated[bool, typer.Option(help="Run a learning-rate range test.")] = True,
    *,
    common: TrainingOptions,
) -> None:
    """Measure what limits the batch size: memory, throughput and gradient noise."""
    memory_bytes = None if memory is None else parse_bytes(memory)
    if workload.endswith(".json"):
        from batchscope.fit import replan
        from batchscope.records import Probe

        saved = Path(workload)
        common.check(reads=saved)
        before: Probe = load_record(saved, Probe, rule="a record to re-plan must be a probe")
        factor = 1.0 if speed is None else speed
        common.show(replan(before, memory_bytes=memory_bytes, speed=factor, fixed_speed=fixed_speed))
        return
    if speed is not None or fixed_speed is not None:
        raise ArgumentError(
            "--speed and --fixed-speed need a saved probe",
            got=workload,
            mend="run probe with --json first, and give that file in place of the workload",
        )
    from batchscope.measure import probe as run

    record = run(
        common.load(workload),
        seconds=seconds,
        memory_bytes=memory_bytes,
        branches=branches,
        learning_rate=range_test,
        **common.arguments,
    )
    common.show(record)

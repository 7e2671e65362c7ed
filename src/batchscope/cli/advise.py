"""Which setting to use."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from batchscope.cli.ending import INTERRUPTED
from batchscope.cli.options import Data, Debug, Device, Json, LoadTimeout, Quiet, Report, Seed, Workers, WorkloadName
from batchscope.cli.parsing import check_writable, load_named, parse_bytes, parse_network, parse_numbers, parse_power
from batchscope.cli.showing import show


def advise(
    workload: WorkloadName,
    target: Annotated[float | None, typer.Option(help="A validation score to reach in the least time.")] = None,
    examples: Annotated[int | None, typer.Option(help="Examples to train on, for the best score.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds to train, for the best score.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Seconds that the advice may cost; a quarter of a run, if left out.")
    ] = None,
    max_memory: Annotated[str | None, typer.Option(help="Memory that training may take, as in 8GiB.")] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="Those that may be advised, as in 8,64.")] = None,
    devices: Annotated[int, typer.Option(help="Devices that share each batch.")] = 1,
    network: Annotated[
        str | None, typer.Option(help="GB/s and µs of latency between the devices, as in 12,20.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of a device for an hour.")] = None,
    power: Annotated[
        str | None,
        typer.Option(help="Power of a device: watts, watts by batch size as in 16:180,256:240, or measured."),
    ] = None,
    cost: Annotated[
        float | None,
        typer.Option(
            metavar="TIME_SHARE",
            help="Least energy (0), least time (1), or between: share of time in what is least, with a target.",
        ),
    ] = None,
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
    """Say which batch size, learning rate and number of updates to use, how sure that is, and why."""
    from batchscope.search import advise as run

    memory = None if max_memory is None else parse_bytes(max_memory)
    sizes = None if batch_sizes is None else parse_numbers("--batch-sizes", batch_sizes, int)
    between = None if network is None else parse_network(network)
    watts = None if power is None else parse_power(power)
    check_writable(json, report)
    record = run(
        load_named(workload, data, load_timeout),
        target=target,
        examples=examples,
        seconds=seconds,
        budget_seconds=budget,
        max_memory_bytes=memory,
        batch_sizes=sizes,
        devices=devices,
        network=between,
        price_per_hour=price,
        power_watts=watts,
        time_share=cost,
        seed=seed,
        device=device,
        workers=workers,
        progress=not quiet,
    )
    show(record, json, report, quiet=quiet)
    if record.interrupted:
        print("batchscope: Interrupted; what was found until then is kept.", file=sys.stderr)
        return INTERRUPTED
    return 0 if record.batch_size is not None else 1

"""Advice on which setting to use."""

from __future__ import annotations

from typing import Annotated

import typer

from batchscope.cli.options import TrainingOptions, WorkloadName
from batchscope.cli.parsing import parse_bytes, parse_network, parse_numbers, parse_power


def advise(
    workload: WorkloadName,
    target: Annotated[float | None, typer.Option(help="Validation score to reach in the least time.")] = None,
    examples: Annotated[int | None, typer.Option(help="Examples to train on, for the best score.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds to train, for the best score.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Seconds that the advice may cost; by default a quarter of a training run.")
    ] = None,
    max_memory: Annotated[str | None, typer.Option(help="Memory that training may take, for example 8GiB.")] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="Batch sizes to consider, for example 8,64.")] = None,
    devices: Annotated[int, typer.Option(help="Devices that share each batch.")] = 1,
    network: Annotated[
        str | None,
        typer.Option(help="Bandwidth in GB/s and latency in µs between the devices, for example 12,20."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of one device for one hour.")] = None,
    power: Annotated[
        str | None,
        typer.Option(help="Power of a device: watts, watts by batch size (16:180,256:240), or measured."),
    ] = None,
    cost: Annotated[
        float | None,
        typer.Option(
            metavar="TIME_SHARE",
            help="Weight of time against energy, with --target: 1 minimises time, 0 energy.",
        ),
    ] = None,
    *,
    common: TrainingOptions,
) -> int:
    """Advise a batch size, a learning rate and a number of updates, with intervals and reasons."""
    from batchscope.search import advise as run

    memory = None if max_memory is None else parse_bytes(max_memory)
    sizes = None if batch_sizes is None else parse_numbers("--batch-sizes", batch_sizes, int)
    between = None if network is None else parse_network(network)
    watts = None if power is None else parse_power(power)
    record = run(
        common.load(workload),
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
        **common.arguments,
    )
    return common.end(record, succeeded=record.batch_size is not None)

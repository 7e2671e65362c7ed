"""How many devices are worth using, from a saved probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from batchscope.cli.options import Output
from batchscope.cli.parsing import load_record, parse_network, parse_numbers


def plan(
    probe: Annotated[
        Path,
        typer.Argument(
            metavar="PROBE.json", help="A probe of one device, from batchscope probe --json.", show_default=False
        ),
    ],
    network: Annotated[
        str, typer.Option(help="Bandwidth in GB/s and latency in µs of the slowest link, for example 12,20.")
    ],
    devices: Annotated[str, typer.Option(help="Numbers of devices.")] = "1,8,64,1024",
    law: Annotated[
        Path | None, typer.Option(help="JSON file of a sweep or a trade-off law, for updates to a target.")
    ] = None,
    target_examples: Annotated[
        float | None, typer.Option(help="Examples to the target at the workload's own batch size.")
    ] = None,
    algorithm: Annotated[
        Literal["ring", "tree", "fastest"], typer.Option(help="All-reduce algorithm that sums gradients.")
    ] = "ring",
    overlap: Annotated[
        float, typer.Option(help="Share of the backward pass that overlaps with the sum of gradients.")
    ] = 0.0,
    zero: Annotated[
        int,
        typer.Option(help="ZeRO stage: 1 shards the optimiser's state, 2 gradients too, 3 weights too."),
    ] = 0,
    price: Annotated[float | None, typer.Option(help="Price of one device for one hour.")] = None,
    power: Annotated[float | None, typer.Option(help="Power of a device in watts.")] = None,
    least_gain: Annotated[
        float, typer.Option(help="Least gain in speed that makes twice the devices worthwhile.")
    ] = 0.1,
    least_efficiency: Annotated[float, typer.Option(help="Least efficiency that makes more devices worthwhile.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the draws behind the intervals.")] = 0,
    *,
    common: Output,
) -> None:
    """Predict time and cost of training on several numbers of devices, and the number beyond which more do not pay."""
    from batchscope.fit import plan_devices
    from batchscope.records import Probe, Sweep, TradeoffLaw

    common.check(reads=probe)
    measured: Probe = load_record(probe, Probe, rule="PROBE.json must be a record of batchscope probe")
    tradeoff: Sweep | TradeoffLaw | None = None
    if law is not None:
        tradeoff = load_record(law, Sweep, TradeoffLaw, rule="--law must be the record of a sweep or a trade-off law")
    record = plan_devices(
        measured,
        parse_numbers("--devices", devices, int),
        network=parse_network(network),
        law=tradeoff,
        target_examples=target_examples,
        algorithm=algorithm,
        overlap=overlap,
        zero_stage=zero,
        price_per_hour=price,
        power_watts=power,
        least_gain=least_gain,
        least_efficiency=least_efficiency,
        seed=seed,
    )
    common.show(record)

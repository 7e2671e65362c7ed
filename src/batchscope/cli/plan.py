"""How far more devices pay, from a saved probe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from batchscope.cli.options import Debug, Json, Quiet, Report
from batchscope.cli.parsing import check_writable, parse_network, parse_numbers
from batchscope.cli.showing import show
from batchscope.errors import ArgumentError

if TYPE_CHECKING:
    from batchscope.records import Probe, Sweep, TradeoffLaw


def plan(
    probe: Annotated[
        Path,
        typer.Argument(
            metavar="PROBE.json", help="A probe of one device: batchscope probe --json.", show_default=False
        ),
    ],
    network: Annotated[str, typer.Option(help="GB/s and µs of latency of the slowest link between them, as in 12,20.")],
    devices: Annotated[str, typer.Option(help="Numbers of devices.")] = "1,8,64,1024",
    law: Annotated[
        Path | None, typer.Option(help="A sweep's or a trade-off law's JSON, for updates to a target.")
    ] = None,
    target_examples: Annotated[
        float | None, typer.Option(help="Examples that the target takes with the workload's own batch size.")
    ] = None,
    algorithm: Annotated[Literal["ring", "tree", "fastest"], typer.Option(help="How gradients are summed.")] = "ring",
    overlap: Annotated[
        float, typer.Option(help="Share of the backward pass during which gradients are summed already.")
    ] = 0.0,
    zero: Annotated[
        int, typer.Option(help="What is divided among devices: 1 the optimiser's state, 2 gradients, 3 weights too.")
    ] = 0,
    price: Annotated[float | None, typer.Option(help="Price of a device for an hour.")] = None,
    power: Annotated[float | None, typer.Option(help="Power of a device, in watts.")] = None,
    least_gain: Annotated[float, typer.Option(help="Less gain than this for twice the devices does not pay.")] = 0.1,
    least_efficiency: Annotated[float, typer.Option(help="Nor does less efficiency than this.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the draws behind the intervals.")] = 0,
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say how fast and how dear training is on some numbers of devices, and from where more do not pay."""
    from batchscope.fit import plan_devices

    check_writable(json, report, reads=probe)
    record = plan_devices(
        _probe(probe),
        parse_numbers("--devices", devices, int),
        network=parse_network(network),
        law=None if law is None else _law(law),
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
    show(record, json, report, quiet=quiet)


def _probe(path: Path) -> Probe:
    from batchscope.records import Probe, load

    record = load(path)
    if not isinstance(record, Probe):
        raise ArgumentError(
            "devices are planned from a probe",
            got=f"{path}, a {record.kind} record",
            mend="make one with batchscope probe WORKLOAD --json",
        )
    return record


def _law(path: Path) -> Sweep | TradeoffLaw:
    from batchscope.records import Sweep, TradeoffLaw, load

    record = load(path)
    if not isinstance(record, Sweep | TradeoffLaw):
        raise ArgumentError("--law must be a sweep's or a trade-off law's JSON", got=f"{path}, a {record.kind} record")
    return record

"""The time of an update on two ranks, worked out from one rank and the network, beside what it takes.

python benchmarks/devices.py [--rounds 40]

Two ranks with a thread each, on gloo over this machine's own loopback. In every round, at every size in an order drawn
anew, five blocks of single timed updates take turns: rank 0 alone while the other waits, both at once without talking,
both together with their gradients summed (:class:`batchscope.training.data_parallel.DataParallelStep`), and all-reduces
of several sizes. What a rank does by itself includes packing its gradients for the sum, and unpacking them: the same
step in a process group of one. The law of step times is fitted to rank 0 alone, that of the network to the all-reduces;
what both say of two ranks is compared with the updates made together, also at shares that the law was not fitted to.

A machine that does other things too lengthens all of these, and those of two ranks that wait for each other most. So
two figures are given: medians, and the 5th percentile, which is what updates take in quiet moments. Two ranks on one
machine also share its memory's bandwidth and caches, and wait for whichever was held up, which the model knows nothing
of: the slower of both at once without talking, as their own times are drawn, shows how much that is, and a second
prediction adds the network to that.

Public figures beside it: Goyal et al. 2017 (arXiv 1706.02677) kept about 90% of the efficiency from 8 to 256 GPUs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from batchscope.fit.communication import all_reduce_seconds, data_parallel_step_seconds, fit_all_reduce
from batchscope.fit.step_time import fit_step_time
from cases import keep, machine
from workloads import TASKS

# Shares that the law is fitted to, and those of the batches that it is asked about: some are among them, some not.
SHARES = {"fashion-mlp": (16, 32, 64, 128, 256), "fashion": (4, 8, 16, 32)}
ASKED = {"fashion-mlp": (32, 96, 192, 256), "fashion": (8, 12, 24, 32)}
MESSAGES = (1 << 10, 1 << 14, 1 << 17, 1 << 19, 1 << 21)
UPDATES = 4
QUIET, TARGET = 5, 0.15
Samples = dict[str, list[float]]


class Silent:
    """In the place of two ranks: each sums its gradients in a group of its own."""

    rank, size = 0, 2

    def __init__(self, rank: int) -> None:
        import torch.distributed as dist

        self.group = [dist.new_group([r], backend="gloo") for r in range(self.size)][rank]

    def add_up(self, tensor: torch.Tensor) -> None:
        """Leave it as it is."""

    def exchange(self, value: Any) -> list[Any]:
        """The same from both."""
        return [value, value]


def timed(act: Callable[[], object], into: list[float]) -> None:
    for _ in range(UPDATES):
        began = time.perf_counter()
        act()
        into.append(time.perf_counter() - began)


def measure(rounds: int) -> dict[str, Samples]:
    """One of two ranks: seconds of every update and all-reduce, by what was done."""
    from batchscope.measure.step_time import Timer
    from batchscope.training.data_parallel import DataParallelStep
    from batchscope.training.interruption import StopRequest
    from batchscope.training.loop import Prepared
    from batchscope.training.ranks import together

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    found: dict[str, Samples] = {"plain": {}, "alone": {}, "apart": {}, "together": {}, "sums": {}}
    with together() as ranks:
        if ranks is None:
            raise RuntimeError("start it as a rank")
        ranks.use(cpu)
        steps: dict[str, tuple[Callable[[], object], ...]] = {}
        for name, shares in SHARES.items():
            prepared = Prepared(TASKS[name].make(), cpu, workers=0)
            timer = Timer(prepared, 0)
            silent, shared = (
                DataParallelStep(
                    prepared.workload,
                    own.model,
                    own.step.optimizer,
                    ranks=between,  # type: ignore[arg-type]
                    asked=StopRequest(),
                    micro_batch_size=None,
                )
                for own, between in ((Timer(prepared, 0), Silent(ranks.rank)), (Timer(prepared, 0), ranks))
            )
            for share in sorted({*shares, *ASKED[name]}):
                [own_size] = timer.grid([share], math.inf, None)
                batch = next(own_size.batches)
                # Bound now: the loop's variables change.
                steps[f"{name}/{share}"] = (
                    lambda step=timer.step, batch=batch, share=share: step(batch, share),  # type: ignore[misc]
                    lambda step=silent, batch=batch, share=share: step(batch, 2 * share),  # type: ignore[misc]
                    lambda step=shared, batch=batch, share=share: step(batch, 2 * share),  # type: ignore[misc]
                )
        messages = {str(size): torch.zeros(size // 4) for size in MESSAGES}
        order = np.random.default_rng(0)
        for _ in range(rounds):
            for i in order.permutation(len(steps)):
                key = list(steps)[i]
                plain, own, both = steps[key]
                ranks.exchange(None)
                if ranks.rank == 0:
                    timed(plain, found["plain"].setdefault(key, []))
                ranks.exchange(None)
                if ranks.rank == 0:
                    timed(own, found["alone"].setdefault(key, []))
                ranks.exchange(None)
                timed(own, found["apart"].setdefault(key, []))
                ranks.exchange(None)
                timed(both, found["together"].setdefault(key, []))
            for size, message in messages.items():
                ranks.exchange(None)
                timed(lambda message=message: ranks.add_up(message), found["sums"].setdefault(size, []))  # type: ignore[misc]
        found["other"] = ranks.exchange(found["apart"])[1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--rank", action="store_true")
    arguments = parser.parse_args()
    if arguments.rank:
        found = measure(arguments.rounds)
        if os.environ["RANK"] == "0":
            print(json.dumps(found), flush=True)
        return
    words = [str(Path(__file__)), "--rank", "--rounds", str(arguments.rounds)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    samples = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    console = Console(width=120)
    rows = []
    for which, share in (("medians", 50.0), ("quiet moments, 5th percentile", float(QUIET))):
        rows += shown(console, samples, which, share)
    goyal = published()
    console.print(
        f"Goyal et al. 2017, 8 to 256 GPUs, about 90%: by the model {goyal['no overlap']:.0%} without overlap, "
        f"{goyal['half overlap']:.0%} with half and {goyal['full overlap']:.0%} with all of the backward pass."
    )
    load = os.getloadavg()
    console.print({**machine(), "load": load})
    keep("devices", [*rows, {"which": "Goyal et al. 2017", **goyal}, {"which": "machine", "load": load}])


def shown(console: Console, samples: dict[str, Samples], which: str, percentile: float) -> list[dict[str, Any]]:
    """A table of what was predicted and measured, by one percentile of the times."""

    def at(kind: str, key: str) -> float:
        return float(np.percentile(samples[kind][key], percentile))

    network = fit_all_reduce(MESSAGES, np.array([[at("sums", str(size)) for size in MESSAGES]] * 6), ranks=2)
    table = Table(title=f"Time of an update on two ranks, ms: {which}")
    for column in (
        "workload",
        "batch",
        "plain",
        "one rank",
        "sum",
        "predicted",
        "measured",
        "off",
        "from the slower",
        "off",
    ):
        table.add_column(column, justify="left" if column == "workload" else "right")
    rows: list[dict[str, Any]] = []
    for name, shares in SHARES.items():
        law = fit_step_time(shares, np.array([[at("alone", f"{name}/{share}") for share in shares]] * 6))
        model = TASKS[name].make().model()
        size = sum(4 * parameter.numel() for parameter in model.parameters())
        summing = network.seconds(size, ranks=2) or math.nan
        for share in ASKED[name]:
            measured = at("together", f"{name}/{share}")
            ours = data_parallel_step_seconds(law, 2 * share, ranks=2, parameter_bytes=size, law=network) or math.nan
            busy = slower(samples, f"{name}/{share}", percentile) + summing
            row: dict[str, Any] = {
                "which": which,
                "workload": name,
                "batch_size": 2 * share,
                "in_the_law": share in shares,
                "plain_seconds": at("plain", f"{name}/{share}"),
                "one_rank_seconds": at("alone", f"{name}/{share}"),
                "slower_of_two_at_once_seconds": busy - summing,
                "sum_seconds": summing,
                "predicted_seconds": ours,
                "predicted_from_two_at_once_seconds": busy,
                "measured_seconds": measured,
                "off": ours / measured - 1,
                "off_from_two_at_once": busy / measured - 1,
            }
            rows.append(row)
            cells = [f"{1e3 * t:.2f}" for t in (row["plain_seconds"], row["one_rank_seconds"], summing, ours, measured)]
            more = (f"{row['off']:+.0%}", f"{1e3 * busy:.2f}", f"{row['off_from_two_at_once']:+.0%}")
            table.add_row(name, str(2 * share), *cells, *more)
    console.print(table)
    for start, key in (("one rank alone", "off"), ("the slower of two at once", "off_from_two_at_once")):
        errors = sorted(abs(row[key]) for row in rows)
        good = sum(error <= TARGET for error in errors)
        console.print(
            f"From {start}: {good} of {len(rows)} within {TARGET:.0%}, median {statistics.median(errors):.0%}, "
            f"largest {errors[-1]:.0%}."
        )
    latency, bandwidth = network.latency_seconds.value or 0.0, network.bytes_per_second.value or math.nan
    console.print(
        f"Network: α {1e6 * latency:.0f} µs, β {bandwidth / 1e9:.2f} GB/s, residuals {network.relative_error:.0%}."
    )
    return rows


def slower(samples: dict[str, Samples], key: str, percentile: float) -> float:
    """The slower of two ranks that make an update at once, each time drawn from its own."""
    draws = np.random.default_rng(0)
    first, second = (draws.choice(samples[kind][key], 20_000) for kind in ("apart", "other"))
    return float(np.percentile(np.maximum(first, second), percentile))


def published() -> dict[str, float]:
    """Efficiency of 256 GPUs over 8 by the model, with what the paper says of its hardware.

    32 images on each P100, 120 ms for the backward pass (half as much again for the whole update is taken), 100 MB of
    gradients, 50 Gbit/s between machines; a latency of 20 µs is assumed. Other than in the paper: one ring of equal
    links, where theirs sums inside each machine by NVLink first and then by halving and doubling, and sums each layer's
    gradient as soon as it is there.
    """
    backward, gradients, links, latency = 0.12, 1e8, 50e9 / 8, 2e-5
    computing = 1.5 * backward

    def step(ranks: int, overlap: float) -> float:
        summing = float(all_reduce_seconds(latency, links, message_bytes=gradients, ranks=ranks))
        return computing + max(0.0, summing - overlap * backward)

    # Eight GPUs in one machine sum over NVLink, which is taken to cost nothing.
    return {
        f"{said} overlap": computing / step(256, overlap)
        for said, overlap in (("no", 0.0), ("half", 0.5), ("full", 1.0))
    }


if __name__ == "__main__":
    main()

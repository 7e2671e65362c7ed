"""What measuring the gradient noise scale adds to a hand-written loop, in alternating runs in one process.

Each round trains by hand and with bs.GradientNoise at its default, on the same model, one after the other in turns;
the ratio is taken within the round. The monitor goes on from round to round, as it would in one long run. What one
measurement costs, in steps, stands beside what one of gns-pytorch's and of backpack's does: gns-pytorch's default is
one parameter tensor in a hundred, but at least ten, and a quarter of the batch; backpack is given the network of
Fashion-MNIST as the chain of modules that it asks for.

    python benchmarks/monitor.py [--rounds 5] [--workloads fashion,text] [--batch-sizes 32,128,512,1024]
"""

from __future__ import annotations

import argparse
import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import batchscope as bs
from batchscope.errors import first_line
from batchscope.workload import Workload
from batchscope.workload.fashion import FashionCNN
from cases import case, keep, machine, median_and_spread

LARGEST = {"fashion": 1024, "text": 512}


class Loop:
    """A hand-written loop that can be gone on with, for so many updates at a time."""

    def __init__(self, workload: Workload, batch_size: int) -> None:
        torch.manual_seed(0)
        self.workload, self.batch_size = workload, batch_size
        self.model = workload.model()
        self.optimizer = workload.optimizer(self.model.parameters(), workload.learning_rate)
        self.loss = workload.loss

    def __call__(self, iterations: int, backward: Callable[[nn.Module, Tensor, Tensor], None] | None = None) -> float:
        """Seconds for so many updates."""
        x, y = self.workload.train  # type: ignore[misc]
        indices = torch.randint(len(x), (iterations, self.batch_size))
        model, optimizer, loss_of = self.model, self.optimizer, self.loss
        began = time.perf_counter()
        for rows in indices:
            a, b = x[rows], y[rows]
            optimizer.zero_grad()
            if backward is None:
                loss_of(model(a), b).backward()  # type: ignore[no-untyped-call]
            else:
                backward(model, a, b)
            optimizer.step()
        return time.perf_counter() - began


def with_gns_pytorch(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Losses one by one, of which gns-pytorch differentiates a quarter before the batch's own backward pass."""
    from gns_pytorch import compute_gns

    output = model(x)
    losses = F.cross_entropy(output.movedim(-1, 1), y, reduction="none")
    each = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
    compute_gns(each, model)
    each.mean().backward()  # type: ignore[no-untyped-call]


class Standardised(nn.Module):
    """The first thing that the network for Fashion-MNIST does, as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Pixels of mean 0 and variance 1."""
        return (x.float() - 72.93) / 90.015


def chain_of(model: nn.Module) -> nn.Module:
    """The network for Fashion-MNIST as a chain of modules."""
    if not isinstance(model, FashionCNN):
        return model
    first = (Standardised(), model.convolution1, nn.MaxPool2d(2), nn.ReLU(), model.convolution2, nn.MaxPool2d(2))
    return nn.Sequential(*first, nn.ReLU(), nn.Flatten(), model.hidden, nn.ReLU(), model.output)


def backpack_of(loop: Loop) -> Callable[[nn.Module, Tensor, Tensor], None]:
    """Squared norms of single examples' gradients by backpack, from a model made known to it."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    loop.model = extend(chain_of(loop.model))
    loss_of = extend(nn.CrossEntropyLoss())

    def backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
        output = model(x)
        with backpack(BatchL2Grad()):
            loss_of(output.flatten(0, -2), y.flatten()).backward()
        missing = [name for name, p in model.named_parameters() if not hasattr(p, "batch_l2")]
        if missing:
            raise NotImplementedError(f"no norms of {missing[0]}")

    return backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", type=int, default=2, help="steps that gns-pytorch and backpack take part in")
    parser.add_argument("--seconds", type=float, default=2.0, help="aimed at for each run")
    parser.add_argument("--workloads", default="fashion,text")
    parser.add_argument("--batch-sizes", default="32,128,512,1024")
    arguments = parser.parse_args()

    table = Table(title="Noise scale in a loop: time over the hand-written loop's (median of rounds, least–most)")
    for column in ("workload", "batch", "step, ms", "with GradientNoise", "says itself", "measured"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for column in ("one of ours", "of gns-pytorch", "of backpack"):
        table.add_column(f"{column}, steps", justify="right")
    rows = []
    for name in arguments.workloads.split(","):
        workload = case(name)
        for batch_size in map(int, arguments.batch_sizes.split(",")):
            if batch_size > LARGEST.get(name, batch_size):
                continue
            row = _measure(name, workload, batch_size, arguments)
            rows.append(row)
            table.add_row(
                name,
                str(batch_size),
                f"{1000 * row['step_seconds']:.2f}",
                median_and_spread(row["ratios"]),
                f"{row['overhead']:.1%}",
                f"{row['steps_measured']} of {row['steps']}",
                "–" if row["cost_in_steps"] is None else f"{row['cost_in_steps']:.2f}",
                *(_shown(row[other]) for other in ("gns_pytorch", "backpack")),
            )
    console = Console(width=150)
    console.print(table)
    for row in rows:
        for other in ("gns_pytorch", "backpack"):
            if isinstance(row[other], str):
                console.print(f"{row['workload']}, batch {row['batch_size']}, {other}: {row[other]}")
    console.print(machine())
    console.print(f"Kept in {keep('monitor', rows)}")


def _measure(name: str, workload: Workload, batch_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    loop = Loop(workload, batch_size)
    loop(2)
    iterations = max(4, min(3000, round(arguments.seconds * 3 / loop(3))))
    state: dict[str, Any] | None = None

    def monitored() -> float:
        nonlocal state
        with bs.GradientNoise(loop.model, loop.optimizer) as noise:
            if state is not None:
                noise.load_state_dict(state)
            seconds = loop(iterations)
            state = noise.state_dict()
        return seconds

    monitored()  # warms up
    ratios, by_hand = [], []
    for number in range(arguments.rounds):
        if number % 2:
            ours, hand = monitored(), loop(iterations)
        else:
            hand, ours = loop(iterations), monitored()
        ratios.append(ours / hand)
        by_hand.append(hand)
        print(f"{name} batch {batch_size} round {number + 1}: {ratios[-1]:.3f}", flush=True)
    step_seconds = sorted(by_hand)[len(by_hand) // 2] / iterations
    with bs.GradientNoise(loop.model, loop.optimizer) as noise:
        if state is not None:
            noise.load_state_dict(state)
        costs = sorted(noise.costs)
        found: dict[str, Any] = {
            "overhead": noise.overhead,
            "steps": noise.steps,
            "steps_measured": noise.steps_measured,
            "noise_scale": str(noise.noise_scale),
        }
    return found | {
        "workload": name,
        "batch_size": batch_size,
        "iterations": iterations,
        "step_seconds": step_seconds,
        "ratios": ratios,
        "cost_in_steps": costs[len(costs) // 2] / step_seconds if costs else None,
        "gns_pytorch": _cost(lambda: (Loop(workload, batch_size), with_gns_pytorch), arguments.others),
        "backpack": _cost(lambda: _known_to_backpack(Loop(workload, batch_size)), arguments.others),
    }


def _known_to_backpack(loop: Loop) -> tuple[Loop, Callable[[nn.Module, Tensor, Tensor], None]]:
    return loop, backpack_of(loop)


def _cost(make: Callable[[], tuple[Loop, Any]], rounds: int) -> list[float] | str:
    """What measuring adds to a step, in steps, by rounds; or why it can't."""
    costs = []
    with _silence():
        try:
            loop, backward = make()
            plain = Loop(loop.workload, loop.batch_size)
            plain(2)
            for _ in range(rounds):
                hand = plain(4) / 4
                costs.append(loop(1, backward) / hand - 1)
        except Exception as error:
            return first_line(error)
    return costs


def _shown(cost: list[float] | str) -> str:
    return "–" if isinstance(cost, str) or not cost else median_and_spread(cost)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()

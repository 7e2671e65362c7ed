"""One rank of a data-parallel loop on localhost: ``monitor_worker.py FOLDER RANK`` writes what was measured."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import batchscope as bs

RANKS, EXAMPLES, PARTS = 2, 6, 3


def squared(gradients: list[Tensor]) -> float:
    return sum(float(g.square().sum()) for g in gradients)


def own_hook(state, bucket):  # type: ignore[no-untyped-def]  # torch compares annotations with its own
    work = dist.all_reduce(bucket.buffer().div_(RANKS), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def measure(mode: str, rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    # Batch norm is no obstacle here: each rank's gradient is that of its own batch.
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=mode == "accumulated", bucket_cap_mb=1)
    if mode == "own hook":
        wrapped.register_comm_hook(None, own_hook)
    g = torch.Generator().manual_seed(10 + rank)
    count = EXAMPLES + (rank if mode == "uneven" else 0)
    x = torch.randn(count, 8, generator=g, dtype=torch.float64)
    y = torch.randint(3, (count,), generator=g)
    parts = PARTS if mode == "accumulated" else 1
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.0)
    pace: dict[str, Any] = {"overhead": 0.5} if mode == "own pace" else {"every": 2}
    noise = bs.GradientNoise(wrapped, optimizer, **pace)
    reduced: list[Tensor] = []
    for _ in range(10):
        optimizer.zero_grad()
        for i, (a, b) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
            with wrapped.no_sync() if i < parts - 1 else contextlib.nullcontext():
                (F.cross_entropy(wrapped(a), b) / parts).backward()  # type: ignore[no-untyped-call]
        reduced = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
    parameters = list(model.parameters())
    losses = [F.cross_entropy(model(a), b) / parts for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)]
    local = torch.autograd.grad(torch.stack(losses).sum(), parameters)
    averaged = []
    for gradient in local:
        mean = gradient.clone()
        dist.all_reduce(mean)
        averaged.append(mean / RANKS)
    torch.testing.assert_close(reduced, averaged)  # the reduction itself is as it was
    return {
        "samples": [sample[1:3] for sample in noise._window.samples],
        "next": noise._next,
        "source": noise.source,
        "local": squared(list(local)),
        "mean": squared(averaged),
        "examples": count,
    }


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found = {mode: measure(mode, rank) for mode in ("plain", "accumulated", "own hook", "own pace", "uneven")}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    # Not by way of the interpreter's end: DistributedDataParallel keeps gloo's threads past destroy_process_group
    # (torch 2.13), and one that drops a hook's tensor then aborts the process.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

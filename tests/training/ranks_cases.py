"""What one process and several ranks both train, to be compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import batchscope as bs
from batchscope.measure.shared_noise import SharedNoise
from batchscope.records import Phase, Schedule
from batchscope.schedule import measured
from batchscope.training.train import train

EXAMPLES, FEATURES, CLASSES = 45, 6, 3


class Items(Dataset[Any]):
    """Examples that are read one by one, through a loader."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.targets = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.targets[index]


class Branching(nn.Module):
    """A tied matrix, a frozen one, one that is used for few examples only, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(FEATURES, FEATURES, bias=False)
        self.back = nn.Linear(FEATURES, FEATURES, bias=False)
        self.back.weight = self.into.weight
        self.frozen = nn.Linear(FEATURES, FEATURES)
        self.frozen.requires_grad_(False)
        self.rare = nn.Linear(FEATURES, FEATURES)
        self.never = nn.Linear(2, 2)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.frozen(self.back(torch.tanh(self.into(x))))
        rare = x[:, 0] > 1.0
        if rare.any():
            h = h + rare.unsqueeze(1) * self.rare(x)
        out: Tensor = self.head(h)
        return out


class Hungry(nn.Module):
    """Runs out of memory on one rank, from some update on, with more than so many examples at once."""

    def __init__(self, *, most: int, rank: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)
        self.most, self.rank = most, rank
        self.updates = 0

    def forward(self, x: Tensor) -> Tensor:
        self.updates += self.training
        if self.updates > 20 and self.training and len(x) > self.most and os.environ.get("RANK") == str(self.rank):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        out: Tensor = self.linear(x)
        return out


class Failing(Hungry):
    """Fails on one rank, from some update on."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return super().forward(x)
        except RuntimeError:
            raise ValueError("not on this rank") from None


class Complex(nn.Module):
    """Complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, CLASSES, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight).abs()


class Sparse(nn.Module):
    """An embedding whose gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, CLASSES, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.embedding((x[:, 0] > 0).long())
        return out


def thirty_fold(output: Tensor, target: Tensor) -> Tensor:
    return 30 * F.cross_entropy(output, target)


def quartic(output: Tensor, target: Tensor) -> Tensor:
    return (output - F.one_hot(target, CLASSES)).pow(4).sum(1).mean()


class Signalling(nn.Module):
    """Sends its own process a signal at one of its updates, on the rank that the environment names."""

    def __init__(self, body: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.body = body()
        self.updates = 0

    def forward(self, x: Tensor) -> Tensor:
        self.updates += self.training
        if self.training and f"{self.updates}" == os.environ.get("AT") and os.environ.get("RANK") == os.environ["WHO"]:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        out: Tensor = self.body(x)
        return out


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, CLASSES))


def accuracy(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(-1) == target).double().mean())


def sgd(parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=0.01)


def adam(parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=learning_rate)


def workload(
    model: Callable[[], nn.Module] = mlp, *, dtype: torch.dtype = torch.float64, items: bool = False, **changes: Any
) -> bs.Workload:
    generator = torch.Generator().manual_seed(1)
    x, vx = (torch.randn(n, FEATURES, generator=generator, dtype=torch.float64).to(dtype) for n in (EXAMPLES, 21))
    teacher = torch.randn(FEATURES, CLASSES, generator=generator, dtype=torch.float64).to(dtype)
    y, vy = ((part @ teacher).argmax(-1) for part in (x, vx))

    def made() -> nn.Module:
        fresh = model()
        return fresh if isinstance(fresh, Complex) else fresh.to(dtype)

    arguments: dict[str, Any] = {
        "model": made,
        "train": Items(x, y) if items else (x, y),
        "validation": (vx, vy),
        "loss": F.cross_entropy,
        "score": accuracy,
        "optimizer": sgd,
        "learning_rate": 0.05,
        "batch_size": 8,
    }
    return bs.Workload(**(arguments | changes))


def no_score(output: Tensor, target: Tensor) -> float:
    raise ValueError("no score today")


signalling = workload(lambda: Signalling(mlp), name="signalling")
DROPOUT, MEASURED = "interrupted, with dropout", "interrupted, as measured"
# What the case "interrupted" trains.
COMMAND = [
    *("train", f"{__file__}:signalling", "--batch-size", "7", "--learning-rate", "0.05", "--iterations", "40"),
    *("--evaluate-every", "90"),
]


@dataclass(frozen=True)
class Case:
    workload: Callable[[], bs.Workload]
    plan: bs.Plan
    same: bool = True  # as one process: nothing in it depends on how a batch is shared
    saved: bool = True
    noise: bool = False

    def train(self, checkpoint: Path, **options: Any) -> bs.TrainResult:
        place = checkpoint if self.saved else None
        if self.noise:
            return train(self.workload(), self.plan, evaluate_every=90, observer=partial(SharedNoise, every=1))
        return bs.train(self.workload(), self.plan, evaluate_every=90, checkpoint=place, **options)


def plan(batch_size: int = 7, **changes: Any) -> bs.Plan:
    return bs.Plan(**({"batch_size": batch_size, "learning_rate": 0.05, "iterations": 40} | changes))


GROWING = Schedule((Phase(0, 4), Phase(200, 8, 1.0, 0.8), Phase(500, 32, 0.5)))

CASES = {
    # The last batch of two leaves nothing for the third rank.
    "momentum": Case(workload, plan(iterations=None, examples=282, shape="linear")),
    "adam, fewer than ranks": Case(lambda: workload(optimizer=adam), plan(2, learning_rate=0.01)),
    "growing, in micro-batches": Case(
        workload, plan(4, iterations=None, examples=900, schedule=GROWING, micro_batch_size=3, warmup_examples=40)
    ),
    "branches": Case(lambda: workload(Branching), plan(5)),
    "stratified, read one by one": Case(lambda: workload(items=True), plan(order="stratified", micro_batch_size=2)),
    "single precision": Case(lambda: workload(dtype=torch.float32), plan()),
    "half precision": Case(lambda: workload(dtype=torch.bfloat16), plan(iterations=10), same=False),
    "clipped": Case(
        lambda: workload(clip_norm=0.2, warmup_examples=60, shape="cosine"), plan(micro_batch_size=2, learning_rate=0.3)
    ),
    "clipped by value": Case(lambda: workload(clip_value=0.01), plan(learning_rate=0.3)),
    # Its first updates are skipped, since the gradients of so large a loss overflow at the scaler's first scale.
    "a scaler": Case(
        lambda: workload(dtype=torch.float32, precision="fp16", loss=thirty_fold),
        plan(learning_rate=1e-3, iterations=30),
        same=False,
    ),
    "complex": Case(lambda: workload(Complex), plan(iterations=30), saved=False),
    "target": Case(workload, plan(iterations=400, target=0.8)),
    "patience": Case(workload, plan(iterations=400, patience=2, tolerance=0.9)),
    "diverging": Case(
        lambda: workload(lambda: nn.Linear(FEATURES, CLASSES), loss=quartic, score=None), plan(learning_rate=1e4)
    ),
    "batch norm": Case(lambda: workload(batch_norm), plan(16, iterations=40), same=False),
    "dropout": Case(lambda: workload(dropout), plan(iterations=40), same=False),
    "memory that can be saved": Case(lambda: workload(lambda: Hungry(most=1)), plan(8)),
    "interrupted": Case(lambda: signalling, plan()),
    # Weights that hardly move, so that the noise scale is that of the first ones.
    "noise": Case(workload, plan(learning_rate=1e-9, iterations=200), same=False, saved=False, noise=True),
    # With so large a knee the batch grows as soon as the noise scale is resolved.
    MEASURED: Case(
        lambda: workload(lambda: Signalling(mlp), batch_size=6),
        plan(
            6, learning_rate=1e-3, iterations=None, examples=2000, schedule=measured(6, knee=1e6, maximum=24, every=5)
        ),
        same=False,
    ),
    DROPOUT: Case(lambda: workload(lambda: Signalling(dropout)), plan(), same=False),
    "memory that cannot": Case(lambda: workload(lambda: Hungry(most=0)), plan(8), same=False),
}

# What ends on all ranks alike.
REFUSED = {
    "unlike": Case(lambda: workload(learning_rate=0.05 + float(os.environ.get("RANK", "0"))), plan()),
    "a score that fails": Case(lambda: workload(score=no_score), plan()),
    "a model that fails": Case(lambda: workload(lambda: Failing(most=0)), plan()),
    "sparse": Case(lambda: workload(Sparse), plan()),
    "too few for batch norm": Case(lambda: workload(batch_norm), plan(16, iterations=None, examples=161)),
}

"""What the tests share: one thread, and a catalogue of small seeded workloads."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from batchscope import Workload
from batchscope.training import contention

# The same examples at every run, and no verdict on time, which a busy machine would make a matter of chance.
settings.register_profile("batchscope", deadline=None, derandomize=True, database=None)
settings.load_profile("batchscope")

EXAMPLES, HELD_OUT, FEATURES, CLASSES = 45, 20, 6, 3


@pytest.fixture(scope="session")
def wanted() -> Callable[[bool, str], None]:
    """Say what a test wants of the machine: where it is missing, CI fails, and a person's machine goes without it."""

    def want(here: bool, what: str) -> None:
        if not here:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {what}, which .ci/run installs")

    return want


@pytest.fixture(scope="session", autouse=True)
def unknown_load() -> Iterator[None]:
    """What other programs do must not decide what a test finds: the kernel's counters are where nobody looks."""
    before, contention.STAT = contention.STAT, Path(os.devnull)
    yield
    contention.STAT = before


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost far more than they save on steps this small, on a machine that is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Dictionaries(Dataset[Any]):
    """Examples that are dicts, drawn anew with noise at each reading, from all three global generators."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.targets = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = torch.randn(()).item() + random.random() + float(np.random.rand())  # noqa: NPY002
        return {"input": self.x[index] + 0.1 * noise, "index": index, "target": int(self.targets[index])}


def stack(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "input": torch.stack([e["input"] for e in examples]),
        "index": torch.tensor([e["index"] for e in examples]),
        "target": torch.tensor([e["target"] for e in examples]),
    }


def from_dictionary(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return model(batch["input"]), batch["target"]


class Tied(nn.Module):
    """The same matrix on the way in and on the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(FEATURES, FEATURES, bias=False)
        self.back = nn.Linear(FEATURES, FEATURES, bias=False)
        self.back.weight = self.into.weight
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.back(torch.tanh(self.into(x))))
        return out


class FrozenNorm(nn.Module):
    """A batch norm that its author put into evaluation mode, whatever the rest of the model is in."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, 8)
        self.norm = nn.BatchNorm1d(8)
        self.norm.eval()
        self.live = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.live(self.norm(self.body(x)))))
        return out


class Noisy(nn.Module):
    """Draws from the global generator in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x + 0.1 * torch.randn_like(x))
        return out


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.embedding(x)).mean(1))
        return out


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, CLASSES))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))


def accuracy(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(-1) == target).double().mean())


def sgd(parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)


_MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "dropout": dropout,
    "batch norm": batch_norm,
    "frozen norm": FrozenNorm,
    "tied": Tied,
    "noisy": Noisy,
    "cnn": cnn,
    "transformer": Transformer,
}


def _inputs(kind: str, count: int, generator: torch.Generator) -> Tensor:
    if kind == "cnn":
        return torch.randn(count, 1, 6, 6, generator=generator)
    if kind == "transformer":
        return torch.randint(11, (count, 5), generator=generator)
    return torch.randn(count, FEATURES, generator=generator)


def _make(kind: str = "mlp", /, *, examples: int = EXAMPLES, held_out: int = HELD_OUT, **changes: Any) -> Workload:
    generator = torch.Generator().manual_seed(1)
    name = "mlp" if kind in ("augmented", "tensor dataset") else kind
    x, vx = _inputs(name, examples, generator), _inputs(name, held_out, generator)
    # Classes can be told from the inputs, of unequal size, and each is there.
    teacher = torch.randn(x[0].numel(), CLASSES, generator=generator)
    y, vy = ((part.flatten(1).to(teacher.dtype) @ teacher).argmax(-1) for part in (x, vx))
    arguments: dict[str, Any] = {
        "model": _MODELS[name],
        "train": (x, y),
        "validation": (vx, vy),
        "loss": F.cross_entropy,
        "score": accuracy,
        "optimizer": sgd,
        "learning_rate": 0.05,
        "batch_size": min(8, examples),
        "name": kind,
    }
    if kind == "tensor dataset":
        arguments |= {"train": TensorDataset(x, y), "validation": TensorDataset(vx, vy)}
    if kind == "augmented":
        arguments |= {"train": Dictionaries(x, y), "validation": Dictionaries(vx, vy)}
        arguments |= {"forward": from_dictionary, "collate": stack}
    return Workload(**(arguments | changes))


@pytest.fixture(scope="session")
def make() -> Callable[..., Workload]:
    """The catalogue: ``make(kind, examples=, held_out=, **changes)``.

    Kinds: mlp, dropout, batch norm, frozen norm, tied, noisy, cnn, transformer on tensors in three classes;
    "tensor dataset", the mlp's data in a TensorDataset; "augmented", dicts from a Dataset that adds random noise.
    """
    return _make

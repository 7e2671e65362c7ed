"""Real data for the frameworks' tests: handwritten digits, and the standard library's text."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

EXAMPLES, HELD_OUT = 256, 64


def digits(count: int = EXAMPLES + HELD_OUT) -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:count] / 16, dtype=torch.float32), torch.tensor(y[:count])


def split() -> tuple[TensorDataset, TensorDataset]:
    x, y = digits()
    return TensorDataset(x[:EXAMPLES], y[:EXAMPLES]), TensorDataset(x[EXAMPLES:], y[EXAMPLES:])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(-1) == target).double().mean()


class Text(Dataset[dict[str, Tensor]]):
    """Sequences of bytes of a module of the standard library, to be continued."""

    def __init__(self, count: int, *, first: int = 0, length: int = 16) -> None:
        raw = Path(contextlib.__file__).read_bytes()[first * length :][: count * length]
        self.rows = torch.tensor([min(byte, 127) for byte in raw]).view(count, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}

"""A perceptron with Adam on 300,000 rows of a table."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.workload import Workload
from batchscope.workload.optimizers import adam
from real.task import RealTask

COLUMNS, WIDTH = 20, 512
TRAINING_ROWS, VALIDATION_ROWS = 300_000, 2_000
HALF_WAVES = (1.0, 1.5, 2.0, 3.0)  # of the sines in four products of two, from easy to hard
NOISE = 0.3  # standard deviation of what no model can predict, of a function of deviation about 1


def network() -> nn.Module:
    """20-512-512-1 with ReLU: 273,921 parameters."""
    return nn.Sequential(
        nn.Linear(COLUMNS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1), nn.Flatten(0)
    )


def r_squared(output: Tensor, target: Tensor) -> Tensor:
    """Share of the target's variance that is predicted (coefficient of determination)."""
    return 1 - ((output - target) ** 2).sum() / ((target - target.mean()) ** 2).sum()


def make() -> Workload:
    """Friedman's first function (Friedman 1991) of columns that are themselves mixed, with two products more."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(TRAINING_ROWS + VALIDATION_ROWS, COLUMNS, generator=generator)
    a, b, c, d, e = x[:, :5].unbind(1)
    friedman = 10 * torch.sin(math.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d + 5 * e
    pairs = x[:, 5:13].view(-1, 4, 2)
    waves = torch.sin(math.pi * torch.tensor(HALF_WAVES)[:, None] * pairs).prod(2).sum(1)
    y = friedman / friedman.std() + waves
    y = (y - y.mean()) / y.std() + NOISE * torch.randn(len(x), generator=generator)
    n = VALIDATION_ROWS
    return Workload(
        model=network,
        train=(2 * x[:-n] - 1, y[:-n]),
        validation=(2 * x[-n:] - 1, y[-n:]),
        loss=F.mse_loss,
        score=r_squared,
        optimizer=adam,
        learning_rate=1e-3,
        batch_size=256,
        name="table",
    )


TASK = RealTask(
    name="table",
    make=make,
    target=0.9,
    batch_size=256,
    learning_rate=1e-3,
    batch_sizes=(8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    expected_examples=1_500_000,
    expected_seconds=30.0,
)

"""A convolutional network with dropout and Adadelta, on images that are decoded one by one.

Layers, optimiser, batch size and rate are those of PyTorch's MNIST example (github.com/pytorch/examples, mnist).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.workload import Workload
from batchscope.workload.scores import accuracy
from real.images import image_by_image
from real.task import RealTask


class ConvNet(nn.Module):
    """Convolutions of 32 and 64 channels, max pooling, a hidden layer of 128: 1,199,882 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.hidden = nn.Linear(64 * 12 * 12, 128)
        self.output = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×10 of images N×1×28×28."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.dropout1(F.max_pool2d(x, 2)).flatten(1)
        out: Tensor = self.output(self.dropout2(F.relu(self.hidden(x))))
        return out


def adadelta(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adadelta with torch's defaults."""
    return torch.optim.Adadelta(parameters, lr=learning_rate)


def make() -> Workload:
    """Fashion-MNIST image by image."""
    train, validation = image_by_image()
    return Workload(
        model=ConvNet,
        train=train,
        validation=validation,
        loss=F.cross_entropy,
        score=accuracy,
        optimizer=adadelta,
        learning_rate=1.0,
        batch_size=64,
        name="conv",
    )


TASK = RealTask(
    name="conv",
    make=make,
    target=0.86,
    batch_size=64,
    learning_rate=1.0,
    batch_sizes=(8, 16, 32, 64, 128, 256, 512, 1024),
    expected_examples=20_000,
    expected_seconds=35.0,
)

"""A small residual network with batch norm, SGD with momentum 0.9 and weight decay 5e-4.

The block is that of He et al. 2016; optimiser, batch size and rate are those of the usual CIFAR examples.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.workload import Workload
from batchscope.workload.scores import accuracy
from real.images import image_tensors
from real.task import RealTask

WIDTH = 16
VALIDATION_IMAGES = 2_000  # evaluating is cheap here, and scores scatter


class Residual(nn.Module):
    """Two 3×3 convolutions with batch norm, added to the input, or to its projection where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features N×C×H×W."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A convolution and three residual blocks of 16, 32 and 64 channels, on 14×14 pixels: 77,754 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.blocks = nn.Sequential(
            Residual(WIDTH, WIDTH, 1), Residual(WIDTH, 2 * WIDTH, 2), Residual(2 * WIDTH, 4 * WIDTH, 2)
        )
        self.output = nn.Linear(4 * WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×10 of images N×1×14×14."""
        out: Tensor = self.output(self.blocks(self.stem(x)).mean((2, 3)))
        return out


def momentum(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 and weight decay 5e-4."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=5e-4)


def make() -> Workload:
    """Fashion-MNIST, pooled to 14×14 and standardised."""
    train, validation = ((_pooled(x), y) for x, y in image_tensors(VALIDATION_IMAGES))
    return Workload(
        model=ResNet,
        train=train,
        validation=validation,
        loss=F.cross_entropy,
        score=accuracy,
        optimizer=momentum,
        learning_rate=0.1,
        batch_size=128,
        name="resnet",
    )


def _pooled(x: Tensor) -> Tensor:
    return (F.avg_pool2d(x, 2) - 0.286) / 0.32


TASK = RealTask(
    name="resnet",
    make=make,
    target=0.885,
    batch_size=128,
    learning_rate=0.1,
    batch_sizes=(8, 16, 32, 64, 128, 256, 512, 1024),
    expected_examples=120_000,
    expected_seconds=75.0,
)

"""Fashion-MNIST as the image networks read it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from batchscope.workload import files, idx
from batchscope.workload.fashion import FILES

# Examples that validate: the first of the test set. Enough to tell scores 1% apart, and quick to evaluate.
VALIDATION_EXAMPLES = 1_000
MEAN, DEVIATION = 0.2860, 0.3530  # of the training pixels, scaled to [0, 1]


class ImageByImage(Dataset[tuple[Tensor, int]]):
    """Raw bytes of IDX files, of which each image is decoded and normalised when it is asked for, as torchvision does.

    Args:
        images: uint8, N×28×28.
        labels: Classes, N.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.pixels = images.numpy().tobytes()
        self.labels = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raw = bytearray(self.pixels[784 * index : 784 * (index + 1)])
        image = torch.frombuffer(raw, dtype=torch.uint8).view(1, 28, 28).float().div_(255)
        return image.sub_(MEAN).div_(DEVIATION), self.labels[index]


def image_by_image() -> tuple[Dataset[Any], Dataset[Any]]:
    """Datasets of 60,000 training and 1,000 validation images."""
    (x, y), (xv, yv) = _parts()
    return ImageByImage(x, y), ImageByImage(xv[:VALIDATION_EXAMPLES], yv[:VALIDATION_EXAMPLES])


def image_tensors(validation: int = VALIDATION_EXAMPLES) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images N×1×28×28 with values from 0 to 1, and classes: 60,000 to train on and some to validate."""
    (x, y), (xv, yv) = _parts()
    return (x.float() / 255, y), (xv[:validation].float() / 255, yv[:validation])


def _parts() -> list[tuple[Tensor, Tensor]]:
    paths = [files.obtain(file, None) for file in FILES]
    return [idx.read_images(paths[0], paths[1]), idx.read_images(paths[2], paths[3])]

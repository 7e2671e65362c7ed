"""Fashion-MNIST, on a small convolutional network or a perceptron.

Source: Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms" (arXiv:1708.07747); MIT licence. Read from a folder of IDX files, or Debian's dataset-fashion-mnist, or
downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.errors import DataError, WorkloadError
from batchscope.workload import files, idx, optimizers
from batchscope.workload.scores import accuracy
from batchscope.workload.workload import Workload

TRAINING_EXAMPLES, VALIDATION_EXAMPLES = 60_000, 10_000
CLASSES = 10

_SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_SYSTEM_FOLDERS = ("/usr/share/datasets/fashion-mnist",)  # Debian's dataset-fashion-mnist, compressed anew
_MEAN, _DEVIATION = 0.2860, 0.3530  # of the training pixels, scaled to [0, 1]


def _published(name: str, size: int, md5: str, sha256: str) -> files.PublishedFile:
    return files.PublishedFile(name, _SITE + name, md5, size, sha256, _SYSTEM_FOLDERS)


# MD5 as published at github.com/zalandoresearch/fashion-mnist; SHA-256 of the content, the same in Debian's copies.
FILES = (
    _published(
        "train-images-idx3-ubyte.gz",
        26_421_880,
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    _published(
        "train-labels-idx1-ubyte.gz",
        29_515,
        "25c81989df183df01b3e8a0aad5dffbe",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    _published(
        "t10k-images-idx3-ubyte.gz",
        4_422_102,
        "bef4ecab320f06d8554ea6380940ec79",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    _published(
        "t10k-labels-idx1-ubyte.gz",
        5_148,
        "bb300cfdad3c16e7a12a480ee83cd310",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)


class FashionCNN(nn.Module):
    """Two 3×3 convolutions (16 and 32 channels), each with max pooling, and a hidden layer of 64: 105,866 parameters.

    It standardises uint8 pixels itself, so that the data need a quarter of the memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(1, 16, 3, padding=1)
        self.convolution2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * 7 * 7, 64)
        self.output = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×10 of pixels N×1×28×28 from 0 to 255."""
        h = _standardised(x, self.output.weight)
        # ReLU commutes with max pooling, and is cheaper after it.
        h = F.relu(F.max_pool2d(self.convolution1(h), 2))
        h = F.relu(F.max_pool2d(self.convolution2(h), 2))
        out: Tensor = self.output(F.relu(self.hidden(h.flatten(1))))
        return out


class FashionMLP(nn.Module):
    """A perceptron, 784-256-128-10 with ReLU: 235,146 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(28 * 28, 256)
        self.hidden2 = nn.Linear(256, 128)
        self.output = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×10 of pixels N×1×28×28 from 0 to 255."""
        h = _standardised(x, self.output.weight).flatten(1)
        h = F.relu(self.hidden2(F.relu(self.hidden1(h))))
        out: Tensor = self.output(h)
        return out


def _standardised(x: Tensor, like: Tensor) -> Tensor:
    return (x.to(like.dtype) - 255 * _MEAN) / (255 * _DEVIATION)


def fashion(data: str | os.PathLike[str] | None = None, model: Literal["cnn", "mlp"] = "cnn") -> Workload:
    """Fashion-MNIST, 28×28 grey pixels in 10 classes: 60,000 to train on, the test set's 10,000 to validate.

    The convolutional network trains with SGD and momentum, the perceptron with Adam. Each learning rate is the best
    of a factor-2 grid at batch size 64 and 2 epochs, by validation loss (the perceptron's within 1% of it, as 0.0005
    is).

    Args:
        data: Folder of the four IDX files, with or without .gz, also of another data set in this format, such as MNIST;
            None: Debian's folder, the cache, or a download of 31 MB.
        model: "cnn" or "mlp".

    Returns:
        The workload, named "fashion" or "fashion-mlp", with accuracy as its score.

    Raises:
        WorkloadError: An unknown model.
        DataError: Files that cannot be found, downloaded or read.
    """
    if model not in ("cnn", "mlp"):
        raise WorkloadError("model must be 'cnn' or 'mlp'", got=model, mend="leave it out for the CNN")
    paths = [files.obtain(file, data) for file in FILES]
    train, validation = _images(paths[0], paths[1]), _images(paths[2], paths[3])
    name = "fashion" if model == "cnn" else "fashion-mlp"
    if data is not None and not all(files.is_genuine(f, p) for f, p in zip(FILES, paths, strict=True)):
        name += f" ({Path(data).expanduser().resolve().name})"
    return Workload(
        model=FashionCNN if model == "cnn" else FashionMLP,
        train=train,
        validation=validation,
        loss=F.cross_entropy,
        score=accuracy,
        optimizer=optimizers.sgd_momentum if model == "cnn" else optimizers.adam,
        learning_rate=0.02 if model == "cnn" else 1e-3,
        batch_size=64,
        name=name,
    )


def fashion_mlp(data: str | os.PathLike[str] | None = None) -> Workload:
    """``fashion(data, model="mlp")``."""
    return fashion(data, model="mlp")


def _images(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    x, y = idx.read_images(images, labels)
    if x.shape[1:] != (1, 28, 28) or int(y.max()) >= CLASSES:
        raise DataError(
            "images must be of 28×28 pixels and labels from 0 to 9",
            got=f"{x.shape[2]}×{x.shape[3]} in {images}, labels up to {int(y.max())} in {labels}",
            mend="give a folder of a data set in Fashion-MNIST's format",
        )
    return x, y

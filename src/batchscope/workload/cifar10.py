"""CIFAR-10, on a residual network of 8 layers.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; the binary version of
https://www.cs.toronto.edu/~kriz/cifar.html, read straight out of its archive: nothing is unpacked or unpickled.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.errors import DataError
from batchscope.workload import files, optimizers
from batchscope.workload.scores import accuracy
from batchscope.workload.workload import Workload

TRAINING_EXAMPLES, VALIDATION_EXAMPLES = 50_000, 10_000
CLASSES = 10

ARCHIVE = files.PublishedFile(
    name="cifar-10-binary.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    size=170_052_171,
)
TRAINING_MEMBERS = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
VALIDATION_MEMBERS = ("test_batch.bin",)

_RECORD_BYTES = 1 + 3 * 32 * 32  # the class, then the red, green and blue planes, row by row
_MEMBER_LIMIT = 10_000 * _RECORD_BYTES
# Mean and standard deviation of the training pixels by channel, scaled to [0, 1].
_MEAN, _DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch normalisation, added to the input (1×1-convolved where it shrinks)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.convolution2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of half the height and width where the stride is 2."""
        h = F.relu(self.norm1(self.convolution1(x)))
        return F.relu(self.norm2(self.convolution2(h)) + self.shortcut(x))


class ResNet8(nn.Module):
    """The residual network of He et al. (2016, section 4.2) with n = 1: 77,850 parameters.

    It standardises uint8 pixels itself, so that the data need a quarter of the memory.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Constants, which do not belong in checkpoints.
        self.register_buffer("mean", 255 * torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", 255 * torch.tensor(_DEVIATION).view(3, 1, 1), persistent=False)
        self.convolution = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2))
        self.output = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×10 of pixels N×3×32×32 from 0 to 255."""
        h = (x.to(self.mean.dtype) - self.mean) / self.deviation
        h = self.blocks(F.relu(self.norm(self.convolution(h))))
        out: Tensor = self.output(h.mean((2, 3)))
        return out


def cifar10(data: str | os.PathLike[str] | None = None) -> Workload:
    """CIFAR-10, 32×32 colour pixels in 10 classes: 50,000 to train on, the test set's 10,000 to validate.

    Batch size, learning rate and optimiser are the published ones of the network's authors (He et al. 2016,
    section 4.2: SGD with momentum 0.9, weight decay 1e-4, learning rate 0.1 at batch size 128), without their
    random crops and flips.

    Args:
        data: The archive cifar-10-binary.tar.gz, or a folder with it or its .bin files, also of another data set in
            this format; None: the cache, or a download of 170 MB.

    Returns:
        The workload, named "cifar10", with accuracy as its score.

    Raises:
        DataError: Data that cannot be found, downloaded or read.
    """
    name = "cifar10"
    if data is None:
        path = files.obtain(ARCHIVE)
        members = _archive_members(path)
    else:
        path = _named(Path(data).expanduser())
        members = _folder_members(path) if path.is_dir() else _archive_members(path)
        if path.is_dir() or not files.is_genuine(ARCHIVE, path):
            name += f" ({Path(data).expanduser().resolve().name})"
    return Workload(
        model=ResNet8,
        train=_images([members[member] for member in TRAINING_MEMBERS]),
        validation=_images([members[member] for member in VALIDATION_MEMBERS]),
        loss=F.cross_entropy,
        score=accuracy,
        optimizer=optimizers.sgd_momentum_decay,
        learning_rate=0.1,
        batch_size=128,
        name=name,
    )


def _named(path: Path) -> Path:
    """The archive or the folder of .bin files at a path."""
    if path.is_file():
        return path
    for folder in (path, path / "cifar-10-batches-bin"):
        if (folder / VALIDATION_MEMBERS[0]).is_file():
            return folder
    return files.in_folder(ARCHIVE, path)


def _folder_members(folder: Path) -> dict[str, bytes]:
    found = {}
    for name in TRAINING_MEMBERS + VALIDATION_MEMBERS:
        try:
            with open(folder / name, "rb") as stream:
                found[name] = stream.read(_MEMBER_LIMIT + 1)
        except OSError as error:
            raise DataError(
                f"the folder must hold {TRAINING_MEMBERS[0]} to {TRAINING_MEMBERS[-1]} and {VALIDATION_MEMBERS[0]}",
                got=f"{folder / name} ({error.strerror})",
                mend=f"get them from {ARCHIVE.url}",
            ) from error
        _check(name, found[name], folder)
    return found


def _archive_members(path: Path) -> dict[str, bytes]:
    """Read the six files in the archive into memory, by their base names."""
    wanted = set(TRAINING_MEMBERS + VALIDATION_MEMBERS)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                stream = archive.extractfile(member) if name in wanted and member.isreg() else None
                if stream is not None:
                    found[name] = stream.read(_MEMBER_LIMIT + 1)
                    _check(name, found[name], path)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(
            "CIFAR-10 must be a whole tar archive",
            got=f"{path} ({error})",
            mend=f"get it again from {ARCHIVE.url}",
        ) from error
    if missing := sorted(wanted - set(found)):
        raise DataError(
            "the archive must be the binary version of CIFAR-10",
            got=f"{path}, without {', '.join(missing)}",
            mend=f"get {ARCHIVE.url} (not the Python or Matlab version)",
        )
    return found


def _check(name: str, content: bytes, where: Path) -> None:
    classes = content[::_RECORD_BYTES]
    if not content or len(content) % _RECORD_BYTES or len(content) > _MEMBER_LIMIT or max(classes) >= CLASSES:
        raise DataError(
            f"a CIFAR-10 file must hold up to 10,000 records of {_RECORD_BYTES} bytes, each with a class from 0 to 9",
            got=f"{name} in {where} of {len(content)} bytes, classes up to {max(classes, default='none')}",
            mend=f"get it again from {ARCHIVE.url}",
        )


def _images(parts: list[bytes]) -> tuple[Tensor, Tensor]:
    records = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).view(-1, _RECORD_BYTES)
    return records[:, 1:].reshape(-1, 3, 32, 32).contiguous(), records[:, 0].long()

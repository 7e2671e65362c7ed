"""IDX, the format of the MNIST family: a magic number, the sizes, then the values, all big-endian.

The layout is LeCun's (http://yann.lecun.com/exdb/mnist/): two zero bytes, a byte for the type, a byte for the number
of dimensions, one unsigned 32-bit size for each dimension, and the values in row-major order.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from batchscope.errors import DataError

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MEND = "copy or download the file again, or name another folder"


def read(path: str | os.PathLike[str], *, dimensions: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Read an IDX file, plain or gzip-compressed.

    Args:
        path: The file.
        dimensions: Required number of dimensions; None: any.
        dtype: Required type of the values; None: any.

    Returns:
        The values, in the shape and type that the file declares.

    Raises:
        DataError: A file that cannot be read, is not valid IDX, or has another shape or type.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels"
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        >>> read(path, dimensions=1, dtype=torch.uint8)
        tensor([7, 8, 9], dtype=torch.uint8)
    """
    content = read_content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES or content[3] == 0:
        raise DataError(
            "an IDX file must begin with two zero bytes, a type and a number of dimensions",
            got=f"{path}, which begins with {content[:4].hex(' ') or 'nothing'}",
            mend="give the IDX files of the data set (names end in -idx3-ubyte or -idx1-ubyte, with or without .gz)",
        )
    code, rank = content[2], content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataError(
            f"the header of an IDX file of {rank} dimensions takes {start} bytes",
            got=f"{path} of {len(content)} bytes",
            mend=_MEND,
        )
    shape = struct.unpack_from(f">{rank}I", content, 4)
    kind = np.dtype(_TYPES[code])
    native = kind.newbyteorder("=")
    found = torch.from_numpy(np.empty(0, native)).dtype
    if (dimensions is not None and rank != dimensions) or (dtype is not None and found != dtype):
        wanted = " ".join(
            part for part in (str(dtype or ""), f"{dimensions} dimensions" if dimensions is not None else "") if part
        )
        raise DataError(
            f"the values must be {wanted} here",
            got=f"{path} of {found} and shape {'×'.join(map(str, shape))}",
            mend="check that images and labels were not swapped",
        )
    values = len(content) - start
    expected = math.prod(shape) * kind.itemsize
    if values != expected:
        raise DataError(
            f"an IDX file of shape {'×'.join(map(str, shape))} must hold {expected} bytes of values",
            got=f"{path} with {values}",
            mend=_MEND,
        )
    # A copy, since torch wants memory of its own that it may write to.
    array = np.frombuffer(content, kind, offset=start).reshape(shape).astype(native)
    return torch.from_numpy(array)


def read_images(images: str | os.PathLike[str], labels: str | os.PathLike[str]) -> tuple[Tensor, Tensor]:
    """Read a file of grey images and the file of their labels.

    Args:
        images: IDX file of uint8, N×height×width.
        labels: IDX file of uint8, N.

    Returns:
        Images, uint8 of N×1×height×width, and classes, int64 of N.

    Raises:
        DataError: A malformed file, no images, or counts that differ.
    """
    x = read(images, dimensions=3, dtype=torch.uint8)
    y = read(labels, dimensions=1, dtype=torch.uint8)
    if len(x) != len(y) or len(x) == 0:
        raise DataError(
            "there must be one label for each image, and at least one image",
            got=f"{len(x)} images in {images} and {len(y)} labels in {labels}",
            mend="give the images and the labels of the same part of the data set",
        )
    return x.unsqueeze(1), y.long()


def read_content(path: str | os.PathLike[str]) -> bytes:
    """Read a file, and decompress it if it is gzip.

    Raises:
        DataError: It cannot be read, or is damaged.
    """
    try:
        raw = Path(path).read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:  # BadGzipFile is an OSError: it has to come first
        raise DataError("a gzip file must be whole and undamaged", got=f"{path} ({error})", mend=_MEND) from error
    except OSError as error:
        raise DataError(
            "a data file must exist and be readable",
            got=f"{path} ({error.strerror or error})",
            mend="check the path and its permissions",
        ) from error

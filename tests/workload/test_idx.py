"""The IDX reader: every type, both encodings, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from batchscope.errors import DataError
from batchscope.workload import idx

CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def encode(values: np.ndarray, code: str) -> bytes:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, CODES[code], values.ndim, *values.shape)
    return header + values.astype(code).tobytes()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("compressed", [False, True])
def test_reads_back_what_was_written(tmp_path: Path, code: str, compressed: bool) -> None:
    values = np.arange(24).reshape(2, 3, 4) - (0 if code == "u1" else 7)
    content = encode(values, code)
    path = tmp_path / "values"  # without .gz: the content decides
    path.write_bytes(gzip.compress(content, mtime=0) if compressed else content)
    found = idx.read(path)
    assert found.shape == (2, 3, 4)
    assert found.dtype == torch.from_numpy(values.astype(np.dtype(code).newbyteorder("="))).dtype
    assert (found.numpy() == values).all()
    found += 1  # its memory is its own


def test_no_examples_is_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(encode(np.zeros((0, 28, 28)), "u1"))
    assert idx.read(tmp_path / "x").shape == (0, 28, 28)


GOOD = encode(np.arange(6).reshape(2, 3), "u1")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "begins with nothing"),
        (b"\0\0", "must begin with two zero bytes"),
        (b"PK\3\4" + GOOD, "begins with 50 4b 03 04"),
        (b"\0\1" + GOOD[2:], "must begin with two zero bytes"),
        (b"\0\0\x0a" + GOOD[3:], "must begin with two zero bytes"),
        (b"\0\0\x08\0" + GOOD[4:], "number of dimensions"),
        (GOOD[:9], "header of an IDX file of 2 dimensions takes 12 bytes"),
        (GOOD[:-1], "must hold 6 bytes of values; got"),
        (GOOD + b"\0", "must hold 6 bytes of values; got"),
        (b"\0\0\x08\4" + b"\xff" * 16, "4294967295×4294967295"),
        (gzip.compress(GOOD, mtime=0)[:-9], "whole and undamaged"),
        (gzip.compress(GOOD, mtime=0)[:-8] + b"\1" * 8, "whole and undamaged"),
        (b"\x1f\x8b" + b"\xff" * 20, "whole and undamaged"),
        (gzip.compress(GOOD, mtime=0)[:10] + b"\xff" * 20, "whole and undamaged"),
    ],
)
def test_malformed(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad-idx2-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        idx.read(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.mend


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        idx.read(tmp_path / "none")
    with pytest.raises(DataError, match="directory"):
        idx.read(tmp_path)


def test_images_and_labels(tmp_path: Path) -> None:
    images, labels, fewer, none = (tmp_path / name for name in ("images", "labels", "fewer", "none"))
    pixels = np.arange(2 * 4 * 4).reshape(2, 4, 4)
    images.write_bytes(encode(pixels, "u1"))
    labels.write_bytes(encode(np.array([3, 9]), "u1"))
    fewer.write_bytes(encode(np.array([3]), "u1"))
    none.write_bytes(encode(np.zeros((0, 4, 4)), "u1"))
    x, y = idx.read_images(images, labels)
    assert x.shape == (2, 1, 4, 4)
    assert x.dtype == torch.uint8
    assert y.tolist() == [3, 9]
    assert y.dtype == torch.int64
    with pytest.raises(DataError, match=r"2 images in .*images and 1 labels in .*fewer"):
        idx.read_images(images, fewer)
    with pytest.raises(DataError, match="swapped"):
        idx.read_images(labels, images)
    no_labels = tmp_path / "no_labels"
    no_labels.write_bytes(encode(np.zeros(0), "u1"))
    with pytest.raises(DataError, match="at least one image"):
        idx.read_images(none, no_labels)
    floats = tmp_path / "floats"
    floats.write_bytes(encode(pixels, ">f4"))
    with pytest.raises(DataError, match=r"must be torch.uint8 3 dimensions here; got .*float32"):
        idx.read_images(floats, labels)

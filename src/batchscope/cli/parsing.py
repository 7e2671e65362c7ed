"""Parsing and checking of the arguments of a verb, before anything is trained."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Literal, TypeVar

from batchscope.errors import ArgumentError

Number = TypeVar("Number", int, float)


def load_record(path: Path, *kinds: type, rule: str) -> Any:
    """Load a record of one of these kinds.

    Args:
        path: The JSON file.
        kinds: Classes of records.
        rule: What the error says if it is of another kind.

    Raises:
        ArgumentError: It is of another kind.
        RecordError: It is no record.
    """
    from batchscope.records import load

    record = load(path)
    if not isinstance(record, kinds):
        raise ArgumentError(rule, got=f"{path}, a {record.kind} record")
    return record


def parse_pair(text: str) -> tuple[int, int]:
    """Parse a batch size and a number of updates, for example 16x2000."""
    match = re.fullmatch(r"\s*([0-9]{1,15})\s*[xX×*]\s*([0-9]{1,15})\s*", text)
    if match is None:
        raise ArgumentError("a pair is BATCHxITERATIONS", got=text, mend="write it as in 16x2000")
    return int(match[1]), int(match[2])


def parse_numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    """Parse numbers separated by commas, for the option of that name."""
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        example = "8,32,128" if kind is int else "0.01,0.1"
        raise ArgumentError(f"{name} must be numbers separated by commas", got=text, mend=f"as in {example}") from error


def parse_bytes(text: str) -> int:
    """Parse a number of bytes, for example 8GiB."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ArgumentError("memory is a number with a unit", got=text, mend="write it as in 8GiB or 800MB")
    power = " KMGT".index(match[2].upper() or " ")
    size: int = round(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if size < 1:
        raise ArgumentError("memory must be at least one byte", got=text)
    return size


def parse_power(text: str) -> float | dict[int, float] | Literal["measured"]:
    """Parse watts, watts by batch size, or ``measured``."""
    if text.strip() == "measured":
        return "measured"
    number = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
    if re.fullmatch(number, text.strip(), re.ASCII):
        return float(text)
    pairs = [re.fullmatch(rf"\s*([0-9]{{1,15}})\s*:\s*({number})\s*", part, re.ASCII) for part in text.split(",")]
    if not all(pairs):
        raise ArgumentError(
            "--power is watts, watts by batch size, or measured", got=text, mend="write it as in 300 or 16:180,256:240"
        )
    return {int(pair[1]): float(pair[2]) for pair in pairs if pair is not None}


def parse_network(text: str) -> tuple[float, float]:
    """Parse bandwidth in GB/s and latency in µs, into bytes per second and seconds."""
    number = r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*"
    match = re.fullmatch(f"{number},{number}", text, re.ASCII)
    if match is None or not float(match[1]) > 0:
        raise ArgumentError(
            "--network is a bandwidth above 0 in GB/s and a latency in µs, separated by a comma",
            got=text,
            mend="write it as in 12,20",
        )
    return float(match[1]) * 1e9, float(match[2]) * 1e-6


def check_writable(*paths: Path | None, reads: Path | None = None) -> None:
    """Refuse output files that cannot be written before anything is trained, rather than after."""
    wanted = [path for path in paths if path is not None]
    for path in wanted:
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            with contextlib.suppress(FileNotFoundError):
                path.stat()
            folder = path.absolute().parent
            while not folder.exists():
                folder = folder.parent
            # Permissions alone do not tell; a temporary file has a name like this one.
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
                pass
        except (OSError, ValueError) as error:
            raise ArgumentError(
                "a result must go to a file that this user may write",
                got=f"{path} ({getattr(error, 'strerror', None) or error})",
                mend="name a file in a folder that you own",
            ) from error
    places = [os.path.realpath(path) for path in (*wanted, reads) if path is not None]
    for path, place in zip(wanted, places, strict=False):
        if places.count(place) > 1:
            raise ArgumentError("each result must go to a file of its own", got=f"{path} twice", mend="name another")

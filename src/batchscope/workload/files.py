"""Data files from a given folder, the system's folders, the cache or their publisher's site.

The checksum of a file from the system, the cache or the network is verified; files in a given folder are only checked
for their format.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from batchscope.errors import DataError
from batchscope.workload.idx import read_content

TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PublishedFile:
    """A file of a data set, as its authors publish it.

    Attributes:
        name: File name.
        url: Address.
        md5: Published MD5 checksum of the file.
        size: Approximate size in bytes, which bounds the download.
        content_sha256: SHA-256 of the decompressed content, to accept files compressed again; None: ``md5`` only.
        system_folders: Folders where distributions install it.
    """

    name: str
    url: str
    md5: str
    size: int
    content_sha256: str | None = None
    system_folders: tuple[str, ...] = ()


def cache_folder() -> Path:
    """The folder of downloads: ``$XDG_CACHE_HOME/batchscope``, or ``~/.cache/batchscope``.

    Raises:
        DataError: Neither the variable nor a home folder exists.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification ignores relative paths
        return Path(base) / "batchscope"
    try:
        return Path.home() / ".cache" / "batchscope"
    except RuntimeError as error:
        raise DataError(
            "downloads need a cache folder",
            got="no XDG_CACHE_HOME and no home folder",
            mend="set XDG_CACHE_HOME, or name a folder of the data with --data",
        ) from error


def in_folder(file: PublishedFile, folder: str | os.PathLike[str]) -> Path:
    """Find a file, with or without its ending .gz, in a given folder.

    Raises:
        DataError: The folder cannot be read, or does not hold the file.
    """
    folder = Path(folder).expanduser()
    try:
        present = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(
            "--data must be a folder that can be read",
            got=f"{folder} ({error.strerror})",
            mend=f"give the folder that holds {file.name}",
        ) from error
    for name in (file.name, file.name.removesuffix(".gz")):
        if name in present:
            return folder / name
    shown = ", ".join(present[:5]) + (" …" if len(present) > 5 else "") if present else "nothing"
    raise DataError(
        f"the folder must hold {file.name}" + (" or the same without .gz" if file.name.endswith(".gz") else ""),
        got=f"{folder}, which holds {shown}",
        mend=f"get it from {file.url}, or leave --data out",
    )


def locate(file: PublishedFile) -> Path | None:
    """Find a file in the system's folders or the cache, without reading it; None if there is none."""
    return next(_places(file), None)


def obtain(file: PublishedFile, folder: str | os.PathLike[str] | None = None) -> Path:
    """Find a file in ``folder``, or without one in the system's folders or the cache, or download it.

    Raises:
        DataError: It is not there, or cannot be downloaded.
    """
    if folder is not None:
        return in_folder(file, folder)
    for path in _places(file):
        if is_genuine(file, path):
            return path
    return download(file)


def is_genuine(file: PublishedFile, path: str | os.PathLike[str]) -> bool:
    """Whether a local copy has the published SHA-256 of its content, or without one the published MD5."""
    try:
        if file.content_sha256 is not None:
            return hashlib.sha256(read_content(path)).hexdigest() == file.content_sha256
        digest = hashlib.md5(usedforsecurity=False)
        with open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest() == file.md5
    except (DataError, OSError):
        return False


def download(file: PublishedFile) -> Path:
    """Download a file into the cache and verify its checksum.

    Returns:
        Its path in the cache.

    Raises:
        DataError: The download fails, the checksum differs, or the cache cannot be written.
    """
    folder = cache_folder()
    target = folder / file.name
    temporary: str | None = None
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A rename is atomic only within one file system.
            descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.")
            stream = os.fdopen(descriptor, "wb")
        except OSError as error:
            raise _unwritable(folder, error) from error
        md5 = _transfer(file, stream, folder)
        if md5 != file.md5 or (file.content_sha256 is not None and not is_genuine(file, temporary)):
            raise DataError(
                f"a download must have its published checksum, MD5 {file.md5}",
                got=f"{file.url} with {md5}",
                mend="try again later or from another network; the download was discarded",
            )
        try:
            os.replace(temporary, target)
        except OSError as error:
            raise _unwritable(folder, error) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return target


def _places(file: PublishedFile) -> Iterator[Path]:
    folders = [Path(folder) for folder in file.system_folders]
    with contextlib.suppress(DataError):
        folders.append(cache_folder())
    for folder in folders:
        if (folder / file.name).is_file():
            yield folder / file.name


def _transfer(file: PublishedFile, stream: IO[bytes], folder: Path) -> str:
    """Copy the published file into a stream, close it, and return the MD5 of what came."""
    digest, received = hashlib.md5(usedforsecurity=False), 0
    try:
        with stream:
            for chunk in _chunks(file):
                digest.update(chunk)
                received += len(chunk)
                if received > 2 * file.size:
                    raise _failed(file, f"more than {2 * file.size} bytes")
                stream.write(chunk)
    except OSError as error:  # only the disk's: _chunks turns the network's into a DataError
        raise _unwritable(folder, error) from error
    return digest.hexdigest()


def _chunks(file: PublishedFile) -> Iterator[bytes]:
    received = 0
    request = urllib.request.Request(file.url, headers={"User-Agent": "batchscope"})  # noqa: S310 — our own URLs
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
            length = response.headers.get("Content-Length")
            while chunk := response.read(_CHUNK_BYTES):
                received += len(chunk)
                yield chunk
    except urllib.error.HTTPError as error:
        raise _failed(file, f"the answer {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _failed(file, f"no connection ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _failed(file, f"an interruption after {received} bytes ({error or type(error).__name__})") from error
    # A connection that closes early ends the loop above without an error.
    if length is not None and length.isdigit() and received < int(length):
        raise _failed(file, f"an interruption after {received} of {length} bytes")


def _failed(file: PublishedFile, what: str) -> DataError:
    return DataError(
        f"{file.name} is not on this machine and must be downloaded",
        got=f"{what} from {file.url}",
        mend="connect to a network, or get the file on another machine and name its folder with --data",
    )


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        "a download needs a writable cache folder with free space",
        got=f"{folder} ({error.strerror or error})",
        mend="free some space, set XDG_CACHE_HOME to another folder, or name a folder of the data with --data",
    )

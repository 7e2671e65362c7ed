"""Where data files are: a folder that was named, the system's, the user's cache, and last their publisher's site.

Nothing is trusted unseen: a file from the system, the cache or the network is used only if its checksum is the
published one. A folder that the person names is their own word, and is held to the format alone.
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
        name: Its name, in any folder.
        url: Where it is published.
        md5: Published checksum of the file as downloaded, in hexadecimal.
        size: Its size in bytes, roughly: it bounds the download, and is said before one.
        content_sha256: Checksum of what is inside the gzip, which a copy that was compressed anew shares. None: the
            file itself is held to ``md5``.
        system_folders: Folders where a distribution installs it.
    """

    name: str
    url: str
    md5: str
    size: int
    content_sha256: str | None = None
    system_folders: tuple[str, ...] = ()


def cache_folder() -> Path:
    """The folder where downloads are kept: ``$XDG_CACHE_HOME/batchscope``, or ``~/.cache/batchscope``.

    Returns:
        The path, whether it exists or not.

    Raises:
        DataError: There is no such variable and no home folder either.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification has relative paths ignored
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
    """Find a file in a folder that the person named.

    Args:
        file: What to look for; a name ending in .gz is found without that ending too.
        folder: Where to look, and nowhere else.

    Returns:
        Its path.

    Raises:
        DataError: The folder is missing, is no folder, or does not hold the file.
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
    """Find a file in the system's folders or the cache, without reading it.

    Args:
        file: What to look for.

    Returns:
        The first place where there is one, None where there is none.
    """
    return next(_places(file), None)


def obtain(file: PublishedFile, folder: str | os.PathLike[str] | None = None) -> Path:
    """Find a file, or download it.

    Args:
        file: What to look for.
        folder: Look here, and nowhere else. None: the system's folders, the cache, then the network.

    Returns:
        Its path. Unless it came from ``folder``, its checksum was verified.

    Raises:
        DataError: It is in none of these places, or cannot be downloaded whole and unchanged into the cache.
    """
    if folder is not None:
        return in_folder(file, folder)
    for path in _places(file):
        if is_genuine(file, path):
            return path
    return download(file)


def is_genuine(file: PublishedFile, path: str | os.PathLike[str]) -> bool:
    """Whether a local copy has the published content.

    Args:
        file: What it should be.
        path: The copy.

    Returns:
        True where its content's SHA-256, or without one its MD5, is the published one.
    """
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
    """Download a file into the cache: whole and verified, or not at all.

    Args:
        file: What to download.

    Returns:
        Its path in the cache.

    Raises:
        DataError: The network or the site fails, the checksum is another one, or the cache cannot be written.
    """
    folder = cache_folder()
    target = folder / file.name
    temporary: str | None = None
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Beside the target, since a rename is atomic within one file system only.
            descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.")
            stream = os.fdopen(descriptor, "wb")
        except OSError as error:
            raise _unwritable(folder, error) from error
        md5 = _transfer(file, stream, folder)
        if md5 != file.md5 or (file.content_sha256 is not None and not is_genuine(file, temporary)):
            raise DataError(
                f"a download must have its published checksum, MD5 {file.md5}",
                got=f"{file.url} with {md5}",
                mend="try again later, and through another network if it stays so; nothing was kept",
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
    with contextlib.suppress(DataError):  # without a cache there are still the system's folders
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
        "a download needs a cache folder with room that this user may write",
        got=f"{folder} ({error.strerror or error})",
        mend="free some room, set XDG_CACHE_HOME to another place, or name a folder of the data with --data",
    )

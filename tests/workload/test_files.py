"""Finding and downloading data files: against folders, file:// and a server on this machine that misbehaves."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import http.server
import os
import resource
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from batchscope.errors import DataError
from batchscope.workload import files

CONTENT = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(250))  # does not compress
PACKED = gzip.compress(CONTENT, mtime=0)


def published(
    url: str, body: bytes = PACKED, *, content: bytes | None = CONTENT, **changes: Any
) -> files.PublishedFile:
    file = files.PublishedFile(
        name="data.gz",
        url=url,
        md5=hashlib.md5(body).hexdigest(),
        size=len(body),
        content_sha256=None if content is None else hashlib.sha256(content).hexdigest(),
    )
    return replace(file, **changes)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404, "Not Found")
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
            return
        if self.path == "/garbage":
            self.wfile.write(b"this is not HTTP\r\n\r\n")
            return
        self.send_response(200)
        if self.path == "/chunked-cut":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(PACKED) + PACKED[:50])
            return
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(PACKED)))
        self.end_headers()
        if self.path == "/stalled":
            self.wfile.flush()
            stop.wait(5)
        with contextlib.suppress(OSError):
            if self.path == "/endless":
                while True:
                    self.wfile.write(b"0" * 4096)
            self.wfile.write(PACKED[:100] if self.path == "/cut" else PACKED)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


stop = threading.Event()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    stop.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "batchscope"


def nothing_in(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


@pytest.mark.parametrize("where", ["/good", "/moved"])
def test_downloads_once_into_the_cache(site: str, cache: Path, where: str) -> None:
    file = published(site + where)
    path = files.obtain(file)
    assert path == cache / "data.gz"
    assert path.read_bytes() == PACKED
    assert list(cache.iterdir()) == [path]
    # The second time nothing is asked of the network.
    assert files.obtain(replace(file, url="http://127.0.0.1:9/gone")) == path
    assert files.locate(file) == path


def test_downloads_from_a_file_url(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "there.gz").write_bytes(PACKED)
    file = published((tmp_path / "there.gz").as_uri(), content=None)
    assert files.obtain(file).read_bytes() == PACKED


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("/missing", "the answer 404 Not Found from http"),
        ("/cut", f"an interruption after 100 of {len(PACKED)} bytes"),
        ("/chunked-cut", "an interruption after"),
        ("/endless", f"more than {2 * len(PACKED)} bytes"),
        ("/garbage", "an interruption after 0 bytes"),
        ("/stalled", "an interruption after 0 bytes (timed out)"),
    ],
)
def test_a_failed_download_leaves_nothing(
    site: str, cache: Path, monkeypatch: pytest.MonkeyPatch, where: str, says: str
) -> None:
    monkeypatch.setattr(files, "TIMEOUT_SECONDS", 0.3)
    with pytest.raises(DataError) as caught:
        files.obtain(published(site + where))
    assert says in str(caught.value)
    assert "--data" in caught.value.mend
    assert nothing_in(cache)


def test_no_network(cache: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(DataError, match=r"must be downloaded; got no connection \(.*refused") as caught:
        files.obtain(published(f"http://127.0.0.1:{port}/data.gz"))
    assert nothing_in(cache)
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("changes", [{"md5": "0" * 32}, {"content_sha256": "0" * 64}])
def test_a_wrong_checksum_leaves_nothing(site: str, cache: Path, changes: dict[str, str]) -> None:
    with pytest.raises(DataError, match="published checksum") as caught:
        files.obtain(replace(published(site + "/good"), **cast("Any", changes)))
    assert hashlib.md5(PACKED).hexdigest() in str(caught.value)
    assert nothing_in(cache)


def test_a_damaged_copy_in_the_cache_is_replaced(site: str, cache: Path) -> None:
    cache.mkdir(parents=True)
    for damaged in (PACKED[:-20], b"", CONTENT[:-1]):
        (cache / "data.gz").write_bytes(damaged)
        assert files.obtain(published(site + "/good")).read_bytes() == PACKED


def test_a_damaged_copy_stays_until_a_better_one_is_whole(site: str, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "data.gz").write_bytes(b"damaged")
    with pytest.raises(DataError):
        files.obtain(published(site + "/cut"))
    assert [path.name for path in cache.iterdir()] == ["data.gz"]


def test_the_system_copy_comes_first_if_it_is_genuine(tmp_path: Path, site: str, cache: Path) -> None:
    system = tmp_path / "system"
    system.mkdir()
    file = published(site + "/good", system_folders=(str(tmp_path / "none"), str(system)))
    # Compressed anew: another file, the same content.
    (system / "data.gz").write_bytes(gzip.compress(CONTENT, 1))
    assert files.obtain(file) == system / "data.gz"
    assert nothing_in(cache)
    (system / "data.gz").write_bytes(gzip.compress(b"other"))
    assert files.obtain(file) == cache / "data.gz"


def test_a_named_folder_is_the_only_place(tmp_path: Path, site: str, cache: Path) -> None:
    file = published(site + "/good")
    files.obtain(file)
    folder = tmp_path / "mine"
    with pytest.raises(DataError, match=r"must be a folder that can be read; got .*No such file"):
        files.obtain(file, folder)
    folder.mkdir()
    with pytest.raises(DataError, match=r"must hold data.gz or the same without .gz; got .*holds nothing"):
        files.obtain(file, folder)
    (folder / "other").touch()
    with pytest.raises(DataError, match="holds other"):
        files.obtain(file, folder)
    (folder / "data").write_bytes(b"my own")  # without .gz, and not the published content
    assert files.obtain(file, folder) == folder / "data"
    with pytest.raises(DataError, match="Not a directory"):
        files.obtain(file, folder / "data")


def test_the_cache_cannot_be_made(tmp_path: Path, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    with pytest.raises(DataError, match=r"writable cache folder with free space; got .*batchscope") as caught:
        files.obtain(published(site + "/good"))
    assert "XDG_CACHE_HOME" in caught.value.mend


def test_a_read_only_cache(site: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(DataError, match="Read-only file system"):
        files.obtain(published(site + "/good"))


def test_a_full_disk_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    body = os.urandom(200_000)
    (tmp_path / "there.gz").write_bytes(body)
    file = published((tmp_path / "there.gz").as_uri(), body, content=None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # writes past this fail, as on a full disk
    try:
        with pytest.raises(DataError) as caught:
            files.obtain(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in str(caught.value).lower()
    assert nothing_in(cache)


def test_an_interruption_leaves_nothing(site: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_transfer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.obtain(published(site + "/good"))
    assert nothing_in(cache)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "batchscope"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert files.cache_folder() == tmp_path / "home" / ".cache" / "batchscope"

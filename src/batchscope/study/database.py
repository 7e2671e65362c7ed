"""An SQLite file that several processes write at once: transactions, forks, and errors in words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from batchscope.errors import StorageError

# What a writer waits for another before it gives up; a write takes milliseconds.
BUSY_SECONDS = 60.0
# SQLite's own error numbers; the lower byte is the error, what is above it only says more.
_MEANINGS = {
    sqlite3.SQLITE_NOTADB: ("a sweep's store must be an SQLite file", "name another file"),
    sqlite3.SQLITE_CORRUPT: (
        "a store must be whole",
        "put back a copy of it, or name another file; `sqlite3 FILE .recover` may save its trials",
    ),
    sqlite3.SQLITE_FULL: ("a store needs room on its disk", "free some and run it again: what is there is kept"),
    sqlite3.SQLITE_READONLY: ("a store must be writable", "name a file in a folder of your own"),
    sqlite3.SQLITE_CANTOPEN: ("a store must lie in a folder that this user may write", "name another file"),
    sqlite3.SQLITE_BUSY: ("a store must not be locked for long", "end the program that holds it, and run it again"),
}


class Database:
    """One SQLite file in WAL mode, through a connection that is made when it is first needed.

    SQLite forbids to carry a connection over a fork, and locks would be lost by it. So it is closed before every fork
    of this process, in whichever thread, and made anew at its next use, on both sides.

    Args:
        path: The file.
        application_id: What marks it as ours, in SQLite's own header, where `file` and other programs look for it;
            whoever makes the tables sets it.
        read_only: Whether it may only be read; it must exist then.
    """

    def __init__(self, path: Path, application_id: int, *, read_only: bool = False) -> None:
        self.path, self.application_id, self.read_only = path, application_id, read_only
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        _databases.add(self)

    def close(self) -> None:
        """Close the file, if it is open in this process; the next transaction opens it again."""
        with self.lock:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                with contextlib.suppress(sqlite3.Error):
                    connection.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the file, whatever others write meanwhile.

        Yields:
            The connection.
        """
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes beside, and of which all is kept or nothing.

        Yields:
            The connection.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self.lock, _in_words(self.path):
            if self._connection is None:
                self._connection = self._connect()
            connection = self._connection
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")

    def _connect(self) -> sqlite3.Connection:
        connection = self._open("ro" if self.read_only else "rwc")
        try:
            self._check(connection)
            if not self.read_only:
                _write_ahead(connection)
                # With NORMAL a loss of power could take the last trials along; a trial takes far longer than a sync.
                connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.OperationalError:
            connection.close()
            # Even to read, WAL mode makes a file beside this one. Where it may not, nobody can be writing either,
            # unless somebody's log lies there.
            log = Path(f"{self.path}-wal")
            if not self.read_only or (log.exists() and log.stat().st_size):
                raise
            connection = self._open("ro&immutable=1")
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Refuse a database of something else, before anything in it is changed."""
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != self.application_id and (tables or self.read_only):
            raise StorageError(
                "a sweep's store must be a file of its own",
                got=f"{self.path}, a database of something else",
                mend="name another file",
            )

    def _open(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            # The lock lets one thread in at a time, and a fork may close it in another than it was made in.
            check_same_thread=False,
        )


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn to WAL mode; where several processes make a file at once, SQLite refuses without waiting."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turn what SQLite raises inside the block into a StorageError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = cast("int", getattr(error, "sqlite_errorcode", 0)) & 0xFF
        rule, mend = _MEANINGS.get(code, ("a store must be readable and writable", "name a file on a local disk"))
        raise StorageError(rule, got=f"{path} ({error})", mend=mend) from error


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_held: list[Database] = []


def _before_fork() -> None:
    _held[:] = _databases
    for database in _held:
        database.lock.acquire()
        database.close()


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)

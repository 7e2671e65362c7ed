"""Finished runs in one SQLite file, which one process writes and any may read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from batchscope.errors import BatchscopeError, StorageError
from batchscope.records import CurvePoint, Plan, SweepTrial, TrainResult, decode, encode

# Schema 1 told workloads apart by a sample of their data. It can be read, and not resumed.
SCHEMA, READABLE = 2, (1, 2)
# "bsSW", where `file` and other programs look for it.
APPLICATION_ID = 0x62735357
BUSY_SECONDS = 60.0
LARGEST_SEED = 2**63 - 1

_TABLES = (
    "CREATE TABLE identity (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE sittings (began_at REAL NOT NULL, seen_at REAL NOT NULL)",
    """CREATE TABLE trials (
    batch_size INTEGER NOT NULL, learning_rate REAL NOT NULL, seed INTEGER NOT NULL, outcome TEXT NOT NULL,
    examples_to_target INTEGER, examples INTEGER NOT NULL, iterations INTEGER NOT NULL,
    best_score REAL, best_loss REAL, final_score REAL, sweep_seconds REAL NOT NULL, stack_size INTEGER,
    message TEXT, curve TEXT NOT NULL,  -- its evaluations, a JSON list of CurvePoint
    PRIMARY KEY (batch_size, learning_rate, seed))""",
    # Of a comparison: a TrainResult as JSON.
    "CREATE TABLE runs (key TEXT PRIMARY KEY, result TEXT NOT NULL)",
)
_COLUMNS = (
    "batch_size, learning_rate, seed, outcome, examples_to_target, examples, iterations, best_score, best_loss, "
    "final_score, sweep_seconds, stack_size, message, curve"
)
_PUT = f"INSERT OR REPLACE INTO trials ({_COLUMNS}) VALUES ({', '.join('?' * len(_COLUMNS.split(',')))})"  # noqa: S608
_SELECT = f"SELECT {_COLUMNS} FROM trials ORDER BY batch_size, learning_rate, seed"  # noqa: S608
# SQLite's error numbers; their lower byte is the kind of error.
_MEANINGS = {
    sqlite3.SQLITE_NOTADB: ("a store must be an SQLite file", "name another file"),
    sqlite3.SQLITE_CORRUPT: ("a store must be whole", "put back a copy, or name another file and train anew"),
    sqlite3.SQLITE_FULL: ("a store needs room on its disk", "free some and run it again: what is there is kept"),
    sqlite3.SQLITE_READONLY: ("a store must be writable", "name a file in a folder of your own"),
    sqlite3.SQLITE_CANTOPEN: ("a store must lie in a folder that this user may write", "name another file"),
    sqlite3.SQLITE_BUSY: ("a store must not be locked for long", "end the program that holds it, and run it again"),
}


class Store:
    """The finished trials of a sweep, or the finished runs of a comparison; made by :meth:`open` or :meth:`read`.

    What was put into it survives the end of this process at any moment.
    """

    def __init__(self, path: Path | None, mode: str) -> None:
        self.path = path
        self._lock: int | None = None
        self._sitting: int | None = None
        self._began_at = time.time()
        with self._in_words():
            name = ":memory:" if path is None else f"{path.as_uri()}?mode={mode}"
            self._connection = sqlite3.connect(name, uri=True, timeout=BUSY_SECONDS, isolation_level=None)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, identity: Mapping[str, str]) -> Store:
        """Open a store to write, or make it.

        Args:
            path: The file; its folder is made when missing. None: memory, for as long as the store is open.
            identity: What the runs are of: workload, data, software, device and conditions.

        Returns:
            The store.

        Raises:
            StorageError: It cannot be read or written, another process writes it, it is of something else, or it was
                made by another release.

        Examples:
            >>> with Store.open(None, {"workload": "f00d"}) as store:
            ...     store.trials()
            []
        """
        if path is not None:
            path = Path(os.path.abspath(path))  # wherever the working directory goes
            if path.is_dir():
                raise StorageError("a store is a file", got=f"{path}, which is a folder", mend="name a file in it")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                rule = "a store must lie in a folder that can be made"
                raise StorageError(rule, got=f"{path} ({error.strerror})", mend="name another") from error
        store = cls(path, "rwc")
        try:
            store._begin(identity)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Store:
        """Open a store to read, while another process may write it.

        Args:
            path: The file.

        Returns:
            The store.

        Raises:
            StorageError: It cannot be read, or is no store.
        """
        found = Path(os.path.abspath(path))
        if not found.is_file():
            raise StorageError("a store to read must be a file", got=f"{found}", mend="check the path")
        log = Path(f"{found}-wal")
        # Even a reader makes a file beside the store. Where it may not, and there is no log, nobody is writing either.
        alone = not os.access(found.parent, os.W_OK) and not (log.exists() and log.stat().st_size)
        store = cls(found, "ro&immutable=1" if alone else "ro")
        try:
            with store._in_words():
                store._check(READABLE)
        except BaseException:
            store.close()
            raise
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(sqlite3.Error):
            if self._sitting is not None:
                self._note_the_time()
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        if self._lock is not None and self.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(_lock_of(self.path))
            os.close(self._lock)
            self._lock = None

    def put(self, trial: SweepTrial) -> None:
        """Keep a trial, in place of an earlier result of it.

        Args:
            trial: It.

        Raises:
            StorageError: The disk is full, or the file cannot be written any more.
        """
        row = {name.strip(): getattr(trial, name.strip()) for name in _COLUMNS.split(",")}
        row["curve"] = json.dumps(encode(trial.curve))
        if trial.message is not None:  # a file's name in an error can hold what is no text for SQLite
            row["message"] = trial.message.encode(errors="backslashreplace").decode()
        self._write(_PUT, row.values())

    def trials(self) -> list[SweepTrial]:
        """Every trial, by batch size, rate and seed; the time of its updates alone is not known here.

        Raises:
            StorageError: The file is damaged.
        """
        with self._in_words():
            cursor = self._connection.execute(_SELECT)
            names = [column[0] for column in cursor.description]
            rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in cursor]
        return [SweepTrial(**row | {"step_seconds": None, "curve": self._curve(row["curve"])}) for row in rows]

    def put_run(self, key: str, run: TrainResult) -> None:
        """Keep a run of a comparison.

        Args:
            key: What :func:`run_key` says of it.
            run: It.

        Raises:
            StorageError: As :meth:`put`.
        """
        self._write("INSERT OR REPLACE INTO runs VALUES (?, ?)", (key, json.dumps(encode(run))))

    def run(self, key: str) -> TrainResult | None:
        """The run of that key; None where there is none.

        Raises:
            StorageError: The file is damaged.
        """
        with self._in_words():
            row = self._connection.execute("SELECT result FROM runs WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            return decode(TrainResult, json.loads(row[0]), f"{self.path}: {key}")
        except (ValueError, TypeError, BatchscopeError) as error:
            raise self._damaged(error) from error

    def total_seconds(self) -> float:
        """Wall-clock time of all sittings; one that was killed counts until the last result that it kept."""
        with self._in_words():
            (past,) = self._connection.execute(
                "SELECT total(seen_at - began_at) FROM sittings WHERE rowid != ?", (self._sitting,)
            ).fetchone()
        return float(past) + time.time() - self._began_at

    def _write(self, statement: str, values: Any) -> None:
        """Make a change and note the time, both or neither."""
        with self._in_words(), self._transaction():
            self._connection.execute(statement, tuple(values))
            self._note_the_time()

    def _note_the_time(self) -> None:
        self._connection.execute("UPDATE sittings SET seen_at = ? WHERE rowid = ?", (time.time(), self._sitting))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")

    def _begin(self, identity: Mapping[str, str]) -> None:
        """Become the writer: make the tables, or see whether they are of the same thing."""
        if self.path is not None:
            self._lock = _locked(self.path)
        with self._in_words():
            if self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._check((SCHEMA,))
                (fault,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
                if fault != "ok":
                    raise self._damaged(fault)
                self._compare(identity)
            # With NORMAL a loss of power could take the last trials along; a trial takes far longer than a sync.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            with self._transaction():
                if not self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    for table in _TABLES:
                        self._connection.execute(table)
                    self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
                    self._connection.executemany("INSERT INTO identity VALUES (?, ?)", identity.items())
                self._sitting = self._connection.execute(
                    "INSERT INTO sittings VALUES (?, ?)", (self._began_at, self._began_at)
                ).lastrowid

    def _check(self, schemas: tuple[int, ...]) -> None:
        """Refuse what is no store, and the store of another release."""
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            got = f"{self.path}, a database of something else"
            raise StorageError("a store must be a file of its own", got=got, mend="name another file")
        (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
        if schema not in schemas:
            old = schema in READABLE
            raise StorageError(
                f"this release resumes stores of schema {SCHEMA}",
                got=f"{self.path} with schema {schema}" + (", which knows its data by a sample only" if old else ""),
                mend="name another file, or use the release that wrote it"
                + ("; `batchscope export` reads its trials all the same" if old else ""),
            )

    def _compare(self, identity: Mapping[str, str]) -> None:
        found = dict(self._connection.execute("SELECT name, value FROM identity").fetchall())
        differing = [
            f"{name} {found.get(name, 'missing')} instead of {identity.get(name, 'none')}"
            for name in dict.fromkeys([*identity, *found])
            if found.get(name) != identity.get(name)
        ]
        if differing:
            raise StorageError(
                "a store holds the runs of one workload and its data, under the same conditions, on one version of the "
                "software and one kind of device",
                got=f"{self.path} with {', '.join(differing)}",
                mend="name another",
            )

    def _curve(self, text: str) -> tuple[CurvePoint, ...]:
        """A curve from its JSON; quicker than ``decode``, which would take seconds over a thousand of them."""
        try:
            points: list[dict[str, Any]] = json.loads(text)
            for point in points:
                # Infinities and nan are the only strings in it.
                point.update((name, float(value)) for name, value in point.items() if isinstance(value, str))
            return tuple(CurvePoint(**point) for point in points)
        except (ValueError, TypeError, AttributeError) as error:
            raise self._damaged(error) from error

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """Turn what SQLite raises inside the block into a StorageError that says what to do."""
        try:
            yield
        except sqlite3.Error as error:
            code = cast("int", getattr(error, "sqlite_errorcode", 0)) & 0xFF
            rule, mend = _MEANINGS.get(code, ("a store must be readable and writable", "name a file on a local disk"))
            raise StorageError(rule, got=f"{self.path} ({error})", mend=mend) from error

    def _damaged(self, said: object) -> StorageError:
        rule, mend = _MEANINGS[sqlite3.SQLITE_CORRUPT]
        return StorageError(rule, got=f"{self.path} ({said})", mend=mend)


def run_key(plan: Plan, seed: int, evaluate_every: int) -> str:
    """The name of a run: its batch size, its seed, and a hash of everything that determines it.

    Examples:
        >>> run_key(Plan(batch_size=8, learning_rate=0.1, iterations=3), 0, 64)[:6]
        'b8-s0-'
    """
    key = json.dumps([encode(plan), seed, evaluate_every], sort_keys=True)
    digest = hashlib.blake2b(key.encode(), digest_size=10).hexdigest()
    return f"b{plan.batch_size}-s{seed % 10**6}-{digest}"


def _locked(path: Path) -> int | None:
    """A descriptor of a file beside the store that holds the writer's lock, until this process ends in whatever way.

    Not of the store itself, whose locks SQLite lets go of; and not of a kind that forked processes inherit. None where
    there are none, as on Windows.
    """
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            descriptor = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            rule, mend = _MEANINGS[sqlite3.SQLITE_CANTOPEN]
            raise StorageError(rule, got=f"{path} ({error.strerror})", mend=mend) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(_lock_of(path))):
                return descriptor
        except FileNotFoundError:  # whoever held it has just taken it away
            pass
        except OSError as error:
            os.close(descriptor)
            raise StorageError(
                "a store has one writer at a time",
                got=f"{path}, which another process writes",
                mend="wait until that has ended, or name another file",
            ) from error
        os.close(descriptor)


def _lock_of(path: Path) -> str:
    return f"{path}-lock"

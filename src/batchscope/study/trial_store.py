"""Every finished trial of a sweep in one SQLite file, written by several processes at once."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sqlite3
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from batchscope.errors import BatchscopeError, StorageError
from batchscope.records import CurvePoint, SweepTrial, TrainResult, TrialOutcome, decode, encode
from batchscope.records.training import IN_ORDER
from batchscope.study.database import Database
from batchscope.study.owners import is_alive, started_at
from batchscope.study.tasks import Conditions, Ended, Standing, Trial

SCHEMA = 1
# "bsSW".
APPLICATION_ID = 0x62735357
HEARTBEAT_SECONDS = 5.0
LARGEST_INTEGER = 2**63 - 1
FIRST_STRICT_SQLITE = (3, 37)

_TABLES = (
    "CREATE TABLE identity (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE trials (
    batch_size INTEGER NOT NULL, learning_rate REAL NOT NULL, seed INTEGER NOT NULL,
    outcome TEXT NOT NULL,  -- as in SweepTrial
    ended TEXT NOT NULL,  -- as in Standing
    message TEXT,
    examples INTEGER NOT NULL, iterations INTEGER NOT NULL, examples_to_target INTEGER,
    best_score REAL, best_loss REAL, final_score REAL,
    sweep_seconds REAL NOT NULL, stack_size INTEGER,
    curve TEXT NOT NULL,  -- its evaluations, a JSON list of CurvePoint
    result TEXT,  -- the rest of its TrainResult as JSON, null where its process did not survive it
    worker TEXT NOT NULL, owner TEXT, finished_at REAL NOT NULL,
    PRIMARY KEY (batch_size, learning_rate, seed))""",
    """CREATE TABLE claims (
    batch_size INTEGER NOT NULL, learning_rate REAL NOT NULL, seed INTEGER NOT NULL, owner TEXT NOT NULL,
    PRIMARY KEY (batch_size, learning_rate, seed))""",
    """CREATE TABLE sittings (
    owner TEXT PRIMARY KEY, process_started INTEGER, began_at REAL NOT NULL, seen_at REAL NOT NULL)""",
)
# What has ended stays. What was pruned or lost gives way to what is newer, unless that was only pruned sooner.
_FINISH = """
INSERT INTO trials VALUES (:batch_size, :learning_rate, :seed, :outcome, :ended, :message, :examples, :iterations,
    :examples_to_target, :best_score, :best_loss, :final_score, :sweep_seconds, :stack_size, :curve, :result, :worker,
    (SELECT owner FROM claims WHERE batch_size = :batch_size AND learning_rate = :learning_rate AND seed = :seed), :now)
ON CONFLICT (batch_size, learning_rate, seed) DO UPDATE SET
    outcome = excluded.outcome, ended = excluded.ended, message = excluded.message, examples = excluded.examples,
    iterations = excluded.iterations, examples_to_target = excluded.examples_to_target,
    best_score = excluded.best_score, best_loss = excluded.best_loss, final_score = excluded.final_score,
    sweep_seconds = excluded.sweep_seconds, stack_size = excluded.stack_size, curve = excluded.curve,
    result = excluded.result, worker = excluded.worker, owner = excluded.owner, finished_at = excluded.finished_at
WHERE trials.ended IN ('pruned', 'failed')
    AND NOT (trials.ended = 'pruned' AND excluded.ended = 'pruned' AND excluded.examples < trials.examples)
"""
# Whoever waits for a trial is at work, though its own process may not have been heard of for long.
_SEEN = """
UPDATE sittings SET seen_at = max(seen_at, ?)
WHERE owner IN (SELECT owner FROM claims WHERE batch_size = ? AND learning_rate = ? AND seed = ?)
"""
_TRIALS = """
SELECT batch_size, learning_rate, seed, outcome, examples_to_target, examples, iterations, best_score, best_loss,
    final_score, sweep_seconds, stack_size, message, curve
FROM trials ORDER BY batch_size, learning_rate, seed
"""
_STANDINGS = """
SELECT batch_size, learning_rate, seed, ended, examples, best_score, best_loss
FROM trials ORDER BY batch_size, learning_rate, seed
"""


def ended_of(outcome: TrialOutcome) -> Ended:
    """How a trial of that outcome stands for the search.

    Examples:
        >>> ended_of("finished"), ended_of("timed out")
        ('missed', 'failed')
    """
    match outcome:
        case "reached" | "diverged" | "pruned":
            return outcome
        case "finished":
            return "missed"
        case _:
            return "failed"


def standing_of(trial: Trial, result: TrainResult) -> Standing:
    """How a trial stands that has ended with a result; "running", where the run was interrupted."""
    outcome = result.outcome
    ended = "running" if outcome == "interrupted" else ended_of("finished" if outcome == "stopped early" else outcome)
    return Standing(trial, ended, result.examples, result.best_score, result.best_loss)


class TrialStore:
    """The finished trials of one sweep, in one SQLite file; made by :meth:`open`.

    Any number of processes may write to it at once, forked ones through the same object.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._opened_at = time.time()
        self._heartbeats: dict[str, float] = {}
        self._known_pruned: set[Trial] = set()

    @classmethod
    def open(cls, path: str | os.PathLike[str], identity: dict[str, str], conditions: Conditions) -> TrialStore:
        """Open the store of a sweep, or make it.

        Args:
            path: The file; its folder is made when missing.
            identity: Which workload, on which software and device, the trials are of.
            conditions: What they have in common; the pruning apart, which changes no trial that ends by itself.

        Returns:
            The store.

        Raises:
            StorageError: It cannot be read or written, is something else's, or another release's.

        Examples:
            >>> import tempfile
            >>> conditions = Conditions(target=0.9, budget_examples=1000, evaluate_every=100)
            >>> path = Path(tempfile.mkdtemp()) / "sweep.db"
            >>> with TrialStore.open(path, {"workload": "digits"}, conditions) as store:
            ...     store.claim([Trial(8, 0.1, 0)], "atlas:4711:9f3c")
            (Trial(batch_size=8, learning_rate=0.1, seed=0),)
        """
        path = Path(os.path.abspath(path))  # wherever the working directory goes
        if path.is_dir():
            raise StorageError("a sweep's store is a file", got=f"{path}, which is a folder", mend="name a file in it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                "a store must lie in a folder that can be made", got=f"{path} ({error.strerror})", mend="name another"
            ) from error
        store = cls(Database(path, APPLICATION_ID))
        try:
            store._check(identity | _in_words(conditions))
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TrialStore:
        """Open any sweep's store for reading alone.

        Args:
            path: The file.

        Returns:
            The store.

        Raises:
            StorageError: It cannot be read, or is no sweep's store.
        """
        found = Path(os.path.abspath(path))
        if not found.is_file():
            raise StorageError("a store to read must be a file", got=f"{found}", mend="check the path")
        store = cls(Database(found, APPLICATION_ID, read_only=True))
        try:
            with store._database.reading() as connection:
                store._check_schema(connection)
        except BaseException:
            store.close()
            raise
        return store

    def __enter__(self) -> TrialStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._database.path

    def close(self) -> None:
        """Close the file; what is asked for later opens it again."""
        self._database.close()

    # --- trials -------------------------------------------------------------------------------------------------------

    def finish(self, trial: Trial, result: TrainResult, *, worker: str = "") -> None:
        """Keep how a trial ended, at once and for good.

        A trial that has ended is not overwritten. One that was pruned or lost gives way to a newer result, unless that
        was pruned sooner. An interrupted run is no result and is not kept.

        Args:
            trial: Which.
            result: Its run.
            worker: Who trained it.

        Raises:
            StorageError: The disk is full, or the file cannot be written any more.
        """
        if result.outcome == "interrupted":
            return
        fields = encode(result)
        curve = fields.pop("curve")
        self._put(
            trial,
            outcome="finished" if result.outcome == "stopped early" else result.outcome,
            message=result.message,
            examples=result.examples,
            iterations=result.iterations,
            examples_to_target=result.examples if result.reached else None,
            best_score=result.best_score,
            best_loss=result.best_loss,
            final_score=result.final_score if result.outcome in IN_ORDER else None,
            sweep_seconds=result.total_seconds,
            stack_size=result.stack_size,
            curve=curve,
            result=json.dumps(fields),
            worker=worker,
        )

    def fail(
        self,
        trial: Trial,
        outcome: Literal["out of memory", "crashed", "timed out"],
        reason: str,
        *,
        curve: Sequence[CurvePoint] = (),
        worker: str = "",
    ) -> None:
        """Keep that a trial was lost together with the process that trained it.

        Args:
            trial: Which.
            outcome: How.
            reason: Why, in a line.
            curve: The evaluations that were heard of before.
            worker: Who trained it.

        Raises:
            StorageError: The disk is full, or the file cannot be written any more.
        """
        self._put(
            trial,
            outcome=outcome,
            message=reason,
            examples=max((point.examples for point in curve), default=0),
            iterations=max((point.iterations for point in curve), default=0),
            examples_to_target=None,
            best_score=max((point.score for point in curve if math.isfinite(point.score)), default=None),
            best_loss=min((p.validation_loss for p in curve if math.isfinite(p.validation_loss)), default=None),
            final_score=None,
            sweep_seconds=max((point.seconds for point in curve), default=0.0),
            stack_size=None,
            curve=encode(tuple(curve)),
            result=None,
            worker=worker,
        )

    def _put(self, trial: Trial, *, outcome: TrialOutcome, curve: list[Any], **columns: Any) -> None:
        now = time.time()
        row = columns | trial._asdict() | {"outcome": outcome, "ended": ended_of(outcome), "now": now}
        for name in ("message", "worker"):  # a file's name in an error can hold what is no text for SQLite
            row[name] = row[name] and row[name].encode(errors="backslashreplace").decode()
        with self._database.writing() as connection:
            connection.execute(_FINISH, row | {"curve": json.dumps(curve)})
            connection.execute(_SEEN, (now, *trial))
            connection.execute("DELETE FROM claims WHERE batch_size = ? AND learning_rate = ? AND seed = ?", trial)

    def standings(self) -> list[Standing]:
        """How every trial in the store has ended, by batch size, rate and seed."""
        with self._database.reading() as connection:
            rows = connection.execute(_STANDINGS).fetchall()
        standings = [Standing(Trial(*row[:3]), *row[3:]) for row in rows]
        self._known_pruned.update(standing.trial for standing in standings if standing.ended == "pruned")
        return standings

    def trials(self) -> list[SweepTrial]:
        """Every trial in the store, by batch size, rate and seed; the time of its updates alone is not known here."""
        with self._database.reading() as connection:
            cursor = connection.execute(_TRIALS)
            names = [column[0] for column in cursor.description]
            rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in cursor]
        return [SweepTrial(**row | {"step_seconds": None, "curve": self._curve(row["curve"])}) for row in rows]

    def result(self, trial: Trial) -> TrainResult | None:
        """The whole run of a trial; None where there is none, or where its process did not survive it."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT result, curve FROM trials WHERE batch_size = ? AND learning_rate = ? AND seed = ?", trial
            ).fetchone()
        if row is None or row[0] is None:
            return None
        try:
            return decode(TrainResult, json.loads(row[0]) | {"curve": json.loads(row[1])}, f"{self.path}: {trial}")
        except (ValueError, TypeError, BatchscopeError) as error:
            raise self._damaged(error) from error

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

    # --- who is at work -----------------------------------------------------------------------------------------------

    def claim(self, trials: Collection[Trial], owner: str) -> tuple[Trial, ...]:
        """Take trials on oneself, so that no other sweep on this store trains them as well.

        Args:
            trials: Which are wanted.
            owner: Who wants them, ``host:pid:anything``. The claims of a process that is gone, or on another machine
                has not been heard of for a minute, are taken over.

        Returns:
            Those that are ours now, in the order given. The others are being trained elsewhere, or have ended, which
            :meth:`standings` tells. What was pruned can be claimed again by whoever knows that it was.

        Raises:
            StorageError: The file cannot be written, or a seed is too large for it.
        """
        if (largest := max((trial.seed for trial in trials), default=0)) > LARGEST_INTEGER:
            raise StorageError("a seed in a store must be below 2**63", got=largest, mend="choose smaller seeds")
        now = time.time()
        with self._database.writing() as connection:
            self._be_seen(connection, owner, now)
            others = {name for (name,) in connection.execute("SELECT DISTINCT owner FROM claims")} - {owner}
            alive = {name for name in others if self._is_alive(connection, name, now)}
            got = tuple(trial for trial in trials if self._is_free(connection, trial, owner, alive))
            connection.executemany(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", [(*trial, owner) for trial in got]
            )
        return got

    def release(self, owner: str) -> None:
        """Give up what an owner has claimed and not finished; its sitting ends here."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM claims WHERE owner = ?", (owner,))
            connection.execute("UPDATE sittings SET seen_at = max(seen_at, ?) WHERE owner = ?", (time.time(), owner))

    def heartbeat(self, owner: str) -> None:
        """Say that an owner is still at work; may be called often, and writes every few seconds only."""
        now = time.time()
        if abs(now - self._heartbeats.get(owner, 0.0)) >= HEARTBEAT_SECONDS:
            with self._database.writing() as connection:
                self._be_seen(connection, owner, now)

    def total_seconds(self) -> float:
        """Wall-clock time of all sittings, each until its end or until last heard of; what overlaps counts once."""
        with self._database.reading() as connection:
            sittings = connection.execute("SELECT began_at, seen_at FROM sittings ORDER BY began_at").fetchall()
        total, until = 0.0, -math.inf
        for began, seen in sittings:
            total += max(0.0, seen - max(began, until))
            until = max(until, seen)
        return total

    def _be_seen(self, connection: sqlite3.Connection, owner: str, now: float) -> None:
        connection.execute(
            "INSERT INTO sittings VALUES (?, ?, ?, ?)"
            " ON CONFLICT (owner) DO UPDATE SET seen_at = max(seen_at, excluded.seen_at)",
            (owner, started_at(owner), min(self._opened_at, now), now),
        )
        self._heartbeats[owner] = now

    @staticmethod
    def _is_alive(connection: sqlite3.Connection, owner: str, now: float) -> bool:
        row = connection.execute("SELECT process_started, seen_at FROM sittings WHERE owner = ?", (owner,)).fetchone()
        return row is not None and is_alive(owner, row[0], now - row[1])

    def _is_free(self, connection: sqlite3.Connection, trial: Trial, owner: str, alive: set[str]) -> bool:
        ended = connection.execute(
            "SELECT ended, owner FROM trials WHERE batch_size = ? AND learning_rate = ? AND seed = ?", trial
        ).fetchone()
        # Whoever does not know that it was pruned would train the same again.
        if ended is not None and not (ended[0] == "pruned" and (ended[1] == owner or trial in self._known_pruned)):
            return False
        holder = connection.execute(
            "SELECT owner FROM claims WHERE batch_size = ? AND learning_rate = ? AND seed = ?", trial
        ).fetchone()
        return holder is None or holder[0] not in alive

    # --- the file -----------------------------------------------------------------------------------------------------

    def _check(self, identity: dict[str, str]) -> None:
        """Make the tables, or see whether they are of the same thing."""
        with self._database.writing() as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                strict = " STRICT" if sqlite3.sqlite_version_info >= FIRST_STRICT_SQLITE else ""
                for table in _TABLES:
                    connection.execute(table + strict)
                connection.executemany("INSERT INTO identity VALUES (?, ?)", identity.items())
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
                return
            self._check_schema(connection)
            (fault,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if fault != "ok":
                raise self._damaged(fault)
            found = dict(connection.execute("SELECT name, value FROM identity").fetchall())
        differing = [
            f"{name} {found.get(name, 'missing')} instead of {identity.get(name, 'none')}"
            for name in dict.fromkeys([*identity, *found])
            if found.get(name) != identity.get(name)
        ]
        if differing:
            raise StorageError(
                "a store holds the trials of one workload, under the same conditions, on one version of the software"
                " and one kind of device",
                got=f"{self.path} with {', '.join(differing)}",
                mend="name another file for this sweep",
            )

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        """Refuse the store of another release."""
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        if schema != SCHEMA:
            raise StorageError(
                f"this release reads stores of schema {SCHEMA}",
                got=f"{self.path} with schema {schema}",
                mend="use the release that wrote it, or name another file",
            )

    def _damaged(self, said: object) -> StorageError:
        return StorageError(
            "a store must be whole",
            got=f"{self.path} ({said})",
            mend="put back a copy of it, or name another file and train anew",
        )


def _in_words(conditions: Conditions) -> dict[str, str]:
    """Conditions by name, without the pruning."""
    fields = dataclasses.asdict(conditions)
    del fields["pruning"]
    return {name: json.dumps(value) for name, value in fields.items()}

"""Tables of runs in text files: batch size and what the target took, from a sweep's export or anybody's spreadsheet."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchscope.errors import ArgumentError
from batchscope.fit import fit_tradeoff
from batchscope.records import TradeoffLaw

# Names of columns, told apart by letters and digits alone.
BATCH = ("batchsize", "batch", "globalbatchsize", "b")
EXAMPLES_TO_TARGET = ("examplestotarget", "samplestotarget")
UPDATES_TO_TARGET = ("updatestotarget", "stepstotarget", "iterationstotarget")
EXAMPLES = ("examples", "samples")
UPDATES = ("updates", "steps", "iterations")
RATE = ("learningrate", "lr", "rate")
SPENT = ("spent", "budget")
EXAMPLES_SPENT = ("examplesspent", "budgetexamples")
CENSORED = ("censored", "missed")
OUTCOME = ("outcome", "status")

REACHED_WORDS = ("reached", "ok", "success")
MISSED_WORDS = (
    *("finished", "diverged", "pruned", "out of memory", "crashed", "timed out"),
    *("missed", "censored", "failed", "stopped early", "interrupted"),
)
UNKNOWN_WORDS = ("", "-", "–", "nan", "na", "n/a", "none", "null", "inf", "+inf", "infinity", "∞")
TRUE_WORDS, FALSE_WORDS = ("1", "true", "yes", "y"), ("0", "false", "no", "n", "")
SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True)
class Table:
    """What a table says of every batch size, at its best learning rate where there were several.

    Attributes:
        batch_sizes: Examples per update, ascending.
        examples_to_target: Those of every run of each size; infinite for a run that missed the target.
        spent: What each of these runs was given, which a missed one needs at least; None where the table does not say.
        learning_rates: The rate whose runs these are; None where the table has no rates.
    """

    batch_sizes: tuple[int, ...]
    examples_to_target: tuple[tuple[float, ...], ...]
    spent: tuple[tuple[float | None, ...], ...]
    learning_rates: tuple[float | None, ...]

    def fit(self, *, level: float = 0.95) -> TradeoffLaw:
        """Fit the trade-off law, as :func:`batchscope.fit.fit_tradeoff` does.

        Args:
            level: Level of the intervals.

        Returns:
            The law. A missed run needs what it was given at least; where the table does not say, the most that a run
            of its size took, or an update.
        """
        missed = [
            bound
            for runs, bounds in zip(self.examples_to_target, self.spent, strict=True)
            for examples, bound in zip(runs, bounds, strict=True)
            if math.isinf(examples)
        ]
        if all(bound is None for bound in missed):
            return fit_tradeoff(self.batch_sizes, self.examples_to_target, level=level)
        spent = [
            [bound or max((e for e in runs if math.isfinite(e)), default=float(size)) for bound in bounds]
            for size, runs, bounds in zip(self.batch_sizes, self.examples_to_target, self.spent, strict=True)
        ]
        return fit_tradeoff(self.batch_sizes, self.examples_to_target, spent=spent, level=level)


def read_table(path: str | os.PathLike[str]) -> Table:
    r"""Read runs from a text file: a line each, columns found by their names.

    Names may be written in any case, with spaces, underscores or hyphens. Needed are the batch size (``batch_size``,
    ``batch``, ``B``) and what the target took: ``examples_to_target``, ``steps_to_target``, ``examples``, or
    ``updates``, ``steps``, ``iterations``, which count times the batch size. With ``learning_rate`` (``lr``) the best
    rate of each batch size counts: the least geometric mean, a missed run taken for what it spent and for the slowest
    run that reached, whichever is more. Missed is a run whose number is empty, ``inf``, ``nan`` or ``>1234``, whose
    ``outcome`` says so, or for which ``censored`` is true; what it spent is that 1234, the column ``spent`` (in the
    unit of the column that it belongs to), or ``examples`` beside ``examples_to_target``. Other columns, as a seed's,
    are left alone: this reads what ``batchscope export`` writes.

    Args:
        path: The file: columns apart by commas, semicolons or tabs, lines that begin with ``#`` left out.

    Returns:
        The runs of each batch size.

    Raises:
        ArgumentError: The file cannot be read, a column is missing, or a value makes no sense; the message names
            the line.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "runs.csv"
        >>> _ = path.write_text("Batch size; steps; seed\n8; 1250; 0\n8; 1200; 1\n64; >500; 0\n")
        >>> table = read_table(path)
        >>> table.batch_sizes, table.examples_to_target, table.spent[1]
        ((8, 64), ((10000.0, 9600.0), (inf,)), (32000.0,))
    """
    source = _Source(Path(path))
    rows = source.rows()
    header = next(rows, None)
    if header is None:
        raise ArgumentError("a table needs a line of column names", got=f"{path}, which is empty")
    columns = _Columns.find(header, source)
    runs = [columns.run(row, source) for row in rows]
    if not runs:
        raise ArgumentError("a table needs a line for each run", got=f"{path} with column names alone")
    by_size: dict[int, list[_Run]] = {}
    for run in runs:
        by_size.setdefault(run.batch_size, []).append(run)
    chosen = {size: _best_rate(by_size[size]) for size in sorted(by_size)}
    return Table(
        batch_sizes=tuple(chosen),
        examples_to_target=tuple(tuple(run.examples for run in kept) for kept in chosen.values()),
        spent=tuple(tuple(run.spent for run in kept) for kept in chosen.values()),
        learning_rates=tuple(kept[0].learning_rate for kept in chosen.values()),
    )


@dataclass(frozen=True)
class _Run:
    """One line: ``examples`` is infinite for a run that missed the target, ``spent`` None where that is not said."""

    batch_size: int
    learning_rate: float | None
    examples: float
    spent: float | None


@dataclass
class _Source:
    """The file, and the line of it that is being read."""

    path: Path
    line: int = 0

    def rows(self) -> Iterator[list[str]]:
        """Cells of every line but comments and empty ones; the first are the names of the columns."""
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ArgumentError(
                "a table must be a file that can be read", got=f"{self.path} ({error.strerror})", mend="check the path"
            ) from error
        except UnicodeDecodeError as error:
            raise ArgumentError(
                "a table must be text in UTF-8", got=f"{self.path} ({error})", mend="save it as CSV in UTF-8"
            ) from error
        lines = self._told(text.splitlines())
        first = next(lines, None)
        if first is None:
            return
        separator = max(SEPARATORS, key=first.count)
        try:
            for row in csv.reader(_after(first, lines), delimiter=separator, skipinitialspace=True, strict=True):
                yield [cell.strip() for cell in row]
        except csv.Error as error:
            raise self.wrong("a line must be one that a spreadsheet could have written", str(error)) from error

    def _told(self, lines: Sequence[str]) -> Iterator[str]:
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                self.line = number
                yield line

    def wrong(self, rule: str, value: object, mend: str = "") -> ArgumentError:
        """The error for a value in the present line."""
        return ArgumentError(rule, got=f"{value!r} in line {self.line} of {self.path}", mend=mend)


def _after(first: str, others: Iterator[str]) -> Iterator[str]:
    yield first
    yield from others


@dataclass(frozen=True)
class _Columns:
    """Where each thing stands; None for a column that the table has not.

    Attributes:
        names: As they are written.
        batch: The batch size.
        needs: What the target took, and whether in updates.
        to_target: Whether that column says so, and is not simply what the run was trained on.
        spent: What a run was given, and whether in updates.
        rate: The learning rate.
        censored: Whether the run missed.
        outcome: How it ended.
    """

    names: tuple[str, ...]
    batch: int
    needs: tuple[int, bool]
    to_target: bool
    spent: tuple[int, bool] | None
    rate: int | None
    censored: int | None
    outcome: int | None

    @classmethod
    def find(cls, header: Sequence[str], source: _Source) -> _Columns:
        plain = [re.sub(r"[\W_]", "", name).lower() for name in header]
        known = {*BATCH, *EXAMPLES_TO_TARGET, *UPDATES_TO_TARGET, *EXAMPLES, *UPDATES, *RATE, *CENSORED, *OUTCOME}
        for name in {*plain} & {*known, *SPENT, *EXAMPLES_SPENT}:
            if plain.count(name) > 1:
                raise source.wrong("column names must differ", ", ".join(header))

        def place(names: Sequence[str]) -> int | None:
            return next((plain.index(name) for name in names if name in plain), None)

        def first(*wanted: tuple[Sequence[str], bool]) -> tuple[int, bool] | None:
            found = [(at, updates) for names, updates in wanted if (at := place(names)) is not None]
            return found[0] if found else None

        batch = place(BATCH)
        if batch is None:
            raise source.wrong(
                "a table needs a column batch_size (or batch, or B)",
                ", ".join(header),
                "name the columns in the first line, apart by commas, semicolons or tabs",
            )
        to_target = first((EXAMPLES_TO_TARGET, False), (UPDATES_TO_TARGET, True))
        totals = (EXAMPLES, False), (UPDATES, True)
        needs = to_target or first(*totals)
        if needs is None:
            raise source.wrong(
                "a table needs a column examples_to_target, examples, updates, steps or iterations",
                ", ".join(header),
                "epochs count as examples when they are multiplied by the number of training examples",
            )
        return cls(
            names=tuple(header),
            batch=batch,
            needs=needs,
            to_target=to_target is not None,
            spent=first((SPENT, needs[1]), (EXAMPLES_SPENT, False), *(totals if to_target else ())),
            rate=place(RATE),
            censored=place(CENSORED),
            outcome=place(OUTCOME),
        )

    def run(self, row: Sequence[str], source: _Source) -> _Run:
        """The run of a line.

        Args:
            row: Its cells.
            source: For messages.

        Returns:
            The run.

        Raises:
            ArgumentError: A value makes no sense.
        """
        if len(row) > len(self.names):
            raise source.wrong(
                f"a line must have a cell for each of {len(self.names)} columns",
                ", ".join(row),
                "write numbers without marks for thousands, with a point before decimals",
            )

        def cell(at: int | None) -> str:
            return "" if at is None or at >= len(row) else row[at]

        def number(at: tuple[int, bool]) -> tuple[float | None, bool]:
            """What stands there in examples, None for nothing, and whether it is only a bound."""
            text = cell(at[0])
            bound = re.match(r"(>=?|≥)\s*", text)
            text = text[bound.end() :] if bound else text
            if text.lower() in UNKNOWN_WORDS and not bound:
                return None, True
            value = _number(text, self.names[at[0]], source)
            return value * (batch_size if at[1] else 1), bool(bound)

        batch_size = _whole(cell(self.batch), source)
        rate = None if self.rate is None else _number(cell(self.rate), self.names[self.rate], source)
        examples, missed = number(self.needs)
        # A run that was stopped before it began has spent nothing, which says nothing.
        spent = None if self.spent is None or cell(self.spent[0]) in ("0", "0.0") else number(self.spent)[0]
        outcome = cell(self.outcome).lower().replace("_", " ")
        if outcome and outcome not in (*REACHED_WORDS, *MISSED_WORDS):
            raise source.wrong(f"an outcome is one of {', '.join((*REACHED_WORDS, *MISSED_WORDS))}", outcome)
        if missed and outcome in REACHED_WORDS:
            raise source.wrong("a run that reached the target must say what it took", ", ".join(row))
        if outcome in MISSED_WORDS and not missed and self.to_target:
            raise source.wrong("a run that did not reach the target has no examples to it", ", ".join(row))
        missed = missed or outcome in MISSED_WORDS or _flag(cell(self.censored), source)
        if not missed and examples is not None:
            return _Run(batch_size, rate, examples, spent)
        # The number beside a missed run is what it was given: the larger one, where there are two.
        bounds = [bound for bound in (examples, spent) if bound is not None]
        return _Run(batch_size, rate, math.inf, max(bounds, default=None))


def _whole(text: str, source: _Source) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 1 and value == round(value) and value < 2**63):
        raise source.wrong("a batch size must be a whole number of at least 1", text)
    return int(value)


def _number(text: str, name: str, source: _Source) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        mend = "write numbers as in 31200 or 0.02" if "," in text else ""
        raise source.wrong(f"{name or 'a number'} must be a number above 0", text, mend)
    return value


def _flag(text: str, source: _Source) -> bool:
    if text.lower() not in (*TRUE_WORDS, *FALSE_WORDS):
        raise source.wrong("censored must be true or false", text)
    return text.lower() in TRUE_WORDS


def _best_rate(runs: list[_Run]) -> list[_Run]:
    """The runs of the best rate; of rates that no run reached the target with, those that were given most."""
    reached = [run.examples for run in runs if math.isfinite(run.examples)]
    slowest = max(reached, default=0.0)
    by_rate: dict[float | None, list[_Run]] = {}
    for run in runs:
        by_rate.setdefault(run.learning_rate, []).append(run)

    def cost(of_rate: list[_Run]) -> float:
        taken = [min(run.examples, max(run.spent or 0.0, slowest)) for run in of_rate]
        return sum(math.log(max(examples, 1.0)) for examples in taken) / len(taken)

    sound = [kept for kept in by_rate.values() if any(math.isfinite(run.examples) for run in kept)]
    rank: Callable[..., list[_Run]] = min if sound else max
    return rank(sound or by_rate.values(), key=cost)

"""Frozen records and their JSON: what every part of batchscope passes to the next, and what it leaves on disk.

A record is a frozen dataclass of plain values. Its JSON form is one object: ``record`` names the kind, ``schema``
the version of its layout, and every other key is a field of the same name. JSON has no infinities, so
``"Infinity"``, ``"-Infinity"`` and ``"NaN"`` stand for them as strings.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import reprlib
import secrets
import stat
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from batchscope.errors import ArgumentError, RecordError, StorageError

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")

_NON_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_KINDS: dict[str, type[Record]] = {}


class Record:
    """A result that can be saved, loaded, shown as a table and turned into a page.

    Subclasses are frozen dataclasses with a ``kind`` and a ``schema_version``. A field with
    ``metadata={"json": False}`` stays in memory only (weights, for example).
    """

    kind: ClassVar[str]
    schema_version: ClassVar[int] = 1

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Make the kind known to :func:`load`."""
        super().__init_subclass__(**keywords)
        _KINDS[cls.kind] = cls

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the record as JSON, all of it or nothing.

        Args:
            path: The file to write; its folder is made when missing.

        Returns:
            The path.

        Raises:
            StorageError: The disk is full, or the place cannot be written.
        """
        header = {"record": self.kind, "schema": self.schema_version}
        text = json.dumps(header | encode(self), indent=1, allow_nan=False)
        return write_atomically(path, (text + "\n").encode())

    def table(self) -> RenderableType:
        """The record as rich tables and text, for a terminal."""
        from batchscope.report import terminal  # report imports records: the one arrow that turns back

        return terminal.render(self)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write the record as one self-contained HTML page, all of it or nothing.

        Args:
            path: The file to write; its folder is made when missing.

        Returns:
            The path.

        Raises:
            StorageError: The disk is full, or the place cannot be written.
        """
        from batchscope.report import page

        return write_atomically(path, page.render(self).encode())

    def frame(self, name: str, *, library: Literal["pandas", "polars"] | None = None) -> Any:
        """The rows that a field holds, as a data frame of pandas or polars.

        A column is a field of a row and has its name, as in what ``batchscope export`` writes. An interval ``x``
        becomes ``x``, ``x_low`` and ``x_high``; the fields of another record in a row have its name and an underscore
        before theirs. Rows inside of rows have a frame of their own, as ``trials.curve``, whose column ``row`` says
        which row of ``trials`` each belongs to.

        Args:
            name: The field, as ``trials``, ``frontier``, ``rows`` or ``curve``; with dots where it lies deeper, as
                ``law.points``.
            library: Which to make it with; None: pandas, or polars where there is no pandas.

        Returns:
            A ``DataFrame`` whose columns have their types even where there are no rows.

        Raises:
            ArgumentError: There are no such rows; it says which there are.
            MissingPackageError: The library is not here.

        Examples:
            >>> import batchscope as bs
            >>> law = bs.fit_tradeoff([16, 64, 256, 1024], [10_000, 10_900, 14_500, 29_000])
            >>> law.frame("points").columns[0]
            'batch_size'
        """
        from batchscope.records.frames import frame

        return frame(self, name, library)

    def _repr_html_(self) -> str:
        """What a notebook shows of it: tables and charts, without scripts."""
        from batchscope.report import notebook

        return notebook.render(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """What IPython shows in a terminal, and a notebook keeps beside the HTML: the table, which is short."""
        from batchscope.report import notebook

        return {"text/plain": notebook.plain(self)}


def load(path: str | os.PathLike[str]) -> Record:
    """Read a record that ``to_json`` wrote.

    Args:
        path: A JSON file.

    Returns:
        The record, of the type that its ``record`` key names.

    Raises:
        RecordError: No such file, not a record, a kind or a schema version that this release does not know.

    Examples:
        >>> import tempfile, pathlib
        >>> from batchscope.records import Plan
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "plan.json"
        >>> _ = Plan(batch_size=64, learning_rate=0.1, iterations=100).to_json(path)
        >>> load(path).batch_size
        64
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(
            "a record must be a file that can be read",
            got=f"{path} ({error.strerror})",
            mend="check the path",
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(
            "a record must be JSON", got=f"{path} ({error})", mend="give a file that --json or to_json wrote"
        ) from error
    kind = data.get("record") if isinstance(data, dict) else None
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise RecordError(
            f"a record must name its kind, one of {', '.join(sorted(_KINDS))}",
            got=f"{path} with record={reprlib.repr(kind)}",
            mend="give a file that --json or to_json wrote",
        )
    schema = data.get("schema")
    if type(schema) is not int or schema != cls.schema_version:
        raise RecordError(
            f"this release reads {kind} records of schema {cls.schema_version}",
            got=f"{path} with schema={reprlib.repr(schema)}",
            mend="read it with the release that wrote it, or measure again",
        )
    return decode(cls, {key: value for key, value in data.items() if key not in ("record", "schema")}, str(path))


def encode(value: Any) -> Any:
    """Turn a dataclass and everything in it into what ``json`` can write.

    Examples:
        >>> encode((1, math.inf, None))
        [1, 'Infinity', None]
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: encode(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("json", True)
        }
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    return value


def decode(cls: type[T], data: Any, where: str) -> T:
    """Build a dataclass from what :func:`encode` made of one, checking every type on the way.

    Args:
        cls: The dataclass to build.
        data: Parsed JSON.
        where: The place in the file, for error messages.

    Returns:
        An instance of ``cls``.

    Raises:
        RecordError: A field is missing, unknown, of another type or without sense.

    Examples:
        >>> from batchscope.records import Interval
        >>> decode(Interval, {"value": 1.0, "low": 0.5, "high": "Infinity"}, "here").high
        inf
    """
    if not isinstance(data, dict):
        raise _malformed(where, "an object", data)
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.metadata.get("json", True)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(known)):
        raise _malformed(where, f"only the fields of {cls.__name__}", unknown)
    missing = dataclasses.MISSING
    required = {n for n, f in known.items() if f.default is missing and f.default_factory is missing}
    if absent := sorted(required - set(data)):
        raise _malformed(where, f"the fields {', '.join(absent)} of {cls.__name__}", sorted(data))
    values = {name: _decode_value(hints[name], value, f"{where}: {name}") for name, value in data.items()}
    try:
        return cls(**values)
    except ArgumentError as error:  # types that are right, and values that are not
        raise RecordError(f"{where} must hold a {cls.__name__} that makes sense", got=str(error)) from error


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        options = [option for option in arguments if option is not types.NoneType]
        for option in options[:-1]:
            try:
                return _decode_value(option, value, where)
            except RecordError:
                continue
        return _decode_value(options[-1], value, where)
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise _malformed(where, "a list", value)
        if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
            return origin(_decode_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(arguments) != len(value):
            raise _malformed(where, f"a list of {len(arguments)}", value)
        return tuple(_decode_value(a, item, where) for a, item in zip(arguments, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise _malformed(where, "an object", value)
        return {key: _decode_value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is typing.Literal:
        if value not in arguments:
            raise _malformed(where, f"one of {', '.join(map(repr, arguments))}", value)
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, value, where)
    if hint is float:
        if isinstance(value, str) and value in _NON_FINITE:
            return _NON_FINITE[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError as error:
                raise _malformed(where, "a number below 1.8e308", value) from error
    elif (hint is int and isinstance(value, int) and not isinstance(value, bool)) or (
        hint in (str, bool) and isinstance(value, hint)
    ):
        return value
    raise _malformed(where, f"a value of type {getattr(hint, '__name__', hint)}", value)


def _malformed(where: str, expected: str, got: object) -> RecordError:
    return RecordError(
        f"{where} must hold {expected}",
        got=reprlib.repr(got),  # which is short, however long or deep the value
        mend="give a file that --json or to_json wrote, unedited",
    )


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file so that a reader, or a crash, finds the old content or the new and nothing between.

    A link stays a link, to the file that is written. What is no file, as a pipe or ``/dev/stdout``, is written as it
    is. A file that is replaced keeps its permissions.

    Args:
        path: The file to write; its folder is made when missing.
        content: Its bytes.

    Returns:
        The path.

    Raises:
        StorageError: The disk is full, or the place cannot be written; nothing is left behind.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return path
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, since a rename is atomic within one file system only.
        temporary = str(target.parent / f".batchscope-{secrets.token_hex(8)}")
        # The system takes the user's mask from a new file's permissions.
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, target)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        raise StorageError(
            "the result must be written to a place with room that this user may write",
            got=f"{path} ({getattr(error, 'strerror', None) or error})",
            mend="free some room, or name another path",
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return path

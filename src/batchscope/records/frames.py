"""The rows of a record as a data frame of pandas or polars."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from functools import reduce
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from batchscope.errors import ArgumentError, MissingPackageError, require
from batchscope.records.interval import Interval

Library = Literal["pandas", "polars"]
Kind = Literal["int", "float", "bool", "str", "other"]
PARENT = "row"
"""Column of rows inside of rows: the place of the row that they belong to, in its own frame."""


class Column(NamedTuple):
    """What stands in a column: the kind of its values, and the attributes that lead to them from a row."""

    kind: Kind
    path: tuple[str, ...]


def frame(record: Any, name: str, library: Library | None = None) -> Any:
    """The rows of a record as a data frame; :meth:`batchscope.Record.frame` says how.

    Args:
        record: A dataclass of plain values, intervals and rows.
        name: One of :func:`names`.
        library: Which to make it with; None: pandas, or polars where there is no pandas.

    Returns:
        A ``DataFrame``.

    Raises:
        ArgumentError: There are no such rows.
    """
    known = list(names(type(record)))
    if name not in known:
        have = f"the frames of a {type(record).__name__} are {', '.join(known)}" if known else "a frame needs rows"
        raise ArgumentError(have, got=name, mend="name one of these" if known else "take a record that holds some")
    kind, rows, places = _rows(record, name)
    columns = dict(columns_of(kind))
    values = {column: [_value(row, how.path) for row in rows] for column, how in columns.items()}
    kinds: dict[str, Kind] = {column: how.kind for column, how in columns.items()}
    if places is not None:
        values, kinds = {PARENT: places, **values}, {PARENT: "int", **kinds}
    chosen = library or _library_here()
    module = require(chosen, "make a data frame", f"batchscope[{chosen}]")
    return _of_polars(module, values, kinds) if chosen == "polars" else _of_pandas(module, values, kinds)


def names(kind: type) -> Iterator[str]:
    """The frames that a type of record has, by name.

    Args:
        kind: A dataclass.

    Yields:
        Names of fields that hold rows, with dots where they lie deeper.

    Examples:
        >>> from batchscope.records import Sweep
        >>> list(names(Sweep))[:4]
        ['trials', 'trials.curve', 'best', 'law.points']
    """
    for name, hint in _hints(kind).items():
        row, inside = _row_type(hint), _record_type(hint)
        if row is not None:
            yield name
        if (deeper := row or inside) is not None:
            yield from (f"{name}.{inner}" for inner in names(deeper))


def _library_here() -> Library:
    if find_spec("pandas") is not None:
        return "pandas"
    if find_spec("polars") is not None:
        return "polars"
    raise MissingPackageError(
        "a data frame needs pandas or polars", got="neither here", mend="run: pip install 'batchscope[pandas]'"
    )


def _rows(record: Any, name: str) -> tuple[type, list[Any], list[int] | None]:
    """The type of the rows, the rows, and for rows inside of rows the places of those that they belong to."""
    kind, owners, depth = type(record), [record], 0
    places: list[int] = []
    for part in name.split("."):
        hint = _hints(kind)[part]
        held = [None if owner is None else getattr(owner, part) for owner in owners]
        row = _row_type(hint)
        if row is None:
            kind, owners = _record_type(hint) or kind, held
        else:
            places = [place for place, rows in enumerate(held) for _ in rows or ()]
            kind, owners, depth = row, [own for rows in held for own in rows or ()], depth + 1
    return kind, owners, places if depth > 1 else None


def columns_of(kind: type, prefix: str = "", path: tuple[str, ...] = ()) -> Iterator[tuple[str, Column]]:
    """The columns of rows of a type, each with its name.

    Args:
        kind: A dataclass.
        prefix: What their names begin with.
        path: The attributes that lead to it.

    Yields:
        Names, and what stands there.

    Examples:
        >>> from batchscope.records import SweepBest
        >>> [name for name, _ in columns_of(SweepBest) if name.startswith("score")]
        ['score', 'score_low', 'score_high']
    """
    for name, hint in _hints(kind).items():
        inside, here = _record_type(hint), (*path, name)
        if _row_type(hint) is not None:
            continue
        if inside is Interval:
            for end, field in (("", "value"), ("_low", "low"), ("_high", "high")):
                yield f"{prefix}{name}{end}", Column("float", (*here, field))
        elif inside is not None:
            yield from columns_of(inside, f"{prefix}{name}_", here)
        else:
            yield prefix + name, Column(_plain_kind(hint), here)


def _value(row: Any, path: tuple[str, ...]) -> Any:
    return reduce(lambda owner, name: None if owner is None else getattr(owner, name), path, row)


def _hints(kind: type) -> dict[str, Any]:
    """The fields that are kept in JSON, with their types."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.metadata.get("json", True)}


def _options(hint: Any) -> list[Any]:
    """What a value can be, None left out."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return [option for option in (typing.get_args(hint) if union else (hint,)) if option is not types.NoneType]


def _record_type(hint: Any) -> type | None:
    """The dataclass that a field holds one of, or none."""
    [option, *others] = _options(hint)
    return option if not others and isinstance(option, type) and dataclasses.is_dataclass(option) else None


def _row_type(hint: Any) -> type | None:
    """The dataclass that a field holds any number of."""
    [option, *others] = _options(hint)
    arguments = typing.get_args(option)
    if others or typing.get_origin(option) is not tuple or len(arguments) != 2 or arguments[1] is not Ellipsis:
        return None
    row = arguments[0]
    return row if isinstance(row, type) and dataclasses.is_dataclass(row) and row is not Interval else None


def _plain_kind(hint: Any) -> Kind:
    options = set(map(str, _options(hint)))
    kinds: dict[str, Kind] = {str(int): "int", str(float): "float", str(bool): "bool", str(str): "str"}
    if options == {str(int), str(float)}:
        return "float"
    if len(options) == 1 and typing.get_origin(_options(hint)[0]) is Literal:
        return "str"
    return kinds.get(options.pop(), "other") if len(options) == 1 else "other"


def _of_pandas(module: Any, values: dict[str, list[Any]], kinds: dict[str, Kind]) -> Any:
    series = {}
    for column, own in values.items():
        missing = None in own
        # Whole numbers and truth values stay what they are beside a missing one.
        dtype = {"int": "Int64" if missing else "int64", "float": "float64", "bool": "boolean" if missing else "bool"}
        series[column] = module.Series(own, dtype=dtype.get(kinds[column], "object"))
    return module.DataFrame(series)


def _of_polars(module: Any, values: dict[str, list[Any]], kinds: dict[str, Kind]) -> Any:
    types_ = {"int": module.Int64, "float": module.Float64, "bool": module.Boolean, "str": module.String}
    columns = []
    for column, own in values.items():
        plain = [list(value) if isinstance(value, tuple) else value for value in own]
        columns.append(module.Series(column, plain, dtype=types_.get(kinds[column])))
    return module.DataFrame(columns)

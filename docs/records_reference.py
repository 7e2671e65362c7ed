"""Writes docs/records.md from the record types themselves, so that the two cannot drift apart (a test compares them).

python docs/records_reference.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path

from batchscope import records
from batchscope.records.base import Record

HEADER = """# The records and their JSON

<!-- Made by docs/records_reference.py; edit the docstrings in src/batchscope/records/ instead. -->

Every result is a frozen dataclass. `record.to_json(path)` writes it, `batchscope.load(path)` reads it back,
`record.table()` shows it in a terminal, `record.report(path)` writes it as one HTML page.

The JSON file is one object. `"record"` names the kind and `"schema"` the version of its layout; every other key is a
field of the same name. A release reads the schema versions that it knows and refuses others. JSON has no infinities:
the strings `"Infinity"`, `"-Infinity"` and `"NaN"` stand for them where a number is due. Times are in seconds, memory
in bytes, and the names say so.
"""


def main() -> None:
    """Write the file."""
    Path(__file__).with_name("records.md").write_text(reference(), encoding="utf-8")


def reference() -> str:
    """The whole text."""
    types = [getattr(records, name) for name in records.__all__]
    classes = [t for t in types if isinstance(t, type) and dataclasses.is_dataclass(t)]
    classes.sort(key=lambda cls: (not issubclass(cls, Record), cls.__name__))
    return HEADER + "".join(_section(cls) for cls in classes)


def _section(cls: type) -> str:
    docstring = inspect.getdoc(cls) or ""
    summary = _markdown(docstring.split("\n\nAttributes:")[0])
    said = _attributes(docstring)
    lines = [f"\n## {cls.__name__}\n\n{summary}\n"]
    if issubclass(cls, Record):
        lines.append(f'\n`"record": "{cls.kind}"`, `"schema": {cls.schema_version}`\n')
    lines.append("\n| field | type | meaning |\n|---|---|---|\n")
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.metadata.get("json", True):
            continue
        meaning = said[field.name].replace("|", "\\|")
        lines.append(f"| `{field.name}` | {_type(hints[field.name])} | {meaning} |\n")
    return "".join(lines)


def _attributes(docstring: str) -> dict[str, str]:
    block = docstring.partition("Attributes:\n")[2].split("\n\n")[0]
    entries = re.split(r"\n(?=    \w+: )", "\n" + block)
    pairs = (entry.strip().partition(": ") for entry in entries if entry.strip())
    return {name: _markdown(text) for name, _, text in pairs}


def _markdown(text: str) -> str:
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", " ".join(text.split()).replace("``", "`"))


def _type(hint: object) -> str:
    if hint is type(None):
        return "null"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f'`"{value}"`' for value in arguments)
    if origin is tuple or origin is list:
        return f"list of {_type(arguments[0])}"
    if arguments:
        return " or ".join(_type(argument) for argument in arguments)
    name = getattr(hint, "__name__", str(hint))
    plain = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    return plain.get(name, f"[{name}](#{name.lower()})")


if __name__ == "__main__":
    main()

"""Writes docs/python.md: the public names, in the groups of batchscope/__init__.py (a test compares them).

python docs/python_reference.py
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import batchscope
from batchscope.records.base import Record

HEADER = """# Python

<!-- Made by docs/python_reference.py from the docstrings and from the groups in src/batchscope/__init__.py. -->

Everything that `import batchscope as bs` gives, by what it is for. A line for each: [overview](reference.md). How the
numbers come about: [methods](methods.md).
"""

# What is imported from where it is, since it asks for other packages or for few people.
ELSEWHERE = {
    "In other people's loops": (
        "integrations.lightning.BatchscopeCallback",
        "integrations.lightning.workload_from_lightning",
        "integrations.transformers.BatchscopeTrainerCallback",
        "integrations.transformers.workload_from_trainer",
        "integrations.accelerate.gradient_noise_of",
        "integrations.accelerate.workload_from_accelerate",
        "integrations.skorch.BatchscopeNetCallback",
        "integrations.skorch.workload_from_net",
    ),
    "Packed sequences": (
        "workload.packing.PackedSequences",
        "workload.packing.attention_within",
        "workload.packing.tokens_filled",
    ),
}


def main() -> None:
    """Write the file."""
    Path(__file__).with_name("python.md").write_text(reference(), encoding="utf-8")


def reference() -> str:
    """The whole text."""
    public = "".join(f"\n## {title}\n" + "".join(map(_entry, names)) for title, names in groups().items())
    apart = "".join(f"\n## {title}\n" + "".join(map(_apart, paths)) for title, paths in ELSEWHERE.items())
    return HEADER + public + apart


def groups() -> dict[str, list[str]]:
    """The public names under the comments that stand above them where the package says where each comes from."""
    source = Path(batchscope.__file__).read_text(encoding="utf-8")
    table = source.partition("_HOMES = {\n")[2].partition("\n}")[0]
    found: dict[str, list[str]] = {}
    title = ""
    for line in table.splitlines():
        if comment := re.fullmatch(r"\s*# (.+)", line):
            title = comment[1]
        elif name := re.match(r'\s*"(\w+)":', line):
            found.setdefault(title, []).append(name[1])
    return found


def _apart(path: str) -> str:
    name = path.rpartition(".")[2]
    options = ("    options:", f"      heading: {path}", f"      toc_label: {name}")
    return "\n".join((f"\n::: batchscope.{path}", *options)) + "\n"


def _entry(name: str) -> str:
    thing = getattr(batchscope, name)
    lines = [
        f"\n::: {thing.__module__}.{thing.__qualname__}",
        "    options:",
        f"      heading: {name}",
        f"      toc_label: {name}",
    ]
    if is_documented_as_record(thing):
        lines += ["      show_docstring_attributes: false", "", f"Its fields: [{name}](records.md#{name.lower()})."]
    return "\n".join(lines) + "\n"


def is_documented_as_record(thing: object) -> bool:
    """Whether docs/records.md says what its fields mean."""
    if not isinstance(thing, type) or not dataclasses.is_dataclass(thing) or thing is Record:
        return False
    return thing.__module__.startswith("batchscope.records")


if __name__ == "__main__":
    main()

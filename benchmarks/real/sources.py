"""The Python standard library's own sources, as text, as words, and by package."""

from __future__ import annotations

import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

# Tests, packages that are not the library, and modules that are tables rather than programs.
SKIPPED = frozenset(
    ["test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"]
)
_WORD = re.compile(r"[A-Za-z_]+|[0-9]+|\n|[^\sA-Za-z_0-9]")


def texts() -> list[tuple[str, str]]:
    """Path below the library's folder and text of each source file, in the order of the paths."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED)
        for name in names:
            path = Path(place, name)
            if path.suffix == ".py" and not name.startswith("_sysconfigdata"):
                found.append((path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8", errors="replace")))
    return sorted(found)


def words(text: str) -> list[str]:
    r"""Names, numbers, line ends and single signs.

    Examples:
        >>> words("x_1 = f(2)\n")
        ['x_', '1', '=', 'f', '(', '2', ')', '\n']
    """
    return _WORD.findall(text)


def vocabulary(tokens: Iterable[str], size: int, first: int = 1) -> dict[str, int]:
    """Numbers of the most frequent words, from `first` on; the word itself settles ties.

    Examples:
        >>> vocabulary(["b", "a", "b"], size=2)
        {'b': 1, 'a': 2}
    """
    counts = Counter(tokens)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    return {word: number for number, word in enumerate(ranked, first)}

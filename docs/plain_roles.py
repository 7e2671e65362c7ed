"""Shows Sphinx roles in docstrings, as in :func:`load`, as plain code on the pages that mkdocstrings makes.

A line of "::", which announces a block of code to Sphinx, is left out: indented as it is, the block is code here too.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":\w+:`~?([^`]+)`")
ANNOUNCED = re.compile(r"^ *::\n", re.M)


class PlainRoles(Extension):
    """Every docstring is rewritten as it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring, if there is one."""
        if obj.docstring is not None:
            obj.docstring.value = ANNOUNCED.sub("", ROLE.sub(r"`\1`", obj.docstring.value))

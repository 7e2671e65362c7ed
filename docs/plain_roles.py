"""Shows Sphinx roles in docstrings, as in :func:`load`, as plain code on the pages that mkdocstrings makes."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":\w+:`~?([^`]+)`")


class PlainRoles(Extension):
    """Every docstring is rewritten as it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring, if there is one."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)

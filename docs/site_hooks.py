"""What the site's build checks on its own: no page may fetch anything from another server."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

# mkdocs counts warnings of its own loggers, and --strict fails on them.
log = logging.getLogger("mkdocs.hooks.remote")
FETCHED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\s\"'>]+", re.IGNORECASE)


def on_post_build(config: Any, **_: Any) -> None:
    """Warn of every script, style, picture or frame that is not in the site itself."""
    for page in sorted(Path(config["site_dir"]).rglob("*.html")):
        for found in FETCHED.findall(page.read_text(encoding="utf-8")):
            if 'rel="canonical"' not in found:
                log.warning("%s fetches from another server: %s", page.name, found)

"""What a terminal, a page and a chart say, taken apart for the tests."""

from __future__ import annotations

import base64
import gzip
import io
from html.parser import HTMLParser
from typing import Any

from rich.console import Console

from batchscope.records import Record
from batchscope.report import images

REFERRING = {"src", "href", "srcset", "action", "formaction", "data", "poster", "background", "ping", "manifest"}


def printed(record: Record, width: int = 110) -> str:
    """What a terminal of this width shows."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(record.table())
    return stream.getvalue()


def said(record: Record, width: int = 500) -> str:
    """Likewise, in one line."""
    return " ".join(printed(record, width).split())


class Page(HTMLParser):
    """A page as a browser reads it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.inputs: list[dict[str, str | None]] = []
        self.scripts: dict[str, str] = {}
        self.text: list[str] = []
        self._packed = False
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attributes if name in REFERRING]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        if tag == "input":
            self.inputs.append(dict(attributes))
        if tag in ("script", "style"):
            self._inside = dict(attributes).get("id") or f"{tag} {len(self.scripts)}"
            self.scripts[self._inside] = ""
            self._packed = self._packed or "data-packed" in dict(attributes)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text.append(data)
        else:
            self.scripts[self._inside] += data

    @property
    def words(self) -> str:
        """What a reader sees, in one line."""
        return " ".join(" ".join(self.text).split())

    @property
    def record(self) -> str:
        """The record's JSON, unpacked where it is packed."""
        text = self.scripts["record"]
        return gzip.decompress(base64.b64decode(text)).decode() if self._packed else text


def drawn(record: Record, name: str) -> dict[str, Any]:
    """A chart that the record must have."""
    return images.every(record)[name]


def layers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers of a chart, and of those in it."""
    return [inner for layer in spec["layer"] for inner in (layers(layer) if "layer" in layer else [layer])]


def points(spec: dict[str, Any], *fields: str) -> list[dict[str, Any]]:
    """Every point of a chart that has these fields."""
    return [point for data in spec["datasets"].values() for point in data if set(fields) <= set(point)]


def domain(spec: dict[str, Any], channel: str) -> list[float]:
    """Both ends of a chart's axis."""
    scales = [layer["encoding"][channel].get("scale", {}) for layer in layers(spec) if channel in layer["encoding"]]
    found: list[float] = next(scale["domain"] for scale in scales if "domain" in scale)
    return found

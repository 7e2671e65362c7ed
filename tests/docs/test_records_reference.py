"""docs/records.md is what the record types say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("records_reference", DOCS / "records_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (DOCS / "records.md").read_text(encoding="utf-8")
    assert written == module.reference(), "run: python docs/records_reference.py"

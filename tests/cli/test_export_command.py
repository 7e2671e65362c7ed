"""``batchscope export``: the store of a sweep as tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from batchscope.study.store import Store
from batchscope.study.tasks import Trial, failed

from .conftest import Command


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "sweep.db", {}) as store:
        store.put(failed(Trial(8, 0.1, 0), "crashed", "killed by SIGSEGV"))
    return tmp_path / "sweep.db"


def test_export_writes_what_was_asked_for(command: Command, store: Path, tmp_path: Path) -> None:
    trials, curves = tmp_path / "trials.csv", tmp_path / "curves.csv"
    said = command("export", store, "--csv", trials, "--curves", curves)
    assert (said.status, said.out, said.err) == (0, f"Wrote {trials}\nWrote {curves}\n", "")
    assert "killed by SIGSEGV" in trials.read_text()
    assert command("export", store, "--csv", trials, "--quiet").out == ""


def test_export_refuses(command: Command, store: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    before = store.read_bytes()
    refused(command("export", store), "a file to write")
    refused(command("export", store, "--csv", store), "a file of its own")
    refused(command("export", store, "--csv", tmp_path), "it is a folder")
    refused(command("export", tmp_path / "missing.db", "--csv", tmp_path / "a.csv"), "missing.db", status=1)
    assert store.read_bytes() == before

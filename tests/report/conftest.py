"""Hands the sample records to the tests: with --import-mode=importlib a test cannot import its neighbour."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from batchscope.records import Record
from batchscope.report import page


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sample_records", Path(__file__).with_name("sample_records.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def records(samples: ModuleType) -> dict[str, Record]:
    """A plain comparison, plain runs, and everything awkward, by name."""
    outcomes = ("finished", "diverged", "out of memory", "interrupted")
    runs: dict[str, Record] = {f"run {outcome}": samples.train_result(outcome=outcome) for outcome in outcomes}
    return {"plain": samples.comparison(), **runs, **samples.awkward()}


@pytest.fixture(scope="session")
def pages(records: dict[str, Record]) -> dict[str, str]:
    return {name: page.render(record) for name, record in records.items()}

"""Hands the sample records to the tests: with --import-mode=importlib a test cannot import its neighbour."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from batchscope.records import Record
from batchscope.report import page


def neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    return neighbour("sample_records")


@pytest.fixture(scope="session")
def sweeps() -> dict[str, Record]:
    """Sweeps and trade-off laws, plain and awkward, by name."""
    found: dict[str, Record] = neighbour("sample_sweeps").every(neighbour("sample_probes"))
    return found


@pytest.fixture(scope="session")
def sweep_pages(sweeps: dict[str, Record]) -> dict[str, str]:
    """Pages of those whose sections differ."""
    sorts = ("", " scores", " diverged", " empty", " hostile", " large")
    names = [*(f"sweep{sort}" for sort in sorts), "law", "law missed", "law nothing"]
    return {name: page.render(sweeps[name]) for name in names}


@pytest.fixture(scope="session")
def advices(samples: ModuleType) -> dict[str, Record]:
    """Advice, plain and awkward, by name."""
    found: dict[str, Record] = neighbour("sample_advice").every(samples, neighbour("sample_probes").HOSTILE)
    return found


@pytest.fixture(scope="session")
def advice_maker() -> ModuleType:
    """Where the closed forms are that the advice was made of."""
    return neighbour("sample_advice")


@pytest.fixture(scope="session")
def advice_pages(advices: dict[str, Record]) -> dict[str, str]:
    """Pages of those whose sections differ."""
    sorts = ("", " examples", " far", " none", " interrupted", " hostile")
    return {name: page.render(advices[name]) for name in (f"advice{sort}" for sort in sorts)}


@pytest.fixture(scope="session")
def probes() -> dict[str, Record]:
    """Probes and their parts, plain and awkward, by name."""
    found: dict[str, Record] = neighbour("sample_probes").every()
    return found


@pytest.fixture(scope="session")
def records(samples: ModuleType, probes: dict[str, Record]) -> dict[str, Record]:
    """A plain comparison, plain runs, probes, and everything awkward, by name."""
    outcomes = ("finished", "diverged", "out of memory", "interrupted")
    runs: dict[str, Record] = {f"run {outcome}": samples.train_result(outcome=outcome) for outcome in outcomes}
    return {"plain": samples.comparison(), **runs, **samples.awkward(), **probes}


@pytest.fixture(scope="session")
def pages(records: dict[str, Record]) -> dict[str, str]:
    return {name: page.render(record) for name, record in records.items()}

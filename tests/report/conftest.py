"""The sample records by name, and their pages."""

from __future__ import annotations

from types import ModuleType

import pytest
from tests.report import sample_advice, sample_records, samples

from batchscope.records import Record
from batchscope.report import page


class Pages(dict[str, str]):
    """Pages of records, each written when it is asked for."""

    def __init__(self, records: dict[str, Record]) -> None:
        super().__init__()
        self.records = records

    def __missing__(self, name: str) -> str:
        self[name] = page.render(self.records[name])
        return self[name]


@pytest.fixture(scope="session")
def records() -> dict[str, Record]:
    return {name: record for group in samples.GROUPS for name, record in samples.group(group).items()}


@pytest.fixture(scope="session")
def pages(records: dict[str, Record]) -> dict[str, str]:
    return Pages(records)


@pytest.fixture(scope="session")
def makers() -> ModuleType:
    """Where comparisons and runs are made."""
    return sample_records


@pytest.fixture(scope="session")
def advice_maker() -> ModuleType:
    """Where the closed forms are that the advice was made of."""
    return sample_advice

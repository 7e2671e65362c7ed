"""The verb fit: a table in, the trade-off law out, as text, JSON and a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import batchscope as bs
from batchscope.study.table_file import read_table

Command = Callable[..., Any]

TABLE = "Batch size;Steps;seed\n8;1250;0\n8;1200;1\n32;400;0\n128;180;0\n512;130;0\n2048;>50;0\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(TABLE)
    return path


def test_the_law_of_a_table_is_shown_and_written(command: Command, table: Path, tmp_path: Path) -> None:
    record, page = tmp_path / "law.json", tmp_path / "law.html"
    said = command("fit", table, "--json", record, "--report", page)
    assert said.status == 0
    law = read_table(table).fit()
    assert bs.load(record) == law
    assert said.out.startswith(law.verdict.split(". ")[0])
    assert "> 102,000" in said.out
    assert "<title>Trade-off law" in page.read_text()
    assert said.out.rstrip().endswith(f"Wrote {page}")


def test_quiet_is_quiet_and_a_law_that_is_not_determined_is_a_result(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    path.write_text("batch,examples\n8,1000\n64,\n")
    said = command("fit", path, "--quiet")
    assert (said.status, said.out, said.err) == (0, "", "")
    assert "too few for a law" in command("fit", path).out


def test_what_is_wrong_is_refused_with_the_line(
    command: Command, refused: Callable[..., None], table: Path, tmp_path: Path
) -> None:
    refused(command("fit", tmp_path / "nowhere.csv"), "nowhere.csv", "No such file")
    refused(command("fit", table, "--json", table), "twice")
    table.write_text(TABLE.replace("128;180", "128;many"))
    refused(command("fit", table), "Steps must be a number above 0", "'many' in line 5", "runs.csv")

"""The pages that scripts make say what the code and the saved results say."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import batchscope
from batchscope import folklore
from batchscope.folklore import CLAIMS
from batchscope.folklore.claim import Claim

DOCS = Path(__file__).parents[2] / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("made_by", "page"),
    [
        ("records_reference", "records.md"),
        ("commands_reference", "commands.md"),
        ("python_reference", "python.md"),
    ],
)
def test_reference_is_up_to_date(made_by: str, page: str) -> None:
    written = (DOCS / page).read_text(encoding="utf-8")
    assert written == script(made_by).reference(), "run: make reference"


def test_python_reference_has_every_public_name_once() -> None:
    names = [name for group in script("python_reference").groups().values() for name in group]
    assert sorted(names) == sorted(batchscope.__all__)


def test_every_claim_has_a_page_and_a_chart_of_the_saved_result() -> None:
    made_by = script("claims_pages")
    record = made_by.saved()
    wanted = made_by.pages(record)
    assert set(wanted) == {"index", *CLAIMS}
    folder = DOCS / "claims"
    assert {path.stem for path in folder.glob("*.md")} == set(wanted)
    for name, text in wanted.items():
        assert (folder / f"{name}.md").read_text(encoding="utf-8") == text, "run: make reference"
    drawn = {claim.name for claim in record.claims if claim.picture is not None}
    assert {path.stem for path in folder.glob("*.svg")} == drawn
    for name in drawn:
        assert f"({name}.svg)" in wanted[name]
        assert (folder / f"{name}.svg").read_text(encoding="utf-8").startswith("<svg")


def test_every_claim_in_the_folklore_is_one_of_the_claims() -> None:
    modules = (
        importlib.import_module(one.name) for one in pkgutil.iter_modules(folklore.__path__, "batchscope.folklore.")
    )
    found = {value.name for module in modules for value in vars(module).values() if isinstance(value, Claim)}
    assert found == set(CLAIMS)

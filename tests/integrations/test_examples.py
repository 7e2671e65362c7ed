"""Every example runs, on real data, and says what it measured."""

from __future__ import annotations

import runpy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerators of one process share their settings, which the tests after these are not to see."""
    yield
    try:
        from accelerate.state import AcceleratorState, GradientState
    except ModuleNotFoundError:
        return
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_there_is_one_for_each_framework_and_one_without() -> None:
    assert {path.stem.partition("_")[0] for path in EXAMPLES} == {
        "own",
        "lightning",
        "transformers",
        "accelerate",
        "skorch",
    }
    assert all(len(path.read_text("utf-8").splitlines()) < 60 for path in EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr().out
    assert "gradient noise scale" in said
    if path.stem != "own_loop":
        assert "For the same" in said

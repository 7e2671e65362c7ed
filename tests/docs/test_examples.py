"""Every Python block and every command in the README and the docs runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{number}", match[2])
        for page in PAGES
        for number, match in enumerate(FENCE.finditer(page.read_text(encoding="utf-8")))
        if match[1] == language
    ]


def commands() -> list[tuple[str, list[str]]]:
    lines = [(name, line) for name, text in blocks("console") for line in text.splitlines() if line.startswith("$ ")]
    return [(f"{name}-{i}", shlex.split(line[2:])) for i, (name, line) in enumerate(lines)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("source", [pytest.param(text, id=name) for name, text in blocks("python")])
def test_python_block_runs(source: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", source],
        check=False,
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_commands_of_each_page_run_in_order(tmp_path: Path) -> None:
    found = commands()
    assert len(found) >= 5
    for name, words in found:
        if words[0] == "make":
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"{name}: no target {words[1]}"
            continue
        assert words[0] == "batchscope", name
        done = subprocess.run(
            [sys.executable, "-m", *words],
            check=False,
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"

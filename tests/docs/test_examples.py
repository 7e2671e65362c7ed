"""Every Python block and every command in the README and the docs runs, page by page.

A page's blocks run in its order and in one folder, so that a command finds the files of the ones before it. A block
whose first line is a comment with a file's name, as in "# mine.py", is that file. What cannot run here is marked by a
comment on the line before it, <!-- not run: reason -->, of which there are few.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```", re.M | re.S)
FILE_NAME = re.compile(r"# ([\w/]+\.py)\n")
RUN, SHOWN = {"python", "console"}, {"text"}
MOST_NOT_RUN = 4
LIMIT_SECONDS = 120.0

Run = Callable[..., None]


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    number: int
    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(i, one["language"], one["text"], one["reason"]) for i, one in enumerate(found)]


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in RUN and block.reason is None]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run a file or a command in a folder; it must end well."""
    runner = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("page_runner.py"))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert runner.stdin is not None
    assert runner.stdout is not None
    into, out_of = runner.stdin, runner.stdout
    assert out_of.readline() == "ready\n"

    def order(what: str, folder: Path, **task: object) -> None:
        log = folder / "log.txt"
        given = {"folder": str(folder), "log": str(log), "limit_seconds": LIMIT_SECONDS, **task}
        into.write(json.dumps(given) + "\n")
        into.flush()
        status = int(out_of.readline())
        assert status == 0, f"{what} ended with {status}: {log.read_text(encoding='utf-8')[-3000:]}"

    yield order
    into.close()
    runner.wait(timeout=10)


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES if runnable(page)])
def test_blocks_of_a_page_run_in_order(page: Path, run: Run, tmp_path: Path) -> None:
    for block in runnable(page):
        what = f"{name_of(page)}, block {block.number}"
        if block.language == "python":
            named = FILE_NAME.match(block.text)
            file = tmp_path / (named[1] if named else f"block_{block.number}.py")
            file.write_text(block.text, encoding="utf-8")
            run(what, tmp_path, file=file.name)
            continue
        for line in block.text.splitlines():
            if line.startswith("$ "):
                _run_command(f"{what}, {line}", shlex.split(line[2:]), run, tmp_path)


def _run_command(what: str, words: list[str], run: Run, folder: Path) -> None:
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"{what}: there is no such target"
    elif words[:2] == ["pip", "install"]:
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for wanted in words[2:]:
            name, _, extras = wanted.rstrip("]").partition("[")
            assert name == declared["name"], what
            assert set(filter(None, extras.split(","))) <= set(declared["optional-dependencies"]), what
    elif words[0] == "torchrun" or words[1:2] == ["doctor"]:
        # The doctor tries out forks and charts, which a fork of a process with threads of both is no place for.
        module = "torch.distributed.run" if words[0] == "torchrun" else "batchscope"
        given = [sys.executable, "-m", module, *words[1:]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            given, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
        )
        assert done.returncode == 0, f"{what}: {done.stderr}"
    else:
        assert words[0] == "batchscope", what
        run(what, folder, words=words)


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_no_block_escapes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = blocks(page)
    assert len(re.findall(r"^[ >]*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(found)
    assert len(re.findall(r"<!-- not run", text)) == sum(block.reason is not None for block in found)
    assert {block.language for block in found} <= RUN | SHOWN


def test_few_blocks_are_not_run() -> None:
    reasons = [block.reason for page in PAGES for block in blocks(page) if block.reason is not None]
    assert len(reasons) <= MOST_NOT_RUN, reasons
    assert all(len(reason.split()) >= 3 for reason in reasons), reasons


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    here = [link for link in links if "://" not in link]
    assert len(here) >= 10
    assert [link for link in here if not (ROOT / link).exists()] == []

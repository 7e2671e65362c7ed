"""What the tests of the command share: running it in this process or in one of its own, and a workload file."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from batchscope.cli import app


@dataclass(frozen=True)
class Said:
    """What the command printed, and its exit status."""

    status: int
    out: str
    err: str


Command = Callable[..., Said]

SOURCE = """
import torch
from torch import nn
from batchscope import Workload

x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))

def make(**changes):
    given = dict(
        model=lambda: nn.Linear(4, 2), train=(x[:64], x[:64, :2]), validation=(x[64:], x[64:, :2]),
        loss=nn.functional.mse_loss, optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr),
        learning_rate=0.1, batch_size=16, name="line",
    )
    return Workload(**(given | changes))

line = make()
wild = make(learning_rate=1e30)
"""


# Building the command from its functions takes longer than most of the tests.
_built = functools.cache(typer.main.get_command)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command in this process."""
    monkeypatch.setattr("typer.testing._get_command", _built)
    monkeypatch.setenv("COLUMNS", "200")  # so that no line is broken
    monkeypatch.setattr(sys, "path", list(sys.path))  # which loading a file adds to

    def run(*arguments: object) -> Said:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), "an exception got out"
        return Said(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def program() -> Command:
    """Run the command as a program of its own; each costs seconds."""

    def run(*arguments: object) -> Said:
        done = subprocess.run(
            [sys.executable, "-m", "batchscope", *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of workloads: ``line``, ``wild`` (which diverges) and the function ``make``."""
    path = tmp_path / "lines.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def refused() -> Callable[..., None]:
    """Whether the arguments were refused with one clear message, which holds the parts given."""

    def check(said: Said, *parts: object, status: int = 2) -> None:
        assert said.status == status, said
        assert said.out == ""
        assert said.err.startswith("batchscope: ")
        assert said.err.count("\n") == 1, said.err
        assert said.err.endswith(".\n") or said.err.endswith("?\n")
        for part in parts:
            assert str(part) in said.err, said.err

    return check

"""Several ranks train what one process trains: real processes, talking through gloo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import batchscope as bs
from batchscope.errors import ArgumentError, BatchscopeError
from batchscope.progress import ProgressEvent
from batchscope.records import TrainResult, load
from batchscope.training.rank_watch import Watch
from batchscope.training.ranks import rank_here, share, together
from tests.training.ranks_cases import CASES, signalling

HERE = Path(__file__).parent
WORKER = HERE / "ranks_worker.py"
# Far more than it takes on a machine that others are busy on; a wait ends as soon as there is nothing to wait for.
PATIENCE = 240

SAME = [name for name, case in CASES.items() if case.same and name != "interrupted"]
ON_THREE = ["momentum", "adam, fewer than ranks", "growing, in micro-batches", "branches", "target"]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **changes}


def launch(ranks: int, folder: Path, *cases: str, **changes: str) -> list[subprocess.CompletedProcess[str]]:
    """Start the ranks as torchrun would, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(ranks), **changes)
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), *cases],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, out, err)
        for process, (out, err) in zip(started, said, strict=True)
    ]


def result(folder: Path, case: str, rank: int = 0) -> TrainResult:
    found = load(folder / f"{case}-{rank}.json")
    assert isinstance(found, TrainResult)
    return found


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Weights and the optimiser's state in a checkpoint."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if key.startswith(("model", "optimizer"))}  # noqa: SIM118


def curve(result: TrainResult) -> list[tuple[Any, ...]]:
    return [(p.examples, p.iterations, p.training_loss or 0.0, p.validation_loss, p.score) for p in result.curve]


def assert_same(here: Path, there: Path, case: str, rank: int, *, relative: float = 1e-9) -> None:
    expected, found = result(there, case), result(here, case, rank)
    assert (found.outcome, found.examples, found.iterations) == (
        expected.outcome,
        expected.examples,
        expected.iterations,
    )
    assert found.diverged_at_iteration == expected.diverged_at_iteration
    for one, other in zip(curve(found), curve(expected), strict=True):
        assert one == pytest.approx(other, rel=relative, abs=relative, nan_ok=True)
    if (there / f"{case}.ckpt").exists():
        mine, theirs = tensors(here / f"{case}.ckpt"), tensors(there / f"{case}.ckpt")
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, rtol=relative, atol=relative, msg=key)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the cases."""
    folder = tmp_path_factory.mktemp("alone")
    for name in (*SAME, "batch norm"):
        CASES[name].train(folder / f"{name}.ckpt").to_json(folder / f"{name}-0.json")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks make of them; rank 1 alone is asked to stop, in the middle of one."""
    folder = tmp_path_factory.mktemp("two")
    for done in launch(2, folder, AT="61", WHO="1", SIGNAL=str(int(signal.SIGINT))):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three ranks make of some; one of them goes on from where one process was interrupted."""
    folder = tmp_path_factory.mktemp("three")
    until = 300

    def interrupt(event: ProgressEvent) -> None:
        if event.done >= until:
            os.kill(os.getpid(), signal.SIGINT)

    part = CASES["interrupted"].train(folder / "interrupted.ckpt", progress=interrupt)
    assert part.outcome == "interrupted"
    for done in launch(3, folder, *ON_THREE, "interrupted"):
        assert done.returncode == 0, done.stderr
    return folder


# The same result


@pytest.mark.parametrize("case", SAME)
def test_two_ranks_train_what_one_process_trains(alone: Path, two: Path, case: str) -> None:
    relative = 1e-4 if case == "single precision" else 1e-9
    for rank in range(2):
        assert_same(two, alone, case, rank, relative=relative)
        assert result(two, case, rank).ranks == 2


@pytest.mark.parametrize("case", ON_THREE)
def test_so_do_three(alone: Path, three: Path, case: str) -> None:
    for rank in range(3):
        assert_same(three, alone, case, rank)

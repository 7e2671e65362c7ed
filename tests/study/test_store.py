"""Finished runs on disk: a comparison that is killed, interrupted or damaged goes on to the same answer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from batchscope.errors import StorageError
from batchscope.progress import ProgressEvent
from batchscope.records import Comparison, Plan, Record, TrainResult, load
from batchscope.study import compare
from batchscope.study.store import RunStore
from batchscope.workload import Workload, load_workload

Strip = Callable[[Record], Any]

PAIRS = [(8, 48), (16, 24), (32, 12)]

# A workload whose updates take a while, so that there is time to kill it in the middle.
SOURCE = """
import os, time
import torch
from torch import nn
from batchscope import Workload

SLEEP = float(os.environ.get("SLEEP", "0"))

class Slow(nn.Linear):
    def forward(self, x):
        if self.training:
            time.sleep(SLEEP)
        return super().forward(x)

x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
slow = Workload(
    model=lambda: nn.Sequential(Slow(4, 8), nn.Dropout(0.1), nn.Linear(8, 2)),
    train=(x[:96], x[:96, :2].relu()), validation=(x[96:], x[96:, :2].relu()), loss=nn.functional.mse_loss,
    optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9), learning_rate=0.05, batch_size=16,
)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "work.py"
    path.write_text(textwrap.dedent(SOURCE))
    return f"{path}:slow"


def start(file: str, store: Path, *more: str, sleep: float = 0.02) -> subprocess.Popen[str]:
    pairs = [f"{a}x{b}" for a, b in PAIRS]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "batchscope", "compare", file, *pairs),
            *("--seeds", "2", "--learning-rate", "fixed", "--store", str(store), *more),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "SLEEP": str(sleep)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(store: Path) -> dict[Path, tuple[int, bytes]]:
    """The run files, with what would change if they were made again."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in store.glob("run-*.json")}


def wait_for(child: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not happened():
        assert child.poll() is None, f"it ended too soon: {child.communicate()}"
        assert time.monotonic() - began < 60, "nothing happened"
        time.sleep(0.005)


def interrupt_after(examples: int) -> Callable[[ProgressEvent], None]:
    """One Ctrl-C, at the first evaluation after so many examples."""
    to_come = [True]

    def listen(event: ProgressEvent) -> None:
        if event.done > examples and to_come:
            to_come.clear()
            signal.raise_signal(signal.SIGINT)

    return listen


def whole(file: str, store: Path | None = None, **more: Any) -> Comparison:
    return compare(load_workload(file), PAIRS, seeds=2, learning_rate="fixed", store=store, **more)


def test_a_comparison_that_is_killed_goes_on_where_it_was(file: str, tmp_path: Path, without_times: Strip) -> None:
    """Killed after the first run, after the third, and in the middle of the last one."""
    store = tmp_path / "store"
    kept: dict[Path, tuple[int, bytes]] = {}
    for number in (1, 3, 5):
        child = start(file, store)
        wait_for(child, lambda: len(finished(store)) >= number)  # noqa: B023 — called before it changes
        if number == 5:
            time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        now = finished(store)
        assert number <= len(now) < 6
        assert all(now[path] == before for path, before in kept.items()), "a finished run was made again"
        kept = now

    events: list[ProgressEvent] = []
    answer = whole(file, store, progress=events.append)
    now = finished(store)
    assert len(now) == 6
    assert all(now[path] == before for path, before in kept.items())
    assert without_times(answer) == without_times(whole(file))
    assert not answer.interrupted
    recorded = {(r.plan.batch_size, r.seed): r.step_seconds for r in answer.runs}
    for path in kept:
        run = load(path)
        assert isinstance(run, TrainResult)
        assert recorded[run.plan.batch_size, run.seed] == run.step_seconds
    assert answer.total_seconds >= sum(run.total_seconds for run in answer.runs)
    assert not list(store.glob("*.safetensors"))


def test_ctrl_c_keeps_what_was_finished_and_a_second_command_completes(
    file: str, tmp_path: Path, without_times: Strip
) -> None:
    store, out = tmp_path / "store", tmp_path / "out.json"
    child = start(file, store, "--json", str(out))
    wait_for(child, lambda: len(finished(store)) >= 2)
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    printed, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert errors.strip().endswith("batchscope: Interrupted; finished results are kept.")
    kept = finished(store)
    record = load(out)
    assert isinstance(record, Comparison)
    assert record.interrupted
    assert 2 <= len(record.runs) == len(kept) < 6
    assert all(run.outcome == "finished" for run in record.runs)
    assert [row.finished for row in record.rows] == [
        sum(run.plan.batch_size == size for run in record.runs) for size, _ in PAIRS
    ]
    assert "The comparison was interrupted" in record.conclusion
    assert "interrupted" in " ".join(printed.split())
    checkpoints = list(store.glob("*.safetensors"))
    assert len(checkpoints) == 1  # the run that was under way

    answer = whole(file, store)
    assert all(finished(store)[path] == before for path, before in kept.items())
    assert without_times(answer) == without_times(whole(file))
    assert not list(store.glob("*.safetensors"))


def test_an_interrupted_run_goes_on_from_its_checkpoint(file: str, tmp_path: Path, without_times: Strip) -> None:
    """In this process: SIGINT comes at an evaluation in the middle of the second run."""
    store = tmp_path / "store"

    first = whole(file, store, progress=interrupt_after(600), evaluate_every=32)
    assert first.interrupted
    assert [run.plan.batch_size for run in first.runs] == [8]
    (checkpoint,) = store.glob("*.safetensors")
    assert checkpoint.name.startswith("run-b16-s0-")
    events: list[ProgressEvent] = []
    answer = whole(file, store, evaluate_every=32, progress=events.append)
    assert without_times(answer) == without_times(whole(file, evaluate_every=32))
    assert [event.done for event in events if event.done < 768][:2] == [384, 640], "it did not go on where it was"


def test_an_interrupted_search_goes_on_too(workload: Workload, tmp_path: Path, without_times: Strip) -> None:
    pairs = [(8, 16), (32, 4)]
    first = compare(workload, pairs, seeds=1, store=tmp_path, progress=interrupt_after(127))
    assert first.interrupted
    assert first.runs == ()
    assert first.conclusion.startswith("No run finished in order")
    assert "edge" not in first.conclusion
    trials = finished(tmp_path)
    assert trials
    answer = compare(workload, pairs, seeds=1, store=tmp_path)
    assert all(finished(tmp_path)[path] == before for path, before in trials.items())
    assert without_times(answer) == without_times(compare(workload, pairs, seeds=1))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_kind(path: Path) -> None:
    Plan(batch_size=8, learning_rate=1.0, iterations=3).to_json(path)


def without_a_field(path: Path) -> None:
    data = json.loads(path.read_text())
    del data["curve"]
    path.write_text(json.dumps(data))


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def of_the_future(path: Path) -> None:
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 999'))


@pytest.mark.parametrize("damage", [truncated, of_another_kind, without_a_field, not_text, of_the_future])
def test_a_damaged_run_is_made_again(
    workload: Workload, tmp_path: Path, without_times: Strip, damage: Callable[[Path], None]
) -> None:
    arguments: dict[str, Any] = {"seeds": 2, "learning_rate": "fixed", "store": tmp_path}
    answer = compare(workload, [(16, 8), (32, 4)], **arguments)
    before = finished(tmp_path)
    victim = sorted(before)[1]
    damage(victim)
    again = compare(workload, [(16, 8), (32, 4)], **arguments)
    assert without_times(again) == without_times(answer)
    after = finished(tmp_path)
    assert {path for path in before if after[path] != before[path]} == {victim}
    assert isinstance(load(victim), TrainResult)


def test_other_plans_live_in_one_store(workload: Workload, tmp_path: Path, without_times: Strip) -> None:
    compare(workload, [(16, 8)], seeds=1, learning_rate="fixed", store=tmp_path)
    before = finished(tmp_path)
    variants: list[dict[str, Any]] = [
        {"seeds": 2},
        {"shape": "constant"},
        {"order": "replacement"},
        {"evaluate_every": 64},
        {"micro_batch_size": 4},
        {"seed": 10**6},  # whose last six digits are those of seed 0
        {"learning_rate": "rescaled"},
    ]
    for number, change in enumerate(variants, start=2):
        arguments: dict[str, Any] = {"seeds": 1, "learning_rate": "fixed"} | change
        stored = compare(workload, [(16, 8)], store=tmp_path, **arguments)
        assert without_times(stored) == without_times(compare(workload, [(16, 8)], **arguments))
        assert len(finished(tmp_path)) == number
    assert all(finished(tmp_path)[path] == value for path, value in before.items())


def absolute_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(target, 3).sub(output).abs().mean()


def _another_model(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(5, 3), kind())


class _Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class _Tripled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


_Tripled.__name__ = _Tripled.__qualname__ = "_Doubled"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"learning_rate": 0.2}),
        ({}, {"batch_size": 8}),
        ({}, {"loss": absolute_error}),
        ({"loss": lambda o, t: 3 * absolute_error(o, t)}, {"loss": lambda o, t: 2 * absolute_error(o, t)}),
        ({"loss": nn.CrossEntropyLoss()}, {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}),
        ({"score": lambda o, t: 0.0}, {"score": lambda o, t: 1.0}),
        ({"forward": lambda m, b: (m(b[0]), b[1])}, {"forward": lambda m, b: (-m(b[0]), b[1])}),
        ({}, {"optimizer": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.5)}),
        ({}, {"optimizer": lambda params, lr: torch.optim.Adam(params, lr=lr)}),
        ({"model": _another_model(nn.ReLU)}, {"model": _another_model(nn.Tanh)}),
        ({"model": lambda: _Doubled(5, 3)}, {"model": lambda: _Tripled(5, 3)}),
        (
            {"model": lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.1))},
            {"model": lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.2))},
        ),
    ],
)
def test_a_store_of_another_workload_is_refused(
    make_workload: Callable[..., Workload], tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    compare(make_workload(**one), [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path)
    compare(make_workload(**one), [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path)  # the same again
    with pytest.raises(StorageError, match=r"whose workload differ\. Name another folder"):
        compare(make_workload(**other), [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"batchscope_run_store": 2}', "\udcff"])
def test_a_store_that_cannot_be_told_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content, errors="surrogateescape")
    with pytest.raises(StorageError, match="another folder"):
        RunStore(tmp_path, {"workload": "x"})
    assert (tmp_path / "store.json").read_text(errors="surrogateescape") == content


def test_a_store_that_is_a_file_or_below_one_is_refused(workload: Workload, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    events: list[ProgressEvent] = []
    with pytest.raises(StorageError, match=r"a store is a folder; got .*file, which is a file\. Name another"):
        compare(workload, [(16, 2)], seeds=1, store=path, progress=events.append)
    with pytest.raises(StorageError):
        compare(workload, [(16, 2)], seeds=1, store=path / "deeper", progress=events.append)
    assert path.read_text() == "mine"
    assert events == []


def test_a_store_may_move(workload: Workload, tmp_path: Path) -> None:
    compare(workload, [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    before = finished(tmp_path / "b")
    compare(workload, [(16, 2)], seeds=1, learning_rate="fixed", store=tmp_path / "b")
    assert finished(tmp_path / "b") == before

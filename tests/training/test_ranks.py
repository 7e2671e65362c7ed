"""Several ranks train what one process trains: real processes, talking through gloo."""

from __future__ import annotations

import os
import shutil
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
from tests.training.ranks_cases import CASES, EXAMPLES, GROWING, REFUSED, workload

import batchscope as bs
from batchscope.errors import ArgumentError
from batchscope.measure.communication import all_reduce_law
from batchscope.progress import ProgressEvent
from batchscope.records import TrainResult, load
from batchscope.training.feed import TrainingData
from batchscope.training.rank_places import rank_here, share
from batchscope.training.rank_watch import Watch
from batchscope.training.ranks import together

HERE = Path(__file__).parent
DROPOUT, MEASURED = "interrupted, with dropout", "interrupted, as measured"
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
    for name in (*SAME, "interrupted"):
        CASES[name].train(folder / f"{name}.ckpt").to_json(folder / f"{name}-0.json")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks make of them; rank 1 alone is asked to stop, in the middle of some."""
    folder = tmp_path_factory.mktemp("two")
    stop = f"@61,1,{int(signal.SIGINT)}"
    names = [name + stop * name.startswith("interrupted") for name in (*REFUSED, *CASES)]
    for done in launch(2, folder, *names, "law"):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def two_again(two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """They go on with those that draw or decide by themselves, and train them unbroken; then rank 0 is killed."""
    folder = tmp_path_factory.mktemp("again")
    for name in (DROPOUT, MEASURED):
        shutil.copy(two / f"{name}.ckpt", folder / f"{name}.ckpt")
    (folder / "unbroken").mkdir()
    kill = f"interrupted@61,0,{int(signal.SIGKILL)}"
    first, second = launch(2, folder, *(way + name for name in (DROPOUT, MEASURED) for way in ("", "unbroken/")), kill)
    assert first.returncode == -signal.SIGKILL
    assert second.returncode == 1
    assert "RankLost" in second.stderr
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three ranks make of some; with one of them they go on from where one process was interrupted."""
    folder = tmp_path_factory.mktemp("three")

    def interrupt(event: ProgressEvent) -> None:
        if event.done >= 300:
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


def test_half_precision_stays_half_precision(two: Path) -> None:
    weights = tensors(two / "half precision.ckpt")
    assert {value.dtype for key, value in weights.items() if key.startswith("model")} == {torch.bfloat16}


def test_ranks_skip_the_same_updates(two: Path) -> None:
    first, second = result(two, "a scaler", 0), result(two, "a scaler", 1)
    assert first.skipped_updates == second.skipped_updates > 0
    assert first.iterations == 30 - first.skipped_updates


@pytest.mark.parametrize("case", ["batch norm", "dropout", "half precision", "a scaler"])
def test_ranks_tell_the_same_where_chance_or_shares_matter(two: Path, case: str) -> None:
    first, second = result(two, case, 0), result(two, case, 1)
    assert first.outcome == "finished"
    assert curve(first) == curve(second)


def test_dropout_is_drawn_by_each_rank_for_itself(two: Path) -> None:
    first, second = (random_state_of(two / "dropout.ckpt", rank) for rank in range(2))
    assert not torch.equal(first, second)


def random_state_of(path: Path, rank: int) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        state: torch.Tensor = file.get_tensor("random.torch" if rank == 0 else f"other_ranks.{rank - 1}.torch")
        return state


# Memory, refusals, and what is asked of one rank


def test_a_rank_whose_memory_ends_cuts_its_share_and_all_follow(two: Path) -> None:
    assert [result(two, "memory that can be saved", rank).micro_batch_size for rank in range(2)] == [1, 1]


def test_a_rank_that_cannot_ends_all(two: Path) -> None:
    for rank in range(2):
        found = result(two, "memory that cannot", rank)
        assert found.outcome == "out of memory"
        assert found.message == "CUDA out of memory. Tried to allocate 2 GiB"
        assert found.iterations == 20


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("unlike", "the same workload, plan and seed; got another workload on rank 1 than on rank 0"),
        ("a score that fails", "score(output, target) must return a number; got ValueError: no score today"),
        ("too few for batch norm", "a first batch of 16 and a last one of 1 on 2 ranks"),
    ],
)
def test_what_one_rank_refuses_all_refuse(two: Path, case: str, said: str) -> None:
    for rank in range(2):
        assert said in (two / f"{case}-{rank}.txt").read_text()


def test_a_request_to_one_rank_ends_all_after_the_same_update(two: Path) -> None:
    for rank in range(2):
        found = result(two, "interrupted", rank)
        assert (found.outcome, found.iterations) == ("interrupted", 61)


# Going on with another number of ranks


def test_one_process_goes_on_where_two_ranks_stopped(alone: Path, two: Path, tmp_path: Path) -> None:
    shutil.copy(two / "interrupted.ckpt", tmp_path / "interrupted.ckpt")
    CASES["interrupted"].train(tmp_path / "interrupted.ckpt").to_json(tmp_path / "interrupted-0.json")
    assert_same(tmp_path, alone, "interrupted", 0)


def test_three_ranks_go_on_where_one_process_stopped(alone: Path, three: Path) -> None:
    for rank in range(3):
        assert_same(three, alone, "interrupted", rank)


@pytest.mark.parametrize("case", [DROPOUT, MEASURED])
def test_two_ranks_that_go_on_draw_and_decide_what_they_would_have(two_again: Path, case: str) -> None:
    broken, unbroken = two_again / f"{case}.ckpt", two_again / "unbroken" / f"{case}.ckpt"
    resumed, expected = tensors(broken), tensors(unbroken)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[key], expected[key]) for key in resumed)
    for rank in range(2):
        assert torch.equal(random_state_of(broken, rank), random_state_of(unbroken, rank))


# The noise of gradients


def test_ranks_measure_the_noise_scale_by_what_their_shares_differ_in(two: Path) -> None:
    scales = [result(two, "noise", rank).curve[-1].noise_scale for rank in range(2)]
    expected = bs.gradient_noise(workload(), examples=EXAMPLES)
    assert scales[0] == scales[1]
    # 300 measured updates of seven examples know it to about 10%.
    assert scales[0] == pytest.approx(expected.noise_scale.value, rel=0.3)


def test_the_batch_follows_the_noise_that_ranks_measure(two_again: Path) -> None:
    results = [result(two_again / "unbroken", MEASURED, rank) for rank in range(2)]
    assert curve(results[0]) == curve(results[1])
    sizes = [point.batch_size or 0 for point in results[0].curve]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (6, 24)


def test_one_process_goes_on_with_what_ranks_measured(two: Path, tmp_path: Path) -> None:
    shutil.copy(two / f"{MEASURED}.ckpt", tmp_path / "run.ckpt")
    found = CASES[MEASURED].train(tmp_path / "run.ckpt")
    assert (found.outcome, found.examples) == ("finished", 4000)


# Ranks that die


def test_a_killed_rank_leaves_a_checkpoint_and_a_message(alone: Path, tmp_path: Path) -> None:
    checkpoint, plan = tmp_path / "interrupted.ckpt", CASES["interrupted"].plan
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "batchscope", "train", f"{HERE / 'ranks_cases.py'}:signalling", "--checkpoint", str(checkpoint)),
            *("--batch-size", str(plan.batch_size), "--learning-rate", str(plan.learning_rate)),
            *("--iterations", str(plan.iterations), "--evaluate-every", "50", "--json", str(tmp_path / "run.json")),
        ],
        env=environment(AT="61", WHO="1", SIGNAL=str(int(signal.SIGKILL))),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    [said] = [line for line in done.stderr.splitlines() if line.startswith("batchscope: ")]
    assert "got no word from rank 1 of 2. The run after update 60 is saved in" in said
    assert not (tmp_path / "run.json").exists()
    CASES["interrupted"].train(checkpoint).to_json(tmp_path / "interrupted-0.json")
    assert_same(tmp_path, alone, "interrupted", 0)


def test_so_does_the_first_one(alone: Path, two_again: Path, tmp_path: Path) -> None:
    shutil.copy(two_again / "interrupted.ckpt", tmp_path / "interrupted.ckpt")
    CASES["interrupted"].train(tmp_path / "interrupted.ckpt").to_json(tmp_path / "interrupted-0.json")
    assert_same(tmp_path, alone, "interrupted", 0)


class Beats(dict[str, int]):
    """A store of counts in memory; with ``broken`` none."""

    broken = False

    def add(self, key: str, amount: int, /) -> int:
        if self.broken:
            raise RuntimeError("no store")
        self[key] = self.get(key, 0) + amount
        return self[key]


@pytest.mark.parametrize("what", ["a rank that falls silent", "a store that does"])
def test_silence_is_noticed(what: str) -> None:
    found: list[int] = []
    noticed, beats = threading.Event(), Beats({"beat/1": 1})

    def on_silence(rank: int) -> None:
        found.append(rank)
        noticed.set()

    watch = Watch(beats, 0, 2, on_silence, interval_seconds=0.01, silence_seconds=0.05)
    if what == "a store that does":
        beats.broken = True
    watch.start()
    assert noticed.wait(PATIENCE)
    watch.join(PATIENCE)
    assert found == [1 if what == "a rank that falls silent" else 0]


def test_a_rank_that_beats_or_has_not_begun_is_not_silent() -> None:
    beats, found = Beats(), list[int]()
    watches = [Watch(beats, r, 3, found.append, interval_seconds=0.005, silence_seconds=60.0) for r in range(2)]
    for watch in watches:  # the third has not begun
        watch.start()
    while beats.get("beat/0", 0) < 20 or beats.get("beat/1", 0) < 20:
        time.sleep(0.005)
    for watch in watches:
        watch.stop()
        watch.join(PATIENCE)
    assert found == []


# Shares


@given(st.integers(0, 10_000), st.integers(0, 500), st.integers(1, 40))
def test_shares_follow_each_other_and_are_as_equal_as_they_can_be(first: int, count: int, size: int) -> None:
    positions = range(first, first + count)
    shares = [share(positions, rank, size) for rank in range(size)]
    assert [p for part in shares for p in part] == list(positions)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("items", [False, True])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_what_the_ranks_read_is_what_one_process_reads(items: bool, micro_batch_size: int | None) -> None:
    data = TrainingData(workload(items=items), torch.device("cpu"), workers=0)
    plan = bs.Plan(4, 0.1, iterations=None, examples=1500, schedule=GROWING, micro_batch_size=micro_batch_size)

    def read(part: tuple[int, int]) -> list[list[torch.Tensor]]:
        return [[x for x, _ in update] for update in data.feed(plan, 1500, seed=3, part=part)]

    shared = [read((rank, 3)) for rank in range(3)]
    for whole, *parts in zip(read((0, 1)), *shared, strict=True):
        assert torch.equal(torch.cat(whole), torch.cat([x for part in parts for x in part]))


def test_a_process_by_itself_has_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with together() as ranks:
        assert ranks is None


@pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("2", "2"), ("-1", "2"), ("0", "")])
def test_an_environment_without_sense_is_refused(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ArgumentError, match="RANK and WORLD_SIZE must be whole numbers"):
        rank_here()


# What it costs


def test_the_law_of_an_all_reduce_is_measured_and_the_same_on_all_ranks(two: Path) -> None:
    first, second = ((two / f"law-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert "ranks=2, backend='gloo'" in first
    assert "message_bytes=1024" in first


def test_a_process_by_itself_measures_none() -> None:
    with pytest.raises(ArgumentError, match="an all-reduce needs several ranks"):
        all_reduce_law()

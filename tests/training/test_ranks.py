"""Three ranks train what one process trains: real processes that torchrun starts, once for all tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tests.training.ranks_cases import CASES, DROPOUT, EXAMPLES, GROWING, MEASURED, REFUSED, workload

import batchscope as bs
from batchscope.errors import ArgumentError
from batchscope.measure.communication import all_reduce_law
from batchscope.progress import ProgressEvent
from batchscope.records import TrainResult, load
from batchscope.training.feed import TrainingData
from batchscope.training.ranks import rank_here, share, together

WORKER = Path(__file__).parent / "ranks_worker.py"
# Far more than it takes on a machine that others are busy on; a wait ends as soon as there is nothing to wait for.
PATIENCE = 600
RANKS = range(3)

SAME = [name for name, case in CASES.items() if case.same and name != "interrupted"]


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
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Three ranks, of which the first is killed in the last thing that they do; they are started once more then."""
    folder = tmp_path_factory.mktemp("three")
    for name in ("from one", "again", "unbroken"):
        (folder / name).mkdir()

    def interrupt(event: ProgressEvent) -> None:
        if event.done >= 150:
            os.kill(os.getpid(), signal.SIGINT)

    part = CASES["interrupted"].train(folder / "from one" / "interrupted.ckpt", progress=interrupt)
    assert part.outcome == "interrupted"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(len(RANKS))]
    done = subprocess.run(
        [*command, "--max-restarts", "1", str(WORKER), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    done.args = folder
    return done


@pytest.fixture(scope="module")
def three(torchrun: subprocess.CompletedProcess[str]) -> Path:
    """Where they write what comes of the cases; rank 1 alone is asked to stop, in the middle of some."""
    folder: Path = torchrun.args
    return folder


# The same result


@pytest.mark.parametrize("case", SAME)
def test_three_ranks_train_what_one_process_trains(alone: Path, three: Path, case: str) -> None:
    relative = 1e-4 if case == "single precision" else 1e-9
    for rank in RANKS:
        assert_same(three, alone, case, rank, relative=relative)
        assert result(three, case, rank).ranks == len(RANKS)


def test_half_precision_stays_half_precision(three: Path) -> None:
    weights = tensors(three / "half precision.ckpt")
    assert {value.dtype for key, value in weights.items() if key.startswith("model")} == {torch.bfloat16}


def test_ranks_skip_the_same_updates(three: Path) -> None:
    skipped = {result(three, "a scaler", rank).skipped_updates for rank in RANKS}
    assert len(skipped) == 1
    assert min(skipped) > 0
    assert result(three, "a scaler").iterations == 30 - min(skipped)


@pytest.mark.parametrize("case", ["batch norm", "dropout", "half precision", "a scaler", MEASURED])
def test_ranks_tell_the_same_where_chance_or_shares_matter(three: Path, case: str) -> None:
    folder = three / "unbroken" if case == MEASURED else three
    first, *others = [result(folder, case, rank) for rank in RANKS]
    assert first.outcome == "finished"
    assert all(curve(other) == curve(first) for other in others)


def test_dropout_is_drawn_by_each_rank_for_itself(three: Path) -> None:
    first, second = (random_state_of(three / "dropout.ckpt", rank) for rank in range(2))
    assert not torch.equal(first, second)


def random_state_of(path: Path, rank: int) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        state: torch.Tensor = file.get_tensor("random.torch" if rank == 0 else f"other_ranks.{rank - 1}.torch")
        return state


# Memory, refusals, and what is asked of one rank


def test_where_the_memory_of_one_rank_ends_all_go_on_in_smaller_pieces(three: Path) -> None:
    assert [result(three, "memory that can be saved", rank).micro_batch_size for rank in RANKS] == [1, 1, 1]


def test_a_rank_that_cannot_ends_all(three: Path) -> None:
    for rank in RANKS:
        found = result(three, "memory that cannot", rank)
        assert found.outcome == "out of memory"
        assert found.message == "CUDA out of memory. Tried to allocate 2 GiB"
        assert found.iterations == 20


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("unlike", "the same workload, plan and seed; got another workload on rank 1 than on rank 0"),
        ("a score that fails", "score(output, target) must return a number; got ValueError: no score today"),
        ("a model that fails", "not on this rank"),
        ("too few for batch norm", "a first batch of 16 and a last one of 1 on 3 ranks"),
        ("sparse", "gradients that ranks sum must be dense"),
    ],
)
def test_what_one_rank_refuses_all_refuse(three: Path, case: str, said: str) -> None:
    assert case in REFUSED
    for rank in RANKS:
        assert said in (three / f"{case}-{rank}.txt").read_text()


def test_a_request_to_one_rank_ends_all_after_the_same_update(three: Path) -> None:
    for rank in RANKS:
        found = result(three, "interrupted", rank)
        assert (found.outcome, found.iterations) == ("interrupted", 31)


# Going on with another number of ranks


def test_one_process_goes_on_where_three_ranks_stopped(alone: Path, three: Path, tmp_path: Path) -> None:
    shutil.copy(three / "interrupted.ckpt", tmp_path / "interrupted.ckpt")
    CASES["interrupted"].train(tmp_path / "interrupted.ckpt").to_json(tmp_path / "interrupted-0.json")
    assert_same(tmp_path, alone, "interrupted", 0)


def test_three_ranks_go_on_where_one_process_stopped(alone: Path, three: Path) -> None:
    for rank in RANKS:
        assert_same(three / "from one", alone, "interrupted", rank)


@pytest.mark.parametrize("case", [DROPOUT, MEASURED])
def test_ranks_that_go_on_draw_and_decide_what_they_would_have(three: Path, case: str) -> None:
    broken, unbroken = three / "again" / f"{case}.ckpt", three / "unbroken" / f"{case}.ckpt"
    resumed, expected = tensors(broken), tensors(unbroken)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[key], expected[key]) for key in resumed)
    for rank in RANKS:
        assert torch.equal(random_state_of(broken, rank), random_state_of(unbroken, rank))


# The noise of gradients


def test_ranks_measure_the_noise_scale_by_what_their_shares_differ_in(three: Path) -> None:
    scales = {result(three, "noise", rank).curve[-1].noise_scale for rank in RANKS}
    expected = bs.gradient_noise(workload(), examples=EXAMPLES)
    assert len(scales) == 1
    # 200 measured updates of seven examples know it to about 12%.
    assert scales.pop() == pytest.approx(expected.noise_scale.value, rel=0.4)


def test_the_batch_follows_the_noise_that_ranks_measure(three: Path) -> None:
    sizes = [point.batch_size or 0 for point in result(three / "unbroken", MEASURED).curve]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (6, 24)


def test_one_process_goes_on_with_what_ranks_measured(three: Path, tmp_path: Path) -> None:
    shutil.copy(three / f"{MEASURED}.ckpt", tmp_path / "run.ckpt")
    found = CASES[MEASURED].train(tmp_path / "run.ckpt")
    assert (found.outcome, found.examples) == ("finished", 2000)


# Ranks that die


def test_when_a_rank_is_killed_the_others_save_and_torchrun_goes_on_from_there(
    alone: Path, three: Path, torchrun: subprocess.CompletedProcess[str]
) -> None:
    [said] = [line for line in torchrun.stderr.splitlines() if line.startswith("batchscope: ")]
    assert "a run goes on only with all of its ranks; got rank" in said
    assert "The run after update 30 is saved in" in said
    expected, found = result(alone, "interrupted"), result(three, "killed")
    assert (found.outcome, found.iterations) == ("finished", 40)
    for one, other in zip(curve(found), curve(expected), strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_an_error_of_one_rank_ends_the_others_with_its_message(three: Path) -> None:
    said = [(three / f"alone-{rank}.txt").read_text() for rank in RANKS]
    assert said[1] == "only here"
    for rank in (0, 2):
        assert "rank 1 of 3 ended with ValueError: only here" in said[rank]


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


def test_the_law_of_an_all_reduce_is_measured_and_the_same_on_all_ranks(three: Path) -> None:
    [law] = {(three / f"law-{rank}.txt").read_text() for rank in RANKS}
    assert "ranks=3, backend='gloo'" in law
    assert "message_bytes=1024" in law


def test_a_process_by_itself_measures_none() -> None:
    with pytest.raises(ArgumentError, match="an all-reduce needs several ranks"):
        all_reduce_law()

"""Checkpoints: a resumed run equals the unbroken one, and a file is whole, somebody else's or refused."""

from __future__ import annotations

import itertools
import json
import os
import pickletools
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope import Plan, StorageError, TrainResult, Workload, train
from batchscope.training import Prepared, Run
from batchscope.training.checkpoint import save_weights

CPU = torch.device("cpu")
Make = Callable[..., Workload]
TIMES = {
    "data_seconds",
    "compute_seconds",
    "step_seconds",
    "evaluation_seconds",
    "total_seconds",
    "peak_memory_bytes",
} | {"contention"}
ITERATIONS = 14


class Pressing:
    """A loss that presses Ctrl-C in the updates it is told, counted over all the runs of a workload."""

    def __init__(self, calls_per_update: int = 1) -> None:
        self.at: list[int] = []
        self.calls, self.calls_per_update = -1, calls_per_update  # the check of the workload is the first

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if output.requires_grad:
            self.calls += 1
            if self.calls in [update * self.calls_per_update for update in self.at]:
                signal.raise_signal(signal.SIGINT)
        return F.cross_entropy(output, target)


def plan_of(**changes: Any) -> Plan:
    settings: dict[str, Any] = {"batch_size": 6, "learning_rate": 0.02, "iterations": ITERATIONS, "shape": "linear"}
    return Plan(**(settings | changes))


def run_with(workload: Workload, path: Path | None, plan: Plan, **options: Any) -> tuple[Run, TrainResult]:
    prepared = Prepared(workload, CPU, workers=0)
    run = Run(prepared, plan, checkpoint=path, **({"seed": 2, "evaluate_every": 24} | options))
    return run, run()


def everything(run: Run, result: TrainResult) -> dict[str, Any]:
    """All of a run but times, memory and the moment it was made: weights, optimiser, curve, best weights."""
    plain = {key: value for key, value in vars(result).items() if key not in TIMES | {"provenance", "state", "curve"}}
    plain["curve"] = [vars(point) | {"seconds": None} for point in result.curve]
    plain["best"] = {key: value.tolist() for key, value in (result.state or {}).items()}
    plain["weights"] = {key: value.tolist() for key, value in run.model.state_dict().items()}
    groups = run.optimizer.state_dict()
    plain["optimizer"] = repr(groups["param_groups"])
    plain["momenta"] = {
        (key, name): value.tolist() if isinstance(value, Tensor) else value
        for key, state in groups["state"].items()
        for name, value in state.items()
    }
    return plain


def resumed(workload: Workload, path: Path, plan: Plan, at: Sequence[int], **options: Any) -> dict[str, Any]:
    """A run that is interrupted after each of these updates, and then goes on to its end."""
    loss = workload.loss
    assert isinstance(loss, Pressing)
    loss.calls, loss.at = 0, list(at)
    for stop in at:
        _, result = run_with(workload, path, plan, **options)
        assert (result.outcome, result.iterations) == ("interrupted", stop)
    run, result = run_with(workload, path, plan, **options)
    assert loss.calls == ITERATIONS * loss.calls_per_update  # nothing is done twice
    return everything(run, result)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True),
    "plain": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate, betas=(0.8, 0.99), amsgrad=True),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, lr=torch.tensor(rate), weight_decay=0.1),
    "nadam": lambda parameters, rate: torch.optim.NAdam(parameters, lr=rate),
    "rmsprop": lambda parameters, rate: torch.optim.RMSprop(parameters, lr=rate, momentum=0.5, centered=True),
    "adagrad": lambda parameters, rate: torch.optim.Adagrad(parameters, lr=rate),
    "groups": lambda parameters, rate: two_groups(list(parameters), rate),
}


def two_groups(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    first: dict[str, Any] = {"params": parameters[:1], "lr": rate / 3, "betas": (0.5, 0.9)}
    return torch.optim.Adam([first, {"params": parameters[1:]}], lr=rate)


CASES = [
    ("mlp", "momentum", {}),
    ("mlp", "plain", {"order": "replacement"}),
    ("mlp", "adam", {"examples": 80, "iterations": None}),
    ("mlp", "groups", {"shape": "constant"}),
    ("mlp", "nadam", {}),
    ("mlp", "rmsprop", {}),
    ("mlp", "adagrad", {}),
    ("dropout", "adamw", {}),
    ("dropout", "momentum", {"micro_batch_size": 2}),
    ("batch norm", "momentum", {}),
    ("noisy", "adam", {"order": "stratified"}),
    ("tied", "adamw", {}),
    ("transformer", "adam", {}),
    ("augmented", "adam", {"micro_batch_size": 4}),
]


@pytest.mark.parametrize(("kind", "optimizer", "changes"), CASES, ids=[f"{kind}-{o}" for kind, o, _ in CASES])
def test_a_resumed_run_equals_the_unbroken_one_wherever_it_was_interrupted(
    make: Make, tmp_path: Path, kind: str, optimizer: str, changes: dict[str, Any]
) -> None:
    plan = plan_of(**changes)
    micro = plan.micro_batch_size
    loss = Pressing(1 if micro is None else -(-plan.batch_size // micro))
    workload = make(kind, loss=loss, optimizer=OPTIMIZERS[optimizer])
    expected = everything(*run_with(workload, None, plan))
    assert expected["outcome"] == "finished"
    assert len(expected["curve"]) == 5
    for stop in range(1, ITERATIONS):  # evaluations are at updates 4, 8, 12 and 14
        assert resumed(workload, tmp_path / f"{stop}.safetensors", plan, [stop]) == expected, stop


def test_a_run_may_be_interrupted_again_and_again(make: Make, tmp_path: Path) -> None:
    workload = make("dropout", loss=Pressing())
    expected = everything(*run_with(workload, None, plan_of()))
    assert resumed(workload, tmp_path / "a", plan_of(), range(1, ITERATIONS)) == expected
    assert resumed(workload, tmp_path / "b", plan_of(), [4, 5, 8, 13]) == expected


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "nadam"])
def test_an_optimiser_s_state_keeps_its_number_format(make: Make, tmp_path: Path, optimizer: str) -> None:
    # NAdam keeps a product in float32 beside parameters in float64; torch would load it as float64.
    def double() -> nn.Module:
        return nn.Linear(6, 3, dtype=torch.float64)

    data = make().train
    assert isinstance(data, tuple)
    examples = (data[0].double(), data[1])
    changes: dict[str, Any] = {"model": double, "train": examples, "validation": examples}
    workload = make(loss=Pressing(), optimizer=OPTIMIZERS[optimizer], **changes)
    expected = everything(*run_with(workload, None, plan_of()))
    assert resumed(workload, tmp_path / "c", plan_of(), [5, 9]) == expected


def test_early_stopping_goes_on_where_it_was(make: Make, tmp_path: Path) -> None:
    plan = plan_of(patience=2, tolerance=0.5)
    workload = make("dropout", loss=Pressing())
    expected = everything(*run_with(workload, None, plan))
    assert (expected["outcome"], expected["iterations"]) == ("stopped early", 8)
    for stop in range(1, 8):
        loss = workload.loss
        assert isinstance(loss, Pressing)
        loss.calls, loss.at = 0, [stop]
        run_with(workload, tmp_path / str(stop), plan)
        assert everything(*run_with(workload, tmp_path / str(stop), plan)) == expected


def test_losses_between_two_evaluations_are_kept(make: Make, tmp_path: Path) -> None:
    workload = make(loss=Pressing())
    plan = plan_of(batch_size=2, iterations=300)
    expected = everything(*run_with(workload, None, plan, evaluate_every=400))
    loss = workload.loss
    assert isinstance(loss, Pressing)
    loss.calls, loss.at = 0, [70, 199, 271]
    for _ in range(3):
        assert run_with(workload, tmp_path / "c", plan, evaluate_every=400)[1].outcome == "interrupted"
    assert everything(*run_with(workload, tmp_path / "c", plan, evaluate_every=400)) == expected


def test_saving_as_it_goes_changes_nothing(make: Make, tmp_path: Path) -> None:
    workload = make("dropout")
    expected = everything(*run_with(workload, None, plan_of()))
    path = tmp_path / "deep" / "down" / "c.safetensors"
    assert everything(*run_with(workload, path, plan_of(), checkpoint_every_seconds=0)) == expected
    assert [entry.name for entry in path.parent.iterdir()] == ["c.safetensors"]


def test_a_finished_run_is_not_run_again(make: Make, tmp_path: Path) -> None:
    for changes in ({}, {"target": 0.2}, {"patience": 2, "tolerance": 1.0}):
        workload = make(loss=Pressing())
        path = tmp_path / str(len(changes))
        run, first = run_with(workload, path, plan_of(**changes))
        calls = getattr(workload.loss, "calls")  # noqa: B009 — mypy knows it as a plain function
        again, second = run_with(workload, path, plan_of(**changes))
        assert getattr(workload.loss, "calls") == calls  # noqa: B009
        assert everything(again, second) == everything(run, first)


def test_the_times_of_both_parts_are_added_up(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        nonlocal now
        if output.requires_grad:
            now += 10.0
            if now == 10 * 7:
                signal.raise_signal(signal.SIGINT)
        return F.cross_entropy(output, target)

    def score(output: Tensor, target: Tensor) -> float:
        nonlocal now
        now += 1000.0 if started else 0.0
        return 0.0

    started = False
    workload = make(loss=loss, score=score)
    now, started = 0.0, True
    monkeypatch.setattr("time.perf_counter", lambda: now)
    _, first = run_with(workload, tmp_path / "c", plan_of(), evaluate_every=10**6)
    assert (first.outcome, first.iterations) == ("finished", ITERATIONS)  # 1,000 and 70 are not 70

    now = -1000.0
    _, first = run_with(workload, tmp_path / "d", plan_of(), evaluate_every=10**6)
    assert (first.outcome, first.step_seconds, first.total_seconds) == ("interrupted", 70, 1070)
    now += 5e6  # nobody trained in the meantime
    _, second = run_with(workload, tmp_path / "d", plan_of(), evaluate_every=10**6)
    assert second.outcome == "finished"
    assert second.step_seconds == 140
    assert second.evaluation_seconds == 2000
    assert second.total_seconds == 140 + 3000  # the score on training examples too


# Refusals


def stopped_at(make: Make, path: Path, *, kind: str = "mlp", **changes: Any) -> Workload:
    workload = make(kind, loss=Pressing(), **changes)
    assert isinstance(workload.loss, Pressing)
    workload.loss.at = [6]
    assert run_with(workload, path, plan_of())[1].outcome == "interrupted"
    return workload


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("plan", {"plan": plan_of(learning_rate=0.03)}),
        ("plan", {"plan": plan_of(order="replacement")}),
        ("plan", {"plan": plan_of(iterations=15)}),
        ("plan", {"plan": plan_of(micro_batch_size=3)}),
        ("seed", {"seed": 3}),
        ("evaluate_every", {"evaluate_every": 30}),
    ],
)
def test_another_run_s_checkpoint_is_refused(make: Make, tmp_path: Path, what: str, options: dict[str, Any]) -> None:
    path = tmp_path / "c"
    workload = stopped_at(make, path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=f"can only be resumed with .*, whose {what} differ"):
        run_with(workload, path, **({"plan": plan_of()} | options))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"train": (torch.zeros(45, 6), torch.zeros(45, dtype=torch.long))},
        {"held_out": 19},
        {"kind": "dropout"},
        {"loss": lambda output, target: F.cross_entropy(output, target, label_smoothing=0.1)},
        {"optimizer": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.8)},
        {"score": lambda output, target: 0.0},
    ],
    ids=["data", "validation data", "model", "loss", "optimiser", "score"],
)
def test_another_workload_s_checkpoint_is_refused(make: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    stopped_at(make, tmp_path / "c")
    other = make(
        changes.get("kind", "mlp"), **({"loss": Pressing()} | {k: v for k, v in changes.items() if k != "kind"})
    )
    with pytest.raises(StorageError, match="whose workload differ"):
        run_with(other, tmp_path / "c", plan_of())


def refused(make: Make, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"^the checkpoint must be whole.*Remove it to start afresh\.$"):
        run_with(make(loss=Pressing()), path, plan_of())
    assert path.read_bytes() == content


def test_a_damaged_checkpoint_is_refused(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "c"
    stopped_at(make, path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        refused(make, path, whole[:length])
    for place in [9, 200, *range(8, len(whole), len(whole) // 40), len(whole) - 1]:
        for flip in (1, 128):
            refused(make, path, whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])


def test_other_files_are_refused(make: Make, tmp_path: Path) -> None:
    refused(make, tmp_path / "c", b"not a checkpoint at all")
    refused(make, tmp_path / "c", b"{}")
    weights = tmp_path / "weights"
    save_weights(weights, {"weight": torch.ones(3)})
    refused(make, tmp_path / "c", weights.read_bytes())
    torch.save({"weight": torch.ones(3)}, weights)
    refused(make, tmp_path / "c", weights.read_bytes())


def test_a_checkpoint_of_another_schema_is_refused(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    monkeypatch.setattr("batchscope.training.checkpoint.SCHEMA", 99)
    stopped_at(make, path)
    monkeypatch.undo()
    refused(make, path, path.read_bytes())


def test_a_folder_as_a_checkpoint_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="checkpoint"):
        run_with(make(), tmp_path, plan_of())


def test_a_place_that_cannot_be_written_is_said_so(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="must be written to a place"):
        run_with(make(), tmp_path / "file" / "c", plan_of())


def test_state_that_cannot_be_written_as_plain_values_is_refused(make: Make, tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> Any:
            return {1, 2}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.raises(StorageError, match=r"tensors and plain values; got model\._extra_state of type set"):
        run_with(make(model=lambda: Odd(6, 3)), tmp_path / "c", plan_of())
    assert list(tmp_path.iterdir()) == []


# What is in the file


def test_nothing_in_it_is_pickled(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "c"
    stopped_at(make, path, optimizer=OPTIMIZERS["adam"])
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    layout = json.loads(content[8 : 8 + size])
    metadata = layout.pop("__metadata__")
    assert set(metadata) == {"batchscope", "crc32"}
    assert {"identity", "progress", "model", "optimizer", "random"} < set(json.loads(metadata["batchscope"]))
    # Every byte after the header belongs to a tensor of numbers.
    ends = sorted(tuple(entry["data_offsets"]) for entry in layout.values())
    assert ends[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ends))
    assert 8 + size + ends[-1][1] == len(content)
    assert all(entry["dtype"][0] in "FIUB" for entry in layout.values())
    with pytest.raises(ValueError, match=r"opcode|exhausted|invalid literal"):
        pickletools.dis(content, out=open(os.devnull, "w"))  # noqa: SIM115


def test_weights_are_written_as_safetensors(tmp_path: Path) -> None:
    shared = torch.randn(2, 3)
    save_weights(
        tmp_path / "w", {"a": shared, "b": shared, "c": shared.T, "d": torch.tensor(True), "note": "no tensor"}
    )
    found = load_file(tmp_path / "w")
    assert set(found) == {"a", "b", "c", "d"}
    assert torch.equal(found["b"], shared)
    assert torch.equal(found["c"], shared.T)


SAVING = """
    import os, signal, sys, time, torch
    from pathlib import Path
    from batchscope.training import checkpoint
    from batchscope.training.early_stopping import BestSoFar

    path, identity = Path(sys.argv[1]), {"is": "this"}
    model = torch.nn.Linear(600, 600)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def save(count):
        for i in range(count):
            torch.nn.init.constant_(model.weight, float(i))
            checkpoint.save(path, identity=identity, progress=checkpoint.Progress(iterations=i), best=BestSoFar(),
                            model=model, optimizer=optimizer, device=torch.device("cpu"))

    torch.set_num_threads(1)
    save(1)
    began = time.perf_counter()
    save(3)
    seconds = (time.perf_counter() - began) / 3
    for k in range(25):
        child = os.fork()
        if child == 0:
            save(10**9)
        time.sleep(seconds * k / 6)  # at other moments of the first four saves
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        progress, _ = checkpoint.restore(path, identity=identity, best=BestSoFar(), model=model, optimizer=optimizer)
        assert bool((model.weight == progress.iterations).all())
    print("whole")
"""


def script(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_is_never_half_written(tmp_path: Path) -> None:
    assert script(SAVING, tmp_path / "c") == "whole\n"


KILLED = """
    import os, signal, sys, torch, batchscope as bs
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    y = (x[:, 0] > 0).long()
    updates, kill_at = 0, None

    def loss(output, target):
        global updates
        updates += output.requires_grad
        if updates == kill_at and output.requires_grad:
            os.kill(os.getpid(), signal.SIGKILL)
        return F.cross_entropy(output, target)

    def train(path):
        return bs.train(workload, bs.Plan(batch_size=8, learning_rate=0.01, iterations=30, shape="linear"),
                        evaluate_every=40, checkpoint=path, checkpoint_every_seconds=0)

    def said(result):
        return repr([(p.examples, p.training_loss, p.validation_loss) for p in result.curve] +
                    [result.outcome] + [v.tolist() for v in result.state.values()])

    torch.set_num_threads(1)
    workload = bs.Workload(
        model=lambda: torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)),
        train=(x[:45], y[:45]), validation=(x[45:], y[45:]), loss=loss,
        optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr), learning_rate=0.01, batch_size=8)
    unbroken = said(train(sys.argv[1] + "-whole"))
    updates, child = 0, os.fork()
    if child == 0:
        kill_at = 18
        train(sys.argv[1])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    finished = said(train(sys.argv[1]))
    print(updates, finished == unbroken, "finished" in finished)
"""


def test_a_run_killed_with_sigkill_goes_on_where_it_was_saved_last(tmp_path: Path) -> None:
    assert script(KILLED, tmp_path / "c").split() == ["15", "True", "True"]


def test_train_takes_a_checkpoint(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    first = train(make(), plan_of(), checkpoint=str(path))
    assert path.exists()
    second = train(make(), plan_of(), checkpoint=path)
    assert second.step_seconds == first.step_seconds
    assert second.total_seconds > first.step_seconds

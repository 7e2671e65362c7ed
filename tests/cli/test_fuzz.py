"""Argument vectors of nonsense: the command answers with an exit status and one message, whatever it is given."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchscope.errors import RunError
from batchscope.records import Plan, TrainResult
from batchscope.report import page
from batchscope.training import train
from batchscope.workload import Workload, load_workload

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def canned() -> TrainResult:
    workload = load_workload("quadratic")
    return replace(train(workload, Plan(batch_size=32, learning_rate=0.1, iterations=4)), state=None)


class Engine(contextlib.nullcontext[None]):
    """Runs nothing."""

    workers = 1


class Idle:
    """Drives nothing, and is content."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, stop: Any) -> bool:
        return True

    def results(self) -> list[Any]:
        return []

    def trained_as(self, batch_size: int) -> str:
        return ""


@pytest.fixture
def harmless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, canned: TrainResult) -> Iterator[Path]:
    """Everything is real, but a run ends at once, there are few seeds, the page is empty, and no file is far away."""

    class Run:
        def __init__(self, prepared: Any, plan: Plan, *, seed: int, **options: Any) -> None:
            self.result = replace(canned, plan=plan, seed=seed)

        def __call__(self) -> TrainResult:
            return self.result

    quadratic = load_workload("quadratic")

    def load(name: str, **options: Any) -> Workload:
        return quadratic if name == "quadratic" else load_workload(name, **options)

    # Not by name: each package has a function of its module's name.
    comparing = importlib.import_module("batchscope.study.compare")
    training = importlib.import_module("batchscope.training.train")
    monkeypatch.setattr(comparing, "Run", Run)
    monkeypatch.setattr("batchscope.study.arguments.MOST_SEEDS", 5)
    monkeypatch.setattr(training, "Run", Run)
    sweeping = importlib.import_module("batchscope.study.sweep")
    monkeypatch.setattr(sweeping, "_engine", lambda *_, **__: Engine())
    monkeypatch.setattr(sweeping, "Driver", Idle)
    monkeypatch.setattr(sweeping, "_timed", lambda *_: None)

    def ended(*_: Any, **__: Any) -> Any:
        raise RunError("the machine must hold still", got="a test")

    # Where measuring begins, with all arguments read.
    for name, begins in (
        ("batchscope.search.study", "find_memory"),
        ("batchscope.folklore.claims", "ExperimentRunner"),
        ("batchscope.folklore.papers.study", "Bench"),
    ):
        monkeypatch.setattr(importlib.import_module(name), begins, ended)
    monkeypatch.setattr("batchscope.workload.load_workload", load)
    monkeypatch.setattr(page, "render", lambda record: "<!doctype html>")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()], "something half-written was left"


# No slash, so that everything stays in the folder.
text = st.text(st.characters(exclude_characters="/~", exclude_categories=["Cs"]), max_size=8)
number = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([10**9, 2**63, 10**40, -(2**64)]),
    st.floats(),
    st.sampled_from(["1e400", "0x10", "١٢", "1_0", "+5", "-0", "1.", " 7"]),
).map(str)
good_pair = st.sampled_from(["8x16", "16x8", "32x4", "64x2", "8X16", "8×16", "008x016"])
pair = st.one_of(
    st.tuples(st.integers(1, 64), st.integers(1, 64)).map("{0[0]}x{0[1]}".format),
    st.sampled_from(["8x16", "16x8", "32x4", "8X16", "8×16", "8x", "x", "8x16x", "-8x16", "0x0", "८x१६", "8 x 16"]),
    st.tuples(number, number).map("x".join),
)
names = st.sampled_from(["quadratic"] * 12 + ["digit", "lines.py:line", "lines.py", "none.py:a", "os:name", ":", ""])
places = st.sampled_from(["a.json", "a.json", "b", "c/d.html", ".", "..", "", "a" * 300, "lines.py", "lines.py/x"])
VALUES: dict[str, st.SearchStrategy[str]] = {
    "--seeds": number,
    "--seed": number,
    "--learning-rate": st.one_of(st.sampled_from(["search", "rescaled", "fixed"] * 3 + ["0.1"]), number),
    "--shape": st.sampled_from(["linear", "constant", "round", ""]),
    "--order": st.sampled_from(["shuffled", "replacement", "stratified", "bucketed", "x"]),
    "--micro-batch-size": number,
    "--evaluate-every": number,
    "--store": st.sampled_from(["store", "store", "lines.py", ""]),
    "--data": text,
    "--load-timeout": number,
    "--workers": number,
    "--device": st.one_of(st.sampled_from(["cpu", "cuda", "cuda:7", "cpu:0", "meta", "mps", ""]), text),
    "--json": places,
    "--report": places,
    "--batch-size": number,
    "--iterations": number,
    "--examples": number,
    "--target": number,
    "--patience": number,
    "--tolerance": number,
    "--checkpoint": places,
    "--weights": places,
    "--batch-sizes": st.one_of(st.sampled_from(["8,16", "8", "", ",", "8,8", "8;16", "1e1"]), number),
    "--learning-rates": st.one_of(st.sampled_from(["search", "0.1,0.2", "0.1,0.1", ",", "-1", "nan"]), number),
    "--engine": st.sampled_from(["local", "local", "cloud", ""]),
    "--address": st.sampled_from(["auto", ""]),
    "--processes": number,
    "--timeout": number,
    "--seconds": number,
    "--budget": number,
    "--max-memory": st.one_of(st.sampled_from(["8GiB", "512 MB", "1e3", "-1GiB", "8XB", "", "GiB"]), number),
    "--devices": number,
    "--network": st.one_of(st.sampled_from(["12,20", "12", "0,0", "-1,2", "nan,1", "a,b", ",", ""]), number),
    "--only": st.sampled_from(["sharper-minima", "start-at-32", "flat-earth", ""]),
    "--paper": st.sampled_from(["shallue2019", "smith2017", "newton1687", ""]),
}
flag = st.sampled_from(["--quiet", "--allow-unequal", "--version", "--help", "--", "-", "--nonsense", "-x", "--seeds="])
COMPARE = (
    "--learning-rate",
    "--shape",
    "--order",
    "--seeds",
    "--seed",
    "--micro-batch-size",
    "--evaluate-every",
    "--store",
    "--workers",
    "--device",
    "--json",
)
TRAIN = (
    "--batch-size",
    "--iterations",
    "--examples",
    "--target",
    "--patience",
    "--tolerance",
    "--checkpoint",
    "--weights",
)

SWEEP = (
    "--batch-sizes",
    "--learning-rates",
    "--seeds",
    "--seed",
    "--target",
    "--examples",
    "--shape",
    "--order",
    "--evaluate-every",
    "--store",
    "--engine",
    "--address",
    "--processes",
    "--timeout",
    "--device",
    "--json",
)

ADVISE = (
    "--target",
    "--examples",
    "--seconds",
    "--budget",
    "--max-memory",
    "--batch-sizes",
    "--devices",
    "--network",
    "--workers",
    "--seed",
    "--device",
    "--json",
    "--report",
)
CLAIMS = ("--only", "--paper", "--seeds", "--seed", "--budget", "--data", "--workers", "--device", "--json", "--report")


def options(known: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    one = st.sampled_from(known).flatmap(lambda name: VALUES[name].map(lambda value: f"{name}={value}"))
    return st.lists(one, max_size=4)


@st.composite
def compares(draw: st.DrawFn) -> list[str]:
    """What looks like a comparison."""
    given = [draw(names), *draw(st.one_of(st.lists(good_pair, min_size=1, max_size=3), st.lists(pair, max_size=3)))]
    more = draw(st.sampled_from([[], [], ["--allow-unequal"], ["--quiet"]]))
    return ["compare", *given, *draw(options(COMPARE)), *more]


@st.composite
def trains(draw: st.DrawFn) -> list[str]:
    """What looks like a training run."""
    return ["train", draw(names), *draw(options(TRAIN)), *draw(options(tuple(VALUES)))]


@st.composite
def sweeps(draw: st.DrawFn) -> list[str]:
    """What looks like a sweep."""
    goal = draw(st.sampled_from([["--target=0.5"], ["--examples=100"], ["--target=-1", "--examples=64"], []]))
    return ["sweep", draw(names), *goal, *draw(options(SWEEP)), *draw(st.sampled_from([[], [], ["--no-prune"]]))]


@st.composite
def questions(draw: st.DrawFn) -> list[str]:
    """What looks like asking for advice, or whether claims hold."""
    if draw(st.booleans()):
        goal = draw(st.sampled_from([["--target=0.5"], ["--examples=1000"], ["--seconds=2"], []]))
        return ["advise", draw(names), *goal, *draw(options(ADVISE))]
    subject = draw(st.sampled_from([["--paper=shallue2019"], [], []])) or [draw(names)]
    return ["claims", *subject, *draw(options(CLAIMS))]


anything = st.lists(st.one_of(text, pair, names, flag, st.sampled_from(sorted(VALUES)), number), max_size=8)
verbs = ["compare", "train", "sweep", "advise", "claims", "fit", "export", "report", "workloads", "nonsense", ""]
verb = st.sampled_from(verbs)
nonsense = st.tuples(verb, anything).map(lambda both: [both[0], *both[1]])


def answer(command: Command, file: Path, arguments: list[str]) -> None:
    said = command(*arguments)
    assert said.status in (0, 1, 2), said
    assert "Traceback" not in said.err
    # What was not foreseen is caught at the last moment and called a failed run; here no argument should get so far.
    assert "The run failed" not in said.err, said.err
    assert said.status != 2 or said.err
    assert file.exists()


bounded = settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@bounded
@given(arguments=compares())
def test_comparisons(command: Command, harmless: Path, file: Path, arguments: list[str]) -> None:
    answer(command, file, arguments)


@bounded
@given(arguments=trains())
def test_training_runs(command: Command, harmless: Path, file: Path, arguments: list[str]) -> None:
    answer(command, file, arguments)


@bounded
@given(arguments=sweeps())
def test_sweeps(command: Command, harmless: Path, file: Path, arguments: list[str]) -> None:
    answer(command, file, arguments)


@bounded
@given(arguments=questions())
def test_questions(command: Command, harmless: Path, file: Path, arguments: list[str]) -> None:
    answer(command, file, arguments)


@bounded
@given(arguments=nonsense)
def test_nonsense(command: Command, harmless: Path, file: Path, arguments: list[str]) -> None:
    answer(command, file, arguments)


@bounded
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)), name=text)
def test_records_of_nonsense(command: Command, harmless: Path, file: Path, content: bytes, name: str) -> None:
    path = harmless / "record.json"
    path.write_bytes(content)
    for arguments in (["report", str(path)], ["report", f"./{name}"], ["report", str(path), "--report", f"./{name}"]):
        said = command(*arguments)
        assert said.status == 2
        assert "Traceback" not in said.err


def test_what_is_harmless_is_real_in_everything_else(command: Command, harmless: Path, file: Path) -> None:
    """The fuzz reaches the end of a comparison and of a training run, where the arguments are good."""
    said = command("compare", "lines.py:line", "8x16", "16x8", "--seeds", "2", "--json", "a.json", "--report", "b.html")
    assert said.status == 0, said
    assert "Wrote b.html" in said.out
    assert (harmless / "a.json").exists()
    assert command("train", "lines.py:line", "--iterations", "9").status == 0
    assert command("compare", "lines.py:line", "8x16", "--seeds", "6").status == 2
    for asked in (
        ("advise", "quadratic", "--target", "-0.1"),
        ("claims", "quadratic"),
        ("claims", "--paper", "smith2017"),
    ):
        said = command(*asked)
        assert (said.status, "the machine must hold still" in said.err) == (1, True), said

"""The command: every verb, its files, its exit statuses and its messages."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import batchscope.study
import batchscope.training
from batchscope import progress
from batchscope.records import Comparison, Plan, TrainResult, load

Command = Callable[..., Any]
Refused = Callable[..., None]

QUICK = ("8x16", "32x4", "--seeds", "2", "--learning-rate", "fixed")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be trained."""

    def train(*arguments: object, **options: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(batchscope.study, "compare", train)
    monkeypatch.setattr(batchscope.training, "train", train)


# The verbs


def test_compare_prints_the_answer_and_writes_it(command: Command, file: Path, tmp_path: Path) -> None:
    record, page = tmp_path / "deep" / "r.json", tmp_path / "r.html"
    said = command("compare", f"{file}:line", *QUICK, "--json", record, "--report", page)
    assert said.status == 0, said.err
    answer = load(record)
    assert isinstance(answer, Comparison)
    assert [(row.batch_size, row.iterations, row.finished) for row in answer.rows] == [(8, 16, 2), (32, 4, 2)]
    assert answer.learning_rate == "fixed"
    assert "For the same 128 examples, batch 8 × 16 updates" in " ".join(said.out.split())
    assert said.out.endswith(f"Wrote {record}\nWrote {page}\n")
    assert page.read_text().lower().startswith("<!doctype html>")
    lines = said.err.strip().splitlines()
    assert lines[0].startswith("comparing   0%  batch 8 × 16, seed 1/2  score ")
    assert lines[-1].startswith("comparing 100%  batch 32 × 4, seed 2/2  score ")
    assert "\x1b" not in said.err + said.out


def test_every_option_of_compare_reaches_the_library(
    command: Command, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, Any] = {}

    def compare(workload: Any, pairs: Any, **options: Any) -> None:
        got.update(options, workload=workload.title, pairs=pairs)
        raise KeyboardInterrupt

    monkeypatch.setattr(batchscope.study, "compare", compare)
    said = command(
        *("compare", f"{file}:line", "16X20", "32×10", "64*5", "--seeds", 3, "--learning-rate", "rescaled"),
        *("--shape", "constant", "--order", "replacement", "--micro-batch-size", 8, "--evaluate-every", 40),
        *("--allow-unequal", "--store", tmp_path / "s", "--workers", 0, "--seed", 7, "--device", "cpu", "--quiet"),
    )
    assert (said.status, said.err, said.out) == (130, "batchscope: Interrupted.\n", "")
    assert got == {
        "workload": "line",
        "pairs": [(16, 20), (32, 10), (64, 5)],
        "seeds": 3,
        "learning_rate": "rescaled",
        "shape": "constant",
        "order": "replacement",
        "micro_batch_size": 8,
        "evaluate_every": 40,
        "allow_unequal": True,
        "store": tmp_path / "s",
        "seed": 7,
        "device": "cpu",
        "workers": 0,
        "progress": False,
    }


def test_quiet_prints_nothing(command: Command, file: Path, tmp_path: Path) -> None:
    said = command("compare", f"{file}:line", *QUICK, "--quiet", "--json", tmp_path / "r.json")
    assert (said.status, said.out, said.err) == (0, "", "")
    again = command("report", tmp_path / "r.json", "--quiet")
    assert (again.status, again.out, again.err) == (0, "", "")
    assert (tmp_path / "r.html").exists()


def test_train_writes_its_record_its_weights_and_its_checkpoint(command: Command, file: Path, tmp_path: Path) -> None:
    options = (
        "--iterations",
        20,
        "--batch-size",
        8,
        "--learning-rate",
        0.05,
        "--shape",
        "linear",
        "--order",
        "shuffled",
    )
    paths = {name: tmp_path / name for name in ("r.json", "w.safetensors", "c.safetensors")}
    said = command(
        *("train", f"{file}:line", *options, "--json", paths["r.json"]),
        *("--weights", paths["w.safetensors"], "--checkpoint", paths["c.safetensors"]),
    )
    assert said.status == 0, said.err
    result = load(paths["r.json"])
    assert isinstance(result, TrainResult)
    assert result.plan == Plan(batch_size=8, learning_rate=0.05, iterations=20, shape="linear", warmup_examples=0)
    assert (result.outcome, result.examples) == ("finished", 160)
    from safetensors.torch import load_file

    assert {key: tuple(value.shape) for key, value in load_file(paths["w.safetensors"]).items()} == {
        "weight": (2, 4),
        "bias": (2,),
    }
    again = command(
        "train", f"{file}:line", *options, "--checkpoint", paths["c.safetensors"], "--json", paths["r.json"]
    )
    assert again.status == 0
    resumed = load(paths["r.json"])
    assert isinstance(resumed, TrainResult)
    assert resumed.curve == result.curve


def test_train_takes_the_workloads_own_settings(command: Command, file: Path, tmp_path: Path) -> None:
    said = command("train", f"{file}:line", "--examples", 64, "--json", tmp_path / "r.json", "--quiet")
    assert said.status == 0
    result = load(tmp_path / "r.json")
    assert isinstance(result, TrainResult)
    assert result.plan == Plan(batch_size=16, learning_rate=0.1, examples=64, shape="constant", warmup_examples=0)


def test_train_stops_at_its_target(command: Command, file: Path, tmp_path: Path) -> None:
    said = command("train", f"{file}:line", "--target", -0.05, "--evaluate-every", 64, "--json", tmp_path / "r.json")
    assert said.status == 0
    result = load(tmp_path / "r.json")
    assert isinstance(result, TrainResult)
    assert result.reached
    assert result.curve[-1].score >= -0.05 > result.curve[-2].score


def test_workloads_are_listed(command: Command) -> None:
    said = command("workloads")
    assert said.status == 0
    for name in ("digits", "fashion", "cifar10", "text", "quadratic", "1,437", "9,610", "scikit-learn"):
        assert name in said.out


def test_a_record_is_shown_again_without_torch(command: Command, file: Path, tmp_path: Path) -> None:
    record = tmp_path / "r.json"
    first = command("compare", f"{file}:line", *QUICK, "--json", record)
    before = record.read_bytes()
    script = f"""
        import sys
        from batchscope.cli import app
        try:
            app(["report", {str(record)!r}])
        except SystemExit as exit:
            assert not exit.code, exit.code
        heavy = sorted({{"torch", "sklearn"}} & set(sys.modules))
        assert not heavy, heavy
    """
    shown = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert shown.stdout.splitlines()[:-1] == first.out.splitlines()[:-1]  # the last line names the file written
    assert shown.stdout.endswith(f"Wrote {tmp_path / 'r.html'}\n")
    assert record.read_bytes() == before
    page = (tmp_path / "r.html").read_text()
    answer = load(record)
    assert isinstance(answer, Comparison)
    assert "line" in page
    assert re.search("128 examples", page)


def test_a_saved_training_run_is_shown_again(command: Command, file: Path, tmp_path: Path) -> None:
    command("train", f"{file}:line", "--iterations", 4, "--json", tmp_path / "r.json", "--quiet")
    said = command("report", tmp_path / "r.json", "--report", tmp_path / "other.html")
    assert said.status == 0, said.err
    assert f"Wrote {tmp_path / 'other.html'}" in said.out
    assert not (tmp_path / "r.html").exists()


def test_report_replaces_its_own_page_and_no_other_file(command: Command, tmp_path: Path, refused: Refused) -> None:
    record, page = Plan(batch_size=8, learning_rate=1.0, iterations=3).to_json(tmp_path / "r.json"), tmp_path / "r.html"
    assert command("report", record, "--quiet").status == 0
    assert command("report", record, "--quiet").status == 0  # its own
    page.write_text("<html>Mine.</html>", encoding="utf-8")
    refused(command("report", record), "no file that batchscope did not make", "--force")
    assert page.read_text(encoding="utf-8") == "<html>Mine.</html>"
    assert command("report", record, "--report", tmp_path / "other.html", "--quiet").status == 0
    assert command("report", record, "--force", "--quiet").status == 0
    assert "generator" in page.read_text(encoding="utf-8")


def test_the_program_is_the_module_and_the_module_the_program(program: Command, tmp_path: Path) -> None:
    """One real run from outside: progress is plain lines where stderr is no terminal."""
    import importlib.metadata

    assert program("--version").out == importlib.metadata.version("batchscope") + "\n"
    entry = Path(sys.executable).with_name("batchscope")
    done = subprocess.run([entry, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == importlib.metadata.version("batchscope") + "\n"
    said = program("compare", "quadratic", "8x32", "16x16", "--seeds", 1, "--json", tmp_path / "r.json")
    assert said.status == 0, said.err
    assert said.err.splitlines()[0].startswith("comparing   0%  searching, batch 8  score ")
    assert "100%" in said.err.splitlines()[-1]
    assert "\x1b" not in said.err + said.out
    assert len((answer := json.loads((tmp_path / "r.json").read_text()))["searches"]) == 2
    assert answer["record"] == "comparison"


def test_help_costs_no_torch() -> None:
    script = "import sys, batchscope.cli as c\ntry: c.app(['compare', '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", script + "assert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for option in ("--seeds", "--learning-rate", "--shape", "--store", "--allow-unequal", "--json", "--report"):
        assert option in done.stdout


def test_without_a_verb_the_help_is_shown(command: Command) -> None:
    said = command()
    assert said.status == 2
    for verb in ("compare", "train", "workloads", "report"):
        assert verb in said.out + said.err


# Exit statuses and messages


def test_where_no_run_finished_the_run_failed(command: Command, file: Path, tmp_path: Path) -> None:
    said = command("compare", f"{file}:wild", "8x100", "16x50", *QUICK[2:], "--json", tmp_path / "r.json")
    assert said.status == 1
    assert "No run finished in order" in said.out
    assert isinstance(load(tmp_path / "r.json"), Comparison)  # what happened is kept all the same
    assert command("train", f"{file}:wild", "--iterations", 100, "--quiet").status == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("8x16", "32x5"), "Try 8x20 32x5, or allow it with --allow-unequal."),
        (("8x16", "8x16"), "8x16 twice"),
        (("128x1",), "128 > 64 examples of line. The full batch is 64."),
        (("0x16",), "got 0"),
        (("8x0",), "got 0"),
        (("8",), "got 8. Write it as in 16x2000."),
        (("8x16x4",), "got 8x16x4"),
        (("8,16",), "got 8,16"),
        (("x16",), "got x16"),
        (("8x1.5",), "got 8x1.5"),
        (("8x" + "9" * 30,), "a pair is BATCHxITERATIONS"),
        (("8x16", "--seeds", "0"), "seeds must be at least 1"),
        (("8x16", "--seeds", "99999999999"), "at most 10,000"),
        (("8x16", "--seed", "-1"), "seed must be a whole number of at least 0"),
        (("8x16", "--evaluate-every", "0"), "evaluate_every must be a whole number"),
        (("8x16", "--micro-batch-size", "-1"), "micro_batch_size must be a whole number"),
        (("8x16", "--workers", "-1"), "workers must be a whole number"),
        (("8x16", "--device", "abacus"), "device must be one that torch can use here; got abacus"),
        (("8x16", "--order", "stratified"), "needs one whole number for each example as its class"),
        (("8x16", "--data", "somewhere"), "--data is for built-in workloads"),
    ],
)
def test_wrong_arguments_are_refused_in_one_message(
    command: Command, file: Path, refused: Refused, arguments: tuple[str, ...], part: str
) -> None:
    refused(command("compare", f"{file}:line", *arguments), part)


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare",),
        ("compare", "digits"),
        ("compare", "digits", "8x8", "--seeds", "many"),
        ("compare", "digits", "8x8", "--learning-rate", "guess"),
        ("compare", "digits", "8x8", "--nonsense"),
        ("train", "digits", "--batch-size", "1.5"),
        ("nonsense",),
        ("report",),
    ],
)
def test_what_cannot_be_parsed_is_refused(command: Command, arguments: tuple[str, ...]) -> None:
    said = command(*arguments)
    assert said.status == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    assert "Error" in said.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "a plan needs a budget"),
        (("--iterations", 4, "--examples", 4), "either iterations or examples"),
        (("--iterations", 4, "--learning-rate", -1), "learning_rate must be above 0"),
        (("--iterations", 4, "--learning-rate", "nan"), "learning_rate must be a finite number"),
        (("--iterations", 4, "--batch-size", 65), "65 > 64"),
        (("--iterations", 4, "--patience", 1), "patience"),
        (("--target", "inf"), "target must be a finite number"),
        (("--target", "0.5", "--shape", "linear"), "needs to know where it ends"),
    ],
)
def test_wrong_plans_are_refused(
    command: Command, file: Path, refused: Refused, arguments: tuple[object, ...], part: str
) -> None:
    refused(command("train", f"{file}:line", *arguments), part)


def test_a_traceback_only_for_debugging(command: Command, file: Path) -> None:
    plain = command("compare", f"{file}:line", "8x16", "--device", "abacus")
    debugged = command("compare", f"{file}:line", "8x16", "--device", "abacus", "--debug")
    assert plain.status == debugged.status == 2
    assert "Traceback" not in plain.err
    assert debugged.err.startswith("Traceback (most recent call last)")
    assert debugged.err.endswith(plain.err)


def test_an_error_in_the_persons_own_code_while_training(command: Command, tmp_path: Path, file: Path) -> None:
    more = """
class Broken(nn.Linear):
    def forward(self, x):
        if self.training and len(x) > 30:
            raise ValueError("no more than 30, please")
        return super().forward(x)
broken = make(model=lambda: Broken(4, 2))
"""
    file.write_text(file.read_text() + more)
    said = command("compare", f"{file}:broken", "32x4", *QUICK[2:], "--quiet")
    assert said.status == 1
    assert said.err == (
        "batchscope: The run failed: ValueError: no more than 30, please. Run it with --debug to see where.\n"
    )
    debugged = command("compare", f"{file}:broken", "32x4", *QUICK[2:], "--quiet", "--debug")
    assert 'raise ValueError("no more than 30, please")' in debugged.err


def test_ctrl_c_in_a_training_run_keeps_what_was_finished(command: Command, tmp_path: Path, file: Path) -> None:
    more = """
import signal
calls = []
def score(output, target):
    calls.append(1)
    if len(calls) == 6:
        signal.raise_signal(signal.SIGINT)
    return -float((output - target).square().mean())
stopped = make(score=score)
"""
    file.write_text(file.read_text() + more)
    said = command(
        "train", f"{file}:stopped", "--iterations", 400, "--evaluate-every", 16, "--json", tmp_path / "r.json"
    )
    assert said.status == 130
    assert said.err.endswith("batchscope: Interrupted; finished results are kept.\n")
    result = load(tmp_path / "r.json")
    assert isinstance(result, TrainResult)
    assert result.outcome == "interrupted"
    assert 0 < result.iterations < 400
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "a record must be a file that can be read"),
        ("", "a record must be JSON"),
        ("{", "a record must be JSON"),
        ("[]", "a record must name its kind"),
        ('{"record": "letter"}', "a record must name its kind"),
        ('{"record": "plan", "schema": 99}', "this release reads plan records of schema 1"),
        ('{"record": "plan", "schema": 1, "batch_size": "8"}', "must hold"),
    ],
)
def test_what_is_no_record_is_refused(
    command: Command, tmp_path: Path, refused: Refused, content: str | None, part: str
) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    refused(command("report", path), part, path)
    assert not (tmp_path / "r.html").exists()


# Places that cannot be written


@pytest.mark.parametrize("place", ["folder", "file/below.json", "file/far/below.json", "a" * 250, "b" * 300 + "/r", ""])
@pytest.mark.usefixtures("untrained")
def test_a_place_that_cannot_be_written_is_refused_before_training(
    command: Command, tmp_path: Path, refused: Refused, file: Path, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for option in ("--json", "--report"):
        said = command("compare", f"{file}:line", *QUICK, option, tmp_path / place)
        refused(said, "a result must go to a file", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("untrained")
def test_a_file_system_without_files_is_refused_before_training(command: Command, refused: Refused, file: Path) -> None:
    refused(command("compare", f"{file}:line", *QUICK, "--json", "/proc/r.json"), "/proc/r.json")
    refused(command("train", f"{file}:line", "--iterations", 3, "--weights", "/proc/w"), "/proc/w")
    refused(command("train", f"{file}:line", "--iterations", 3, "--checkpoint", "/proc/w"), "/proc/w")


@pytest.mark.usefixtures("untrained")
def test_two_results_in_one_file_are_refused(command: Command, tmp_path: Path, refused: Refused, file: Path) -> None:
    path = tmp_path / "r"
    refused(command("compare", f"{file}:line", *QUICK, "--json", path, "--report", path), "a file of its own")
    same = tmp_path / "." / "x" / ".." / "r"
    refused(command("train", f"{file}:line", "--iterations", 3, "--json", path, "--weights", same), "a file of its own")
    Plan(batch_size=8, learning_rate=1.0, iterations=3).to_json(tmp_path / "p.html")
    before = (tmp_path / "p.html").read_bytes()
    refused(command("report", tmp_path / "p.html"), "a file of its own")
    assert (tmp_path / "p.html").read_bytes() == before


def test_a_store_that_is_a_file_is_refused(command: Command, tmp_path: Path, refused: Refused, file: Path) -> None:
    (tmp_path / "s").write_text("mine")
    said = command("compare", f"{file}:line", *QUICK, "--store", tmp_path / "s")
    refused(said, "a comparison's store is a folder", status=1)
    assert (tmp_path / "s").read_text() == "mine"


@pytest.mark.parametrize("quiet", [True, False])
def test_a_full_disk_after_training(command: Command, tmp_path: Path, file: Path, quiet: bool) -> None:
    """No file may grow beyond 2,000 bytes: the record fits nowhere, and is printed at least."""
    record, page = tmp_path / "out" / "r.json", tmp_path / "out" / "r.html"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = ["compare", f"{file}:line", *QUICK, "--json", record, "--report", page, *["--quiet"] * quiet]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        said = command(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said.status == 1
    messages = [line for line in said.err.splitlines() if line.startswith("batchscope: ")]
    assert len(messages) == 2
    for path in (record, page):
        assert any(
            "must be written to a place with room" in line and f"got {path} (File too large)" in line
            for line in messages
        )
    assert "Traceback" not in said.err
    assert list(tmp_path.rglob("*.json")) + list(tmp_path.rglob("*.html")) + list((tmp_path / "out").iterdir()) == []
    assert "For the same 128 examples" in said.out
    assert "Wrote" not in said.out


def test_a_place_that_goes_away_while_training(
    command: Command, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is kept elsewhere, and the page, which had another place, is written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    more = f"""
from pathlib import Path
def score(output, target):
    Path({str(tmp_path / "gone")!r}).write_text("a file by now")
    return -float((output - target).square().mean())
vandal = make(score=score)
"""
    file.write_text(file.read_text() + more)
    wanted, page = tmp_path / "gone" / "r.json", tmp_path / "r.html"
    said = command("compare", f"{file}:vandal", *QUICK, "--json", wanted, "--report", page)
    assert said.status == 1
    match = re.search(
        rf"batchscope: The record could not be written to {wanted}; it was saved to (\S+) instead\.\n", said.err
    )
    assert match
    assert isinstance(load(match[1]), Comparison)
    assert page.exists()
    assert said.err.rstrip().endswith("Free some room, or name another path.")


def test_a_reader_that_goes_away_is_no_failure(command: Command, file: Path, tmp_path: Path) -> None:
    command("compare", f"{file}:line", *QUICK, "--quiet", "--json", tmp_path / "r.json")
    child = subprocess.Popen(
        [sys.executable, "-m", "batchscope", "report", str(tmp_path / "r.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(60) == 0
    assert (tmp_path / "r.html").exists()


def test_a_terminal_without_our_characters_shows_what_it_can(command: Command, file: Path, tmp_path: Path) -> None:
    command("compare", f"{file}:line", *QUICK, "--quiet", "--json", tmp_path / "r.json")
    done = subprocess.run(
        [sys.executable, "-m", "batchscope", "report", str(tmp_path / "r.json")],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "batch 8 ? 16 updates" in " ".join(done.stdout.split())


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def event(done: int, task: str = "comparing", seconds_left: float | None = None) -> progress.ProgressEvent:
    return progress.ProgressEvent(task, "batch 8", done, 100, 0.5, 0.1, seconds_left)


def tell(report: progress.Report, done: int, seconds_left: float | None = None) -> None:
    report.update(label="batch 8", done=done, total=100, score=0.5, learning_rate=0.1, seconds_left=seconds_left)


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress.reporter(True, "comparing") as report:
        for done in range(100):
            tell(report, done, seconds_left=100.0 - done)
            now[0] += 1
        tell(report, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "comparing   0%  batch 8  score 0.5  rate 0.1  1:40 min left"
    assert lines[1] == "comparing   5%  batch 8  score 0.5  rate 0.1  1:35 min left"
    assert lines[-1] == "comparing 100%  batch 8  score 0.5  rate 0.1"
    assert len(lines) == 21


def test_a_terminal_has_one_line_that_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.reporter(True, "comparing") as report:
        for done in (0, 50, 100):
            tell(report, done, seconds_left=7200.0)
    assert "\x1b[" in screen.getvalue()
    assert "comparing" in screen.getvalue()
    assert "2:00 h left" in screen.getvalue()


def test_a_listener_is_told_everything_and_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[progress.ProgressEvent] = []
    with progress.reporter(heard.append, "comparing") as report:
        tell(report, 1)
        tell(report, 2)
    with progress.reporter(False, "comparing") as report:
        tell(report, 3)
    assert heard == [event(1), event(2)]
    assert capsys.readouterr().err == ""

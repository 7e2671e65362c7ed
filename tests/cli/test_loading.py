"""Workload files that are wrong in every way: exit status 2 and one message that names the file and the line."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchscope.errors import ArgumentError, WorkloadError
from batchscope.workload import load_workload

Command = Callable[..., Any]
Refused = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(source: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(source).lstrip("\n"))
        return path

    return write


@pytest.fixture
def compare(command: Command) -> Command:
    """Compare two tiny pairs of a workload."""
    return lambda name, *more: command("compare", name, "8x2", "16x1", "--seeds", 1, "--learning-rate", "fixed", *more)


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("x = 1\nraise ValueError('no data today\\nand a second line')", (2, "ValueError: no data today (")),
        ("x = 1\n\nassert x == 2", (3, "AssertionError (")),
        ("def f(:\n    pass", (1, "SyntaxError: ")),
        ("x = 1\n  y = 2", (2, "SyntaxError: unexpected indent")),
        ("import sys\nsys.exit()", (2, "SystemExit")),
        ("import sys\nsys.exit('stop here')", (2, "SystemExit: stop here")),
        ("import sys\n\nsys.exit(0)", (3, "SystemExit: 0")),
        ("import os\nimport a_package_that_is_not_there", (2, "No module named 'a_package_that_is_not_there'")),
        ("from os import a_name_that_is_not_there", (1, "ImportError: cannot import name")),
        ("def f():\n    return 1 / 0\n\nf()", (2, "ZeroDivisionError: division by zero")),
        ("def f():\n    f()\nf()", (2, "RecursionError: maximum recursion depth exceeded")),
        ("import json\njson.loads('{')", (2, "JSONDecodeError")),  # raised in the library, caused in this line
        ("raise KeyError", (1, "KeyError")),
    ],
)
def test_a_file_that_fails(
    compare: Command, write: Callable[[str], Path], refused: Refused, source: str, where: tuple[int, str]
) -> None:
    line, part = where
    path = write(source)
    refused(compare(f"{path}:work"), part, f"{path}", f"line {line})")


WORKLOAD = """
import torch
from torch import nn
from batchscope import Workload
x = torch.ones(32, 2)
def make(**changes):
    given = dict(model=lambda: nn.Linear(2, 1), train=(x, x[:, :1]), validation=(x, x[:, :1]),
        loss=nn.functional.mse_loss, optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr), learning_rate=.1, batch_size=8)
    return Workload(**(given | changes))
def sleep():
    import time
    while True:
        time.sleep(0.01)
def spin():
    while True:
        pass
def stubborn():
    import time
    while True:
        try:
            time.sleep(10)
        except Exception:
            pass
class Deaf:
    def __del__(self):  # an exception in here is lost
        import time
        time.sleep(0.5)
"""


@pytest.mark.parametrize(
    ("last", "part"),
    [
        ("work = make(loss=lambda o, t: (o - t).square())", "the loss must be a scalar tensor; got "),
        ("work = make(loss=lambda o, t: o.mean() * float('nan'))", "the loss must be finite with fresh weights"),
        ("work = make(train=(x, x[:5]))", "the tensors in train must be of equal length"),
        ("work = make(batch_size=33)", "batch_size must be at most the number of training examples; got 33 > 32 ("),
        ("work = make(model=nn.Linear(2, 1))", "model must be a function that returns a fresh module"),
        ("work = make(model=lambda: 1 / 0)", "model() must return a module without arguments; got ZeroDivisionError"),
    ],
)
def test_a_workload_that_cannot_be_trained_is_found_in_its_file(
    compare: Command, write: Callable[[str], Path], refused: Refused, last: str, part: str
) -> None:
    path = write(f"{WORKLOAD}\n{last}\n")
    lines = path.read_text().splitlines()
    made = next(number for number, line in enumerate(lines, start=1) if line.startswith("    return Workload("))
    refused(compare(f"{path}:work"), part, f"({path}, line {made})")
    # The same where a function makes it.
    path = write(f"{WORKLOAD}\ndef work():\n    {last.replace('work = ', 'return ')}\n")
    refused(compare(f"{path}:work"), part, f"({path}, line {made})")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("last", "where"),
    [
        ("sleep()", "time.sleep(0.01)"),
        ("spin()", "    while True:"),
        ("stubborn()", "time.sleep(10)"),
        ("work = make(model=sleep)", "time.sleep(0.01)"),
        ("work = make(model=spin)", "    while True:"),
        ("def work():\n    sleep()", "time.sleep(0.01)"),
        ("class Work:\n    def __call__(self):\n        spin()\nwork = Work()", "    while True:"),
        ("Deaf()\nsleep()", "time.sleep(0.01)"),
    ],
)
def test_a_file_that_hangs(
    compare: Command, write: Callable[[str], Path], refused: Refused, last: str, where: str
) -> None:
    path = write(f"{WORKLOAD}\n{last}\n")
    began = time.monotonic()
    said = compare(f"{path}:work", "--load-timeout", 0.25)
    assert time.monotonic() - began < 10
    refused(said, f"{path}:work must load within 0.25 seconds", "no end of it", "--load-timeout")
    number = int(said.err.split(", line ")[1].split(")")[0])
    lines = path.read_text().splitlines()
    assert str(path) in said.err
    assert where.strip() in lines[number - 1] or lines[number - 1].strip() == "pass"


@pytest.mark.parametrize("limit", [0, -1, "nan", "inf", 1e300])
def test_a_time_limit_must_be_a_time(compare: Command, file: Path, refused: Refused, limit: object) -> None:
    refused(compare(f"{file}:line", "--load-timeout", limit), "the time limit must be above 0")
    refused(compare("quadratic", "--load-timeout", limit), "the time limit must be above 0")


def test_no_alarm_is_left_behind(file: Path) -> None:
    load_workload(f"{file}:line", timeout_seconds=5)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    with pytest.raises(WorkloadError):
        load_workload(f"{file}:nothing", timeout_seconds=5)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_at_any_moment_is_caught(write: Callable[[str], Path]) -> None:
    """The limit runs out before the file is read, while it is read, and about when it is done."""
    path = write("import time\ntime.sleep(0.002)\nwork = 3\n")
    said = set()
    for microseconds in (1e-300, *range(200, 6000, 50)):
        with pytest.raises(WorkloadError) as error:
            load_workload(f"{path}:work", timeout_seconds=microseconds / 1e6)
        said.add(str(error.value).split("; got ")[1][:3])
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert said == {"no ", "int"}  # too late, and in time


def test_somebody_elses_alarm_is_put_back(file: Path) -> None:
    """As test runners set one."""
    heard = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 100)
        load_workload(f"{file}:line", timeout_seconds=5)
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        signal.raise_signal(signal.SIGALRM)
        assert heard == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("work = 3", "must be a Workload, or a function without arguments that returns one; got int"),
        ("work = None", "got NoneType"),
        ("def work():\n    return 'text'", "got str"),
        ("def work():\n    pass", "got NoneType"),
        ("from batchscope import Workload as work", "work() must return a Workload; got TypeError"),
        ("def work(size):\n    return size", "work() must return a Workload; got TypeError"),
        ("class work:\n    pass", "got work"),
        ("def work():\n    raise OSError('no such data')", "work() must return a Workload; got OSError: no such data"),
        ("def work():\n    import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def work():\n    import sys\n    sys.exit(3)", "SystemExit: 3"),
        ("", "no 'work' there. Define a Workload under that name"),
    ],
)
def test_a_name_for_something_else(
    compare: Command, write: Callable[[str], Path], refused: Refused, source: str, part: str
) -> None:
    path = write(source)
    refused(compare(f"{path}:work"), part, f"{path}:work")


def test_a_function_that_fails_is_found_by_its_line(
    compare: Command, write: Callable[[str], Path], refused: Refused
) -> None:
    path = write("def helper():\n    raise OSError('no such data')\n\ndef work():\n    return helper()\n")
    refused(compare(f"{path}:work"), f"OSError: no such data ({path}, line 2)")


def test_the_names_that_are_there_are_told(compare: Command, file: Path, refused: Refused) -> None:
    refused(compare(f"{file}:lime"), "no 'lime' there. It has the workloads line, wild.")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("", "a workload is a built-in (digits, "),
        ("digit", "Did you mean digits?"),
        ("nonsense", "Check the name."),
        ("mine.py", "Put a colon between the file or module and the name."),
        ("mine.py:", "a workload is a built-in"),
        (":work", "a workload is a built-in"),
        (":", "a workload is a built-in"),
        ("nowhere.py:work", "the workload's file must exist; got nowhere.py"),
        ("a_package_that_is_not_there:work", "must be a module that can be imported; got No module named"),
        ("os.nothing:work", "must be a module that can be imported; got No module named 'os.nothing'"),
        ("..relative:work", "must import without an error; got TypeError"),
        ("os:getcwd", "os:getcwd must be a Workload"),
        ("os:nothing", "no 'nothing' there"),
        ("json:dumps", "json:dumps() must return a Workload; got TypeError"),
        ("file\0name.py:x", "file\0name.py"),
        (".py:x", "the workload's file must exist"),
    ],
)
def test_a_name_that_names_nothing(
    compare: Command, refused: Refused, monkeypatch: pytest.MonkeyPatch, name: str, part: str
) -> None:
    monkeypatch.chdir("/")
    refused(compare(name), part)


def test_what_is_no_python_file(compare: Command, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    refused(compare(f"{tmp_path / 'folder.py'}:work"), "must exist")
    for content in (b"\xff\xfe\x00\x00", b"\0", b"# coding: nonsense\n"):
        path = tmp_path / "binary.py"
        path.write_bytes(content)
        refused(compare(f"{path}:work"), "must import without an error", path)


def test_garbage_that_a_file_prints_is_its_own_affair(compare: Command, file: Path, tmp_path: Path) -> None:
    file.write_text("import sys\nprint('\\x00\\x1b[31m☠')\nprint('noise', file=sys.stderr)\n" + file.read_text())
    said = compare(f"{file}:line", "--json", tmp_path / "r.json")
    assert said.status == 0
    assert "noise" in said.err
    assert (tmp_path / "r.json").exists()


def test_every_way_to_name_a_workload(
    command: Command, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_package_of_mine"
    (package / "deep").mkdir(parents=True)
    for folder in (package, package / "deep"):
        (folder / "__init__.py").touch()
    (package / "deep" / "work.py").write_text(file.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    names = [
        "lines.py:line",
        "./lines.py:make",
        f"{file}:line",
        "some_package_of_mine.deep.work:line",
        "some_package_of_mine.deep.work:make",
    ]
    for name in names:
        said = command("compare", name, "8x1", "--seeds", 1, "--learning-rate", "fixed")
        assert said.status == 0, said
        assert "line · rows: 1" in said.out


def test_a_package_that_fails_is_found_by_its_line(
    compare: Command, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a_module_of_mine.py"
    path.write_text("x = 1\n\nx.nothing\n")
    monkeypatch.chdir(tmp_path)
    refused(
        compare("a_module_of_mine:work"), f"AttributeError: 'int' object has no attribute 'nothing' ({path}, line 3)"
    )
    assert "a_module_of_mine" not in sys.modules


def test_a_neighbour_is_imported_and_its_mistakes_are_found_there(
    compare: Command, refused: Refused, tmp_path: Path, write: Callable[[str], Path]
) -> None:
    (tmp_path / "a_neighbour_of_mine.py").write_text("x = 1\ny = (\n")
    path = write("import a_neighbour_of_mine")
    refused(compare(f"{path}:work"), "SyntaxError", tmp_path / "a_neighbour_of_mine.py", "line 2)")


def test_two_files_of_one_name_do_not_meet(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lines.py").write_text(file.read_text().replace('name="line"', 'name="another"'))
    assert load_workload(f"{file}:line").title == "line"
    assert load_workload(f"{tmp_path / 'other' / 'lines.py'}:line").title == "another"
    assert load_workload(f"{file}:line").title == "line"


def test_a_file_is_read_again_when_it_has_changed(file: Path) -> None:
    assert load_workload(f"{file}:line").batch_size == 16
    file.write_text(file.read_text().replace("batch_size=16", "batch_size=8"))
    assert load_workload(f"{file}:line").batch_size == 8


def test_half_of_a_module_is_not_left_behind(write: Callable[[str], Path]) -> None:
    path = write("x = 1\nraise ValueError\n")
    before = set(sys.modules)
    with pytest.raises(WorkloadError):
        load_workload(f"{path}:work")
    assert {name for name in set(sys.modules) - before if name.startswith("mine")} == set()


def test_the_time_limit_of_the_library(file: Path) -> None:
    with pytest.raises(ArgumentError, match="above 0"):
        load_workload(f"{file}:line", timeout_seconds=0)

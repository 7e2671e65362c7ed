"""``batchscope doctor``, and what a shell is offered."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import batchscope as bs
from batchscope.cli.options import WORKLOADS
from batchscope.measure import doctor
from batchscope.provenance import available_cores
from batchscope.records import Diagnosis
from batchscope.workload.catalogue import BUILTINS

from .conftest import Command

ROOT = Path(__file__).parents[2]


def test_doctor_says_what_there_is(command: Command, tmp_path: Path) -> None:
    path, page = tmp_path / "d.json", tmp_path / "d.html"
    said = command("doctor", "--json", path, "--report", page)
    assert (said.status, said.err) == (0, "")
    found = bs.load(path)
    assert isinstance(found, Diagnosis)
    assert found.python == platform.python_version()
    assert found.cores == available_cores()
    assert found.threads == torch.get_num_threads()
    by_name = {package.name: package for package in found.packages}
    assert by_name["torch"].version == importlib.metadata.version("torch")
    assert not by_name["torch"].optional
    assert by_name["ray"].optional
    assert found.devices[0].name == "cpu"
    assert [data.workload for data in found.data] == list(BUILTINS)
    assert next(data for data in found.data if data.workload == "digits").available
    works = {check.what: check.works for check in found.checks}
    assert works["CUDA"] == torch.cuda.is_available()
    assert works["charts"]
    for part in (platform.python_version(), "Everything that batchscope needs is here", "to train in", "CUDA"):
        assert part in said.out
    assert "What works" in page.read_text(encoding="utf-8")
    assert command("doctor", "--quiet").out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux alone")
def test_a_fork_is_tried_and_memory_is_read() -> None:
    found = doctor.diagnose()
    assert found.checks[0].works == (not torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    cpu = found.devices[0]
    assert cpu.available_bytes is not None
    assert cpu.total_bytes is not None
    assert 0 < cpu.available_bytes <= cpu.total_bytes
    assert cpu.limit_source in ("control group", "process limit", "free memory")


def test_what_is_missing_or_broken_is_a_line_and_no_error(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> tuple[bool, str]:
        raise OSError("no such library")

    monkeypatch.setattr(doctor, "_chart", breaks)
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-package": ("nothing at all", "batchscope[nothing]")})
    said = command("doctor")
    assert said.status == 0
    assert "no: OSError: no such library" in said.out
    assert "pip install 'batchscope[nothing]'" in said.out
    assert "Optional packages not here: no-such-package." in said.out
    monkeypatch.setitem(doctor.NEEDED, "no-such-need", "everything")
    assert "Required packages are missing: no-such-need." in command("doctor").out


def test_packages_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [wanted.partition(">=")[0] for wanted in project["dependencies"]] == list(doctor.NEEDED)
    ours = ("dev", "bench", "docs")
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name not in ours}
    for name, (_, install) in doctor.OPTIONAL.items():
        extra = install.removeprefix("batchscope[").removesuffix("]")
        assert any(wanted.startswith(name) for wanted in extras[extra]), (name, install)
    assert {f"batchscope[{extra}]" for extra in extras} == {install for _, install in doctor.OPTIONAL.values()}


# Completion


def completed(words: str) -> list[str]:
    """What bash is offered for the last word, by the protocol of the script that --show-completion prints."""
    code = "import sys\nfrom batchscope.cli import main\ntry:\n main()\nfinally:\n assert 'torch' not in sys.modules"
    place = str(len(words.split(" ")) - 1)
    environment = {"_BATCHSCOPE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_shell_is_offered_verbs_workloads_and_options() -> None:
    assert completed("batchscope sh") == ["sharpness"]
    assert completed("batchscope train fash") == ["fashion", "fashion-mlp"]
    assert completed("batchscope claims ") == list(WORKLOADS)
    assert completed("batchscope train digits --batch") == ["--batch-size"]
    assert completed("batchscope train my/file.py") == []  # bash goes on to files


def test_the_names_offered_are_those_of_the_built_ins() -> None:
    assert list(BUILTINS) == list(WORKLOADS)


def test_the_completion_script_is_one_for_the_command(program: Command) -> None:
    said = program("--show-completion", "bash")
    assert said.status == 0
    assert "_BATCHSCOPE_COMPLETE=complete_bash" in said.out
    assert said.out.rstrip().endswith("_batchscope_completion batchscope")


def test_the_module_is_the_command(program: Command) -> None:
    said = program("doctor", "--json", os.devnull, "--quiet")
    assert (said.status, said.out, said.err) == (0, "", "")
    assert "Usage: batchscope" in program("--help").out
    assert program("--version").out.strip() == importlib.metadata.version("batchscope")

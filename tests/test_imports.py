"""The house's arrows: imports point one way, the surface is what it says, and asking for help costs no torch."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

import batchscope as bs

ROOT = Path(bs.__file__).parent

# A module imports from its own package and from those before it, never from a later one.
ORDER = (
    "errors",
    "records",
    "fit",
    "seeding",
    "workload",
    "progress",
    "provenance",
    "schedule",
    "training",
    "measure",
    "study",
    "search",
    "folklore",
    "report",
    "integrations",
    "cli",
    "__main__",
)
# ``record.table()`` and ``record.report()`` are offered on the records, and drawn by the report: inside the methods.
TURNS_BACK = {("records/base.py", "report")}


class Arrow(NamedTuple):
    """One import of a package of ours."""

    file: str
    line: int
    package: str
    in_function: bool

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}, imports {self.package or 'the surface'}"


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def unit_of(file: str) -> str:
    """The package or module of the house that a file belongs to."""
    return file.partition("/")[0].removesuffix(".py")


def names_of(node: ast.AST, file: str) -> list[str]:
    """The dotted names that an import statement imports from."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        package = ["batchscope", *Path(file).parent.parts]
        module = ".".join([*package[: len(package) + 1 - node.level], *([module] if module else [])])
    # ``from batchscope import study`` imports a package as ``from batchscope.study import …`` does.
    return [f"{module}.{alias.name}" for alias in node.names] if module == "batchscope" else [module]


def arrows_of(source: str, file: str) -> list[Arrow]:
    found = []

    def visit(node: ast.AST, in_function: bool) -> None:
        for name in names_of(node, file):
            top, _, rest = name.partition(".")
            if top == "batchscope":
                found.append(Arrow(file, node.lineno, rest.partition(".")[0], in_function))  # type: ignore[attr-defined]
        for child in ast.iter_child_nodes(node):
            visit(child, in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    visit(ast.parse(source), in_function=False)
    return found


def wrong(arrows: list[Arrow]) -> list[str]:
    return [
        str(arrow)
        for arrow in arrows
        if (arrow.file, arrow.package) not in TURNS_BACK
        and (arrow.package not in ORDER or ORDER.index(arrow.package) > ORDER.index(unit_of(arrow.file)))
    ]


def all_arrows() -> list[Arrow]:
    files = [(path, path.relative_to(ROOT).as_posix()) for path in modules()]
    return [a for path, file in files if file != "__init__.py" for a in arrows_of(path.read_text("utf-8"), file)]


def test_imports_point_one_way() -> None:
    assert wrong(all_arrows()) == []


def test_every_package_has_its_place() -> None:
    units = {unit_of(path.relative_to(ROOT).as_posix()) for path in modules()} - {"__init__"}
    assert units <= set(ORDER)


def test_the_one_arrow_that_turns_back_is_inside_functions() -> None:
    back = [arrow for arrow in all_arrows() if (arrow.file, arrow.package) in TURNS_BACK]
    assert {(arrow.file, arrow.package) for arrow in back} == TURNS_BACK  # and it is still needed
    assert all(arrow.in_function for arrow in back)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("fit/law.py", "from batchscope.training import train"),
        ("fit/law.py", "import batchscope.study.compare"),
        ("fit/law.py", "from batchscope import study"),
        ("fit/law.py", "from ..training import train"),
        ("fit/law.py", "from .. import training"),
        ("fit/law.py", "def f():\n    if True:\n        from batchscope.cli import main"),
        ("fit/law.py", "import batchscope as bs"),
        ("fit/law.py", "from batchscope import compare"),
        ("records/plan.py", "def f():\n    from batchscope.report import page"),
    ],
)
def test_an_import_that_points_back_is_found(file: str, source: str) -> None:
    assert len(wrong(arrows_of(source, file))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("fit/law.py", "from batchscope.records import Plan\nfrom .intervals import holm\nimport numpy"),
        ("study/compare.py", "import batchscope.training.loop\nfrom ..fit import holm\nfrom batchscope import errors"),
    ],
)
def test_an_import_that_points_the_right_way_is_not(file: str, source: str) -> None:
    assert wrong(arrows_of(source, file)) == []


# What costs torch


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_and_asking_for_help_import_no_torch() -> None:
    said = run(
        """
        import sys
        import batchscope
        assert "torch" not in sys.modules and "numpy" not in sys.modules
        dir(batchscope)
        from batchscope.cli import app, main

        def help_of(*words):
            sys.argv = ["batchscope", *words, "--help"]
            try:
                main()
            except SystemExit as end:
                assert not end.code, (words, end.code)

        verbs = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]
        for words in ((), *((verb,) for verb in verbs)):
            help_of(*words)
            heavy = {"torch", "numpy", "scipy", "sklearn", "altair", "sqlite3"} & set(sys.modules)
            assert not heavy, (words, heavy)
        """
    )
    assert "Usage: batchscope" in said
    assert said.count("Usage: batchscope") > 10  # each verb's among them
    assert "Usage: batchscope compare" in said


def test_training_imports_of_scipy_its_special_functions_alone() -> None:
    run(
        """
        import sys
        import batchscope as bs

        bs.Workload, bs.Plan, bs.train, bs.compare, bs.sweep, bs.probe, bs.GradientNoise
        large = ("stats", "optimize", "interpolate", "sparse", "spatial", "integrate")
        assert not {f"scipy.{name}" for name in large} & set(sys.modules)
        """
    )


def test_records_laws_and_reports_need_no_torch() -> None:
    run(
        """
        import importlib, pathlib, sys
        import batchscope

        root = pathlib.Path(batchscope.__file__).parent
        for package in ("errors", "records", "fit", "report", "progress"):
            for path in [root / f"{package}.py", *sorted((root / package).glob("*.py"))]:
                if path.is_file():
                    name = path.relative_to(root.parent).with_suffix("").as_posix().replace("/", ".")
                    importlib.import_module(name.removesuffix(".__init__"))
                    assert "torch" not in sys.modules, name
        """
    )


# The surface


def imported_for_types() -> dict[str, str]:
    """The names in the surface's ``if TYPE_CHECKING:``, each with the package that it comes from."""
    tree = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    [block] = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {
        alias.name: node.module or "" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_the_surface_offers_exactly_what_it_lists() -> None:
    assert list(bs.__all__) == sorted(set(bs.__all__), key=lambda name: (name.lower() == name, name))
    assert set(dir(bs)) == set(bs.__all__)
    assert imported_for_types() == bs._HOMES
    assert set(bs._HOMES) == set(bs.__all__)


@pytest.mark.parametrize("name", bs.__all__)
def test_every_name_is_what_its_home_calls_so_and_says_what_it_is(name: str) -> None:
    value = getattr(bs, name)
    home = importlib.import_module(bs._HOMES[name])
    assert value is getattr(home, name)
    assert name in getattr(home, "__all__", vars(home))
    doc = inspect.getdoc(value) or ""
    assert doc.splitlines()[0].endswith((".", ":", ","))
    assert not doc.startswith(f"{name}(")  # what dataclasses write where there is nothing
    assert value.__module__.startswith("batchscope.")


def test_no_other_name_is_offered() -> None:
    with pytest.raises(AttributeError, match="module 'batchscope' has no attribute 'nothing'"):
        _ = bs.nothing
    assert not hasattr(bs, "Run")


def test_the_tree_of_errors_is_the_one_drawn() -> None:
    from batchscope import errors

    drawn = inspect.getdoc(errors) or ""
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(kinds) > 5
    for kind in kinds:
        assert f"{kind.__name__} " in drawn or f"{kind.__name__}\n" in drawn
        assert issubclass(kind, errors.BatchscopeError)
        assert kind.exit_status == (2 if issubclass(kind, errors.ArgumentError) else 1)

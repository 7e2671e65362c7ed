"""Loading a workload by name: a built-in, ``path/to/file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import math
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import TypeVar

from batchscope.errors import ArgumentError, BatchscopeError, WorkloadError, first_line
from batchscope.workload.workload import Workload

T = TypeVar("T")

LOAD_SECONDS = 30.0
# The system's timer has an upper limit.
MOST_SECONDS = 1e6

# Code of packages, which error locations skip.
_PACKAGE = str(Path(__file__).parents[1])
_PACKAGES = tuple(sysconfig.get_path(key) for key in ("purelib", "platlib"))
_INSTALLED = (*_PACKAGES, *(sysconfig.get_path(key) for key in ("stdlib", "platstdlib")))


def load_workload(name: str, *, data: str | None = None, timeout_seconds: float = LOAD_SECONDS) -> Workload:
    """Find a workload by its name.

    Args:
        name: A built-in's name, ``path/to/file.py:name`` or ``package.module:name``, where the name is that of a
            Workload or of a function without arguments that returns one.
        data: Folder or file that a built-in workload reads; None: the default one.
        timeout_seconds: Time limit of the import (in the main thread only).

    Returns:
        The workload.

    Raises:
        WorkloadError: It does not exist, raises an error, exceeds the time limit, or is not a Workload.
        ArgumentError: An invalid time limit.

    Examples:
        >>> load_workload("digits").training_examples
        1437
    """
    from batchscope.workload.catalogue import BUILTINS, load_builtin

    if not (math.isfinite(timeout_seconds) and 0 < timeout_seconds <= MOST_SECONDS):
        raise ArgumentError(
            f"the time limit must be above 0 and at most {MOST_SECONDS:,.0f} seconds", got=timeout_seconds
        )
    if name in BUILTINS:
        return load_builtin(name, data)
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        raise WorkloadError(
            f"a workload is a built-in ({', '.join(BUILTINS)}), path/to/file.py:name or package.module:name",
            got=name,
            mend=_meant(name, list(BUILTINS)),
        )
    if data is not None:
        raise WorkloadError("--data is for built-in workloads", got=f"{name} with {data}", mend="leave it out")
    return _within(timeout_seconds, name, lambda: _workload(_module(where), attribute, name))


def _meant(name: str, builtins: list[str]) -> str:
    if name.endswith(".py"):
        return "put a colon between the file or module and the name"
    close = difflib.get_close_matches(name, builtins, n=1)
    return f"did you mean {close[0]}?" if close else "check the name"


def _module(where: str) -> ModuleType:
    is_file = where.endswith(".py")
    unique = ""
    try:
        if not is_file:
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(where)
        path = Path(where).resolve()
        if not path.is_file():
            raise WorkloadError("the workload's file must exist", got=where, mend="check the path")
        # A unique name in sys.modules, where pickle looks for classes.
        unique = f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
        spec = importlib.util.spec_from_file_location(unique, path)
        if spec is None or spec.loader is None:
            raise WorkloadError("the workload's file must be a Python file", got=where)
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(unique, None)  # not half of a module
        if isinstance(error, BatchscopeError):
            raise _located(error) from error
        if isinstance(error, ModuleNotFoundError):
            rule = f"{where} must be a module that can be imported" if not is_file else f"{where} must import"
            mend = "install what it imports, or check the name"
            raise WorkloadError(rule, got=f"{error}{_place(error)}", mend=mend) from error
        if isinstance(error, (Exception, SystemExit)):
            raise WorkloadError(f"{where} must import without an error", got=_described(error)) from error
        raise
    return module


def _workload(module: ModuleType, attribute: str, name: str) -> Workload:
    if not hasattr(module, attribute):
        found = [key for key, value in vars(module).items() if isinstance(value, Workload)]
        raise WorkloadError(
            f"{name} must name something in that file",
            got=f"no {attribute!r} there",
            mend=f"it has the workloads {', '.join(found)}" if found else "define a Workload under that name",
        )
    found_value = getattr(module, attribute)
    if callable(found_value) and not isinstance(found_value, Workload):
        try:
            found_value = found_value()
        except BatchscopeError as error:
            raise _located(error) from error
        except (Exception, SystemExit) as error:
            raise WorkloadError(f"{name}() must return a Workload", got=_described(error)) from error
    if not isinstance(found_value, Workload):
        raise WorkloadError(
            f"{name} must be a Workload, or a function without arguments that returns one",
            got=type(found_value).__name__,
        )
    return found_value


def _described(error: BaseException) -> str:
    """The exception's first line, and the line of the person's own code that it came from."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    return first_line(error) + _place(error)


def _place(error: BaseException) -> str:
    """Where in the person's own code an exception came from, as in " (work.py, line 3)"; "" where nowhere in it.

    A workload may itself be an installed package: where no line is the person's, the last one of such a package is
    named.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", _PACKAGE))]
    own = [f for f in frames if not f.filename.startswith(_INSTALLED)]
    last = (own or [f for f in frames if f.filename.startswith(_PACKAGES)])[-1:]
    return f" ({last[0].filename}, line {last[0].lineno})" if last else ""


def _located(error: BatchscopeError) -> BatchscopeError:
    """The same error, with the line of the person's own code that it came from."""
    place = _place(error)
    if not place:
        return error
    got = "" if error.got is None else error.got if isinstance(error.got, str) else repr(error.got)
    return type(error)(error.rule, got=f"{got}{place}".strip(), mend=error.mend)


class _TooLong(BaseException):
    """Raised inside the person's code, so that its own ``except Exception`` does not swallow it."""


def _within(seconds: float, name: str, work: Callable[[], T]) -> T:
    """Do some work within a time limit.

    This is no context manager: an alarm that goes off between the block and its ``__exit__`` would find nobody to
    catch it.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return work()
    over = False

    def expire(number: int, frame: FrameType | None) -> None:
        if not over:
            raise _TooLong

    began = time.monotonic()
    previous = signal.signal(signal.SIGALRM, expire)
    pending = (0.0, 0.0)
    try:
        # Again every second: an exception that is raised in a destructor, say, is lost.
        pending = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 1.0)
        found = work()
        over = True
        return found
    except _TooLong as error:
        over = True
        raise WorkloadError(
            f"{name} must load within {seconds:g} seconds",
            got=f"no end of it{_place(error)}",
            mend="look for an endless loop or a download, or allow more with --load-timeout",
        ) from None
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if pending[0]:  # somebody else's alarm, as test runners set
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, pending[0] - (time.monotonic() - began)), pending[1])

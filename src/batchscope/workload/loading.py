"""Loading a workload by name: a built-in, ``path/to/file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType

from batchscope.errors import BatchscopeError, WorkloadError
from batchscope.workload.workload import Workload

LOAD_SECONDS = 30.0


def load_workload(name: str, *, data: str | None = None, timeout_seconds: float = LOAD_SECONDS) -> Workload:
    """Find a workload by its name.

    Args:
        name: A built-in's name, ``path/to/file.py:name`` or ``package.module:name``, where the name is that of a
            Workload or of a function without arguments that returns one.
        data: The folder or file that a built-in reads; None: where it looks by itself.
        timeout_seconds: How long importing and making it may take (not limited outside the main thread).

    Returns:
        The workload.

    Raises:
        WorkloadError: There is no such thing, it raised, it took too long, or it is no Workload.

    Examples:
        >>> load_workload("digits").training_examples
        1437
    """
    from batchscope.workload.catalogue import BUILTINS, load_builtin

    if name in BUILTINS:
        return load_builtin(name, data)
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        raise WorkloadError(
            f"a workload is a built-in ({', '.join(BUILTINS)}), path/to/file.py:name or package.module:name",
            got=name,
            mend="put a colon between the file or module and the name" if name.endswith(".py") else "check the name",
        )
    if data is not None:
        raise WorkloadError("--data is for built-in workloads", got=f"{name} with {data}", mend="leave it out")
    with _time_limit(timeout_seconds, name):
        module = _module(where)
        return _workload(module, attribute, name)


def _module(where: str) -> ModuleType:
    is_file = where.endswith(".py")
    try:
        if not is_file:
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(where)
        path = Path(where).resolve()
        if not path.is_file():
            raise WorkloadError("the workload's file must exist", got=where, mend="check the path")
        # Two files of one name must not meet in sys.modules, and classes in them must be found there by pickle.
        unique = f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
        spec = importlib.util.spec_from_file_location(unique, path)
        if spec is None or spec.loader is None:
            raise WorkloadError("the workload's file must be a Python file", got=where)
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec.loader.exec_module(module)
    except BatchscopeError:
        raise
    except ModuleNotFoundError as error:
        rule = f"{where} must be a module that can be imported" if not is_file else f"{where} must import"
        raise WorkloadError(rule, got=str(error), mend="install what it imports, or check the name") from error
    except (Exception, SystemExit) as error:
        raise WorkloadError(f"{where} must import without an error", got=_said(error, where)) from error
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
        except BatchscopeError:
            raise
        except (Exception, SystemExit) as error:
            raise WorkloadError(f"{name}() must return a Workload", got=_said(error, name)) from error
    if not isinstance(found_value, Workload):
        raise WorkloadError(
            f"{name} must be a Workload, or a function without arguments that returns one",
            got=type(found_value).__name__,
        )
    return found_value


def _said(error: BaseException, where: str) -> str:
    """The exception, and the line of the person's own file that it came from."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    file = Path(where.rpartition(":")[0] if not where.endswith(".py") else where).name
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == file]
    return f"{said} (line {frames[-1].lineno})" if frames else said


class _TooLong(BaseException):
    """Raised inside the person's code, so that its own ``except Exception`` does not swallow it."""


@contextlib.contextmanager
def _time_limit(seconds: float, name: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLong:
        raise WorkloadError(
            f"{name} must load within {seconds:g} seconds",
            got="no end of it",
            mend="look for an endless loop or a download, or allow more with --load-timeout",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

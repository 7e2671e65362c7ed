"""Work in a forked child process, under a memory limit of its own, so that nothing it does reaches this process.

A fork shares every object without pickling, lambdas and open datasets included, and each side's changes to memory stay
its own. What it doesn't copy: threads (torch's and OpenMP's pools are gone in the child, which therefore computes with
one thread) and a CUDA context (which is why GPUs are measured in this process). What lives outside memory is shared:
the position in an open file, a socket, worker processes that are already running.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import select
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, NoReturn, TypeVar

import torch

from batchscope.errors import first_line
from batchscope.measure.memory_meter import limited_data
from batchscope.training.heap import occupy_free_heap
from batchscope.training.memory import is_out_of_memory
from batchscope.training.meters import trim_heap

T = TypeVar("T")
Ending = Literal["done", "out of memory", "killed", "too slow"]

HEADER = struct.Struct("<Q")
LOOK_MILLISECONDS = 100
# What torch says where the parent's autograd threads, which exist with CUDA only, did not survive the fork.
_NO_AUTOGRAD = "Unable to handle autograd's threading in combination with fork-based multiprocessing"


@dataclass(frozen=True)
class ChildResult(Generic[T]):
    """How a child ended.

    Attributes:
        ending: "done"; "out of memory"; "killed" by a signal, or gone without a word; "too slow" for its time.
        value: What the work returned; None unless done.
        message: What went wrong, in a line; empty when done.
    """

    ending: Ending
    value: T | None = None
    message: str = ""


class CannotForkError(RuntimeError):
    """This process cannot have its work done in a fork."""


def can_fork() -> bool:
    """Whether work may run in a forked child here: on Linux, before CUDA is in use.

    macOS has fork too, but its system libraries do not survive one, and it reads no peak of memory.
    """
    return sys.platform == "linux" and not (torch.cuda.is_available() and torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def in_child(work: Callable[[], T], *, limit_bytes: int | None = None, seconds: float = math.inf) -> ChildResult[T]:
    """Run a function in a forked child and return what it returned.

    Args:
        work: Called without arguments, with one thread; what it returns must pickle.
        limit_bytes: Memory that it may take beyond what this process holds, see
            :func:`batchscope.measure.memory_meter.limited_data`; None: no limit.
        seconds: Time after which the child is killed.

    Returns:
        How it ended.

    Raises:
        CannotForkError: Autograd's threads run in this process and would be missing in the child.
        Exception: Whatever the work raised, unless memory ran out; the child's traceback is added as a note.

    Examples:
        >>> in_child(lambda: 6 * 7).value if can_fork() else 42
        42
        >>> in_child(lambda: len(bytearray(1 << 30)), limit_bytes=1 << 20).ending if can_fork() else "out of memory"
        'out of memory'
    """
    for stream in (sys.stdout, sys.stderr):  # what is still in them would come out twice
        with contextlib.suppress(ValueError, OSError, AttributeError):
            stream.flush()
    trim_heap()  # growth into free heap that the child inherits would not show
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of a fork beside threads: see above
        child = os.fork()
    if child == 0:
        _run(work, theirs, limit_bytes)
    os.close(theirs)
    try:
        report, ended = _receive(ours, child, time.monotonic() + seconds)
    finally:
        os.close(ours)
        status = _end(child)
    if report is None:
        if not ended:
            return ChildResult("too slow", message=f"not done within {seconds:g} s")
        return ChildResult("killed", message=_last_words(status))
    kind, value = pickle.loads(report)  # noqa: S301 — written by our own child
    if kind == "done":
        return ChildResult("done", value)
    if kind == "out of memory":
        return ChildResult("out of memory", message=value)
    error, text = value
    if _NO_AUTOGRAD in str(error):
        raise CannotForkError(_NO_AUTOGRAD) from error
    error.add_note(f"Raised in a child process:\n{text}")
    raise error


def _run(work: Callable[[], object], pipe: int, limit_bytes: int | None) -> NoReturn:
    """The child's whole life; it ends without a hook of the parent's, neither atexit nor a test runner's."""
    message: tuple[str, object]
    try:
        os.setpgid(0, 0)  # so that processes of its own end with it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)
        _volunteer()
        occupy_free_heap()
        with limited_data(limit_bytes):
            try:
                message = ("done", work())
            except BaseException as error:  # a SystemExit too: this process must not go on
                message = (
                    ("out of memory", first_line(error)) if is_out_of_memory(error) else ("error", _portable(error))
                )
        report = pickle.dumps(message)
    except BaseException as error:
        report = pickle.dumps(("error", _portable(error)))
    with contextlib.suppress(BaseException):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    with contextlib.suppress(BaseException), os.fdopen(pipe, "wb") as out:
        out.write(HEADER.pack(len(report)) + report)
    os._exit(0)


def _volunteer() -> None:
    """Be the first process to go, should the system run out of memory all the same."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _portable(error: BaseException) -> tuple[BaseException, str]:
    """An exception that survives the trip, and its traceback as text."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError(first_line(error)), text
    return error, text


def _receive(pipe: int, child: int, deadline: float) -> tuple[bytes | None, bool]:
    """The child's report, None if there is none, and whether the child has ended or reported in time.

    The end of the pipe alone does not tell of the child's end: a process of its own may hold it open.
    """
    poll, received = select.poll(), bytearray()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    while True:
        left = deadline - time.monotonic()
        if poll.poll(max(0, min(LOOK_MILLISECONDS, 1000 * left))):
            piece = os.read(pipe, 1 << 16)
            received += piece
            if len(received) >= HEADER.size and len(received) == HEADER.size + HEADER.unpack_from(received)[0]:
                return bytes(received[HEADER.size :]), True
            if not piece:
                return None, True
        elif os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return None, True
        elif left <= 0:
            return None, False


def _end(child: int) -> int:
    """End the child with all processes of its own; how it had ended, as ``waitpid`` says it."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):  # gone already, or killed before it had its group
            kill(child, signal.SIGKILL)
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:  # somebody else collects children in this process
        return 0


def _last_words(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"the child process ended without a word, with status {os.waitstatus_to_exitcode(status)}"

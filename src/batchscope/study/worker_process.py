"""A worker of a sweep: a fork of the driver on a core of its own, which runs the tasks that it is sent."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import torch

from batchscope.errors import RunError, StorageError, first_line
from batchscope.study.channel import Channel
from batchscope.study.run_task import run_task, worker_name
from batchscope.study.tasks import Conditions, Event, Finished, Known, Lost, Standing, Task, TaskDone
from batchscope.study.trial_store import TrialStore
from batchscope.study.ways import Ways, ways_of
from batchscope.training import Prepared
from batchscope.training.interruption import stop_requests
from batchscope.training.memory import is_out_of_memory

PR_SET_PDEATHSIG = 1
WORDS = 4096


class WorkerProcess:
    """The driver's side of one worker.

    Args:
        serve: What it does, given its end of the channel.
        core: The processor core that it is bound to; None: any.
        others: Channels to other workers, which it must not hold open.

    Attributes:
        channel: The way to it.
        task: What it is at; None where it waits.
        has_begun: Whether it has said so.
        heard_at: When it last said something, on the monotonic clock.
    """

    def __init__(
        self, serve: Callable[[Channel], None], *, core: int | None = None, others: Sequence[Channel] = ()
    ) -> None:
        self.task: Task | None = None
        self.has_begun = False
        self.heard_at = time.monotonic()
        self.channel, theirs = Channel.pair()
        self._last_words = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 — closed in end()
        driver = os.getpid()
        for stream in (sys.stdout, sys.stderr):  # what is still in them would come out twice
            with contextlib.suppress(ValueError, OSError, AttributeError):
                stream.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside torch's threads, which sleep
            try:
                self.pid = os.fork()
            except OSError as error:
                raise RunError(
                    "a sweep's worker must be a process of its own",
                    got=first_line(error),
                    mend="ask for fewer processes",
                ) from error
        if self.pid == 0:
            for channel in (self.channel, *others):
                channel.close()
            _live(serve, theirs, words=self._last_words.fileno(), core=core, driver=driver)
        theirs.close()

    def begin(self, task: Task) -> None:
        """Send it a task."""
        self.task, self.has_begun, self.heard_at = task, False, time.monotonic()
        self.channel.post(task)

    def has_ended(self) -> bool:
        """Whether its process is gone, or somebody else collects processes here and its end of the channel is."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return self.channel.closed

    def end(self) -> tuple[Literal["out of memory", "crashed"], str]:
        """End it, with all processes of its own, and say how it had ended."""
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(OSError):  # gone already, or killed before it had its group
                kill(self.pid, signal.SIGKILL)
        try:
            status = os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            status = 0
        with self._last_words as file:
            said = os.pread(file.fileno(), WORDS, 0).decode(errors="replace")
        self.channel.close()
        return cause_of_death(status, said)


def cause_of_death(status: int, last_words: str) -> tuple[Literal["out of memory", "crashed"], str]:
    """What a worker died of.

    Args:
        status: As ``waitpid`` gives it.
        last_words: What faulthandler wrote.

    Returns:
        What that is for a lone trial, and the reason in a line.

    Examples:
        >>> cause_of_death(int(signal.SIGKILL), "")
        ('out of memory', 'killed by signal 9, as the system does when memory runs out')
        >>> cause_of_death(3 << 8, "")
        ('crashed', 'its process ended by itself, with status 3')
    """
    if not os.WIFSIGNALED(status):
        return "crashed", f"its process ended by itself, with status {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL:
        return "out of memory", "killed by signal 9, as the system does when memory runs out"
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal, which has no name
        name = f"signal {number}"
    places = [line.strip() for line in last_words.splitlines() if line.startswith("  File ")]
    return "crashed", f"killed by {name}" + (f" in {places[0]}" if places else "")


def serve_tasks(channel: Channel, prepared: Prepared, conditions: Conditions, store: TrialStore | None) -> None:
    """Run the tasks that come, until the other end goes away.

    A trial that has ended is in the store before it is told of, so that it is not lost with the driver. What a
    workload raises is told of and does not end the worker; that nothing can be stored is passed on, since it concerns
    all trials.

    Args:
        channel: To the driver: tasks, standings and what others have found out of the fastest ways come; events and
            what is found out here go.
        prepared: The workload.
        conditions: What all trials have in common.
        store: Where finished trials go; None: the driver sees to that.
    """
    name = worker_name()
    known, tasks = Known(), list[Task]()

    def take_in(*, wait: bool = False) -> list[Standing]:
        for message in channel.receive(wait=wait):
            if isinstance(message, Task):
                tasks.append(message)
            elif isinstance(message, Ways):
                ways_of(prepared).add(message)
            else:
                known.add(message)
        if channel.closed:
            raise SystemExit
        return list(known.standings.values())

    def emit(event: Event) -> None:
        if store is not None and isinstance(event, Finished):
            store.finish(event.trial, event.result, worker=name)
        if isinstance(event, TaskDone):
            channel.send(ways_of(prepared))  # first, so that the next task can be told
        channel.send(event)

    with stop_requests() as stop:
        stop.requested = False  # whatever was asked of the driver
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            while not tasks:
                take_in(wait=True)
            task = tasks.pop(0)
            try:
                run_task(prepared, task, conditions, emit=emit, known=take_in, stop=stop)
            except StorageError as error:
                channel.send(error)
            except BaseException as error:  # a SystemExit of the workload's too
                if channel.closed:
                    raise
                out_of_memory = is_out_of_memory(error)
                channel.send(Lost(task.number, "out of memory" if out_of_memory else "crashed", first_line(error)))
            with contextlib.suppress(ValueError, OSError, AttributeError):
                sys.stdout.flush()  # what the workload prints; a worker is killed in the end


def _live(serve: Callable[[Channel], None], channel: Channel, *, words: int, core: int | None, driver: int) -> NoReturn:
    """The worker's whole life; it ends without a hook of the driver's, neither atexit nor a test runner's."""
    status = 1
    try:
        os.setpgid(0, 0)  # so that processes of its own end with it, and Ctrl-C is the driver's alone
        _die_with(driver)
        if core is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
        faulthandler.enable(words, all_threads=False)
        with contextlib.suppress(OSError):  # should memory run out all the same, the driver is not the one to go
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        serve(channel)
    except (SystemExit, OSError):  # the driver is gone
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _die_with(driver: int) -> None:
    """Have the kernel end this process when the driver ends, in whatever way."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != driver:  # it ended before
        os._exit(0)

"""Tasks on this machine, in forked processes, whose end is never the end of the sweep.

Why not a pool of a library: in concurrent.futures and in loky a worker that dies breaks the whole pool, and with it the
trials of all the others; a future says nothing before its end, while a sweep needs every trial of a stack as it ends;
and a fork shares the data, and models that cannot be pickled, for nothing. So what is kept is the standard library's
process and pipe, and what crash isolation takes. A worker goes on to the next task, since a fresh one needs a third of
a second until it is warm.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from batchscope.errors import RunError, first_line
from batchscope.measure.child import CannotForkError, can_fork, in_child
from batchscope.provenance import available_cores
from batchscope.study.patience import Patience
from batchscope.study.run_task import run_task
from batchscope.study.tasks import Conditions, Engine, Event, Lost, Task, TaskDone, Trial
from batchscope.study.ways import Ways, ways_of
from batchscope.training import Prepared
from batchscope.training.interruption import stop_requests
from batchscope.training.train import chosen_device
from batchscope.workload.workload import Workload

PR_SET_PDEATHSIG = 1
# How often it is looked whether a worker is silent for too long.
LOOK_SECONDS = 1.0


def local_engine(
    workload: Workload,
    conditions: Conditions,
    *,
    processes: int | None = None,
    timeout_seconds: float | None = None,
    device: str | torch.device | None = None,
) -> Engine:
    """The engine for this machine: processes on a CPU, where they can be forked; otherwise this one.

    Args:
        workload: What is trained.
        conditions: What all trials have in common.
        processes: Tasks that run at once; None: one a core. On a GPU one, whose trials train together.
        timeout_seconds: Silence after which a worker is given up; None: :class:`Patience` tells.
        device: "cpu", "cuda" …; None: CUDA where there is one.

    Returns:
        The engine, to be used as a context manager.
    """
    chosen = chosen_device(device)
    if chosen.type == "cpu" and _can_train_in_forks():
        prepared = Prepared(workload, chosen, workers=0)  # each has one core, which reading has to share anyway
        return ForkEngine(prepared, conditions, processes=processes, timeout_seconds=timeout_seconds)
    return HereEngine(Prepared(workload, chosen), conditions)


def _can_train_in_forks() -> bool:
    """Whether a fork of this process can train: not, where autograd's threads run, which exist with CUDA only."""
    if not can_fork():
        return False
    if not torch.cuda.is_available():
        return True
    try:
        return in_child(lambda: torch.autograd.backward(torch.ones((), requires_grad=True))).ending == "done"
    except CannotForkError:
        return False


class HereEngine:
    """Runs tasks in this process, one after the other: on a GPU, and where processes cannot be forked.

    Nothing here survives a crash of the workload or ends one that hangs.

    Args:
        prepared: The workload, with its data on the device.
        conditions: What all trials have in common.

    Attributes:
        workers: 1.
    """

    workers = 1

    def __init__(self, prepared: Prepared, conditions: Conditions) -> None:
        self.prepared, self.conditions = prepared, conditions
        self._waiting: deque[Task] = deque()
        self._stopped: set[Trial] = set()

    def __enter__(self) -> HereEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def submit(self, task: Task) -> None:
        """Queue a task; tasks begin in the order submitted."""
        self._stopped.difference_update(task.trials)
        self._waiting.append(task)

    def stop(self, trials: Collection[Trial]) -> None:
        """End these trials at their next evaluation, as "pruned"."""
        self._stopped.update(trials)

    def work(self, take: Callable[[Event], None], seconds: float) -> None:
        """Train the next task to its end, and hand over its events as they happen.

        Args:
            take: Told of every event. What it raises ends the task, and comes out.
            seconds: How long to wait where there is nothing to train.
        """
        if not self._waiting:
            time.sleep(seconds)
            return
        task, raised = self._waiting.popleft(), list[BaseException]()

        def emit(event: Event) -> None:
            try:
                take(event)
            except BaseException as error:
                raised.append(error)
                raise

        try:
            with stop_requests() as stop:
                run_task(self.prepared, task, self.conditions, emit=emit, stopped=lambda: self._stopped, stop=stop)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a SystemExit of the workload's too
            if raised:
                raise raised[0] from None
            take(Lost.by(task.number, error))


class ForkEngine:
    """Runs tasks in forked processes, each with one thread on a core of its own.

    A process that dies, hangs or is killed costs the task that it was at, and another takes its place. The processes
    end with this one, however that ends.

    Args:
        prepared: The workload, with its data on the CPU: workers share this process's copy.
        conditions: What all trials have in common.
        processes: Tasks that run at once; None: one for each core that this process may use.
        timeout_seconds: Silence after which a process is given up; None: :class:`Patience` tells.

    Attributes:
        workers: How many tasks run at once.

    Examples:
        >>> from batchscope.study.tasks import Finished
        >>> from batchscope.workload.digits import digits
        >>> conditions = Conditions(target=0.9, budget_examples=10_000, evaluate_every=500)
        >>> told = []
        >>> with ForkEngine(Prepared(digits(), torch.device("cpu")), conditions, processes=2) as engine:
        ...     engine.submit(Task(0, (Trial(64, 0.1, 0),), way="separate"))
        ...     while not told or not isinstance(told[-1], TaskDone):
        ...         engine.work(told.append, 1.0)
        >>> [event.result.outcome for event in told if isinstance(event, Finished)]
        ['reached']
    """

    def __init__(
        self,
        prepared: Prepared,
        conditions: Conditions,
        *,
        processes: int | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        self.prepared, self.conditions = prepared, conditions
        self.workers = processes or available_cores()
        self._cores = sorted(os.sched_getaffinity(0))
        self._patience = Patience(timeout_seconds)
        self._waiting: deque[Task] = deque()
        self._workers: dict[int, _Worker] = {}  # by the place that each has

    def __enter__(self) -> ForkEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiting.clear()
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()

    def submit(self, task: Task) -> None:
        """Queue a task; tasks begin in the order submitted."""
        self._waiting.append(task)
        self._begin()

    def stop(self, trials: Collection[Trial]) -> None:
        """End these trials at their next evaluation, as "pruned"."""
        for worker in self._workers.values():
            if worker.task is not None and (own := set(trials).intersection(worker.task.trials)):
                with contextlib.suppress(OSError):  # it has just died
                    worker.pipe.send(own)

    def work(self, take: Callable[[Event], None], seconds: float) -> None:
        """Hand over the events that there are; where there is none, wait for one for so many seconds.

        Args:
            take: Told of every event.
            seconds: How long to wait.
        """
        places = {worker.pipe: place for place, worker in self._workers.items()}
        sentinels: dict[Any, int] = {worker.process.sentinel: place for place, worker in self._workers.items()}
        ready = wait([*places, *sentinels], min(seconds, LOOK_SECONDS))
        ended = {sentinels[one] for one in ready if one in sentinels}
        for place in {places[one] for one in ready if one in places} | ended:
            for event in self._hear(place, ended=place in ended):
                take(event)
        for place, worker in list(self._workers.items()):
            if worker.task is not None:
                allowed = self._patience.seconds(worker.task.batch_size)
                if time.monotonic() - worker.heard_at > allowed:
                    del self._workers[place]
                    worker.end()
                    take(Lost(worker.task.number, "timed out", f"nothing was heard of it for {allowed:,.0f} s"))
        self._begin()

    def _hear(self, place: int, *, ended: bool) -> list[Event]:
        """What a worker has sent, and whether it is gone."""
        worker, task, events = self._workers[place], self._workers[place].task, list[Event]()
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                if isinstance(message, Ways):
                    ways_of(self.prepared).add(message)
                else:
                    events.append(message)
        except (EOFError, OSError):  # half a message of one that died is none
            ended = True
        now = time.monotonic()
        if events and task is not None:
            self._patience.heard(task.batch_size, now - worker.heard_at)
            worker.heard_at = now
        if events and isinstance(events[-1], (TaskDone, Lost)):
            worker.task = None
        if ended:
            del self._workers[place]
            how = worker.end()
            if worker.task is not None:
                events.append(Lost(worker.task.number, *how))
        return events

    def _begin(self) -> None:
        for place in range(self.workers):
            worker = self._workers.get(place)
            if not self._waiting:
                return
            if worker is not None and worker.task is None and not worker.process.is_alive():
                worker.end()  # it died of something else, while it waited
                worker = None
            if worker is None:
                core = self._cores[place % len(self._cores)]
                worker = self._workers[place] = _Worker(self.prepared, self.conditions, core)
            if worker.task is None:
                worker.begin(self._waiting.popleft(), ways_of(self.prepared))


class _Worker:
    """A process that runs tasks, as this one sees it; ``task`` is what it is at."""

    def __init__(self, prepared: Prepared, conditions: Conditions, core: int) -> None:
        self.task: Task | None = None
        self.heard_at = time.monotonic()
        self.pipe, theirs = multiprocessing.Pipe()
        self._last_words = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 — closed in end()
        self._driver = os.getpid()
        arguments = (theirs, prepared, conditions, core)
        self.process = multiprocessing.get_context("fork").Process(target=self._live, args=arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside torch's threads, which sleep
            try:
                self.process.start()
            except OSError as error:
                rule, mend = "a sweep's worker must be a process of its own", "ask for fewer processes"
                raise RunError(rule, got=first_line(error), mend=mend) from error
        theirs.close()

    def begin(self, task: Task, ways: Ways) -> None:
        """Send it a task, and what others have found out of the fastest ways."""
        self.task, self.heard_at = task, time.monotonic()
        with contextlib.suppress(OSError):  # it has just died
            self.pipe.send(ways)
            self.pipe.send(task)

    def end(self) -> tuple[Any, str]:
        """End it, with all processes of its own; what it had died of, as a lone trial's outcome and in words."""
        self.process.join(0)
        status = self.process.exitcode
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(OSError):  # gone already, or killed before it had its group
                kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        with self._last_words as file:
            said = os.pread(file.fileno(), 4096, 0).decode(errors="replace")
        self.pipe.close()
        return cause_of_death(self.process.exitcode if status is None else status, said)

    def _live(self, pipe: Connection, prepared: Prepared, conditions: Conditions, core: int) -> None:
        """The worker's whole life; it ends without a hook of the driver's, neither atexit nor a test runner's."""
        os.setpgid(0, 0)  # so that processes of its own end with it, and Ctrl-C is the driver's alone
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with contextlib.suppress(OSError, AttributeError):  # the kernel ends it with the driver, however that ends
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != self._driver:  # which ended before
            os._exit(0)
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})
        with contextlib.suppress(OSError):  # should memory run out all the same, the driver is not the one to go
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        torch.set_num_threads(1)
        faulthandler.enable(self._last_words.fileno(), all_threads=False)
        tasks, stopped = list[Task](), set[Trial]()

        def receive() -> None:
            message = pipe.recv()
            if isinstance(message, Task):
                tasks.append(message)
                stopped.clear()
            elif isinstance(message, Ways):
                ways_of(prepared).add(message)
            else:
                stopped.update(message)

        def look() -> Collection[Trial]:
            while pipe.poll():
                receive()
            return stopped

        def emit(event: Event) -> None:
            if isinstance(event, TaskDone):
                pipe.send(ways_of(prepared))  # first, so that the next task can be told
            pipe.send(event)

        try:
            with stop_requests() as stop:
                stop.requested = False  # whatever was asked of the driver
                while True:
                    while not tasks:
                        receive()
                    task = tasks.pop()
                    try:
                        run_task(prepared, task, conditions, emit=emit, stopped=look, stop=stop)
                    except BaseException as error:  # a SystemExit of the workload's too
                        pipe.send(Lost.by(task.number, error))
                    _flush()
        finally:  # the driver is gone
            os._exit(0)


def cause_of_death(status: int | None, last_words: str) -> tuple[str, str]:
    """What a worker died of.

    Args:
        status: Its exit status, or minus the number of the signal that killed it.
        last_words: What faulthandler wrote.

    Returns:
        What that is for a lone trial, and the reason in a line.

    Examples:
        >>> cause_of_death(-9, "")
        ('out of memory', 'killed by signal 9, as the system does when memory runs out')
        >>> cause_of_death(3, "")
        ('crashed', 'its process ended by itself, with status 3')
    """
    if status is None or status >= 0:
        return "crashed", f"its process ended by itself, with status {status}"
    if status == -signal.SIGKILL:
        return "out of memory", "killed by signal 9, as the system does when memory runs out"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal, which has no name
        name = f"signal {-status}"
    places = [line.strip() for line in last_words.splitlines() if line.startswith("  File ")]
    return "crashed", f"killed by {name}" + (f" in {places[0]}" if places else "")


def _flush() -> None:
    """What the workload has printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError, AttributeError):
            stream.flush()

"""Tasks on a Ray cluster: an actor for each worker, whose events are fetched as they happen."""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import queue
import random
import signal
import socket
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from batchscope.errors import ArgumentError, BatchscopeError, RunError, first_line, require
from batchscope.provenance import available_cores, version
from batchscope.study.patience import Patience
from batchscope.study.run_task import run_task, worker_name
from batchscope.study.tasks import Conditions, Event, Finished, Lost, Task, TaskDone, Trial, key_of
from batchscope.training import Prepared
from batchscope.workload import Workload

CONNECT_SECONDS = 20.0
# A cluster that starts machines when they are asked for needs minutes.
START_SECONDS = 900.0
# Ray rarely tells whether a worker was killed or killed itself: a trial that lost so many workers is to blame.
BLAMELESS_DEATHS = 2
FAILED_STARTS = 5
# Ctrl-C and hanging workers are looked for this often.
LOOK_SECONDS = 1.0
STORE_BYTES = 128 << 20
# A cluster that is started here sends no figures to Ray's makers, and its workers don't give way to other programs.
LOCAL_CLUSTER = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
_LIBRARY = tuple(str(Path(sysconfig.get_path(key)).resolve()) for key in ("stdlib", "platstdlib"))
_PACKAGE = str(Path(__file__).resolve().parents[1])


@dataclass(eq=False)
class _Seat:
    """A worker as the driver sees it: its actor, what is waited for, and the task that it runs, if any."""

    actor: Any
    awaited: Any
    name: str = ""
    task: Task | None = None
    finished: set[Trial] = field(default_factory=set)
    heard: float = 0.0

    @property
    def unfinished(self) -> list[Trial]:
        return [trial for trial in self.task.trials if trial not in self.finished] if self.task else []


class RayEngine:
    """Runs tasks on a Ray cluster; see :class:`batchscope.study.tasks.Engine`.

    Every worker is an actor that holds the workload and one core, or one GPU where it trains on one. A worker whose
    process or machine dies is replaced, and its unfinished trials reported as lost without blame, to be run again;
    trials that were on board of more than two workers that died are blamed, since Ray does not tell a process that was
    killed from one that killed itself. The workload travels by value, with the functions and classes of the person's
    own modules, so that only installed packages have to be there on the cluster.

    Args:
        workload: What is trained.
        conditions: What all trials have in common.
        address: Of a running cluster, which is joined and left as it was: "host:6379", or "auto" for the one that this
            machine belongs to. None: a cluster on this machine, for as long as the engine is used; or the one that this
            process is connected to already.
        workers: Actors; None: one for each core of the cluster, or each GPU.
        device: Where they train: its type counts.
        timeout_seconds: Silence after which a worker is given up; None: :class:`batchscope.study.patience.Patience`
            tells.

    Raises:
        MissingPackageError: Ray is not installed.
        ArgumentError: A workload that cannot be pickled, or numbers that make no sense.

    Examples:
        >>> import importlib.util
        >>> from batchscope.workload import load_workload
        >>> conditions = Conditions(target=None, budget_examples=1000, evaluate_every=500)
        >>> if importlib.util.find_spec("ray"):
        ...     engine = RayEngine(load_workload("digits"), conditions, workers=3)
        ...     assert engine.workers == 3
    """

    def __init__(
        self,
        workload: Workload,
        conditions: Conditions,
        *,
        address: str | None = None,
        workers: int | None = None,
        device: torch.device | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        self._ray = require("ray", "run a sweep on a Ray cluster", "batchscope[ray]")
        if workers is not None and (type(workers) is not int or workers < 1):
            raise ArgumentError("workers must be a whole number of at least 1", got=workers)
        if timeout_seconds is not None and not timeout_seconds > 0:
            raise ArgumentError("timeout_seconds must be above 0", got=timeout_seconds)
        self.workers = workers or 0  # known once the cluster is
        self._conditions, self._address, self._patience = conditions, address, Patience(timeout_seconds)
        self._device = device or torch.device("cpu")
        self._pickled = pickled(workload)
        self._seats: list[_Seat] = []
        self._queue: collections.deque[Task] = collections.deque()
        self._events: collections.deque[Event] = collections.deque()
        self._deaths: collections.Counter[Trial] = collections.Counter()
        self._failed_starts = 0
        self._connected_here = False

    def __enter__(self) -> RayEngine:
        """Connect, and ask for the workers; they begin one by one as they are ready."""
        try:
            self._connect()
            self.workers = self.workers or self._places()
            on_gpu = self._device.type == "cuda"
            # No pool of threads is wider than what is called at once: a wait for events, and what is to be stopped.
            options = {"num_cpus": 1, "num_gpus": 1 if on_gpu else 0, "max_restarts": 0, "max_concurrency": 2}
            self._actor = self._ray.remote(**options)(RayWorker)
            places = [str(Path(place or ".").resolve()) for place in sys.path]
            shared = self._ray.put(self._pickled)
            self._preparation = (versions_here(), shared, self._conditions, self._device.type, places)
            self._some_worker_alive = time.monotonic()
            self._fill_seats()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """End the workers at once, and the cluster where it was started here."""
        for seat in self._seats:
            self._kill(seat)
        self._seats.clear()
        if self._connected_here:
            self._connected_here = False
            with _undisturbed():
                self._ray.shutdown()

    def submit(self, task: Task) -> None:
        """Queue a task."""
        self._queue.append(task)

    def stop(self, trials: Collection[Trial]) -> None:
        """End these trials at their next evaluation, as "pruned"."""
        for seat in self._seats:
            if own := set(trials).intersection(seat.unfinished):
                seat.actor.stop.remote(own)

    def work(self, take: Callable[[Event], None], seconds: float) -> None:
        """Hand over the events that there are; where there is none, wait for one for so many seconds.

        Args:
            take: Told of every event.
            seconds: How long to wait.

        Raises:
            RunError: No worker could be started, or the cluster has had none to give for a quarter of an hour.
            ArgumentError: A worker runs another version of this package or of torch.
        """
        self._assign()
        self._look(min(LOOK_SECONDS, seconds))
        self._end_silent()
        while self._events:
            take(self._events.popleft())

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        how: dict[str, Any] = {"address": self._address}
        if self._address is None:
            how = {
                "address": "local",
                "num_cpus": self.workers or available_cores(),
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES + 2 * len(self._pickled),
            }
        with _undisturbed(), _quietly(self._ray):
            try:
                _reach(self._address)
                self._ray.init(**how, log_to_driver=False, logging_level=logging.ERROR)
            except (RuntimeError, ValueError, OSError) as error:
                if self._address is None:
                    rule, mend = "a Ray cluster must start on this machine", "see whether `ray start --head` works"
                else:
                    rule = f"a Ray cluster must answer at {self._address}"
                    mend = "see what `ray status` says there; both sides need the same versions of Ray and Python"
                raise RunError(rule, got=first_line(error).rstrip("."), mend=mend) from error
        self._connected_here = True

    def _places(self) -> int:
        kind = "GPU" if self._device.type == "cuda" else "CPU"
        places = int(self._ray.cluster_resources().get(kind, 0))
        if places < 1:
            raise RunError(
                f"the Ray cluster must have a {kind} to train on",
                got=f"{self._ray.cluster_resources()}",
                mend="say workers= where machines are started as they are asked for, or another device",
            )
        return places

    def _fill_seats(self) -> None:
        while len(self._seats) < self.workers:
            actor = self._actor.remote()
            self._seats.append(_Seat(actor, awaited=actor.prepare.remote(*self._preparation)))

    def _assign(self) -> None:
        for seat in self._seats:
            if self._queue and seat.awaited is None:
                seat.task, seat.heard = self._queue.popleft(), time.monotonic()
                seat.finished.clear()
                seat.awaited = seat.actor.run.remote(seat.task)

    def _look(self, seconds: float) -> None:
        """Take in what workers have to say, once one of them does."""
        waiting = [seat for seat in self._seats if seat.awaited is not None]
        if not waiting:
            time.sleep(seconds)
            return
        references = [seat.awaited for seat in waiting]
        ready = set(self._ray.wait(references, num_returns=1, timeout=seconds)[0])
        if ready:  # whatever else is there as well
            ready.update(self._ray.wait(references, num_returns=len(references), timeout=0)[0])
        for seat in waiting:
            if seat.awaited not in ready:
                continue
            try:
                said = self._ray.get(seat.awaited)
            except self._ray.exceptions.RayError as error:
                self._died(seat, error)
                continue
            if seat.task is None:
                seat.name, seat.awaited = said, None
                self._failed_starts = 0
            else:
                self._take(seat, seat.task, said)
        if any(seat.name for seat in self._seats):
            self._some_worker_alive = time.monotonic()
        elif time.monotonic() - self._some_worker_alive > START_SECONDS:
            raise RunError(
                "the Ray cluster must have room for a worker",
                got=f"none in {START_SECONDS / 60:.0f} minutes; free of {self._ray.cluster_resources()} are "
                f"{self._ray.available_resources()}",
                mend="see `ray status`",
            )

    def _take(self, seat: _Seat, task: Task, events: Sequence[Event]) -> None:
        now = time.monotonic()
        self._patience.heard(task.batch_size, now - seat.heard)
        seat.heard, seat.awaited = now, None
        self._events.extend(events)
        seat.finished.update(key_of(event.result) for event in events if isinstance(event, Finished))
        if any(isinstance(event, (TaskDone, Lost)) for event in events):
            seat.task = None
        else:
            seat.awaited = seat.actor.events.remote()

    def _died(self, seat: _Seat, error: Exception) -> None:
        """A worker has died, or could not begin."""
        self._replace(seat)
        if seat.task is None:
            self._not_ready(error)
            return
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            self._events.append(Lost(seat.task.number, "out of memory", f"its worker {seat.name} {_end_of(error)}"))
            return
        if not getattr(error, "preempted", False):
            self._deaths.update(seat.unfinished)
        deaths = max((self._deaths[trial] for trial in seat.unfinished), default=0)
        reason = f"its worker {seat.name} {_end_of(error)}"
        if deaths > BLAMELESS_DEATHS:
            reason += f"; {deaths} have died with this trial on board"
        self._events.append(Lost(seat.task.number, "crashed", reason, blameless=deaths <= BLAMELESS_DEATHS))

    def _not_ready(self, error: Exception) -> None:
        """Go on after a worker that could not begin, unless others will not either."""
        self._failed_starts += 1
        cause = getattr(error, "cause", None)  # what was raised in a worker that is alive
        if isinstance(cause, BatchscopeError):
            raise cause
        if cause is not None:
            got = first_line(cause)
        elif getattr(error, "actor_init_failed", False):
            got = str(error).strip().splitlines()[-1]  # of a traceback in text: its worker could not import this module
        elif self._failed_starts > FAILED_STARTS:
            got = f"one that {_end_of(error)}"
        else:
            return
        raise RunError(
            "a Ray worker must be able to make the workload ready",
            got=got,
            mend=f"see that the cluster has batchscope {version()}, the workload's data and what it imports",
        ) from error

    def _end_silent(self) -> None:
        now = time.monotonic()
        for seat in list(self._seats):
            if seat.task is None or now - seat.heard <= (allowed := self._patience.seconds(seat.task.batch_size)):
                continue
            self._replace(seat)
            reason = f"nothing was heard of its worker {seat.name} for {allowed:,.0f} s"
            self._events.append(Lost(seat.task.number, "timed out", reason))

    def _replace(self, seat: _Seat) -> None:
        self._kill(seat)
        self._seats.remove(seat)
        self._fill_seats()

    def _kill(self, seat: _Seat) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError, RuntimeError, ValueError):  # it is dead already
            self._ray.kill(seat.actor, no_restart=True)


def _end_of(error: BaseException) -> str:
    """A worker's end in words, as far as Ray knows of it.

    Examples:
        >>> _end_of(RuntimeError("its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: …"))
        'was killed or crashed (Ray says SYSTEM_ERROR)'
        >>> _end_of(ConnectionError("refused"))
        'could not be reached any more (ConnectionError: refused)'
    """
    if type(error).__name__ == "OutOfMemoryError":
        return "was ended by Ray, since the memory of its machine was all but used up"
    said = " ".join(str(error).split())
    if "node has died" in said or "node died" in said.lower():
        return "was on a machine that left the cluster"
    _, found, kind = said.partition("Worker exit type: ")
    return (
        f"was killed or crashed (Ray says {kind.split()[0]})"
        if found
        else f"could not be reached any more ({first_line(error)})"
    )


def _reach(address: str | None) -> None:
    """Raise an OSError where nobody listens, which Ray would try for 20 seconds, with a warning in each of them."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the random state, and SIGTERM's handler, which Ray sets when it connects and when it disconnects."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _quietly(ray: ModuleType) -> Iterator[None]:
    """Connect without the thread that prints every worker's end on stdout, for which Ray has no setting."""
    module, before = ray._private.worker, {name: os.environ.get(name) for name in LOCAL_CLUSTER}
    listen = getattr(module, "listen_error_messages", None)
    os.environ.update(LOCAL_CLUSTER)
    try:
        if listen is not None:
            module.listen_error_messages = lambda *arguments: None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if listen is not None:
            module.listen_error_messages = listen
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


class RayWorker:
    """An actor: it trains in a thread of its own, so that it can be asked for events meanwhile."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stopped: set[Trial] = set()
        self._prepared: Prepared | None = None
        self._conditions: Conditions | None = None

    def prepare(
        self, versions: dict[str, str], pickled: bytes, conditions: Conditions, device: str, places: Sequence[str]
    ) -> str:
        """Make the workload ready.

        Args:
            versions: What the driver runs: see :func:`versions_here`.
            pickled: The workload.
            conditions: What all trials have in common.
            device: Type of device to train on.
            places: Where the driver imports from; those that exist here too are added.

        Returns:
            The worker's name.

        Raises:
            ArgumentError: This process runs other versions.
        """
        name, here = worker_name(), versions_here()
        if differing := [package for package in versions if versions[package] != here[package]]:
            raise ArgumentError(
                f"Ray's workers must run what the driver runs, {', '.join(f'{p} {versions[p]}' for p in differing)}",
                got=f"{', '.join(f'{p} {here[p]}' for p in differing)} on {name}",
                mend="install the same there",
            )
        sys.path.extend(place for place in places if place not in sys.path and Path(place).exists())
        torch.set_num_threads(1)
        workload = _cloudpickle().loads(pickled)
        self._prepared = Prepared(workload, torch.device(device), workers=0 if device == "cpu" else None)
        self._conditions = conditions
        return name

    def run(self, task: Task) -> tuple[Event, ...]:
        """Begin a task; its first events."""
        self._stopped.clear()
        threading.Thread(target=self._train, args=(task,), daemon=True).start()
        return self.events()

    def events(self) -> tuple[Event, ...]:
        """Wait for the next event; it, and those that have come up since."""
        events = [self._events.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        return tuple(events)

    def stop(self, trials: Collection[Trial]) -> None:
        """End these trials at their next evaluation."""
        self._stopped.update(trials)

    def _train(self, task: Task) -> None:
        torch.set_num_threads(1)  # in some builds of OpenMP a setting of each thread's own
        try:
            if self._prepared is None or self._conditions is None:
                raise RuntimeError("a worker is prepared before it runs a task")
            run_task(
                self._prepared, task, self._conditions, emit=self._events.put, stopped=lambda: tuple(self._stopped)
            )
        except BaseException as error:  # a SystemExit too: the actor lives on
            self._events.put(Lost.by(task.number, error))


def versions_here() -> dict[str, str]:
    """The versions that decide whether two processes make the same trial of the same numbers.

    Which machine torch was built for is left out: the driver of a cluster of GPUs may have none.
    """
    return {"batchscope": version(), "torch": torch.__version__.partition("+")[0]}


def pickled(workload: Workload) -> bytes:
    """A workload as bytes, with the person's own modules by value, since another machine doesn't have them.

    Args:
        workload: What is trained.

    Returns:
        What ``pickle.loads`` makes a workload of, where the same packages are installed.

    Raises:
        ArgumentError: It holds something that cannot be pickled.
    """
    cloudpickle = _cloudpickle()
    # A script is in there under two names, and goes by value anyway.
    own = {module.__name__: module for module in list(sys.modules.values()) if _is_own(module)}
    own.pop("__main__", None)
    with contextlib.ExitStack() as stack:
        for module in own.values():
            cloudpickle.register_pickle_by_value(module)
            stack.callback(cloudpickle.unregister_pickle_by_value, module)
        try:
            return bytes(cloudpickle.dumps(workload))
        except Exception as error:
            refusal = error
    # A module that holds a lock, say, travels by name only.
    with contextlib.suppress(Exception):
        return bytes(cloudpickle.dumps(workload))
    raise ArgumentError(
        "a workload must be picklable to reach the workers of a Ray cluster",
        got=first_line(refusal),
        mend="have open files, locks and connections made in the functions that use them, not kept in the workload",
    ) from refusal


def _is_own(module: ModuleType) -> bool:
    """Whether a module is neither installed nor part of Python or of this package."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or sys.modules.get(module.__name__) is not module:
        return False
    path = Path(file).resolve()
    depth = module.__name__.count(".") + (path.stem == "__init__")
    library = str(path).startswith((*_LIBRARY, _PACKAGE))
    return path.is_file() and not library and not _holds_installed(path.parents[min(depth, len(path.parents) - 1)])


@functools.cache
def _holds_installed(folder: Path) -> bool:
    """Whether packages were installed into a folder, be it site-packages or one of PYTHONPATH."""
    return folder.name in ("site-packages", "dist-packages") or any(folder.glob("*.dist-info"))


def _cloudpickle() -> ModuleType:
    return require("ray.cloudpickle", "run a sweep on a Ray cluster", "batchscope[ray]")

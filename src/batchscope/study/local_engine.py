"""Tasks on this machine: worker processes, one on each core, whose end is never the end of the sweep."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from batchscope.errors import BatchscopeError
from batchscope.measure.child import CannotForkError, can_fork, in_child
from batchscope.provenance import available_cores, fingerprint
from batchscope.study.here_engine import HereEngine
from batchscope.study.patience import Patience
from batchscope.study.tasks import Conditions, Event, Known, Lost, Standing, Task, TaskDone
from batchscope.study.trial_store import TrialStore
from batchscope.study.ways import Ways, ways_of
from batchscope.study.worker_process import WorkerProcess, serve_tasks
from batchscope.training import Prepared
from batchscope.training.train import chosen_device
from batchscope.workload.workload import Workload

# How often workers are looked after whose end of the channel a process of their own may hold open.
LOOK_SECONDS = 0.1


def local_engine(
    workload: Workload,
    conditions: Conditions,
    *,
    store: TrialStore | None = None,
    processes: int | None = None,
    timeout_seconds: float | None = None,
    device: str | torch.device | None = None,
) -> LocalEngine | HereEngine:
    """The engine for this machine: processes on a CPU, where they can be forked; otherwise this one.

    Args:
        workload: What is trained.
        conditions: What all trials have in common.
        store: Where finished trials go; None: whoever takes the events sees to that.
        processes: Tasks that run at once; None: one a core. On a GPU one, whose trials train together.
        timeout_seconds: Silence after which a worker is given up; None: :class:`Patience` tells.
        device: "cpu", "cuda" …; None: CUDA where there is one.

    Returns:
        The engine, to be used as a context manager.
    """
    chosen = chosen_device(device)
    if chosen.type == "cpu" and _can_train_in_forks():
        prepared = Prepared(workload, chosen, workers=0)  # each has one core, which reading has to share anyway
        return LocalEngine(prepared, conditions, store=store, processes=processes, timeout_seconds=timeout_seconds)
    return HereEngine(Prepared(workload, chosen), conditions, store=store)


def _can_train_in_forks() -> bool:
    """Whether a fork of this process can train: not, where autograd's threads run, which exist with CUDA only."""
    if not can_fork():
        return False
    if not torch.cuda.is_available():
        return True
    try:
        return in_child(_backward).ending == "done"
    except CannotForkError:
        return False


def _backward() -> None:
    torch.autograd.backward(torch.ones((), requires_grad=True))


class LocalEngine:
    """Runs tasks in forked worker processes, each with one thread on a core of its own.

    A worker that dies, hangs or is killed costs the task that it was at, and another takes its place. Finished trials
    are in the store before their event arrives; the workers end with this process, however that ends.

    Args:
        prepared: The workload, with its data on the CPU: workers share this process's copy.
        conditions: What all trials have in common.
        store: Where finished trials go; None: whoever takes the events sees to that.
        processes: Workers; None: one for each core that this process may use.
        timeout_seconds: Silence after which a worker is given up; None: :class:`Patience` tells.

    Attributes:
        workers: How many tasks run at once.
        stores: Whether there is a store.

    Examples:
        >>> from batchscope.study.tasks import Finished, TaskDone, Trial
        >>> from batchscope.workload.digits import digits
        >>> conditions = Conditions(target=0.9, budget_examples=10_000, evaluate_every=500)
        >>> told = []
        >>> with LocalEngine(Prepared(digits(), torch.device("cpu")), conditions, processes=2) as engine:
        ...     engine.submit(Task(0, (Trial(64, 0.1, 0),), way="separate"))
        ...     while not isinstance(event := engine.next_event(60.0), TaskDone):
        ...         told.append(event)
        >>> [event.result.outcome for event in told if isinstance(event, Finished)]
        ['reached']
    """

    def __init__(
        self,
        prepared: Prepared,
        conditions: Conditions,
        *,
        store: TrialStore | None = None,
        processes: int | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        self.prepared, self.conditions, self.store = prepared, conditions, store
        self.workers = processes or available_cores()
        self.stores = store is not None
        self._cores = sorted(os.sched_getaffinity(0))
        self._patience = Patience(timeout_seconds)
        self._places: list[WorkerProcess | None] = [None] * self.workers
        self._waiting: deque[Task] = deque()
        self._events: deque[Event] = deque()
        self._told = Known()
        self._sent_again: set[int] = set()
        fingerprint(prepared.workload)  # goes into every result: found out once, before the forks

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._running():
            worker.end()
        self._places = [None] * self.workers
        self._waiting.clear()

    def submit(self, task: Task) -> None:
        """Queue a task; tasks begin in the order submitted."""
        self._waiting.append(task)
        self._dispatch()

    def tell(self, standings: Sequence[Standing]) -> None:
        """Let tasks know how trials elsewhere have ended, those that run now and those that begin later."""
        self._told.add(standings)
        for worker in self._running():
            if worker.task is not None:
                self._tell(worker, standings, worker.task)

    def next_event(self, timeout_seconds: float) -> Event | None:
        """The next event, or None when none came in time.

        Args:
            timeout_seconds: How long to wait for one.

        Returns:
            The event.

        Raises:
            StorageError: A worker could not store a finished trial.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._look()
            if self._events:
                return self._events.popleft()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            poll = select.poll()
            for worker in self._running():
                poll.register(worker.channel, select.POLLIN)
            poll.poll(1000 * min(left, LOOK_SECONDS))

    def _running(self) -> list[WorkerProcess]:
        return [worker for worker in self._places if worker is not None]

    def _look(self) -> None:
        """Take in what has been sent, see who is gone, and give those that wait something to do."""
        for place, worker in enumerate(self._places):
            if worker is None:
                continue
            worker.channel.flush()
            ended = worker.has_ended()  # asked first: whatever it sent before has arrived then
            for message in worker.channel.receive():
                self._take(worker, message)
            if ended or worker.channel.closed:
                self._bury(place, worker)
            elif worker.task is not None:
                allowed = self._patience.seconds(_batch_size(worker.task))
                if time.monotonic() - worker.heard_at > allowed:
                    self._bury(place, worker, timed_out=f"nothing was heard of it for {allowed:,.0f} s")
        self._dispatch()

    def _take(self, worker: WorkerProcess, message: Any) -> None:
        if isinstance(message, BatchscopeError):  # it concerns all trials
            raise message
        if isinstance(message, Ways):
            ways_of(self.prepared).add(message)
            return
        now = time.monotonic()
        if worker.task is not None:
            self._patience.heard(_batch_size(worker.task), now - worker.heard_at)
        worker.heard_at = now
        self._events.append(message)
        worker.has_begun = True
        if isinstance(message, (TaskDone, Lost)):
            worker.task = None

    def _bury(self, place: int, worker: WorkerProcess, *, timed_out: str | None = None) -> None:
        outcome, reason = worker.end()
        self._places[place] = None
        if worker.task is None:
            return
        number = worker.task.number
        if not worker.has_begun and number not in self._sent_again:  # it died of something else, while it waited
            self._sent_again.add(number)
            self._waiting.appendleft(worker.task)
        else:
            lost = Lost(number, outcome, reason) if timed_out is None else Lost(number, "timed out", timed_out)
            self._events.append(lost)

    def _dispatch(self) -> None:
        for place, worker in enumerate(self._places):
            if not self._waiting:
                return
            if worker is None or worker.task is None:
                task = self._waiting.popleft()
                found = worker or self._fork(place)
                found.channel.post(ways_of(self.prepared))
                self._tell(found, list(self._told.standings.values()), task)
                found.begin(task)

    def _fork(self, place: int) -> WorkerProcess:
        prepared, conditions, store = self.prepared, self.conditions, self.store
        worker = WorkerProcess(
            lambda channel: serve_tasks(channel, prepared, conditions, store),
            core=self._cores[place % len(self._cores)],
            others=[other.channel for other in self._running()],
        )
        self._places[place] = worker
        return worker

    @staticmethod
    def _tell(worker: WorkerProcess, standings: Sequence[Standing], task: Task) -> None:
        """Let a worker know of what matters to its task."""
        if own := [standing for standing in standings if standing.trial.batch_size == _batch_size(task)]:
            worker.channel.post(own)


def _batch_size(task: Task) -> int:
    return task.trials[0].batch_size

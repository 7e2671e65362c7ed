"""Tasks in this process, one after the other: on a GPU, and where processes cannot be forked."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence

import torch

from batchscope.errors import StorageError, first_line
from batchscope.study.run_task import run_task, worker_name
from batchscope.study.tasks import Conditions, Event, Finished, Known, Lost, Standing, Task
from batchscope.study.trial_store import TrialStore
from batchscope.training import Prepared
from batchscope.training.interruption import StopRequest
from batchscope.training.memory import is_out_of_memory


class _Leaving(BaseException):
    """Ends a task at its next evaluation, past every handler of the workload's."""


class HereEngine:
    """Runs tasks in this process, and never more than one at once.

    A task trains in a thread of its own, so that its events can be told of while it is under way; but only while
    :meth:`next_event` waits: at each event the thread stands still until the next one is asked for. Nothing here
    survives a crash of the workload or ends one that hangs.

    Args:
        prepared: The workload, with its data on the device.
        conditions: What all trials have in common.
        store: Where finished trials go; None: whoever takes the events sees to that.

    Attributes:
        workers: 1.
        stores: Whether there is a store.

    Examples:
        >>> from batchscope.study.tasks import TaskDone, Trial
        >>> from batchscope.workload.digits import digits
        >>> conditions = Conditions(target=0.9, budget_examples=10_000, evaluate_every=500)
        >>> with HereEngine(Prepared(digits(), torch.device("cpu")), conditions) as engine:
        ...     engine.submit(Task(0, (Trial(64, 0.1, 0),), way="separate"))
        ...     while not isinstance(event := engine.next_event(60.0), TaskDone):
        ...         last = event
        >>> last.result.outcome
        'reached'
    """

    workers = 1

    def __init__(self, prepared: Prepared, conditions: Conditions, *, store: TrialStore | None = None) -> None:
        self.prepared, self.conditions, self.store = prepared, conditions, store
        self.stores = store is not None
        self._waiting: deque[Task] = deque()
        self._known = Known()
        self._thread: threading.Thread | None = None
        self._events: queue.SimpleQueue[Event | StorageError | None] = queue.SimpleQueue()
        self._go_on = threading.Semaphore(0)
        self._stop = StopRequest()
        self._leaving = False

    def __enter__(self) -> HereEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiting.clear()
        self._leaving = self._stop.requested = True
        if self._thread is not None:
            self._go_on.release()
            self._thread.join()

    def submit(self, task: Task) -> None:
        """Queue a task; tasks begin in the order submitted."""
        self._waiting.append(task)

    def tell(self, standings: Sequence[Standing]) -> None:
        """Let tasks know how trials elsewhere have ended."""
        self._known.add(standings)

    def next_event(self, timeout_seconds: float) -> Event | None:
        """Train on until there is an event.

        Args:
            timeout_seconds: How long to wait where there is nothing to train; otherwise an event comes when it comes.

        Returns:
            The event; None where there is nothing to do, or where a task was interrupted.

        Raises:
            StorageError: A finished trial could not be stored.
        """
        if self._thread is None:
            if not self._waiting:
                time.sleep(timeout_seconds)
                return None
            arguments = (self._waiting.popleft(), torch.get_num_threads())
            self._thread = threading.Thread(target=self._train, args=arguments, daemon=True)
            self._thread.start()
        else:
            self._go_on.release()
        event = self._events.get()
        if event is None:
            self._thread.join()
            self._thread = None
            return self.next_event(timeout_seconds) if self._waiting else None
        if isinstance(event, StorageError):
            raise event
        return event

    def _train(self, task: Task, threads: int) -> None:
        try:
            torch.set_num_threads(threads)  # in some builds a setting of each thread's own
            if self.prepared.device.type == "cuda":
                torch.cuda.set_device(self.prepared.device)  # always one
            run_task(
                self.prepared,
                task,
                self.conditions,
                emit=self._emit,
                known=lambda: list(self._known.standings.values()),
                stop=self._stop,
            )
        except _Leaving:
            pass
        except StorageError as error:
            self._hand_over(error)
        except BaseException as error:  # a SystemExit of the workload's too
            out_of_memory = is_out_of_memory(error)
            self._hand_over(Lost(task.number, "out of memory" if out_of_memory else "crashed", first_line(error)))
        self._events.put(None)

    def _emit(self, event: Event) -> None:
        if self.store is not None and isinstance(event, Finished):
            self.store.finish(event.trial, event.result, worker=worker_name())
        self._hand_over(event)
        if self._leaving:
            raise _Leaving

    def _hand_over(self, event: Event | StorageError) -> None:
        """Let the other thread go on with an event, and stand still until it asks for the next."""
        self._events.put(event)
        self._go_on.acquire()

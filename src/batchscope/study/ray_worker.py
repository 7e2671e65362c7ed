"""What runs in an actor of a Ray cluster, and how a workload gets there."""

from __future__ import annotations

import contextlib
import functools
import queue
import sys
import sysconfig
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType

import torch

from batchscope.errors import ArgumentError, first_line, require
from batchscope.provenance import version
from batchscope.study.run_task import run_task, worker_name
from batchscope.study.tasks import Conditions, Event, Lost, Task, Trial
from batchscope.training import Prepared
from batchscope.workload import Workload

_LIBRARY = tuple(str(Path(sysconfig.get_path(key)).resolve()) for key in ("stdlib", "platstdlib"))
_PACKAGE = str(Path(__file__).resolve().parents[1])


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
        name = worker_name()
        check_versions(versions, versions_here(), name)
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

    Examples:
        >>> sorted(versions_here())
        ['batchscope', 'torch']
    """
    return {"batchscope": version(), "torch": torch.__version__.partition("+")[0]}


def check_versions(driver: dict[str, str], worker: dict[str, str], name: str) -> None:
    """Refuse a worker that runs something else than its driver.

    Args:
        driver: The driver's versions.
        worker: The worker's.
        name: The worker's.

    Raises:
        ArgumentError: They differ.

    Examples:
        >>> try:
        ...     check_versions({"torch": "2.13.0"}, {"torch": "2.12.1"}, "node7:4242")
        ... except ArgumentError as error:
        ...     print(error.got)
        torch 2.12.1 on node7:4242
    """
    differing = [package for package in driver if worker.get(package) != driver[package]]
    if differing:
        raise ArgumentError(
            f"Ray's workers must run what the driver runs, {', '.join(f'{p} {driver[p]}' for p in differing)}",
            got=f"{', '.join(f'{p} {worker.get(p)}' for p in differing)} on {name}",
            mend="install the same there",
        )


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

"""Live progress: what is running, its score, its rate and the time left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass(frozen=True)
class SizeProgress:
    """How one batch size of a sweep stands.

    Attributes:
        batch_size: Examples per update.
        done: Trials that have ended, pruned ones among them.
        running: Trials that run now.
        pruned: Of those that have ended, the ones that were pruned.
        waiting: Trials that are known to come.
        best_rate: The best learning rate so far; None before the first.
        best_examples: Examples to the target at that rate; None without a target, or before it was reached.
        best_score: Best validation score at that rate; None before the first.
        at_edge: Whether the best rate lies at an end of what was tried, so that a better one may lie beyond.
        settled: Whether nothing more will be tried at this batch size.
    """

    batch_size: int
    done: int = 0
    running: int = 0
    pruned: int = 0
    waiting: int = 0
    best_rate: float | None = None
    best_examples: float | None = None
    best_score: float | None = None
    at_edge: bool = False
    settled: bool = False


@dataclass(frozen=True)
class SweepProgress:
    """How a sweep stands: what its live view shows.

    Attributes:
        rows: A line per batch size.
        done: Trials that have ended, pruned ones among them.
        running: Trials that run now.
        pruned: Of those that have ended, the ones that were pruned.
        examples: Examples trained on so far, all trials.
        seconds_left: An estimate; None where there is none yet.
        workers: Tasks that run at once.
    """

    rows: tuple[SizeProgress, ...]
    done: int
    running: int
    pruned: int
    examples: int
    seconds_left: float | None
    workers: int


@dataclass(frozen=True)
class ProgressEvent:
    """One step forward.

    Attributes:
        task: What is going on: "training", "searching for learning rates" …
        label: What runs right now.
        done: How far it is, in examples or whatever ``total`` counts.
        total: How far it goes; None where that is not known.
        score: The last validation score; None before the first.
        learning_rate: The present rate; None where there is none.
        seconds_left: An estimate; None where there is none yet.
        sweep: How a sweep stands, which is shown in place of the rest; None for everything else.
    """

    task: str
    label: str
    done: int
    total: int | None
    score: float | None
    learning_rate: float | None
    seconds_left: float | None
    sweep: SweepProgress | None = None


Reporter = Callable[[ProgressEvent], None]


class Report:
    """Where a function tells how far it is."""

    def __init__(self, listener: Reporter | None, task: str) -> None:
        self._listener = listener
        self.task = task

    def update(
        self,
        *,
        label: str,
        done: int,
        total: int | None,
        score: float | None = None,
        learning_rate: float | None = None,
        seconds_left: float | None = None,
        sweep: SweepProgress | None = None,
    ) -> None:
        """Tell of one step forward."""
        if self._listener is not None:
            self._listener(ProgressEvent(self.task, label, done, total, score, learning_rate, seconds_left, sweep))


@contextlib.contextmanager
def reporter(progress: bool | Reporter, task: str) -> Iterator[Report]:
    """A place to report to, for the length of a task.

    Args:
        progress: False: nothing is shown. True: a live line on stderr if that is a terminal, otherwise a plain line
            now and then. A function: it is called with every event.
        task: What is going on.

    Yields:
        The place.
    """
    if progress is False:
        yield Report(None, task)
    elif progress is not True:
        yield Report(progress, task)
    elif sys.stderr.isatty():
        with _LiveLine() as live:
            yield Report(live, task)
    else:
        yield Report(_PlainLines(), task)


class _LiveLine:
    """One line that is redrawn."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar: Progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[said]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> _LiveLine:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, event: ProgressEvent) -> None:
        if self._task is None:
            self._task = self._bar.add_task(event.task, total=event.total, said="")
        self._bar.update(self._task, description=event.task, completed=event.done, total=event.total, said=_said(event))


class _PlainLines:
    """A line now and then, for logs: the first event, then one every five seconds, and whenever the task changes."""

    EVERY_SECONDS = 5.0

    def __init__(self) -> None:
        self._last = -self.EVERY_SECONDS
        self._task = ""

    def __call__(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        finished = event.total is not None and event.done >= event.total
        if event.task == self._task and now - self._last < self.EVERY_SECONDS and not finished:
            return
        self._last, self._task = now, event.task
        share = f" {event.done / event.total:4.0%}" if event.total else f" {event.done:,}"
        print(f"{event.task}{share}  {_said(event)}", file=sys.stderr, flush=True)


def _said(event: ProgressEvent) -> str:
    parts = [event.label]
    if event.score is not None:
        parts.append(f"score {event.score:.4g}")
    if event.learning_rate is not None:
        parts.append(f"rate {event.learning_rate:.3g}")
    if event.seconds_left is not None:
        parts.append(f"{_duration(event.seconds_left)} left")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"

"""Progress events, and how they are shown in a terminal, a notebook and a log."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.progress import TaskID
    from rich.table import Table


@dataclass(frozen=True)
class SizeProgress:
    """Progress of one batch size of a sweep.

    Attributes:
        batch_size: Examples per update.
        done: Trials that have ended, including pruned ones.
        running: Trials in progress.
        pruned: Pruned trials.
        waiting: Trials that are known to follow.
        best_rate: The best learning rate so far.
        best_examples: Examples to the target at that rate, if it was reached.
        best_score: Best validation score at that rate.
        at_edge: Whether the best rate is at an end of the tried ones, so that a better one may be beyond.
        settled: Whether no more trials follow.
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
    """Progress of a sweep.

    Attributes:
        rows: Progress per batch size.
        done: Trials that have ended, including pruned ones.
        running: Trials in progress.
        pruned: Pruned trials.
        examples: Examples of all trials so far.
        seconds_left: Estimated time left, if known.
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
    """A step of progress.

    Attributes:
        task: The task, for example "training".
        label: The current part of the task.
        done: Amount done, in units of ``total``.
        total: Total amount, if known.
        score: The last validation score.
        learning_rate: The current learning rate.
        seconds_left: Estimated time left, if known.
        sweep: Progress of a sweep, shown instead of the rest.
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
    """Sends the progress of a task to a listener, if any."""

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
        """Send an event."""
        if self._listener is not None:
            self._listener(ProgressEvent(self.task, label, done, total, score, learning_rate, seconds_left, sweep))


@contextlib.contextmanager
def reporter(progress: bool | Reporter, task: str) -> Iterator[Report]:
    """Show the progress of a task.

    Args:
        progress: False shows nothing. True shows a live view if stderr is a terminal, one output in a notebook, and
            occasional lines on stderr otherwise. A function is called with every event.
        task: The task.

    Yields:
        The object to send events to.
    """
    if progress is False:
        yield Report(None, task)
    elif progress is not True:
        yield Report(progress, task)
    elif sys.stderr.isatty():
        with _LiveView() as live:
            yield Report(live, task)
    elif (display := _notebook_display()) is not None:
        shown = _NotebookLine(display)
        yield Report(shown, task)
        shown.clear()
    else:
        yield Report(_PlainLines(), task)


class _LiveView:
    """A progress bar, or the table of a sweep, at the bottom of a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        self._bar: Progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[details]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._sweep: _SweepTable | None = None
        self._live: Live = Live(
            get_renderable=lambda: self._sweep or self._bar, console=console, transient=True, refresh_per_second=4
        )

    def __enter__(self) -> _LiveView:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def __call__(self, event: ProgressEvent) -> None:
        # Another thread draws: assign finished objects only.
        if event.sweep is not None:
            self._sweep = _SweepTable(event.task, event.label, event.sweep)
            return
        self._sweep = None
        if self._task is None:
            self._task = self._bar.add_task(event.task, total=event.total, details="")
        self._bar.update(self._task, description=event.task, completed=event.done, total=event.total)
        self._bar.update(self._task, details=_details(event))


@dataclass(frozen=True)
class _SweepTable:
    """A sweep as a table that fits the width of the terminal, without its less important columns if needed."""

    task: str
    label: str
    sweep: SweepProgress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.measure import Measurement
        from rich.text import Text

        yield Text(f"{self.task}: {_counted(self.sweep)}", style="bold", overflow="ellipsis")
        left = [] if self.sweep.seconds_left is None else [f"{_duration(self.sweep.seconds_left)} left"]
        workers = f"{self.sweep.workers} worker{'' if self.sweep.workers == 1 else 's'}"
        aside = [*left, f"{_short(self.sweep.examples)} examples", workers, *([self.label] if self.label else [])]
        yield Text(" · ".join(aside), style="dim", overflow="ellipsis", no_wrap=True)
        columns = self._columns()
        for dropped in (*_DROPPED_FIRST, ""):
            table = _grid(columns)
            if Measurement.get(console, options.update(max_width=10_000), table).maximum <= options.max_width:
                break
            columns.pop(dropped, None)
        yield table

    def _columns(self) -> dict[str, list[str]]:
        rows = self.sweep.rows
        found = {
            "batch": [f"{row.batch_size:,}" for row in rows],
            "done": [f"{row.done}" for row in rows],
            "pruned": [f"{row.pruned or ''}" for row in rows],
            "running": [f"{row.running or ''}" for row in rows],
            "waiting": [f"{row.waiting or ''}" for row in rows],
            "best rate": ["" if row.best_rate is None else f"{row.best_rate:.3g}" for row in rows],
            "examples": ["" if row.best_examples is None else f"{row.best_examples:,.0f}" for row in rows],
            "score": ["" if row.best_score is None else f"{row.best_score:#.4g}" for row in rows],
            "": [", ".join(["settled"] * row.settled + ["at the edge"] * row.at_edge) for row in rows],
        }
        if not any(found["examples"]):
            del found["examples"]
        return found


# The order in which columns are dropped from a narrow table.
_DROPPED_FIRST = ("waiting", "pruned", "score", "running", "", "done", "examples")


def _grid(columns: dict[str, list[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in columns:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    return table


class _PlainLines:
    """Lines in a log: the first event, one every five seconds, and the last.

    The long lines of a sweep come after 1/30 of the elapsed time, between 5 and 60 seconds.
    """

    EVERY_SECONDS = 5.0
    OF_SWEEP = 1 / 30
    AT_MOST_SECONDS = 60.0

    def __init__(self) -> None:
        self._began = self._last = -math.inf
        self._task = ""

    def __call__(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        finished = event.total is not None and event.done >= event.total and not (event.sweep and event.sweep.running)
        if event.task != self._task:
            self._began, self._last = now, -math.inf
        every = self.EVERY_SECONDS
        if event.sweep is not None:
            every = min(max(every, self.OF_SWEEP * (now - self._began)), self.AT_MOST_SECONDS)
        if now - self._last < every and not finished:
            return
        self._last, self._task = now, event.task
        line = _line(event) if event.sweep is None else _sweep_line(event.task, event.sweep)
        print(line, file=sys.stderr, flush=True)


def _notebook_display() -> Callable[..., Any] | None:
    """IPython's ``display`` in the kernel of a notebook; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import display

    found: Callable[..., Any] = display
    return found


class _NotebookLine:
    """One output of a cell, updated at most twice a second; bars of rich and tqdm would need ipywidgets."""

    EVERY_SECONDS = 0.5
    COLUMNS = 110

    def __init__(self, display: Callable[..., Any]) -> None:
        self._display = display
        self._handle: Any = None
        self._last = -math.inf

    def __call__(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        if now - self._last >= self.EVERY_SECONDS:
            self._last = now
            self._show(self._text(event))

    def clear(self) -> None:
        """Empty the output."""
        if self._handle is not None:
            self._show("")

    def _show(self, text: str) -> None:
        data = {"text/plain": text}
        if self._handle is None:
            self._handle = self._display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def _text(self, event: ProgressEvent) -> str:
        if event.sweep is None:
            return _line(event)
        from rich.console import Console

        stream = io.StringIO()
        console = Console(file=stream, width=self.COLUMNS, color_system=None, force_jupyter=False)
        console.print(_SweepTable(event.task, event.label, event.sweep))
        return stream.getvalue().rstrip()


def _line(event: ProgressEvent) -> str:
    share = f" {event.done / event.total:4.0%}" if event.total else f" {event.done:,}"
    return f"{event.task}{share}  {_details(event)}"


def _details(event: ProgressEvent) -> str:
    parts = [event.label]
    if event.score is not None:
        parts.append(f"score {event.score:.4g}")
    if event.learning_rate is not None:
        parts.append(f"rate {event.learning_rate:.3g}")
    if event.seconds_left is not None:
        parts.append(f"{_duration(event.seconds_left)} left")
    return "  ".join(parts)


def _sweep_line(task: str, sweep: SweepProgress) -> str:
    """A sweep in one line, with the best learning rate of each batch size."""
    parts = [f"{task}: {_counted(sweep)}"]
    for row in sweep.rows:
        if row.best_rate is not None:
            score = "" if row.best_score is None else f" → score {row.best_score:.4g}"
            needs = score if row.best_examples is None else f" → {_short(row.best_examples)} examples"
            parts.append(f"batch {row.batch_size}: {row.best_rate:.3g}{needs}")
    if sweep.seconds_left is not None:
        parts.append(f"{_duration(sweep.seconds_left)} left")
    return " · ".join(parts)


def _counted(sweep: SweepProgress) -> str:
    pruned = f" ({sweep.pruned:,} pruned)" if sweep.pruned else ""
    return f"{sweep.done:,} trial{'' if sweep.done == 1 else 's'} done{pruned}, {sweep.running:,} running"


def _short(number: float) -> str:
    """Format a number with three digits and an SI prefix."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"

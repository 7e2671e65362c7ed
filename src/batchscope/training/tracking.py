"""What is told of a run on its way: a tracker, and a guard that keeps its failures away from the run."""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from batchscope.errors import first_line
from batchscope.records import CurvePoint, Record

RESULT = "result.json"
CURVES = ("training_loss", "validation_loss", "score", "learning_rate", "batch_size", "noise_scale")
"""Fields of a :class:`~batchscope.records.CurvePoint` that a tracker is told of."""


class Tracker(Protocol):
    """Where curves and files of a run are kept, as by TensorBoard, MLflow or Weights & Biases.

    One that has a method ``fail()`` is told by that, in place of ``end()``, where the run ends with an error.
    """

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep these values.

        Args:
            values: Finite numbers, by name.
            step: Training examples seen so far.
        """

    def artifact(self, path: Path) -> None:
        """Keep a copy of a file, made before this returns.

        Args:
            path: The file.
        """

    def end(self) -> None:
        """There is nothing more to come."""


class Tracked:
    """Tells a tracker of a run. One that raises is warned of once, and then left alone: the run goes on.

    Args:
        tracker: Whom to tell; None: nobody.

    Attributes:
        tracker: The same; None once it has failed.
    """

    def __init__(self, tracker: Tracker | None) -> None:
        self.tracker = tracker

    def point(self, point: CurvePoint) -> None:
        """Tell of an evaluation.

        Args:
            point: What was found, by examples seen.
        """
        found = {name: getattr(point, name) for name in CURVES}
        values = {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
        with self._guarded("log") as tracker:
            if tracker is not None:
                tracker.log(values, point.examples)

    def record(self, record: Record, name: str = RESULT) -> None:
        """Have a record kept as a file.

        Args:
            record: The record.
            name: The file's name.
        """
        with self._guarded("artifact") as tracker:
            if tracker is not None:
                with tempfile.TemporaryDirectory() as folder:
                    tracker.artifact(record.to_json(Path(folder) / name))

    def end(self, *, failed: bool = False) -> None:
        """Tell that there is nothing more to come.

        Args:
            failed: Whether an error ended it.
        """
        call = "fail" if failed and hasattr(self.tracker, "fail") else "end"
        with self._guarded(call) as tracker:
            if tracker is not None:
                getattr(tracker, call)()

    @contextlib.contextmanager
    def _guarded(self, call: str) -> Iterator[Tracker | None]:
        tracker = self.tracker
        try:
            yield tracker
        except Exception as error:  # whatever a tracker does, it is not worth a run
            self.tracker = None
            said = f"the tracker failed in {call}() and is told nothing more; training goes on ({first_line(error)})"
            warnings.warn(said, RuntimeWarning, stacklevel=2)


@contextlib.contextmanager
def tracked(tracker: Tracker | None) -> Iterator[Tracked]:
    """Tell a tracker of a run for as long as the block lasts.

    Args:
        tracker: Whom to tell; None: nobody.

    Yields:
        What is told, and tells it on.
    """
    watched = Tracked(tracker)
    try:
        yield watched
    except BaseException:
        watched.end(failed=True)
        raise
    watched.end()

"""What the benchmarks on real networks know of each: the workload, its target and the settings that are recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchscope.workload import Workload


@dataclass(frozen=True, kw_only=True)
class RealTask:
    """A network of the make and size of a public example.

    Attributes:
        name: Its name, also of its folder and file.
        make: Makes the workload; the same data at each call.
        target: Score that ends a run; minus the validation loss where the workload has no score of its own.
        batch_size: Batch size of the public example.
        learning_rate: Learning rate of the public example. Rates recorded are this one times powers of 2.
        batch_sizes: Batch sizes that may be recorded, smallest first.
        expected_examples: About how many examples the fastest run needs; it places the points of a curve.
        expected_seconds: About how many CPU seconds of one thread the fastest run needs; it limits the first run.
        clip_norm: Largest norm of the gradient; a longer one is scaled down to it. None: no clipping.
    """

    name: str
    make: Callable[[], Workload]
    target: float
    batch_size: int
    learning_rate: float
    batch_sizes: tuple[int, ...]
    expected_examples: int
    expected_seconds: float
    clip_norm: float | None = None

"""The law of an all-reduce's time against its size, and what it adds to the update of a data-parallel run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from batchscope.fit.intervals import median_interval
from batchscope.fit.step_time import fit_step_time
from batchscope.records import AllReduceLaw, AllReducePoint, Interval, StepTimeLaw
from batchscope.records.devices import AllReduceAlgorithm

MOST_SIZES = 6
# Bytes that take less than this share of the largest all-reduce's time say nothing of the bandwidth.
LEAST_SHARE = 0.01


def fit_all_reduce(
    message_bytes: Sequence[int], seconds: NDArray[np.float64], *, ranks: int, backend: str | None = None, seed: int = 0
) -> AllReduceLaw:
    """Fit the law of a ring to all-reduces that were timed round by round.

    The time a + b·n is fitted to relative residuals as an update's is (:func:`batchscope.fit.step_time.fit_step_time`),
    with intervals over resampled rounds; then α = a/2(N − 1) and β = 2(N − 1)/(N·b).

    Args:
        message_bytes: Two to six sizes, ascending.
        seconds: Rounds×sizes.
        ranks: N, at least 2.
        backend: What the ranks talked through.
        seed: Of the resampling.

    Returns:
        The law. Its bandwidth is not resolved where the sizes were too small for their bytes to cost anything.

    Raises:
        ValueError: Fewer than two ranks or sizes, more than six sizes, or times that are not positive.

    Examples:
        >>> sizes = [1_000, 100_000, 10_000_000]
        >>> law = fit_all_reduce(sizes, np.array([[3e-5 + 2e-9 * n for n in sizes]] * 6), ranks=2)
        >>> print(f"{law.latency_seconds.value:.4g} {law.bytes_per_second.value:.4g}")
        1.5e-05 5e+08
    """
    if ranks < 2 or len(message_bytes) > MOST_SIZES:
        raise ValueError("at least two ranks and at most six sizes are needed")
    line = fit_step_time(message_bytes, seconds, seed=seed)
    steps = 2 * (ranks - 1)
    latency, slope = line.fixed_seconds, line.seconds_per_example

    def bandwidth(seconds_per_byte: float | None) -> float | None:
        if seconds_per_byte is None:
            return None
        return steps / (ranks * seconds_per_byte) if seconds_per_byte > 0 else math.inf

    each = [None if x is None else x / steps for x in (latency.value, latency.low, latency.high)]
    low, value, high = bandwidth(slope.high), bandwidth(slope.value), bandwidth(slope.low)
    share = (slope.value or 0.0) * message_bytes[-1] / (line.seconds(message_bytes[-1]) or math.inf)
    resolved = value is not None and share >= LEAST_SHARE
    return AllReduceLaw(
        latency_seconds=Interval(each[0], each[1], each[2]),
        bytes_per_second=Interval(value, low, high) if resolved else Interval.unresolved(low=low, high=high),
        ranks=ranks,
        backend=backend,
        points=tuple(
            AllReducePoint(size, median_interval(column.tolist()))
            for size, column in zip(message_bytes, seconds.T, strict=True)
        ),
        relative_error=line.relative_error,
    )


def all_reduce_seconds(
    latency: NDArray[np.float64] | float,
    bytes_per_second: NDArray[np.float64] | float,
    *,
    message_bytes: float,
    ranks: int,
    algorithm: AllReduceAlgorithm = "ring",
) -> NDArray[np.float64]:
    """Time of an all-reduce of n bytes on N ranks by the α–β model.

    Round a ring 2(N − 1)·(α + n/(N·β)), which sends the least bytes (Patarasuk and Yuan 2009); up a binary tree and
    down again 2·⌈log₂ N⌉·(α + n/β), which takes the fewest steps (Thakur et al. 2005).

    Args:
        latency: α, seconds of a step whatever its size.
        bytes_per_second: β between two neighbours.
        message_bytes: n, what every rank puts in.
        ranks: N.
        algorithm: One of both, or the faster.

    Returns:
        The seconds, one for each pair of α and β.

    Examples:
        >>> times = [
        ...     all_reduce_seconds(2e-5, 1e10, message_bytes=4e5, ranks=1024, algorithm=by) for by in ("ring", "tree")
        ... ]
        >>> [f"{1e3 * float(seconds):.3g} ms" for seconds in times]
        ['41 ms', '1.2 ms']
    """
    alpha, beta = np.asarray(latency, dtype=np.float64), np.asarray(bytes_per_second, dtype=np.float64)
    ring = 2 * (ranks - 1) * (alpha + message_bytes / (ranks * beta))
    tree = 2 * math.ceil(math.log2(ranks)) * (alpha + message_bytes / beta)
    return np.asarray({"ring": ring, "tree": tree, "fastest": np.minimum(ring, tree)}[algorithm])


def data_parallel_step_seconds(
    step_time: StepTimeLaw, batch_size: int, *, ranks: int, parameter_bytes: int, law: AllReduceLaw
) -> float | None:
    """Time of an update of a global batch on several devices: τ(⌈B/N⌉) and the sum of the gradients after it.

    The two are added. A loop that sums gradients during the backward pass, as ``DistributedDataParallel`` does, takes
    less, down to the longer of both.

    Args:
        step_time: τ, the time of an update on one device.
        batch_size: B, examples per update on all devices together.
        ranks: N, devices; 1 communicates nothing.
        parameter_bytes: Bytes of all gradients.
        law: The law of an all-reduce.

    Returns:
        The seconds; None where one of the laws is not resolved.

    Raises:
        ValueError: A batch or a number of ranks below 1.

    Examples:
        >>> one = Interval(1e-3, None, None), Interval(1e-5, None, None)
        >>> tau = StepTimeLaw(*one, bend=None, seconds_per_example_below=None, knee=one[0], relative_error=0.0)
        >>> law = AllReduceLaw.given(gigabytes_per_second=1, microseconds=50)
        >>> times = [data_parallel_step_seconds(tau, 256, ranks=n, parameter_bytes=400_000, law=law) for n in (1, 4)]
        >>> [round(1e3 * seconds, 3) for seconds in times]
        [3.56, 2.54]
    """
    if batch_size < 1 or ranks < 1:
        raise ValueError("a batch and its ranks must be at least 1")
    computing = step_time.seconds(-(-batch_size // ranks))
    communicating = law.seconds(parameter_bytes, ranks=ranks)
    return None if computing is None or communicating is None else computing + communicating

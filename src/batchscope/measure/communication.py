"""What an all-reduce between ranks takes, against its size."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from batchscope.errors import ArgumentError
from batchscope.fit.communication import MOST_SIZES, fit_all_reduce
from batchscope.records import AllReduceLaw
from batchscope.training.meters import Stopwatch
from batchscope.training.ranks import Ranks, together
from batchscope.training.train import chosen_device

SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 24)
# Small messages are passed several times in a row, so that a block is long beside the clock and Python.
BLOCK_SECONDS = 0.002
LEAST_ROUNDS, MOST_ROUNDS = 6, 100


def all_reduce_law(
    *,
    message_bytes: Sequence[int] = SIZES,
    seconds: float = 3.0,
    device: str | torch.device | None = None,
) -> AllReduceLaw:
    """Measure the time of an all-reduce against its size, and fit the law of a ring to it.

    Called by all ranks of a program that torchrun started, alike. Messages of 32-bit numbers are summed as gradients
    are: through NCCL on CUDA devices, through gloo elsewhere. All sizes are timed in every round, from the moment at
    which all ranks are there to the end of the last one; a size's time is the median over rounds
    (:func:`batchscope.fit.communication.fit_all_reduce`).

    Args:
        message_bytes: Two to six sizes, multiples of 4.
        seconds: About how long it may take; six rounds are made in any case.
        device: "cpu", "cuda" …; None: this rank's CUDA device where there is one.

    Returns:
        The law, the same on all ranks.

    Raises:
        ArgumentError: Sizes or a time that make no sense, or a process that was started by itself.
        RankLost: Not all ranks are there any more.
    """
    sizes = sorted(set(message_bytes))
    if not 2 <= len(sizes) <= MOST_SIZES or any(type(n) is not int or n < 4 or n % 4 for n in sizes):
        raise ArgumentError(
            f"message_bytes must be two to {MOST_SIZES} different multiples of 4", got=tuple(message_bytes)
        )
    if not 0 < seconds < math.inf:
        raise ArgumentError("seconds must be a positive number", got=seconds)
    with together() as ranks:
        if ranks is None:
            raise ArgumentError(
                "an all-reduce needs several ranks",
                got="one process",
                mend="start this program with torchrun, or give the law with bs.AllReduceLaw.given",
            )
        place = chosen_device(device if device is not None else ranks.device())
        ranks.use(place)
        messages = [torch.zeros(n // 4, device=place) for n in sizes]
        times = _timed(ranks, messages, seconds)
        return fit_all_reduce(sizes, times, ranks=ranks.size, backend=ranks.backend)


def _timed(ranks: Ranks, messages: list[Tensor], seconds: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Seconds of each round and message, those of the slowest rank."""

    def block(message: Tensor, count: int) -> float:
        clock = Stopwatch(message.device)
        ranks.exchange(None)
        clock.start()
        for _ in range(count):
            ranks.add_up(message)
        clock.stop()
        return clock.seconds / count

    def slowest(own: list[float]) -> list[float]:
        return [max(each) for each in zip(*ranks.exchange(own), strict=True)]

    for message in messages:
        block(message, 1)  # the first one connects
    counts = [max(1, min(100, round(BLOCK_SECONDS / t))) for t in slowest([block(message, 1) for message in messages])]
    rounds: list[list[float]] = []
    began = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (
        len(rounds) < MOST_ROUNDS and ranks.first(lambda: time.perf_counter() - began < seconds)
    ):
        rounds.append(slowest([block(message, count) for message, count in zip(messages, counts, strict=True)]))
    return np.asarray(rounds)

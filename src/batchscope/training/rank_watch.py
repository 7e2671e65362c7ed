"""Telling that a rank fell silent where no connection says so: its machine lost power, or the network parted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

# A rank that is only slow, or in an evaluation, still beats: its thread runs beside whatever it computes.
INTERVAL_SECONDS, SILENCE_SECONDS = 1.0, 20.0


class Counts(Protocol):
    """What is wanted of a ``torch.distributed.Store``."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to the number under a name, and return it."""


class Watch(threading.Thread):
    """Counts up in a store for as long as this process lives, and watches the next rank do so.

    Each rank watches one other, in a ring, from its first count on. When this process itself stood still, as one that
    was stopped and let go on, what it missed is nobody's silence.

    Args:
        store: Where they count.
        rank: This process.
        size: How many there are.
        on_silence: Called, in this thread and once, with the rank that has been silent; with this process's own where
            the store itself does not answer.
        interval_seconds: Between two counts.
        silence_seconds: After which a rank counts as gone.
    """

    def __init__(
        self,
        store: Counts,
        rank: int,
        size: int,
        on_silence: Callable[[int], None],
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        super().__init__(name="batchscope-rank-watch", daemon=True)
        self._store, self._rank, self._next = store, rank, (rank + 1) % size
        self._on_silence = on_silence
        self._interval, self._silence = interval_seconds, silence_seconds
        self._ended = threading.Event()

    def stop(self) -> None:
        """Watch no longer; this rank then counts as silent to the others."""
        self._ended.set()

    def run(self) -> None:
        """Count and watch, until stopped or somebody is silent."""
        seen, since, before = -1, time.monotonic(), time.monotonic()
        while not self._ended.wait(self._interval):
            now = time.monotonic()
            if now - before > self._silence / 2:
                since = now
            before = now
            try:
                self._store.add(f"beat/{self._rank}", 1)
                count = self._store.add(f"beat/{self._next}", 0)
            except RuntimeError:
                # Its host may have ended in good order, and this rank be about to.
                if not self._ended.wait(self._interval):
                    self._on_silence(self._rank)
                return
            if count != seen or count == 0:
                seen, since = count, now
            elif now - since > self._silence:
                self._on_silence(self._next)
                return

"""How long a worker may be silent before it is given up."""

from __future__ import annotations

LEAST_SECONDS = 300.0
# Before anything is known of the pace.
FIRST_SECONDS = 1800.0
FACTOR = 20.0


class Patience:
    """How long to wait for the next word of a worker: twenty times the longest silence so far, at least five minutes.

    A silence is the time between two evaluations, which come after a fixed number of examples. An update of a smaller
    batch takes no longer than one of a larger batch, and there are more of them: a silence of s seconds at batch size
    b lets expect at most s·max(1, b/B) at batch size B.

    Args:
        seconds: A fixed time instead; None: by that rule.

    Examples:
        >>> patience = Patience()
        >>> patience.seconds(8)
        1800.0
        >>> patience.heard(256, 2.0)
        >>> patience.seconds(256), patience.seconds(8)  # at most 64 seconds at batch size 8
        (300.0, 1280.0)
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._fixed = seconds
        self._longest: dict[int, float] = {}

    def heard(self, batch_size: int, silence_seconds: float) -> None:
        """Take note of a silence that has ended."""
        self._longest[batch_size] = max(self._longest.get(batch_size, 0.0), silence_seconds)

    def seconds(self, batch_size: int) -> float:
        """How long a worker at that batch size may be silent."""
        if self._fixed is not None:
            return self._fixed
        if not self._longest:
            return FIRST_SECONDS
        expected = max(silence * max(1.0, known / batch_size) for known, silence in self._longest.items())
        return max(LEAST_SECONDS, FACTOR * expected)

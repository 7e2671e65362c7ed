"""What the ranks of a data-parallel run spend on summing their gradients."""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.errors import ArgumentError
from batchscope.records.interval import Interval


@dataclass(frozen=True)
class AllReducePoint:
    """The time of an all-reduce of one size.

    Attributes:
        message_bytes: Bytes that every rank put in, and got back summed.
        seconds: From the last rank's start to its end: median over rounds.
    """

    message_bytes: int
    seconds: Interval


@dataclass(frozen=True)
class AllReduceLaw:
    """Time of an all-reduce of n bytes on N ranks, 2(N − 1)·(α + n/(N·β)): a ring's (Patarasuk and Yuan 2009).

    Each of the 2(N − 1) steps of a ring passes an N-th of the bytes on. A law measured on some ranks so says what
    others of the same links would take.

    Attributes:
        latency_seconds: α, what a step takes whatever its size.
        bytes_per_second: β, the bandwidth between two neighbours.
        ranks: How many it was measured on; None where it was given.
        backend: What they talked through, "gloo" or "nccl"; None where it was given.
        points: The measured times, by size.
        relative_error: Root mean square of the law's relative residuals; None where it was given.

    Examples:
        >>> law = AllReduceLaw.given(gigabytes_per_second=10, microseconds=20)
        >>> law.seconds(400_000_000, ranks=1), round(law.seconds(400_000_000, ranks=4), 6)
        (0.0, 0.06012)
    """

    latency_seconds: Interval
    bytes_per_second: Interval
    ranks: int | None = None
    backend: str | None = None
    points: tuple[AllReducePoint, ...] = ()
    relative_error: float | None = None

    @classmethod
    def given(cls, *, gigabytes_per_second: float, microseconds: float = 0.0) -> AllReduceLaw:
        """A law from what is known of the links, without measuring.

        Args:
            gigabytes_per_second: Bandwidth between two neighbours, in 10⁹ bytes a second.
            microseconds: Time of a step whatever its size.

        Returns:
            The law.

        Raises:
            ArgumentError: A bandwidth or a latency that makes no sense.
        """
        if not gigabytes_per_second > 0:
            raise ArgumentError("the bandwidth between ranks must be above 0 GB/s", got=gigabytes_per_second)
        if not 0 <= microseconds < float("inf"):
            raise ArgumentError("the latency between ranks must be at least 0 µs", got=microseconds)
        return cls(
            latency_seconds=Interval(1e-6 * microseconds, None, None),
            bytes_per_second=Interval(1e9 * gigabytes_per_second, None, None),
        )

    def seconds(self, message_bytes: float, *, ranks: int) -> float | None:
        """Time of an all-reduce.

        Args:
            message_bytes: Bytes that every rank puts in.
            ranks: How many there are; one has nothing to do.

        Returns:
            The seconds; None where the law is not resolved.
        """
        if self.latency_seconds.value is None or self.bytes_per_second.value is None:
            return None
        return 2 * (ranks - 1) * (self.latency_seconds.value + message_bytes / (ranks * self.bytes_per_second.value))

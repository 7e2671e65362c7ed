"""Which rank a process is, which part of a batch is a rank's, and what it is called when one is lost."""

from __future__ import annotations

import os

from batchscope.errors import ArgumentError, RunError

ALL = "a run goes on only with all of its ranks"


class RankLost(RunError):  # noqa: N818 — as RankLostError it would say no more
    """A rank has gone, and the others cannot go on without it.

    Attributes:
        speaks: Whether this process is the first of those that are left: it saves, and says what happened.
    """

    speaks = True

    def mended(self, mend: str) -> RankLost:
        """The same with a mend."""
        other = type(self)(self.rule, got=self.got, mend=mend)
        other.speaks = self.speaks
        return other


def rank_here() -> int:
    """The rank of this process among those that were started together; 0 where it was started by itself."""
    return places_here()[0]


def places_here() -> tuple[int, int]:
    """The rank of this process and how many there are, as torchrun's environment variables say.

    Returns:
        Both; 0 of 1 where there are no such variables.

    Raises:
        ArgumentError: They make no sense.
    """
    if "RANK" not in os.environ:
        return 0, 1
    values = [os.environ["RANK"], os.environ.get("WORLD_SIZE", "1")]
    try:
        rank, size = map(int, values)
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise ArgumentError(
            "RANK and WORLD_SIZE must be whole numbers, the first below the second",
            got=" and ".join(values),
            mend="start the ranks with torchrun, or unset both",
        )
    return rank, size


def share(positions: range, rank: int, size: int) -> range:
    """The part of an update's positions that a rank trains on.

    Parts follow each other, and the first ones have one position more where they cannot be equal: together they are
    the update, whatever the number of ranks.

    Args:
        positions: The update's.
        rank: Which part.
        size: How many there are.

    Returns:
        The part, which may be empty.

    Examples:
        >>> [share(range(10, 17), rank, 3) for rank in range(3)]
        [range(10, 13), range(13, 15), range(15, 17)]
        >>> [len(share(range(2), rank, 3)) for rank in range(3)]
        [1, 1, 0]
    """
    least, more = divmod(len(positions), size)
    start = positions.start + rank * least + min(rank, more)
    return range(start, start + least + (rank < more))

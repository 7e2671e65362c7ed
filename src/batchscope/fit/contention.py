"""What times mean that were measured while other programs took a share of the processor.

Times on a busy machine are too long, and not alike for all batch sizes: one that computes with all cores loses more
than one that needs a single core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from batchscope.fit.intervals import median_interval
from batchscope.records import Interval

# Contention up to this changes a time by no more than rounds differ by themselves on a quiet machine.
QUIET = 0.05
# Quiet samples that a median with a 95% interval takes.
LEAST_SAMPLES = 6
# Where there are fewer, this share of the samples counts, the least contended ones.
LEAST_CONTENDED = 0.25
# Whatever others take, something is left: no time is taken for more than 100 times too long.
MOST_SHARE = 0.99
# Where all of the processor is contended, what is left of it is slower too, since others fill the caches: with four
# programs beside it on two cores (a share of 0.8), updates of 0.88 ms took 0.97 ms of the processor's own time.
COLD_CACHES = 0.25
# Times known no better than this were taken on a machine that did something else besides, whatever its counters say:
# half of a median's interval over the median. Rounds on a quiet machine stay below 5%.
WIDE = 0.15


def share_taken(others: float, *, threads: int, cores: int) -> float:
    """Share of the processor time that some threads want which others take: what the cores cannot give to both.

    Args:
        others: Cores that others keep busy.
        threads: Threads that want a core each.
        cores: Cores that there are.

    Returns:
        A number from 0 to 1.

    Examples:
        >>> share_taken(1.0, threads=1, cores=2), share_taken(1.0, threads=2, cores=2)
        (0.0, 0.5)
    """
    wanted = min(threads, cores)
    return min(1.0, max(0.0, (others + wanted - cores) / wanted))


class QuietTime(NamedTuple):
    """A time taken from the quietest moments.

    Attributes:
        seconds: The time, with its interval.
        contention: Of the samples that count, the mean; None where unknown.
        counted: Which samples those are.
    """

    seconds: Interval
    contention: float | None
    counted: tuple[int, ...]

    @property
    def quiet(self) -> bool:
        """Whether enough quiet moments came, as far as is known."""
        return self.contention is None or self.contention <= QUIET


def quiet_time(seconds: Sequence[float], shares: Sequence[float | None]) -> QuietTime:
    """The time that something takes on a quiet machine, from samples on one that may be busy.

    From six quiet samples on, their median with its interval; likewise of all samples where nothing is known of
    contention. Where too few are quiet, the least contended quarter counts, six at least: with a share c of the
    processor gone, a time t was between (1 − c)·(1 − c/4)·t, all of what was lost being ours to have and caches cold,
    and t. The interval is as wide as that, and its value the geometric mean of its low end and the median.

    Args:
        seconds: Samples.
        shares: The contention of each; None where unknown.

    Returns:
        The time.

    Examples:
        >>> quiet_time([1.0] * 6 + [3.0] * 20, [0.0] * 6 + [0.7] * 20).seconds.value
        1.0
        >>> print(quiet_time([2.0] * 6, [0.5] * 6).seconds)
        1.323 (0.875 to 2)
    """
    known = [(share, i) for i, share in enumerate(shares) if share is not None]
    everything = tuple(range(len(seconds)))
    if not known:
        return QuietTime(median_interval(seconds), None, everything)
    quiet = tuple(i for share, i in known if share <= QUIET)
    if len(quiet) >= min(LEAST_SAMPLES, len(seconds)):
        mean = math.fsum(share for share, _ in known if share <= QUIET) / len(quiet)
        return QuietTime(median_interval([seconds[i] for i in quiet]), mean, quiet)
    least = sorted(known)[: max(LEAST_SAMPLES, math.ceil(LEAST_CONTENDED * len(known)))]
    counted = tuple(sorted(i for _, i in least))
    found = median_interval([seconds[i] for i in counted])
    low = min(seconds[i] * (1 - min(share, MOST_SHARE)) * (1 - COLD_CACHES * share) for share, i in least)
    low, high = min(low, found.low or low), found.high or found.value or math.nan
    value = math.sqrt(low * (found.value or high))
    contention = math.fsum(share for share, _ in least) / len(least)
    return QuietTime(replace(found, value=value, low=low, high=high), contention, counted)


def widened(interval: Interval, first: float | None, second: float | None = None) -> Interval:
    """The interval of something worked out from times on a busy machine, by as much wider as they are uncertain.

    A time may be too long by up to 1/(1 − c), so that what rises with it may be that much lower; a ratio, or what hangs
    on how times compare, may also be higher by what the other time is too long.

    Args:
        interval: What was worked out.
        first: Contention of the times that it rises with; None: unknown, taken as none.
        second: Contention of the times that it falls with; None: the same as ``first``.

    Returns:
        The interval.

    Examples:
        >>> print(widened(Interval(1.0, 0.9, 1.1), 0.5))
        1 (0.45 to 2.2)
    """
    down = min(first or 0.0, MOST_SHARE)
    up = down if second is None else min(second, MOST_SHARE)
    if interval.low is None or interval.high is None:
        return interval
    return replace(interval, low=interval.low * (1 - down), high=interval.high / (1 - up))


def busy_warning(contention: float | None, what: str = "updates") -> str | None:
    """What a record says of contention.

    Args:
        contention: Share of the processor time that others took; None where unknown.
        what: What wanted it.

    Returns:
        A sentence or two; None where it was quiet, or nothing is known.

    Examples:
        >>> busy_warning(0.02) is None, busy_warning(0.4).startswith("The machine was busy: other programs took 40%")
        (True, True)
    """
    if contention is None or contention <= QUIET:
        return None
    return (
        f"The machine was busy: other programs took {contention:.0%} of the processor time that {what} needed, and too "
        f"few quiet moments came. Times are uncertain by that much; measure again when it is quiet."
    )


def spread_warning(times: Sequence[Interval]) -> str | None:
    """What a record says where times vary so much that the machine must have been busy, whatever its counters say.

    Args:
        times: Times with intervals, as of an update at several batch sizes.

    Returns:
        A sentence or two; None where half of them or more are known to within 15%.
    """
    spreads = sorted((t.high - t.low) / (2 * t.value) for t in times if t.low is not None and t.value and t.high)
    if not spreads or spreads[len(spreads) // 2] <= WIDE:
        return None
    return (
        f"Times of an update varied by more than {WIDE:.0%} from round to round: the machine was busy with something "
        f"else. Measure again when it is quiet, or read every time with its interval."
    )

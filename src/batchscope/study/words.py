"""Numbers in sentences."""

from __future__ import annotations

from batchscope.records import Interval


def interval(found: Interval) -> str:
    """A value with its ends, where they are known.

    Examples:
        >>> interval(Interval(0.95, 0.94, 0.96)), interval(Interval.unresolved())
        ('0.9500 (0.9400 to 0.9600)', 'an unknown amount')
    """
    if found.value is None:
        return "an unknown amount"
    if found.low is None or found.high is None:
        return number(found.value)
    return f"{number(found.value)} ({number(found.low)} to {number(found.high)})"


def number(value: float) -> str:
    """A number to four decimals, or three digits where it is very small or large."""
    return f"{value:.4f}" if 0.0001 <= abs(value) < 100 else f"{value:.3g}"


def count(value: float) -> str:
    """A large number to three digits, written out.

    Examples:
        >>> count(12345.6), count(7.2)
        ('12,300', '7.2')
    """
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def counts(found: Interval) -> str:
    """Like :func:`interval`, of a large number.

    Examples:
        >>> counts(Interval(12345.0, 11111.0, float("inf")))
        '12,300 (11,100 or more)'
    """
    if found.value is None:
        return "an unknown number" if found.low is None else f"more than {count(found.low)}"
    if found.low is None or found.high is None:
        return count(found.value)
    ends = f"{count(found.low)} or more" if found.high == float("inf") else f"{count(found.low)} to {count(found.high)}"
    return f"{count(found.value)} ({ends})"


def seconds(time: float | None) -> str:
    """A time in the unit that suits it.

    Examples:
        >>> seconds(0.0123), seconds(12.345), seconds(600)
        ('12.3 ms', '12.3 s', '10 min')
    """
    if time is None:
        return "an unknown time"
    if time < 1:
        return f"{time * 1000:.3g} ms"
    return f"{time:.3g} s" if time < 120 else f"{time / 60:.3g} min"


def counted(number: int, thing: str) -> str:
    """How many of something.

    Examples:
        >>> counted(1, "run"), counted(2, "run")
        ('1 run', '2 runs')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def listed(items: list[str]) -> str:
    """Items in a sentence.

    Examples:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"

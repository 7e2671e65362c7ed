"""Numbers as people read them: a few significant digits, a unit that fits, a mark where nothing is known."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from batchscope.records import Interval
from batchscope.records.plan import Shape

UNKNOWN = "–"
UNRESOLVED = "not resolved"
MINUS = "−"


@dataclass(frozen=True)
class Unit:
    """A unit shared by a column or an axis.

    Attributes:
        name: As printed after the number.
        size: How many base units (seconds, bytes) it stands for.
    """

    name: str
    size: float

    def of(self, value: float | None, digits: int = 3) -> str:
        """The value in this unit, the unit left out; zeros at the end stay, so that a column lines up."""
        return UNKNOWN if value is None else number(value / self.size, digits, strip=False)

    def text(self, value: float | None, digits: int = 3) -> str:
        """The value in this unit, the unit named."""
        return UNKNOWN if value is None else f"{number(value / self.size, digits)} {self.name}"


_TIME = (Unit("µs", 1e-6), Unit("ms", 1e-3), Unit("s", 1.0), Unit("min", 60.0), Unit("h", 3600.0))
_TIME_FROM = (0.0, 1e-3, 0.5, 180.0, 3 * 3600.0)  # seconds from which each is used
_ENERGY = (Unit("J", 1.0), Unit("kJ", 1e3), Unit("kWh", 3.6e6), Unit("MWh", 3.6e9))
_MEMORY = tuple(Unit(name, 1024.0**k) for k, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB")))


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number, which is what a chart can show."""
    return value is not None and math.isfinite(value)


def time_unit(values: Iterable[float | None]) -> Unit:
    """The unit for times that are read side by side: chosen for their middle, none of them in the thousands.

    Args:
        values: Seconds; None and what is not finite and positive does not count.

    Returns:
        One of µs, ms, s, min and h.

    Examples:
        >>> time_unit([0.02, 0.4, None]).name, time_unit([700.0, 900.0]).name
        ('ms', 'min')
    """
    known = [value for value in values if value is not None and 0 < value < math.inf]
    if not known:
        return _TIME[2]
    middle = _geometric_middle(known)
    fitting = [
        unit
        for unit, start in zip(_TIME, _TIME_FROM, strict=True)
        if middle >= start or (min(known) >= 0.01 * unit.size and max(known) >= 1000 * _smaller(unit).size)
    ]
    return fitting[-1]


def memory_unit(values: Iterable[float | None]) -> Unit:
    """The unit for amounts of memory that are read side by side, in powers of 1024.

    Args:
        values: Bytes; None and what is not finite and positive does not count.

    Returns:
        One of B, KiB, MiB, GiB and TiB.

    Examples:
        >>> memory_unit([3_500_000]).text(3_500_000)
        '3.34 MiB'
    """
    known = [value for value in values if value is not None and 0 < value < math.inf]
    if not known:
        return _MEMORY[2]
    middle = _geometric_middle(known)
    return [unit for unit in _MEMORY if middle >= unit.size or unit.size == 1][-1]


def energy_unit(values: Iterable[float | None]) -> Unit:
    """The unit for energies that are read side by side.

    Args:
        values: Joules; None and what is not finite and positive does not count.

    Returns:
        One of J, kJ, kWh and MWh.

    Examples:
        >>> energy_unit([4_000.0, 90_000.0]).name, energy_unit([7.2e7]).text(7.2e7)
        ('kJ', '20 kWh')
    """
    known = [value for value in values if value is not None and 0 < value < math.inf]
    middle = _geometric_middle(known) if known else 1e3
    return [unit for unit in _ENERGY if middle >= unit.size or unit.size == 1][-1]


def seconds(value: float | None, digits: int = 3) -> str:
    """A time on its own, in the unit that fits it.

    Examples:
        >>> seconds(0.0123), seconds(5400.0), seconds(None)
        ('12.3 ms', '90 min', '–')
    """
    return time_unit([value]).text(value, digits)


def memory(value: float | None) -> str:
    """An amount of memory on its own, in the unit that fits it.

    Examples:
        >>> memory(2**34)
        '16 GiB'
    """
    return memory_unit([value]).text(value)


def count(value: float | None) -> str:
    """A whole number with its thousands apart.

    Examples:
        >>> count(32768), count(None)
        ('32,768', '–')
    """
    if value is None or math.isnan(value):
        return UNKNOWN
    return number(value) if math.isinf(value) else f"{round(value):,}"


def number(value: float | None, digits: int = 4, *, strip: bool = True) -> str:
    """A number with so many significant digits, thousands apart; ``strip`` takes zeros at the end away.

    Examples:
        >>> number(0.0123456), number(-12345.6), number(3.2e-7, 2), number(float("inf"))
        ('0.01235', '−12,350', '3.2e−7', '∞')
    """
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    size = abs(value)
    if size != 0 and not 1e-4 <= size < 1e9:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    places = 0 if size == 0 else digits - 1 - math.floor(math.log10(size))
    text = f"{round(value, places):,.{max(places, 0)}f}"
    return (text.rstrip("0").rstrip(".") if strip and "." in text else text).replace("-", MINUS)


def fixed(value: float | None, places: int, *, sign: bool = False) -> str:
    """A number with so many decimals, so that a column of them lines up.

    Examples:
        >>> fixed(0.5, 3), fixed(0.25, 2, sign=True), fixed(-0.0001, 2)
        ('0.500', '+0.25', '0.00')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    text = f"{value:{'+' if sign else ''},.{places}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def places_for(intervals: Iterable[Interval]) -> int:
    """Decimals for a column of estimates: enough for two digits of the narrowest known uncertainty.

    Examples:
        >>> places_for([Interval(0.97, 0.965, 0.975)]), places_for([Interval(0.97, None, None)])
        (4, 4)
    """
    known = [item for item in intervals if item.value is not None and math.isfinite(item.value)]
    halves = [half for item in known if (half := _half_width(item)) is not None and 0 < half < math.inf]
    if halves:
        halves.sort()
        return min(max(1 - math.floor(math.log10(halves[len(halves) // 2])), 0), 6)
    largest = max((abs(item.value) for item in known if item.value), default=1.0)
    return min(max(3 - math.floor(math.log10(largest)), 0), 6) if largest >= 1 else 4


def estimate(interval: Interval, places: int, *, sign: bool = False) -> str:
    """A value with its interval: ``±`` where it is symmetric, both ends where it is not.

    Examples:
        >>> estimate(Interval(0.97, 0.965, 0.975), 3), estimate(Interval(2.0, 1.8, 2.4), 1)
        ('0.970 ± 0.005', '2.0 (1.8 to 2.4)')
        >>> estimate(Interval(0.97, None, None), 3), estimate(Interval.unresolved(), 3)
        ('0.970', '–')
    """
    if interval.value is None:
        return UNKNOWN
    value = fixed(interval.value, places, sign=sign)
    if interval.low is None or interval.high is None:
        return value
    half = _half_width(interval)
    if half is None:
        return f"{value} ({fixed(interval.low, places)} to {fixed(interval.high, places)})"
    return f"{value} ± {fixed(half, places)}"


def size(value: float | None) -> str:
    """A batch size: as it is where it is one that was tried, to three digits where it was estimated.

    Examples:
        >>> size(2048.0), size(2047.7), size(0.3124)
        ('2,048', '2,050', '0.312')
    """
    exact = known(value) and value == round(value) and abs(value) < 1e6
    return count(value) if exact else number(value, 3)


def sized(interval: Interval) -> str:
    """A batch size with its interval.

    Examples:
        >>> sized(Interval(812.3, 640.2, 1021.4)), sized(Interval(5.0, None, None))
        ('812 (640 to 1,020)', '5')
        >>> sized(Interval.unresolved(low=900.0)), sized(Interval.unresolved())
        ('not resolved: 900 or more', 'not resolved')
    """
    ends = between(interval)
    if interval.value is None:
        return UNRESOLVED + ("" if ends == UNKNOWN else f": {ends}")
    return size(interval.value) + ("" if ends == UNKNOWN else f" ({ends})")


def between(interval: Interval) -> str:
    """The ends of an interval of positive numbers, in words where one is missing.

    Examples:
        >>> between(Interval(5.0, 2.0, 9.0)), between(Interval.unresolved(low=900.0)), between(Interval.unresolved())
        ('2 to 9', '900 or more', '–')
    """
    low = interval.low if known(interval.low) and interval.low > 0 else None
    high = interval.high if known(interval.high) else None
    if high is None:
        return UNKNOWN if low is None else f"{size(low)} or more"
    return f"{size(high)} or less" if low is None else f"{size(low)} to {size(high)}"


def within(interval: Interval, unit: Unit) -> str:
    """A measured quantity in a unit that its column names, with its interval.

    Examples:
        >>> within(Interval(0.0123, 0.012, 0.0127), Unit("ms", 1e-3))
        '12.3 (12.0–12.7)'
    """
    value = unit.of(interval.value)
    if interval.value is None or not (known(interval.low) and known(interval.high)):
        return value
    return f"{value} ({unit.of(interval.low)}–{unit.of(interval.high)})"


def off(measured: float | None, predicted: float | None) -> str:
    """The relative residual of a law: measured over predicted, less one.

    Examples:
        >>> off(1.02, 1.0), off(1.0, None)
        ('+2.0%', '–')
    """
    if not known(measured) or not known(predicted) or predicted == 0:
        return UNKNOWN
    percent = 100 * (measured / predicted - 1)
    return f"{fixed(percent, 1, sign=True)}%" if abs(percent) < 1000 else f"{number(percent, 2)}%"


def probability(value: float | None) -> str:
    """A p value.

    Examples:
        >>> probability(0.0312), probability(1e-9), probability(None)
        ('0.031', '<0.001', '–')
    """
    if value is None or math.isnan(value):
        return UNKNOWN
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent.

    Examples:
        >>> share(1, 8), share(1, 0)
        ('12%', '–')
    """
    if not whole > 0:
        return UNKNOWN
    percent = 100 * part / whole
    return f"{percent:.0f}%" if percent >= 10 or percent == 0 else f"{percent:.1f}%"


def plain(text: str) -> str:
    r"""A text without what a terminal would obey and an image cannot hold: control characters become visible.

    Examples:
        >>> plain("a\x1b[31mb\nc")
        'a�[31mb\nc'
    """
    return "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def shape(name: Shape | None) -> str:
    """A learning rate's shape over a run, in words.

    Examples:
        >>> shape("cosine"), shape(None)
        ('falls to zero as a cosine', 'as the workload says')
    """
    return "as the workload says" if name is None else _SHAPES[name]


def percent(part: float | None) -> str:
    """A part in per cent, two digits of it.

    Examples:
        >>> percent(0.0234), percent(None)
        ('2.3%', '–')
    """
    return UNKNOWN if part is None or math.isnan(part) else f"{number(100 * part, 2)}%"


def plural(count: int, noun: str) -> str:
    """A number of things.

    Examples:
        >>> plural(1, "seed"), plural(1200, "trial")
        ('1 seed', '1,200 trials')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(words: Sequence[str], last: str = "and") -> str:
    """Words in a row, the last one after a word of its own.

    Examples:
        >>> listed(["8", "16", "64"], "or"), listed([])
        ('8, 16 or 64', '')
    """
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def shortened(text: str, most: int = 160) -> str:
    """A text of strangers, on one line and not longer than a table bears."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


_SHAPES: dict[Shape, str] = {
    "constant": "constant",
    "linear": "falls linearly to zero",
    "cosine": "falls to zero as a cosine",
    "cooldown": "constant, then falls linearly to zero",
}


def _half_width(interval: Interval) -> float | None:
    """Half the interval's width where its value is in the middle, to within 2%."""
    if interval.value is None or interval.low is None or interval.high is None:
        return None
    below, above = interval.value - interval.low, interval.high - interval.value
    if math.isinf(below) and math.isinf(above):
        return math.inf
    middling = abs(above - below) <= 0.02 * max(above, below, 0.0)
    return (below + above) / 2 if middling and math.isfinite(below + above) else None


def _smaller(unit: Unit) -> Unit:
    return _TIME[max(_TIME.index(unit) - 1, 0)]


def _geometric_middle(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))

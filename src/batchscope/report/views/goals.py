"""Goals of an advice in words, and the frontier at other goals than the one asked: the stops of the page's slider."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from batchscope.records import Advice, ForecastPoint, FrontierRow, Goal, Interval
from batchscope.report import formatting as f

ADVISED, TODAY = "advised", "today"
MOST_STOPS = 60
"""Places of the slider, at most about so many."""

_SPARE = 1e-9  # relative: what rounding may do to an end of a forecast


@dataclass(frozen=True)
class Standing:
    """One batch size at one stop.

    Attributes:
        batch_size: Examples per update.
        examples: Examples to the target, of the budget, or what the time allows.
        seconds: Seconds, likewise.
        score: The target, or what is reached with the budget.
    """

    batch_size: int
    examples: Interval
    seconds: Interval
    score: Interval


@dataclass(frozen=True)
class Stop:
    """One target or budget.

    Attributes:
        goal: What is asked for there.
        standings: Every batch size, in the frontier's order.
        best: The batch size to take there; None where none is known to get there.
        close: Others that the forecasts do not distinguish from it: their interval, or what is known of it, holds what
            the best one is predicted to do.
    """

    goal: Goal
    standings: tuple[Standing, ...]
    best: int | None
    close: tuple[int, ...]

    def of(self, batch_size: int | None) -> Standing | None:
        """How a batch size stands; None where it isn't on the frontier."""
        return next((standing for standing in self.standings if standing.batch_size == batch_size), None)


def stops(record: Advice) -> tuple[Stop, ...]:
    """The frontier at round targets or budgets within the forecasts, the one asked for among them.

    At the goal asked, it is the record's own: its rows, its advice, its alternatives. Elsewhere it follows from each
    row's forecast. To a target: where the forecast score, and either end of its interval, first crosses it, linear in
    log examples. At a budget: the score there, likewise; nothing is said beyond a forecast's ends.

    Args:
        record: The advice.

    Returns:
        Stops in ascending order of their goal; the asked one alone where there are no forecasts.
    """
    values = sorted({*_round_values(record), record.goal.value})
    return tuple(_asked(record) if value == record.goal.value else _elsewhere(record, value) for value in values)


def asked(record: Advice, found: Sequence[Stop]) -> int:
    """The place among the stops of the goal asked for."""
    return next(i for i, stop in enumerate(found) if stop.goal.value == record.goal.value)


def crossing(row: FrontierRow, target: float) -> tuple[Interval, Interval]:
    """Examples and seconds at which a row's forecast first reaches a score.

    Args:
        row: The row; its forecast is ascending in examples.
        target: The score.

    Returns:
        Both as intervals, from the ends of the score's interval. Unresolved with a lower bound where the forecast ends
        below the target, with an upper bound where it begins above it, and with none where there is no forecast.
    """
    points = _sound(row.forecast)
    if not points:
        return Interval.unresolved(), Interval.unresolved()
    level = points[0].score.level
    place = _first(points, target, lambda score: score.value)
    # Scores that are high for certain come early: the interval's upper end gives the lower end of the time.
    early, late = (_first(points, target, end) for end in (lambda score: score.high, lambda score: score.low))

    def across(of: Callable[[ForecastPoint], float]) -> Interval:
        if place == -math.inf:
            return Interval.unresolved(level, high=of(points[0]))
        if place == math.inf:
            soonest = None if early == -math.inf else of(points[-1]) if early == math.inf else _at(points, early, of)
            return Interval.unresolved(level, low=soonest)
        low = 0.0 if early == -math.inf else _at(points, min(early, place), of)
        high = math.inf if late == math.inf else _at(points, max(late, place), of)
        return Interval(_at(points, place, of), low, high, level)

    return across(lambda point: point.examples), across(lambda point: point.seconds)


def reached(row: FrontierRow, budget: float, of: Callable[[ForecastPoint], float]) -> Interval:
    """The score that a row is forecast to reach with a budget.

    Args:
        row: The row.
        budget: Examples or seconds.
        of: Which of the two a point of the forecast is read by.

    Returns:
        The score with its interval; unresolved outside of the forecast.
    """
    points = _sound(row.forecast)
    if not points or not of(points[0]) * (1 - _SPARE) <= budget <= of(points[-1]) * (1 + _SPARE):
        return Interval.unresolved()
    at = min(max(budget, of(points[0])), of(points[-1]))
    i = next(i for i, point in enumerate(points) if of(point) >= at)
    after, before = points[i], points[max(i - 1, 0)]
    part = 1.0 if i == 0 else math.log(at / of(before)) / math.log(of(after) / of(before))

    def between(end: Callable[[Interval], float | None]) -> float | None:
        first, last = end(before.score), end(after.score)
        return first + part * (last - first) if f.known(first) and f.known(last) else None

    low, high = between(lambda score: score.low), between(lambda score: score.high)
    return Interval(between(lambda score: score.value), low, high, after.score.level)


# In words


def question(goal: Goal) -> str:
    """What was asked, as a question."""
    if goal.kind == "target":
        return f"Which setting reaches a score of {f.number(goal.value)} soonest?"
    if goal.kind == "examples":
        return f"Which setting reaches the best score with {f.count(goal.value)} examples?"
    return f"Which setting reaches the best score in {f.seconds(goal.value)}?"


def goal_text(goal: Goal) -> str:
    """The goal by itself, as in "score of 0.89"."""
    return f"score of {value_text(goal)}" if goal.kind == "target" else value_text(goal)


def value_text(goal: Goal) -> str:
    """The target or budget in its unit."""
    if goal.kind == "target":
        return f.number(goal.value)
    return f"{f.count(goal.value)} examples" if goal.kind == "examples" else f.seconds(goal.value)


def at_stop(stop: Stop) -> str:
    """The best batch size for one goal with its prediction, and those that the forecasts do not distinguish from it."""
    best, goal = stop.of(stop.best), stop.goal
    if best is None:
        return "No batch size is forecast to get there." if goal.kind == "target" else "The forecasts end before that."
    first = spoken_seconds(best.seconds) if goal.kind == "target" else f"a score of {spoken_score(best.score)}"
    then = spoken_seconds(best.seconds) if goal.kind == "examples" else spoken_count(best.examples)
    said = f"Batch size {f.count(best.batch_size)}: {first}, {then}."
    if stop.close:
        said += f" The forecasts do not distinguish it from {f.listed([f.count(size) for size in stop.close], 'or')}."
    return said


def spoken_seconds(interval: Interval) -> str:
    """A time with its interval in a sentence.

    Examples:
        >>> spoken_seconds(Interval(41.2, 35.0, 49.1)), spoken_seconds(Interval.unresolved(low=600.0))
        ('41.2 s (35–49.1)', 'more than 10 min')
    """
    unit = f.time_unit([known_of(interval)])
    return _spoken(interval, lambda value: f.number(value / unit.size, 3), f" {unit.name}")


def spoken_count(interval: Interval) -> str:
    """Examples with their interval in a sentence."""
    return _spoken(interval, lambda value: f.number(value, 3), " examples")


def spoken_score(interval: Interval) -> str:
    """A score with its interval."""
    return f.estimate(interval, f.places_for([interval]))


def reaching(interval: Interval, unit: f.Unit) -> str:
    """A quantity that a goal takes, in a column: with both ends, or a bound where the goal may be out of reach.

    Args:
        interval: Seconds or a count; an end at infinity is one that isn't known.
        unit: The column's unit.

    Returns:
        The text.

    Examples:
        >>> seconds, unknown = f.Unit("s", 1.0), float("inf")
        >>> reaching(Interval(41.2, 35.0, 49.1), seconds), reaching(Interval(41.2, 35.0, unknown), seconds)
        ('41.2 (35.0–49.1)', '41.2 (35.0 or more)')
        >>> reaching(Interval.unresolved(low=120.0), seconds), reaching(Interval.unresolved(), seconds)
        ('> 120', 'out of reach')
    """
    return _spoken(interval, unit.of, "", ("> ", "< "))


def known_of(interval: Interval) -> float | None:
    """What there is to choose a unit by: the value, or the bound that stands in its place."""
    ends = (interval.value, interval.low, interval.high)
    return next((end for end in ends if f.known(end) and end > 0), None)


def _spoken(
    interval: Interval, text: Callable[[float], str], unit: str, beyond: tuple[str, str] = ("more than ", "less than ")
) -> str:
    value = interval.value
    low = text(interval.low) if f.known(interval.low) and interval.low > 0 else ""
    high = text(interval.high) if f.known(interval.high) else ""
    if value is None:
        return f"{beyond[0]}{low}{unit}" if low else f"{beyond[1]}{high}{unit}" if high else "out of reach"
    ends = f" ({low}–{high})" if low and high else f" ({low} or more)" if low else f" ({high} or less)" if high else ""
    return f"{text(value)}{unit}{ends}"


# Away from the goal asked


def _asked(record: Advice) -> Stop:
    standings = tuple(Standing(row.batch_size, row.examples, row.seconds, row.score) for row in record.frontier)
    return Stop(record.goal, standings, record.batch_size, record.alternatives)


def _elsewhere(record: Advice, value: float) -> Stop:
    goal = Goal(record.goal.kind, value)
    standings = tuple(_standing(row, goal) for row in record.frontier)
    if goal.kind == "target":
        timed = [(standing, standing.seconds.value) for standing in standings]
        best = min((s for s, seconds in timed if seconds is not None), key=lambda s: s.seconds.value or 0, default=None)
    else:
        known = [standing for standing in standings if f.known(standing.score.value)]
        best = max(known, key=lambda standing: standing.score.value or 0, default=None)
    if best is None:
        return Stop(goal, standings, None, ())
    close = tuple(s.batch_size for s in standings if s is not best and _may_be_as_good(s, best, goal))
    return Stop(goal, standings, best.batch_size, close)


def _standing(row: FrontierRow, goal: Goal) -> Standing:
    if goal.kind == "target":
        return Standing(row.batch_size, *crossing(row, goal.value), Interval(goal.value, None, None))
    if goal.kind == "examples":
        seconds = _scaled(row.step_seconds, goal.value / row.batch_size)
        score = reached(row, goal.value, lambda point: point.examples)
        return Standing(row.batch_size, Interval(goal.value, None, None), seconds, score)
    rate = row.examples_per_second
    score = reached(row, goal.value, lambda point: point.seconds)
    return Standing(row.batch_size, _scaled(rate, goal.value), Interval(goal.value, None, None), score)


def _may_be_as_good(other: Standing, best: Standing, goal: Goal) -> bool:
    """Whether its interval, or the bound where nothing else is known, holds what the best one is predicted to do."""
    if goal.kind == "target":
        end, least = other.seconds.low, best.seconds.value
        return end is not None and least is not None and end <= least
    end, most = other.score.high, best.score.value
    return end is not None and most is not None and end >= most


def _round_values(record: Advice) -> list[float]:
    """Goals a round step apart, from where every forecast has begun.

    Up to the highest score that one of them reaches; or to the budget at which the first of them ends, since beyond it
    they could not be compared.
    """
    curves = [points for row in record.frontier if (points := _sound(row.forecast))]
    if not curves:
        return []
    if record.goal.kind == "target":
        first = max(points[0].score.value or 0.0 for points in curves)
        last = max(point.score.value or 0.0 for points in curves for point in points)
        return _evenly(first, last)

    def of(point: ForecastPoint) -> float:
        return point.examples if record.goal.kind == "examples" else point.seconds

    first, last = max(of(points[0]) for points in curves), min(of(points[-1]) for points in curves)
    found = [value for value in _by_ratio(first, last) if first <= value <= last]
    return [float(round(value)) for value in found] if record.goal.kind == "examples" else found


def _evenly(first: float, last: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers, about as many as there may be stops.

    Examples:
        >>> _evenly(0.9, 0.9021)[:3], len(_evenly(0.0, 1.0))
        ([0.9, 0.90005, 0.9001], 51)
    """
    if not last > first:
        return []
    power = math.floor(math.log10((last - first) / MOST_STOPS))
    step, places = next(
        (digit * 10.0 ** (power + more), max(0, -power - more))
        for more in (0, 1)
        for digit in (1, 2, 5)
        if (last - first) / (digit * 10.0 ** (power + more)) <= MOST_STOPS
    )
    lowest, highest = math.ceil(first / step - _SPARE), math.floor(last / step + _SPARE)
    return [round(k * step, places) for k in range(lowest, highest + 1)]


def _by_ratio(first: float, last: float) -> list[float]:
    """Numbers of two digits, a fixed ratio apart but for rounding, about as many as there may be stops.

    Examples:
        >>> _by_ratio(1.0, 1.5), len(_by_ratio(1.0, 1e9)) <= MOST_STOPS
        ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], True)
    """
    if not last > first > 0:
        return []
    count = MOST_STOPS - 1
    places = (first * (last / first) ** (i / count) for i in range(count + 1))
    return sorted({float(f"{place:.1e}") for place in places})


def _sound(forecast: Iterable[ForecastPoint]) -> list[ForecastPoint]:
    return [point for point in forecast if f.known(point.score.value) and point.examples > 0 and point.seconds > 0]


def _first(points: Sequence[ForecastPoint], target: float, end: Callable[[Interval], float | None]) -> float:
    """The place, counted in points and parts of the way between two, where a curve first reaches the target.

    Minus infinity where it begins there, infinity where it never does or its end of the interval isn't known.
    """
    before: float | None = None
    for i, point in enumerate(points):
        score = end(point.score)
        if score is not None and score >= target:
            if before is None or before == -math.inf:
                return -math.inf if i == 0 else float(i)
            return i - 1 + (target - before) / (score - before) if score < math.inf else float(i - 1)
        before = score
    return math.inf


def _at(points: Sequence[ForecastPoint], place: float, of: Callable[[ForecastPoint], float]) -> float:
    """What a curve has there, between two points on a logarithmic scale."""
    if place <= 0:
        return of(points[0])
    i = min(math.ceil(place), len(points) - 1)
    first, last = of(points[i - 1]), of(points[i])
    return first * math.exp((place - (i - 1)) * math.log(last / first))


def _scaled(interval: Interval, by: float) -> Interval:
    value, low, high = (None if end is None else end * by for end in (interval.value, interval.low, interval.high))
    return Interval(value, low, high, interval.level, interval.resolved)

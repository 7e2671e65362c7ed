"""What a sweep found out about a workload: examples to its target at every batch size and learning rate, as a table.

A run's examples to a target scatter by a tenth and more, and the least of several such numbers is too low. So within a
factor 2 of the best of the rates tried, log examples are a parabola in the log of the rate, fitted to all runs there;
beyond, straight lines between means. Between two batch sizes they are a straight line in the log of the batch size, at
the same factor from the best rate of either. So a setting that was not tried has its examples, and one beyond those
tried, or whose runs were given up, has a lower bound.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TABLES = Path(__file__).parent / "ground_truth"
# A parabola is fitted to at least so many rates. Rates whose logs differ by less are one.
LEAST_RATES = 4
SAME = 1e-9


class Setting(NamedTuple):
    """A batch size with a learning rate."""

    batch_size: int
    learning_rate: float


class Bounded(NamedTuple):
    """A number, or what it is at least."""

    value: float
    at_least: bool = False


class Parabola(NamedTuple):
    """Log examples against the log of the rate."""

    best: float
    least: float
    curvature: float

    def at(self, x: float) -> float:
        """Its value."""
        return self.least + self.curvature * (x - self.best) ** 2


@dataclass(frozen=True)
class RateRow:
    """One learning rate.

    Attributes:
        learning_rate: The rate.
        ended: "reached", where every seed got there; "missed", where one was given up; "diverged", where one did.
        examples: To the target, by seed; where a run did not get there, what it was trained on.
    """

    learning_rate: float
    ended: str
    examples: tuple[int, ...]

    @property
    def mean(self) -> Bounded:
        """Geometric mean over the seeds; infinite where one diverged."""
        if self.ended == "diverged":
            return Bounded(math.inf)
        return Bounded(math.exp(statistics.fmean(map(math.log, self.examples))), self.ended == "missed")


@dataclass(frozen=True)
class SizeRow:
    """One batch size.

    Attributes:
        batch_size: Examples per update.
        rates: Learning rates about the best, ascending.
    """

    batch_size: int
    rates: tuple[RateRow, ...]

    @property
    def tried(self) -> RateRow:
        """The best of the rates tried."""
        return min(self.rates, key=lambda row: (row.ended != "reached", row.mean.value))

    @property
    def ends(self) -> tuple[RateRow, RateRow]:
        """The lowest and the highest rate tried."""
        return self.rates[0], self.rates[-1]

    @property
    def best_rate(self) -> float:
        """The rate that needs the fewest examples: the parabola's, or the best of those tried where there is none."""
        parabola = self._parabola
        return self.tried.learning_rate if parabola is None else math.exp(parabola.best)

    @property
    def examples(self) -> float:
        """What it needs."""
        return self.tried.mean.value if self._parabola is None else math.exp(self._parabola.least)

    @property
    def spread(self) -> float:
        """Relative standard deviation of a run near the best rate: of log examples, over seeds, pooled over rates."""
        near = [[math.log(value) for value in row.examples] for row in self._near if len(row.examples) > 1]
        return math.sqrt(statistics.fmean(map(statistics.variance, near))) if near else math.nan

    @property
    def misfit(self) -> float:
        """Root mean square distance of the rates' means from the parabola, in log examples; 0 where there is none."""
        parabola = self._parabola
        if parabola is None:
            return 0.0
        apart = [parabola.at(math.log(row.learning_rate)) - math.log(row.mean.value) for row in self._near]
        return math.sqrt(statistics.fmean(gap**2 for gap in apart))

    def at(self, factor: float) -> Bounded:
        """Examples at so many times the best rate."""
        x = math.log(self.best_rate * factor)
        ends = [math.log(row.learning_rate) for row in self._near]
        if self._parabola is not None and min(ends) - SAME <= x <= max(ends) + SAME:
            return Bounded(math.exp(self._parabola.at(x)))
        points = [(math.log(row.learning_rate), row.mean) for row in self.rates]
        exact = [mean for place, mean in points if abs(place - x) < SAME]
        if exact:
            return exact[0]
        below = [point for point in points if point[0] < x][-1:]
        above = [point for point in points if point[0] > x][:1]
        if not below or not above:
            return Bounded((below or above)[0][1].value, at_least=True)
        (x0, first), (x1, second) = below[0], above[0]
        if math.isinf(first.value) or math.isinf(second.value):  # it diverges from somewhere between the two on
            return Bounded(min(first.value, second.value), at_least=True)
        return Bounded(_between(x, (x0, first.value), (x1, second.value)), first.at_least or second.at_least)

    @property
    def _near(self) -> list[RateRow]:
        """The rates within a factor 2 of the best tried at which every run reached the target."""
        best = self.tried.learning_rate
        return [row for row in self.rates if row.ended == "reached" and abs(math.log2(row.learning_rate / best)) < 1.01]

    @property
    def _parabola(self) -> Parabola | None:
        """Fitted to the means near the best, where there are enough and it has its bottom between them."""
        near = self._near
        if len(near) < LEAST_RATES:
            return None
        x = [math.log(row.learning_rate) for row in near]
        curvature, slope, level = np.polyfit(x, [math.log(row.mean.value) for row in near], 2).tolist()
        if curvature <= 0 or not x[0] <= -slope / (2 * curvature) <= x[-1]:
            return None
        return Parabola(-slope / (2 * curvature), level - slope**2 / (4 * curvature), curvature)


@dataclass(frozen=True)
class GroundTruth:
    """The table of one workload.

    Attributes:
        workload: Its name.
        target: Validation score to reach.
        evaluate_every_examples: Examples between two evaluations: examples to the target are that coarse.
        training_examples: Size of the training set.
        sizes: Batch sizes at which the target was reached, ascending.
        provenance: Software, machine, date and command.
    """

    workload: str
    target: float
    evaluate_every_examples: int
    training_examples: int
    sizes: tuple[SizeRow, ...]
    provenance: dict[str, Any]

    @classmethod
    def load(cls, name: str, folder: Path = TABLES) -> GroundTruth:
        """The table that is kept of a workload."""
        data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        sizes = tuple(
            SizeRow(
                row["batch_size"],
                tuple(RateRow(rate["learning_rate"], rate["ended"], tuple(rate["examples"])) for rate in row["rates"]),
            )
            for row in data.pop("sizes")
        )
        return cls(sizes=sizes, **data)

    def save(self, folder: Path = TABLES) -> Path:
        """Keep the table."""
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.workload}.json"
        text = json.dumps(asdict(self), indent=1)
        text = re.sub(r"\[[\d,\s]+\]", lambda runs: "".join(runs[0].split()).replace(",", ", "), text)  # in one line
        path.write_text(text + "\n", encoding="utf-8")
        return path

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes of the table."""
        return tuple(row.batch_size for row in self.sizes)

    def good_rate(self, batch_size: int) -> float:
        """The best learning rate of a batch size, between those of the table; beyond them, that of the nearest."""
        below, above = self._about(batch_size)
        return _between(
            math.log(batch_size),
            (math.log(below.batch_size), below.best_rate),
            (math.log(above.batch_size), above.best_rate),
        )

    def examples(self, setting: Setting) -> Bounded:
        """Examples to the target at a setting; beyond the table's batch sizes, those at the nearest, as a bound."""
        below, above = self._about(setting.batch_size)
        factor = setting.learning_rate / self.good_rate(setting.batch_size)
        first, second = below.at(factor), above.at(factor)
        outside = not self.sizes[0].batch_size <= setting.batch_size <= self.sizes[-1].batch_size
        ends = (math.log(below.batch_size), first.value), (math.log(above.batch_size), second.value)
        if below is not above and (math.isinf(first.value) or math.isinf(second.value)):
            return Bounded(min(first.value, second.value), at_least=True)
        return Bounded(_between(math.log(setting.batch_size), *ends), outside or first.at_least or second.at_least)

    def seconds(self, setting: Setting, step_seconds: Callable[[int], float]) -> Bounded:
        """Seconds to the target: updates times the time of one."""
        examples, at_least = self.examples(setting)
        inside = min(max(setting.batch_size, self.sizes[0].batch_size), self.sizes[-1].batch_size)
        return Bounded(examples / inside * step_seconds(inside), at_least)

    def best(self, step_seconds: Callable[[int], float]) -> Setting:
        """The setting of the table that takes the least time."""
        row = min(self.sizes, key=lambda row: row.examples / row.batch_size * step_seconds(row.batch_size))
        return Setting(row.batch_size, row.best_rate)

    def regret(self, setting: Setting, step_seconds: Callable[[int], float]) -> Bounded:
        """Seconds to the target at a setting over those at the best one."""
        seconds, at_least = self.seconds(setting, step_seconds)
        return Bounded(seconds / self.seconds(self.best(step_seconds), step_seconds).value, at_least)

    def error(self, batch_size: int) -> float:
        """Relative standard error of the examples at a batch size of the table, as if its rates shared all chance."""
        row = next(row for row in self.sizes if row.batch_size == batch_size)
        return row.spread / math.sqrt(len(row.tried.examples))

    def _about(self, batch_size: int) -> tuple[SizeRow, SizeRow]:
        """The rows below and above a batch size; the same one twice where it is one of them, or beyond them all."""
        if batch_size <= self.sizes[0].batch_size:
            return self.sizes[0], self.sizes[0]
        for below, above in itertools.pairwise(self.sizes):
            if batch_size == above.batch_size:
                return above, above
            if batch_size < above.batch_size:
                return below, above
        return self.sizes[-1], self.sizes[-1]


def _between(x: float, start: tuple[float, float], end: tuple[float, float]) -> float:
    """The value at a place between two points, its log on the straight line through theirs."""
    (x0, y0), (x1, y1) = start, end
    if x0 == x1 or y0 == y1:
        return y0
    share = (x - x0) / (x1 - x0)
    return math.exp((1 - share) * math.log(y0) + share * math.log(y1))

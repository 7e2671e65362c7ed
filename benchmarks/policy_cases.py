"""What ``make bench-policy`` plays on: recorded grids of networks, and noisy quadratics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batchscope.search.candidates import Point, Setting
from batchscope.search.recorded import Curve, until_target
from curves_table import Curves, estimate
from noisy_quadratic import BEST_SECONDS, SIZES, NoisyQuadratic, draw, window_mean

# A recorded network with fewer settings than this is not played on.
LEAST_SETTINGS = 12
# Quadratics train for so many times the best run at most.
LONGEST = 2.0
# References: a small batch at an eighth of its good rate, a good default, and the largest batch at 8 times its good
# rate.
SMALL, DEFAULT, FACTOR = 8, 32, 8.0


class DrawnCurves(Mapping[Setting, Curve]):
    """Curves of a quadratic, made as they are asked for.

    Args:
        problem: The quadratic.
        seed: Of the noise.
    """

    def __init__(self, problem: NoisyQuadratic, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self._made: dict[Setting, Curve] = {}

    def __getitem__(self, setting: Setting) -> Curve:
        if setting not in self._made:
            self._made[setting] = self.problem.curve(setting, LONGEST * BEST_SECONDS, self.seed)
        return self._made[setting]

    def __iter__(self) -> Iterator[Setting]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@dataclass(frozen=True)
class Case:
    """One problem with one draw of its noise.

    Attributes:
        family: "quadratic", or the network's name.
        target: Score to reach.
        sizes: Batch sizes that may be chosen.
        curves: What a search sees.
        seconds: Seconds to the target at a setting, the truth; infinite where it is never reached.
        best_seconds: The least of them.
        references: Settings of today, by name.
        is_allowed: Whether a setting may be trained; None: all may.
    """

    family: str
    target: float
    sizes: tuple[int, ...]
    curves: Mapping[Setting, Curve]
    seconds: Callable[[Setting], float]
    best_seconds: float
    references: dict[str, Setting]
    is_allowed: Callable[[Setting], bool] | None = field(default=None)

    def regret(self, setting: Setting) -> float:
        """Seconds to the target over those of the best setting."""
        return self.seconds(setting) / self.best_seconds


def quadratic_case(seed: int) -> Case:
    """A random noisy quadratic.

    Args:
        seed: Of the problem and of its noise.
    """
    problem, truth = draw(seed)
    known = dict(truth)

    def seconds(setting: Setting) -> float:
        if setting not in known:
            known[setting] = problem.seconds_to_target(setting)
        return known[setting]

    references = references_of(truth, SIZES, DEFAULT)
    return Case(
        family="quadratic",
        target=-problem.target,
        sizes=SIZES,
        curves=DrawnCurves(problem, seed),
        seconds=seconds,
        best_seconds=min(truth.values()),
        references=references,
    )


def references_of(seconds: Mapping[Setting, float], sizes: Sequence[int], default: int) -> dict[str, Setting]:
    """The three references: (8, good/8), (32 or the public default, good), (largest, 8 times good).

    Args:
        seconds: To the target, of settings that reach it.
        sizes: Batch sizes, ascending.
        default: The good default's batch size.

    Examples:
        >>> seconds = {Setting(8, 0.5): 2.0, Setting(8, 1.0): 3.0, Setting(32, 1.0): 1.0, Setting(64, 2.0): 4.0}
        >>> [tuple(setting) for setting in references_of(seconds, (8, 32, 64), 32).values()]
        [(8, 0.0625), (32, 1.0), (64, 16.0)]
    """
    good = {
        size: min((s for s in seconds if s.batch_size == size), key=lambda s: seconds[s]).learning_rate
        for size in {s.batch_size for s in seconds}
    }
    small, largest = min(sizes, key=lambda size: abs(size - SMALL)), max(sizes)
    found = {
        "small batch, rate / 8": (small, 1 / FACTOR),
        "good default": (default, 1.0),
        "largest batch, rate x 8": (largest, FACTOR),
    }
    return {name: Setting(size, good[size] * factor) for name, (size, factor) in found.items() if size in good}


def recorded_cases(curves: Curves) -> list[Case]:
    """A recorded network once for each draw of its seeds; none where too few settings were recorded.

    Args:
        curves: What was recorded.
    """
    groups: dict[Setting, list[Curve]] = {}
    estimates: dict[Setting, list[float]] = {}
    for run in curves.curves:
        setting = Setting(run["batch_size"], run["learning_rate"])
        groups.setdefault(setting, []).append(until_target(curve_of(run), curves.target))
        estimates.setdefault(setting, []).append(estimate(run, curves.curves, curves.target))
    if len(groups) < LEAST_SETTINGS:
        return []
    truth = {s: math.exp(float(np.mean(np.log(own)))) for s, own in estimates.items()}
    reached = {s: truth[s] for s, own in groups.items() if any(c.ended == "reached" for c in own)}
    sizes = tuple(sorted({s.batch_size for s in groups}))
    default = DEFAULT if DEFAULT in sizes else curves.batch_size
    wanted = references_of({s: t for s, t in truth.items() if math.isfinite(t)}, sizes, default)
    references = {name: _nearest(groups, s) for name, s in wanted.items()}
    return [
        Case(
            family=curves.network,
            target=curves.target,
            sizes=sizes,
            curves={s: own[k % len(own)] for s, own in groups.items()},
            seconds=truth.__getitem__,
            best_seconds=min(reached.values()),
            references=references,
            is_allowed=groups.__contains__,
        )
        for k in range(max(map(len, groups.values())))
    ]


def _nearest(settings: Iterable[Setting], wanted: Setting) -> Setting:
    """The recorded setting nearest to one that is wanted: of the nearest batch size, the nearest rate along ε ∝ √B."""

    def apart(setting: Setting) -> tuple[float, float]:
        octaves = math.log2(setting.batch_size / wanted.batch_size)
        return abs(octaves), abs(math.log2(setting.learning_rate / wanted.learning_rate) - octaves / 2)

    return min(settings, key=apart)


def curve_of(run: dict[str, Any]) -> Curve:
    """A recorded run as a search would see it.

    The loss at a point is the mean of the training losses over the last third of the examples so far.

    Args:
        run: As ``record_one.py`` writes it.
    """
    size, points = run["batch_size"], run["points"]
    initial = run["initial"]
    ends = np.array(run["blocks"]["examples"], float)
    losses = np.array([math.nan if y is None else y for y in run["blocks"]["training_loss"]], float)
    found = [Point(0, 0, 0.0, initial["loss"], 0.0, initial["score"])]
    for examples, seconds, score in zip(points["examples"], points["seconds"], points["score"], strict=True):
        seen = int(np.searchsorted(ends, examples, side="right"))
        if not seen:
            continue
        loss, error = window_mean(ends[:seen], losses[:seen])
        if not math.isfinite(loss):
            loss, error = math.inf, 0.0
        found.append(Point(examples, examples // size, seconds, loss, error, score))
    if run["outcome"] == "diverged":
        last = found.pop()
        found.append(Point(last.examples, last.updates, last.seconds, math.inf))
    return Curve(
        Setting(size, run["learning_rate"]), tuple(found), "diverged" if run["outcome"] == "diverged" else "finished"
    )

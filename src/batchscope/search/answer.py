"""What a search says of every batch size: draws of the time to the goal, the best rate, the critical batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchscope.records import Goal, Interval
from batchscope.search.candidates import Observation, Setting
from batchscope.search.forecast import CurveForecast
from batchscope.search.policy import ENDED_BADLY, Policy
from batchscope.search.race import Race
from batchscope.search.speed import Speeds
from batchscope.search.update_times import UpdateSeconds

Floats = NDArray[np.float64]

DRAWS = 400
LEVEL = 0.9
# Times to a score differ by this much from seed to seed: a standard deviation in e-folds.
SEED_SPREAD = 0.1
# A target is called out of sight where fewer than this share of the draws reach it: the time is then not told.
IN_SIGHT = 0.05
# Today's setting is kept unless another one is expected to be faster by this share.
WORTH_CHANGING = 0.2
# A batch size is spoken of if one within this many factors of two was trained.
BESIDE = 1.01
# Settings within this many e-folds of the fastest cannot be told from it by anybody who trains once.
INDISTINGUISHABLE = 0.05
CRITICAL_SIZES = np.geomspace(1.0, 1e6, 121)


@dataclass(frozen=True)
class SizeAnswer:
    """One batch size at its best rate.

    Attributes:
        setting: The batch size with its best rate.
        trained: Whether exactly that was trained.
        rates: Draws of the best rate.
        log_speed: Draws of the log speed at the end of the run.
        step_seconds: Seconds of an update.
        seconds: Draws of the seconds to the goal; infinite where it is out of reach.
        examples: Draws of the examples to the goal.
    """

    setting: Setting
    trained: bool
    rates: Floats
    log_speed: Floats
    step_seconds: float
    seconds: Floats
    examples: Floats


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Attributes:
        best: The setting to use, which was trained.
        sizes: Every batch size that can be spoken of, ascending.
        today: The setting that is used today, likewise; None where it was not trained.
        keeps_today: Whether today's setting is the best that was seen.
        run_seconds: Draws of the time that the best setting takes to the goal.
        critical: Draws of the critical batch size; None with fewer than three batch sizes.
        law: The best setting's curve of scores; None where there are too few.
        score: Its last score; NaN where there is none.
    """

    best: Setting
    sizes: tuple[SizeAnswer, ...]
    today: SizeAnswer | None
    keeps_today: bool
    run_seconds: Floats
    critical: Floats | None
    law: CurveForecast | None
    score: float

    def of(self, batch_size: int) -> SizeAnswer:
        """What is known of one batch size."""
        return next(size for size in self.sizes if size.setting.batch_size == batch_size)


def find_answer(race: Race, step_seconds: Callable[[int], float] | None = None, *, seed: int = 0) -> Answer | None:
    """Work out what a search says.

    Args:
        race: The search, at its end or before.
        step_seconds: Seconds of an update at any batch size; None: as the candidates show.
        seed: Of the draws.

    Returns:
        The answer; None where nothing trained.
    """
    observations, policy, goal = race.observations(), race.policy, race.goal
    horizon = race.horizon_seconds(observations)
    best = policy.best(observations, horizon)
    if best is None:
        return None
    speeds = policy.speeds(observations, horizon)
    times = step_seconds or UpdateSeconds.of(observations)
    chosen = _chosen(best, observations, speeds, policy, times, by_examples=goal.kind == "examples")
    generator = np.random.default_rng(seed)
    settings = policy.settings(observations)
    draws = _draws(speeds, settings, generator)
    index = {setting: i for i, setting in enumerate(settings)}
    trained = {o.setting for o in observations if _usable(o)}
    own = draws[index[chosen.setting]]
    law = race.forecast(chosen, horizon)
    run = _run_seconds(chosen, goal, times, law, generator)

    def about(setting: Setting, rates: Floats) -> SizeAnswer:
        size, each = setting.batch_size, times(setting.batch_size)
        ratio = np.exp(own - draws[index[setting]])  # of weighted times
        weight = policy.weight(chosen.setting.batch_size) / policy.weight(size)
        if goal.kind == "target":
            seconds = run * ratio * weight
            examples = seconds / each * size
        elif goal.kind == "examples":
            examples = np.full(DRAWS, goal.value)
            seconds = examples / size * each
        else:
            seconds = np.full(DRAWS, goal.value)
            examples = seconds / each * size
        return SizeAnswer(setting, setting in trained, rates, draws[index[setting]], each, seconds, examples)

    sizes = []
    for size in sorted({s.batch_size for s in settings}):
        near = any(abs(math.log2(size / s.batch_size)) <= BESIDE for s in trained)
        if not near or not math.isfinite(times(size)):
            continue
        of_size = [s for s in settings if s.batch_size == size]
        rates = np.array([s.learning_rate for s in of_size])[np.argmax(draws[[index[s] for s in of_size]], axis=0)]
        tried = [s for s in of_size if s in trained]
        mean = speeds.expected(tried or of_size)
        at = chosen.setting if size == chosen.setting.batch_size else (tried or of_size)[int(np.argmax(mean))]
        sizes.append(about(at, rates))
    today = policy.start if policy.start in trained else None
    keeps = chosen.setting == policy.start
    return Answer(
        best=chosen.setting,
        sizes=tuple(sizes),
        today=None if today is None else about(today, np.full(DRAWS, today.learning_rate)),
        keeps_today=keeps,
        run_seconds=run,
        critical=_critical(sizes) if goal.kind == "target" else None,
        law=law,
        score=next((p.score for p in reversed(chosen.points) if p.score is not None), math.nan),
    )


def _usable(observation: Observation) -> bool:
    return bool(observation.points) and observation.ended not in ENDED_BADLY


def _chosen(
    best: Observation,
    observations: Sequence[Observation],
    speeds: Speeds,
    policy: Policy,
    times: Callable[[int], float],
    *,
    by_examples: bool,
) -> Observation:
    """The setting to advise: the fastest, or today's where that is as good, or the quickest of those as good."""
    able = [o for o in observations if _usable(o) and math.isfinite(o.points[-1].loss)]
    mean = speeds.expected([o.setting for o in able])
    of = dict(zip([o.setting for o in able], mean, strict=True))
    highest = of[best.setting]
    if by_examples:
        as_good = [o for o in able if of[o.setting] > highest - INDISTINGUISHABLE]
        return min(as_good, key=lambda o: times(o.setting.batch_size) / o.setting.batch_size)
    today = next((o for o in able if o.setting == policy.start), None)
    if today is not None and of[today.setting] > highest - WORTH_CHANGING:
        return today
    return best


def _draws(speeds: Speeds, settings: Sequence[Setting], generator: np.random.Generator) -> Floats:
    mean, covariance = speeds.posterior(settings)
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(mean[:, None] + root @ generator.standard_normal((len(settings), DRAWS)))


def _run_seconds(
    best: Observation,
    goal: Goal,
    times: Callable[[int], float],
    law: CurveForecast | None,
    generator: np.random.Generator,
) -> Floats:
    """Draws of the time that one more run at the best setting takes."""
    if goal.kind == "seconds":
        return np.full(DRAWS, goal.value)
    if goal.kind == "examples":
        return np.full(DRAWS, goal.value / best.setting.batch_size * times(best.setting.batch_size))
    scatter = np.exp(SEED_SPREAD * generator.standard_normal(DRAWS))
    if best.reached is not None:
        # Evaluations lie some way apart: it was there at some time between the last two.
        before = [p.seconds for p in best.points[:-1] if p.score is not None and p.seconds > 0]
        low = max(before[-1] if before else 0.0, 0.5 * best.reached.seconds)
        return np.asarray(generator.uniform(low, best.reached.seconds, DRAWS) * scatter)
    if law is None:
        return np.full(DRAWS, math.inf)
    if law.in_sight < IN_SIGHT:
        return np.full(DRAWS, math.inf)
    draws = generator.choice(law.seconds_to(goal.value), DRAWS)
    return np.asarray(np.maximum(draws, best.seconds) * scatter)


def _critical(sizes: Sequence[SizeAnswer]) -> Floats | None:
    """Draws of B_crit in E = E_min·(1 + B/B_crit), fitted to the examples that each batch size needs (1812.06162)."""
    seen = [size for size in sizes if size.trained]
    if len(seen) < 3 or not all(np.isfinite(size.examples).all() for size in seen):
        return None
    batch = np.array([size.setting.batch_size for size in seen], float)
    examples = np.log([size.examples for size in seen])  # sizes by draws
    shapes = np.log1p(batch[:, None] / CRITICAL_SIZES[None, :])  # sizes by B_crit
    residual = examples[:, :, None] - shapes[:, None, :]
    misfit = residual.var(axis=0)
    return np.asarray(CRITICAL_SIZES[np.argmin(misfit, axis=1)])


def interval(draws: Floats, level: float = LEVEL) -> Interval:
    """Median and quantiles of draws; unresolved where most of them are infinite.

    Examples:
        >>> print(interval(np.linspace(0.0, 10.0, 101)))
        5 (0.5 to 9.5)
        >>> interval(np.full(10, math.inf)).resolved
        False
    """
    finite = draws[np.isfinite(draws)]
    if len(finite) < 0.5 * len(draws):
        return Interval.unresolved(level)
    low, middle, high = np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2], method="nearest")
    return Interval(float(middle), float(low), float(high), level)

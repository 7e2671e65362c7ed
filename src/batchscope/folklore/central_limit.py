"""The mean gradient of tens of examples is approximately normal around the true gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.rows import gradient_rows
from batchscope.folklore.runner import ExperimentRunner
from batchscope.folklore.verdicts import FAILS, HOLDS, of_equality
from batchscope.records import Interval
from batchscope.records.claims import Finding, Picture, Series
from batchscope.seeding import derive

EXAMPLES, DRAWS, DIRECTIONS = 1024, 4000, 8
SIZES = (1, 4, 16, 32, 64)
TENS = 32
# Largest negligible distance of two distributions: 5% of the draws are in another place.
CLOSE = 0.05
# The 95% bound by the Dvoretzky–Kiefer–Wolfowitz inequality with Massart's constant.
BOUND = float(np.sqrt(np.log(2 / 0.05) / (2 * DRAWS)))


def test(runner: ExperimentRunner) -> Outcome:
    """Compare means of B gradients, along the mean gradient and random directions, with a normal distribution."""
    run = runner.train(runner.plan(runner.small))[0]
    rows = gradient_rows(runner, run.state, EXAMPLES, "central limit")
    generator = np.random.default_rng(derive(runner.seed, "claims", "directions"))
    directions = np.concatenate([rows.mean(axis=0)[None], generator.standard_normal((DIRECTIONS, rows.shape[1]))])
    along = rows @ directions.T
    spread = along.std(axis=0)
    along = along[:, spread > 0] / spread[spread > 0]
    distances = {size: [_distance(along[:, i], size, generator) for i in range(along.shape[1])] for size in SIZES}
    middle = {size: float(np.median(found)) for size, found in distances.items()}
    worst = {size: max(found) for size, found in distances.items()}
    found = Interval(worst[TENS], max(0.0, worst[TENS] - BOUND), worst[TENS] + BOUND)
    verdict = of_equality(found, CLOSE)
    explanation = {
        HOLDS: f"In every direction, means of {TENS} gradients are within {CLOSE:.0%} of a normal distribution.",
        FAILS: f"In some direction, means of {TENS} gradients are far from normal: the gradients have heavy tails.",
    }.get(
        verdict,
        f"The distance from a normal distribution at {TENS} examples is {CLOSE:.0%} within the measurement error.",
    )
    series = tuple(
        Series(
            name,
            tuple(map(float, SIZES)),
            tuple(Interval(of[size], max(0.0, of[size] - BOUND), of[size] + BOUND) for size in SIZES),
        )
        for name, of in (("worst direction", worst), ("median direction", middle))
    )
    return Outcome(
        f"{len(rows):,} per-example gradients at the end of training with batch size {runner.small}, and {DRAWS:,} "
        f"means of B of them, drawn with replacement. The distance is the Kolmogorov–Smirnov distance from the normal "
        f"distribution of the same mean and variance, along the mean gradient and {DIRECTIONS} random directions.",
        verdict,
        explanation,
        (
            Finding(f"distance from normal at {TENS} examples, worst direction", found),
            Finding(
                "distance from normal at 1 example, worst direction",
                Interval(worst[1], max(0.0, worst[1] - BOUND), worst[1] + BOUND),
            ),
        ),
        Picture("batch size", "distance from a normal distribution", series),
    )


def _distance(values: NDArray[np.float64], size: int, generator: np.random.Generator) -> float:
    """Kolmogorov–Smirnov distance of means of ``size`` values from the normal limit."""
    means = values[generator.integers(len(values), size=(DRAWS, size))].mean(axis=1)
    normal = ndtr((np.sort(means) - values.mean()) * np.sqrt(size) / values.std())
    steps = np.arange(DRAWS + 1) / DRAWS
    return float(max((steps[1:] - normal).max(), (normal - steps[:-1]).max()))


CLAIM = Claim(
    "means-are-close-to-normal",
    "Over tens of examples the mean gradient is close to normal around the true one.",
    "Ng, Machine Learning; the central limit theorem",
    test,
)

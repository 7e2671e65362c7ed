"""Over tens of examples the mean gradient is close to normal around the true one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab
from batchscope.folklore.rows import gradient_rows
from batchscope.folklore.verdicts import FAILS, HOLDS, of_equality
from batchscope.records import Interval
from batchscope.records.claims import Finding, Picture, Series
from batchscope.seeding import derive

EXAMPLES, DRAWS, DIRECTIONS = 1024, 4000, 8
SIZES = (1, 4, 16, 32, 64)
TENS = 32
# Distributions whose largest distance is below this look alike: one in twenty of the draws lies elsewhere.
CLOSE = 0.05
# The 95% bound of Dvoretzky, Kiefer and Wolfowitz, with Massart's constant.
BOUND = float(np.sqrt(np.log(2 / 0.05) / (2 * DRAWS)))


def test(lab: Lab) -> Outcome:
    """Draw means of B gradients, projected on the mean one and on random directions, beside a normal of their own."""
    run = lab.train(lab.plan(lab.small))[0]
    rows = gradient_rows(lab, run.state, EXAMPLES, "central limit")
    generator = np.random.default_rng(derive(lab.seed, "claims", "directions"))
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
        HOLDS: f"Means of {TENS} gradients are within {CLOSE:.0%} of a normal in every direction looked at.",
        FAILS: f"Means of {TENS} gradients are still far from normal in some direction: single ones have heavy tails.",
    }.get(verdict, f"The distance from a normal at {TENS} examples is about {CLOSE:.0%}, to within the error of this.")
    series = tuple(
        Series(
            name,
            tuple(map(float, SIZES)),
            tuple(Interval(of[size], max(0.0, of[size] - BOUND), of[size] + BOUND) for size in SIZES),
        )
        for name, of in (("the worst direction", worst), ("the middle one", middle))
    )
    return Outcome(
        f"{len(rows):,} gradients of single examples where batch {lab.small} ends; {DRAWS:,} means of B of them drawn "
        f"with replacement, along the mean gradient and {DIRECTIONS} random directions; the largest distance of their "
        f"distribution from the normal of the same mean and variance.",
        verdict,
        explanation,
        (
            Finding(f"distance from a normal at {TENS} examples, the worst direction", found),
            Finding("the same of single examples", Interval(worst[1], max(0.0, worst[1] - BOUND), worst[1] + BOUND)),
        ),
        Picture("batch size", "largest distance from a normal distribution", series),
    )


def _distance(values: NDArray[np.float64], size: int, generator: np.random.Generator) -> float:
    """Kolmogorov's distance of means of so many draws from the normal that the central limit theorem says."""
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

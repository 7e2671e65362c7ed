"""Even the gradient over all training data is only an estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import ExperimentRunner
from batchscope.folklore.verdicts import FAILS, HOLDS, INCONCLUSIVE, of_effect
from batchscope.measure.noise import gradient_noise
from batchscope.records import Interval
from batchscope.records.claims import Finding, Picture, Series

EXAMPLES = 1024
# Largest negligible relative error of the gradient.
LEAST = 0.01
PARTS = 4


def test(runner: ExperimentRunner) -> Outcome:
    """Estimate the relative error of the full gradient, √(noise scale / N)."""
    n = runner.workload.training_examples
    plan = runner.plan(runner.small)
    states = [None, *runner.states_along(plan, PARTS)]
    places = [min(runner.examples, k * -(-runner.examples // PARTS)) for k in range(len(states))]
    errors = [_error(runner, state) for state in states]
    error = errors[-1]
    verdict = of_effect(Interval(error.value, None if error.low is None else error.low - LEAST, error.high), LEAST)
    explanation = {
        HOLDS: f"At the end of training the gradient over all {n:,} examples has a relative error above {LEAST:.0%}.",
        FAILS: f"The gradient over all {n:,} examples has a relative error of at most {LEAST:.0%}.",
    }.get(verdict, "The noise scale is not resolved at the end of training.")
    known = [(place, own) for place, own in zip(places, errors, strict=True) if own.value is not None]
    series = Series("√(noise scale / N)", tuple(float(p) for p, _ in known), tuple(own for _, own in known))
    if verdict == INCONCLUSIVE and error.low is not None and error.low > LEAST:
        verdict, explanation = HOLDS, f"The relative error is above {LEAST:.0%}; its upper bound is not resolved."
    return Outcome(
        f"The gradient noise scale from {min(EXAMPLES, n):,} training examples at {PARTS + 1} points of a run with "
        f"batch size {runner.small}. Divided by the {n:,} training examples, it is the squared relative error of their "
        f"mean gradient as an estimate of the gradient on new data.",
        verdict,
        explanation,
        (
            Finding("relative error of the full gradient at the end of training", error),
            Finding("relative error of the full gradient at the beginning", errors[0]),
        ),
        Picture("examples trained on", "relative error", (series,), log_across=False),
    )


def _error(runner: ExperimentRunner, state: Mapping[str, Any] | None) -> Interval:
    runner.notify("gradient noise")
    found = gradient_noise(
        runner.workload,
        state,
        examples=min(EXAMPLES, runner.workload.training_examples),
        seed=runner.seeds[0],
        device=runner.prepared.device,
    ).noise_scale
    n = runner.workload.training_examples
    ends = [None if end is None else math.sqrt(max(end, 0.0) / n) for end in (found.value, found.low, found.high)]
    return Interval(ends[0], ends[1], ends[2], found.level, found.resolved)


CLAIM = Claim(
    "the-full-gradient-is-an-estimate",
    "Even the gradient over all training data is only an estimate: on new data it is another.",
    "Goodfellow, Bengio and Courville, Deep Learning, chapter 8",
    test,
)

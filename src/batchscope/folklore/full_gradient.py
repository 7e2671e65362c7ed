"""Even the gradient over all training data is only an estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab
from batchscope.folklore.verdicts import FAILS, HOLDS, UNTOLD, of_effect
from batchscope.measure.noise import gradient_noise
from batchscope.records import Interval
from batchscope.records.claims import Finding, Picture, Series

EXAMPLES = 1024
# An error of the gradient of less than this share of its length would not be noticed.
LEAST = 0.01
PARTS = 4


def test(lab: Lab) -> Outcome:
    """The noise scale over the number of training examples is the squared relative error of their mean gradient."""
    n = lab.workload.training_examples
    plan = lab.plan(lab.small)
    states = [None, *lab.states_along(plan, PARTS)]
    places = [min(lab.examples, k * -(-lab.examples // PARTS)) for k in range(len(states))]
    errors = [_error(lab, state) for state in states]
    error = errors[-1]
    verdict = of_effect(Interval(error.value, None if error.low is None else error.low - LEAST, error.high), LEAST)
    explanation = {
        HOLDS: f"At the end of training the gradient over all {n:,} examples is noticeably off.",
        FAILS: f"All {n:,} examples give the gradient to within {LEAST:.0%} of its length.",
    }.get(verdict, "The noise scale is not resolved at the end of training.")
    known = [(place, own) for place, own in zip(places, errors, strict=True) if own.value is not None]
    series = Series("√(noise scale / N)", tuple(float(p) for p, _ in known), tuple(own for _, own in known))
    if verdict == UNTOLD and error.low is not None and error.low > LEAST:
        verdict, explanation = HOLDS, "The error is at least that; how large it is, is not resolved."
    return Outcome(
        f"The gradient noise scale of {min(EXAMPLES, n):,} training examples at {PARTS + 1} places of a run of batch "
        f"{lab.small}. Over the {n:,} training examples it is the squared relative error of their mean gradient, as an "
        f"estimate of the gradient on new data of the same kind.",
        verdict,
        explanation,
        (
            Finding("error of the full gradient over its length, at the end", error),
            Finding("the same at the beginning", errors[0]),
        ),
        Picture("examples trained on", "error over length", (series,), log_across=False),
    )


def _error(lab: Lab, state: Mapping[str, Any] | None) -> Interval:
    lab.tell("gradient noise")
    found = gradient_noise(
        lab.workload,
        state,
        examples=min(EXAMPLES, lab.workload.training_examples),
        seed=lab.seeds[0],
        device=lab.prepared.device,
    ).noise_scale
    n = lab.workload.training_examples
    ends = [None if end is None else math.sqrt(max(end, 0.0) / n) for end in (found.value, found.low, found.high)]
    return Interval(ends[0], ends[1], ends[2], found.level, found.resolved)


CLAIM = Claim(
    "the-full-gradient-is-an-estimate",
    "Even the gradient over all training data is only an estimate: on new data it is another.",
    "Goodfellow, Bengio and Courville, Deep Learning, chapter 8",
    test,
)

"""Stop at the best validation score, not at the first bad evaluation."""

from __future__ import annotations

from batchscope.fit import mean_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import ExperimentRunner
from batchscope.folklore.verdicts import FAILS, HOLDS, of_effect, paired
from batchscope.records import CurvePoint
from batchscope.records.claims import Finding, Picture, Series


def test(runner: ExperimentRunner) -> Outcome:
    """Train at a constant learning rate, and compare the end with a stop at the first bad evaluation."""
    plan = runner.plan(runner.small, shape="constant")
    curves = [run.result.curve for run in runner.train(plan)]
    stopped = [first_bad(curve) for curve in curves]
    at_stop = [curve[place].score for curve, place in zip(curves, stopped, strict=True)]
    # The maximum over evaluations is biased upwards by their noise; the score at the end is not.
    at_end = [curve[-1].score for curve in curves]
    best = [max(point.score for point in curve) for curve in curves]
    gained, at_best = paired(at_end, at_stop), paired(best, at_stop)
    least = runner.noticeable_score()
    verdict = of_effect(gained, least)
    shares = mean_interval(
        [curve[place].examples / runner.examples for curve, place in zip(curves, stopped, strict=True)]
    )
    explanation = {
        HOLDS: "The score still improves after the first bad evaluation.",
        FAILS: f"After the first bad evaluation the score improves by at most {least:.2g}.",
    }.get(verdict, "The improvement after the first bad evaluation is smaller than the differences between seeds.")
    count = min(map(len, curves))
    series = Series(
        "validation score",
        tuple(float(point.examples) for point in curves[0][:count]),
        tuple(mean_interval([curve[i].score for curve in curves]) for i in range(count)),
    )
    halts = Series(
        "first bad evaluation",
        tuple(float(curve[place].examples) for curve, place in zip(curves, stopped, strict=True)),
        tuple(mean_interval([score]) for score in at_stop),
        line=False,
    )
    return Outcome(
        f"Batch size {runner.small} at a constant learning rate for {runner.examples:,} examples, with {count - 1} "
        f"evaluations. The first bad evaluation is the first one below its predecessor.",
        verdict,
        explanation,
        (
            Finding("score at the end minus before the first bad evaluation", gained),
            Finding("best score minus before the first bad evaluation", at_best),
            Finding("share of the run before the first bad evaluation", shares),
        ),
        Picture("examples", "validation score", (series, halts), log_across=False),
    )


def first_bad(curve: tuple[CurvePoint, ...]) -> int:
    """Index of the evaluation before the first one that scores lower than its predecessor; else of the last one.

    Examples:
        >>> def points(*scores):
        ...     return tuple(CurvePoint(i, i, 0.0, 0.1, None, 1.0, score, 8) for i, score in enumerate(scores))
        >>> first_bad(points(0.1, 0.5, 0.4, 0.9)), first_bad(points(0.1, 0.2))
        (1, 1)
    """
    for i in range(1, len(curve)):
        if curve[i].score < curve[i - 1].score:
            return i - 1
    return len(curve) - 1


CLAIM = Claim(
    "stop-at-the-best-and-not-at-the-first-bad",
    "Stop at the best validation score, and not at the first bad evaluation.",
    "Ng, Machine Learning; Prechelt 1998",
    test,
)

"""Stop at the best validation score, and not at the first bad evaluation."""

from __future__ import annotations

from batchscope.fit import mean_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab
from batchscope.folklore.verdicts import FAILS, HOLDS, of_effect, paired
from batchscope.records import CurvePoint
from batchscope.records.claims import Finding, Picture, Series


def test(lab: Lab) -> Outcome:
    """Train at a constant rate, and see where the first bad evaluation would have stopped it."""
    plan = lab.plan(lab.small, shape="constant")
    curves = [run.result.curve for run in lab.train(plan)]
    stopped = [first_bad(curve) for curve in curves]
    at_stop = [curve[place].score for curve, place in zip(curves, stopped, strict=True)]
    # The end was not chosen by its score; the best one was, and flatters itself by what evaluations scatter.
    at_end = [curve[-1].score for curve in curves]
    best = [max(point.score for point in curve) for curve in curves]
    gained, at_best = paired(at_end, at_stop), paired(best, at_stop)
    least = lab.noticeable_score()
    verdict = of_effect(gained, least)
    shares = mean_interval([curve[place].examples / lab.examples for curve, place in zip(curves, stopped, strict=True)])
    explanation = {
        HOLDS: "Whoever stops at the first bad evaluation gives away what comes after it.",
        FAILS: f"After the first bad evaluation nothing is gained that lasts, to within {least:.2g}.",
    }.get(verdict, "Seeds differ by more than what comes after the first bad evaluation.")
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
        f"Batch {lab.small} at a constant rate for {lab.examples:,} examples, evaluated {count - 1} times; the first "
        f"bad evaluation is the first one below the one before it.",
        verdict,
        explanation,
        (
            Finding("score at the end minus before the first bad evaluation", gained),
            Finding("the best score minus that", at_best),
            Finding("share of the run before the first bad evaluation", shares),
        ),
        Picture("examples", "validation score", (series, halts), log_across=False),
    )


def first_bad(curve: tuple[CurvePoint, ...]) -> int:
    """The evaluation before the first one that scores lower; the last one where none does.

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

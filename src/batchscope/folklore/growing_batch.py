"""Growing the batch equals decaying the learning rate, in fewer updates."""

from __future__ import annotations

from batchscope.fit import mean_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import ExperimentRunner
from batchscope.folklore.verdicts import FAILS, HOLDS, of_equality, paired
from batchscope.records.claims import Finding, Picture, Series
from batchscope.schedule import smith, stepped

FACTOR, MILESTONES = 4.0, (0.5, 0.75)


def test(runner: ExperimentRunner) -> Outcome:
    """Train with step decay of the learning rate, and with equal steps of the batch size at the same milestones."""
    first = runner.small
    at = tuple(round(share * runner.examples / first) * first for share in MILESTONES)
    base = runner.plan(first, shape="constant")
    plans = {
        "learning-rate decay": runner.plan(first, shape="constant", schedule=stepped(first, at=at, factor=FACTOR)),
        "batch-size growth": runner.plan(
            first, shape="constant", schedule=smith(first, at=at, factor=FACTOR, cap=runner.workload.training_examples)
        ),
        "constant": base,
    }
    runs = {name: runner.train(plan) for name, plan in plans.items()}
    scores = {name: runner.scores(plan) for name, plan in plans.items()}
    difference = paired(scores["batch-size growth"], scores["learning-rate decay"])
    least = runner.noticeable_score()
    verdict = of_equality(difference, least)
    updates = {name: own[0].result.iterations for name, own in runs.items()}
    saved = f"{updates['batch-size growth']:,} updates against {updates['learning-rate decay']:,}"
    explanation = {
        HOLDS: f"The scores differ by less than {least:.2g}, with {saved}.",
        FAILS: f"The scores differ, with {saved}.",
    }.get(verdict, f"A difference above {least:.2g} cannot be excluded; {saved}.")
    gained = paired(scores["learning-rate decay"], scores["constant"])
    series = tuple(
        Series(
            name,
            tuple(float(point.examples) for point in own[0].result.curve[1:]),
            tuple(
                mean_interval([run.result.curve[i].score for run in own])
                for i in range(1, min(len(run.result.curve) for run in own))
            ),
        )
        for name, own in runs.items()
    )
    return Outcome(
        f"Batch size {first} at its best learning rate. At {at[0]:,} and {at[1]:,} of {runner.examples:,} examples, "
        f"the learning rate is divided or the batch size multiplied by {FACTOR:g}.",
        verdict,
        explanation,
        (
            Finding("score with batch-size growth minus learning-rate decay", difference),
            Finding("gain from learning-rate decay over a constant rate", gained),
        ),
        Picture("examples", "validation score", _cut(series), log_across=False),
    )


def _cut(series: tuple[Series, ...]) -> tuple[Series, ...]:
    """Cut each series to the shortest of its runs."""
    return tuple(Series(s.name, s.across[: len(s.values)], s.values, s.line) for s in series)


CLAIM = Claim(
    "growing-the-batch-equals-decaying-the-rate",
    "Growing the batch equals decaying the learning rate, in fewer updates.",
    "Smith et al. 2017",
    test,
)

"""Batches arranged to look alike make the batch size matter less."""

from __future__ import annotations

from batchscope.errors import BatchscopeError
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab, StoppedError
from batchscope.folklore.verdicts import FAILS, HOLDS, UNTOLD, of_effect, paired
from batchscope.records.claims import Finding, Picture


def test(lab: Lab) -> Outcome:
    """Compare how far the scores of small and large batches lie apart, shuffled and stratified by label."""
    small, large = lab.smallest, lab.large
    experiment = (
        f"Batch {small} against {large:,}, each at its best rate, with batches shuffled and with batches that each "
        f"have the data's class proportions, {len(lab.seeds)} seeds in pairs."
    )
    try:
        arranged = {size: lab.scores(lab.plan(size, order="stratified")) for size in (small, large)}
    except StoppedError:
        raise
    except BatchscopeError as error:
        return Outcome(experiment, UNTOLD, f"Batches cannot be arranged by label here: {error}", ())
    shuffled = {size: lab.scores(lab.plan(size)) for size in (small, large)}
    apart = {
        name: [abs(a - b) for a, b in zip(own[small], own[large], strict=True) if a is not None and b is not None]
        for name, own in (("shuffled", shuffled), ("stratified", arranged))
    }
    shrunk = paired(apart["shuffled"], apart["stratified"])
    least = lab.noticeable_score()
    verdict = of_effect(shrunk, least)
    explanation = {
        HOLDS: "Stratified, the two sizes lie closer together.",
        FAILS: f"Stratified, the two sizes lie no closer together, to within {least:.2g}.",
    }.get(verdict, "Seeds differ by more than the arrangement changes.")
    series = (
        lab.score_series("shuffled", (small, large)),
        lab.score_series("stratified", (small, large), order="stratified"),
    )
    return Outcome(
        experiment,
        verdict,
        explanation,
        (
            Finding("how much closer the two sizes lie when stratified", shrunk),
            Finding(f"what stratifying gains at batch {small}", paired(arranged[small], shuffled[small])),
        ),
        Picture("batch size", "final score", series),
    )


CLAIM = Claim(
    "alike-batches-matter-less",
    "Batches arranged to look alike make the batch size matter less.",
    "a comment on the question",
    test,
)

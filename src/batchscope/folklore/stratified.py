"""With batches arranged to look alike, the batch size matters less."""

from __future__ import annotations

from batchscope.errors import BatchscopeError
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import ExperimentRunner, StoppedError
from batchscope.folklore.verdicts import FAILS, HOLDS, INCONCLUSIVE, of_effect, paired
from batchscope.records.claims import Finding, Picture


def test(runner: ExperimentRunner) -> Outcome:
    """Compare the gap between small and large batches, shuffled and stratified by label."""
    small, large = runner.smallest, runner.large
    experiment = (
        f"Batch sizes {small} and {large:,}, each at its best learning rate, with shuffled batches and with batches "
        f"stratified by class, {len(runner.seeds)} paired seeds."
    )
    try:
        arranged = {size: runner.scores(runner.plan(size, order="stratified")) for size in (small, large)}
    except StoppedError:
        raise
    except BatchscopeError as error:
        return Outcome(experiment, INCONCLUSIVE, f"Batches cannot be stratified: {error}", ())
    shuffled = {size: runner.scores(runner.plan(size)) for size in (small, large)}
    apart = {
        name: [abs(a - b) for a, b in zip(own[small], own[large], strict=True) if a is not None and b is not None]
        for name, own in (("shuffled", shuffled), ("stratified", arranged))
    }
    shrunk = paired(apart["shuffled"], apart["stratified"])
    least = runner.noticeable_score()
    verdict = of_effect(shrunk, least)
    explanation = {
        HOLDS: "With stratified batches, the two batch sizes are closer together.",
        FAILS: f"With stratified batches, the gap between the two batch sizes shrinks by at most {least:.2g}.",
    }.get(verdict, "The effect of stratified batches is smaller than the differences between seeds.")
    series = (
        runner.score_series("shuffled", (small, large)),
        runner.score_series("stratified", (small, large), order="stratified"),
    )
    return Outcome(
        experiment,
        verdict,
        explanation,
        (
            Finding("reduction of the gap by stratified batches", shrunk),
            Finding(f"gain from stratified batches at batch size {small}", paired(arranged[small], shuffled[small])),
        ),
        Picture("batch size", "final score", series),
    )


CLAIM = Claim(
    "alike-batches-matter-less",
    "Batches arranged to look alike make the batch size matter less.",
    "a comment on the question",
    test,
)

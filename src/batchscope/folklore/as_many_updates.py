"""Large batches close the gap if they make the same number of updates; other interventions for comparison."""

from __future__ import annotations

from collections.abc import Iterator

from batchscope.errors import WorkloadError
from batchscope.fit import mean_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import NO_INTERVENTION, ExperimentRunner, Intervention
from batchscope.folklore.verdicts import FAILS, HOLDS, INCONCLUSIVE, of_effect, paired
from batchscope.records import Interval, Plan
from batchscope.records.claims import Finding, Picture, Series, Verdict

# Share of the budget for the longer runs of all seeds.
SHARE = 0.15
# Share of the examples that are trained with the small batch size first.
HEAD_START = 0.25
# Conservative training of Keskar et al. 2016, section 4.2: three steps on each batch with λ = 1e-3.
INNER_STEPS, PROXIMITY = 3, 1e-3


def test(runner: ExperimentRunner) -> Outcome:
    """Compare the same number of updates, and every other intervention, with the same number of examples."""
    small, large = runner.small, affordable_size(runner)
    least = runner.noticeable_score()
    times = large // small
    sizes = (small, large)
    baseline, plain = (runner.scores(runner.plan(size, "fixed")) for size in sizes)
    longer = runner.scores(runner.plan(large, "fixed", examples=times * runner.examples))
    gap, left = paired(baseline, plain), paired(baseline, longer)
    verdict, explanation = judge(gap, left, least)
    gains = tuple(
        Finding(f"gain from {name} at batch size {large:,}", paired(runner.scores(plan, intervention), plain))
        for name, plan, intervention in other_interventions(runner, small, large)
    )
    examples = runner.score_series("same number of examples", sizes, "fixed")
    ends = examples.values[0], mean_interval([score for score in longer if score is not None])
    return Outcome(
        f"Batch sizes {small} and {large:,} at the workload's learning rate for {runner.examples:,} examples each, and "
        f"batch size {large:,} for {times} times as many examples, which is the same number of updates. Other "
        f"interventions use the same number of examples.",
        verdict,
        explanation,
        (
            Finding(f"score of {small} minus {large:,}, same number of updates", left),
            Finding(f"score of {small} minus {large:,}, same number of examples", gap),
            *gains,
        ),
        Picture("batch size", "final score", (examples, Series("same number of updates", examples.across, ends))),
    )


def judge(gap: Interval, left: Interval, least: float) -> tuple[Verdict, str]:
    """Decide whether the same number of updates closes an existing gap.

    Args:
        gap: Difference of scores, small batch minus large, after the same number of examples.
        left: The same after the same number of updates.
        least: The smallest difference that matters.

    Examples:
        >>> judge(Interval(3.0, 2.0, 4.0), Interval(0.1, -0.1, 0.3), 0.5)[0]
        'holds here'
        >>> judge(Interval(3.0, 2.0, 4.0), Interval(2.0, 1.0, 3.0), 0.5)[0]
        'does not hold here'
        >>> judge(Interval(0.1, -0.2, 0.4), Interval(0.0, -0.1, 0.1), 0.5)[0]
        "can't be told"
    """
    if of_effect(gap, least) != HOLDS:
        return INCONCLUSIVE, "After the same number of examples there is no gap to close."
    remaining = of_effect(left, least)
    if remaining == FAILS:
        return (
            HOLDS,
            f"After the same number of updates no gap above {least:.2g} remains, at the cost of more examples.",
        )
    if remaining == HOLDS:
        return FAILS, "After the same number of updates the small batch size still scores higher."
    return (
        INCONCLUSIVE,
        "The remaining gap after the same number of updates is smaller than the differences between seeds.",
    )


def affordable_size(runner: ExperimentRunner) -> int:
    """The largest batch size, a power of two times the small one, whose longer runs fit the budget."""
    size = 2 * runner.small
    updates = len(runner.seeds) * runner.examples / runner.small
    while 2 * size <= runner.large and updates * runner.seconds_per_update(2 * size) <= SHARE * runner.budget_seconds:
        size *= 2
    return size


def other_interventions(runner: ExperimentRunner, small: int, large: int) -> Iterator[tuple[str, Plan, Intervention]]:
    """Other interventions for the large batch size: name, plan and change beyond the plan."""
    plain = runner.plan(large, "fixed")
    yield (
        "conservative training",
        runner.plan(large, "fixed", inner_steps=INNER_STEPS, proximity=PROXIMITY),
        NO_INTERVENTION,
    )
    head = runner.plan(small, "fixed", examples=round(HEAD_START * runner.examples), shape="constant")
    rest = runner.plan(large, "fixed", examples=runner.examples - round(HEAD_START * runner.examples))
    yield f"a start with batch size {small}", rest, Intervention(after=head)
    ghosts = Intervention(ghost_size=small)
    try:
        runner.scores(plain, ghosts)
    except WorkloadError:  # no batch norm in this model
        return
    yield f"ghost batch norm over {small} examples", plain, ghosts


CLAIM = Claim(
    "as-many-updates-close-the-gap",
    "The gap of large batches closes when they make as many updates, instead of seeing as many examples.",
    "Hoffer et al. 2017; other interventions: Keskar et al. 2016, section 4",
    test,
)

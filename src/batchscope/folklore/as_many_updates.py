"""The gap of large batches closes with as many updates in place of as many examples; other remedies beside it."""

from __future__ import annotations

from collections.abc import Iterator

from batchscope.errors import WorkloadError
from batchscope.fit import mean_interval
from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import NO_REMEDY, Lab, Remedy
from batchscope.folklore.verdicts import FAILS, HOLDS, UNTOLD, of_effect, paired
from batchscope.records import Interval, Plan
from batchscope.records.claims import Finding, Picture, Series, Verdict

# What the longer runs of all seeds may take of the budget.
SHARE = 0.15
# Of all examples those of the small batch that makes a start for the large one.
HEAD_START = 0.25
# Keskar et al. 2016, section 4.2: three steps on each batch, held back by λ = 1e-3.
INNER_STEPS, PROXIMITY = 3, 1e-3


def test(lab: Lab) -> Outcome:
    """Give a large batch as many updates as a small one has, and beside it every other remedy for as many examples."""
    small, large = lab.small, affordable_size(lab)
    least = lab.noticeable_score()
    times = large // small
    sizes = (small, large)
    baseline, plain = (lab.scores(lab.plan(size, "fixed")) for size in sizes)
    longer = lab.scores(lab.plan(large, "fixed", examples=times * lab.examples))
    gap, left = paired(baseline, plain), paired(baseline, longer)
    verdict, explanation = judge(gap, left, least)
    gains = tuple(
        Finding(f"what {name} gains at batch {large:,}", paired(lab.scores(plan, remedy), plain))
        for name, plan, remedy in other_remedies(lab, small, large)
    )
    examples = lab.score_series("as many examples", sizes, "fixed")
    ends = examples.values[0], mean_interval([score for score in longer if score is not None])
    return Outcome(
        f"Batch {small} and batch {large:,} at the workload's rate for {lab.examples:,} examples each, and batch "
        f"{large:,} for {times} times as many, so for as many updates; other remedies for as many examples beside it.",
        verdict,
        explanation,
        (
            Finding(f"score of {small} minus that of {large:,} after as many updates", left),
            Finding("the same after as many examples", gap),
            *gains,
        ),
        Picture("batch size", "final score", (examples, Series("as many updates", examples.across, ends))),
    )


def judge(gap: Interval, left: Interval, least: float) -> tuple[Verdict, str]:
    """Whether a gap that is there goes with as many updates.

    Args:
        gap: Of scores after as many examples, small batch minus large.
        left: After as many updates.
        least: What would be noticed.

    Examples:
        >>> judge(Interval(3.0, 2.0, 4.0), Interval(0.1, -0.1, 0.3), 0.5)[0]
        'holds here'
        >>> judge(Interval(3.0, 2.0, 4.0), Interval(2.0, 1.0, 3.0), 0.5)[0]
        'does not hold here'
        >>> judge(Interval(0.1, -0.2, 0.4), Interval(0.0, -0.1, 0.1), 0.5)[0]
        "can't be told"
    """
    if of_effect(gap, least) != HOLDS:
        return UNTOLD, "After as many examples no gap is seen that more updates could close."
    remaining = of_effect(left, least)
    if remaining == FAILS:
        return HOLDS, f"After as many updates no gap above {least:.2g} is left; they cost more examples."
    if remaining == HOLDS:
        return FAILS, "After as many updates the small batch still scores higher."
    return UNTOLD, "Seeds differ by more than the gap that may be left after as many updates."


def affordable_size(lab: Lab) -> int:
    """The largest batch, a power of two times the small one, whose longer runs fit into their share of the budget."""
    size = 2 * lab.small
    updates = len(lab.seeds) * lab.examples / lab.small
    while 2 * size <= lab.large and updates * lab.seconds_per_update(2 * size) <= SHARE * lab.budget_seconds:
        size *= 2
    return size


def other_remedies(lab: Lab, small: int, large: int) -> Iterator[tuple[str, Plan, Remedy]]:
    """What else is said to help a large batch: its name, the plan and what is done besides.

    Args:
        lab: The workload.
        small: The small batch size.
        large: The large one.
    """
    plain = lab.plan(large, "fixed")
    yield "conservative training", lab.plan(large, "fixed", inner_steps=INNER_STEPS, proximity=PROXIMITY), NO_REMEDY
    head = lab.plan(small, "fixed", examples=round(HEAD_START * lab.examples), shape="constant")
    rest = lab.plan(large, "fixed", examples=lab.examples - round(HEAD_START * lab.examples))
    yield f"a start by batch {small}", rest, Remedy(after=head)
    ghosts = Remedy(ghost_size=small)
    try:
        lab.scores(plain, ghosts)
    except WorkloadError:  # no batch norm in this model
        return
    yield f"ghost batch norm over {small}", plain, ghosts


CLAIM = Claim(
    "as-many-updates-close-the-gap",
    "The gap of large batches closes when they make as many updates, in place of seeing as many examples.",
    "Hoffer et al. 2017; the remedies beside it: Keskar et al. 2016, section 4",
    test,
)

"""The learning rate over a budget, in examples."""

from __future__ import annotations

from batchscope.records import Plan


def rate_factor(plan: Plan, examples: int, batch_size: int) -> float:
    """What a plan's shape and warm-up multiply the learning rate by at an update.

    With E the budget, e the examples seen before the update and B those in it:

    * constant: 1;
    * linear: 1 − e/E, so that the first update has the whole rate, and none is wasted at a rate of zero;
    * cooldown, over the last share c of the budget: min(1, (1 − e/E)/c) (Hägele et al. 2024, arXiv 2405.18392).

    A warm-up over W examples multiplies that by min(1, (e + B)/W). All of it is in examples, so that a change of the
    batch size leaves the rate where it is.

    Args:
        plan: The plan.
        examples: Examples seen before the update.
        batch_size: Examples in it.

    Returns:
        The factor, above 0 and at most 1.

    Examples:
        >>> plan = Plan(batch_size=2, learning_rate=0.1, examples=8, shape="linear")
        >>> [rate_factor(plan, examples, 2) for examples in (0, 2, 4, 6)]
        [1.0, 0.75, 0.5, 0.25]
    """
    factor = 1.0
    if plan.shape != "constant" and plan.budget_examples is not None:
        factor = 1.0 - examples / plan.budget_examples
        if plan.shape == "cooldown":
            factor = min(1.0, factor / plan.cooldown)
    if examples + batch_size < plan.warmup_examples:
        factor *= (examples + batch_size) / plan.warmup_examples
    return factor


def varies(plan: Plan) -> bool:
    """Whether a plan's shape or warm-up changes the learning rate from one update to the next.

    Examples:
        >>> varies(Plan(batch_size=2, learning_rate=0.1, examples=8, warmup_examples=4))
        True
    """
    return plan.shape != "constant" or plan.warmup_examples > 0

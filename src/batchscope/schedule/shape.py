"""Learning-rate shapes and warm-up over a budget of examples."""

from __future__ import annotations

import math

from batchscope.records import Plan


def rate_factor(plan: Plan, examples: int, batch_size: int) -> float:
    """The factor of a plan's shape and warm-up on the learning rate of an update.

    With E the budget, W the examples of the warm-up, e the examples seen before the update, B those in it, and
    p = max(0, e − W)/(E − W):

    * constant: 1;
    * linear: 1 − p, which is 1 at the first update after the warm-up, and never 0;
    * cosine: (1 + cos πp)/2 (Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts);
    * cooldown, over the last share c of the budget: min(1, (1 − e/E)/c) (Hägele et al. 2024, arXiv 2405.18392).

    The warm-up multiplies it by min(1, (e + B)/W). All quantities are in examples, so that the learning rate does not
    depend on changes of the batch size.

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
    budget, warmup = plan.budget_examples, plan.warmup_examples or 0
    factor = 1.0
    if plan.shape == "cooldown" and budget is not None:
        factor = min(1.0, (1.0 - examples / budget) / plan.cooldown)
    elif plan.shape in ("linear", "cosine") and budget is not None and examples > warmup:
        factor = 1.0 - (examples - warmup) / (budget - warmup)
        if plan.shape == "cosine":
            factor = math.sin(math.pi * factor / 2) ** 2
    if examples + batch_size < warmup:
        factor *= (examples + batch_size) / warmup
    return factor


def varies(plan: Plan) -> bool:
    """Whether a plan's shape or warm-up changes the learning rate from one update to the next.

    Examples:
        >>> varies(Plan(batch_size=2, learning_rate=0.1, examples=8, warmup_examples=4))
        True
    """
    return plan.shape not in (None, "constant") or bool(plan.warmup_examples)

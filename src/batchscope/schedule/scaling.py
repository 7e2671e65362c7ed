"""Scaling rules of optimisers for other batch sizes."""

from __future__ import annotations

import math
from typing import Any

import torch

from batchscope.errors import PlanError

# "linear": the update is proportional to the gradient, whose mean does not depend on B (Goyal et al. 2017).
# "root":   the update is normalised by the gradient's own size, so its noise sets the scale (Malladi et al. 2022).
_RULES: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.SGD: "linear",
    torch.optim.ASGD: "linear",
    torch.optim.Adam: "root",
    torch.optim.AdamW: "root",
    torch.optim.NAdam: "root",
    torch.optim.RAdam: "root",
    torch.optim.RMSprop: "root",
    torch.optim.Adagrad: "root",
}


def learning_rate_exponent(optimizer: torch.optim.Optimizer) -> float:
    """The exponent x in "learning rate ∝ B**x" for an optimiser.

    SGD with or without momentum: 1, below the critical batch size (Goyal et al. 2017, arXiv 1706.02677). Adam and its
    variants: 1/2 (Malladi et al. 2022, arXiv 2205.10287). Neither is universal; a short search decides.

    Args:
        optimizer: A torch optimiser.

    Returns:
        The exponent.

    Raises:
        PlanError: An optimiser without a published rule.

    Examples:
        >>> learning_rate_exponent(torch.optim.Adam([torch.zeros(1)], lr=0.1))
        0.5
    """
    for kind, rule in _RULES.items():
        if isinstance(optimizer, kind):
            return 1.0 if rule == "linear" else 0.5
    raise PlanError(
        f"the optimiser must have a published scaling rule ({', '.join(kind.__name__ for kind in _RULES)})",
        got=type(optimizer).__name__,
        mend="search for the learning rate at each batch size instead",
    )


def rescale(optimizer: torch.optim.Optimizer, *, from_batch_size: int, to_batch_size: int) -> None:
    """Rescale an optimiser's settings in place for another batch size, by its scaling rule.

    With κ = to/from: SGD with or without momentum, ε → κ·ε. Adam, AdamW, NAdam, RAdam: ε → √κ·ε,
    β → β**κ, so that the averages forget at the same rate *per example* (the same as 1 − β → κ(1 − β) to first
    order, and never outside 0 to 1), and the ε in the denominator → ε/√κ. The same for ``alpha`` of RMSprop.
    Adagrad: ε → √κ·ε. Weight decay is unchanged; if it is coupled to the learning rate, it follows it.

    Sources: Goyal et al. 2017 (1706.02677), Malladi et al. 2022 (2205.10287), Marek et al. 2025 (2507.07101).

    Args:
        optimizer: A torch optimiser, whose state is unchanged.
        from_batch_size: The batch size that its settings were chosen for.
        to_batch_size: The new batch size.

    Raises:
        PlanError: A batch size below 1, or an optimiser without a published rule.

    Examples:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        >>> rescale(optimizer, from_batch_size=64, to_batch_size=128)
        >>> optimizer.param_groups[0]["lr"]
        0.2
    """
    for name, size in (("from_batch_size", from_batch_size), ("to_batch_size", to_batch_size)):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise PlanError(f"{name} must be a whole number of at least 1", got=size)
    kappa = to_batch_size / from_batch_size
    factor = kappa ** learning_rate_exponent(optimizer)
    # All read before one is set: groups may share one tensor as their rate.
    rates = [float(group["lr"]) * factor for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        set_rate(group, rate)
        if "initial_lr" in group:  # what torch's schedulers multiply
            group["initial_lr"] = float(group["initial_lr"]) * factor
        if factor == kappa:
            continue
        if "betas" in group:
            group["betas"] = tuple(beta**kappa for beta in group["betas"])
        if "alpha" in group:  # RMSprop's decay
            group["alpha"] = group["alpha"] ** kappa
        if not isinstance(optimizer, torch.optim.Adagrad):
            group["eps"] = group["eps"] / math.sqrt(kappa)


def half_life(beta: float, per_update: float) -> float:
    """The half-life of an exponential average in examples or tokens.

    t = n·ln ½ / ln β with n of them in an update. Marek et al. 2025 (arXiv 2507.07101) keep the half-life of Adam's β₂
    in tokens constant over batch sizes.

    Args:
        beta: The decay per update, between 0 and 1.
        per_update: Examples or tokens in an update.

    Returns:
        In the unit of ``per_update``.

    Raises:
        PlanError: A number outside its range.

    Examples:
        >>> round(half_life(0.999, 32 * 64))
        1418856
    """
    if not 0 < beta < 1:
        raise PlanError("a decay lies between 0 and 1", got=beta)
    if not 0 < per_update < math.inf:
        raise PlanError("an update must have a number of tokens above 0", got=per_update)
    return per_update * math.log(0.5) / math.log(beta)


def beta_of_half_life(half_life: float, per_update: float) -> float:
    """The decay per update of an exponential average with a given half-life in examples or tokens.

    β = 2^(−n/t), the inverse of :func:`half_life`.

    Args:
        half_life: Examples or tokens.
        per_update: Examples or tokens in an update.

    Raises:
        PlanError: A number that is not positive.

    Examples:
        >>> round(beta_of_half_life(1_418_856, 8 * 64), 5)
        0.99975
    """
    for name, value in (("half_life", half_life), ("per_update", per_update)):
        if not 0 < value < math.inf:
            raise PlanError(f"{name} must be above 0", got=value)
    return math.exp(math.log(0.5) * per_update / half_life)


def set_rate(group: dict[str, Any], learning_rate: float) -> None:
    """Set a parameter group's learning rate, in place where it is a tensor (captured optimisers hold on to it)."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(learning_rate)
    else:
        group["lr"] = learning_rate

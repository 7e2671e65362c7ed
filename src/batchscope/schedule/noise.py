"""The noise scale of stochastic gradient descent from learning rate, batch size and momentum."""

from __future__ import annotations

from batchscope.errors import PlanError
from batchscope.records.schedule import checked_count, checked_number


def sgd_noise_scale(learning_rate: float, examples: int, batch_size: int, momentum: float = 0.0) -> float:
    """The noise scale g = εN/(B(1 − m)) of the updates (Smith et al. 2017, arXiv 1711.00489).

    Settings with the same g train alike as long as B ≪ N. In general, g = ε(N/B − 1)/(1 − m).

    Args:
        learning_rate: ε.
        examples: N, the number of training examples.
        batch_size: B.
        momentum: m, also for Nesterov's momentum; β₁ of Adam.

    Returns:
        g.

    Raises:
        PlanError: An invalid number.

    Examples:
        >>> round(sgd_noise_scale(0.1, 50_000, 128, 0.9), 1), round(sgd_noise_scale(0.5, 50_000, 3200, 0.98), 1)
        (390.6, 390.6)
    """
    checked_number("learning_rate", learning_rate)
    checked_count("examples", examples, 1)
    checked_count("batch_size", batch_size, 1)
    _check_momentum(momentum)
    return learning_rate * examples / (batch_size * (1 - momentum))


def equal_noise_batch_size(
    batch_size: int,
    *,
    learning_rates: tuple[float, float] = (1.0, 1.0),
    momenta: tuple[float, float] = (0.0, 0.0),
) -> int:
    """The batch size B ∝ ε/(1 − m) with the same g at another learning rate or momentum.

    Args:
        batch_size: B before.
        learning_rates: ε before and after.
        momenta: m before and after.

    Returns:
        B after, to the nearest example, at least 1.

    Raises:
        PlanError: An invalid number.

    Examples:
        >>> equal_noise_batch_size(128, learning_rates=(0.1, 0.5))
        640
        >>> equal_noise_batch_size(640, momenta=(0.9, 0.98))
        3200
    """
    checked_count("batch_size", batch_size, 1)
    for rate in learning_rates:
        checked_number("learning_rate", rate)
        if rate <= 0:
            raise PlanError("learning_rate must be above 0", got=rate)
    for momentum in momenta:
        _check_momentum(momentum)
    before, after = (rate / (1 - momentum) for rate, momentum in zip(learning_rates, momenta, strict=True))
    return max(1, round(batch_size * after / before))


def _check_momentum(momentum: float) -> None:
    checked_number("momentum", momentum)
    if not 0 <= momentum < 1:
        raise PlanError("momentum must be at least 0 and below 1", got=momentum)

"""What updates take in a run of its own: a cold start, the average of the weights, and losses that are read."""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.advice.judge import LEAST_EXAMPLES, Judge
from batchscope.records import Plan
from batchscope.training.averaging import POWER
from batchscope.training.loop import Prepared, Run

# Two short runs; what they differ by is the pace, and what is left is the start.
SHORT, LONG = 8, 56


@dataclass(frozen=True)
class Pace:
    """Seconds of a run: ``start_seconds + updates * update_seconds``.

    Attributes:
        start_seconds: What the first updates take beyond the others.
        update_seconds: What each takes.
    """

    start_seconds: float
    update_seconds: float

    def seconds(self, updates: float) -> float:
        """Of a run of so many updates."""
        return self.start_seconds + updates * self.update_seconds


def pace(prepared: Prepared, batch_size: int, learning_rate: float, *, seed: int) -> Pace:
    """Train for a few updates, as :func:`batchscope.train` would, and for a few more.

    Args:
        prepared: The workload, with its data on the device.
        batch_size: Examples per update.
        learning_rate: The rate.
        seed: Of both runs.

    Returns:
        The pace.

    Examples:
        >>> import torch
        >>> from batchscope.workload.digits import digits
        >>> pace(Prepared(digits(), torch.device("cpu")), 32, 0.1, seed=0).update_seconds > 0
        True
    """
    judge = Judge(prepared, LEAST_EXAMPLES)
    spent = []
    for updates in (SHORT, LONG):
        plan = Plan(batch_size, learning_rate, iterations=updates, shape="constant", averaging=POWER)
        run = Run(
            prepared,
            plan,
            seed=seed,
            evaluate_every=plan.budget_examples,
            validation=judge.data,
            evaluate_training=False,
        )
        spent.append(run().step_seconds)
    each = max((spent[1] - spent[0]) / (LONG - SHORT), 1e-9)
    return Pace(max(0.0, spent[0] - SHORT * each), each)

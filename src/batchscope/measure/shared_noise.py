"""The gradient noise scale of a run whose batches several ranks share, from what the ranks have anyway.

At a measured update rank r has the mean gradient g_r of its m_r examples, and after the sum all have the batch's, ḡ.
With s the mean of ‖g_r‖² over the ranks that have examples, E s = ‖G‖² + tr Σ/b with 1/b the mean of 1/m_r, and
E ‖ḡ‖² = ‖G‖² + tr Σ/B: what :mod:`batchscope.fit.noise_series` makes tr Σ and ‖G‖² of, without bias for shares of any
size (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from batchscope.fit.noise_series import from_two_sizes
from batchscope.measure.arguments import checked_whole
from batchscope.measure.sample import Sample, Window
from batchscope.records import Interval

# An update is measured by one pass over the gradients before their sum and one after: next to nothing at each tenth.
EVERY, HALF_LIFE = 10, 1000.0


class SharedNoise:
    """Measures at fixed updates, so that all ranks, and a resumed run, measure and decide alike.

    Args:
        model: The model; not looked at.
        optimizer: Its optimiser; likewise.
        every: Updates from one measurement to the next.
        half_life: Updates after which a measurement counts for half; None: all count alike.

    Raises:
        ArgumentError: ``every`` is below 1.

    Examples:
        >>> noise = SharedNoise(torch.nn.Linear(1, 1), None, every=2)
        >>> [noise.is_due() for _ in range(4)]
        [False, True, False, True]
        >>> for _ in range(8):
        ...     noise.see(5.0, 1.5, shares=[1] * 8)  # ‖G‖² = 1, tr Σ = 4
        >>> noise.noise_scale.value
        4.0
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        *,
        every: int = EVERY,
        half_life: float | None = HALF_LIFE,
    ) -> None:
        self.every, self.updates = checked_whole("every", every), 0
        self.window = Window(half_life)

    @property
    def noise_scale(self) -> Interval:
        """The ratio tr Σ/‖G‖², in examples; where the updates so far do not determine it, only its lower end."""
        return self.window.estimate().noise_scale

    def is_due(self) -> bool:
        """Whether the update to come is measured; asked once for each."""
        self.updates += 1
        return self.updates % self.every == 0

    def see(self, share_norm_squared: float, norm_squared: float, *, shares: Sequence[int]) -> None:
        """Take in a measured update.

        Args:
            share_norm_squared: Mean of ‖g_r‖² over the ranks that have examples.
            norm_squared: ‖ḡ‖².
            shares: Examples of each rank.
        """
        held = [examples for examples in shares if examples]
        batch = sum(held)
        group = len(held) / sum(1 / examples for examples in held)
        if len(held) < 2 or not math.isfinite(share_norm_squared) or not math.isfinite(norm_squared):
            return
        trace, norm = from_two_sizes(share_norm_squared, norm_squared, group_size=group, batch_size=batch)
        self.window.add(self.updates, Sample(trace, norm, None, group, batch))

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on exactly: plain numbers."""
        return {"steps": self.updates, "window": self.window.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Args:
            state: Of this class, from any number of ranks, or of :class:`batchscope.GradientNoise`.
        """
        self.updates = state["steps"]
        self.window.load_state_dict(state["window"])

    def close(self) -> None:
        """Nothing is held."""

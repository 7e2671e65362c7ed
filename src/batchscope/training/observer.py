"""What watches a run from inside: its gradient noise, as far as the loop needs to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from batchscope.records import Interval


class Observer(Protocol):
    """Watches a model's updates by its own hooks; :class:`batchscope.GradientNoise` is one."""

    @property
    def noise_scale(self) -> Interval:
        """The gradient noise scale of late, in examples; raises a WorkloadError where it cannot be measured."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, from which it goes on exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""

    def close(self) -> None:
        """Remove its hooks."""


@runtime_checkable
class SharedObserver(Observer, Protocol):
    """Watches a run whose batches several ranks share; :class:`batchscope.measure.shared_noise.SharedNoise` is one."""

    def is_due(self) -> bool:
        """Whether it wants to see the update to come; asked once for each, and the same on all ranks."""

    def see(self, share_norm_squared: float, norm_squared: float, *, shares: Sequence[int]) -> None:
        """Be told the mean ‖g‖² of the shares that have examples, and that of the whole batch's gradient."""


# Makes an observer of a model and its optimiser; in half precision it is given the run's scaler, as ``scaler``.
MakeObserver = Callable[..., Observer]

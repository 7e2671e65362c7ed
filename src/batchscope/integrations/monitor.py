"""The part of a framework's callback that does not depend on the framework."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from batchscope.errors import ArgumentError
from batchscope.integrations.accumulation import Accumulation
from batchscope.integrations.stopping import Stopping
from batchscope.integrations.watching import Calls, interval_of, values_of
from batchscope.measure import GradientNoise
from batchscope.records import Interval, Schedule


class TrainingMonitor:
    """Measure the gradient noise scale in a framework's training loop, and follow a batch-size schedule.

    The noise scale is measured as by :class:`batchscope.GradientNoise`, which also says where it is refused. It is
    logged as ``noise_scale`` with the ends of its interval, ``noise_scale_low`` and ``noise_scale_high``; while it is
    not resolved, only with the lower end.

    With a schedule, the framework accumulates batches of its DataLoader to the schedule's batch sizes, and the
    optimiser's settings change with them. A phase begins at the first batch at which both an update of the old and one
    of the new size would begin. A measured schedule follows the noise scale of this callback.

    Args:
        schedule: Batch sizes, learning rates and momenta; None: those of the framework.
        monitor: Deprecated, with ``higher_is_better``, ``target`` and ``patience``: the name of a validation metric.
            Training stops at its target, or after so many evaluations without improvement, and restores the weights at
            its best value. Use the framework's own early stopping.
        higher_is_better: Whether larger values of the metric are better.
        target: Value of the metric at which training stops; None: no such value.
        patience: Evaluations without improvement after which training stops; None: no limit.
        overhead: Largest share of the training time for measurements.
        every: Updates between two measurements, whatever they cost; None: as often as ``overhead`` permits.
        half_life: Updates after which the weight of a measurement has halved; None: equal weights.
        examples: Most per-example gradients of a batch.
        seed: Seed of the draw of these examples.

    Attributes:
        noise: The monitor, available during and after training.
        history: (updates, interval) at each logging step.
        stopping: The best ``value`` of the metric and its ``updates``; None without ``monitor``.

    Raises:
        ArgumentError: ``target`` or ``patience`` without ``monitor``, or an invalid value.
    """

    _metric_prefix: ClassVar[str] = ""
    _own_stopping: ClassVar[str] = ""

    def __init__(
        self,
        *,
        schedule: Schedule | None = None,
        monitor: str | None = None,
        higher_is_better: bool = True,
        target: float | None = None,
        patience: int | None = None,
        overhead: float = 0.03,
        every: int | None = None,
        half_life: float | None = 1000,
        examples: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._options: dict[str, Any] = {
            "overhead": overhead,
            "every": every,
            "half_life": half_life,
            "examples": examples,
            "seed": seed,
        }
        self.schedule = schedule
        self.stopping: Stopping | None = None
        if monitor is not None:
            name = self._metric_prefix + monitor.removeprefix(self._metric_prefix)
            self.stopping = Stopping(
                name, higher_is_better=higher_is_better, target=target, patience=patience, instead=self._own_stopping
            )
        elif target is not None or patience is not None:
            got = f"target={target}" if target is not None else f"patience={patience}"
            raise ArgumentError("target and patience need monitor", got=f"{got} without monitor")
        self.noise: GradientNoise | None = None
        self.history: list[tuple[int, Interval]] = []
        self._calls: Calls | None = None
        self._following: Accumulation | None = None
        self._loaded: dict[str, Any] = {}

    def _watch(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        self.noise = GradientNoise(model, optimizer, scaler=scaler, **self._options)
        if (state := self._loaded.pop("noise", None)) is not None:
            self.noise.load_state_dict(state)

    def _values(self, updates: int) -> dict[str, float]:
        """The values to log after so many updates, which are added to the history."""
        interval = None if self.noise is None else interval_of(self.noise)
        if interval is None:
            return {}
        self.history.append((updates, interval))
        values = values_of(interval)
        if self._following is not None:
            values["batch_size"] = float(self._following.batch_size)
        return values

    def _release(self) -> None:
        """Remove every hook; the results stay available."""
        if self._calls is not None:
            self._calls.close()
            self._calls = None
        if self.noise is not None:
            self.noise.close()

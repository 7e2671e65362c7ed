"""Batch-size schedules by gradient accumulation, in loops that count micro-batches within an epoch."""

from __future__ import annotations

from typing import Any

import torch

from batchscope.errors import PlanError
from batchscope.integrations.watching import interval_of
from batchscope.measure import GradientNoise
from batchscope.records import Interval, Phase, Schedule, decode, encode
from batchscope.schedule import OptimizerSettings, decide


class Accumulation:
    """Number of micro-batches per update and settings of the optimiser, by a schedule.

    The loop makes an update when the number of micro-batches of the epoch is a multiple of the number to accumulate, as
    Lightning's does. A phase therefore begins at the first micro-batch after its start where updates of the old and of
    the new size would both begin; if batch sizes double, this is at most one new batch late.

    Args:
        schedule: Batch sizes, learning rates and momenta.
        optimizer: The optimiser, with its settings for the schedule's first batch size.
        micro_batch_size: Examples in a micro-batch of all ranks.
        training_examples: Largest batch size of a measured schedule.

    Attributes:
        schedule: The schedule, with the phases so far if it is measured.
        examples: Examples so far, if all micro-batches are full.
        count: Micro-batches per update.

    Raises:
        PlanError: A batch size that is not a multiple of the micro-batch, or unsupported by the optimiser.

    Examples:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> schedule = Schedule((Phase(0, 8), Phase(24, 16)), coupling="rule")
        >>> following = Accumulation(schedule, optimizer, micro_batch_size=8, training_examples=1000)
        >>> for micro_batch in range(6):
        ...     print(following.before(micro_batch), optimizer.param_groups[0]["lr"])
        1 0.1
        1 0.1
        1 0.1
        1 0.1
        2 0.2
        2 0.2
    """

    def __init__(
        self,
        schedule: Schedule,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batch_size: int,
        training_examples: int,
    ) -> None:
        for phase in schedule.phases:
            if phase.batch_size % micro_batch_size:
                raise PlanError(
                    "every batch size of the schedule must be a multiple of the DataLoader's, over all ranks",
                    got=f"{phase.batch_size:,} with micro-batches of {micro_batch_size:,}",
                    mend=f"give the DataLoader a batch size that divides {phase.batch_size:,}",
                )
        self.schedule = schedule
        self.examples, self.count = 0, schedule.phases[0].batch_size // micro_batch_size
        self._micro = micro_batch_size
        self._most = training_examples
        self._settings = OptimizerSettings(optimizer, schedule.phases[0].batch_size)
        self._settings.check(schedule)
        self._phase: Phase | None = None
        self._updates = self._votes = 0

    @property
    def batch_size(self) -> int:
        """Examples in an update."""
        return self.count * self._micro

    def before(self, micro_batch: int) -> int:
        """Enter the next phase if it is due, count a micro-batch, and return the micro-batches per update.

        Args:
            micro_batch: Index of the next micro-batch in the epoch.
        """
        self.begin(micro_batch)
        self.ran()
        return self.count

    def begin(self, micro_batch: int) -> bool:
        """Enter the next phase if it is due and one of its updates can begin; return whether it began.

        Args:
            micro_batch: Index of the next micro-batch in the epoch.
        """
        if micro_batch % self.count:
            return False
        due = max((s for s in self.schedule.segments if s.first_example <= self.examples), key=_first_example)
        count = due.phase.batch_size // self._micro
        if due.phase == self._phase or micro_batch % count:
            return False
        self._phase, self.count = due.phase, count
        self._settings.enter(due.phase, coupling=self.schedule.coupling)
        return True

    def ran(self) -> None:
        """Count a micro-batch."""
        self.examples += self._micro

    def updated_with(self, noise: GradientNoise | None) -> None:
        """Count an update, and adapt a measured schedule to the monitor's noise scale."""
        follows = self.schedule.measured is not None
        self.updated(interval_of(noise) if follows and noise is not None else None)

    def updated(self, noise_scale: Interval | None) -> None:
        """Count an update, and adapt a measured schedule to the noise scale."""
        self._updates += 1
        growth = self.schedule.measured
        pending = self.schedule.phases[-1].start_examples > self.examples
        if growth is None or noise_scale is None or self._updates % growth.every or pending:
            return
        most = self._most if growth.maximum is None else min(growth.maximum, self._most)
        size, self._votes = decide(
            growth,
            noise_scale,
            batch_size=self.batch_size,
            least=self.schedule.phases[0].batch_size,
            most=max(self._micro, most // self._micro * self._micro),
            votes=self._votes,
        )
        size = max(1, round(size / self._micro)) * self._micro
        if size != self.batch_size:
            self.schedule = self.schedule.then(Phase(self.examples, size))

    def state_dict(self) -> dict[str, Any]:
        """Plain values for :meth:`load_state_dict`."""
        return {
            "examples": self.examples,
            "count": self.count,
            "updates": self._updates,
            "votes": self._votes,
            "schedule": encode(self.schedule),
            "settings": self._settings.state_dict(),
            "micro_batch_size": self._micro,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`; the state of the optimiser is restored elsewhere.

        Raises:
            PlanError: Another micro-batch size.
        """
        if state["micro_batch_size"] != self._micro:
            raise PlanError(
                "a resumed run needs the same micro-batch size",
                got=f"{self._micro:,} for {state['micro_batch_size']:,}",
                mend="give the DataLoader its previous batch size",
            )
        self.examples, self.count = state["examples"], state["count"]
        self._updates, self._votes = state["updates"], state["votes"]
        self.schedule = decode(Schedule, state["schedule"], "the state")
        self._settings.load_state_dict(state["settings"])
        self._phase = None


def _first_example(segment: Any) -> int:
    return int(segment.first_example)

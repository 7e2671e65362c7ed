"""A batch-size schedule followed by gradient accumulation, in a loop that counts micro-batches within an epoch."""

from __future__ import annotations

from typing import Any

import torch

from batchscope.errors import PlanError
from batchscope.integrations.watching import interval_of
from batchscope.measure import GradientNoise
from batchscope.records import Interval, Phase, Schedule, decode, encode
from batchscope.schedule import OptimizerSettings, decide


class Accumulation:
    """How many micro-batches make an update, by a schedule, and the optimiser's settings with them.

    The loop makes an update where the number of micro-batches of the epoch is a multiple of the number that it
    accumulates, as Lightning's does. So a phase begins at the first micro-batch of an update from the schedule's
    border on where the number of micro-batches so far is a multiple of the new one too: in batches that double, at most
    one new batch late.

    Args:
        schedule: Batch sizes, rates and momenta.
        optimizer: Made for the schedule's first batch size; its settings are changed from then on.
        micro_batch_size: Examples in a micro-batch, of all ranks together.
        training_examples: The most that a measured schedule may grow to.

    Attributes:
        schedule: The schedule, as it has come out so far where it is measured.
        examples: Examples so far, where every micro-batch was full.
        count: Micro-batches in an update now.

    Raises:
        PlanError: A batch size that is no multiple of the micro-batch, or what the optimiser cannot follow.

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
        """Examples in an update now."""
        return self.count * self._micro

    def before(self, micro_batch: int) -> int:
        """Go on to the next phase where it is time for it, before a micro-batch.

        Args:
            micro_batch: Its number within the epoch, from 0.

        Returns:
            Micro-batches in an update.
        """
        self.begin(micro_batch)
        self.ran()
        return self.count

    def begin(self, micro_batch: int) -> bool:
        """Go on to the next phase where it is time for it and one of its updates can begin.

        Args:
            micro_batch: The next one: its number within the epoch, from 0.

        Returns:
            Whether a phase began.
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
        """Count an update, with what a monitor says where the schedule follows that.

        Args:
            noise: The monitor; None: there is none yet.
        """
        follows = self.schedule.measured is not None
        self.updated(interval_of(noise) if follows and noise is not None else None)

    def updated(self, noise_scale: Interval | None) -> None:
        """Count an update; a measured schedule decides here how it goes on.

        Args:
            noise_scale: What is measured so far; needed by a measured schedule only.
        """
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
        """Plain values, from which :meth:`load_state_dict` goes on."""
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
        """Go on from a :meth:`state_dict`; the optimiser's own state is restored by who trains.

        Args:
            state: The state.

        Raises:
            PlanError: It is of another micro-batch.
        """
        if state["micro_batch_size"] != self._micro:
            raise PlanError(
                "a run must go on with the micro-batches that it began with",
                got=f"{self._micro:,} for {state['micro_batch_size']:,}",
                mend="give the DataLoader the batch size that it had",
            )
        self.examples, self.count = state["examples"], state["count"]
        self._updates, self._votes = state["updates"], state["votes"]
        self.schedule = decode(Schedule, state["schedule"], "the state")
        self._settings.load_state_dict(state["settings"])
        self._phase = None


def _first_example(segment: Any) -> int:
    return int(segment.first_example)

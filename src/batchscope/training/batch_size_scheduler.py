"""A batch sampler whose size follows a schedule, and the optimiser with it, for people who keep their own loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from batchscope.errors import ArgumentError
from batchscope.records import Interval, Order, Phase, Plan, Schedule, Shape, decode, encode
from batchscope.records.schedule import checked_count
from batchscope.schedule import OptimizerSettings, decide, rate_factor
from batchscope.seeding import derive
from batchscope.training.order import ExampleOrder


class BatchSizeScheduler(Sampler[list[int]]):
    """Give a ``DataLoader`` its batches by a schedule, and the optimiser the settings that go with each.

    ::

        scheduler = bs.BatchSizeScheduler(schedule, len(dataset), optimizer, examples=1_000_000)
        loader = DataLoader(dataset, batch_sampler=scheduler, num_workers=4)
        while not scheduler.finished:  # a pass over the loader is an epoch
            for x, y in loader:
                ...  # forward, backward
                optimizer.step()
                scheduler.step()

    Batches are cut one after the other out of an endless stream of examples, which is a function of the seed and the
    position alone: that of :func:`batchscope.train`. A pass over it, whose ``len`` is exact, makes the batches that
    begin in the present epoch; the last of them may end in the next one. Which batch comes where depends on the number
    of calls of :meth:`step` alone, so a pass that is broken off, or resumed from :meth:`state_dict`, goes on with the
    very batch that would have come, however far workers had read ahead. With a measured schedule a batch that has grown
    begins after the batches that workers have been told to read, and so does what the optimiser is given.

    Args:
        schedule: Batch sizes, rates and momenta.
        training_examples: Examples in the dataset.
        optimizer: Made for the schedule's first batch size; its settings are changed from then on. None: left alone.
        examples: Examples to train on in all; None: without end.
        shape: The learning rate over ``examples``: constant, linear or cooldown, as in :class:`batchscope.Plan`.
        cooldown: The share of ``examples`` in which ``shape="cooldown"`` falls.
        warmup_examples: Examples over which the rate rises linearly.
        order: shuffled, replacement or stratified, as in :class:`batchscope.Plan`.
        labels: The class of every example, for a stratified order.
        seed: The order derives from it.

    Attributes:
        schedule: The schedule, as it has come out so far where it is measured.
        updates: Calls of :meth:`step`.

    Raises:
        PlanError: A schedule that the dataset or the optimiser cannot follow, or numbers without sense.

    Examples:
        >>> schedule = Schedule((Phase(0, 2), Phase(4, 4)))
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> scheduler = BatchSizeScheduler(schedule, 12, optimizer, examples=12)
        >>> for batch in scheduler:
        ...     print(len(batch), optimizer.param_groups[0]["lr"])
        ...     scheduler.step()
        2 0.1
        2 0.1
        4 0.1
        4 0.1
    """

    def __init__(
        self,
        schedule: Schedule,
        training_examples: int,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        examples: int | None = None,
        shape: Shape = "constant",
        cooldown: float = 0.2,
        warmup_examples: int = 0,
        order: Order = "shuffled",
        labels: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        checked_count("training_examples", training_examples, schedule.largest_batch_size, mend="a batch is larger")
        size = schedule.phases[0].batch_size
        # The rate's shape is a plan's; its own rate and target play no part.
        self._plan = Plan(
            size,
            1.0,
            examples=examples,
            target=0.0,
            shape=shape,
            order=order,
            schedule=schedule,
            warmup_examples=warmup_examples,
            cooldown=cooldown,
        )
        self.schedule = schedule
        self.training_examples, self.seed = training_examples, seed
        self.updates = 0
        self._votes = 0
        self._handed_out = 0
        label_of = None if labels is None else lambda: labels
        self._order = ExampleOrder(order, training_examples, seed=derive(seed, "data"), labels=label_of)
        self._settings = None if optimizer is None else OptimizerSettings(optimizer, size)
        self._phase: Phase | None = None
        if self._settings is not None:
            self._settings.check(schedule)
        self._set_optimizer()

    @property
    def examples(self) -> int:
        """Examples of the updates so far."""
        seen, most = self.schedule.examples(self.updates), self._plan.examples
        return seen if most is None else min(seen, most)

    @property
    def batch_size(self) -> int:
        """Examples in the next batch, unless the budget cuts it short."""
        return self.schedule.batch_size_at(self.updates)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self._plan.examples is not None and self.examples >= self._plan.examples

    def __len__(self) -> int:
        """Batches from here to the end of the epoch, or of the budget."""
        return max(0, self.schedule.updates(self._end_of_pass()) - self.updates)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the examples of each batch from here to the end of the epoch, or of the budget."""
        update, end, most = self.updates, self._end_of_pass(), self._plan.examples
        self._handed_out = update
        while (start := self.schedule.examples(update)) < end:
            stop = start + self.schedule.batch_size_at(update)
            update += 1
            self._handed_out = update
            yield self._order.indices(start, stop if most is None else min(stop, most)).tolist()

    def step(self, noise_scale: Interval | None = None) -> None:
        """Count an update, and give the optimiser the settings of the next one.

        Args:
            noise_scale: ``bs.GradientNoise(model, optimizer).noise_scale``, which a measured schedule follows; it is
                looked at every ``schedule.measured.every`` updates, and needed then only.
        """
        self.updates += 1
        growth = self.schedule.measured
        pending = self.schedule.next_border(self.updates) is not None
        if growth is not None and noise_scale is not None and self.updates % growth.every == 0 and not pending:
            most = self.training_examples if growth.maximum is None else min(growth.maximum, self.training_examples)
            size, self._votes = decide(
                growth,
                noise_scale,
                batch_size=self.batch_size,
                least=self._plan.batch_size,
                most=most,
                votes=self._votes,
            )
            if size != self.batch_size:
                border = self.schedule.examples(max(self.updates, self._handed_out))
                self.schedule = self.schedule.then(Phase(border, size))
        self._set_optimizer()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, from which :meth:`load_state_dict` goes on exactly, in the middle of an epoch too."""
        return {
            "updates": self.updates,
            "votes": self._votes,
            "schedule": encode(self.schedule),
            "seed": self.seed,
            "training_examples": self.training_examples,
            "settings": None if self._settings is None else self._settings.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        Args:
            state: The state.

        Raises:
            ArgumentError: It is of another order of examples.
        """
        for name in ("seed", "training_examples"):
            if state[name] != getattr(self, name):
                raise ArgumentError(
                    f"a state must be loaded with the {name} that it was made with",
                    got=f"{getattr(self, name)} for {state[name]}",
                )
        self.updates, self._votes = state["updates"], state["votes"]
        self.schedule = decode(Schedule, state["schedule"], "the state")
        self._handed_out = self.updates
        self._phase = None
        if self._settings is not None and state["settings"] is not None:
            self._settings.load_state_dict(state["settings"])
        self._set_optimizer()

    def _end_of_pass(self) -> int:
        end, most = (self.examples // self.training_examples + 1) * self.training_examples, self._plan.examples
        return end if most is None else min(end, most)

    def _set_optimizer(self) -> None:
        if self._settings is None or self.finished:
            return
        phase = self.schedule.segment_at(self.updates).phase
        if phase != self._phase:
            self._phase = phase
            self._settings.enter(phase, coupling=self.schedule.coupling)
        self._settings.scale(rate_factor(self._plan, self.examples, phase.batch_size))

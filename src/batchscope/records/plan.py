"""What to train: a batch size or a schedule of them, a learning rate, a budget and a shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

from batchscope.errors import PlanError
from batchscope.records.base import Record
from batchscope.records.schedule import Phase, Schedule, checked_count, checked_number

Shape = Literal["constant", "linear", "cosine", "cooldown"]
Order = Literal["shuffled", "replacement", "stratified", "bucketed"]


@dataclass(frozen=True)
class Plan(Record):
    """A batch size, a learning rate and a budget, as :func:`batchscope.train` takes them.

    The budget is exactly one of ``iterations`` and ``examples``, with or without a ``target``; or a ``target``
    alone, which gives up after 200 passes over the data.

    Attributes:
        batch_size: Examples per parameter update; with a ``schedule``, of its first phase.
        learning_rate: The optimiser's rate, before ``shape`` and ``warmup_examples`` scale it down.
        iterations: Parameter updates to make, of whatever batch sizes.
        examples: Examples to train on; the last batch is cut short so that they are met exactly.
        target: A validation score to stop at.
        shape: The learning rate over the budget's examples: "constant"; "linear" or "cosine" down to zero once the
            warm-up is over; "cooldown", constant until its last share and from there linear down to zero. None: the
            workload's ``shape``; constant where the plan has no budget, only a target.
        order: How batches are drawn: shuffled without replacement (default), with replacement, stratified by label so
            that every batch has the data's class proportions, or bucketed, of examples of about equal length.
        micro_batch_size: Examples that pass through the model at once; None: the whole batch.
        patience: Evaluations without an improvement after which training stops; None: never. At least 2, since the
            first bad evaluation says nothing yet.
        tolerance: Improvements of the score up to this much do not count.
        rescaled_from: A batch size whose optimiser settings are rescaled to ``batch_size`` by the optimiser's own
            rule; ``learning_rate`` is then the rate at that reference. None: nothing is rescaled.
        schedule: How the batch size, and with it the rate, changes on the way; None: it does not. What it says of the
            rate is multiplied by what ``shape`` and ``warmup_examples`` say.
        warmup_examples: Examples over which the rate rises linearly to its full value. None: as the workload says.
        cooldown: The share of the budget's examples in which ``shape="cooldown"`` falls.
        averaging: Evaluations, the target and the best weights are of the average of the weights on the way, weighted
            by the examples seen to this power; 8 is a good one. None: of the weights as they stand.
        inner_steps: Steps of the optimiser on each batch; more than one is conservative training.
        proximity: λ of conservative training: the steps on a batch go towards the least of L + λ/2·‖w − w_k‖², with w_k
            where they begin.

    Examples:
        >>> Plan(batch_size=64, learning_rate=0.1, iterations=1000).budget_examples
        64000
        >>> growing = Schedule((Phase(0, 64), Phase(32_000, 128)))
        >>> Plan(batch_size=64, learning_rate=0.1, iterations=1000, schedule=growing).budget_examples
        96000
    """

    kind: ClassVar[str] = "plan"

    batch_size: int
    learning_rate: float
    iterations: int | None = None
    examples: int | None = None
    target: float | None = None
    shape: Shape | None = None
    order: Order = "shuffled"
    micro_batch_size: int | None = None
    patience: int | None = None
    tolerance: float = 0.0
    rescaled_from: int | None = None
    schedule: Schedule | None = None
    warmup_examples: int | None = None
    cooldown: float = 0.2
    averaging: float | None = None
    inner_steps: int = 1
    proximity: float = 0.0

    def __post_init__(self) -> None:
        checked_count("batch_size", self.batch_size, 1)
        for name in ("iterations", "examples", "micro_batch_size", "rescaled_from"):
            if getattr(self, name) is not None:
                checked_count(name, getattr(self, name), 1)
        checked_number("learning_rate", self.learning_rate)
        if self.learning_rate <= 0:
            raise PlanError("learning_rate must be above 0", got=self.learning_rate, mend="try 0.01")
        if self.iterations is not None and self.examples is not None:
            raise PlanError(
                "a budget is either iterations or examples",
                got=f"iterations={self.iterations}, examples={self.examples}",
                mend="leave one of them out",
            )
        if self.iterations is None and self.examples is None and self.target is None:
            raise PlanError("a plan needs a budget", got="none", mend="give iterations, examples or target")
        if self.target is not None:
            checked_number("target", self.target)
        if self.shape is not None and self.shape not in get_args(Shape):
            raise PlanError(f"shape must be one of {', '.join(get_args(Shape))}", got=self.shape)
        if self.order not in get_args(Order):
            raise PlanError(f"order must be one of {', '.join(get_args(Order))}", got=self.order)
        self._check_schedule()
        if self.shape not in (None, "constant") and self.budget_examples is None:
            raise PlanError(
                "a rate that falls to zero needs to know where it ends",
                got="a target without iterations or examples",
                mend="give iterations or examples as well, or shape='constant'",
            )
        if self.warmup_examples is not None:
            checked_count("warmup_examples", self.warmup_examples, 0)
        checked_number("cooldown", self.cooldown)
        if not 0 < self.cooldown <= 1:
            raise PlanError("cooldown must be a share of the budget, above 0 and at most 1", got=self.cooldown)
        if self.averaging is not None:
            checked_number("averaging", self.averaging)
            if self.averaging < 0:
                raise PlanError("averaging must be a power of at least 0", got=self.averaging, mend="try 8")
        checked_count("inner_steps", self.inner_steps, 1)
        checked_number("proximity", self.proximity)
        if self.proximity < 0 or (self.proximity > 0 and self.inner_steps == 1):
            raise PlanError(
                "proximity must be at least 0, and holds back the steps after the first on each batch",
                got=f"proximity={self.proximity:g}, inner_steps={self.inner_steps}",
                mend="give inner_steps=3 as well",
            )
        if self.patience is not None:
            mend = "the first bad evaluation says nothing yet; give 2 or more"
            checked_count("patience", self.patience, 2, mend=mend)
        checked_number("tolerance", self.tolerance)
        if self.tolerance < 0:
            raise PlanError("tolerance must be at least 0", got=self.tolerance)

    def _check_schedule(self) -> None:
        schedule, micro_batch_size = self.batch_sizes, self.micro_batch_size
        if schedule.phases[0].batch_size != self.batch_size:
            raise PlanError(
                "a plan's batch_size must be that of its schedule's first phase",
                got=f"{self.batch_size} and {schedule.phases[0].batch_size}",
            )
        if schedule.measured is not None and self.iterations is not None:
            raise PlanError(
                "the budget of a measured schedule must be given in examples, since its updates are not known yet",
                got=f"iterations={self.iterations}",
                mend="give examples, or a target",
            )
        if micro_batch_size is not None and micro_batch_size > schedule.largest_batch_size and not schedule.measured:
            largest = "batch_size" if self.schedule is None else "the largest batch of the schedule"
            raise PlanError(
                f"micro_batch_size must be at most {largest}", got=f"{micro_batch_size} > {schedule.largest_batch_size}"
            )

    @cached_property
    def batch_sizes(self) -> Schedule:
        """The schedule; one of a single phase where there is none."""
        return self.schedule or Schedule((Phase(0, self.batch_size),))

    @property
    def budget_examples(self) -> int | None:
        """Examples of the whole budget; None where only a target is given."""
        if self.examples is not None:
            return self.examples
        return None if self.iterations is None else self.batch_sizes.examples(self.iterations)

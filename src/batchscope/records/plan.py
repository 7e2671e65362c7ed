"""What to train: a batch size, a learning rate, a budget and a shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.errors import PlanError
from batchscope.records.base import Record

Shape = Literal["constant", "linear"]
Order = Literal["shuffled", "replacement", "stratified"]


@dataclass(frozen=True)
class Plan(Record):
    """A batch size, a learning rate and a budget, as :func:`batchscope.train` takes them.

    The budget is exactly one of ``iterations`` and ``examples``, with or without a ``target``; or a ``target``
    alone, which gives up after 200 passes over the data.

    Attributes:
        batch_size: Examples per parameter update.
        learning_rate: The optimiser's rate; with ``shape="linear"`` its value at the first update.
        iterations: Parameter updates to make.
        examples: Examples to train on; the last batch is cut short so that they are met exactly.
        target: A validation score to stop at.
        shape: The learning rate over the budget: constant, or linear down to zero.
        order: How batches are drawn: shuffled without replacement (default), with replacement, or stratified by
            label so that every batch has the data's class proportions.
        micro_batch_size: Examples that pass through the model at once; None: the whole batch.
        patience: Evaluations without an improvement after which training stops; None: never. At least 2, since the
            first bad evaluation says nothing yet.
        tolerance: Improvements of the score up to this much do not count.
        rescaled_from: A batch size whose optimiser settings are rescaled to ``batch_size`` by the optimiser's own
            rule; ``learning_rate`` is then the rate at that reference. None: nothing is rescaled.

    Examples:
        >>> Plan(batch_size=64, learning_rate=0.1, iterations=1000).budget_examples
        64000
    """

    kind: ClassVar[str] = "plan"

    batch_size: int
    learning_rate: float
    iterations: int | None = None
    examples: int | None = None
    target: float | None = None
    shape: Shape = "constant"
    order: Order = "shuffled"
    micro_batch_size: int | None = None
    patience: int | None = None
    tolerance: float = 0.0
    rescaled_from: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("batch_size", 1),
            ("iterations", 1),
            ("examples", 1),
            ("micro_batch_size", 1),
            ("rescaled_from", 1),
        ):
            _whole_number(name, getattr(self, name), least, optional=name != "batch_size")
        _finite("learning_rate", self.learning_rate)
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
            _finite("target", self.target)
        if self.shape not in ("constant", "linear"):
            raise PlanError("shape must be constant or linear", got=self.shape)
        if self.order not in ("shuffled", "replacement", "stratified"):
            raise PlanError("order must be shuffled, replacement or stratified", got=self.order)
        if self.shape == "linear" and self.budget_examples is None:
            raise PlanError(
                "a rate that falls linearly to zero needs to know where it ends",
                got="a target without iterations or examples",
                mend="give iterations or examples as well, or shape='constant'",
            )
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise PlanError(
                "micro_batch_size must be at most batch_size",
                got=f"{self.micro_batch_size} > {self.batch_size}",
            )
        _whole_number("patience", self.patience, 2, optional=True)
        _finite("tolerance", self.tolerance)
        if self.tolerance < 0:
            raise PlanError("tolerance must be at least 0", got=self.tolerance)

    @property
    def budget_examples(self) -> int | None:
        """Examples of the whole budget; None where only a target is given."""
        if self.examples is not None:
            return self.examples
        return None if self.iterations is None else self.batch_size * self.iterations


def _whole_number(name: str, value: object, least: int, *, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        mend = "the first bad evaluation says nothing yet; give 2 or more" if name == "patience" else ""
        raise PlanError(f"{name} must be a whole number of at least {least}", got=value, mend=mend)


def _finite(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise PlanError(f"{name} must be a finite number", got=value)

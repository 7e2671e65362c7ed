"""The batch size and what goes with it over a run, as data: counted in examples, so that updates follow from it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal

from batchscope.errors import PlanError
from batchscope.records.base import Record

Coupling = Literal["stated", "rule"]


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with one batch size.

    Attributes:
        start_examples: Examples seen when it begins; see :class:`Schedule` for the rounding.
        batch_size: Examples per update.
        learning_rate_factor: What the plan's learning rate is multiplied by.
        momentum: The optimiser's momentum, β₁ of Adam and its kin; None: as the optimiser was made.
    """

    start_examples: int
    batch_size: int
    learning_rate_factor: float = 1.0
    momentum: float | None = None

    def __post_init__(self) -> None:
        checked_count("start_examples", self.start_examples, 0)
        checked_count("batch_size", self.batch_size, 1)
        checked_number("learning_rate_factor", self.learning_rate_factor)
        if self.learning_rate_factor <= 0:
            raise PlanError("learning_rate_factor must be above 0", got=self.learning_rate_factor)
        if self.momentum is not None:
            checked_number("momentum", self.momentum)
            if not 0 <= self.momentum < 1:
                raise PlanError("momentum must be at least 0 and below 1", got=self.momentum)


@dataclass(frozen=True)
class MeasuredGrowth:
    """How the batch size follows the gradient noise scale that is measured while a run trains.

    The size aimed at is √(knee × noise scale): the best one where an update takes c₀ + c₁B seconds, with a knee of
    c₀/c₁, and examples to the goal grow as 1 + B/B_crit, with the noise scale in the place of B_crit. The batch is
    multiplied by ``factor`` once the aim has been that far above it ``sustained`` times in a row, and divided likewise,
    never below the size that it began with.

    Attributes:
        knee: Batch size at which an update's fixed cost equals that of its examples; the throughput knee.
        maximum: The largest batch, as for memory; None: as many as there are training examples.
        factor: What the batch is multiplied by at once.
        sustained: Decisions in a row that have to agree.
        every: Updates from one measurement, and decision, to the next. It is fixed, so that a resumed run decides as
            the unbroken one would. At 200 measuring takes less than 1% of the time where an update takes ten
            milliseconds, and about 5% where it takes a quarter of one.
    """

    knee: float
    maximum: int | None = None
    factor: int = 2
    sustained: int = 3
    every: int = 200

    def __post_init__(self) -> None:
        checked_number("knee", self.knee)
        if self.knee <= 0:
            raise PlanError("knee must be above 0", got=self.knee, mend="bs.step_times measures it")
        if self.maximum is not None:
            checked_count("maximum", self.maximum, 1)
        checked_count("factor", self.factor, 2)
        checked_count("sustained", self.sustained, 1)
        checked_count("every", self.every, 1)


@dataclass(frozen=True)
class Segment:
    """Where a phase lies among the updates.

    Attributes:
        phase: The phase.
        first_update: Its first update, from 0.
        first_example: Examples seen before that.
    """

    phase: Phase
    first_update: int
    first_example: int


@dataclass(frozen=True)
class Schedule(Record):
    """Batch size, learning rate and momentum over a run, in examples.

    **Rounding.** Batches are never cut at the border between two phases: a phase begins at the end of an update, the
    one that is nearest to its ``start_examples``, and the earlier of two that are as near. A phase that would begin no
    sooner than the one after it is left out. So borders are off by half a batch at most, where an update lies does
    not depend on the budget, and only the last batch of a budget is cut short.

    Attributes:
        phases: In order; the first begins at 0.
        measured: How the batch goes on to follow the measured noise scale; None: phases say it all.
        coupling: "stated": a phase changes the rate and the momentum as it says. "rule": besides, all of the
            optimiser's settings follow the batch size by its own rule (:func:`batchscope.rescale`), and the phase's
            factor is on top of that. With ``measured`` always "rule".

    Examples:
        >>> schedule = Schedule((Phase(0, 4), Phase(10, 8)))
        >>> [schedule.batch_size_at(update) for update in range(4)]  # 10 is as near to 8 as to 12
        [4, 4, 8, 8]
        >>> schedule.updates(24), schedule.examples(4)
        (4, 24)
    """

    kind: ClassVar[str] = "schedule"

    phases: tuple[Phase, ...]
    measured: MeasuredGrowth | None = None
    coupling: Coupling = "stated"

    def __post_init__(self) -> None:
        if not self.phases or self.phases[0].start_examples != 0:
            got = f"{self.phases[0].start_examples:,}" if self.phases else "no phase"
            raise PlanError("a schedule's first phase must begin at 0 examples", got=got)
        starts = [phase.start_examples for phase in self.phases]
        if any(later <= earlier for earlier, later in pairwise(starts)):
            raise PlanError("the phases of a schedule must begin one after the other", got=starts)
        if self.coupling not in ("stated", "rule"):
            raise PlanError("coupling must be stated or rule", got=self.coupling)
        if self.measured is not None:
            object.__setattr__(self, "coupling", "rule")
            most = self.measured.maximum
            if most is not None and most < self.phases[0].batch_size:
                raise PlanError(
                    "the largest batch of a measured schedule must be at least its first",
                    got=f"maximum={most} with a batch of {self.phases[0].batch_size}",
                )

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Where the phases lie among the updates; those that have none are left out."""
        segments: list[Segment] = []
        update = example = 0
        for phase, following in pairwise(self.phases):
            # The least n for which the border is at most half a batch ahead after n updates.
            gap, size = following.start_examples - example, phase.batch_size
            count = max(0, -((size - 2 * gap) // (2 * size)))
            if count:
                segments.append(Segment(phase, update, example))
                update, example = update + count, example + count * size
        return (*segments, Segment(self.phases[-1], update, example))

    @cached_property
    def _first_updates(self) -> Sequence[int]:
        return [segment.first_update for segment in self.segments]

    @cached_property
    def _first_examples(self) -> Sequence[int]:
        return [segment.first_example for segment in self.segments]

    def segment_at(self, update: int) -> Segment:
        """The segment that an update belongs to.

        Args:
            update: The update, from 0.

        Returns:
            The segment.
        """
        return self.segments[bisect_right(self._first_updates, update) - 1]

    def batch_size_at(self, update: int) -> int:
        """Examples in an update, unless it is the last of a budget.

        Args:
            update: The update, from 0.

        Returns:
            The batch size.
        """
        return self.segment_at(update).phase.batch_size

    def next_border(self, update: int) -> int | None:
        """The first update of the next segment.

        Args:
            update: An update, from 0.

        Returns:
            The first update after it that belongs to another segment than it does; None in the last one.
        """
        following = bisect_right(self._first_updates, update)
        return self._first_updates[following] if following < len(self._first_updates) else None

    def updates(self, examples: int) -> int:
        """Updates that so many examples take, the last one cut short where they don't fill it.

        Args:
            examples: Examples, at least 0.

        Returns:
            The updates.
        """
        segment = self.segments[max(0, bisect_right(self._first_examples, examples - 1) - 1)]
        return segment.first_update - (segment.first_example - examples) // segment.phase.batch_size

    def examples(self, updates: int) -> int:
        """Examples that so many whole updates take.

        Args:
            updates: Updates, at least 0.

        Returns:
            The examples.
        """
        segment = self.segment_at(updates)
        return segment.first_example + (updates - segment.first_update) * segment.phase.batch_size

    @property
    def largest_batch_size(self) -> int:
        """The largest batch of any phase."""
        return max(segment.phase.batch_size for segment in self.segments)

    def __str__(self) -> str:
        """The batch sizes in words, as they come out."""
        first, *rest = self.segments
        said = f"batch {first.phase.batch_size:,}"
        changes = [
            f"{after.phase.batch_size:,} from {after.first_example:,} examples"
            for before, after in zip(self.segments, rest, strict=False)
            if after.phase.batch_size != before.phase.batch_size
        ]
        if self.measured is not None:
            said += ", growing with the measured noise scale"
        return ", ".join([said, *changes])

    def then(self, phase: Phase) -> Schedule:
        """The same up to a phase's beginning, and from there on that phase.

        Args:
            phase: What comes then.

        Returns:
            The schedule.
        """
        kept = tuple(p for p in self.phases if p.start_examples < phase.start_examples)
        return replace(self, phases=(*kept, phase))


def checked_count(name: str, value: object, least: int, *, mend: str = "") -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        PlanError: It is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PlanError(f"{name} must be a whole number of at least {least}", got=value, mend=mend)


def checked_number(name: str, value: object) -> None:
    """Refuse what is no finite number.

    Raises:
        PlanError: It is none.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise PlanError(f"{name} must be a finite number", got=value)

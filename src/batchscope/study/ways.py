"""How the trials of a batch size are trained fastest, found out once and remembered."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import NamedTuple

from batchscope.errors import first_line
from batchscope.records import Plan
from batchscope.study.tasks import Way
from batchscope.training import Prepared
from batchscope.training.ways import FastestWay, fastest_way, refusal

# To measure takes about as long as this many updates of every trial: what is not much longer is not worth it.
WORTH_UPDATES = 50


class Chosen(NamedTuple):
    """How to train the trials of a task.

    Attributes:
        replicas: Whether as replicas; False: as separate runs, one after the other.
        stack_size: Most trials in one stack.
        in_turn: What :class:`batchscope.training.replicas.Replicas` is to be told.
        reason: Why, in words.
    """

    replicas: bool
    stack_size: int
    in_turn: bool
    reason: str

    def __str__(self) -> str:
        """What a record says of it."""
        return f"{'replicas' if self.replicas else 'separate runs'}: {self.reason}"


class Ways:
    """What this process knows of the fastest ways to train a workload under one sweep's conditions.

    Whether runs can be stacked is checked once. What is fastest is measured at each batch size, and again where there
    are so many more or fewer trials than then that other stacks come into question.

    Attributes:
        checked: Whether it was checked that runs can be stacked.
        refusal: Why they cannot; None where they can.
        measured: By batch size and number of trials.
        limits: By batch size, the most trials that a stack may hold since a larger one failed, and why that did.
    """

    def __init__(self) -> None:
        self.checked = False
        self.refusal: str | None = None
        self.measured: dict[int, dict[int, FastestWay]] = {}
        self.limits: dict[int, tuple[int, str]] = {}

    def add(self, other: Ways) -> None:
        """Take in what another process has found out."""
        if other.checked:
            self.checked, self.refusal = True, other.refusal
        for batch_size, measured in other.measured.items():
            self.measured.setdefault(batch_size, {}).update(measured)
        for batch_size, limit in other.limits.items():
            self.limits[batch_size] = min(limit, self.limits.get(batch_size, limit))

    def choose(self, prepared: Prepared, plan: Plan, count: int, way: Way = "auto") -> Chosen:
        """How to train some trials.

        Args:
            prepared: The workload, with its data on the device.
            plan: Of one of the trials.
            count: How many there are.
            way: "replicas", as far as they can be stacked, or "separate"; "auto": what is fastest.

        Returns:
            The way.
        """
        if way == "separate":
            return Chosen(False, 1, False, "as asked for")
        # At the reference's rate, since a trial's own may diverge.
        plan = replace(plan, learning_rate=prepared.workload.learning_rate)
        short = -(-(plan.budget_examples or 0) // plan.batch_size) < WORTH_UPDATES
        if way == "auto" and short:
            return Chosen(False, 1, False, f"fewer than {WORTH_UPDATES} updates do not pay for finding out more")
        if not self.checked:
            self.refusal, self.checked = _refusal(prepared, plan), True
        if self.refusal is not None:
            return Chosen(False, 1, False, self.refusal)
        chosen = Chosen(True, count, False, "as asked for")
        if way == "auto":
            found = self._fastest(prepared, plan, count)
            size = count if found.in_turn else found.stack_size
            chosen = Chosen(found.replicas, size, found.in_turn, found.reason)
        return self._limited(plan.batch_size, chosen)

    def limit(self, batch_size: int, chosen: Chosen, most: int, said: str) -> Chosen:
        """Take note that a stack failed.

        Args:
            batch_size: Of its trials.
            chosen: How they were to be trained.
            most: Most trials that a stack may hold from now on; 0: no stacks any more.
            said: Why it failed.

        Returns:
            How the rest of them is trained.
        """
        self.limits[batch_size] = most, said
        return self._limited(batch_size, chosen)

    def _limited(self, batch_size: int, chosen: Chosen) -> Chosen:
        most, said = self.limits.get(batch_size, (chosen.stack_size, ""))
        if not chosen.replicas or most >= chosen.stack_size:
            return chosen
        if most == 0:
            return Chosen(False, 1, False, f"a stack failed ({said})")
        return chosen._replace(stack_size=most, reason=f"{chosen.reason}; no more than {most} at once ({said})")

    def _fastest(self, prepared: Prepared, plan: Plan, count: int) -> FastestWay:
        measured = self.measured.setdefault(plan.batch_size, {})
        known = [number for number, found in measured.items() if _holds(found, number, count)]
        if known:
            return measured[min(known, key=lambda number: abs(number - count))]
        measured[count] = _measured(prepared, plan, count)
        return measured[count]


_known: weakref.WeakKeyDictionary[Prepared, Ways] = weakref.WeakKeyDictionary()


def ways_of(prepared: Prepared) -> Ways:
    """What this process knows of a workload that was made ready."""
    return _known.setdefault(prepared, Ways())


def _holds(found: FastestWay, measured_count: int, count: int) -> bool:
    """Whether what was fastest for some trials is taken to be so for another number of them.

    All smaller stacks were tried as well. So it holds for fewer trials, as long as they fill more than half of a stack;
    and for more, as long as no stack twice as large comes into question.
    """
    size = found.stack_size if found.replicas and not found.in_turn else 1
    return size < 2 * count and count < 2 * measured_count


def _refusal(prepared: Prepared, plan: Plan) -> str | None:
    try:
        return refusal(prepared, plan)
    except Exception as error:  # memory ran out, say: not for a single run perhaps
        return f"a stack cannot be tried: {first_line(error)}"


def _measured(prepared: Prepared, plan: Plan, count: int) -> FastestWay:
    try:
        return fastest_way(prepared, plan, count)
    except Exception as error:
        nothing = float("nan")
        return FastestWay(1, False, False, nothing, nothing, f"a stack cannot be timed: {first_line(error)}")

"""The law between batch size and the examples that a target takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.interval import Interval

Regime = Literal["perfect scaling", "diminishing returns", "flat"]
Form = Literal["hyperbola", "general exponent"]


@dataclass(frozen=True)
class TradeoffPoint:
    """One batch size of the table that the law was fitted to.

    Attributes:
        batch_size: Examples per update.
        runs: Runs at this size.
        missed: Those that did not reach the target.
        examples: Examples to the target: geometric mean over runs, missed ones taken as at least what they spent; None
            where all missed.
        at_least: What a size whose runs all missed needs at least; None otherwise, or where that is not known.
        predicted: What the law gives.
        left_out: What the law gives when fitted without this size; None where it can't be.
        regime: Where the law puts it: more examples per update save nearly as many updates (perfect scaling, below a
            third of the critical batch size), some, or next to none (flat, above three times it).
    """

    batch_size: int
    runs: int
    missed: int
    examples: float | None
    at_least: float | None
    predicted: float
    left_out: float | None
    regime: Regime | None


@dataclass(frozen=True)
class TradeoffLaw(Record):
    """E(B) = E_min·(1 + (B/B_crit)^p), examples to a target against batch size; p = 1 unless the data say otherwise.

    Attributes:
        form: The hyperbola, p = 1 (McCandlish et al. 2018), or the general exponent where that predicts better.
        critical_batch_size: B_crit, where twice the least examples are needed.
        minimum_examples: E_min, what a very small batch needs.
        minimum_updates: S_min = E_min/B_crit, what a very large batch needs, for the hyperbola.
        exponent: p of the general form, fitted beside it; unresolved where there are too few sizes for three numbers.
        relative_error: Root mean square residual of log E.
        leave_one_out_error: Root mean square error of log E at sizes left out of the fit; None below four sizes.
        rival_leave_one_out_error: The same for the form that was not chosen; None below five.
        points: A line per batch size, ascending.
        verdict: Whether the data determine B_crit and follow the law, in a sentence.
        determined: Whether they determine it to within a factor of 10.
        follows: Whether they follow the law.
    """

    kind: ClassVar[str] = "trade-off law"

    form: Form
    critical_batch_size: Interval
    minimum_examples: Interval
    minimum_updates: Interval
    exponent: Interval
    relative_error: float
    leave_one_out_error: float | None
    rival_leave_one_out_error: float | None
    points: tuple[TradeoffPoint, ...]
    verdict: str
    determined: bool
    follows: bool

    def examples(self, batch_size: float) -> float | None:
        """Examples to the target at a batch size; None where the law is not resolved."""
        least, critical = self.minimum_examples.value, self.critical_batch_size.value
        if least is None or critical is None:
            return None
        power = self.exponent.value if self.form == "general exponent" and self.exponent.value else 1.0
        return least * (1 + math.pow(batch_size / critical, power))

    def updates(self, batch_size: float) -> float | None:
        """Updates to the target at a batch size."""
        examples = self.examples(batch_size)
        return None if examples is None else examples / batch_size

"""All candidates of one batch size: heats of learning rates that were added as the valley showed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from batchscope.advice.heat import Entrant, Heat
from batchscope.fit.learning_curve import Curve
from batchscope.fit.rate_drift import Bottom, along_one_run
from batchscope.fit.valley import valley_bottom
from batchscope.records import RacePoint

# A rate is given up when it is this far from the bottom, in factors of two, and clearly worse.
FAR_OCTAVES = 1.6
# Of the spread of losses in a valley, what counts as clearly worse than its bottom.
CLEARLY_WORSE = 0.05
# Weights as they stand are noisy: their losses are averaged over so many of the last places, where those are known.
NOISY_PLACES = 3
# After so many evaluations a valley has been seen.
NARROWED_POINTS = 4
# Rates that were added later are level with the others when those are no more than so many times as far.
ABOUT = 2.0
# How well the bottom of a valley is known: a share of the spacing of its rates, and more where it lies at the edge.
BOTTOM_SPREAD, EDGE_SPREAD = 0.35, 1.0


class Lane:
    """One batch size in the race.

    Args:
        batch_size: Examples per update.
        make_heat: Returns a heat of these learning rates and seed.
        learning_rates: The first candidates.
    """

    def __init__(
        self, batch_size: int, make_heat: Callable[[int, Sequence[float], int], Heat], learning_rates: Sequence[float]
    ) -> None:
        self.batch_size = batch_size
        self._make_heat = make_heat
        self.heats = [make_heat(batch_size, sorted(learning_rates), 0)]
        self.repeats: list[Heat] = []

    @property
    def entrants(self) -> list[Entrant]:
        """Every candidate, by rate."""
        return sorted((e for heat in self.heats for e in heat.entrants), key=lambda e: e.learning_rate)

    @property
    def live(self) -> list[Entrant]:
        """Those that have not ended."""
        return [e for heat in self.heats for e in heat.live]

    @property
    def examples(self) -> int:
        """How far all heats have got that have live candidates; the farthest where none has."""
        running = [heat.examples for heat in self.heats if heat.live]
        return min(running) if running else max(heat.examples for heat in self.heats)

    @property
    def seen_examples(self) -> int:
        """How far any candidate was seen."""
        return max((entrant.last.examples for entrant in self.entrants if entrant.last), default=0)

    @property
    def virtual_seconds(self) -> float:
        """Where it stands on the virtual clock."""
        return self.examples / self.batch_size * self.heats[0].seconds_per_update

    @property
    def points(self) -> int:
        """Evaluations of the best candidate after the first update."""
        best = self.best
        return sum(p.examples > 0 for p in best.points) if best else 0

    @property
    def best(self) -> Entrant | None:
        """The best candidate: the first to reach the target, or of least loss where most got to."""
        found = [heat.best for heat in self.heats]
        there = [e for e in found if e is not None and e.points]
        if not there:
            return None
        reached = [e for e in there if e.ended == "reached"]
        if reached:
            return min(reached, key=lambda e: e.points[-1].examples)
        # Heats that were added later are compared where both have been.
        common = min(e.points[-1].examples for e in there)
        return min(there, key=lambda e: _loss_at(e, common))

    @property
    def reached(self) -> Entrant | None:
        """The candidate that reached the target first."""
        best = self.best
        return best if best is not None and best.ended == "reached" else None

    @property
    def all_heats(self) -> list[Heat]:
        """Those of its candidates, and the repeats."""
        return [*self.heats, *self.repeats]

    @property
    def leading(self) -> tuple[Heat, Entrant] | None:
        """The best candidate, with the heat that it is in."""
        best = self.best
        return next(((heat, best) for heat in self.heats if best is not None and best in heat.entrants), None)

    def advance(self) -> None:
        """Train the heat that is behind until its next evaluation."""
        running = [heat for heat in self.heats if heat.live]
        if running:
            min(running, key=lambda heat: heat.examples).advance()

    def valley(self, place: int | None = None) -> tuple[list[float], list[float]]:
        """Rates and losses at one place, diverged ones infinite.

        Noisy losses are geometric means over the last few places before that.

        Args:
            place: Examples; None: the last place that at least three of them got to.
        """
        last = self._common_place() if place is None else place
        pairs = sorted(pair for heat in self.heats for pair in zip(*heat.valley(last), strict=True))
        if self.heats[0].judges_both_ways:
            pairs = [(rate, self._smoothed(rate, loss, last)) for rate, loss in pairs]
        return [rate for rate, _ in pairs], [loss for _, loss in pairs]

    def _smoothed(self, learning_rate: float, loss: float, last: int) -> float:
        entrant = next(e for e in self.entrants if e.learning_rate == learning_rate)
        before = [p.loss for p in entrant.points if 0 < p.examples <= last][-NOISY_PLACES:]
        if not math.isfinite(loss) or any(not 0 < each < math.inf for each in before) or len(before) < NOISY_PLACES:
            return loss
        return math.exp(sum(map(math.log, before)) / len(before))

    def _common_places(self) -> list[int]:
        """Where at least three have been, ascending; where any has, if there is no such place."""
        places: dict[int, int] = {}
        for entrant in self.entrants:
            for point in entrant.points:
                if point.examples and math.isfinite(point.loss):
                    places[point.examples] = places.get(point.examples, 0) + 1
        return sorted([place for place, count in places.items() if count >= min(3, len(self.entrants))] or places)

    def _common_place(self) -> int:
        return (self._common_places() or [0])[-1]

    @property
    def is_level(self) -> bool:
        """Whether rates that were added later have got about as far as where the valley is looked at."""
        place = self._common_place()
        return all(ABOUT * heat.examples >= place for heat in self.heats if heat.live)

    def bottoms(self) -> list[Bottom]:
        """The bottoms of the valleys on the way, each known as well as it adds to the others."""
        found = [bottom for place in self._common_places() if (bottom := self.bottom(place)) is not None]
        return along_one_run([bottom for bottom, _ in found])

    def bottom(self, place: int | None = None) -> tuple[Bottom, str | None] | None:
        """The bottom of the valley, and at which edge of the rates it lies, if at one; None before any evaluation.

        Args:
            place: Examples; None: as far as at least three rates got.
        """
        at = self._common_place() if place is None else place
        rates, losses = self.valley(at)
        if not any(math.isfinite(loss) for loss in losses):
            return None
        rate, at_edge = valley_bottom(rates, losses)
        # Beside a diverged neighbour nothing better lies beyond.
        edge = ("lowest" if rate == rates[0] else "highest") if at_edge else None
        if edge == "highest" and any(e.ended == "diverged" for e in self.entrants if e.learning_rate > rate):
            edge = None
        steps = [math.log(b / a) for a, b in itertools.pairwise(rates)]
        step = max(steps, default=math.log(4))
        spread = EDGE_SPREAD * step if edge else BOTTOM_SPREAD * step
        return Bottom(self.batch_size, float(max(at, 1)), rate, spread), edge

    def extend(self, edge: str, factor: float = 2.0, count: int = 2) -> None:
        """Add rates beyond an edge; they begin at the beginning.

        Args:
            edge: "lowest" or "highest".
            factor: Between rates.
            count: How many.
        """
        rates = [e.learning_rate for e in self.entrants]
        ends = [min(rates) / factor**k if edge == "lowest" else max(rates) * factor**k for k in range(1, count + 1)]
        self.heats.append(self._make_heat(self.batch_size, sorted(ends), 0))

    def repeat(self, learning_rate: float, seed: int) -> Heat:
        """Train a rate once more, from other weights and in another order."""
        heat = self._make_heat(self.batch_size, [learning_rate], seed)
        self.repeats.append(heat)
        return heat

    def drop_far_rates(self, octaves: float = FAR_OCTAVES) -> None:
        """Give up rates that are far from the bottom and clearly worse, where that makes the others cheaper.

        Args:
            octaves: What is far.
        """
        found = self.bottom()
        if found is None or found[1] is not None:
            return
        bottom = found[0].learning_rate
        rates, losses = self.valley()
        finite = [loss for loss in losses if math.isfinite(loss)]
        limit = min(finite) + CLEARLY_WORSE * (max(finite) - min(finite))
        loss_of = dict(zip(rates, losses, strict=True))
        for heat in self.heats:
            far = [
                e
                for e in heat.live
                if abs(math.log2(e.learning_rate / bottom)) > octaves and loss_of.get(e.learning_rate, math.inf) > limit
            ]
            # A stack in one pass is traced anew when it shrinks, which is worth it for half of it.
            if far and (heat.in_turn or 2 * len(far) >= len(heat.live)):
                heat.drop(far, f"the best rate at batch size {self.batch_size:,} lies about {bottom:.3g}")

    def narrow(self, foretold: float) -> None:
        """Keep the best rate and the one nearest to what all of the way wants, where each costs as much as the first.

        Args:
            foretold: The rate that is expected to be the best in the end.
        """
        best = self.best
        if best is None or self.points < NARROWED_POINTS or any(not heat.in_turn for heat in self.heats):
            return
        nearest = min(self.live, key=lambda e: abs(math.log(e.learning_rate / foretold)), default=None)
        for heat in self.heats:
            heat.drop(
                [e for e in heat.live if e is not best and e is not nearest],
                f"{best.learning_rate:.3g} did better so far, and {foretold:.3g} is foretold to do so in the end",
            )

    def drop(self, reason: str) -> None:
        """Give up the batch size."""
        for heat in self.heats:
            heat.drop(heat.live, reason)

    def curves(self, *, score: bool, planned: bool = False) -> list[Curve]:
        """What its best candidate has reached on the way, and the repeats of it.

        Args:
            score: Whether minus their scores, or their losses.
            planned: Whether as a plan ends, with averaged weights, or as they are judged.
        """
        best = self.best
        entrants = [*([best] if best else []), *(heat.entrants[0] for heat in self.repeats)]
        points = [entrant.planned if planned else entrant.points for entrant in entrants]
        return [curve for own in points if (curve := _curve(self.batch_size, own, score=score)).examples]


def _loss_at(entrant: Entrant, examples: int) -> float:
    before = [p.loss for p in entrant.points if p.examples <= examples]
    return before[-1] if before and math.isfinite(before[-1]) else math.inf


def _curve(batch_size: int, points: Sequence[RacePoint], *, score: bool) -> Curve:
    points = [p for p in points if p.examples > 0 and math.isfinite(p.loss) and math.isfinite(p.score)]
    return Curve(
        batch_size,
        tuple(float(p.examples) for p in points),
        tuple(-p.score if score else p.loss for p in points),
    )

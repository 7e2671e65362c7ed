"""What is done with what is left of a budget when the race itself is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchscope.advice.heat import Entrant
from batchscope.advice.outlook import UNLIKELY

if TYPE_CHECKING:
    from batchscope.advice.race import Race

# Of what is kept of the budget, the part that goes to seeing the likeliest candidate further on.
FURTHER = 0.5
# A setting is trained from so many initial weights at most.
MOST_SEEDS = 3


def see_further(race: Race) -> None:
    """Train the likeliest candidate on by itself: a curve that was at the goal says more than any law of it."""
    found = None if race.outlook is None else race.best_heat()
    if found is None:
        return
    heat, best = found
    # Where no budget was given the race may have spent all before it could be told what it may cost.
    allowed = FURTHER * race.reserve * race.clock.limit
    until = race.clock.spent + (allowed if race.clock.seconds is None else min(allowed, race.clock.left))
    others = [entrant for entrant in heat.live if entrant is not best]
    if best not in heat.live or _is_there(race, best):
        return
    heat.drop(others, f"learning rate {best.learning_rate:.3g} did better at batch size {heat.batch_size:,}")
    while best in heat.live and not _is_there(race, best) and race.clock.spent < until and not race.stopped():
        race.tell(f"seeing batch size {heat.batch_size:,} further")
        heat.advance()


def _is_there(race: Race, entrant: Entrant) -> bool:
    """Whether a plan would have ended with it."""
    last = entrant.planned[-1] if entrant.planned else None
    return race.goal.kind == "target" and last is not None and last.score >= race.goal.value


def judge_present(race: Race) -> None:
    """Train with the present setting as far as the race went, its weights as they stand."""
    workload = race.prepared.workload
    if race.outlook is None or race.stopped():
        return
    size = workload.batch_size
    if size > workload.training_examples:
        return
    horizon = max(lane.virtual_seconds for lane in race.lanes.values())
    heat = None
    while race.clock.left > 0 and not race.stopped():
        if heat is None:
            race.tell("the present setting")
            heat = race.present = race.make_heat(size, [workload.learning_rate], 0, averaging=False)
        heat.advance()
        if not heat.live or heat.virtual_seconds >= horizon:
            break


def repeat_the_best(race: Race) -> None:
    """With what is left of a budget that is known, train the best rates again from other weights."""
    if race.clock.seconds is None and not race.is_well_seen():
        return
    while race.outlook is not None and not race.stopped():
        near = race.outlook.near_best()
        open_to = [
            lane
            for lane in race.lanes.values()
            if lane.best is not None and len(lane.repeats) < MOST_SEEDS - 1 and near[lane.batch_size] > UNLIKELY
        ]
        if not open_to:
            return
        lane = max(open_to, key=lambda lane: (-len(lane.repeats), near[lane.batch_size]))
        best = lane.best
        if best is None:
            return
        horizon = best.points[-1].seconds
        if 1.0 + 1.3 * horizon > race.clock.left:
            return
        race.tell(f"batch size {lane.batch_size:,} once more")
        heat = lane.repeat(best.learning_rate, len(lane.repeats) + 1)
        while heat.live and heat.virtual_seconds < horizon and not race.stopped() and race.clock.left > 0:
            heat.advance()
        race.look()

"""The race: batch sizes and learning rates trained side by side, as far as the budget goes.

A pilot finds a learning rate. Lanes of other batch sizes are opened where the law of what was seen so far, with the
measured time of an update, makes them likely to be the fastest; those that cannot be are closed. All are compared on
the virtual clock: updates times the time of an update trained alone, so that neither a busy machine nor the company in
a stack decides.

For a given number of examples or seconds, candidates are judged by the average of their weights: the end is known, a
plan is made for it, and the weights themselves favour small learning rates and large batches too soon. For a target
they are judged by the weights as they stand, since that is when any loop with this batch size and rate gets there; how
much sooner their average does is seen beside it, and forecast for the plan, which ends with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from batchscope.advice.afterwards import judge_present, repeat_the_best, see_further
from batchscope.advice.clock import Clock
from batchscope.advice.heat import Entrant, Heat
from batchscope.advice.judge import Judge
from batchscope.advice.lane import Lane
from batchscope.advice.opening import LEAST_LANES, next_size, size_beside_the_first
from batchscope.advice.outlook import LEAST_POINTS, SOME_WAY, UNLIKELY, Outlook, find_outlook, quantiles
from batchscope.advice.pilot import PILOT_POINTS, coarse_rates, find_order
from batchscope.advice.update_times import UpdateTimes
from batchscope.errors import RunError
from batchscope.fit.learning_curve import CriticalPrior
from batchscope.fit.rate_drift import RateDrift, fit_rate_drift
from batchscope.records import Goal, NoiseMeasurement, Plan
from batchscope.training.loop import MOST_EPOCHS, Prepared
from batchscope.training.ways import refusal

COARSE_EXAMPLES, COARSE_UPDATES = 512, 16
# A lane's rates about the expected one.
LANE_RATES = (0.5, 1.0, 2.0)
MOST_EXTENSIONS = 2
# The range that the pilot's batch size is chosen from.
PILOT_SIZES = (16, 128)
# A batch size is given up when two looks in turn find it most unlikely to be as good as the best, and it was seen so
# often: a curve that bends misleads the law for a while.
SEEN = 5
# Opening a lane must leave this share of what is left of the budget.
OPENING_SHARE = 0.5
# A curve of so many evaluations and updates says how long a training run will take.
WELL_SEEN, WELL_TRAINED = 7, 100
# A run is taken to take as long as this share of the draws say at most: once a curve is well seen, and before.
SHORT_RUN, LONG_RUN = 0.2, 0.8
# A lane within so many factors of two of the best size, and seen so often, is where its rate is looked for.
NEAR_OCTAVES, SEEN_AT_ALL = 1.0, 2
# The critical batch size is the noise scale to within so many e-folds: on the benchmarks' networks, at the beginning of
# training, 0.6, and there are outliers. Measuring it may take this share of the least that the budget is.
NOISE_SPREAD, NOISE_SHARE = 0.8, 0.06
# Finding out by how much the judge is off may take this share likewise; it is found out at the end in any case.
OFFSET_SHARE = 0.03
# A learning rate that is off by one e-fold costs so many e-folds of examples: 0.1 to 1.2 at the 33 batch sizes of the
# benchmarks' ground truths, whose median it is.
RATE_COST = 0.4
# The laws are fitted again when training has gone on for this many times what that takes.
LOOK_AGAIN = 6.0


class Race:
    """One race.

    Args:
        prepared: The workload, with its data on the device.
        goal: What is asked for.
        sizes: Batch sizes that may be advised, ascending.
        times: Measured time of an update trained alone.
        exponent: The optimiser's scaling rule.
        clock: What it may cost.
        seed: Of everything random.
        reserve: Share of the budget that is kept for judging the present setting.
        to_train: Whether the winner is to be trained on.
        measure_noise: Measures the gradient noise at some weights, within some seconds; None where that fails.
        weight: What a second counts for at a batch size, where time is not all that counts.
        tell: Told what goes on.
        stopped: Asked between two rounds whether to end.

    Attributes:
        lanes: By batch size.
        outlook: What the curves say now; None before they say anything.
        critical: What the gradient noise says of the critical batch size; None where it could not be measured.
        forecast: What they say of plans, which end with averaged weights; made at the end.
        as_they_stand: Whether candidates are judged by their weights themselves, and not by the averages.
        pilot: The batch size that found the first rate.
        trouble: Why there is no answer; None where there may be one.
        unstacked: Why the candidates are not trained in stacks; None: they are.
    """

    def __init__(
        self,
        prepared: Prepared,
        goal: Goal,
        sizes: Sequence[int],
        times: UpdateTimes,
        *,
        exponent: float,
        clock: Clock,
        seed: int,
        reserve: float = 0.0,
        to_train: bool = False,
        measure_noise: Callable[[dict[str, Any], float], NoiseMeasurement | None] = lambda state, seconds: None,
        weight: Callable[[int], float] = lambda batch_size: 1.0,
        tell: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> None:
        self.prepared, self.goal, self.clock = prepared, goal, clock
        self.sizes, self.times, self.seconds_per_update = tuple(sizes), times, times.seconds
        self.exponent, self.seed, self.reserve, self.tell, self.stopped = exponent, seed, reserve, tell, stopped
        self.to_train, self.measure_noise, self.weight = to_train, measure_noise, weight
        self.critical: CriticalPrior | None = None
        self.as_they_stand = goal.kind == "target" and not to_train
        seen = max((point.batch_size for point in times.measured.points if point.step_seconds.value), default=None)
        held = seen if seen is None else times.micro_batch_size(seen)
        self.judge = Judge.affordable(prepared, times.measured.most_examples_per_second, held)
        plan = Plan(batch_size=self.sizes[0], learning_rate=prepared.workload.learning_rate, iterations=1)
        self.unstacked = refusal(prepared, plan, seed)
        self.early = False
        self.coarse: Lane | None = None
        self.present: Heat | None = None
        self.lanes: dict[int, Lane] = {}
        self.outlook: Outlook | None = None
        self.forecast: Outlook | None = None
        self.trouble: str | None = None
        self._unlikely: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())  # at the last two looks
        self._extended: dict[int, list[str]] = {}
        self._looked, self._look_seconds = 0.0, 0.0
        low, high = PILOT_SIZES
        inside = [size for size in self.sizes if low <= size <= high] or list(self.sizes)
        # Where examples are cheap, so that the pilot is quick, and yet many updates fit into few of them.
        cheapest = min(times.seconds(size) / size for size in self.sizes)
        cheap = [size for size in inside if times.seconds(size) / size <= 3 * cheapest]
        self.pilot = min(cheap) if cheap else max(inside)

    def run(self) -> None:
        """Race until the budget is spent or the race is settled.

        What is left of the budget goes to the present setting and to repeats, unless the winner is to be trained on.
        """
        self._pilot()
        if self.trouble is not None:
            return
        while not self.stopped():
            self._look_now_and_then()
            if self._left <= 0 or not self._move():
                break
        if not self.to_train:
            see_further(self)
        self._calibrate()
        self.look()
        if not self.to_train:
            judge_present(self)
            repeat_the_best(self)
        self.forecast = self._fitted(planned=True) if self.as_they_stand else self.outlook

    @property
    def _left(self) -> float:
        """Seconds left for the race itself."""
        return self.clock.left - self.reserve * self.clock.limit

    @property
    def heats(self) -> list[Heat]:
        """All that was trained."""
        lanes = [*([self.coarse] if self.coarse else []), *self.lanes.values()]
        found = [heat for lane in lanes for heat in lane.all_heats]
        return [*found, self.present] if self.present else found

    @property
    def examples(self) -> int:
        """Examples trained on, all candidates."""
        return sum(heat.examples_spent for heat in self.heats)

    def state_of_best(self) -> dict[str, Any] | None:
        """Weights of the best candidate of the likeliest batch size; None before there is one."""
        found = self.best_heat()
        return None if found is None else found[0].state_of(found[1])

    def nearest_to_the_goal(self) -> tuple[Heat, Entrant]:
        """The candidate with the least time left, by the laws of the race; one that is there already comes first.

        Raises:
            RunError: Nothing was trained.
        """
        found: list[tuple[float, Heat, Entrant]] = []
        for size, lane in self.lanes.items():
            leading = lane.leading
            if leading is None:
                # None was judged yet: the one in the middle, which is where the pilot saw the bottom.
                beginning = lane.heats[0]
                if beginning.live:
                    found.append((math.inf, beginning, beginning.live[len(beginning.live) // 2]))
                continue
            heat, best = leading
            if best.ended == "reached":
                found.append((0.0, heat, best))
            elif best in heat.live and self.outlook is not None:
                i = self.outlook.sizes.index(size)
                needed = float(np.median(self.outlook.costs[i]))  # trained on, time alone counts
                done = best.points[-1].seconds if self.goal.kind == "target" else 0.0
                found.append((needed - done if math.isfinite(needed) else math.inf, heat, best))
            elif best in heat.live:
                found.append((math.inf, heat, best))
        if not found:
            raise RunError("a race must have a candidate that still runs", got="none", mend="give more budget")
        _, heat, best = min(found, key=lambda item: item[0])
        return heat, best

    def horizon_examples(self, batch_size: int) -> float:
        """How many examples a run is expected to take in all; no fewer than any candidate has taken.

        Args:
            batch_size: Of the run.
        """
        if self.goal.kind != "target":
            return float(self.budget_examples(batch_size))
        seen = float(max(1, *(lane.seen_examples for lane in self.lanes.values())))
        if self.outlook is None:
            return SOME_WAY * seen
        needed = float(np.median(self.outlook.examples[self.outlook.sizes.index(batch_size)]))
        return max(needed, seen) if math.isfinite(needed) else SOME_WAY * seen

    @property
    def rates(self) -> RateDrift:
        """The law of the best rates, from the valleys so far."""
        bottoms = [bottom for lane in self.lanes.values() for bottom in lane.bottoms()]
        curve = None if self.outlook is None else self.outlook.loss
        return fit_rate_drift(bottoms, exponent=self.exponent, curve=curve, seed=self.seed)

    def foretold_rate(self, batch_size: int) -> float | None:
        """The rate that all of the way to the goal is expected to want; None before any valley was seen.

        Args:
            batch_size: Of the run.
        """
        if not any(lane.points for lane in self.lanes.values()):
            return None
        return self.rates.predict(batch_size, self.rate_examples(batch_size)).value

    def rate_examples(self, batch_size: int) -> float:
        """The length of training that a rate is chosen for.

        Args:
            batch_size: Of the run.
        """
        if self.outlook is None or self.goal.kind != "target":
            return self.horizon_examples(batch_size)
        return self.outlook.rate_examples(batch_size)

    def budget_examples(self, batch_size: int) -> int:
        """Where a run of a batch size would end."""
        if self.goal.kind == "examples":
            return int(self.goal.value)
        if self.goal.kind == "seconds":
            return max(batch_size, int(self.goal.value / self.seconds_per_update(batch_size)) * batch_size)
        return MOST_EPOCHS * self.prepared.workload.training_examples

    def make_coarse_heat(self, batch_size: int, learning_rates: Sequence[float], seed: int) -> Heat:
        """A heat that is to find the order of magnitude of a rate, judged by losses on part of the validation set."""
        judge = Judge(self.prepared, COARSE_EXAMPLES, self.judge.data.batch_size)
        return self._heat(batch_size, learning_rates, seed, judge=judge, first_updates=COARSE_UPDATES)

    def make_heat(self, batch_size: int, learning_rates: Sequence[float], seed: int, *, averaging: bool = True) -> Heat:
        """A heat of this race."""
        return self._heat(
            batch_size,
            learning_rates,
            seed,
            judge=self.judge,
            target=self.goal.value if self.goal.kind == "target" else None,
            to_train=self.to_train,
            averaging=averaging,
            as_they_stand=self.as_they_stand,
            early=self.early,
        )

    def _heat(self, batch_size: int, learning_rates: Sequence[float], seed: int, **own: Any) -> Heat:
        return Heat(
            self.prepared,
            batch_size,
            learning_rates,
            seed=self.seed + seed,
            seconds_per_update=self.seconds_per_update(batch_size),
            budget_examples=self.budget_examples(batch_size),
            stacked=self.unstacked is None,
            **own,
        )

    def _pilot(self) -> None:
        workload, size = self.prepared.workload, self.pilot
        centre = workload.learning_rate * (size / workload.batch_size) ** self.exponent
        self.coarse = Lane(size, self.make_coarse_heat, coarse_rates(centre))

        def goes_on() -> bool:
            self.tell(f"learning rates at batch size {size:,}")
            return not self.stopped()

        bottom, self.trouble = find_order(self.coarse, goes_on=goes_on, is_late=lambda: self.clock.left <= 0)
        if bottom is None:
            return
        self._fine_pilot(bottom)
        found_at = self.lanes[size].reached if size in self.lanes else None
        if found_at is not None and self.lanes[size].points < LEAST_POINTS:
            # There before anything could be learned from its curve: the same again, looked at from the first update.
            self.early = True
            self._fine_pilot(bottom)

    def _fine_pilot(self, bottom: float) -> None:
        size = self.pilot
        late = self.clock.left <= 0 and not self.to_train  # one is needed to go on with
        if late or self.stopped():
            return
        self.lanes[size] = fine = Lane(size, self.make_heat, [bottom * f for f in LANE_RATES])
        while fine.points < PILOT_POINTS and fine.live and self.clock.left > 0 and not self.stopped():
            self.tell(f"learning rates near {bottom:.3g}")
            fine.advance()
        whole = self.prepared.workload.validation_examples / self.times.measured.most_examples_per_second
        if whole <= OFFSET_SHARE * self.clock.sure_seconds:
            self._calibrate()
        self._measure_noise()

    def _measure_noise(self) -> None:
        """Let the gradient noise where the pilot stands say about where the critical batch size lies."""
        found = self.best_heat()
        state = None if found is None else found[0].state_of(found[1])
        if found is None or state is None or not found[1].points or self.stopped():
            return
        self.tell("gradient noise")
        noise = self.measure_noise(state, NOISE_SHARE * self.clock.sure_seconds)
        scale = None if noise is None else noise.noise_scale
        if scale is None or not scale.value or not scale.low or not scale.high:
            return
        own = math.log(scale.high / scale.low) / (2 * NormalDist().inv_cdf((1 + scale.level) / 2))
        spread = math.hypot(NOISE_SPREAD, own) if math.isfinite(own) else 2 * NOISE_SPREAD
        self.critical = CriticalPrior(found[1].points[-1].examples, scale.value, spread)

    def _calibrate(self) -> None:
        """Find out by how much the judge is off, on the best candidate of the likeliest batch size."""
        if self.judge.is_exact:
            return
        found = self.best_heat()
        model = None if found is None else found[0].model_of(found[1])
        if model is None:
            return
        loss, score = self.judge.measure_offsets(model)
        for lane in self.lanes.values():
            for heat in lane.all_heats:
                heat.shift(loss, score)

    def best_heat(self) -> tuple[Heat, Entrant] | None:
        """The best candidate of the likeliest batch size, and the heat that it is in; None before there is one."""
        lanes = [lane for lane in self.lanes.values() if lane.best is not None]
        near = {} if self.outlook is None else self.outlook.near_best()
        return max(lanes, key=lambda lane: near.get(lane.batch_size, 0.0)).leading if lanes else None

    def _look_now_and_then(self) -> None:
        """Look again when training since the last look has taken some times what a look takes."""
        if self.clock.spent - self._looked >= LOOK_AGAIN * self._look_seconds:
            self.look()

    def look(self) -> None:
        """Work out anew what the curves say, and what the advice may cost by that."""
        began = self.clock.spent
        self.outlook = self._fitted()
        near = {} if self.outlook is None else self.outlook.near_best()
        self._unlikely = self._unlikely[1], frozenset(size for size in near if near[size] < UNLIKELY)
        if self.outlook is not None and self.clock.seconds is None:
            known = self.is_well_seen() and len(self.lanes) >= min(2, len(self.sizes))
            # Of what the plan takes; until a candidate has gone far, of what it well may take.
            plan = self.outlook if known or not self.as_they_stand else self._fitted(planned=True) or self.outlook
            [seconds] = quantiles(plan.seconds[plan.sizes.index(plan.best())], SHORT_RUN if known else LONG_RUN)
            self.clock.allow(seconds, known=known)
        self._looked = self.clock.spent
        self._look_seconds = self._looked - began

    def _fitted(self, *, planned: bool = False) -> Outlook | None:
        losses, scores = (
            [curve for lane in self.lanes.values() for curve in lane.curves(score=score, planned=planned)]
            for score in (False, True)
        )
        return find_outlook(
            self.goal,
            losses,
            scores,
            self.sizes,
            self.times.seconds,
            relative_error=self.times.relative_error,
            critical=self.critical,
            weight=self.weight,
            seed=self.seed,
        )

    def is_well_seen(self) -> bool:
        """Whether some candidate has gone so far that its curve says something about the end of it."""
        bests = [lane.best for lane in self.lanes.values()]
        return any(
            best.ended == "reached" or (len(best.points) > WELL_SEEN and best.points[-1].iterations >= WELL_TRAINED)
            for best in bests
            if best is not None and best.points
        )

    def _move(self) -> bool:
        """Do what helps most; False where nothing is left to do."""
        self._close()
        live = [lane for lane in self.lanes.values() if lane.live]
        if self._settled(live):
            return not self.to_train and self._open_beside_the_first()
        leading = self._lane_of_open_rates(live)
        if leading is None and self._open():
            return True
        for lane in live:
            found = lane.bottom()
            edges = self._extended.setdefault(lane.batch_size, [])
            seen = lane.points >= PILOT_POINTS and lane.is_level
            if found is None or found[1] is None or not seen or len(edges) >= MOST_EXTENSIONS:
                continue
            # A valley whose bottom lay at the other edge before is flat between the two.
            if all(edge == found[1] for edge in edges):
                edges.append(found[1])
                lane.extend(found[1])
                return True
        if not live:
            return False
        lane = leading or min(live, key=self._how_far)
        lane.drop_far_rates()
        if lane is not leading and (foretold := self.foretold_rate(lane.batch_size)) is not None:
            lane.narrow(foretold)
        self.tell(self._standing(lane))
        lane.advance()
        return True

    def _lane_of_open_rates(self, live: Sequence[Lane]) -> Lane | None:
        """The likeliest lane, where not knowing its rate costs more than not knowing which batch size is the best.

        None where the sizes are the larger question, where fewer than two of them were seen, or where there is time to
        train all candidates to the goal: lanes that have come as far as each other are compared best.
        """
        outlook = self.outlook
        if outlook is None or self.goal.kind == "examples":
            return None
        if len(self.lanes) < min(2, len(self.sizes)) or any(lane.points == 0 for lane in live):
            return None
        size = outlook.best()
        needed = float(np.median(outlook.seconds[outlook.sizes.index(size)]))
        if needed * sum(len(lane.live) for lane in live) < self._left:
            return None
        lane = min(live, key=lambda lane: abs(math.log(lane.batch_size / size)), default=None)
        if lane is None or abs(math.log2(lane.batch_size / size)) > NEAR_OCTAVES or lane.points < SEEN_AT_ALL:
            return None
        rate = self.rates.predict(lane.batch_size, self.rate_examples(lane.batch_size))
        if not rate.low or not rate.high:
            return None
        spread = math.log(rate.high / rate.low) / (2 * NormalDist().inv_cdf((1 + rate.level) / 2))
        return lane if RATE_COST * spread**2 > outlook.mean_regret(size) else None

    def _how_far(self, lane: Lane) -> float:
        """Where a lane stands beside the others: in time, or where examples are given in those as much."""
        if self.goal.kind == "examples":
            return lane.virtual_seconds * lane.examples
        return lane.virtual_seconds

    def _settled(self, live: Sequence[Lane]) -> bool:
        """Whether a lane reached the target before where all others stand on the virtual clock."""
        crossings = [lane.reached.points[-1].seconds for lane in self.lanes.values() if lane.reached is not None]
        first = min(crossings, default=math.inf)
        for lane in live:
            if lane.virtual_seconds > first:
                lane.drop(f"after {lane.virtual_seconds:.3g} s it had not reached what another did in {first:.3g} s")
        return not any(lane.live for lane in live) and len(self.lanes) >= min(LEAST_LANES, len(self.sizes))

    def _close(self) -> None:
        """Give up batch sizes that are most unlikely to be as good as the best."""
        outlook = self.outlook
        if outlook is None:
            return
        near = outlook.near_best()
        best = outlook.best()
        for size, lane in self.lanes.items():
            # What is likelier may not have been opened yet, and time may end before it is.
            alone = not any(other.live for other in self.lanes.values() if other is not lane)
            unlikely = all(size in sizes for sizes in self._unlikely)
            if lane.live and not alone and size != best and lane.points >= SEEN and unlikely:
                lane.drop(f"as good as batch size {best:,} with a probability of {near[size]:.0%} only")

    def _open(self) -> bool:
        """Open the lane that is most likely to be the best among those not tried, where that can be afforded."""
        near = None if self.outlook is None else self.outlook.near_best()
        size = next_size(
            self.lanes,
            self.sizes,
            self._is_affordable,
            near,
            pilot=self.pilot,
            by_examples=self.goal.kind == "examples",
        )
        return self._open_lane(size)

    def _open_beside_the_first(self) -> bool:
        """Race a neighbour of the batch size that reached the target first, as long as there is time for it."""
        near = {} if self.outlook is None else self.outlook.near_best()
        return self._open_lane(size_beside_the_first(self.lanes, self.sizes, self._is_affordable, near))

    def _open_lane(self, size: int | None) -> bool:
        if size is None:
            return False
        seen = max(lane.seen_examples for lane in self.lanes.values())
        rate = self.rates.predict(size, max(seen, 1)).value or self.prepared.workload.learning_rate
        self.tell(f"opening batch size {size:,}")
        self.lanes[size] = Lane(size, self.make_heat, [rate * f for f in LANE_RATES])
        return True

    def _is_affordable(self, size: int, further_seconds: float) -> bool:
        """Whether a lane can be opened, brought level with the others, and trained further on the virtual clock."""
        behind = min((lane.virtual_seconds for lane in self.lanes.values() if lane.live), default=0.0)
        first = 6 * self.seconds_per_update(size)
        seconds = 1.0 + len(LANE_RATES) * (max(behind, first) + further_seconds)
        return seconds <= OPENING_SHARE * self._left

    def _standing(self, lane: Lane) -> str:
        best = lane.best
        reached = f", loss {best.points[-1].loss:.3g}" if best is not None and best.points else ""
        return f"batch size {lane.batch_size:,}{reached}"

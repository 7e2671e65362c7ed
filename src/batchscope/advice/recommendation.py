"""From a race to an answer: the setting, what it will take, how sure that is, and every other batch size beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from batchscope.advice.costs import Costs
from batchscope.advice.forecast import LEVEL, critical_size, forecast_points, interval, predicted, scaled
from batchscope.advice.heat import Entrant
from batchscope.advice.outlook import LEAST_POINTS, SOME_WAY, Outlook
from batchscope.advice.pace import Pace
from batchscope.advice.race import Race
from batchscope.advice.reasons import few_reasons, no_answer, reasons, short_answer, without_an_end
from batchscope.advice.update_times import UpdateTimes
from batchscope.fit.learning_curve import Curve, fit_learning_curve
from batchscope.fit.memory import predicted_bytes
from batchscope.records import (
    Advice,
    FrontierRow,
    Goal,
    Interval,
    MemoryUse,
    NoiseMeasurement,
    Plan,
    PresentSetting,
    Provenance,
    RaceCandidate,
    RacePoint,
    Spending,
    StepTimes,
    WorkloadSummary,
)
from batchscope.study import words
from batchscope.training.averaging import POWER

# A training run may take this many times as long as predicted before it gives up.
PATIENCE, MOST_PATIENCE = 2.0, 10.0
# A batch size was raced when its curve has this many points.
LEAST_RACED_POINTS = 2
# A target that this share of the draws reach is worth training towards, though nobody can say how long that takes.
NOT_UNLIKELY = 0.1
# A middle so many times the lower end, with no upper one, is not told as a time.
VAGUE = 10.0
BY_AVERAGE = (
    "by the validation loss of the average of their weights, in which an update counts by the 8th power of the "
    "examples seen: what a cooldown at that moment would reach"
)
AS_THEY_STAND = (
    "by the validation loss of their weights as they stand, which any loop reaches with the same batch size and rate; "
    "drawn and forecast is the average of their weights, in which an update counts by the 8th power of the examples "
    "seen, since the plan ends with it"
)


@dataclass
class Findings:
    """All that advice is made of.

    Attributes:
        workload: What it is for.
        goal: What was asked for.
        race: The race, run.
        times: Time of an update of any batch size.
        measured: As measured on one device.
        memory: Peak memory; None where it could not be measured.
        noise: Gradient noise at the best candidate; None likewise.
        spending: What things cost.
        warnings: What to know.
        devices: Devices that share each batch.
        interrupted: Whether it was stopped.
        provenance: Software, machine and seed.
        pace: Measures what updates take in a run of its own; None where that would cost too much.
        costs: What a second costs.
        second_decay: β₂ of the optimiser; None where it has none.
    """

    workload: WorkloadSummary
    goal: Goal
    race: Race
    times: UpdateTimes
    measured: StepTimes
    memory: MemoryUse | None
    noise: NoiseMeasurement | None
    spending: list[Spending]
    warnings: list[str]
    devices: int
    interrupted: bool
    provenance: Provenance
    pace: Callable[[int, float], Pace | None] = lambda batch_size, learning_rate: None
    costs: Costs = field(default_factory=Costs)
    second_decay: float | None = None


def recommend(findings: Findings) -> Advice:
    """Put the advice together.

    Args:
        findings: What was found out.

    Returns:
        The advice.
    """
    race, goal, outlook = findings.race, findings.goal, findings.race.outlook
    advice = _without_answer(findings)
    if outlook is None:
        return _as_seen(findings, advice)
    # As it was judged, what is best is chosen by; what the plan takes, which ends with averaged weights, is forecast.
    forecast = race.forecast or outlook
    frontier = _frontier(findings, outlook, forecast)
    advice = replace(advice, frontier=frontier, critical_batch_size=critical_size(outlook))
    # Where the weights themselves do not get there at any size, their averages may.
    by = outlook if outlook.is_in_reach else forecast
    as_good = by.as_good(_in_reach(race, by))
    # Of the sizes that nothing sets apart from the best one, the smallest that was raced, or else the smallest: it
    # takes the least memory, and more of what is known about it was seen rather than worked out. Where examples are
    # given, time is what is left to choose by.
    raced = [size for size in as_good if size in race.lanes and race.lanes[size].best is not None]
    size = min(raced or as_good, key=lambda s: findings.times.seconds(s) / s if goal.kind == "examples" else s)
    row = next(row for row in frontier if row.batch_size == size)
    rate = row.learning_rate.value
    if row.examples.value is None or rate is None or _is_vague(row.seconds):
        share = float(np.isfinite(forecast.examples[outlook.sizes.index(size)]).mean())
        # Curves that have hardly begun do not say that a target is out of reach.
        if rate is not None and goal.kind == "target" and (share >= NOT_UNLIKELY or not race.is_well_seen()):
            return _without_an_end(findings, outlook, advice, row, rate)
        return replace(advice, conclusion=no_answer(findings, outlook))
    iterations = max(1, math.ceil(row.examples.value / size))
    own = findings.pace(size, rate)
    if own is not None and goal.kind == "seconds":
        # As many updates as a run of its own makes in that time.
        iterations = max(1, int((goal.value - own.start_seconds) / own.update_seconds))
    plan = _plan(goal, size, row, rate, iterations)
    seconds, score = predicted(forecast, size, float(iterations * size))
    if own is not None and goal.kind == "seconds":
        seconds = scaled(seconds, own.seconds(iterations) / goal.value)
    elif own is not None:
        seconds = scaled(seconds, own.seconds(iterations) / (iterations * findings.times.seconds(size)))
    present = _present(findings, outlook)  # trained without averaging
    advice = replace(
        advice,
        batch_size=size,
        micro_batch_size=row.micro_batch_size,
        accumulation_steps=row.accumulation_steps,
        learning_rate=rate,
        iterations=iterations,
        examples=plan.examples if goal.kind != "target" else iterations * size,
        predicted_seconds=seconds,
        predicted_cost=findings.costs.money(seconds),
        predicted_joules=findings.costs.joules(size, seconds),
        predicted_score=score,
        peak_memory_bytes=row.peak_memory_bytes,
        alternatives=tuple(other for other in as_good if other != size),
        present=present,
        race=_candidates(race, size),
        plan=plan,
        cost_seconds=race.clock.spent,
    )
    return replace(advice, conclusion=short_answer(advice), reasons=tuple(reasons(advice, findings, forecast)))


def _is_vague(seconds: Interval) -> bool:
    """Whether an interval has no upper end and a middle so far above its lower one that it says nothing either."""
    if seconds.value is None or not seconds.low:
        return False
    return seconds.high in (None, math.inf) and seconds.value > VAGUE * seconds.low


def _without_an_end(findings: Findings, outlook: Outlook, advice: Advice, row: FrontierRow, rate: float) -> Advice:
    """A setting for a target that may well be reached, though most draws do not say when."""
    size = row.batch_size
    advice = replace(
        advice,
        batch_size=size,
        micro_batch_size=row.micro_batch_size,
        accumulation_steps=row.accumulation_steps,
        learning_rate=rate,
        predicted_seconds=Interval.unresolved(LEVEL, low=row.seconds.low),
        predicted_score=row.score,
        peak_memory_bytes=row.peak_memory_bytes,
        present=_present(findings, outlook),
        race=_candidates(findings.race, size),
        plan=Plan(
            batch_size=size,
            learning_rate=rate,
            target=findings.goal.value,
            micro_batch_size=None if row.accumulation_steps == 1 else row.micro_batch_size,
            shape="constant",
            averaging=POWER,
        ),
    )
    return replace(advice, conclusion=without_an_end(advice, findings), reasons=few_reasons(advice, findings))


def _as_seen(findings: Findings, advice: Advice) -> Advice:
    """An answer without a law, where the target was reached before there was a curve to fit; or why there is none."""
    race, times = findings.race, findings.times
    there = {size: lane.reached for size, lane in race.lanes.items() if lane.reached is not None}
    if not there:
        return replace(advice, conclusion=no_answer(findings, None))
    rows = []
    for size, entrant in sorted(there.items()):
        # The first place where the plan would have ended, which may lie before the weights themselves got there.
        there_first = (p for p in entrant.planned if p.score >= findings.goal.value)
        point, step = next(there_first, entrant.points[-1]), times.interval(size)
        rows.append(
            FrontierRow(
                batch_size=size,
                micro_batch_size=times.micro_batch_size(size),
                accumulation_steps=times.accumulation_steps(size),
                learning_rate=Interval(entrant.learning_rate, None, None, LEVEL),
                step_seconds=step,
                examples_per_second=_per_second(size, step),
                peak_memory_bytes=_peak_bytes(findings.memory, times.micro_batch_size(size)),
                iterations=point.iterations,
                examples=Interval(point.examples, None, None, LEVEL),
                seconds=Interval(point.seconds, None, None, LEVEL),
                score=Interval(point.score, None, None, LEVEL),
                raced=True,
                forecast=(),
                cost=findings.costs.money(Interval(point.seconds, None, None, LEVEL)),
                joules=findings.costs.joules(size, Interval(point.seconds, None, None, LEVEL)),
            )
        )
    row = min(rows, key=lambda row: (row.seconds.value or math.inf) * findings.costs.weight(row.batch_size))
    iterations, rate = row.iterations or 1, row.learning_rate.value or 0.0
    advice = replace(
        advice,
        frontier=tuple(rows),
        batch_size=row.batch_size,
        micro_batch_size=row.micro_batch_size,
        accumulation_steps=row.accumulation_steps,
        learning_rate=rate,
        iterations=iterations,
        examples=iterations * row.batch_size,
        predicted_seconds=row.seconds,
        predicted_cost=row.cost,
        predicted_joules=row.joules,
        predicted_score=row.score,
        peak_memory_bytes=row.peak_memory_bytes,
        race=_candidates(race, row.batch_size),
        plan=_plan(findings.goal, row.batch_size, row, rate, iterations),
        reasons=("The target was reached within so few evaluations that there is no curve to tell more from.",),
    )
    return replace(advice, conclusion=short_answer(advice))


def _without_answer(findings: Findings) -> Advice:
    race, unresolved = findings.race, Interval.unresolved(LEVEL)
    return Advice(
        workload=findings.workload,
        goal=findings.goal,
        conclusion="",
        batch_size=None,
        micro_batch_size=None,
        accumulation_steps=None,
        learning_rate=None,
        iterations=None,
        examples=None,
        schedule=None,
        predicted_seconds=unresolved,
        predicted_score=unresolved,
        peak_memory_bytes=None,
        critical_batch_size=unresolved,
        noise_scale=unresolved if findings.noise is None else findings.noise.noise_scale,
        throughput_knee=findings.measured.law.knee,
        cost_seconds=race.clock.spent,
        spending=tuple(findings.spending),
        reasons=(),
        frontier=(),
        alternatives=(),
        present=None,
        race=_candidates(race, None),
        judged_by=AS_THEY_STAND if race.as_they_stand else BY_AVERAGE,
        devices=findings.devices,
        plan=None,
        warnings=tuple(findings.warnings),
        interrupted=findings.interrupted,
        provenance=findings.provenance,
        price_per_hour=findings.costs.price_per_hour,
        power=findings.costs.power,
        time_share=findings.costs.time_share,
    )


def _in_reach(race: Race, outlook: Outlook) -> list[int]:
    """Sizes that were raced, or lie next to one that was: rates and curves of others are but worked out."""
    raced = [size for size, lane in race.lanes.items() if lane.best is not None and lane.points >= LEAST_RACED_POINTS]
    raced = raced or [size for size, lane in race.lanes.items() if lane.best is not None]
    return [s for s in outlook.sizes if any(abs(math.log2(s / other)) <= 1 for other in raced)]


def _plan(goal: Goal, size: int, row: FrontierRow, rate: float, iterations: int) -> Plan:
    micro = None if row.accumulation_steps == 1 else row.micro_batch_size
    if goal.kind == "target":
        # Where nobody can say how long it may take, it is not given up early.
        high = row.examples.high or math.inf
        most = max(PATIENCE * iterations * size, 1.2 * min(high, MOST_PATIENCE * iterations * size))
        return Plan(
            batch_size=size,
            learning_rate=rate,
            examples=math.ceil(most / size) * size,
            target=goal.value,
            micro_batch_size=micro,
            shape="constant",
            averaging=POWER,
        )
    examples = int(goal.value) if goal.kind == "examples" else iterations * size
    return Plan(
        batch_size=min(size, examples),
        learning_rate=rate,
        examples=examples,
        micro_batch_size=micro,
        shape="constant",
        averaging=POWER,
    )


def _frontier(findings: Findings, outlook: Outlook, forecast: Outlook) -> tuple[FrontierRow, ...]:
    race, times, goal = findings.race, findings.times, findings.goal
    law = race.rates
    rows = []
    for i, size in enumerate(outlook.sizes):
        examples, seconds = interval(forecast.examples[i]), interval(forecast.seconds[i])
        step = times.interval(size)
        needed = examples.value
        ahead = needed if needed is not None else SOME_WAY * forecast.loss.reference_examples
        rows.append(
            FrontierRow(
                batch_size=size,
                micro_batch_size=times.micro_batch_size(size),
                accumulation_steps=times.accumulation_steps(size),
                # The best rate depends on how far the weights themselves have to go.
                learning_rate=law.predict(size, race.rate_examples(size), LEVEL),
                step_seconds=step,
                examples_per_second=_per_second(size, step),
                peak_memory_bytes=_peak_bytes(findings.memory, times.micro_batch_size(size)),
                iterations=None if needed is None else max(1, math.ceil(needed / size)),
                examples=examples,
                seconds=seconds,
                score=Interval(goal.value, None, None, LEVEL)
                if goal.kind == "target"
                else interval(forecast.scores[i]),
                raced=size in race.lanes and race.lanes[size].best is not None,
                forecast=forecast_points(forecast, size, ahead, times),
                cost=findings.costs.money(seconds),
                joules=findings.costs.joules(size, seconds),
            )
        )
    return tuple(rows)


def _per_second(size: int, step: Interval) -> Interval:
    slow, usual, fast = (size / (seconds or math.inf) for seconds in (step.high, step.value, step.low))
    return Interval(usual, slow, fast)


def _peak_bytes(memory: MemoryUse | None, micro_batch_size: int) -> int | None:
    if memory is None or memory.law is None:
        return None
    return round(predicted_bytes(memory.law, micro_batch_size))


def _present(findings: Findings, outlook: Outlook) -> PresentSetting | None:
    heat, goal = findings.race.present, findings.goal
    if heat is None or not heat.entrants[0].points:
        return None
    entrant, unresolved = heat.entrants[0], Interval.unresolved(LEVEL)
    present = PresentSetting(
        batch_size=heat.batch_size,
        learning_rate=entrant.learning_rate,
        seconds=unresolved,
        score=unresolved,
        sentence="Your present setting diverges.",
    )
    points = [p for p in entrant.points if p.examples > 0 and math.isfinite(p.loss)]
    if entrant.ended == "diverged" or not points:
        return present
    last = points[-1]
    best = max(p.score for p in points)
    sentence = f"After {words.seconds(last.seconds)} your present setting had reached {best:.4g} at best."
    present = replace(present, sentence=sentence)
    if entrant.ended == "reached":
        took, there = Interval(last.seconds, None, None, LEVEL), Interval(goal.value, None, None, LEVEL)
        return replace(present, seconds=took, score=there)
    values = tuple(-p.score for p in points)
    if len(points) < LEAST_POINTS or max(values) <= min(values):
        return present
    curve = Curve(heat.batch_size, tuple(float(p.examples) for p in points), values)
    law = fit_learning_curve([curve], shared=outlook.loss)
    per_example = heat.seconds_per_update / heat.batch_size
    if goal.kind == "target":
        seconds = interval(law.examples_to(heat.batch_size, -goal.value) * per_example)
        return replace(present, seconds=seconds, score=Interval(goal.value, None, None, LEVEL))
    ahead = goal.value if goal.kind == "examples" else goal.value / per_example
    return replace(
        present,
        seconds=Interval(ahead * per_example, None, None, LEVEL),
        score=interval(-law.values(heat.batch_size, float(ahead))),
    )


def _candidates(race: Race, advised: int | None) -> tuple[RaceCandidate, ...]:
    found: list[RaceCandidate] = []
    for heat in race.heats:
        if heat is race.present:
            continue
        lane = race.lanes.get(heat.batch_size)
        share = heat.seconds_spent / max(1, len(heat.entrants))
        for entrant in heat.entrants:
            reason = entrant.ended or ""
            ended: Literal["advised", "beaten", "diverged", "kept"]
            if lane is not None and entrant is lane.best and heat.batch_size == advised:
                ended, reason = "advised", "the fastest to the goal by all that was seen"
            elif reason == "diverged":
                ended, reason = "diverged", "its loss exploded"
            elif reason in ("", "reached", "finished", "interrupted"):
                ended, reason = "kept", {"reached": "reached the target"}.get(reason, "in the race to the end")
            else:
                ended = "beaten"
            found.append(
                RaceCandidate(
                    batch_size=heat.batch_size,
                    learning_rate=entrant.learning_rate,
                    seed=heat.seed,
                    points=tuple(_both_ways(entrant)),
                    ended=ended,
                    reason=reason,
                    seconds_spent=share,
                )
            )
    return tuple(sorted(found, key=lambda c: (c.batch_size, c.learning_rate, c.seed)))


def _both_ways(entrant: Entrant) -> list[RacePoint]:
    """How it stood with averaged weights, and as it was judged where that was otherwise."""
    judged = {} if entrant.planned is entrant.points else {p.examples: p for p in entrant.points}
    found = []
    for point in entrant.planned:
        own = judged.get(point.examples)
        if point.examples:
            found.append(point if own is None else replace(point, raw_loss=own.loss, raw_score=own.score))
    return found

"""Synthetic advice: batch sizes that follow the trade-off law on a machine with a knee, and whatever is awkward."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

from batchscope.records import (
    Advice,
    ForecastPoint,
    FrontierRow,
    Goal,
    GoalKind,
    Interval,
    Phase,
    Plan,
    PowerPoint,
    PowerUse,
    PresentSetting,
    RaceCandidate,
    RacePoint,
    Record,
    Schedule,
    Spending,
    WorkloadSummary,
)

SIZES = (8, 32, 64, 128, 256, 512, 2048)
TOP, CRITICAL = 0.93, 200.0


def step_seconds(batch_size: float) -> float:
    """An update's fixed cost, and what an example adds."""
    return 0.0011 + 1.1e-5 * batch_size


def score(batch_size: float, examples: float, handicap: float = 1.0) -> float:
    """Rises by a power law in examples, of which a large batch makes less, and a wrong rate less again."""
    worth = examples / (1 + batch_size / CRITICAL) / handicap
    return TOP - 0.6 / math.sqrt(1 + worth / 900)


def examples_to(batch_size: float, target: float, handicap: float = 1.0) -> float:
    """The inverse of :func:`score` in examples; infinite from the top on."""
    if target >= TOP:
        return math.inf
    needed: float = 900 * ((0.6 / (TOP - target)) ** 2 - 1) * (1 + batch_size / CRITICAL) * handicap
    return needed


def within(value: float, half: float, level: float = 0.9) -> Interval:
    """A value with an interval that is symmetric in its logarithm."""
    return Interval(value, value * math.exp(-half), value * math.exp(half), level)


def row(batch_size: int, goal: Goal, *, raced: bool, horizon: float, memory: bool, band: float) -> FrontierRow:
    """One batch size; its forecast ends after so many examples."""
    step = step_seconds(batch_size)
    known = within(step, 0.02, 0.95)
    speed = Interval(batch_size / step, batch_size / step / 1.02, batch_size / step * 1.02)
    forecast = []
    for k in range(24):
        seen = 2_000 * (horizon / 2_000) ** (k / 23)
        value, half = score(batch_size, seen), band * (0.002 + 0.008 * k / 23)
        forecast.append(
            ForecastPoint(
                round(seen), round(seen) / batch_size * step, Interval(value, value - half, value + half, 0.9)
            )
        )
    reached = Interval(goal.value, None, None, 0.9)
    if goal.kind == "target":
        needed = examples_to(batch_size, goal.value)
        if needed <= horizon:
            examples = within(needed, 0.16 * band)
            seconds = within(needed / batch_size * step, 0.17 * band)
        else:
            examples = Interval.unresolved(0.9, low=horizon)
            seconds = Interval.unresolved(0.9, low=horizon / batch_size * step)
    else:
        given = goal.value if goal.kind == "examples" else goal.value / step * batch_size
        examples = Interval(given, None, None, 0.9) if goal.kind == "examples" else within(given, 0.02)
        seconds = (
            within(given / batch_size * step, 0.02) if goal.kind == "examples" else Interval(given, None, None, 0.9)
        )
        value = score(batch_size, given)
        reached = Interval(value, value - 0.004 * band, value + 0.004 * band, 0.9)
    return FrontierRow(
        batch_size=batch_size,
        micro_batch_size=min(batch_size, 256),
        accumulation_steps=max(1, batch_size // 256),
        learning_rate=within(0.3 / (1 + CRITICAL / batch_size), 0.2),
        step_seconds=known,
        examples_per_second=speed,
        peak_memory_bytes=60_000_000 + 90_000 * batch_size if memory else None,
        iterations=None if examples.value is None else math.ceil(examples.value / batch_size),
        examples=examples,
        seconds=seconds,
        score=reached,
        raced=raced,
        forecast=tuple(forecast),
    )


def candidates(sizes: Sequence[int], best: int | None, seeds: int = 2) -> tuple[RaceCandidate, ...]:
    """Three rates at each batch size: half the best one, the best, and four times it, which diverges at large ones."""
    noise = random.Random(f"{sizes}")
    found = []
    for size in sizes:
        for k, factor in enumerate((0.5, 1.0, 4.0)):
            for seed in range(seeds):
                diverged = factor == 4.0 and size >= 256
                advised = size == best and factor == 1.0
                last = 3 if diverged else 12 if advised or factor == 1.0 else 6
                points = []
                for step in range(1, last + 1):
                    seen = max(1, 1_500 * step // size) * size
                    value = score(size, seen, (2.0, 1.0, 3.0)[k]) + noise.gauss(0, 0.004)
                    value = 0.1 if diverged and step == last else value
                    loss = math.nan if diverged and step == last else 2.3 * (1 - value)
                    updates = seen // size
                    points.append(RacePoint(seen, updates, updates * step_seconds(size), loss, value))
                found.append(
                    RaceCandidate(
                        batch_size=size,
                        learning_rate=factor * 0.3 / (1 + CRITICAL / size),
                        seed=seed,
                        points=tuple(points),
                        ended="diverged" if diverged else "advised" if advised else "kept" if last == 12 else "beaten",
                        reason="The loss is not a number after 17 updates."
                        if diverged
                        else ""
                        if last == 12
                        else f"Beaten by batch {best} on the virtual clock, after 9,000 examples, p = 0.01.",
                        seconds_spent=0.05 * last,
                    )
                )
    return tuple(found)


def advice(
    samples: ModuleType,
    kind: GoalKind = "target",
    value: float = 0.89,
    *,
    sizes: Sequence[int] = SIZES,
    name: str = "fashion-mlp",
    memory: bool = True,
    present: tuple[int, float] | None = (32, 0.002),
    horizon: float = 4e6,
    band: float = 1.0,
    best: int | None = 128,
    devices: int = 1,
) -> Advice:
    """An advice for a goal.

    Args:
        samples: The module of plain sample records, for its provenance.
        kind: The goal's kind.
        value: The goal.
        sizes: The frontier; the largest one is worked out, not trained.
        name: The workload's name.
        memory: Whether memory was measured.
        present: Batch size and rate of today; None: not judged.
        horizon: Examples at which forecasts end.
        band: How wide intervals are, 1 for usual ones.
        best: The batch size advised; None where no setting was found.
        devices: Devices that share each batch.
    """
    goal = Goal(kind, value)
    rows = tuple(
        row(size, goal, raced=size != max(sizes) or len(sizes) == 1, horizon=horizon, memory=memory, band=band)
        for size in sizes
    )
    own = next((found for found in rows if found.batch_size == best), None)
    unknown = Interval.unresolved(0.9)
    now = None
    if present is not None and own is not None:
        slow = 2.4 * (own.seconds.value or 40.0)
        now = PresentSetting(
            batch_size=present[0],
            learning_rate=present[1],
            seconds=Interval(value, None, None) if kind == "seconds" else within(slow, 0.2),
            score=replace(own.score, value=(own.score.value or 0.0) - 0.01, low=None, high=None),
            sentence=f"Your present setting, batch size {present[0]}, needs about 2.4 times as long.",
        )
    conclusion = (
        f"Use batch {best}, learning rate {own.learning_rate.value or 0:.2g}, {own.iterations:,} iterations. It is so."
        if own is not None and own.iterations is not None
        else "No setting was found: every rate diverged. Scale the inputs, or lower the rate."
    )
    plan = None
    if own is not None and own.learning_rate.value is not None:
        plan = Plan(
            batch_size=own.batch_size,
            learning_rate=own.learning_rate.value,
            examples=round(own.examples.value or horizon),
            target=value if kind == "target" else None,
            shape="linear",
        )
    return Advice(
        workload=WorkloadSummary(
            name=name,
            parameters=101_770,
            training_examples=60_000,
            validation_examples=10_000,
            optimizer="Adam",
            loss="cross_entropy",
            score="accuracy",
            batch_size=32 if present is None else present[0],
            learning_rate=0.002 if present is None else present[1],
        ),
        goal=goal,
        conclusion=conclusion,
        batch_size=None if own is None else own.batch_size,
        micro_batch_size=None if own is None else own.micro_batch_size,
        accumulation_steps=None if own is None else own.accumulation_steps,
        learning_rate=None if own is None else own.learning_rate.value,
        iterations=None if own is None else own.iterations,
        examples=None if own is None or own.examples.value is None else round(own.examples.value),
        schedule=None,
        predicted_seconds=unknown if own is None else own.seconds,
        predicted_score=unknown if own is None else own.score,
        peak_memory_bytes=None if own is None else own.peak_memory_bytes,
        critical_batch_size=within(CRITICAL, 0.3) if own is not None else unknown,
        noise_scale=within(150.0, 0.2) if own is not None else unknown,
        throughput_knee=within(100.0, 0.1),
        cost_seconds=11.4,
        spending=(
            Spending("step times", 2.2, 0),
            Spending("learning rates", 4.1, 80_000),
            Spending("race", 5.1, 96_000),
        ),
        reasons=(
            "Examples/s stop growing near 100; up to there a larger batch costs nothing.",
            "From batch 128 to 256 an update saves 28% of the updates and costs 56% more time.",
        )
        if own is not None
        else (),
        frontier=rows,
        alternatives=tuple(size for size in (64, 256) if size in sizes and own is not None),
        present=now,
        race=candidates(sizes[:-1] if len(sizes) > 1 else sizes, best),
        judged_by="by the validation loss after a linear cooldown",
        devices=devices,
        plan=plan,
        warnings=(),
        interrupted=False,
        provenance=samples.PROVENANCE,
    )


def no_answer(record: Advice) -> Advice:
    """What is left where every candidate diverged at once."""
    lost = tuple(replace(each, points=each.points[:1], ended="diverged", reason="At once.") for each in record.race)
    return replace(record, frontier=(), race=lost, present=None, alternatives=())


def hostile(record: Advice, text: str) -> Advice:
    """The same with a stranger's words wherever there are words."""
    race = tuple(replace(each, reason=text) for each in record.race)
    work = replace(record.workload, name=text, score=text, optimizer=text, loss=text)
    present = None if record.present is None else replace(record.present, sentence=text)
    return replace(
        record,
        workload=work,
        conclusion=f"Use {text}.",
        reasons=(text, text),
        race=race,
        present=present,
        judged_by=text,
        warnings=(text,),
        spending=(Spending(text, 1.0, 1),),
    )


def priced(record: Advice) -> Advice:
    """The same with a price and a power that rises with the batch size."""

    def scaled(interval: Interval, factor: float) -> Interval:
        value, low, high = (None if x is None else factor * x for x in (interval.value, interval.low, interval.high))
        return Interval(value, low, high, interval.level, interval.resolved)

    power = PowerUse(
        "NVML",
        (PowerPoint(8, Interval(120.0, 115.0, 130.0)), PowerPoint(2048, Interval(410.0, 400.0, 420.0))),
        700.0,
        "The GPU's board alone.",
    )
    frontier = tuple(
        replace(
            found,
            cost=scaled(found.seconds, 2.5 / 3600),
            joules=scaled(found.seconds, power.watts(found.batch_size).value or 0.0),
        )
        for found in record.frontier
    )
    return replace(record, frontier=frontier, price_per_hour=2.5, power=power, time_share=0.5)


def every(samples: ModuleType, hostile_text: str) -> dict[str, Record]:
    """Advice, plain and awkward, by name."""
    plain = advice(samples)
    vague = advice(samples, band=12.0, memory=False)
    growing = Schedule((Phase(0, 128), Phase(51_200, 512)))
    return {
        "advice": plain,
        "advice examples": advice(samples, "examples", 600_000.0, best=8),
        "advice seconds": advice(samples, "seconds", 30.0, present=(128, 0.1170731707317073)),
        "advice one row": advice(samples, sizes=(128,)),
        "advice far": advice(samples, horizon=60_000.0),
        "advice vague": replace(
            vague, critical_batch_size=Interval.unresolved(low=900.0), throughput_knee=Interval.unresolved()
        ),
        "advice alone": advice(samples, memory=False, present=None, sizes=(64, 128)),
        "advice loss": advice(samples, "target", -0.35, best=None),
        "advice none": no_answer(advice(samples, best=None)),
        "advice unforecast": replace(
            plain, frontier=tuple(replace(found, forecast=()) for found in plain.frontier), race=()
        ),
        "advice interrupted": replace(plain, interrupted=True, devices=4, schedule=growing),
        "advice hostile": hostile(plain, hostile_text),
        "advice priced": priced(plain),
        "advice priced far": priced(advice(samples, horizon=60_000.0)),
        "advice long name": advice(samples, name="experiments.vision.resnets.wide_resnet_" * 8),
    }

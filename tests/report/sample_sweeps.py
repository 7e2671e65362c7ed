"""Synthetic sweeps: trials that follow a law with noise, the real fits through them, and whatever is awkward."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from batchscope.fit import fit_tradeoff
from batchscope.fit.intervals import mean_interval, ratio_interval
from batchscope.fit.rate_law import Valley, fit_rate_law, rate_point
from batchscope.fit.time_to_target import time_to_target
from batchscope.records import (
    CurvePoint,
    Interval,
    RateLaw,
    Record,
    StepTimes,
    Sweep,
    SweepBest,
    SweepTrial,
    TradeoffLaw,
    TrialOutcome,
    WorkloadSummary,
)

SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


def best_rate(batch_size: float) -> float:
    """Linear in small batches, saturating in large ones."""
    return 0.6 / (1 + 180 / batch_size)


def trial(
    noise: random.Random,
    batch_size: int,
    rate: float,
    seed: int,
    *,
    target: float | None,
    budget: int,
    least: float,
    critical: float,
    evaluations: int,
) -> SweepTrial:
    """A run whose cost rises with the square of log ε away from the best, and that diverges at four times it."""
    off = math.log(rate / best_rate(batch_size))
    needs = least * (1 + batch_size / critical) * math.exp(0.35 * off**2 + noise.gauss(0, 0.04))
    outcome: TrialOutcome = "finished" if target is None else "reached"
    examples = budget if target is None else math.ceil(needs / 500) * 500
    if off > 1.5:
        outcome, examples = "diverged", 64 * batch_size
    elif target is not None and examples > budget:
        outcome, examples = "finished", budget
    elif abs(off) > 1.2:
        outcome, examples = "pruned", round(0.6 * examples)
    examples = max(batch_size, examples // batch_size * batch_size)
    top = 0.97 if target is None else target
    curve = []
    for i in range(1, evaluations + 1):
        seen = max(batch_size, examples * i // evaluations // batch_size * batch_size)
        score = (top if outcome != "diverged" else 0.2) * (1 - math.exp(-4 * seen / needs)) / (1 - math.exp(-4))
        score = min(score, 1.0) + noise.gauss(0, 0.001)
        loss = 2.3 * math.exp(-3 * score)
        updates = seen // batch_size
        curve.append(CurvePoint(seen, updates, updates * 3e-4, rate, loss * 0.9, loss, score))
    scores = [point.score for point in curve]
    return SweepTrial(
        batch_size=batch_size,
        learning_rate=rate,
        seed=seed,
        outcome=outcome,
        examples_to_target=examples if outcome == "reached" else None,
        examples=examples,
        iterations=examples // batch_size,
        best_score=None if outcome == "diverged" else max(scores),
        best_loss=None if outcome == "diverged" else min(point.validation_loss for point in curve),
        final_score=scores[-1] if outcome in ("reached", "finished") else None,
        step_seconds=None,
        sweep_seconds=0.02 + examples * 2e-6,
        stack_size=8 if batch_size <= 128 else None,
        message="loss is not finite" if outcome == "diverged" else None,
        curve=tuple(curve),
    )


def best_of(size: int, trials: Sequence[SweepTrial], target: float | None, step: float | None) -> SweepBest:
    own = [run for run in trials if run.batch_size == size]
    rates = sorted({run.learning_rate for run in own})
    count: dict[float, list[SweepTrial]] = {}
    for run in own:
        if run.outcome in ("reached", "finished"):
            count.setdefault(run.learning_rate, []).append(run)

    def cost(rate: float) -> float:
        if target is None:
            return -sum(run.best_score or 0.0 for run in count[rate]) / len(count[rate])
        return sum(math.log(run.examples_to_target or 4.0 * run.examples) for run in count[rate]) / len(count[rate])

    rate = min(count, key=cost) if count else None
    runs = count[rate] if rate is not None else []
    reached = sum(run.outcome == "reached" for run in runs)
    examples = Interval.unresolved()
    if runs and target is not None:
        examples = ratio_interval([math.log(run.examples_to_target or run.examples) for run in runs])
        if not reached:
            examples = Interval.unresolved(low=examples.value)
        elif reached < len(runs):
            examples = replace(examples, high=math.inf)

    def scaled(found: Interval, by: float) -> Interval:
        value, low, high = (None if end is None else end * by for end in (found.value, found.low, found.high))
        return replace(found, value=value, low=low, high=high)

    updates = scaled(examples, 1 / size)
    return SweepBest(
        batch_size=size,
        learning_rate=rate,
        edge=None if rate is None or rates[0] < rate < rates[-1] else "highest" if rate == rates[-1] else "lowest",
        rates=tuple(rates),
        runs=len(runs),
        reached=reached,
        examples_to_target=examples,
        updates_to_target=updates,
        score=mean_interval([run.best_score for run in runs if run.best_score is not None]),
        update_seconds=step,
        seconds_to_target=Interval.unresolved() if step is None else scaled(updates, step),
        examples_spent=sum(run.examples for run in own),
        trials=len(own),
        pruned=sum(run.outcome == "pruned" for run in own),
        trained_as="replicas: 3.1 times as fast" if size <= 128 else "separate runs: 0.9 times as fast as replicas",
    )


def law_of(best: Sequence[SweepBest], trials: Sequence[SweepTrial]) -> TradeoffLaw | None:
    table: dict[int, list[SweepTrial]] = {}
    for line in best:
        runs = [t for t in trials if (t.batch_size, t.learning_rate) == (line.batch_size, line.learning_rate)]
        if runs := [run for run in runs if run.outcome in ("reached", "finished")]:
            table[line.batch_size] = runs
    if not any(run.examples_to_target for runs in table.values() for run in runs):
        return None
    return fit_tradeoff(
        list(table),
        [[float(run.examples_to_target or math.inf) for run in runs] for runs in table.values()],
        spent=[[float(run.examples) for run in runs] for runs in table.values()],
    )


def sweep(
    probes: ModuleType,
    sizes: Sequence[int] = SIZES,
    *,
    rates: int = 7,
    seeds: int = 3,
    target: float | None = 0.95,
    budget: int = 400_000,
    least: float = 30_000.0,
    critical: float = 110.0,
    timed: bool = True,
    shift: float = 1.0,
    name: str = "digits",
    evaluations: int = 6,
    interrupted: bool = False,
) -> Sweep:
    """A sweep of rates a factor √2 or 2 apart around the best one times ``shift``."""
    noise = random.Random(f"{name}/{len(sizes)}/{rates}")
    grid = 2.0 if rates < 12 else math.sqrt(2)
    trials = []
    for size in sizes:
        start = 0.05 * 2 ** round(math.log2(best_rate(size) * shift / 0.05))
        tried = [start * grid ** (k - rates // 2) for k in range(rates)]
        trials += [
            trial(
                noise,
                size,
                rate,
                seed,
                target=target,
                budget=budget,
                least=least,
                critical=critical,
                evaluations=evaluations,
            )
            for rate in tried
            for seed in range(seeds if abs(math.log(rate / start)) < 1 else 1)
        ]
    steps: StepTimes | None = probes.step_times(tuple(sizes), workload=name) if timed else None
    alone = {} if steps is None else {point.batch_size: point.step_seconds.value for point in steps.points}
    trials = [replace(t, step_seconds=t.iterations * (alone[t.batch_size] or 0.0) if alone else None) for t in trials]
    best = [best_of(size, trials, target, alone.get(size)) for size in sizes]
    law = None if target is None else law_of(best, trials)
    return Sweep(
        workload=WorkloadSummary(
            name=name,
            parameters=4_810,
            training_examples=1_437,
            validation_examples=360,
            optimizer="SGD",
            loss="cross_entropy",
            score="accuracy",
            batch_size=32,
            learning_rate=0.05,
        ),
        target=target,
        budget_examples=budget,
        shape="linear" if target is None else "constant",
        order="shuffled",
        seeds=tuple(range(seeds)),
        evaluate_every_examples=500,
        searched=True,
        pruning=True,
        engine="local",
        processes=2,
        trials=tuple(trials),
        best=tuple(best),
        law=law,
        rate_law=rate_law_of(best, trials, target),
        time=None if law is None or steps is None else time_to_target(law, steps),
        step_times=steps,
        examples_spent=sum(run.examples for run in trials),
        total_seconds=141.0,
        conclusion="Of the batch sizes tried, 4 reaches a score of 0.95 with the fewest examples. More is said here."
        if law is not None
        else "No trial reached a score of 0.95."
        if target is not None
        else "Batch 64 has the highest score.",
        interrupted=interrupted,
        error=None,
        provenance=probes.CPU,
    )


def rate_law_of(best: Sequence[SweepBest], trials: Sequence[SweepTrial], target: float | None) -> RateLaw | None:
    """Through the valleys: mean log examples, or minus the score, at each rate; what was pruned is a bound."""
    points = []
    for line in best:
        costs, bounds = [], []
        for rate in line.rates:
            own = [t for t in trials if (t.batch_size, t.learning_rate) == (line.batch_size, rate)]
            sound = [t for t in own if t.outcome in ("reached", "finished", "pruned")]
            each = [-(t.best_score or 0.0) if target is None else math.log(t.examples) for t in sound]
            costs.append(sum(each) / len(each) if each else math.inf)
            bounds.append(any(t.outcome == "pruned" for t in sound))
        if line.learning_rate is not None:
            margin = 0.08 if target is not None else 0.002
            points.append(
                rate_point(line.batch_size, Valley(line.rates, tuple(costs), tuple(bounds), margin), edge=line.edge)
            )
    return fit_rate_law(points) if len(points) >= 3 else None


def diverged(record: Sweep) -> Sweep:
    """The same where every trial diverged, so that nothing has a best rate."""
    trials = tuple(
        replace(t, outcome="diverged", examples_to_target=None, best_score=None, best_loss=None, final_score=None)
        for t in record.trials
    )
    best = tuple(best_of(line.batch_size, trials, record.target, line.update_seconds) for line in record.best)
    return replace(record, trials=trials, best=best, law=None, rate_law=None, time=None)


def failing(record: Sweep) -> Sweep:
    """The same with trials of the largest batch size that ended without a result, each in its way."""
    ways: tuple[TrialOutcome, ...] = ("out of memory", "crashed", "timed out")
    reasons = ("tried to allocate 3.2 GiB", "the process was killed by signal 11", "nothing was heard for 60 s")
    largest = record.best[-1].batch_size
    trials = tuple(
        replace(t, outcome=ways[t.seed % 3], message=reasons[t.seed % 3], examples_to_target=None, best_score=None)
        if t.batch_size == largest and t.outcome != "reached"
        else t
        for t in record.trials
    )
    return replace(record, trials=trials)


def hostile(record: Sweep, text: str) -> Sweep:
    trials = tuple(replace(trial, outcome="crashed", message=text) for trial in record.trials[:2])
    work = replace(record.workload, name=text, score=text, optimizer=text)
    return replace(record, workload=work, conclusion=f"Take {text}.", trials=(*trials, *record.trials[2:]))


def laws() -> dict[str, TradeoffLaw]:
    """Trade-off laws of tables, plain and awkward."""
    noise = random.Random("laws")

    def needs(size: int, critical: float, spread: float = 0.05) -> list[float]:
        return [30_000 * (1 + size / critical) * math.exp(noise.gauss(0, spread)) for _ in range(3)]

    perfect = [needs(size, 1e7) for size in SIZES]
    some = [needs(size, 100) for size in SIZES]
    some[-2][0] = math.inf
    some[-1] = [math.inf] * 3
    return {
        "law": fit_tradeoff(SIZES, [needs(size, 100) for size in SIZES]),
        "law missed": fit_tradeoff(SIZES, some, spent=250_000),
        "law missed unknown": fit_tradeoff(SIZES, some),
        "law one branch": fit_tradeoff(SIZES, perfect),
        "law astray": fit_tradeoff(SIZES, [needs(size, 100, 1.0) for size in SIZES]),
        "law general": fit_tradeoff(SIZES, [[30_000 * (1 + (size / 60) ** 0.55)] for size in SIZES]),
        "law two": fit_tradeoff([8, 64], [1e4, 1.4e4]),
        "law one": fit_tradeoff([8], [1e4]),
        "law nothing": fit_tradeoff([8, 64], [math.inf, math.inf]),
    }


def every(probes: ModuleType) -> dict[str, Any]:
    """Sweeps and laws, plain and awkward, by name."""
    plain = sweep(probes)
    nothing = sweep(probes, SIZES[:4], budget=20_000)
    found: dict[str, Record] = {
        "sweep": plain,
        "sweep scores": sweep(probes, target=None),
        "sweep some": sweep(probes, budget=120_000),
        "sweep nothing": nothing,
        "sweep one size": sweep(probes, (32,)),
        "sweep two sizes": sweep(probes, (32, 256)),
        "sweep one size scores": sweep(probes, (32,), target=None, rates=1),
        "sweep edge": sweep(probes, SIZES[:5], rates=3, shift=0.25),
        "sweep diverged": diverged(sweep(probes, SIZES[:3])),
        "sweep failing": failing(sweep(probes, budget=120_000)),
        "sweep untimed": sweep(probes, timed=False),
        "sweep single seed": sweep(probes, seeds=1),
        "sweep interrupted": replace(sweep(probes, SIZES[:3]), interrupted=True),
        "sweep stopped": replace(sweep(probes, SIZES[:3]), error="StorageError: the disk is full"),
        "sweep empty": replace(plain, trials=(), best=(), law=None, rate_law=None, time=None, interrupted=True),
        "sweep one branch": sweep(probes, critical=1e6),
        "sweep hostile": hostile(sweep(probes, SIZES[:4]), probes.HOSTILE),
        "sweep long name": sweep(probes, SIZES[:4], name="experiments.vision.resnets.wide_resnet_" * 8),
        "sweep large": sweep(probes, tuple(2**k for k in range(2, 14)), rates=20, seeds=5, evaluations=12),
    }
    return found | laws()

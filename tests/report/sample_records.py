"""Synthetic records that look like measured ones: seeded, quick to make, with every awkward case."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

from batchscope.records import (
    Comparison,
    ComparisonRow,
    CurvePoint,
    Difference,
    Interval,
    Plan,
    Provenance,
    RateSearch,
    RateTrial,
    TrainResult,
    WorkloadSummary,
)

STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95% quantiles by degrees of freedom."""

PROVENANCE = Provenance(
    created="2025-03-14T09:26:53+00:00",
    batchscope="0.1.0",
    python="3.12.4",
    torch="2.7.1",
    numpy="2.2.6",
    platform="Linux-6.1-x86_64",
    processor="AMD EPYC 7763",
    cores=4,
    threads=4,
    memory_bytes=16 * 2**30,
    device="cpu",
    dtype="float32",
    seed=7,
    workload_fingerprint="5f1c0c9d2ab4",
)


def train_result(
    *,
    batch_size: int = 32,
    budget: int = 32_768,
    learning_rate: float = 0.1,
    seed: int = 0,
    outcome: str = "finished",
    workload: str = "digits",
    points: int = 32,
    memory: int | None = 3_500_000,
) -> TrainResult:
    """A run whose score rises with updates and pays per update and per example, as small models do."""
    noise = random.Random(f"{batch_size}/{seed}/{outcome}")
    iterations = budget // batch_size
    step = (0.00031 + 4.2e-6 * batch_size) * noise.uniform(0.97, 1.06)
    top = 0.978 - 0.0035 * abs(math.log2(batch_size / 24)) + noise.gauss(0, 0.0022)
    stop = {"diverged": 0.31, "out of memory": 0.0, "interrupted": 0.55}.get(outcome, 1.0)
    curve: list[CurvePoint] = []
    for k in range(points + 1):
        updates = round(iterations * k / points)
        if k / points > stop or (curve and updates == curve[-1].iterations):
            continue
        progress = updates * batch_size**0.75 / 520
        rise = 1 - math.exp(-(progress**0.8)) if progress else 0.0
        score = 0.1 + (top - 0.1) * rise + (noise.gauss(0, 0.006) * (1.15 - rise) if k else 0.0)
        loss = 2.3 * (1 - rise) + (1 - top) * 3.1 + noise.gauss(0, 0.004)
        if outcome == "diverged" and k / points > 0.2:
            score, loss = 0.1, 10.0 ** (k - 4)
        curve.append(
            CurvePoint(
                examples=updates * batch_size,
                iterations=updates,
                seconds=updates * step,
                learning_rate=learning_rate,
                training_loss=None if k == 0 else max(loss * 0.82 - 0.04, 0.0008),
                validation_loss=loss,
                score=score,
            )
        )
    last = curve[-1]
    ended = outcome in ("reached", "finished", "stopped early")
    best = max(curve, key=lambda point: point.score)
    training_score = min(last.score + 0.017 + 0.004 * math.log2(batch_size), 1.0)
    return TrainResult(
        workload=workload,
        plan=Plan(batch_size=batch_size, learning_rate=learning_rate, iterations=iterations),
        seed=seed,
        outcome=outcome,  # type: ignore[arg-type]
        reached=outcome == "reached",
        examples=last.examples,
        iterations=last.iterations,
        data_seconds=last.seconds * 0.08,
        compute_seconds=last.seconds * 0.92,
        step_seconds=last.seconds,
        evaluation_seconds=0.0021 * len(curve),
        total_seconds=last.seconds + 0.0021 * len(curve) + 0.04,
        best_score=best.score,
        best_loss=min(point.validation_loss for point in curve),
        best_examples=best.examples,
        final_score=last.score if ended else None,
        final_loss=last.validation_loss if ended else None,
        training_score=training_score if ended else None,
        training_loss=last.training_loss if ended else None,
        generalisation_gap=training_score - last.score if ended else None,
        peak_memory_bytes=None if memory is None else memory + 9_000 * batch_size,
        diverged_at_iteration=last.iterations if outcome == "diverged" else None,
        message="loss is not finite" if outcome == "diverged" else None,
        curve=tuple(curve),
        provenance=replace(PROVENANCE, seed=seed),
    )


def interval(values: list[float]) -> Interval:
    """Mean with a 95% interval; no ends for one value, unresolved for none."""
    if not values:
        return Interval.unresolved()
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None)
    half = STUDENT_T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def comparison(
    sizes: tuple[int, ...] = (8, 32, 128, 512),
    *,
    seeds: int = 5,
    budget: int = 32_768,
    name: str = "digits",
    search: bool = True,
    diverged: dict[int, int] | None = None,
    memory: int | None = 3_500_000,
    interrupted: bool = False,
) -> Comparison:
    """A comparison of ``sizes``; ``diverged`` says how many runs of which batch size diverge."""
    diverged = diverged or {}
    runs: list[TrainResult] = []
    rows: list[ComparisonRow] = []
    searches: list[RateSearch] = []
    common: float | None = None
    for size in sizes:
        rate = 0.02 * math.sqrt(size / 8) if search else 0.1
        mine = [
            train_result(
                batch_size=size,
                budget=budget,
                learning_rate=rate,
                seed=seed,
                workload=name,
                memory=memory,
                outcome="diverged" if seed < diverged.get(size, 0) else "finished",
            )
            for seed in range(seeds if not (interrupted and size == sizes[-1]) else seeds // 2)
        ]
        runs += mine
        if search:
            searches.append(_search(size, rate, at_edge=size == max(sizes)))
    in_order = [run for run in runs if run.ended_in_order]
    if in_order:
        common = min(run.best_score for run in in_order if run.best_score is not None)
    for size in sizes:
        rows.append(_row(size, budget, [r for r in runs if r.plan.batch_size == size], common, search))
    return Comparison(
        workload=WorkloadSummary(
            name=name,
            parameters=9_610,
            training_examples=1_437,
            validation_examples=360,
            optimizer="SGD",
            loss="cross_entropy",
            score="accuracy",
            batch_size=64,
            learning_rate=0.1,
        ),
        learning_rate="search" if search else "fixed",
        shape="constant",
        order="shuffled",
        seeds=tuple(range(seeds)),
        evaluate_every_examples=budget // 32,
        rows=tuple(rows),
        differences=tuple(_difference(a, b, sizes, runs) for a in range(len(sizes)) for b in range(a + 1, len(sizes))),
        common_score=common,
        conclusion=(
            f"Take batch size {sizes[min(1, len(sizes) - 1)]} for "
            f"{budget // sizes[min(1, len(sizes) - 1)]:,} iterations: no other row reaches a higher accuracy that "
            "this many seeds can tell apart, and it trains 3.1 times faster than batch size 8."
        ),
        searches=tuple(searches),
        runs=tuple(runs),
        total_seconds=sum(run.total_seconds for run in runs) + sum(s.seconds for s in searches),
        interrupted=interrupted,
        provenance=PROVENANCE,
    )


def awkward() -> dict[str, Comparison]:
    """The records that break a careless page, by name."""
    hostile = "<script>alert(1)</script></script><!-- & \"quoted\" 'single' \u2028 {{ 7*7 }} [bold]x[/bold] \x1b[2J\x07"
    lonely = comparison((32,), seeds=1, search=False)
    nothing = comparison((64, 256), seeds=2, diverged={64: 2, 256: 2})
    return {
        "diverged": comparison(diverged={512: 2, 128: 5}),
        "single seed": comparison(seeds=1),
        "one row": lonely,
        "no run finished": replace(nothing, differences=(), conclusion="No run finished: nothing can be said."),
        "nothing ran": replace(
            comparison((64, 256), search=False, diverged={64: 5, 256: 5}), runs=(), differences=(), interrupted=True
        ),
        "interrupted": comparison(interrupted=True),
        "null memory": comparison(memory=None, search=False),
        "hostile": replace(comparison(name=hostile), conclusion=f"Take {hostile}."),
        "long name": comparison(name="experiments.vision.resnets.wide_resnet_" * 8),
        "twelve rows": comparison(tuple(2**k for k in range(1, 13))),
    }


def _search(size: int, rate: float, *, at_edge: bool) -> RateSearch:
    factors = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0) if at_edge else (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
    trials = []
    for factor in factors:
        lost = factor >= 8
        loss = math.inf if lost else 0.21 + 0.11 * math.log2(factor) ** 2 + (9.0 if factor == 4 else 0.0)
        trials.append(
            RateTrial(rate * factor, loss, None if lost else 1 - loss / 3, "diverged" if lost else "finished")
        )
    return RateSearch(
        size,
        4_096,
        tuple(trials),
        rate,
        at_edge,
        4_096 * len(trials),
        0.9 / math.sqrt(size) * len(trials),
        seeds=(11, 12),
        interpolated=size == 8,
        curve=tuple(trials),
    )


def _row(size: int, budget: int, runs: list[TrainResult], common: float | None, search: bool) -> ComparisonRow:
    ended = [run for run in runs if run.ended_in_order]

    def of(field: str) -> Interval:
        return interval([getattr(run, field) for run in ended])

    times = sorted(run.step_seconds for run in ended)
    firsts = [
        next(p for p in run.curve if p.score >= common)
        for run in ended
        if common is not None and (run.best_score or 0) >= common
    ]
    memory = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    return ComparisonRow(
        batch_size=size,
        iterations=budget // size,
        examples=budget,
        learning_rate=runs[0].plan.learning_rate if runs else 0.1,
        finished=len(ended),
        diverged=sum(run.outcome == "diverged" for run in runs),
        failed=sum(run.outcome == "out of memory" for run in runs),
        score=of("final_score"),
        best_score=of("best_score"),
        loss=of("final_loss"),
        best_loss=of("best_loss"),
        training_score=of("training_score"),
        training_loss=of("training_loss"),
        generalisation_gap=of("generalisation_gap"),
        step_seconds=statistics.median(times) if times else None,
        step_seconds_low=times[0] if times else None,
        step_seconds_high=times[-1] if times else None,
        data_seconds=statistics.median(run.data_seconds for run in ended) if ended else None,
        examples_per_second=budget / statistics.median(times) if times else None,
        peak_memory_bytes=max(memory) if memory else None,
        common_score_reached=len(firsts),
        examples_to_common_score=statistics.median(p.examples for p in firsts) if firsts else None,
        seconds_to_common_score=statistics.median(p.seconds for p in firsts) if firsts else None,
        search_seconds=0.9 / math.sqrt(size) * 7 if search else 0.0,
        search_examples=4_096 * 7 if search else 0,
    )


def _difference(a: int, b: int, sizes: tuple[int, ...], runs: list[TrainResult]) -> Difference:
    def by_seed(size: int) -> dict[int, TrainResult]:
        return {r.seed: r for r in runs if r.plan.batch_size == size and r.ended_in_order}

    first, second = by_seed(sizes[a]), by_seed(sizes[b])
    shared = sorted(set(first) & set(second))
    scores = interval([(first[s].final_score or 0) - (second[s].final_score or 0) for s in shared])
    losses = interval([(first[s].final_loss or 0) - (second[s].final_loss or 0) for s in shared])
    logs = interval([math.log(first[s].step_seconds / second[s].step_seconds) for s in shared])
    ends = [None if x is None else math.exp(x) for x in (logs.value, logs.low, logs.high)]
    ratio = Interval(ends[0], ends[1], ends[2], resolved=logs.resolved)
    enough = len(shared) > 1
    return Difference(
        first=a,
        second=b,
        seeds=len(shared),
        score=scores,
        loss=losses,
        seconds_ratio=ratio,
        score_p_value=(0.0042 if scores.excludes(0) else 0.31) if enough else None,
        seconds_p_value=(2.3e-6 if ratio.excludes(1) else 0.4) if enough else None,
        score_told_apart=scores.excludes(0),
        seconds_told_apart=ratio.excludes(1),
    )

"""Synthetic probes that look like measured ones: three networks, every part alone, and whatever is awkward."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Literal

from batchscope.records import (
    Branch,
    BranchedRuns,
    GradientError,
    Interval,
    Limits,
    MemoryLaw,
    MemoryPoint,
    MemoryUse,
    NoiseMeasurement,
    NoisePoint,
    Probe,
    Provenance,
    RangePoint,
    RangeTest,
    Reading,
    Record,
    Replanned,
    StepTimeLaw,
    StepTimePoint,
    StepTimes,
    WorkloadSummary,
)

CPU = Provenance(
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
GPU = replace(CPU, device="cuda (NVIDIA H100 80GB HBM3)", memory_bytes=512 * 2**30, cores=26, threads=26)
HOSTILE = "<script>alert(1)</script></script><!-- & \"quoted\" 'single' \u2028 {{ 7*7 }} [bold]x[/bold] \x1b[2J\x07"


def around(value: float, spread: float, skew: float = 1.0) -> Interval:
    """A value with an interval that is symmetric in its logarithm where ``skew`` is one."""
    return Interval(value, value * math.exp(-spread), value * math.exp(spread * skew))


def step_times(
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    *,
    fixed: float = 0.00031,
    each: float = 8.1e-6,
    data: tuple[float, float] = (2.4e-5, 4.1e-7),
    bend: int | None = None,
    reading: Reading = "between updates",
    workload: str = "digits",
    provenance: Provenance = CPU,
) -> StepTimes:
    """Times that follow the law with 2% of noise; ``data`` is what getting a batch costs, once and per example."""
    noise = random.Random(f"{workload}/time")
    below = each if bend is None else each * 0.35
    at_bend = fixed + below * (bend or 0)
    most = 1 / each
    half = at_bend / each - (bend or 0)
    law = StepTimeLaw(
        fixed_seconds=around(fixed, 0.06),
        seconds_per_example=around(each, 0.03),
        bend=bend,
        seconds_per_example_below=None if bend is None else below,
        knee=around(half if half > 0 else fixed / each, 0.11),
        relative_error=0.018,
        bends_at=None if bend is None else "dearer",
    )
    points = []
    for size in sizes:
        predicted = law.seconds(size) or 0.0
        compute = predicted * math.exp(noise.gauss(0, 0.018))
        reads = (data[0] + data[1] * size) * math.exp(noise.gauss(0, 0.04))
        step = compute + reads if reading == "between updates" else max(compute, reads)
        points.append(
            StepTimePoint(
                batch_size=size,
                compute_seconds=around(compute, 0.03),
                data_seconds=around(reads, 0.09),
                step_seconds=around(step, 0.03),
                examples_per_second=around(size / step, 0.03),
                predicted_seconds=predicted,
                rounds=7,
                updates=7 * max(3, 400 // size),
            )
        )
    rates = {point.batch_size: point.examples_per_second.value or 0.0 for point in points}
    fastest = max(rates, key=lambda size: rates[size])
    bound = [
        p.batch_size
        for p in points
        if p.data_seconds.value and p.compute_seconds.value and p.data_seconds.value > p.compute_seconds.value
    ]
    assert most >= 0.8 * rates[fastest]
    return StepTimes(
        workload=workload,
        points=tuple(points),
        law=law,
        reading=reading,
        workers=0 if reading == "between updates" else 4,
        loader_bound_from=min(bound, default=None),
        most_examples_per_second=rates[fastest],
        fastest_batch_size=fastest,
        seconds=3.2,
        provenance=provenance,
    )


def memory_use(
    sizes: tuple[int, ...] = (1, 8, 64, 256, 1024),
    *,
    state: float = 2.6e6,
    each: float = 9.3e3,
    limit: int | None = 16 * 2**30,
    training_examples: int = 1_437,
    workload: str = "digits",
    provenance: Provenance = CPU,
) -> MemoryUse:
    noise = random.Random(f"{workload}/memory")
    points = [
        MemoryPoint(size, round((state + each * size) * math.exp(noise.gauss(0, 0.012))), state + each * size)
        for size in sizes
    ]
    room = None if limit is None else int((0.9 * limit - state) / each)
    gpu = provenance.device != "cpu"
    return MemoryUse(
        workload=workload,
        meter="CUDA allocator" if gpu else "resident memory of a child process",
        points=tuple(points),
        law=MemoryLaw(around(state, 0.02), around(each, 0.015), 0.011) if len(sizes) > 1 else None,
        parameter_bytes=round(state / 5),
        optimizer_bytes=round(state / 5),
        limit_bytes=limit,
        limit_source="unknown" if limit is None else "CUDA device" if gpu else "control group",
        margin=0.1,
        largest_executed=sizes[-1],
        largest_predicted=None if room is None or len(sizes) < 2 else min(room, training_examples),
        holds_all=room is not None and room >= training_examples,
        seconds=4.1,
        provenance=provenance,
    )


def noise_points(
    scales: tuple[Interval, ...],
    *,
    preconditioned: tuple[Interval | None, ...] = (),
    first: int = 0,
    step: int = 4_096,
    batch_size: int = 64,
) -> tuple[NoisePoint, ...]:
    """A point per scale, at examples 0, step, 2·step, 4·step …"""
    found = []
    for i, scale in enumerate(scales):
        seen = first + (0 if i == 0 else step * 2 ** (i - 1))
        squared = 0.9 * 0.35**i
        found.append(
            NoisePoint(
                examples=seen,
                iterations=seen // batch_size,
                validation_loss=2.3 * 0.55**i + 0.08,
                score=1 - 0.9 * 0.5**i,
                measured_on=1_024,
                trace_covariance=around((scale.value or 2_000.0) * squared, 0.05),
                gradient_norm_squared=around(squared, 0.2) if scale.resolved else Interval.unresolved(high=squared),
                noise_scale=scale,
                preconditioned_noise_scale=preconditioned[i] if preconditioned else None,
                examples_needed=None if scale.resolved else 9_000 * (i + 1),
            )
        )
    return tuple(found)


def noise_measurement(
    scale: Interval,
    *,
    preconditioned: Interval | None = None,
    examples: int = 1_024,
    trace: float = 41.0,
    workload: str = "digits",
    note: str | None = None,
    provenance: Provenance = CPU,
) -> NoiseMeasurement:
    noise = random.Random(f"{workload}/error")
    sizes = [2**k for k in range(round(math.log2(examples))) if examples // 2**k >= 2]
    squared = Interval.unresolved(high=trace / 900)
    if scale.value is not None:
        squared = around(trace / scale.value, 0.2)
    return NoiseMeasurement(
        workload=workload,
        examples=examples,
        group_size=1 if note is None else 16,
        source="per-example gradients" if note is None else "micro-batches",
        note=note,
        parameters=9_610,
        trace_covariance=around(trace, 0.06),
        gradient_norm_squared=squared,
        noise_scale=scale,
        preconditioned_noise_scale=preconditioned,
        examples_needed=None if scale.resolved else 23_000,
        gradient_error=tuple(
            GradientError(
                size,
                examples // size,
                math.sqrt(trace / size) * math.exp(noise.gauss(0, 0.03)),
                math.sqrt(trace / size),
            )
            for size in sizes
        ),
        seconds=0.4,
        provenance=provenance,
    )


def branched_runs(
    base: int = 64, *, critical: int = 512, workload: str = "fashion", provenance: Provenance = CPU
) -> BranchedRuns:
    branches = []
    factors = (1, 2, 4, 8, 16, 32)
    for k in factors:
        size = base * k
        excess = 0.004 * max(0.0, size / critical - 0.4) ** 1.6
        half = 0.0022 + 0.12 * excess
        recovered = None if excess - half < 0.01 < excess + half else excess < 0.01
        branches.append(
            Branch(
                factor=k,
                batch_size=size,
                learning_rate=0.05 * k,
                updates=16_384 // size,
                examples=16_384,
                loss=Interval(0.412 + excess, 0.405 + excess, 0.419 + excess),
                excess=Interval(excess, excess - half, excess + half) if k < 32 else Interval(math.inf, None, None),
                recovered=recovered if k < 32 else False,
            )
        )
    passed = [branch.batch_size for branch in branches if branch.recovered]
    failed = [branch.batch_size for branch in branches if branch.recovered is False]
    return BranchedRuns(
        workload=workload,
        base_batch_size=base,
        base_learning_rate=0.05,
        examples_before=16_384,
        loss_before=0.52,
        tolerance=0.01,
        repeats=3,
        branches=tuple(branches),
        critical_batch_size=Interval(max(passed), max(passed), min(failed)),
        verdict=f"Batches up to {max(passed)} end within 0.01 of the best branch; {min(failed)} does not for sure.",
        seconds=21.0,
        provenance=provenance,
    )


def range_test(
    batch_size: int = 64,
    *,
    bound: float | None = 0.9,
    stable: float = 0.6,
    flat: bool = False,
    start: float = 2.31,
    workload: str = "digits",
    provenance: Provenance = CPU,
) -> RangeTest:
    noise = random.Random(f"{workload}/rates")
    points = []
    for i in range(61):
        rate = stable * 10 ** (-5.2 + 0.1 * i)
        fall = 0.0 if flat else 0.62 / (1 + (stable / 4 / rate) ** 1.2)
        rise = 0.0 if flat else 0.9 * max(0.0, math.log10(rate / stable)) ** 1.5 * 4
        loss = start * (1 - fall + rise) + noise.gauss(0, 0.006)
        gone = 0 if flat else min(3, max(0, round(6 * (math.log10(rate / stable) - 0.35))))
        spread = 0.03 + 0.2 * rise
        points.append(RangePoint(rate, loss, loss - spread, math.inf if gone else loss + spread, gone))
        if gone == 3:
            break
    unresolved = Interval.unresolved()
    return RangeTest(
        workload=workload,
        batch_size=batch_size,
        updates=len(points) * 2,
        repeats=3,
        points=tuple(points),
        steepest=unresolved if flat else around(stable / 4.6, 0.35),
        largest_stable=unresolved if flat else around(stable, 0.2),
        suggested=None if flat else stable / 4,
        verdict=(
            "The loss does not move with the rate by more than its noise: no rate can be told."
            if flat
            else f"Start from a learning rate of {stable / 4:.2g}; the loss falls fastest near {stable / 4.6:.2g} and "
            f"turns up for good above {stable:.2g}."
        ),
        largest_eigenvalue=None if bound is None else 3.8 / bound,
        curvature_bound=bound,
        seconds=6.0,
        provenance=provenance,
    )


def limits(memory: int | None, knee: Interval, critical: Interval, worth: Interval, conclusion: str) -> Limits:
    """The three limits with the sentences that a probe would write."""
    micro = (
        "Memory could not be measured here."
        if memory is None
        else f"Micro-batches of up to {memory:,} fit into memory; larger batches are accumulated."
    )
    speed = (
        "The step times do not resolve where examples per second stop growing."
        if knee.value is None
        else f"Above about {knee.value:,.0f} examples an update, examples per second grow little."
    )
    noise = (
        f"These gradients do not resolve the noise scale; it is at least {critical.low:,.0f}."
        if critical.value is None and critical.low
        else "These gradients say nothing about the noise scale."
        if critical.value is None
        else f"Above about {critical.value:,.0f}, more examples an update save few updates."
    )
    return Limits(memory, micro, knee, speed, critical, noise, worth, conclusion)


def mlp(name: str = "digits") -> Probe:
    """A small network on a processor: everything fits, everything is resolved."""
    scales = tuple(around(s, w) for s, w in ((9.1, 0.1), (31.0, 0.16), (74.0, 0.22), (160.0, 0.28), (310.0, 0.4)))
    return Probe(
        workload=WorkloadSummary(name, 9_610, 1_437, 360, "SGD", "cross_entropy", "accuracy", 64, 0.1),
        limits=limits(
            1_437,
            around(38.3, 0.11),
            around(160.0, 0.28),
            around(78.3, 0.15),
            "A batch size near 78 (67 to 91) is worth having here, about what is used today. Larger batches gain "
            "little speed, since examples per second stop growing near 38, and save few updates beyond 160. Memory "
            "holds the full training set as one batch.",
        ),
        step_time=step_times(workload=name),
        memory=memory_use(workload=name),
        noise=noise_points(scales, step=2_048),
        gradient_noise=noise_measurement(scales[-1], workload=name),
        branched=None,
        learning_rate=range_test(workload=name),
        warnings=(),
        replanned=None,
        seconds=19.4,
        provenance=CPU,
    )


def cnn() -> Probe:
    """A convolutional network on a GPU whose loader cannot keep up, with branched runs."""
    scales = tuple(around(s, w) for s, w in ((40.0, 0.2), (260.0, 0.2), (700.0, 0.25), (1_150.0, 0.3), (1_900.0, 0.35)))
    sizes = tuple(2**k for k in range(3, 14))
    name = "fashion"
    return Probe(
        workload=WorkloadSummary(name, 421_642, 60_000, 10_000, "SGD", "cross_entropy", "accuracy", 64, 0.05),
        limits=limits(
            29_791,
            around(1_740.0, 0.11),
            around(1_150.0, 0.3),
            around(1_410.0, 0.17),
            "A batch size near 1,410 (1,190 to 1,670) is worth having here, 22 times what is used today. The loader is "
            "what limits it: from 512 on, reading a batch takes longer than computing with it.",
        ),
        step_time=step_times(
            sizes,
            fixed=0.0021,
            each=1.1e-6,
            data=(4e-5, 5.2e-6),
            bend=256,
            reading="beside them",
            workload=name,
            provenance=GPU,
        ),
        memory=memory_use(
            sizes[::2],
            state=2.1e8,
            each=2.42e6,
            limit=80 * 2**30,
            training_examples=60_000,
            workload=name,
            provenance=GPU,
        ),
        noise=noise_points(scales, step=8_192),
        gradient_noise=noise_measurement(scales[-1], examples=4_096, trace=12.5, workload=name, provenance=GPU),
        branched=branched_runs(provenance=GPU),
        learning_rate=range_test(bound=0.21, stable=0.19, workload=name, provenance=GPU),
        warnings=(
            "From batch size 512 on, updates wait for the data: more workers or a faster store would move the knee.",
        ),
        replanned=None,
        seconds=71.8,
        provenance=GPU,
    )


def transformer() -> Probe:
    """A transformer with AdamW whose noise scale is resolved at the start alone."""
    unresolved = Interval.unresolved
    scales = (
        around(21.0, 0.2),
        around(310.0, 0.5),
        unresolved(low=480.0),
        unresolved(low=900.0),
        unresolved(low=1_300.0),
    )
    scaled = (None, around(120.0, 0.3), around(330.0, 0.45), unresolved(low=410.0), unresolved(low=650.0))
    name = "text"
    return Probe(
        workload=WorkloadSummary(name, 826_368, 131_072, 8_192, "AdamW", "token_loss", "minus the loss", 32, 0.001),
        limits=limits(
            212,
            around(5.4, 0.14),
            unresolved(low=900.0),
            unresolved(low=70.0),
            "How large a batch is worth having is not resolved here: the gradients' noise scale is at least 900 where "
            "training spends its time, which about 23,000 more examples would settle. No batch below 70 is too large.",
        ),
        step_time=step_times(tuple(2**k for k in range(8)), fixed=0.019, each=0.0035, data=(3e-5, 2e-6), workload=name),
        memory=memory_use(
            (1, 2, 4, 8, 16, 32, 64, 128),
            state=7.4e7,
            each=3.1e7,
            limit=8 * 2**30,
            training_examples=131_072,
            workload=name,
        ),
        noise=noise_points(scales, preconditioned=scaled, step=1_024, batch_size=32),
        gradient_noise=noise_measurement(
            scales[-1],
            preconditioned=scaled[-1],
            examples=512,
            trace=3.1,
            workload=name,
            note="Dropout is drawn anew for each example, so gradients are those of micro-batches.",
        ),
        branched=None,
        learning_rate=range_test(32, bound=None, stable=0.006, start=4.6, workload=name),
        warnings=("The noise scale is not resolved along most of the run.",),
        replanned=None,
        seconds=93.0,
        provenance=CPU,
    )


def bare() -> Probe:
    """Nothing beyond the least: one batch size, no memory, no noise scale, no branches, no range test."""
    whole = mlp()
    nothing = Interval.unresolved()
    steps = step_times((64,))
    return replace(
        whole,
        limits=limits(None, nothing, nothing, nothing, "Nothing can be said about batch size from what was measured."),
        step_time=replace(
            steps, law=StepTimeLaw(nothing, nothing, None, None, nothing, math.nan), loader_bound_from=None
        ),
        memory=None,
        noise=noise_points((nothing, nothing)),
        gradient_noise=replace(noise_measurement(nothing), gradient_error=()),
        learning_rate=None,
    )


def awkward() -> dict[str, Probe]:
    """The probes that break a careless page, by name."""
    whole, large = mlp(), cnn()
    three = (large.limits.knee, large.limits.critical, large.limits.worth_having)
    huge, tiny = Interval(4.2e11, 3e7, math.inf), Interval(0.31, 0.0002, 0.9)
    return {
        "probe bare": bare(),
        "probe hostile": replace(
            mlp(HOSTILE), limits=replace(whole.limits, conclusion=f"Take {HOSTILE}."), warnings=(HOSTILE,)
        ),
        "probe replanned": replace(
            large,
            replanned=Replanned(24 * 2**30, 2.5, 1.0),
            limits=limits(9_300, *three, large.limits.conclusion),
        ),
        "probe extremes": replace(
            whole,
            limits=limits(1, tiny, huge, Interval(3.6e5, 0.0, math.inf), "The numbers are far apart."),
            memory=memory_use((1,), limit=None),
            noise=noise_points((tiny, Interval(3.0, 0.5, math.inf), huge, Interval.unresolved(high=50.0))),
            gradient_noise=noise_measurement(huge, trace=4e-13),
            learning_rate=range_test(flat=True),
            step_time=step_times(tuple(4**k for k in range(12)), fixed=3e-5, each=4e-3),
        ),
    }


def parts() -> dict[str, Record]:
    """Every part as a record of its own, by name."""
    probe = cnn()
    branched, rates, memory = probe.branched, probe.learning_rate, probe.memory
    assert branched is not None
    assert rates is not None
    assert memory is not None
    lost: Literal[False] = False
    return {
        "part step time": probe.step_time,
        "part memory": memory,
        "part noise": probe.gradient_noise,
        "part noise unresolved": transformer().gradient_noise,
        "part branches": branched,
        "part branches lost": replace(
            branched,
            branches=tuple(
                replace(b, recovered=lost, excess=Interval(math.inf, None, None)) for b in branched.branches
            ),
            critical_batch_size=Interval.unresolved(),
            verdict="No branch ended in order.",
        ),
        "part range": rates,
        "part range flat": range_test(flat=True),
    }


def every() -> dict[str, Record]:
    """All of them by name."""
    return {"probe": mlp(), "probe cnn": cnn(), "probe transformer": transformer(), **awkward(), **parts()}

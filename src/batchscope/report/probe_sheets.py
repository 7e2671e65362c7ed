"""What a probe says in words, rows and columns; each of its parts is a record too, and has its own."""

from __future__ import annotations

import math

from batchscope.records import (
    BranchedRuns,
    Interval,
    MemoryUse,
    MonitoredNoise,
    NoiseMeasurement,
    NoisePoint,
    Probe,
    RangeTest,
    Replanned,
    StepTimes,
)
from batchscope.report import formatting as f
from batchscope.report.sheets import Column, Line, Sheet, workload_facts

Facts = tuple[tuple[str, str], ...]


def replanned(change: Replanned) -> str:
    """For what machine the probe was re-planned, and that nothing was measured there."""
    parts = []
    if change.memory_bytes is not None:
        parts.append(f"a memory limit of {f.memory(change.memory_bytes)}")
    if change.speed != 1:
        parts.append(f"computing {_times(change.speed)} per example")
    if change.fixed_speed != 1:
        parts.append(f"a fixed cost of an update that is {f.number(1 / change.fixed_speed, 3)} times as large")
    return f"Re-planned for {_listed(parts) or 'the same machine'}, not measured: the laws below are carried over."


def limits(record: Probe) -> Sheet:
    """The three limits, and the batch size between them."""
    found = record.limits
    columns = (Column("", align="left"), Column("batch size"), Column("95% interval"), Column("today's", "times"))
    today = record.workload.batch_size

    def line(name: str, interval: Interval) -> Line:
        value = f.UNRESOLVED if interval.value is None else f.size(interval.value)
        return Line((name, value, f.between(interval), _over(interval.value, today)))

    memory = "not known" if found.memory is None else f.count(found.memory)
    return Sheet(
        "The three limits",
        columns,
        (
            Line(("memory, micro-batch", memory, f.UNKNOWN, _over(found.memory, today))),
            line("throughput knee", found.knee),
            line("critical batch", found.critical),
            line("worth having", found.worth_having),
        ),
        f"Today's batch size is {f.count(today)}.",
    )


def step_times(steps: StepTimes) -> Sheet:
    """Time per update at each batch size, beside the law."""
    points = steps.points
    unit = f.time_unit(time for p in points for time in (p.compute_seconds.value, p.step_seconds.value))
    data = f.time_unit(point.data_seconds.value for point in points)
    columns = (
        Column("batch", "size", align="left"),
        Column("computing", f"{unit.name}, 95%"),
        Column("law", unit.name, minor=True),
        Column("residual", "relative"),
        Column("getting it", data.name, minor=True),
        Column("update", unit.name),
        Column("examples", "per s"),
        Column("updates", "timed", minor=True),
    )
    lines = tuple(
        Line(
            (
                f.count(p.batch_size),
                f.within(p.compute_seconds, unit),
                unit.of(p.predicted_seconds),
                f.off(p.compute_seconds.value, p.predicted_seconds),
                data.of(p.data_seconds.value),
                unit.of(p.step_seconds.value),
                f.number(p.examples_per_second.value, 3),
                f.count(p.updates),
            )
        )
        for p in points
    )
    wait = (
        "An update waits for its batch, so both times add up."
        if steps.reading == "between updates"
        else f"{f.count(steps.workers)} workers read ahead, so an update takes the longer of the two times."
    )
    return Sheet("Step time", columns, lines, f"Medians over rounds. {wait}")


def step_time_facts(steps: StepTimes) -> Facts:
    """The fitted law and what follows from it."""
    law = steps.law
    fixed, each = (f.time_unit([interval.value]) for interval in (law.fixed_seconds, law.seconds_per_example))
    facts = [
        ("fixed cost of an update", _with_unit(law.fixed_seconds, fixed)),
        ("each example more", _with_unit(law.seconds_per_example, each)),
        ("throughput knee", f.sized(law.knee)),
        ("error of the law, root mean square", _percent(law.relative_error)),
        (
            "fastest measured",
            f"{f.count(steps.fastest_batch_size)}: {f.number(steps.most_examples_per_second, 3)} per s",
        ),
    ]
    if steps.most_tokens_per_second is not None:
        facts.append(("in tokens", f"{f.number(steps.most_tokens_per_second, 3)} per s"))
    if steps.most_flops_per_second is not None:
        used = steps.model_flops_utilisation
        of = "" if used is None else f", {f.share(used, 1)} of the device's peak"
        facts.append(("operations of the model", f"{f.number(steps.most_flops_per_second / 1e9, 3)} GFLOP per s{of}"))
    if law.bend is not None:
        way = "" if law.bends_at is None else f", {law.bends_at} beyond"
        facts.insert(2, ("second regime from", f"{f.count(law.bend)}{way}"))
        if law.seconds_per_example_below is not None:
            facts.insert(2, ("each example more, below it", f.seconds(law.seconds_per_example_below)))
    bound = steps.loader_bound_from
    reading = (
        "between updates" if steps.reading == "between updates" else f"beside them, {_plural(steps.workers, 'worker')}"
    )
    facts += [
        ("batches are read", reading),
        ("bound by the loader", "at no size measured" if bound is None else f"from {f.count(bound)} on"),
    ]
    return tuple(facts)


def memory(use: MemoryUse) -> Sheet:
    """Peak memory at each micro-batch size, beside the law."""
    unit = f.memory_unit(point.peak_bytes for point in use.points)
    columns = (
        Column("micro-batch", "size", align="left"),
        Column("peak", unit.name),
        Column("law", unit.name),
        Column("residual", "relative"),
    )
    lines = tuple(
        Line(
            (
                f.count(p.micro_batch_size),
                unit.of(p.peak_bytes),
                unit.of(p.predicted_bytes) if use.law else f.UNKNOWN,
                f.off(p.peak_bytes, p.predicted_bytes if use.law else None),
            )
        )
        for p in use.points
    )
    return Sheet("Memory", columns, lines, f"Read from: {use.meter}. Model and optimiser included, data excluded.")


def memory_facts(use: MemoryUse) -> Facts:
    """The law, the limit, and the largest micro-batch that it holds."""
    limit = "not known"
    if use.limit_bytes is not None:
        limit = f.memory(use.limit_bytes) + ("" if use.limit_source == "unknown" else f" ({use.limit_source})")
    facts = [("limit", limit), ("left free", _percent(use.margin))]
    if use.law is not None:
        state, each = use.law.state_bytes, use.law.bytes_per_example
        facts += [
            ("whatever the micro-batch", _with_unit(state, f.memory_unit([state.value]))),
            ("each example more", _with_unit(each, f.memory_unit([each.value]))),
            ("error of the law, root mean square", _percent(use.law.relative_error)),
        ]
    everything = " (the full training set)" if use.holds_all else ""
    return (
        *facts,
        ("weights", f.memory(use.parameter_bytes)),
        ("optimiser's state", f.memory(use.optimizer_bytes)),
        ("largest micro-batch that ran", f.count(use.largest_executed)),
        ("largest by the law", f.count(use.largest_predicted) + (everything if use.largest_predicted else "")),
    )


def noise_points(points: tuple[NoisePoint, ...]) -> Sheet:
    """The noise scale along training."""
    scaled = any(point.preconditioned_noise_scale is not None for point in points)
    needs = any(point.examples_needed is not None for point in points)
    columns = (
        Column("examples", "seen", align="left"),
        Column("loss", "validation", minor=True),
        Column("noise scale", "examples, 95%"),
        *((Column("after scaling", "by the optimiser"),) if scaled else ()),
        Column("tr Σ", minor=True),
        Column("‖G‖²", minor=True),
        Column("measured", "on", minor=True),
        *((Column("needs", "examples"),) if needs else ()),
    )
    lines = []
    for p in points:
        preconditioned = p.preconditioned_noise_scale
        lines.append(
            Line(
                (
                    f.count(p.examples),
                    f.number(p.validation_loss, 3),
                    _bounded(p.noise_scale),
                    *((f.UNKNOWN if preconditioned is None else _bounded(preconditioned),) if scaled else ()),
                    f.number(p.trace_covariance.value, 3),
                    f.number(p.gradient_norm_squared.value, 3),
                    f.count(p.measured_on),
                    *(
                        ("" if p.examples_needed is None else f"about {f.number(p.examples_needed, 2)}",)
                        if needs
                        else ()
                    ),
                )
            )
        )
    note = "The noise scale tr Σ/‖G‖² is the batch size at which noise and signal in a batch's gradient are level."
    if needs:
        note += " “Or more”, “or less”: not resolved; the last column says from how many examples it would be."
    return Sheet("Gradient noise along training", columns, tuple(lines), note)


def noise_facts(noise: NoiseMeasurement) -> Facts:
    """One measurement of gradient noise."""
    facts = [
        ("noise scale tr Σ/‖G‖²", f.sized(noise.noise_scale)),
        ("summed variance tr Σ", f.sized(noise.trace_covariance)),
        ("squared gradient ‖G‖²", f.sized(noise.gradient_norm_squared)),
        ("measured on", f"{f.count(noise.examples)} examples, {noise.source}"),
        ("numbers in the gradient", f.count(noise.parameters)),
    ]
    if noise.preconditioned_noise_scale is not None:
        facts.insert(1, ("after the optimiser's scaling", f.sized(noise.preconditioned_noise_scale)))
    if noise.group_size != 1:
        facts.append(("examples in each gradient", f.count(noise.group_size)))
    if noise.examples_needed is not None:
        facts.append(("would be resolved from", f"about {f.number(noise.examples_needed, 2)} examples"))
    return tuple(facts)


def monitored_facts(noise: MonitoredNoise) -> Facts:
    """Gradient noise of a person's own loop."""
    facts = [
        ("noise scale tr Σ/‖G‖²", f.sized(noise.noise_scale)),
        ("summed variance tr Σ", f.sized(noise.trace_covariance)),
        ("squared gradient ‖G‖²", f.sized(noise.gradient_norm_squared)),
        ("batch size", f.count(noise.batch_size)),
        ("steps measured", f"{f.count(noise.steps_measured)} of {f.count(noise.steps)}, from {noise.source}"),
        ("numbers in the gradient", f.count(noise.parameters)),
        ("time that measuring took", f"{f.share(noise.overhead, 1)}, {f.share(noise.overhead_allowed, 1)} allowed"),
        ("time of training", f.seconds(noise.seconds)),
    ]
    if noise.preconditioned_noise_scale is not None:
        facts.insert(1, ("after the optimiser's scaling", f.sized(noise.preconditioned_noise_scale)))
    if noise.examples_needed is not None:
        facts.append(("would be resolved from", f"about {f.number(noise.examples_needed, 2)} examples"))
    if noise.note is not None:
        facts.append(("note", noise.note))
    facts.append(("on", f"{noise.device}, batchscope {noise.batchscope}, torch {noise.torch}"))
    return tuple(facts)


def gradient_errors(noise: NoiseMeasurement) -> Sheet:
    """How far a batch's gradient lies from the true one, beside √(tr Σ/B)."""
    columns = (
        Column("batch", "size", align="left"),
        Column("error", "measured"),
        Column("error", "√(tr Σ/B)"),
        Column("residual", "relative"),
        Column("batches", "averaged", minor=True),
    )
    lines = tuple(
        Line(
            (
                f.count(e.batch_size),
                f.number(e.error, 3),
                f.number(e.predicted, 3),
                f.off(e.error, e.predicted),
                f.count(e.batches),
            )
        )
        for e in noise.gradient_error
    )
    return Sheet("Error of a batch's gradient", columns, lines)


def branches(runs: BranchedRuns) -> Sheet:
    """Training continued at several batch sizes from one point."""
    losses, excesses = f.places_for([b.loss for b in runs.branches]), f.places_for([b.excess for b in runs.branches])
    columns = (
        Column("batch", "size", align="left"),
        Column("times", "the base"),
        Column("rate"),
        Column("updates", minor=True),
        Column("loss", "at the end"),
        Column("above the best", "95%"),
        Column("came", "back?", align="left"),
    )
    said = {True: "yes", False: "no", None: "cannot be told"}
    lines = tuple(
        Line(
            (
                f.count(b.batch_size),
                f.number(b.factor, 3),
                f.number(b.learning_rate, 3),
                f.count(b.updates),
                f.fixed(b.loss.value, losses),
                f.estimate(b.excess, excesses),
                said[b.recovered],
            )
        )
        for b in runs.branches
    )
    note = (
        f"{_plural(runs.repeats, 'repeat')} of each after {f.count(runs.examples_before)} examples; “yes”: within "
        f"{f.number(runs.tolerance, 2)} of the best branch's loss for sure."
    )
    return Sheet("Branched runs", columns, lines, note)


def branch_facts(runs: BranchedRuns) -> Facts:
    """Where the runs were branched, and what they say."""
    return (
        ("critical batch size", f.sized(runs.critical_batch_size)),
        ("branched from", f"batch size {f.count(runs.base_batch_size)}, rate {f.number(runs.base_learning_rate, 3)}"),
        ("after", f"{f.count(runs.examples_before)} examples"),
        ("validation loss there", f.number(runs.loss_before)),
        ("tolerance", f.number(runs.tolerance, 3)),
        ("repeats", f.count(runs.repeats)),
        ("took", f.seconds(runs.seconds)),
    )


def range_facts(test: RangeTest) -> Facts:
    """What a range test reads off its curve."""
    facts = [
        ("start from", f.number(test.suggested, 2)),
        ("loss falls fastest at", f.sized(test.steepest)),
        ("largest stable", f.sized(test.largest_stable)),
    ]
    if test.curvature_bound is not None:
        facts.append(("curvature bound", f.number(test.curvature_bound, 3)))
    if test.largest_eigenvalue is not None:
        facts.append(("largest eigenvalue λ_max", f.number(test.largest_eigenvalue, 3)))
    return (
        *facts,
        ("batch size", f.count(test.batch_size)),
        ("repeats", f"{f.count(test.repeats)} of up to {_plural(test.updates, 'update')}"),
        ("took", f.seconds(test.seconds)),
    )


def range_points(test: RangeTest) -> Sheet:
    """The loss at every rate tried."""
    columns = (Column("rate", align="left"), Column("loss", "mean"), Column("loss", "range"), Column("diverged"))
    lines = tuple(
        Line(
            (
                f.number(p.learning_rate, 3),
                f.number(p.loss),
                f"{f.number(p.low)}–{f.number(p.high)}",
                f"{p.diverged} of {test.repeats}" if p.diverged else "",
            )
        )
        for p in test.points
    )
    return Sheet("Rates tried", columns, lines)


def settings(record: Probe) -> Facts:
    """What was probed."""
    return (
        *workload_facts(record.workload),
        ("whole probe", f.seconds(record.seconds)),
    )


def _with_unit(interval: Interval, unit: f.Unit) -> str:
    return f.UNRESOLVED if interval.value is None else f"{f.within(interval, unit)} {unit.name}"


def _bounded(interval: Interval) -> str:
    """A noise scale in a column: its bounds alone where it is not resolved and there are any."""
    ends = f.between(interval)
    return ends if interval.value is None and ends != f.UNKNOWN else f.sized(interval)


def _percent(part: float) -> str:
    return f.UNKNOWN if math.isnan(part) else f"{f.number(100 * part, 2)}%"


def _over(value: float | None, today: int) -> str:
    return f.UNKNOWN if not f.known(value) else f"{f.number(value / today, 2)}×"


def _times(factor: float) -> str:
    way, size = ("faster", factor) if factor > 1 else ("slower", 1 / factor)
    return f"{f.number(size, 3)} times {way}"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

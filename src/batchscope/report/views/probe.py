"""What is shown of a probe, of each of its parts on its own, and of the gradient noise of a person's own loop."""

from __future__ import annotations

import functools
from dataclasses import replace

from batchscope.records import (
    Branch,
    BranchedRuns,
    GradientError,
    Interval,
    MemoryPoint,
    MemoryUse,
    MonitoredNoise,
    NoiseMeasurement,
    NoisePoint,
    Probe,
    RangePoint,
    RangeTest,
    Replanned,
    StepTimePoint,
    StepTimes,
)
from batchscope.report import formatting as f
from batchscope.report.charts.plot import AMBER, BLUE, TEAL
from batchscope.report.view import (
    Card,
    Column,
    Facts,
    Figure,
    Section,
    Table,
    View,
    facts,
    measured,
    number_card,
    table,
    workload_facts,
)
from batchscope.report.views import probe_charts as charts

Part = StepTimes | MemoryUse | NoiseMeasurement | BranchedRuns | RangeTest
"""The records that a probe is made of."""
NOISY = "How noisy are the gradients?"


def view(record: Probe) -> View:
    """A probe: the answer, the three limits, and a section for each part that was measured."""
    found, today = record.limits, record.workload.batch_size
    overview = Figure(
        "limits", "The limits on one axis of batch sizes", functools.partial(charts.limits, record), alone=True
    )
    most = "not known" if found.memory is None else f.count(found.memory)
    held = "" if found.memory is None else "examples in a micro-batch at most"
    return View(
        name=record.workload.name,
        title="How large a batch is worth having?",
        answer=found.conclusion,
        notice="" if record.replanned is None else replanned(record.replanned),
        summary=(
            ("worth having", f.sized(found.worth_having)),
            ("used today", f.count(today)),
            ("optimizer", record.workload.optimizer),
            ("the probe took", f.seconds(record.seconds)),
            ("on", record.provenance.device),
        ),
        warnings=record.warnings,
        sections=(
            Section(
                "The three limits",
                "Below the knee, hardware idles; beyond the critical batch size, examples are wasted; memory bounds "
                "what passes through the model at once. A bar is a 95% interval, an arrow one that goes on.",
                figures=(overview,),
                cards=(
                    Card("Memory", most, held, found.memory_sentence, AMBER),
                    number_card("Throughput knee", found.knee, found.knee_sentence, BLUE),
                    number_card("Critical batch size", found.critical, found.critical_sentence, TEAL),
                ),
            ),
            Section("", tables=(limits(record),), on="terminal"),
            Section(
                "",
                sentences=(found.memory_sentence, found.knee_sentence, found.critical_sentence),
                on="terminal",
            ),
            *_time(record.step_time),
            *(_memory(record.memory) if record.memory is not None else ()),
            *_gradients(record),
            *(_branches(record.branched) if record.branched is not None else ()),
            *(_rates(record.learning_rate) if record.learning_rate is not None else ()),
            measured(
                record.provenance,
                ("Settings", (*workload_facts(record.workload), ("whole probe", f.seconds(record.seconds)))),
            ),
        ),
        origin=record.provenance,
    )


def step_times_view(record: StepTimes) -> View:
    """Step times on their own."""
    found = _part(record, "What does an update cost in time?", _speed(record), _time(record))
    return replace(found, warnings=record.warnings)


def memory_view(record: MemoryUse) -> View:
    """Memory on its own."""
    return _part(record, "How large a micro-batch fits into memory?", _room(record), _memory(record))


def noise_view(record: NoiseMeasurement) -> View:
    """A measurement of gradient noise on its own."""
    said = _noise_said(record.noise_scale, record.examples, record.examples_needed)
    return _part(record, NOISY, said, _noise(record))


def branches_view(record: BranchedRuns) -> View:
    """Branched runs on their own."""
    return _part(record, "From which batch size on does training lose?", record.verdict, _branches(record, lead=False))


def range_view(record: RangeTest) -> View:
    """A range test on its own."""
    return _part(record, "Which learning rates work?", record.verdict, _rates(record, lead=False))


def monitor_view(record: MonitoredNoise) -> View:
    """The noise measured in a person's own loop."""
    return View(
        name="your own loop",
        title=NOISY,
        answer=_noise_said(record.noise_scale, record.examples, record.examples_needed),
        summary=(("batch size", f.count(record.batch_size)), ("steps", f.count(record.steps)), ("on", record.device)),
        sections=(
            Section(
                "What was measured", facts=(("Gradient noise of your own loop", monitored_facts(record)),), on="both"
            ),
        ),
    )


def _part(record: Part, title: str, answer: str, sections: tuple[Section, ...]) -> View:
    return View(
        name=record.workload,
        title=title,
        answer=answer,
        summary=(("took", f.seconds(record.seconds)), ("on", record.provenance.device)),
        sections=(*sections, measured(record.provenance)),
        origin=record.provenance,
    )


def replanned(change: Replanned) -> str:
    """For what machine the probe was re-planned, and that nothing was measured there."""
    way, size = ("faster", change.speed) if change.speed > 1 else ("slower", 1 / change.speed)
    parts = [
        "" if change.memory_bytes is None else f"a memory limit of {f.memory(change.memory_bytes)}",
        "" if change.speed == 1 else f"computing {f.number(size, 3)} times {way} per example",
        ""
        if change.fixed_speed == 1
        else f"a fixed cost of an update that is {f.number(1 / change.fixed_speed, 3)} times as large",
    ]
    machine = f.listed([part for part in parts if part]) or "the same machine"
    return f"Re-planned for {machine}, not measured: the laws below are carried over."


def limits(record: Probe) -> Table:
    """The three limits, and the batch size between them."""
    found, today = record.limits, record.workload.batch_size
    most = Interval(
        None if found.memory is None else float(found.memory), None, None, resolved=found.memory is not None
    )
    items = (
        ("memory, micro-batch", most),
        ("throughput knee", found.knee),
        ("critical batch", found.critical),
        ("worth having", found.worth_having),
    )

    def size(item: tuple[str, Interval]) -> str:
        unknown = "not known" if item[1] is most else f.UNRESOLVED
        return unknown if item[1].value is None else f.size(item[1].value)

    def over(item: tuple[str, Interval]) -> str:
        return f"{f.number(item[1].value / today, 2)}×" if f.known(item[1].value) else f.UNKNOWN

    columns: tuple[Column[tuple[str, Interval]], ...] = (
        Column("", lambda item: item[0], align="left"),
        Column("batch size", size),
        Column("95% interval", lambda item: f.between(item[1])),
        Column("today's", over, "times"),
    )
    return table("The three limits", items, columns, f"Today's batch size is {f.count(today)}.")


# Time


def _time(steps: StepTimes) -> tuple[Section, ...]:
    law = steps.law.seconds(1.0) is not None
    medians = "Medians with 95% intervals" + ("; line: the law of computing." if law else ".")
    computing = "Line: computing alone, by the law." if law else ""
    return (
        Section(
            "Time",
            figures=(
                Figure("step_time", "Time of an update", functools.partial(charts.step_time, steps), note=medians),
                Figure(
                    "throughput", "Examples per second", functools.partial(charts.throughput, steps), note=computing
                ),
            ),
            tables=(step_times(steps),) if steps.points else (),
            facts=(("The law of computing, and reading", step_time_facts(steps)),),
            on="both",
        ),
    )


def _speed(steps: StepTimes) -> str:
    knee, law = steps.law.knee, steps.law
    if knee.value is None or law.fixed_seconds.value is None or law.seconds_per_example.value is None:
        first = "Where examples per second stop growing is not resolved."
    else:
        first = (
            f"The throughput knee lies at {f.sized(knee)}: there, examples per second are half of the most that the "
            f"law allows. An update costs {f.seconds(law.fixed_seconds.value)} whatever its size, and "
            f"{f.seconds(law.seconds_per_example.value)} for each example more."
        )
    size, rate = f.count(steps.fastest_batch_size), f.number(steps.most_examples_per_second, 3)
    bound = steps.loader_bound_from
    waits = "" if bound is None else f" From {f.count(bound)} on, getting a batch takes longer than computing with it."
    return f"{first} The fastest size measured is {size}, at {rate} examples per second.{waits}"


def step_times(steps: StepTimes) -> Table:
    """Time per update at each batch size, beside the law."""
    points = steps.points
    unit = f.time_unit(time for p in points for time in (p.compute_seconds.value, p.step_seconds.value))
    data = f.time_unit(point.data_seconds.value for point in points)
    columns: tuple[Column[StepTimePoint], ...] = (
        Column("batch", lambda p: f.count(p.batch_size), "size", "left"),
        Column("computing", lambda p: f.within(p.compute_seconds, unit), f"{unit.name}, 95%"),
        Column("law", lambda p: unit.of(p.predicted_seconds), unit.name, minor=True),
        Column("residual", lambda p: f.off(p.compute_seconds.value, p.predicted_seconds), "relative"),
        Column("getting it", lambda p: data.of(p.data_seconds.value), data.name, minor=True),
        Column("update", lambda p: unit.of(p.step_seconds.value), unit.name),
        Column("examples", lambda p: f.number(p.examples_per_second.value, 3), "per s"),
        Column("updates", lambda p: f.count(p.updates), "timed", minor=True),
    )
    workers = f"{f.count(steps.workers)} workers read ahead, so an update takes the longer of the two times."
    alone = "An update waits for its batch, so both times add up."
    wait = alone if steps.reading == "between updates" else workers
    return table("Step time", points, columns, f"Medians over rounds. {wait}")


def step_time_facts(steps: StepTimes) -> Facts:
    """The fitted law and what follows from it."""
    law, used, bound = steps.law, steps.model_flops_utilisation, steps.loader_bound_from
    below, tokens, flops = law.seconds_per_example_below, steps.most_tokens_per_second, steps.most_flops_per_second
    bends = law.bend is not None
    beside = f"beside them, {f.plural(steps.workers, 'worker')}"
    peak = "" if used is None else f", {f.share(used, 1)} of the device's peak"
    way = "" if law.bends_at is None else f", {law.bends_at} beyond"
    speed = f"{f.count(steps.fastest_batch_size)}: {f.number(steps.most_examples_per_second, 3)} per s"
    return facts(
        ("fixed cost of an update", _timed(law.fixed_seconds)),
        ("each example more", _timed(law.seconds_per_example)),
        ("each example more, below it", f.seconds(below)) if bends and below is not None else None,
        ("second regime from", f"{f.count(law.bend)}{way}") if bends else None,
        ("throughput knee", f.sized(law.knee)),
        ("error of the law, root mean square", f.percent(law.relative_error)),
        ("fastest measured", speed),
        None if tokens is None else ("in tokens", f"{f.number(tokens, 3)} per s"),
        None if flops is None else ("operations of the model", f"{f.number(flops / 1e9, 3)} GFLOP per s{peak}"),
        ("batches are read", steps.reading if steps.reading == "between updates" else beside),
        ("bound by the loader", "at no size measured" if bound is None else f"from {f.count(bound)} on"),
    )


def _timed(interval: Interval) -> str:
    return _with_unit(interval, f.time_unit([interval.value]))


def _with_unit(interval: Interval, unit: f.Unit) -> str:
    return f.UNRESOLVED if interval.value is None else f"{f.within(interval, unit)} {unit.name}"


# Memory


def _memory(use: MemoryUse) -> tuple[Section, ...]:
    note = ("Line: the fitted law. " if use.law else "") + "Any batch can be summed up from micro-batches that fit."
    return (
        Section(
            "Memory",
            figures=(Figure("memory", "Peak memory", functools.partial(charts.memory, use), note=note),),
            tables=(memory(use),) if use.points else (),
            facts=(("The law, and the limit", memory_facts(use)),),
            on="both",
        ),
    )


def _room(use: MemoryUse) -> str:
    ran = f.count(use.largest_executed)
    first = f"Micro-batches of up to {ran} ran here." if use.largest_executed else "No micro-batch ran here."
    if use.holds_all and use.largest_executed and use.largest_executed >= (use.largest_predicted or 0):
        return f"The full training set ran as one batch of {ran} here."
    if use.holds_all:
        return f"{first} By the law, even the full training set fits as one batch."
    if use.largest_predicted is None:
        return f"{first} What would fit beyond is not known."
    free = f" with {f.share(use.margin, 1)} left free" if use.margin else ""
    return f"{first} By the law, {f.count(use.largest_predicted)} fit into {f.memory(use.limit_bytes)}{free}."


def memory(use: MemoryUse) -> Table:
    """Peak memory at each micro-batch size, beside the law."""
    unit = f.memory_unit(point.peak_bytes for point in use.points)
    columns: tuple[Column[MemoryPoint], ...] = (
        Column("micro-batch", lambda p: f.count(p.micro_batch_size), "size", "left"),
        Column("peak", lambda p: unit.of(p.peak_bytes), unit.name),
        Column("law", lambda p: unit.of(p.predicted_bytes) if use.law else f.UNKNOWN, unit.name),
        Column("residual", lambda p: f.off(p.peak_bytes, p.predicted_bytes if use.law else None), "relative"),
    )
    note = f"Read from: {use.meter}. Model and optimiser included, data excluded."
    return table("Memory", use.points, columns, note)


def memory_facts(use: MemoryUse) -> Facts:
    """The law, the limit, and the largest micro-batch that it holds."""
    limit = "not known"
    if use.limit_bytes is not None:
        limit = f.memory(use.limit_bytes) + ("" if use.limit_source == "unknown" else f" ({use.limit_source})")
    law: Facts = ()
    if use.law is not None:
        state, each = (
            _with_unit(interval, f.memory_unit([interval.value]))
            for interval in (use.law.state_bytes, use.law.bytes_per_example)
        )
        error = f.percent(use.law.relative_error)
        law = (
            ("whatever the micro-batch", state),
            ("each example more", each),
            ("error of the law, root mean square", error),
        )
    everything = " (the full training set)" if use.holds_all and use.largest_predicted else ""
    return (
        ("limit", limit),
        ("left free", f.percent(use.margin)),
        *law,
        ("weights", f.memory(use.parameter_bytes)),
        ("optimiser's state", f.memory(use.optimizer_bytes)),
        ("largest micro-batch that ran", f.count(use.largest_executed)),
        ("largest by the law", f.count(use.largest_predicted) + everything),
    )


# Gradient noise


def _noise_said(scale: Interval, examples: int, needed: int | None) -> str:
    if scale.value is None:
        more = "" if needed is None else f" About {f.number(needed, 2)} examples would settle it."
        return f"The noise scale is {f.sized(scale)} with {f.count(examples)} examples.{more}"
    return (
        f"The noise scale is {f.sized(scale)} examples. In batches far below it the gradient is mostly noise, and "
        "more examples an update save updates; far above it they save few."
    )


def _gradients(record: Probe) -> tuple[Section, ...]:
    """The noise scale along training, and the last of its points in full."""
    note = "Band and bars: 95% intervals. Dashed, with an arrow: not resolved, known to one side alone."
    if any(point.preconditioned_noise_scale is not None for point in record.noise):
        note += " Preconditioned: after the optimiser's own scaling of every coordinate."
    draw = functools.partial(charts.noise_scale, record)
    [last] = _noise(record.gradient_noise)
    along = Figure("noise_scale", "Noise scale along training", draw, note=note)
    points = (noise_points(record.noise),) if record.noise else ()
    return (replace(last, title="Gradient noise", figures=(along, *last.figures), tables=points + last.tables),)


def _noise(noise: NoiseMeasurement) -> tuple[Section, ...]:
    note = "Root mean square distance of a batch's gradient g from the true one G; line: what tr Σ predicts."
    draw = functools.partial(charts.gradient_error, noise)
    return (
        Section(
            "Gradient noise at one point",
            noise.note or "",
            figures=(Figure("gradient_error", "Error of a batch's gradient", draw, note=note),),
            tables=(gradient_errors(noise),) if noise.gradient_error else (),
            facts=(("The last measurement", noise_facts(noise)),),
            on="both",
        ),
    )


def noise_points(points: tuple[NoisePoint, ...]) -> Table:
    """The noise scale along training."""

    def bounded(interval: Interval | None) -> str:
        """The bounds alone where it is not resolved and there are any."""
        if interval is None:
            return f.UNKNOWN
        ends = f.between(interval)
        return ends if interval.value is None and ends != f.UNKNOWN else f.sized(interval)

    def needed(point: NoisePoint) -> str:
        return "" if point.examples_needed is None else f"about {f.number(point.examples_needed, 2)}"

    needs = any(point.examples_needed is not None for point in points)
    scaled = any(point.preconditioned_noise_scale is not None for point in points)
    columns: tuple[Column[NoisePoint] | None, ...] = (
        Column("examples", lambda p: f.count(p.examples), "seen", "left"),
        Column("loss", lambda p: f.number(p.validation_loss, 3), "validation", minor=True),
        Column("noise scale", lambda p: bounded(p.noise_scale), "examples, 95%"),
        Column("after scaling", lambda p: bounded(p.preconditioned_noise_scale), "by the optimiser")
        if scaled
        else None,
        Column("tr Σ", lambda p: f.number(p.trace_covariance.value, 3), minor=True),
        Column("‖G‖²", lambda p: f.number(p.gradient_norm_squared.value, 3), minor=True),
        Column("measured", lambda p: f.count(p.measured_on), "on", minor=True),
        Column("needs", needed, "examples") if needs else None,
    )
    note = "At a batch size of the noise scale tr Σ/‖G‖², noise and signal in a batch's gradient are equally large."
    if needs:
        note += " “Or more”, “or less”: not resolved; the last column says from how many examples it would be."
    return table("Gradient noise along training", points, columns, note)


def _scales(noise: NoiseMeasurement | MonitoredNoise) -> Facts:
    scaled = noise.preconditioned_noise_scale
    return facts(
        ("noise scale tr Σ/‖G‖²", f.sized(noise.noise_scale)),
        None if scaled is None else ("after the optimiser's scaling", f.sized(scaled)),
        ("summed variance tr Σ", f.sized(noise.trace_covariance)),
        ("squared gradient ‖G‖²", f.sized(noise.gradient_norm_squared)),
    )


def _resolved_from(noise: NoiseMeasurement | MonitoredNoise) -> tuple[str, str] | None:
    needed = noise.examples_needed
    return None if needed is None else ("would be resolved from", f"about {f.number(needed, 2)} examples")


def noise_facts(noise: NoiseMeasurement) -> Facts:
    """One measurement of gradient noise."""
    return _scales(noise) + facts(
        ("measured on", f"{f.count(noise.examples)} examples, {noise.source}"),
        ("numbers in the gradient", f.count(noise.parameters)),
        ("examples in each gradient", f.count(noise.group_size)) if noise.group_size != 1 else None,
        _resolved_from(noise),
        ("note", noise.note),
    )


def monitored_facts(noise: MonitoredNoise) -> Facts:
    """Gradient noise of a person's own loop."""
    return _scales(noise) + facts(
        ("batch size", f.count(noise.batch_size)),
        ("steps measured", f"{f.count(noise.steps_measured)} of {f.count(noise.steps)}, from {noise.source}"),
        ("numbers in the gradient", f.count(noise.parameters)),
        ("time that measuring took", f"{f.share(noise.overhead, 1)}, {f.share(noise.overhead_allowed, 1)} allowed"),
        ("time of training", f.seconds(noise.seconds)),
        _resolved_from(noise),
        ("note", noise.note),
        ("on", f"{noise.device}, batchscope {noise.batchscope}, torch {noise.torch}"),
    )


def gradient_errors(noise: NoiseMeasurement) -> Table:
    """How far a batch's gradient lies from the true one, beside √(tr Σ/B)."""
    columns: tuple[Column[GradientError], ...] = (
        Column("batch", lambda e: f.count(e.batch_size), "size", "left"),
        Column("error", lambda e: f.number(e.error, 3), "measured"),
        Column("error", lambda e: f.number(e.predicted, 3), "√(tr Σ/B)"),
        Column("residual", lambda e: f.off(e.error, e.predicted), "relative"),
        Column("batches", lambda e: f.count(e.batches), "averaged", minor=True),
    )
    return table("Error of a batch's gradient", noise.gradient_error, columns)


# Branched runs, and the range test


def _branches(runs: BranchedRuns, *, lead: bool = True) -> tuple[Section, ...]:
    note = "Bars: 95% intervals over the repeats. An arrow: far above; a cross: the branch diverged."
    draw = functools.partial(charts.branches, runs)
    return (
        Section(
            "Branched runs",
            runs.verdict if lead else "",
            figures=(Figure("branches", "Loss after the same number of examples", draw, note=note),),
            tables=(branches(runs),) if runs.branches else (),
            facts=(("Where they branch", branch_facts(runs)),),
            on="both",
        ),
    )


def branches(runs: BranchedRuns) -> Table:
    """Training continued at several batch sizes from one point."""
    losses, excesses = f.places_for([b.loss for b in runs.branches]), f.places_for([b.excess for b in runs.branches])
    said = {True: "yes", False: "no", None: "inconclusive"}
    columns: tuple[Column[Branch], ...] = (
        Column("batch", lambda b: f.count(b.batch_size), "size", "left"),
        Column("times", lambda b: f.number(b.factor, 3), "the base"),
        Column("rate", lambda b: f.number(b.learning_rate, 3)),
        Column("updates", lambda b: f.count(b.updates), minor=True),
        Column("loss", lambda b: f.fixed(b.loss.value, losses), "at the end"),
        Column("above the best", lambda b: f.estimate(b.excess, excesses), "95%"),
        Column("came", lambda b: said[b.recovered], "back?", "left"),
    )
    note = (
        f"{f.plural(runs.repeats, 'repeat')} of each after {f.count(runs.examples_before)} examples; “yes”: within "
        f"{f.number(runs.tolerance, 2)} of the best branch's loss for sure."
    )
    return table("Branched runs", runs.branches, columns, note)


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


def _rates(test: RangeTest, *, lead: bool = True) -> tuple[Section, ...]:
    note = "Line: mean over the repeats; band: their range. Shaded columns: 95% intervals."
    draw = functools.partial(charts.rate_range, test)
    return (
        Section(
            "Learning rate",
            test.verdict if lead else "",
            figures=(Figure("rate_range", "Loss as the rate grows", draw, note=note),),
            facts=(("Learning-rate range test", range_facts(test)),),
            folded=range_points(test) if test.points else None,
            on="both",
        ),
    )


def range_facts(test: RangeTest) -> Facts:
    """What a range test reads off its curve."""
    bound, largest = test.curvature_bound, test.largest_eigenvalue
    return facts(
        ("start from", f.number(test.suggested, 2)),
        ("loss falls fastest at", f.sized(test.steepest)),
        ("largest stable", f.sized(test.largest_stable)),
        None if bound is None else ("curvature bound", f.number(bound, 3)),
        None if largest is None else ("largest eigenvalue λ_max", f.number(largest, 3)),
        ("batch size", f.count(test.batch_size)),
        ("repeats", f"{f.count(test.repeats)} of up to {f.plural(test.updates, 'update')}"),
        ("took", f.seconds(test.seconds)),
    )


def range_points(test: RangeTest) -> Table:
    """The loss at every rate tried."""
    columns: tuple[Column[RangePoint], ...] = (
        Column("rate", lambda p: f.number(p.learning_rate, 3), align="left"),
        Column("loss", lambda p: f.number(p.loss), "mean"),
        Column("loss", lambda p: f"{f.number(p.low)}–{f.number(p.high)}", "range"),
        Column("diverged", lambda p: f"{p.diverged} of {test.repeats}" if p.diverged else ""),
    )
    return table("Rates tried", test.points, columns)
